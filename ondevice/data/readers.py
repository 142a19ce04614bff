"""Files to rows: JSONL, JSON, CSV, Parquet, plain text, each also packed by gzip. A row that cannot
be read is a `BadRecord` in its place.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ondevice.common.distribution import install_hint
from ondevice.common.errors import UserError
from ondevice.data.class_labels import class_columns, with_names
from ondevice.data.folders import PACKED, TEXTS

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


def _jsonl(file: Path) -> Iterator[tuple[Row | BadRecord, str]]:
    with _open(file) as lines:
        for number, raw in enumerate(lines, 1):
            if number == 1:
                _refuse_utf16(raw, file)
                raw = raw.removeprefix(codecs.BOM_UTF8)
            if raw.strip():
                yield json_row(raw), f"{file}:{number}"


def json_row(raw: bytes) -> Row | BadRecord:
    """The object of one line of JSONL."""
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        return BadRecord(
            f"not UTF-8 at byte {error.start + 1} of the line", raw[:1000].decode(errors="replace")
        )
    try:
        row = json.loads(text)
    except ValueError as error:  # a number of too many digits is a ValueError too
        reason = f"not JSON: {error}"
        if "\0" in text:
            reason = f"not JSON: a NUL byte at character {text.index(chr(0)) + 1}"
        elif not text.endswith("\n"):
            reason = f"not JSON, and the file ends here without a line break: cut off? ({error})"
        return BadRecord(reason, text[:1000])
    except RecursionError:
        return BadRecord("not JSON that can be read: nested too deep", text[:1000])
    return _object(row)


def _object(row: Any) -> Row | BadRecord:
    if isinstance(row, dict):
        return row
    return BadRecord(
        f"a row must be an object with names, not {type(row).__name__}", str(row)[:1000]
    )


def _json(file: Path) -> Iterator[tuple[Row | BadRecord, str]]:
    """A list of rows, or an object that holds one under `data`, `rows` or `train`."""
    with _open(file) as source:
        data = source.read()
    _refuse_utf16(data, file)
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 at byte {error.start + 1}", where=str(file)) from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"not JSON: {error}",
            where=str(file),
            hint="one row a line is JSONL: call the file .jsonl",
        ) from error
    if isinstance(value, dict):
        value = _list_in(value)
    if not isinstance(value, list):
        raise UserError("holds no list of rows", where=str(file))
    for number, row in enumerate(value, 1):
        yield _object(row), f"{file}:row {number}"


def _list_in(value: Row) -> list[Any]:
    """The list of rows in an object; without one the object is the only row."""
    for key in ("data", "rows", "train"):
        if isinstance(value.get(key), list):
            found: list[Any] = value[key]
            return found
    return [value]


class _Lines:
    """Lines of a file, and those of the row that is being read."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self.row: list[str] = []

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            self.row.append(line)
            yield line

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
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with _open(file) as raw:
        _refuse_utf16(raw.read(2), file)
    with io.TextIOWrapper(
        _open(file), encoding="utf-8-sig", errors="surrogateescape", newline=""
    ) as text:
        lines = _Lines(text)
        reader = csv.DictReader(lines, strict=True)
        _refuse_other_separators(reader, file)
        while True:
            lines.row.clear()
            before = reader.reader.line_num  # DictReader's own stands still at an error
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
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
    try:
        import pyarrow.parquet as parquet  # 190 ms
    except ImportError as error:
        raise UserError(
            "Parquet files need pyarrow", where=str(file), hint=install_hint("data")
        ) from error
    number = 0
    try:
        with parquet.ParquetFile(file) as source:
            classes = class_columns(_features(source.schema_arrow.metadata))
            for batch in source.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield with_names(without_nulls(row), classes), f"{file}:row {number}"
    except (OSError, ValueError) as error:  # pyarrow's own errors derive from these
        raise UserError(
            f"cannot be read as Parquet: {error}", where=str(file), hint="is the download whole?"
        ) from error


def _features(metadata: Any) -> dict[str, Any]:
    """What the library datasets has written into a Parquet file of what its columns are; {} where
    it has not.
    """
    try:
        found = json.loads((metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, LookupError, TypeError):
        # another program's key of that name: the rows are read all the same
        return {}
    if isinstance(found, dict):
        return found
    return {}


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
