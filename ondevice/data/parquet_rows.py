"""Rows of Parquet files, unpacked in a process of their own (parquet_process.py): a damaged file can
end the process that unpacks it, within pyarrow, and then the row's file is refused and nothing
else is lost.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ondevice.common import processes
from ondevice.common.distribution import install_hint
from ondevice.common.errors import UserError
from ondevice.common.json_files import parse_json
from ondevice.data.row_process import Ended, answers

_WAIT_S = 120.0  # for one part of an answer


class Unreadable(NamedTuple):
    """So many rows that cannot be read, and why."""

    rows: int
    reason: str


class Head(NamedTuple):
    """What a file says of itself: how many rows it has, and what the library datasets wrote of its
    columns ({}: another program made it)."""

    rows: int
    features: dict[str, Any]


def parquet_rows(file: Path) -> tuple[Head, Iterator[dict[str, Any] | Unreadable]]:
    """The file's head, and its rows in order. Raises UserError for a file that cannot be read, here
    or within the rows."""
    if importlib.util.find_spec("pyarrow") is None:
        raise UserError("Parquet files need pyarrow", where=str(file), hint=install_hint("data"))
    parts = _parts(file)
    kind, content = next(parts)
    assert kind == b"h"  # an error was raised
    return Head(**parse_json(content)), _rows(file, parts)


def _rows(
    file: Path, parts: Iterator[tuple[bytes, bytes]]
) -> Iterator[dict[str, Any] | Unreadable]:
    import pyarrow  # 60 ms

    for kind, content in parts:
        if kind == b"x":
            yield Unreadable(**parse_json(content))
            continue
        try:
            rows = pyarrow.ipc.open_stream(content).read_all().to_pylist()
        except (ValueError, NotImplementedError) as error:  # text that is not UTF-8, and the like
            raise _unreadable(file, str(error)) from error
        yield from rows


def _parts(file: Path) -> Iterator[tuple[bytes, bytes]]:
    """The parts of the answer, but for the last. Raises UserError."""
    asked = os.fsencode(file).hex().encode()
    parts = answers(
        asked, "ondevice.data.parquet_process", "pyarrow", _WAIT_S, processes.Access.OWN
    )
    try:
        for kind, content in parts:
            if kind == b"e":
                raise _unreadable(file, parse_json(content)["error"])
            if kind != b".":
                yield kind, content
    except Ended as error:
        raise _unreadable(file, str(error)) from error
    finally:
        parts.close()


def _unreadable(file: Path, why: str) -> UserError:
    return UserError(
        f"cannot be read as Parquet: {why}", where=str(file), hint="is the download whole?"
    )
