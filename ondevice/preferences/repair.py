"""The start of a rating session: the database is checked, repaired where it is damaged, and a copy
of it is kept.

A repair reads what SQLite can still reach, row by row, adds what is missing from the newest copies,
and writes a new database. The damaged one stays beside it as `ratings.db.damaged-DATE`, with its
write-ahead log.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ondevice.common.atomic import sync
from ondevice.common.errors import UserError
from ondevice.preferences import lock
from ondevice.preferences.backups import copies, is_ours, keep_copy, read_only
from ondevice.preferences.database import Ratings
from ondevice.preferences.schema import COLUMNS, SCHEMA
from ondevice.preferences.sqlite_store import (
    FAILED,
    NOT_OURS,
    PATIENCE_S,
    Damaged,
    ratings_file,
    refused,
)
from ondevice.preferences.votes import Unreadable, item_of, vote_of

Row = dict[str, Any]
_MISSES = 10_000  # rows in a row that cannot be read, where nothing says how many there were
_GAP = 100_000  # the most between two that can be read: numbers are given one by one, and a damaged one may be any
# by which rows find each other
_NUMBERS = {
    "item": ("id",),
    "response": ("item", "slot"),
    "vote": ("id", "item"),
    "score": ("id", "item", "slot"),
}


@dataclass(frozen=True)
class Repair:
    """What came of a repair. `lost_votes`, `lost_items`: as far as the numbers of the readable ones
    show; `copied`: rows that the damaged file lacked and a copy had; `kept`: where the damaged file
    is."""

    file: Path
    damage: str
    votes: int
    lost_votes: int
    items: int
    lost_items: int
    copied: int
    kept: Path

    def __str__(self) -> str:
        lost = []
        for count, word in ((self.lost_votes, "vote"), (self.lost_items, "pair")):
            if count:
                plural = "" if count == 1 else "s"
                lost.append(f"{count} {word}{plural}")
        missing = "nothing that it held is missing"
        if lost:
            missing = f"{' and '.join(lost)} could not be read"
        if self.copied:
            missing += f", {self.copied} rows came from a copy"
        return (
            f"{self.file.name} was damaged ({self.damage}) and is repaired: {self.votes} votes on {self.items} "
            f"pairs are there, {missing}. The damaged file is kept as {self.kept.name}"
        )


def open_for_rating(path: str | Path, *, create: bool = False) -> tuple[Ratings, list[str]]:
    """Opens a database for somebody who is going to rate: (the open database, what is to be told).

    Raises UserError as `Ratings.open` does, and where it is damaged and another program has it
    open.
    """
    told = []
    repair = repair_if_damaged(path, create=create)
    if repair is not None:
        told.append(str(repair))
    opened = Ratings.open(path, create=create)
    try:
        keep_copy(opened)
    except UserError as problem:
        told.append(f"no copy of the ratings was kept: {problem}")
    return opened, told


def repair_if_damaged(path: str | Path, *, create: bool = False) -> Repair | None:
    """Reads the whole database, and repairs it where that fails. None where nothing is wrong, or
    (with `create`) where there is none. Raises UserError as `Ratings.open` does, and where nothing
    can be saved."""
    file = ratings_file(path)
    lock.finish_repair(file, PATIENCE_S)
    if create and not file.exists():
        return None
    damage = find_damage(file)
    if not damage:
        return None
    with lock.alone(file, PATIENCE_S):
        if lock.repaired(file).exists():
            raise UserError(
                "is being repaired by another program",
                where=str(file),
                hint="try again in a moment",
            )
        return _repair(file, damage)


def find_damage(file: Path) -> str:
    """Why a database has to be repaired; empty where it need not be. Reads all of it. Raises
    UserError.
    """
    try:
        with Ratings.open(file) as opened:
            damage = opened.damage()
            if not damage:
                opened.items()
                opened.votes()
            return damage
    except Damaged as problem:
        return problem.message
    except UserError as problem:
        if problem.message == NOT_OURS and copies(file):  # its first page is gone
            return problem.message
        raise


@dataclass
class _Saved:
    """Rows of the tables by their number; `highest`: the highest number of a vote ever given;
    `project`: what all raters have agreed on, by name. Who is being asked what is left out."""

    tables: dict[str, dict[int, Row]] = field(
        default_factory=lambda: {"item": {}, "response": {}, "vote": {}, "score": {}}
    )
    highest: int = 0
    project: dict[str, str] = field(default_factory=dict)


def _repair(file: Path, damage: str) -> Repair:
    saved, copied = _read(file), 0
    for copy in copies(file):
        copied += _fill(saved, _read(copy))
    aside = file.with_name(f"{file.name}.repairing")
    if aside.exists() and not is_ours(aside):
        raise UserError(
            "stands where a repair would write", where=str(aside), hint="move it elsewhere"
        )
    # of a killed repair: nobody else is at work, and it is ours
    for left in (aside, Path(f"{aside}-journal")):
        left.unlink(missing_ok=True)
    try:
        items, votes = _write(aside, saved)
    except FAILED as error:
        raise refused(error, aside) from error
    if not items:
        aside.unlink()
        raise UserError(
            f"is damaged ({damage}), and no pair in it can be read whole; it is left as it is",
            where=str(file),
            hint="put a copy of your own in its place, or give another file",
        )
    os.replace(aside, lock.repaired(file))
    kept = lock.replace_with_repaired(file)
    lost_votes = max(saved.highest, max(saved.tables["vote"], default=0)) - votes
    lost_items = _highest_item(saved) - items
    return Repair(file, damage, votes, lost_votes, items, lost_items, copied, kept)


def _highest_item(saved: _Saved) -> int:
    """The highest number of an item that is there, or that is named by a response or a vote."""
    numbers = set(saved.tables["item"])
    for table in ("response", "vote"):
        numbers.update(row["item"] for row in saved.tables[table].values())
    return max(numbers, default=0)


def _read(file: Path) -> _Saved:
    saved = _Saved()
    try:
        with read_only(file) as connection:
            connection.text_factory = bytes  # one character that is none must not end the rest
            for table in saved.tables:
                saved.tables[table] = _rows(connection, table)
            # their row numbers are another copy's, their places are not
            responses = saved.tables["response"].values()
            saved.tables["response"] = {4 * row["item"] + row["slot"]: row for row in responses}
            try:
                found = connection.execute(
                    "SELECT seq FROM sqlite_sequence WHERE name = 'vote'"
                ).fetchone()
                highest_read = max(saved.tables["vote"], default=0)
                if found and isinstance(found[0], int) and found[0] - highest_read < _GAP:
                    saved.highest = found[0]
            except FAILED:
                saved.highest = 0
            saved.project = _read_project(connection)
    except FAILED:  # not even its first page
        return saved
    return saved


def _read_project(connection: sqlite3.Connection) -> dict[str, str]:
    """Empty where it cannot be read, or the file is of a version that had none."""
    found = {}
    try:
        for fields in connection.execute("SELECT name, value FROM project"):
            row = _decoded(dict(zip(("name", "value"), fields, strict=True)))
            if row is not None and all(isinstance(value, str) for value in row.values()):
                found[row["name"]] = row["value"]
    except FAILED:
        return found
    return found


def _rows(connection: sqlite3.Connection, table: str) -> dict[int, Row]:
    """What can be reached of a table: from its beginning and from its end up to the first damaged
    page, and of what lies between each row by its number. Indexes are not used: they may be what is
    damaged."""
    found: dict[int, Row] = {}
    query = f"SELECT rowid, {', '.join(COLUMNS[table])} FROM {table} NOT INDEXED"

    if table == "score" and not _has_scores(connection):
        return found

    def take(rest: str, *values: int) -> bool:
        """Whether all of it could be read."""
        try:
            for number, *fields in connection.execute(f"{query} {rest}", values):
                row = _decoded(dict(zip(COLUMNS[table], fields, strict=True)))
                if row is not None and _is_numbered(row, table):
                    found[number] = row
        except FAILED:
            return False
        return True

    if take("ORDER BY rowid"):
        return _in_reach(found)
    low = max(found, default=0)
    take("ORDER BY rowid DESC")
    high = min((number for number in found if number > low), default=None)
    most_misses = _GAP
    if high is None:
        most_misses = _MISSES
    misses, number = 0, low + 1
    while misses < most_misses and number != high:
        take("WHERE rowid = ?", number)
        misses += 1
        if number in found:
            misses = 0
        number += 1
    return _in_reach(found)


def _has_scores(connection: sqlite3.Connection) -> bool:
    """Not in a file of a version before them, nor where the schema says nothing any more."""
    try:
        connection.execute("SELECT id FROM score LIMIT 0")
    except FAILED:
        return False
    return True


def _is_numbered(row: Row, table: str) -> bool:
    """Whether a row has the numbers by which rows find each other."""
    return all(isinstance(row[name], int) for name in _NUMBERS[table])


def _in_reach(found: Mapping[int, Row]) -> dict[int, Row]:
    """Without those whose number no database of ours has come to."""
    last, near = 0, {}
    for number in sorted(found):
        if number <= 0:
            continue
        if number - last > _GAP:
            break
        near[number], last = found[number], number
    return near


def _decoded(row: Row) -> Row | None:
    """None where a text is not UTF-8."""
    decoded = {}
    for name, value in row.items():
        if isinstance(value, bytes):
            try:
                value = value.decode()
            except UnicodeDecodeError:
                return None
        decoded[name] = value
    return decoded


def _fill(saved: _Saved, copy: _Saved) -> int:
    """Takes from a copy what is missing; returns how many rows. Nothing where the copy is of
    another database: numbers of votes and items mean the same in both only if what both have is the
    same."""
    for table in ("item", "vote", "score"):
        mine, other = saved.tables[table], copy.tables[table]
        if any(mine[number] != other[number] for number in mine.keys() & other.keys()):
            return 0
    count = 0
    for table, rows in copy.tables.items():
        missing = {number: row for number, row in rows.items() if number not in saved.tables[table]}
        saved.tables[table].update(missing)
        count += len(missing)
    saved.highest = max(saved.highest, copy.highest)
    saved.project = {**copy.project, **saved.project}
    return count


def _write(aside: Path, saved: _Saved) -> tuple[int, int]:
    """(items, votes) that are in the new database: those that are whole and whose pair is there."""
    responses: dict[int, list[Row]] = {}
    for row in saved.tables["response"].values():
        responses.setdefault(row["item"], []).append(row)
    with closing(sqlite3.connect(aside, isolation_level=None)) as new:
        new.execute("PRAGMA foreign_keys = ON")
        new.execute("PRAGMA synchronous = FULL")
        new.execute("PRAGMA fullfsync = ON")
        new.execute("BEGIN")
        for statement in SCHEMA:
            new.execute(statement)
        items = votes = 0
        for number, row in _in_order(saved, "item"):
            items += _put_item(new, row, responses.get(number, []))
        for _, row in _in_order(saved, "vote"):
            if _is_vote(row):
                votes += _put(new, "vote", row)
        for _, row in _in_order(saved, "score"):
            _put(new, "score", row)
        new.execute(
            "UPDATE sqlite_sequence SET seq = ? WHERE name = 'vote' AND seq < ?",
            (saved.highest,) * 2,
        )
        for name, value in saved.project.items():
            _put(new, "project", {"name": name, "value": value})
        new.execute("COMMIT")
    sync(aside.parent)
    return items, votes


def _in_order(saved: _Saved, table: str) -> Iterator[tuple[int, Row]]:
    return iter(sorted(saved.tables[table].items()))


def _put_item(new: sqlite3.Connection, row: Row, responses: list[Row]) -> bool:
    ordered = sorted(responses, key=lambda response: response["slot"])
    try:
        item_of(row, ordered)
    except Unreadable:
        return False
    new.execute("SAVEPOINT item")
    whole = _put(new, "item", row) and all(_put(new, "response", response) for response in ordered)
    if not whole:
        new.execute("ROLLBACK TO item")
    new.execute("RELEASE item")
    return whole


def _put(new: sqlite3.Connection, table: str, row: Mapping[str, Any]) -> bool:
    """False where a rule of the table refuses it: what it belongs to is lost, or it is damaged
    itself.
    """
    try:
        new.execute(
            f"INSERT INTO {table}({', '.join(row)}) VALUES ({', '.join('?' * len(row))})",
            list(row.values()),
        )
    except sqlite3.IntegrityError:
        return False
    return True


def _is_vote(row: Row) -> bool:
    try:
        vote_of(row)
    except Unreadable:
        return False
    return True
