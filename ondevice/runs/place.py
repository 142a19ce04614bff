"""Where a run's files lie: folders that another program sends to a cloud, and what a disk cannot do.

A run relies on four things of its disk. Without these, work could be lost, and it is refused by name:

    a rename puts a file in the place of another one    or a kill leaves neither
    a folder can be renamed                             likewise
    a lock on an open file keeps others out             or two processes write to one run
    a small file comes back as it was written

Without these it goes on: symbolic links (`checkpoints/best` is then a file with the name in it), hard
links (a cache or a checkpoint to be pushed is copied), names that differ by case alone.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ondevice.common import atomic, disk, processes
from ondevice.common.errors import UserError
from ondevice.common.file_lock import try_lock

_CLOUDS = {
    "icloud drive": "iCloud Drive",
    "dropbox": "Dropbox",
    "onedrive": "OneDrive",
    "google drive": "Google Drive",
    "googledrive": "Google Drive",
    "box": "Box",
    "nextcloud": "Nextcloud",
}
"""How the folders that sync programs make in a person's home begin."""
_SYNCED = re.compile(r"^com\.apple\.(icloud|fileprovider|file-provider)", re.MULTILINE)
"""Attributes that macOS gives to folders which iCloud holds."""
_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EACCES, errno.EINVAL)
ELSEWHERE = "give --out a folder on a local disk that is formatted for this system"


def cloud_of(path: Path, home: Path | None = None, system: str = sys.platform) -> str:
    """The service that sends what lies at this path elsewhere: iCloud Drive, Dropbox, OneDrive …;
    empty where none is known to."""
    home = Path(os.path.realpath(home or os.path.expanduser("~")))
    real = Path(os.path.realpath(path))
    parts = _below(real, home)
    if not parts:
        return _marked(real)
    if system == "darwin":
        if parts[:2] == ("library", "mobile documents"):
            return "iCloud Drive"
        if parts[:2] == ("library", "cloudstorage") and len(parts) > 2:
            return _named(parts[2]) or real.relative_to(home).parts[2].partition("-")[0]
        if parts[0] in ("documents", "desktop") and _held_by_icloud(home, real, parts[0]):
            return "iCloud Drive"
    return _named(parts[0]) or _marked(real)


def cloud_warning(path: Path, service: str) -> str:
    """What can go wrong there, and what to do."""
    return (
        f"{path} lies in {service}, which sends every checkpoint over the network, may take files "
        "off this disk to save space, and may put an older copy back: give --out a folder outside "
        "of it, such as ~/runs, and copy the result there once it is done"
    )


def _below(real: Path, home: Path) -> tuple[str, ...]:
    """The parts of a path below the home folder, in small letters; empty where it is not there."""
    try:
        return tuple(part.casefold() for part in real.relative_to(home).parts)
    except ValueError:
        return ()


def _named(part: str) -> str:
    """The service by a folder's name: `Dropbox (Personal)`, `OneDrive - Company`, `Dropbox-2`."""
    for begins, service in _CLOUDS.items():
        if part == begins or re.match(re.escape(begins) + r"[ -]", part):
            return service
    return ""


def _marked(real: Path) -> str:
    """Dropbox leaves a mark in its folder, wherever that lies."""
    for folder in (real, *real.parents):
        if (folder / ".dropbox").exists() and (folder / ".dropbox.cache").exists():
            return "Dropbox"
    return ""


def _held_by_icloud(home: Path, real: Path, name: str) -> bool:
    """Whether "Desktop & Documents Folders" is on in iCloud's settings: iCloud then has a folder of
    that name itself, or the folder has iCloud's attributes."""
    drive = home / "Library" / "Mobile Documents" / "com~apple~CloudDocs"
    if any((drive / spelt).exists() for spelt in (name, name.capitalize())):
        return True
    top = next(parent for parent in (real, *real.parents) if parent.parent == home)
    with suppress(OSError):
        return bool(_SYNCED.search(processes.output_of("xattr", str(top))))
    return False


def check_disk(folder: Path, say: Callable[[str], None]) -> None:
    """Tries in a run's folder, which is there, what a run relies on. `say` is told of what is done
    in another way. Raises UserError naming what the disk cannot do and without which work could be
    lost, DiskFull where there is no room to try."""
    with disk.naming(folder), _workshop(folder) as place:
        for what, attempt in _NEEDED.items():
            try:
                works = attempt(place)
            except OSError as error:
                if disk.is_full(error, folder):
                    raise
                works = False
            if not works:
                raise UserError(
                    f"this disk cannot {what}: a run here could lose work",
                    where=str(folder),
                    hint=ELSEWHERE,
                )
        if not _links(place):
            say(
                f"{folder}: this disk has no symbolic links; checkpoints/best is a file that names "
                "the best checkpoint"
            )


@contextmanager
def _workshop(folder: Path) -> Iterator[Path]:
    """A folder to try things in; what a kill leaves of it, the next write beside it removes."""
    with atomic.aside(folder / "probe") as place:
        place.mkdir()
        yield place


def _keeps_bytes(place: Path) -> bool:
    (place / "a").write_bytes(b"\x00one\r\n\xff")
    atomic.sync(place / "a")
    return (place / "a").read_bytes() == b"\x00one\r\n\xff"


def _renames_over(place: Path) -> bool:
    for name in ("new", "old"):
        (place / name).write_text(name)
    os.replace(place / "new", place / "old")
    return (place / "old").read_text() == "new" and not (place / "new").exists()


def _renames_folders(place: Path) -> bool:
    (place / "folder").mkdir()
    (place / "folder" / "inside").write_text("x")
    os.rename(place / "folder", place / "moved")
    return (place / "moved" / "inside").read_text() == "x"


def _locks(place: Path) -> bool:
    """Whether a second one is kept out: some disks answer yes to everybody."""
    first = os.open(place / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    second = os.open(place / "lock", os.O_RDWR)
    try:
        return try_lock(first) and not try_lock(second)
    finally:
        os.close(first)
        os.close(second)


_NEEDED: dict[str, Callable[[Path], bool]] = {
    "give back a file as it was written": _keeps_bytes,
    "put a file in the place of another one (rename)": _renames_over,
    "rename a folder": _renames_folders,
    "lock files (flock)": _locks,
}


def _links(place: Path) -> bool:
    try:
        (place / "link").symlink_to("a")
    except OSError as error:
        if has_no_links(error):
            return False
        raise
    return True


def has_no_links(error: OSError) -> bool:
    """Whether a disk has no links of the kind that was asked for."""
    return error.errno in _NO_LINKS
