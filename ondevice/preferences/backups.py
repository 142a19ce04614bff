"""Copies of ratings.db, kept beside it at the start of each rating session: the last three that
differ.

    ratings.db.copy-1   ratings.db.copy-2   ratings.db.copy-3

SQLite's backup writes each as one transaction: a kill in the middle leaves the copy that was there
before.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from ondevice.common.errors import UserError
from ondevice.preferences.schema import APPLICATION
from ondevice.preferences.sqlite_store import FAILED, Store, refused

COPIES = 3
# both tables only ever grow
_STATE = "SELECT (SELECT max(id) FROM vote), (SELECT max(id) FROM item)"


def keep_copy(opened: Store) -> Path | None:
    """Copies an open database over the oldest of its copies; None where the newest copy holds the
    same.

    Raises UserError where the disk is full or other files stand in the places of the copies.
    """
    file = opened.path
    free = [copy for copy in places(file) if not copy.exists()]
    ours = copies(file)
    held = {copy: _state(copy) for copy in ours}
    if not free and not ours:
        raise UserError(
            "the places of its copies are taken by other files", where=str(places(file)[-1])
        )
    # one that a full disk has left empty goes before any that holds something
    target = (free or sorted(ours[::-1], key=lambda copy: held[copy] is not None))[0]
    try:
        state = tuple(opened.connection.execute(_STATE).fetchone())
        if ours and held[ours[0]] == state:
            return None
        with closing(sqlite3.connect(target, isolation_level=None)) as copy:
            opened.connection.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")  # one file, that can be taken anywhere
    except FAILED as error:
        raise refused(error, target) from error
    return target


def copies(file: Path) -> list[Path]:
    """The copies of a database that are there, the newest first."""
    found = [copy for copy in places(file) if copy.is_file() and is_ours(copy)]
    return sorted(found, key=lambda copy: copy.stat().st_mtime_ns, reverse=True)


def places(file: Path) -> list[Path]:
    return [file.with_name(f"{file.name}.copy-{number}") for number in range(1, COPIES + 1)]


def is_ours(file: Path) -> bool:
    """Whether a file is a ratings database; one that was begun and holds nothing yet counts too."""
    try:
        with read_only(file) as connection:
            number = connection.execute("PRAGMA application_id").fetchone()[0]
            return bool(
                number == APPLICATION
                or not connection.execute("SELECT 1 FROM sqlite_master").fetchone()
            )
    except FAILED:
        return False


@contextmanager
def read_only(file: Path) -> Iterator[sqlite3.Connection]:
    """A connection that changes nothing, the write-ahead log included. sqlite3's errors are its
    user's.
    """
    with closing(
        sqlite3.connect(f"file:{quote(str(file.absolute()))}?mode=ro", uri=True)
    ) as connection:
        yield connection


def _state(copy: Path) -> tuple[int, int] | None:
    try:
        with read_only(copy) as connection:
            found = connection.execute(_STATE).fetchone()
    except FAILED:
        return None
    return found[0], found[1]
