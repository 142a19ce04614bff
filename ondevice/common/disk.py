"""A full disk: how it is recognised, whichever library met it, how it is said, and how a run waits.

Whoever writes says what is being written (`until_written`, or `naming` where it cannot be begun
anew). Where nobody waits, a full disk is a `DiskFull`: one line with the file and the remedy. A run
in progress waits (`waiting`): the write is then done again once there is room.

Recognised are the system's ENOSPC and EDQUOT, also where a library has made text of them
(safetensors, tokenizers), MLX's failed writes, and SQLite's full database (`sqlite_store.refused`).
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol, TypeVar

from ondevice.common.errors import UserError
from ondevice.common.progress import size

_FULL = (errno.ENOSPC, errno.EDQUOT)
# safetensors, tokenizers, tar, compilers: errors of their own that hold the system's as text
_FULL_TEXT = re.compile(
    rf"os error ({'|'.join(map(str, _FULL))})\b|No space left on device|Disk quota exceeded"
)
_UNWRITTEN = re.compile(r"Unable to write (\d+) bytes")  # MLX's, which does not say why
REMEDY = "make room and try again; a stage goes on with --resume"
KEPT = "nothing that was complete is lost"
T = TypeVar("T")


class DiskFull(UserError):
    """`path` could not be written: its disk, or this person's share of it, is full. `needed` bytes,
    0: not known; `share`: it is the share (a quota), of which the free space says nothing."""

    def __init__(
        self,
        path: Path,
        needed: int = 0,
        *,
        share: bool = False,
        message: str = "",
        hint: str = REMEDY,
    ) -> None:
        self.path, self.needed, self.share = path, needed, share
        self.free = free_bytes(path)
        super().__init__(message or f"{self.what()}; {KEPT}", where=str(path), hint=hint)

    def what(self) -> str:
        """What is full, how much is needed and how much is free."""
        if self.share:
            return "your share of the disk (quota) is used up"
        if not self.needed and _out_of_files(self.path):
            return "the disk has room for no more files"
        figures = []
        if self.needed:
            figures.append(f"at least {size(self.needed)} are needed")
        if self.free is not None:
            figures.append(f"{size(self.free)} are free")
        return f"the disk is full: {', '.join(figures)}" if figures else "the disk is full"

    def bare(self) -> DiskFull:
        """The same without its traceback, whose frames hold whatever was being written."""
        return DiskFull(
            self.path, self.needed, share=self.share, message=self.message, hint=self.hint
        )


class Waiter(Protocol):
    """Who waits for room."""

    def wait(self, full: DiskFull) -> None:
        """Returns where it is worth another try. Raises `full` where nobody is to wait for it, and
        Interrupted once a person asks for a stop."""
        ...

    def over(self) -> None:
        """What was waited for is written."""
        ...


_waiter: Waiter | None = None


@contextmanager
def waiting(waiter: Waiter) -> Iterator[None]:
    """Inside, whatever thread finds the disk full waits by `waiter`."""
    global _waiter
    before, _waiter = _waiter, waiter
    try:
        yield
    finally:
        _waiter = before


def wait(full: DiskFull) -> None:
    """Returns where it is worth another try. Raises `full` where nobody waits."""
    if _waiter is None:
        raise full
    _waiter.wait(full)


def over() -> None:
    """There was room, after `wait`."""
    if _waiter is not None:
        _waiter.over()


def until_written(path: Path, write: Callable[[], T], needed: int = 0) -> T:
    """What `write` returns, which is done again from its beginning each time the disk was full and
    somebody has waited for room. `needed` bytes, 0: not known. Raises DiskFull, that names `path`
    where what failed did not name a file, where nobody waits."""
    waited = False
    while True:
        try:
            value = write()
        except Exception as error:
            found = as_full(error, path, needed)
            if found is None:
                raise
            if _waiter is None:
                if found is error:
                    raise
                raise found from error
            full = found.bare()
        else:
            if waited:
                over()
            return value
        wait(full)
        waited = True


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """A full disk inside becomes a DiskFull that names `path`, for what cannot be begun anew."""
    try:
        yield
    except Exception as error:
        full = as_full(error, path)
        if full is None or full is error:
            raise
        raise full from error


def as_full(error: BaseException, path: Path, needed: int = 0) -> DiskFull | None:
    """What an error says of a full disk; None where it says something else."""
    if isinstance(error, DiskFull):
        if needed > error.needed:
            return DiskFull(error.path, needed, share=error.share, hint=error.hint)
        return error
    if not is_full(error, path if path.is_dir() else path.parent):
        return None
    # a file that the system names lies nearer to what is wrong than what was to be made of it
    if isinstance(error, OSError):
        named = getattr(error, "filename", None)
    else:
        named = None
    quota = isinstance(error, OSError) and error.errno == errno.EDQUOT
    share = quota or "quota exceeded" in str(error)
    if isinstance(named, str | bytes) and named:
        where = Path(os.fsdecode(named))
    else:
        where = path
    return DiskFull(where, needed, share=share)


def is_full(error: BaseException, folder: Path) -> bool:
    """Whether an error says that the disk of `folder`, or a person's share of it, is full:
    safetensors' and MLX's are no OSError."""
    if isinstance(error, DiskFull):
        return True
    if isinstance(error, UserError):
        return False
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    if _FULL_TEXT.search(str(error)):
        return True
    unwritten = _UNWRITTEN.search(str(error))
    return unwritten is not None and _refuses(folder, int(unwritten[1]))


def _refuses(folder: Path, count: int) -> bool:
    """Whether the disk has no room for so many bytes now."""
    try:
        if shutil.disk_usage(folder).free < count + (1 << 20):
            return True
        if not hasattr(os, "posix_fallocate"):
            return False
        # what is free says nothing of a person's share
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, max(1, count))
    except OSError as error:
        return error.errno in _FULL
    return False


def nearest_folder(path: Path) -> Path:
    """The folder that is there and in which a path is, or will be."""
    place = path.absolute()
    while not place.is_dir() and place != place.parent:
        place = place.parent
    return place


def free_bytes(path: Path) -> int | None:
    """Bytes that are free where a path is or will be; None where the system does not tell."""
    try:
        return shutil.disk_usage(nearest_folder(path)).free
    except OSError:
        return None


def space_of(path: Path) -> int:
    """Bytes that a file, or all in a folder, take of the disk: links are not followed, and a file
    that stands there under several names (hard links) counts once. What is removed meanwhile counts
    or not. Raises OSError where the folder cannot be read."""
    seen: set[tuple[int, int]] = set()
    total = 0
    folders = [path]
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode):
        return _taken(status)
    while folders:
        try:
            entries = list(os.scandir(folders.pop()))
        except FileNotFoundError:
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(Path(entry.path))
                continue
            with suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                number = (status.st_dev, status.st_ino)
                if number not in seen:
                    total += _taken(status)
                    if status.st_nlink > 1:
                        seen.add(number)
    return total


def _taken(status: os.stat_result) -> int:
    """A sparse file takes less than its length says, a short one a whole block."""
    return status.st_blocks * 512


def need_room(path: Path, needed: float, what: str) -> None:
    """Raises DiskFull where `what`, of so many bytes, has no room where `path` will be."""
    free = free_bytes(path)
    if free is not None and needed > free:
        raise DiskFull(
            path,
            int(needed),
            message=f"{what} needs {size(needed)} of the disk, of which {size(free)} are free",
            hint="make room, or name a place on another disk",
        )


def _out_of_files(path: Path) -> bool:
    try:
        found = os.statvfs(nearest_folder(path))
    except OSError:
        return False
    # a system that counts no files says 0 of 0
    return found.f_files > 0 and found.f_favail == 0
