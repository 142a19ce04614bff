"""Rows of Parquet files, unpacked in a process of their own (parquet_process.py): a damaged file can
end the process that unpacks it, within pyarrow, and then the row's file is refused and nothing
else is lost.
"""

from __future__ import annotations

import importlib.util
import os
import selectors
import subprocess
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from ondevice.common import processes
from ondevice.common.clock import ticks
from ondevice.common.distribution import install_hint
from ondevice.common.errors import UserError
from ondevice.common.json_files import parse_json
from ondevice.data.parquet_process import IDLE_S

_MOST = 1 << 30  # bytes of one part of an answer
_WAIT_S = 120.0  # for one part
_HEAD = 9


class Unreadable(NamedTuple):
    """So many rows that cannot be read, and why."""

    rows: int
    reason: str


class _Ended(Exception):
    """The process ended, or was ended, within an answer."""


class _Reader:
    """A process, and the parts of what it answers."""

    def __init__(self) -> None:
        self.process = processes.start(
            processes.command("ondevice.data.parquet_process"),
            processes.Access.OWN,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.since = ticks()
        self.close = weakref.finalize(self, _end, self.process)

    def first(self, file: Path) -> tuple[bytes, bytes]:
        """The first part of the answer for a file. Raises _Ended."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(os.fsencode(file).hex().encode() + b"\n")
            self.process.stdin.flush()
        except OSError as error:
            raise _Ended("its process is gone") from error
        return self.part()

    def part(self) -> tuple[bytes, bytes]:
        """The next part's letter and content. Raises _Ended."""
        head = self._read(_HEAD)
        length = int.from_bytes(head[1:], "big")
        if length > _MOST:
            raise _Ended(f"a part of {length:,} bytes")
        return head[:1], self._read(length)

    def _read(self, count: int) -> bytes:
        assert self.process.stdout is not None
        pipe = self.process.stdout.fileno()
        pieces, left, until = [], count, ticks() + _WAIT_S
        with selectors.DefaultSelector() as ready:
            ready.register(pipe, selectors.EVENT_READ)
            while left:
                if not ready.select(max(until - ticks(), 0)):
                    raise _Ended(f"no rows within {_WAIT_S:g} seconds")
                piece = os.read(pipe, min(left, 1 << 20))
                if not piece:
                    raise _Ended(self._why())
                pieces.append(piece)
                left -= len(piece)
        return b"".join(pieces)

    def _why(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            code = self.process.wait(5)
            return "pyarrow ended its process" + (f" by signal {-code}" if code < 0 else "")
        return "its process closed its output"


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
    process.wait()


# One that has finished a file waits here for the next one of a folder; it ends by itself soon.
_idle: list[_Reader] = []
_lock = Lock()


def _taken() -> _Reader | None:
    with _lock:
        reader = _idle.pop() if _idle else None
    if reader is None or ticks() - reader.since < IDLE_S / 2:
        return reader
    reader.close()
    return None


def _put_back(reader: _Reader) -> None:
    reader.since = ticks()
    with _lock:
        if not _idle:
            _idle.append(reader)
            return
    reader.close()


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
    reader = _taken() or _Reader()
    whole = False
    try:
        try:
            kind, content = reader.first(file)
        except _Ended:  # by itself, a moment ago, if it was idle
            reader.close()
            reader = _Reader()
            kind, content = reader.first(file)
        while kind not in b"e.":
            yield kind, content
            kind, content = reader.part()
        whole = True
        if kind == b"e":
            raise _unreadable(file, parse_json(content)["error"])
    except _Ended as error:
        raise _unreadable(file, str(error)) from error
    finally:
        if whole:
            _put_back(reader)
        else:
            reader.close()


def _unreadable(file: Path, why: str) -> UserError:
    return UserError(
        f"cannot be read as Parquet: {why}", where=str(file), hint="is the download whole?"
    )
