"""Files and folders that are whole or not there: made aside, then renamed into place.

    .tmp-NAME-0123456789abcdef/    beside NAME
        .ondevice                  the marker: locked (flock) by the process that made the folder, while it lives
        .new                       what is being made, a file or a folder: at the end it is renamed to NAME
        .old                       what stood at NAME, while it is being replaced

Nothing is deleted by its name alone. A folder is removed only where two things are proved: that we
made it (the marker is inside) and that its maker is dead (the marker can be locked: the kernel
frees a lock when its holder dies in any way, and a number of a process is given out again). Where a
file system has no locks nothing is proved, and what a killed process left there stays. What is
moved into place never holds a marker, so there is none to take out of it and no kill between the
two: the marker stands one level higher.

A process may be killed at any line:
- before `.new` is renamed: NAME is as it was; the next write beside it removes the folder;
- between the two renames of a replacement: NAME is missing, and the next write beside it puts `.old` back and says so;
- after the second: NAME is the new one; the next write removes the folder with the old one in it.
A folder is emptied before its marker goes, so that what is half removed can still be proved to be
ours.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import socket
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ondevice.common import disk
from ondevice.common.errors import UserError
from ondevice.common.file_lock import try_lock
from ondevice.common.sanitize import to_stderr

MARKER, NEW, OLD = ".ondevice", ".new", ".old"
_FOLDER = re.compile(r"\.tmp-(.+)-[0-9a-f]{16}", re.DOTALL)
_TRIES = 100  # of a name that is free, and of a folder that no other process takes for abandoned

Say = Callable[[str], None]


class _Lock:
    """An open marker, locked where the file system can lock."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        _HELD.add(self)

    def close(self) -> None:
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


_HELD: weakref.WeakSet[_Lock] = weakref.WeakSet()


def _forget() -> None:
    """In a forked child: it would hold its parent's locks after that one's death. Started programs
    inherit none.
    """
    for lock in list(_HELD):
        lock.close()


os.register_at_fork(after_in_child=_forget)


@contextmanager
def aside(target: Path, say: Say = to_stderr) -> Iterator[Path]:
    """Yields a path near `target`, on its disk, at which a file or a folder can be made; the body
    moves it to `target`. What is left there at the end is removed, and so is what killed processes
    have left beside `target`.

    Raises DiskFull, or UserError where the place was deleted while it was used.
    """
    sweep(target.parent, say)
    with disk.naming(target):
        place, lock = _claim(target)
    try:
        with _naming(target, place):
            yield place / NEW
    except BaseException as error:
        if isinstance(error, FileNotFoundError) and not (place / MARKER).exists():
            raise UserError(
                "was deleted while it was being written", where=str(place), hint="try again"
            ) from error
        raise
    finally:
        if os.path.lexists(target) or not os.path.lexists(
            place / OLD
        ):  # else the next sweep puts that back
            _remove(place, say)
        lock.close()


@contextmanager
def _naming(target: Path, place: Path) -> Iterator[None]:
    """A full disk names what was to be made, and says how much of it had been written."""
    try:
        yield
    except Exception as error:
        full = disk.as_full(error, target)
        if full is None or full is error:
            raise
        raise disk.DiskFull(target, disk.space_of(place), share=full.share) from error


def replace(new: Path, target: Path) -> None:
    """Moves what `aside` gave to `target`; what stands there is replaced."""
    old = new.with_name(OLD)
    if os.path.lexists(target):
        os.rename(target, old)
    try:
        os.rename(new, target)
    except BaseException:
        if os.path.lexists(old) and not os.path.lexists(target):
            os.rename(old, target)
        raise
    sync(target.parent)


def place(new: Path, target: Path) -> None:
    """Moves a folder that `aside` gave to `target`. Raises UserError where something stands there
    by now that is not an empty folder."""
    try:
        os.rename(new, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise UserError(
            "is there already: another process made it meanwhile",
            where=str(target),
            hint="give another --out",
        ) from None
    sync(target.parent)


def remove(path: Path, say: Say = to_stderr) -> bool:
    """Deletes a file, a link (not what it points to) or a folder, if it is there, and tells whether
    it was: after a kill it is whole at its name, or not at its name at all. The caller knows that
    it is ours. Raises OSError where it cannot be moved."""
    if not os.path.lexists(path):
        return False
    try:
        with aside(path, say) as new:
            try:
                os.rename(path, new)
            except FileNotFoundError:  # another process was quicker
                return False
            return True
    except disk.DiskFull:
        return _remove_without_room(path)


def _remove_without_room(path: Path) -> bool:
    """Deletes where the disk has not even room for a marker: what makes room must not need any. A
    kill on the way leaves a `.tmp-` folder that nothing proves to be ours, and that stays."""
    try:
        if path.is_dir() and not path.is_symlink():
            place = path.with_name(f".tmp-{path.name}-{os.urandom(8).hex()}")
            os.rename(path, place)
            path = place
        _delete(path)
    except FileNotFoundError:
        return False
    return True


def sweep(folder: Path, say: Say = to_stderr) -> None:
    """Removes what processes that are dead now have left in `folder`, and puts back what one of
    them was replacing.
    """
    try:
        names = sorted(os.listdir(folder))
    except PermissionError:  # a folder that may be written to and not listed
        return
    for name in names:
        match = _FOLDER.fullmatch(name)
        if match and (folder / name).is_dir() and not (folder / name).is_symlink():
            _sweep(folder / name, folder / match[1], say)


def _sweep(place: Path, target: Path, say: Say) -> None:
    try:
        lock = _Lock(os.open(place / MARKER, os.O_RDWR | os.O_NOFOLLOW))
    except FileNotFoundError:
        with suppress(
            OSError
        ):  # its maker came no further than that; only an empty folder can be removed like this
            place.rmdir()
        return
    except OSError:  # not ours, or another person's
        return
    try:
        if not _abandoned(lock):
            return
        old = place / OLD
        if os.path.lexists(old) and not os.path.lexists(target):
            os.rename(old, target)
            sync(target.parent)
            say(
                f"{target}: a process was killed while it replaced this; what stood there before is back"
            )
        elif os.path.lexists(old) and os.path.lexists(place / NEW):
            say(
                f"{old}: what stood at {target} before a process was killed; something else stands there now"
            )
            return
        _remove(place, say)
    except OSError as error:  # whoever writes beside it can do so all the same
        say(
            f"{place}, which a process that was killed has left, cannot be put in order ({error.strerror})"
        )
    finally:
        lock.close()


def _abandoned(lock: _Lock) -> bool:
    """Whether a marker's maker is dead, and no other process removes its folder at this moment."""
    try:
        if not try_lock(lock.descriptor):
            return False
    except OSError:  # no locks here, and nothing is proved
        return False
    return os.fstat(lock.descriptor).st_nlink > 0


def _claim(target: Path) -> tuple[Path, _Lock]:
    """A new folder beside `target` with a locked marker in it."""
    for _ in range(_TRIES):
        place = target.parent / f".tmp-{target.name}-{os.urandom(8).hex()}"
        try:
            place.mkdir()
        except FileExistsError:
            continue
        try:
            lock = _Lock(os.open(place / MARKER, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644))
        except FileNotFoundError:  # empty, it was taken for abandoned
            continue
        except OSError:
            place.rmdir()
            raise
        if _locked(lock):
            text = f"ondevice writes {target.name} here: process {os.getpid()} on {socket.gethostname()}\n"
            with suppress(OSError):  # a full disk: the lock is the proof, the text is for people
                os.write(lock.descriptor, text.encode())
            return place, lock
        lock.close()
    raise OSError(errno.EEXIST, "no free name for a temporary folder", str(target.parent))


def _locked(lock: _Lock) -> bool:
    """Whether the marker is ours alone: not where another process took it for abandoned before it
    was locked.
    """
    try:
        if not try_lock(lock.descriptor):
            return False
    except OSError:  # no locks here: then nobody can prove that we are dead, and nobody removes it
        return True
    return os.fstat(lock.descriptor).st_nlink > 0


def _remove(place: Path, say: Say) -> None:
    """Removes one of our folders, its marker last."""
    try:
        for path in sorted(place.iterdir()):
            if path.name != MARKER:
                _delete(path)
        (place / MARKER).unlink()
        place.rmdir()
    except FileNotFoundError:
        return  # somebody else has deleted it
    except OSError as error:
        say(f"{place} could not be removed ({error.strerror}); nothing uses it, delete it by hand")


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def sync(path: Path) -> None:
    """Brings a file's or a folder's contents to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if sys.platform == "darwin":  # fsync leaves the data in the drive's cache there
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
        else:
            os.fsync(descriptor)
    except OSError as error:
        # some disks bring folders to themselves only
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)
