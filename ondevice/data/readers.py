"""Files to rows: JSONL, JSON, CSV, Parquet, plain text, each also packed by gzip. A row that cannot
be read is a `BadRecord` in its place.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ondevice.common import bounded
from ondevice.common.errors import UserError
from ondevice.common.json_files import TooDeep, parse_json
from ondevice.data.class_labels import class_columns, with_names
from ondevice.data.folders import PACKED, TEXTS
from ondevice.data.json_arrays import rows_in
from ondevice.data.parquet_rows import Unreadable, parquet_rows

Row = dict[str, Any]

_CHUNK = 1 << 20


class Part(str):
    """A piece of a document; `more`: the document goes on in the next piece."""

    more = False

    @classmethod
    def of(cls, text: str, more: bool) -> Part:
        part = cls(text)
        part.more = more
        return part


class _Utf16(UserError):
    """A file in another encoding than UTF-8, as its first bytes say."""


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
    with _open(file) as opened:
        for number, raw in enumerate(bounded.lines(opened), 1):
            if number == 1 and raw is not None:
                _refuse_utf16(raw, file)
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
    with _open(file) as source:
        _refuse_utf16(source.read(2), file)
    for number, raw in enumerate(rows_in(file, _open), 1):
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
    with _open(file) as raw:
        _refuse_utf16(raw.read(2), file)
    with io.TextIOWrapper(
        _open(file), encoding="utf-8-sig", errors="surrogateescape", newline=""
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
    """One document. The file is read through once before: one that turns out to be no text after
    half of it must not have been half used."""
    where = str(file)
    bad = None
    size = 0
    try:
        for text in _decoded(file):
            size += len(text.strip())
            if "\0" in text:
                bad = BadRecord("holds NUL bytes: not a text file", None)
                break
    except UnicodeDecodeError as error:
        bad = BadRecord(f"not UTF-8: {error.reason} (byte 0x{error.object[error.start]:02x})", None)
    except _Utf16 as error:
        bad = BadRecord(f"not UTF-8: {error.message} ({error.hint})", None)
    if bad is not None or not size:
        yield (bad or BadRecord("empty", None)), where
        return
    piece = ""
    for following in _pieces(file):
        if piece:
            yield {"text": Part.of(piece, True)}, where
        piece = following
    yield {"text": Part.of(piece, False)}, where


def _pieces(file: Path) -> Iterator[str]:
    """The text in pieces, none of them empty, cut before a line that begins with a letter or sign
    where there is one: no run of white space is cut then, and the tokens are those of the whole."""
    held = ""
    for text in _decoded(file):
        held += text
        if len(held) <= _CHUNK:
            continue
        end = held.rfind("\n") + 1
        while end > 0 and (end == len(held) or held[end].isspace()):
            end = held.rfind("\n", 0, end - 1) + 1
        if not end and len(held) > 16 * _CHUNK:
            end = len(held)  # a line of 16 MB: memory counts more than the one word that may be cut
        if end:
            yield held[:end]
            held = held[end:]
    if held:
        yield held


def _decoded(file: Path) -> Iterator[str]:
    """The text of a file, a chunk at a time, with one kind of line break."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    with _open(file) as source:
        head = source.read(_CHUNK)
        _refuse_utf16(head, file)
        after_return = False
        chunk = head
        while True:
            text = decoder.decode(chunk, final=not chunk)
            if after_return:
                text = "\r" + text
            after_return = text.endswith("\r") and bool(chunk)
            if after_return:
                text = text[:-1]
            yield text.replace("\r\n", "\n").replace("\r", "\n")
            if not chunk:
                return
            chunk = source.read(_CHUNK)


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


def _open(file: Path) -> Any:
    try:
        if file.name.lower().endswith(PACKED):
            return gzip.open(file)
        return file.open("rb")
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(file)) from error


def _refuse_utf16(head: bytes, file: Path) -> None:
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise _Utf16("this is UTF-16", where=str(file), hint="save it as UTF-8")


READERS = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
    **{suffix: _text for suffix in TEXTS},
}
