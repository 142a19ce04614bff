"""Who may replace ratings.db: an flock on a file beside it, shared by all that have the database
open.

SQLite's own locks cannot say it: they lie on the database itself, and POSIX drops all of a
process's locks on a file when the process closes any descriptor of it (SQLite, "How To Corrupt An
SQLite Database File", 2.2). So nothing here opens the database; the lock has a file of its own,
`.ratings.db.lock`, which stays.

A repair (`ratings_repair`) writes the whole new database aside, calls it `ratings.db.repaired`, and
puts it in place while nobody has the old one open. If it is killed in between, whoever opens the
database next finishes that.
"""

from __future__ import annotations

import errno
import itertools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ondevice.common import disk
from ondevice.common.atomic import sync
from ondevice.common.errors import UserError
from ondevice.common.file_lock import lock

SIDE_FILES = ("-wal", "-shm")  # SQLite's own, beside a database
_UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def take(file: Path, *, exclusive: bool = False, patience_s: float) -> int | None:
    """A descriptor that holds the lock until it is closed; None on a disk that knows no such locks.

    Shared: the database is open here. Exclusive: it is to be replaced. Raises UserError where the
    other kind is held for longer than `patience_s`, and where the lock's file cannot be made.
    """
    held_by_other = "is being repaired"
    if exclusive:
        held_by_other = "another program has it open"
    descriptor = _opened(file)
    try:
        if not lock(descriptor, shared=not exclusive, patience_s=patience_s):
            raise UserError(held_by_other, where=str(file), hint="try again in a moment")
        return descriptor
    except OSError as error:
        os.close(descriptor)
        if error.errno in _UNSUPPORTED:
            return None
        raise UserError(f"cannot be locked ({error.strerror})", where=str(file)) from error
    except BaseException:
        os.close(descriptor)
        raise


def _opened(file: Path) -> int:
    """The lock's file, made where it is missing: whoever may read the database may lock it, as with
    SQLite's own side files. Raises UserError."""
    lock_file = file.with_name(f".{file.name}.lock")
    try:
        try:
            return os.open(lock_file, os.O_RDONLY)
        except FileNotFoundError:
            descriptor = os.open(lock_file, os.O_RDONLY | os.O_CREAT, 0o644)
        if os.fstat(descriptor).st_uid == os.geteuid() and file.exists():
            os.fchmod(descriptor, file.stat().st_mode & 0o666)
        return descriptor
    except OSError as error:
        if full := disk.as_full(error, lock_file):
            raise full from error
        raise UserError(
            f"its lock, {lock_file.name}, cannot be opened ({error.strerror})",
            where=str(file),
            hint="let whoever made it give you the right to read it",
        ) from error


@contextmanager
def alone(file: Path, patience_s: float) -> Iterator[None]:
    """Nobody of ours has the database open, nor opens it, inside. Raises UserError where somebody
    has.
    """
    descriptor = take(file, exclusive=True, patience_s=patience_s)
    if descriptor is None:
        raise UserError(
            "cannot be repaired on this disk, which knows no file locks",
            where=str(file),
            hint="copy it to another disk",
        )
    try:
        yield
    finally:
        os.close(descriptor)


def repaired(file: Path) -> Path:
    """What a repair has made and not yet put in place."""
    return file.with_name(f"{file.name}.repaired")


def finish_repair(file: Path, patience_s: float) -> None:
    """Puts in place what a killed repair had ready. Raises UserError as `alone` does."""
    if repaired(file).exists():
        with alone(file, patience_s):
            replace_with_repaired(file)


def replace_with_repaired(file: Path) -> Path:
    """Moves the old database aside and the repaired one to its place; returns where the old one is
    kept. For `alone`.

    A kill at any line is harmless: the name of the old one follows from the repaired file, and what
    was moved already is left as it is. The old write-ahead log goes first, since SQLite would
    replay it into the new database.
    """
    new = repaired(file)
    if not new.exists():  # another process has finished it
        return file
    name = kept = damaged_name(file, int(new.stat().st_mtime))
    if file.exists():
        for number in itertools.count(2):
            if not kept.exists():
                break
            kept = name.with_name(f"{name.name}-{number}")
        for side in SIDE_FILES:
            with suppress(FileNotFoundError):
                os.rename(f"{file}{side}", f"{kept}{side}")
        os.rename(file, kept)
        sync(file.parent)
    os.replace(new, file)
    sync(file.parent)
    return kept


def damaged_name(file: Path, at: int) -> Path:
    """`ratings.db.damaged-20261129-231500`, by the local time of `at`."""
    return file.with_name(
        f"{file.name}.damaged-{time.strftime('%Y%m%d-%H%M%S', time.localtime(at))}"
    )
