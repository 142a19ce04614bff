"""What was asked of each passage, kept in a file that only grows: the rows that are learned from are
made of it, and whoever asks again goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ondevice.common import bounded
from ondevice.common.disk import naming
from ondevice.common.errors import UserError
from ondevice.common.file_lock import try_lock
from ondevice.common.json_files import parse_json

FORMAT = 3


def journal_of(out: Path) -> Path:
    """The journal beside the rows that are made of it."""
    return out.with_suffix(".asked.jsonl")


def key_of(passage: str) -> int:
    """Names a passage by its text."""
    text = passage.encode("utf-8", "replace")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


class Journal:
    """A line for the `settings` that all of it was asked with, then one for each passage and each time
    that it was asked about: {"source", "passage", "asked": [{"question", "answer", "sentence", "fault"}]}.

    A context manager that one process at a time may hold. Raises UserError for a journal of other
    settings, unless `again`: then it begins anew.
    """

    def __init__(self, file: Path, settings: Mapping[str, Any], again: bool) -> None:
        self.file = file
        self._settings = dict(settings)
        self._again = again

    def __enter__(self) -> Journal:
        with naming(self.file):
            self._opened = self.file.open("ab+")
        try:
            self._begin()
        except BaseException:
            self._opened.close()
            raise
        return self

    def __exit__(self, *raised: object) -> None:
        self._opened.close()

    def _begin(self) -> None:
        if not try_lock(self._opened.fileno()):
            raise UserError("is being written by another process", where=str(self.file))
        if self._again:
            self._opened.truncate(0)
        self._repair()
        first = next(self._lines(), None)
        if first is None:
            self.add({"format": FORMAT, "settings": self._settings})
        else:
            self._compare(first)

    def _compare(self, first: Mapping[str, Any]) -> None:
        """Raises UserError where what was asked before does not go with what is to be asked."""
        hint = "give another --out, or --again to begin anew"
        before = first.get("settings")
        if first.get("format") != FORMAT or not isinstance(before, dict):
            raise UserError(
                "was written by another version of ondevice", where=str(self.file), hint=hint
            )
        for name, value in self._settings.items():
            if before.get(name) != value:
                raise UserError(
                    f"was asked with {name} {before.get(name)!r}, not {value!r}",
                    where=str(self.file),
                    hint=hint,
                )

    def _repair(self) -> None:
        """Takes away a last line that was not written to its end."""
        end = self._opened.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - (1 << 16))
            self._opened.seek(start)
            line_end = self._opened.read(end - start).rfind(b"\n") + 1
            if line_end:
                self._opened.truncate(start + line_end)
                return
            end = start
        self._opened.truncate(0)

    def _lines(self) -> Iterator[dict[str, Any]]:
        """Raises UserError for a line that is none of ours."""
        with bounded.open_plain(self.file) as source:
            for number, line in enumerate(bounded.lines(source), 1):
                try:
                    found = parse_json(line or b"")
                    if not isinstance(found, dict):
                        raise ValueError("is no object")
                except ValueError as error:
                    raise UserError(
                        f"cannot be read: {error}",
                        where=f"{self.file}:{number}",
                        hint="--again begins anew",
                    ) from error
                yield found

    def asked(self) -> Iterator[dict[str, Any]]:
        """The lines of passages. Raises UserError for one that is none of ours."""
        for number, line in enumerate(self._lines(), 1):
            if number == 1:
                continue
            if not _is_ours(line):
                raise UserError(
                    "is no line of questions about a passage",
                    where=f"{self.file}:{number}",
                    hint="--again begins anew",
                )
            yield line

    def add(self, line: Mapping[str, Any]) -> None:
        """Brings a line to the disk. Raises DiskFull."""
        with naming(self.file):
            self._opened.write(json.dumps(line).encode() + b"\n")
            self._opened.flush()
            os.fsync(self._opened.fileno())


def _is_ours(line: Mapping[str, Any]) -> bool:
    asked = line.get("asked")
    if not isinstance(asked, list) or not isinstance(line.get("passage"), str):
        return False
    names = ("question", "answer", "sentence", "fault")
    return isinstance(line.get("source"), str) and all(
        isinstance(one, dict) and all(isinstance(one.get(name), str) for name in names)
        for one in asked
    )
