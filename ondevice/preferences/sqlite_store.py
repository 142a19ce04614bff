"""The file that ratings are kept in: an open SQLite database of our kind, durable, shared with
other programs.

Nothing but SQLite ever opens this file. Whoever opens and closes it otherwise, even to read its
first bytes, drops all locks that this process has on it (POSIX; SQLite, "How To Corrupt An SQLite
Database File", 2.2), and the next program to close it deletes the write-ahead log under those that
still write to it.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from ondevice.common.disk import DiskFull, free_bytes, naming
from ondevice.common.errors import UserError
from ondevice.preferences import lock
from ondevice.preferences.schema import APPLICATION, COLUMNS, SCHEMA, UPGRADES, VERSION

FILE = "ratings.db"  # in a run folder
PATIENCE_S = 5.0  # how long another program may hold the file
FULL_BYTES = 2**20  # so little room is none
NOT_OURS = "is not a ratings database"
REPAIR = "ondevice ratings repair FILE saves what can be read"


def ratings_file(path: str | Path) -> Path:
    """A database, or the one of a run folder. What is not there yet is a database where its name
    ends in .db, else a run folder. A link is followed, as SQLite does: all that is kept beside a
    database lies beside the file itself."""
    path = Path(os.path.expanduser(path))
    folder = path.is_dir() or (path.suffix != ".db" and not path.exists())
    file = path / FILE if folder else path
    if file.is_symlink():
        return Path(os.path.realpath(file))
    return file


class Damaged(UserError):
    """The database cannot be read as it should; `ratings_repair` makes a new one of what can."""


FAILED = (sqlite3.Error, UnicodeDecodeError)
"""What sqlite3 raises: its own errors, and the second where the message of one quotes a damaged
schema.
"""


class Replaced(UserError):
    """What is open here is not the file at that path any more: nobody would find what was written
    now.
    """


class Store:
    """An open file; a context manager. One thread uses it; other threads and programs open the file
    themselves.

    Every method raises UserError where another program holds the file for too long, where it cannot
    be written, and where it is damaged (Damaged) or was moved away (Replaced).
    """

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self.path = path
        self._connection = connection
        self._lock: int | None = None
        self._identity: tuple[int, int] | None = None  # of the file that is open

    @classmethod
    def open(
        cls, path: str | Path, *, create: bool = False, patience_s: float = PATIENCE_S
    ) -> Self:
        """Opens a file (or a run folder's). Raises UserError: missing (unless `create`), not a
        ratings database, written by a newer program, not to be written, held by another program for
        longer than `patience_s`; Damaged (a UserError) where it cannot be read."""
        file = ratings_file(path)
        while True:
            lock.finish_repair(file, patience_s)
            if not create:
                _wait_until_begun(file, patience_s)
            _refuse_path(file, create)
            before = _identity(file)
            opened = cls._connect(file, create, patience_s)
            try:
                opened._lock = lock.take(file, patience_s=patience_s)
                opened._identity = _identity(file)
                if before in (None, opened._identity):
                    return opened
            except BaseException:
                opened.close()
                raise
            opened.close()  # a repair has put another file in its place

    @classmethod
    def _connect(cls, file: Path, create: bool, patience_s: float) -> Self:
        mode = "rw"
        if create:
            with naming(file):
                file.parent.mkdir(parents=True, exist_ok=True)
            mode = "rwc"
        address = f"file:{quote(str(file.absolute()))}?mode={mode}"
        try:
            connection = sqlite3.connect(
                address, uri=True, timeout=patience_s, isolation_level=None
            )
        except FAILED as error:
            raise refused(error, file) from error
        connection.row_factory = sqlite3.Row
        opened = cls(connection, file)
        try:
            opened._begin(create, patience_s)
        except BaseException:
            connection.close()
            raise
        return opened

    @property
    def connection(self) -> sqlite3.Connection:
        return self._connection

    def close(self) -> None:
        self._connection.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def damage(self) -> str:
        """What SQLite finds wrong with the whole file; empty where nothing is. Reads all of it."""
        try:
            rows = self._connection.execute("PRAGMA integrity_check(3)").fetchall()
        except FAILED as error:
            if not isinstance(refused(error, self.path), Damaged):
                raise refused(error, self.path) from error
            return str(error)
        lines = []
        for row in rows:
            for line in str(row[0]).splitlines():
                if not line.startswith("***"):
                    lines.append(line)
        if lines != ["ok"]:
            return "; ".join(lines[:3])
        # SQLite finds no fault in a trigger that says something else
        if _is_declared_otherwise(self.path):
            return "its tables or what guards them are not as they were made"
        return ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """What is done inside is done together, or, after an error, not at all; inside another one
        it joins that.
        """
        if self._connection.in_transaction:
            yield
            return
        if self._identity is not None and _identity(self.path) != self._identity:
            raise Replaced(
                "was moved, deleted or replaced while it was open here",
                where=str(self.path),
                hint="put it back if that was a mistake, and open it again",
            )
        self._rows("BEGIN IMMEDIATE")
        try:
            yield
            self._rows("COMMIT")
        except BaseException:
            if self._connection.in_transaction:  # a full disk has rolled it back already
                self._connection.rollback()
            raise

    # Within

    def _begin(self, create: bool, patience_s: float) -> None:
        for pragma in (
            f"busy_timeout = {int(patience_s * 1000)}",
            "foreign_keys = ON",
            "recursive_triggers = ON",
        ):
            self._rows(f"PRAGMA {pragma}")
        if create:
            with self.transaction():
                if not self._rows("SELECT 1 FROM sqlite_master LIMIT 1"):
                    for statement in SCHEMA:
                        self._rows(statement)
        if self._pragma("application_id") != APPLICATION:
            raise UserError(NOT_OURS, where=str(self.path))
        if self._pragma("user_version") > VERSION:
            raise UserError(
                "was written by a newer ondevice", where=str(self.path), hint="update this one"
            )
        self._upgrade()
        self._check_tables()
        self._rows("PRAGMA journal_mode = WAL")
        # fullfsync: on macOS a plain fsync leaves the data in the drive's own cache
        self._rows("PRAGMA synchronous = FULL")
        self._rows("PRAGMA fullfsync = ON")

    def _upgrade(self) -> None:
        """Makes a file of an earlier version one of this version, in one transaction: all of it or
        nothing."""
        if self._pragma("user_version") == VERSION:
            return
        with self.transaction():
            while (version := self._pragma("user_version")) in UPGRADES:
                for statement in UPGRADES[version]:
                    self._rows(statement)

    def _check_tables(self) -> None:
        """Raises Damaged where a table is missing or has other columns, so that no later statement
        meets it.
        """
        for table, columns in COLUMNS.items():
            try:
                found = tuple(
                    row["name"] for row in self._connection.execute(f"PRAGMA table_info({table})")
                )
            except FAILED as error:
                if "no such" not in str(error):
                    raise refused(error, self.path) from error
                found = ()  # a view whose table is missing
            if found != columns:
                if found:
                    told = f"has other columns in {table} than it should"
                else:
                    told = f"lacks the table {table}"
                raise Damaged(told, where=str(self.path), hint=REPAIR)

    def _pragma(self, name: str) -> int:
        return int(self._rows(f"PRAGMA {name}")[0][0])

    def rows(
        self, statement: str, values: Mapping[str, Any] | Sequence[Any] = ()
    ) -> list[sqlite3.Row]:
        """What a statement gives, for the modules that keep something of their own in this file."""
        return self._rows(statement, values)

    def _rows(
        self, statement: str, values: Mapping[str, Any] | Sequence[Any] = ()
    ) -> list[sqlite3.Row]:
        clean: dict[str, Any] | list[Any]
        if isinstance(values, Mapping):
            clean = {name: _stored(value) for name, value in values.items()}
        else:
            clean = [_stored(value) for value in values]
        try:
            return self._connection.execute(statement, clean).fetchall()
        except FAILED as error:
            raise refused(error, self.path) from error

    def _insert(self, table: str, row: Mapping[str, Any]) -> int:
        columns, marks = ", ".join(row), ", ".join("?" * len(row))
        return int(
            self._rows(
                f"INSERT INTO {table}({columns}) VALUES ({marks}) RETURNING rowid",
                list(row.values()),
            )[0][0]
        )


def _identity(file: Path) -> tuple[int, int] | None:
    """Which file stands at a path; None: none."""
    try:
        found = file.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _wait_until_begun(file: Path, patience_s: float) -> None:
    """Returns once an empty file is no more empty: another program may have made it this moment, and
    SQLite writes nothing before the first transaction ends. At the latest when patience does."""
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        try:
            if file.stat().st_size:
                return
        except OSError:
            return
        time.sleep(0.02)


def _refuse_path(file: Path, create: bool) -> None:
    """Raises UserError for what SQLite would open all the same, or make. Looks at names alone."""
    where = str(file)
    if not file.exists():
        if not create:
            raise UserError(
                "no such ratings database", where=where, hint="ondevice sample makes one"
            )
        return
    if not file.is_file():
        raise UserError("is not a file", where=where)
    if not create and not file.stat().st_size:
        raise UserError(NOT_OURS, where=where)
    if not (os.access(file, os.R_OK | os.W_OK) and os.access(file.parent, os.W_OK)):
        raise UserError(
            "cannot be written, nor anything beside it",
            where=where,
            hint="SQLite needs both: copy it to a folder of your own",
        )


def refused(error: Exception, file: Path) -> Exception:
    """What a person can mend as a UserError (Damaged where a repair is what mends it); anything
    else as it is.
    """
    name = getattr(error, "sqlite_errorname", "") or ""
    reasons = {
        "SQLITE_BUSY": "another program has held it for too long",
        "SQLITE_LOCKED": "another program holds it",
        "SQLITE_READONLY": "cannot be written",
        "SQLITE_FULL": "",
        "SQLITE_IOERR": "the disk has failed to read or write it",
        "SQLITE_CANTOPEN": "cannot be opened",
        "SQLITE_NOTADB": NOT_OURS,
    }
    for code, reason in reasons.items():
        if name == code or name.startswith(code + "_"):
            # what SQLite says where its side files cannot grow, or be made
            beside = code in ("SQLITE_IOERR", "SQLITE_CANTOPEN") and _has_no_room(file)
            if code == "SQLITE_FULL" or beside:
                return DiskFull(file)
            return UserError(reason, where=str(file))
    undecoded = isinstance(error, UnicodeDecodeError) or "Could not decode to UTF-8" in str(error)
    if undecoded or name.startswith("SQLITE_CORRUPT"):
        return Damaged("is damaged", where=str(file), hint=REPAIR)
    # what SQLite makes no sense of, or does not allow, is our mistake, unless the file says otherwise
    # than we do what may stand in it
    ours = name == "SQLITE_ERROR" or name.startswith("SQLITE_CONSTRAINT")
    # a number of the version that is damaged asks for tables that are there
    is_there = name == "SQLITE_ERROR" and str(error).endswith("already exists")
    if is_there or (ours and _is_declared_otherwise(file)):
        return Damaged("is damaged", where=str(file), hint=REPAIR)
    return error


def _is_declared_otherwise(file: Path) -> bool:
    try:
        address = f"file:{quote(str(file.absolute()))}?mode=ro"
        with closing(sqlite3.connect(address, uri=True)) as opened:
            return _has_other_statements(opened)
    except FAILED:
        return True


def _has_other_statements(opened: sqlite3.Connection) -> bool:
    """Whether a table, an index, a trigger or a view of ours is declared otherwise, or is missing.
    Comments and spaces are no difference: earlier versions had others. Raises sqlite3's errors."""
    with closing(sqlite3.connect(":memory:")) as made:
        for statement in SCHEMA:
            made.execute(statement)
        ours = _statements(made)
    there = _statements(opened)
    return any(there.get(name) != statement for name, statement in ours.items())


def _statements(opened: sqlite3.Connection) -> dict[str, str]:
    """What made each part of a database, by its name."""
    found = {}
    for name, statement in opened.execute("SELECT name, sql FROM sqlite_master WHERE sql NOTNULL"):
        without = re.sub(r"--[^\n]*", "", str(statement))
        found[str(name)] = " ".join(without.split())
    return found


def _has_no_room(file: Path) -> bool:
    free = free_bytes(file)
    return free is not None and free < FULL_BYTES


def clean(text: str) -> str:
    """Half a character, which JSON can spell and SQLite refuses, becomes U+FFFD."""
    if text.isascii():
        return text
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def _stored(value: Any) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, Mapping | list | tuple):
        return clean(json.dumps(value, ensure_ascii=False, allow_nan=False))
    if isinstance(value, bool):
        return int(value)
    return value
