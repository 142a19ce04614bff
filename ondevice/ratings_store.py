"""The file that ratings are kept in: an open SQLite database of our kind, durable, shared with other programs."""

from __future__ import annotations

import json
import os
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from ondevice.errors import UserError
from ondevice.ratings_schema import APPLICATION, SCHEMA, VERSION

FILE = "ratings.db"  # in a run folder
PATIENCE_S = 5.0  # how long another program may hold the file


def ratings_file(path: str | Path) -> Path:
    """A database, or the one of a run folder."""
    path = Path(path).expanduser()
    return path / FILE if path.is_dir() else path


class Store:
    """An open file; a context manager. One thread uses it; other threads and programs open the file themselves.

    Every method raises UserError where another program holds the file for too long, where it cannot be written, and
    where it is damaged.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self.path = path
        self._connection = connection

    @classmethod
    def open(cls, path: str | Path, *, create: bool = False) -> Self:
        """Opens a file (or a run folder's). Raises UserError: missing (unless `create`), no ratings database, written
        by a newer program, not to be written."""
        file = ratings_file(path)
        _look(file, create)
        if create:
            file.parent.mkdir(parents=True, exist_ok=True)
        try:
            connection = sqlite3.connect(file, timeout=PATIENCE_S, isolation_level=None)
        except sqlite3.Error as error:
            raise _refused(error, file) from error
        connection.row_factory = sqlite3.Row
        opened = cls(connection, file)
        try:
            opened._begin(create)
        except BaseException:
            connection.close()
            raise
        return opened

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """What is done inside is done together, or, after an error, not at all; inside another one it joins that."""
        if self._connection.in_transaction:
            yield
            return
        self._rows("BEGIN IMMEDIATE")
        try:
            yield
            self._rows("COMMIT")
        except BaseException:
            if self._connection.in_transaction:  # a full disk has rolled it back already
                self._connection.rollback()
            raise

    # Within

    def _begin(self, create: bool) -> None:
        for pragma in (f"busy_timeout = {int(PATIENCE_S * 1000)}", "foreign_keys = ON", "recursive_triggers = ON"):
            self._rows(f"PRAGMA {pragma}")
        if create:
            with self.transaction():
                if not self._rows("SELECT 1 FROM sqlite_master LIMIT 1"):
                    for statement in SCHEMA:
                        self._rows(statement)
        if self._pragma("application_id") != APPLICATION:
            raise UserError("is no ratings database", where=str(self.path))
        if self._pragma("user_version") > VERSION:
            raise UserError("was written by a newer ondevice", where=str(self.path), hint="update this one")
        self._rows("PRAGMA journal_mode = WAL")
        # fullfsync: on macOS a plain fsync leaves the data in the drive's own cache
        self._rows("PRAGMA synchronous = FULL")
        self._rows("PRAGMA fullfsync = ON")

    def _pragma(self, name: str) -> int:
        return int(self._rows(f"PRAGMA {name}")[0][0])

    def _rows(self, statement: str, values: Mapping[str, Any] | Sequence[Any] = ()) -> list[sqlite3.Row]:
        clean = ({name: _stored(value) for name, value in values.items()} if isinstance(values, Mapping)
                 else [_stored(value) for value in values])
        try:
            return self._connection.execute(statement, clean).fetchall()
        except sqlite3.Error as error:
            raise _refused(error, self.path) from error

    def _insert(self, table: str, row: Mapping[str, Any]) -> int:
        columns, marks = ", ".join(row), ", ".join("?" * len(row))
        return int(self._rows(f"INSERT INTO {table}({columns}) VALUES ({marks}) RETURNING rowid",
                              list(row.values()))[0][0])


def _look(file: Path, create: bool) -> None:
    """Raises UserError for what SQLite would open all the same, or make."""
    where = str(file)
    if not file.exists():
        if not create:
            raise UserError("no such ratings database", where=where, hint="ondevice sample makes one")
        return
    if not file.is_file():
        raise UserError("is no file", where=where)
    try:
        with file.open("rb") as start:
            head = start.read(16)
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", where=where) from error
    if head != b"SQLite format 3\0" and (head or not create):
        raise UserError("is no ratings database", where=where)
    if not (os.access(file, os.W_OK) and os.access(file.parent, os.W_OK)):
        raise UserError("cannot be written, nor anything beside it", where=where,
                        hint="SQLite needs both: copy it to a folder of your own")


def _refused(error: sqlite3.Error, file: Path) -> Exception:
    """What a person can mend as a UserError; anything else as it is."""
    name = getattr(error, "sqlite_errorname", "") or ""
    reasons = {"SQLITE_BUSY": "another program has held it for too long", "SQLITE_LOCKED": "another program holds it",
               "SQLITE_READONLY": "cannot be written", "SQLITE_FULL": "the disk is full",
               "SQLITE_IOERR": "the disk has failed to read or write it", "SQLITE_CANTOPEN": "cannot be opened",
               "SQLITE_CORRUPT": "is damaged", "SQLITE_NOTADB": "is no ratings database"}
    for code, reason in reasons.items():
        if name == code or name.startswith(code + "_"):
            return UserError(reason, where=str(file))
    return error


def clean(text: str) -> str:
    """Half a character, which JSON can spell and SQLite refuses, becomes U+FFFD."""
    return text if text.isascii() else re.sub("[\ud800-\udfff]", "\ufffd", text)


def _stored(value: Any) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, Mapping | list | tuple):
        return clean(json.dumps(value, ensure_ascii=False, allow_nan=False))
    return int(value) if isinstance(value, bool) else value
