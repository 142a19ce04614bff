"""The process that unpacks Parquet files for parquet_rows.py: pyarrow ends its process at some
damaged files instead of raising an error.

A line on stdin is a file's path in hexadecimal digits. The answer is a series of parts, each a
letter, its length in eight bytes and its content:

    h  JSON, the file's head: {"rows", "features"} (what the library datasets says of the columns)
    b  some rows, as a stream of Arrow's own format
    x  JSON {"rows", "reason"}: so many rows that cannot be read
    e  JSON {"error"}: the file cannot be read; the last part
    .  nothing: the last part

"""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ondevice.common import bounded
from ondevice.common.json_files import parse_json
from ondevice.data.parquet_pages import pages_of
from ondevice.data.row_process import lines, part

_CHUNK = 1 << 20
_FOOTER = 16 << 20  # bytes of a Parquet file's description
_ROW = 96 << 20  # bytes of the pages in which one row lies


def main() -> None:
    # Ctrl-C is for the stage, which finishes its step and may need a row for that.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in lines():
        for kind, content in parts_of(Path(os.fsdecode(bytes.fromhex(line.decode())))):
            sys.stdout.buffer.write(part(kind, content))
        sys.stdout.buffer.flush()


def parts_of(file: Path) -> Iterator[tuple[bytes, bytes]]:
    """The parts of the answer."""
    import pyarrow.parquet as parquet  # 190 ms

    try:
        _check_footer(file)
        with parquet.ParquetFile(file, pre_buffer=False, buffer_size=_CHUNK) as source:
            features = _features(source.schema_arrow.metadata)
            yield b"h", _json(rows=source.metadata.num_rows, features=features)
            for group in range(source.num_row_groups):
                yield from _group(source, file, group)
    except (OSError, ValueError, NotImplementedError) as error:  # pyarrow's own derive from these
        yield b"e", _json(error=str(error))
    else:
        yield b".", b""


def _json(**content: Any) -> bytes:
    return json.dumps(content).encode()


def _check_footer(file: Path) -> None:
    """Raises ValueError for a footer that takes too much memory to parse."""
    with bounded.open_plain(file) as source:
        end = source.seek(0, io.SEEK_END)
        source.seek(max(end - 8, 0))
        length = int.from_bytes(source.read(4), "little")
    if length > _FOOTER:
        raise ValueError(f"its footer has {length:,} bytes")


def _features(metadata: Any) -> dict[str, Any]:
    """What the library datasets has written into a Parquet file of what its columns are; {} where
    it has not.
    """
    try:
        found = parse_json((metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, LookupError, TypeError):
        # another program's key of that name: the rows are read all the same
        return {}
    if isinstance(found, dict):
        return found
    return {}


def _group(source: Any, file: Path, group: int) -> Iterator[tuple[bytes, bytes]]:
    """The rows of one group. Those of a group with a page that is too large are bad: a page is
    unpacked as a whole."""
    import pyarrow

    described = source.metadata.row_group(group)
    with bounded.open_plain(file) as opened:
        at_once, reason = _rows_at_once(described, opened)
    if reason:
        yield b"x", _json(rows=described.num_rows, reason=reason)
        return
    for batch in source.iter_batches(batch_size=at_once, row_groups=[group]):
        out = io.BytesIO()
        with pyarrow.ipc.new_stream(out, batch.schema) as stream:
            stream.write_batch(batch)
        yield b"b", out.getvalue()


def _rows_at_once(group: Any, opened: IO[bytes]) -> tuple[int, str]:
    """(how many rows of a group are read at once, why none can be). A row takes no more of a column
    than its largest page, which a dictionary may give to every row."""
    of_row = 0
    for at in range(group.num_columns):
        column = group.column(at)
        found = pages_of(opened, column)
        if found.largest > bounded.LARGEST:
            return 0, (
                f"a page of {found.largest >> 20} MB in {column.path_in_schema} (at most "
                f"{bounded.LARGEST >> 20}): write the file with smaller pages"
            )
        of_row += found.largest
    if of_row > _ROW:
        return 0, f"its columns have pages of {of_row >> 20} MB: write the file with smaller ones"
    return max(1, min(256, (16 << 20) // max(of_row, 1))), ""


if __name__ == "__main__":
    main()
