"""Files to rows: JSONL, JSON, CSV, Parquet, text and other documents, each also packed by gzip. A row that cannot
be read is a `BadRecord` in its place.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ondevice.common import bounded
from ondevice.common.errors import UserError
from ondevice.common.json_files import TooDeep, parse_json
from ondevice.data.class_labels import class_columns, with_names
from ondevice.data.extraction.store import extract
from ondevice.data.folders import DOCUMENTS
from ondevice.data.json_arrays import rows_in
from ondevice.data.parquet_rows import Unreadable, parquet_rows
from ondevice.data.plain_text import open_binary, parts, refuse_utf16

Row = dict[str, Any]

_CHUNK = 1 << 20


class BadRecord(NamedTuple):
    """A row that cannot be read, and why."""

    reason: str
    row: Any


TOO_LONG = BadRecord(f"longer than {bounded.LARGEST >> 20} MB", None)
MEMORY = 192 << 20
"""Bytes that one row may take while it is read."""
_LARGE = 1 << 20  # a row below that takes less in any case
_VALUE = 200  # bytes of a name, its number, and the references to them
_FOUR_BYTES = re.compile(rb"[\xf0-\xf4]")
_CSV_LINE = MEMORY // 6  # characters: the parser keeps a field in four bytes a character
_FIELD = 75  # bytes of a short text and of the references to it


def _jsonl(file: Path) -> Iterator[tuple[Row | BadRecord, str]]:
    with open_binary(file) as source:
        for number, raw in enumerate(bounded.lines(source), 1):
            if number == 1 and raw is not None:
                refuse_utf16(raw, file)
                raw = raw.removeprefix(codecs.BOM_UTF8)
            if raw is None:
                yield TOO_LONG, f"{file}:{number}"
            elif raw.strip():
                yield json_row(raw), f"{file}:{number}"


def json_row(raw: bytes) -> Row | BadRecord:
    """The object of one line of JSONL."""
    if len(raw) > _LARGE and _memory(raw) > MEMORY:
        return BadRecord(
            f"takes more than {MEMORY >> 20} MB of memory", raw[:1000].decode("latin-1")
        )
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        return BadRecord(
            f"not UTF-8 at byte {error.start + 1} of the line", raw[:1000].decode(errors="replace")
        )
    try:
        row = parse_json(text)
    except TooDeep as error:
        return BadRecord(f"not JSON that can be read: {error}", text[:1000])
    except ValueError as error:  # a number of too many digits is a ValueError too
        reason = f"not JSON: {error}"
        if "\0" in text:
            reason = f"not JSON: a NUL byte at character {text.index(chr(0)) + 1}"
        elif not text.endswith("\n"):
            reason = f"not JSON, and the file ends here without a line break: cut off? ({error})"
        return BadRecord(reason, text[:1000])
    return _object(row)


def _memory(raw: bytes) -> int:
    """About what a row of JSON takes at most while it is parsed: its bytes, its text, and its
    values. A text has one, two or four bytes a character, as its largest needs."""
    width = 1
    if not raw.isascii():
        width = 4 if _FOUR_BYTES.search(raw) else 2
    within = 4 if b"\\u" in raw else width
    values = raw.count(b",") + raw.count(b"[") + raw.count(b"{")
    return len(raw) * (1 + width + within) + values * _VALUE


def _object(row: Any) -> Row | BadRecord:
    if isinstance(row, dict):
        return row
    return BadRecord(
        f"a row must be an object with names, not {type(row).__name__}", str(row)[:1000]
    )


def _json(file: Path) -> Iterator[tuple[Row | BadRecord, str]]:
    """A list of rows, or an object that holds one under `data`, `rows` or `train`; else the object
    is the only row."""
    with open_binary(file) as source:
        refuse_utf16(source.read(2), file)
    for number, raw in enumerate(rows_in(file, open_binary), 1):
        if raw is None:
            yield TOO_LONG, f"{file}:row {number}"
        else:
            yield json_row(raw + b"\n"), f"{file}:row {number}"


class _Lines:
    """Lines of a file, and those of the row that is being read, as far as they are not too long."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text
        self._memory = 0
        self.row: list[str] = []
        self.is_long = False

    def begin(self) -> None:
        """The lines that follow are of another row."""
        self.row.clear()
        self._memory = 0
        self.is_long = False

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        """Raises csv.Error for a line that makes the row too long; the next one can be asked for."""
        line = self._text.readline(_CSV_LINE)
        if not line:
            raise StopIteration
        self.row.append(line)
        self._memory += 6 * len(line) + line.count(",") * _FIELD
        self.is_long = self._memory > MEMORY
        while line and not line.endswith(("\n", "\r")):
            line = self._text.readline(_CSV_LINE)  # of a line that is not kept as a whole
            self.is_long = self.is_long or bool(line)
        if self.is_long:
            raise csv.Error("too long")
        return self.row[-1]

    def opened(self) -> int | None:
        """The line of this row, from 0, in which the quote opens that reaches into its last line;
        None without any.
        """
        at = None
        for number, line in enumerate(self.row[:-1]):
            for _ in range(line.count('"')):
                if at is None:
                    at = number
                else:
                    at = None
        return at


def _refuse_other_separators(reader: csv.DictReader[str], file: Path) -> None:
    try:
        names = reader.fieldnames or ()
    except csv.Error:  # said where the rows are read
        return
    if len(names) != 1:
        return
    for sign in ";\t|":
        if sign in names[0]:
            raise UserError(
                f"its first line names one column, {names[0]!r:.80}",
                where=f"{file}:1",
                hint=f"columns stand between commas: write it with these in place of {sign!r}",
            )


def _csv(file: Path) -> Iterator[tuple[Row | BadRecord, str]]:
    csv.field_size_limit(_CSV_LINE)
    with open_binary(file) as raw:
        refuse_utf16(raw.read(2), file)
    with io.TextIOWrapper(
        open_binary(file), encoding="utf-8-sig", errors="surrogateescape", newline=""
    ) as text:
        lines = _Lines(text)
        reader = csv.DictReader(lines, strict=True)
        _refuse_other_separators(reader, file)
        while True:
            lines.begin()
            before = reader.reader.line_num  # DictReader's own stands still at an error
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if lines.is_long and len(lines.row) == 1:
                    yield TOO_LONG, f"{file}:{reader.reader.line_num + 1}"
                    continue
                _refuse_open_quote(lines, before, file, error)
                bad = BadRecord(f"not CSV: {error}", "".join(lines.row)[:1000])
                yield bad, f"{file}:{reader.reader.line_num}"
                continue
            yield _csv_row(row), f"{file}:{reader.line_num}"


def _refuse_open_quote(lines: _Lines, before: int, file: Path, error: csv.Error) -> None:
    """Raises UserError where a quote is not closed: what it has swallowed are rows too. `before`:
    how many lines stand before those of the row."""
    opened = lines.opened()
    if opened is not None:
        raise UserError(
            "a quote opens here that is not closed before the next one, or never",
            where=f"{file}:{before + opened + 1}",
            hint="close it; within quotes a quote is written twice",
        ) from error


def _csv_row(row: Row) -> Row | BadRecord:
    """The row, where it has a text for each column."""
    if None in row:
        return BadRecord("more fields than the first line names", str(row)[:1000])
    if None in row.values():
        return BadRecord("fewer fields than the first line names", str(row)[:1000])
    if any(_has_undecoded_byte(value) for value in row.values()):
        return BadRecord("not UTF-8", ascii(row)[:1000])
    return row


def _has_undecoded_byte(text: str) -> bool:
    """Whether a byte that is not UTF-8 was let through, as Python's `surrogateescape` does."""
    if text.isascii():
        return False
    return any("\udc80" <= letter <= "\udcff" for letter in text)


def _text(file: Path) -> Iterator[tuple[Row | BadRecord, str]]:
    """One document, in parts where it is long: of a text as it is, of any other document its text."""
    found = extract(file)
    where = str(file)
    if found.reason:
        yield BadRecord(found.reason, None), where
        return
    for part in parts(found.text, found.encoding):
        yield {"text": part}, where


def _parquet(file: Path) -> Iterator[tuple[Row | BadRecord, str]]:
    yield from parquet_file(file)[1]


def parquet_file(file: Path) -> tuple[int, Iterator[tuple[Row | BadRecord, str]]]:
    """How many rows a Parquet file has, and the rows with their places. Raises UserError."""
    head, rows = parquet_rows(file)
    return head.rows, _placed(file, rows, class_columns(head.features))


def _placed(
    file: Path, rows: Iterator[Row | Unreadable], classes: Mapping[str, Any]
) -> Iterator[tuple[Row | BadRecord, str]]:
    number = 0
    for row in rows:
        if isinstance(row, Unreadable):
            for _ in range(row.rows):
                number += 1
                yield BadRecord(row.reason, None), f"{file}:row {number}"
            continue
        number += 1
        yield with_names(without_nulls(row), classes), f"{file}:row {number}"


def without_nulls(value: Any) -> Any:
    """A row of a table: where its objects have a key and it has none, tables hold a null, which
    says nothing.
    """
    if isinstance(value, dict):
        return {key: without_nulls(entry) for key, entry in value.items() if entry is not None}
    if isinstance(value, list):
        return [without_nulls(entry) for entry in value]
    return value


READERS = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
    **{suffix: _text for suffix in DOCUMENTS},
}
