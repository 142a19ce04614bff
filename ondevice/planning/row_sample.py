"""Some rows of a person's data, from all over a file, and how many there are in all.

A small file is counted; of a large one some megabytes are read, and the rest is taken to be like
them. A stage itself reads every row, and says then which cannot be used.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from ondevice.common.errors import UserError
from ondevice.data.extraction.store import extract
from ondevice.data.folders import RICH, TEXTS, kind_of, listing
from ondevice.data.mixture import is_by_name, ordered
from ondevice.data.orders import order_of
from ondevice.data.plain_text import PACKED
from ondevice.data.readers import READERS, BadRecord, Row, json_row, parquet_file
from ondevice.data.row_keys import Record
from ondevice.data.rows import Reading

MOST_BYTES = 2 << 20  # read of a file
MOST_ROWS = 256
MOST_WHOLE = 16 << 20  # of a file that has to be read as one
PLACES = 8  # of a large file of lines that are looked at
FILES = 8  # of a folder that are looked at


@dataclass
class RowSample:
    """`rows`, as they were read or under their forms' names, of `count`; None: that many are not
    known before the stage reads them. `exact`: they were counted. `size`: bytes of text, of documents
    that are no rows.
    """

    rows: list[Any] = field(default_factory=list)
    count: float | None = 0
    exact: bool = True
    size: float | None = None


def sample_rows(data: str, reading: Reading, split: str = "train", template: str = "") -> RowSample:
    """Of one source. Raises UserError for a file or folder that is not there, or of no known kind."""
    prefix, source = ordered(data)
    if is_by_name(data):
        return RowSample(count=None, exact=False)
    path = Path(os.path.expanduser(source))
    if path.is_dir():
        files = listing(path, split).files
    elif path.is_file():
        files = [path]
    else:
        raise UserError("no such file or folder", where=data, hint="give a path, or builtin")
    if kind_of(files[0]) not in READERS:
        raise UserError(
            f"cannot read {kind_of(files[0]) or 'a file without an ending'}", where=data
        )
    looked_at = [files[n * len(files) // FILES] for n in range(FILES)]
    looked_at = list(dict.fromkeys(looked_at))
    parts = [_of_file(file, MOST_ROWS // len(looked_at) + 1) for file in looked_at]
    whole = _joined(parts, _bytes(files) / max(_bytes(looked_at), 1), len(files) == len(looked_at))
    whole.rows = list(_renamed(whole.rows, reading, template))
    if prefix:
        return _orders(whole)
    return whole


def _orders(texts: RowSample) -> RowSample:
    """The orders that the texts make, as far as they were looked at."""
    made = []
    for row in texts.rows:
        text = row.get("text")
        if isinstance(text, str):
            order = order_of(text)
        else:
            order = None
        if order is not None:
            made.append(Record(order.row()))
    if texts.count is None or not texts.rows:
        return RowSample(made, None, False)
    every = len(made) == len(texts.rows)
    return RowSample(made, texts.count * len(made) / len(texts.rows), texts.exact and every)


def _bytes(files: Sequence[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def _joined(parts: Sequence[RowSample], factor: float, complete: bool) -> RowSample:
    """The parts as one, `factor` times as much of it where they are not `complete`."""
    rows: list[Any] = []
    count: float | None = 0.0
    size: float | None = None
    for part in parts:
        rows += part.rows
        if count is None or part.count is None:
            count = None
        else:
            count = count + part.count
        if part.size is not None:
            size = (size or 0.0) + part.size
    exact = complete and all(part.exact for part in parts)
    return RowSample(
        rows,
        None if count is None else count * factor,
        exact,
        None if size is None else size * factor,
    )


def _renamed(rows: Sequence[Any], reading: Reading, template: str) -> Iterator[Record]:
    for row in rows:
        if isinstance(row, BadRecord):
            continue  # the stage names it
        renamed = reading.renamed(row)
        if not isinstance(renamed, BadRecord):
            record = Record(renamed)
            record.template = template
            yield record


def _of_file(file: Path, most: int) -> RowSample:
    kind = kind_of(file)
    packed = file.name.lower().endswith(PACKED)
    if kind in TEXTS:
        return _text(file, packed)
    if kind in RICH:
        found = extract(file)
        if found.reason:
            return RowSample(count=0)
        return _text(found.text, False)
    if kind in (".jsonl", ".ndjson"):
        if packed:
            return _packed_lines(file, most)
        return _lines(file, most)
    if kind == ".parquet":
        return _parquet(file, most)
    if file.stat().st_size > MOST_WHOLE:
        return RowSample(_first(file, most if kind == ".csv" else 0), None, False)
    rows = [row for row, _ in READERS[kind](file)]
    return RowSample(_spread(rows, most), len(rows), not packed)


def _first(file: Path, most: int) -> list[Any]:
    return [row for row, _ in islice(READERS[kind_of(file)](file), most)]


def _spread(rows: Sequence[Any], most: int) -> list[Any]:
    """At most so many of the rows, evenly out of all."""
    step = max(1, -(-len(rows) // most))
    return list(rows[::step])


def _lines(file: Path, most: int) -> RowSample:
    size = file.stat().st_size
    with open(file, "rb") as opened:
        if size <= MOST_BYTES:
            lines = [line for line in opened.read(MOST_BYTES).splitlines() if line.strip()]
            return RowSample(_parsed(_spread(lines, most)), len(lines))
        lines = []
        for place in range(PLACES):
            opened.seek(place * (size // PLACES))
            chunk = opened.read(MOST_BYTES // PLACES)
            # the first and the last are parts of lines
            lines += [line for line in chunk.split(b"\n")[1:-1] if line.strip()]
    if not lines:
        return RowSample(count=None, exact=False)
    mean = sum(map(len, lines)) / len(lines) + 1
    return RowSample(_parsed(_spread(lines, most)), size / mean, False)


def _packed_lines(file: Path, most: int) -> RowSample:
    with open(file, "rb") as raw, gzip.open(raw) as opened:
        text = opened.read(MOST_BYTES)
        part = raw.tell() / max(file.stat().st_size, 1)
        complete = not opened.read(1)
    lines = [line for line in text.split(b"\n") if line.strip()]
    count: float
    if complete:
        count = len(lines)
    else:
        lines.pop()
        count = len(lines) / part
    return RowSample(_parsed(_spread(lines, most)), count, complete)


def _parsed(lines: Sequence[bytes]) -> list[Any]:
    return [json_row(line) for line in lines]


def _parquet(file: Path, most: int) -> RowSample:
    count, rows = parquet_file(file)
    return RowSample([row for row, _ in islice(rows, most)], count)


def _text(file: Path, packed: bool) -> RowSample:
    size = file.stat().st_size
    if packed:
        with gzip.open(file) as opened:
            pieces = [opened.read(MOST_BYTES)]
        return RowSample([_document(pieces[0])], 1, False, float(4 * size))
    pieces = []
    places = PLACES if size > MOST_BYTES else 1
    with open(file, "rb") as opened:
        for place in range(places):
            opened.seek(place * (size // places))
            pieces.append(opened.read(min(MOST_BYTES // PLACES, size)))
    rows: list[Any] = [_document(piece) for piece in pieces if piece.strip()]
    return RowSample(rows, 1, True, float(size))


def _document(piece: bytes) -> Row:
    return {"text": piece.decode(errors="ignore")}
