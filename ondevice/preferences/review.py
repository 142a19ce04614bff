"""Rows that a model wrote, kept or dropped by a person one at a time, before anything learns them.

Each verdict is on the disk before the next row is shown: `chats.review.jsonl` beside `chats.jsonl`
is a journal of them, and `chats.kept.jsonl` holds the rows that were kept, as they stand in the
first. A verdict is on what a row says: rows may come to the file, or go, in between.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from ondevice.common import atomic, bounded
from ondevice.common.disk import naming
from ondevice.common.errors import UserError
from ondevice.common.file_lock import try_lock
from ondevice.common.json_files import parse_json

Verdict = Literal["keep", "drop"]
_WORDS = {"keep": "kept", "drop": "dropped"}


@dataclass(frozen=True)
class Row:
    """A row of the file: its `number` from 0, what was asked and answered, the passage that both are
    of and the file of that (empty where the row does not say)."""

    number: int
    question: str
    answer: str
    passage: str
    source: str


class Review:
    """The rows of one file and the verdicts on them; a context manager that one process at a time may
    hold. Raises UserError for a file that is not there or holds no rows of questions and answers."""

    def __init__(self, file: str | Path) -> None:
        self.file = Path(os.path.expanduser(file))
        if not self.file.name:
            raise UserError("is a folder", where=str(self.file), hint="give a file, as chats.jsonl")
        self.journal = self.file.with_suffix(".review.jsonl")
        self.kept_file = self.file.with_suffix(".kept.jsonl")
        self._places: list[tuple[int, int]] = []
        self._keys: list[str] = []
        self._verdicts: dict[str, Verdict] = {}
        self._order: list[str] = []  # keys with a verdict, the newest last

    def __enter__(self) -> Review:
        self._find_rows()
        with naming(self.journal):
            self._opened = self.journal.open("ab+")
        if not try_lock(self._opened.fileno()):
            self._opened.close()
            raise UserError("is being reviewed in another window", where=str(self.file))
        try:
            self._read_journal()
            self._write_kept()
        except BaseException:
            self._opened.close()
            raise
        return self

    def __exit__(self, *raised: object) -> None:
        self._opened.close()

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def counts(self) -> dict[str, int]:
        """{"rows", "kept", "dropped", "left"}."""
        found = {"rows": len(self), "kept": 0, "dropped": 0}
        for key in self._keys:
            if key in self._verdicts:
                found[_WORDS[self._verdicts[key]]] += 1
        return {**found, "left": len(self) - found["kept"] - found["dropped"]}

    def next(self, after: int = -1) -> Row | None:
        """The first row behind `after` without a verdict, or else the first of all; None where there
        is none left."""
        for number in (*range(after + 1, len(self)), *range(0, after + 1)):
            if self._keys[number] not in self._verdicts:
                return self.row(number)
        return None

    def row(self, number: int) -> Row:
        """A row by its number."""
        messages, more = _said(parse_json(self._line(number)))
        return Row(
            number, messages[-2], messages[-1], more.get("asked_of", ""), more.get("source", "")
        )

    def give(self, number: int, verdict: Verdict) -> None:
        """Stores a verdict. Raises DiskFull."""
        key = self._keys[number]
        before = self._verdicts.get(key)
        self._add({"row": key, "verdict": verdict})
        self._note(key, verdict)
        if before is None and verdict == "keep":
            self._append(number)
        elif "keep" in (before, verdict):
            self._write_kept()

    def undo(self) -> Row | None:
        """Takes the newest verdict back; its row, None where there is none. Raises DiskFull."""
        while self._order:
            key = self._order[-1]
            if key in self._keys:
                self._add({"row": key, "verdict": ""})
                self._note(key, "")
                self._write_kept()
                return self.row(self._keys.index(key))
            self._order.pop()  # of a row that is gone
        return None

    # the files

    def _find_rows(self) -> None:
        seen: set[str] = set()
        try:
            with bounded.open_plain(self.file) as source:
                place = 0
                for number, line in enumerate(bounded.lines(source), 1):
                    start, place = place, source.tell()
                    if line is None or not line.strip():
                        continue
                    _check(line, f"{self.file}:{number}")
                    key = hashlib.blake2b(line.strip(), digest_size=12).hexdigest()
                    if key not in seen:
                        seen.add(key)
                        self._keys.append(key)
                        self._places.append((start, len(line)))
        except OSError as error:
            raise UserError(
                f"cannot be read: {error.strerror}",
                where=str(self.file),
                hint="`ondevice data ask` writes such rows",
            ) from error
        if not self._keys:
            raise UserError("no rows in it", where=str(self.file))

    def _line(self, number: int) -> bytes:
        start, length = self._places[number]
        with bounded.open_plain(self.file) as source:
            source.seek(start)
            line = source.read(length)
        if hashlib.blake2b(line.strip(), digest_size=12).hexdigest() != self._keys[number]:
            raise UserError("has changed meanwhile", where=str(self.file), hint="open it again")
        return line

    def _read_journal(self) -> None:
        """What was said before. A last line that was not written to its end is taken away."""
        self._opened.seek(0)
        end = 0
        for line in bounded.lines(self._opened):
            if line is None or not line.endswith(b"\n"):
                break
            try:
                said = parse_json(line)
                self._note(str(said["row"]), said["verdict"])
            except (ValueError, LookupError, TypeError) as error:
                raise UserError(
                    f"is no journal of verdicts: {error}", where=str(self.journal)
                ) from error
            end += len(line)
        self._opened.truncate(end)

    def _note(self, key: str, verdict: str) -> None:
        if key in self._verdicts:
            del self._verdicts[key]
            self._order.remove(key)
        if verdict in _WORDS:
            self._verdicts[key] = cast(Verdict, verdict)
            self._order.append(key)

    def _add(self, said: dict[str, Any]) -> None:
        with naming(self.journal):
            self._opened.write(json.dumps(said).encode() + b"\n")
            self._opened.flush()
            os.fsync(self._opened.fileno())

    def _kept(self) -> Iterator[bytes]:
        for number, key in enumerate(self._keys):
            if self._verdicts.get(key) == "keep":
                yield self._line(number).strip() + b"\n"

    def _write_kept(self) -> None:
        with atomic.aside(self.kept_file) as new:
            with closing(new.open("wb")) as out:
                for line in self._kept():
                    out.write(line)
            atomic.sync(new)
            os.replace(new, self.kept_file)

    def _append(self, number: int) -> None:
        """One more that was kept, at the end; opened the next time, all stand in the file's order."""
        with naming(self.kept_file), self.kept_file.open("ab") as out:
            out.write(self._line(number).strip() + b"\n")
            out.flush()
            os.fsync(out.fileno())


def _check(line: bytes, where: str) -> None:
    """Raises UserError for a line that is not a question and its answer."""
    try:
        _said(parse_json(line))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"is no row of a question and its answer: {error}",
            where=where,
            hint='{"messages": [{"role": "user", …}, {"role": "assistant", …}]}',
        ) from error


def _said(row: Any) -> tuple[list[str], dict[str, str]]:
    """(what each message says, the other texts of the row)."""
    messages = [str(message["content"]) for message in row["messages"]]
    if len(messages) < 2 or row["messages"][-1]["role"] != "assistant":
        raise ValueError("its last message is not an answer")
    return messages, {name: text for name, text in row.items() if isinstance(text, str)}
