"""A process that unpacks rows of others' files for this one, and ends without it where a library
ends it: what it answers comes in parts, each a letter, its length in eight bytes and its content.
"""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import weakref
from collections.abc import Generator, Iterator
from contextlib import suppress
from threading import Lock

from ondevice.common import processes
from ondevice.common.clock import ticks

_MOST = 1 << 30  # bytes of one part of an answer
_HEAD = 9
_IDLE_S = 10.0


class Ended(Exception):
    """The process ended, or was ended, within an answer."""


def part(kind: bytes, content: bytes) -> bytes:
    """A part as the process writes it."""
    return kind + len(content).to_bytes(8, "big") + content


def lines() -> Iterator[bytes]:
    """What the process is asked, a line each. It ends with its stdin, and after ten seconds without
    a line."""
    asked = os.fdopen(sys.stdin.fileno(), "rb", buffering=0)
    with selectors.DefaultSelector() as ready:
        ready.register(asked, selectors.EVENT_READ)
        while ready.select(_IDLE_S):
            if not (line := asked.readline()):
                return
            yield line


class RowProcess:
    """`module` of ours, run in a process that has the library `unpacker` unpack what it is told to:
    `wait` seconds at most for one part."""

    def __init__(self, module: str, unpacker: str, wait: float, access: processes.Access) -> None:
        self.unpacker, self.wait = unpacker, wait
        self.key = (module, processes.environment(access))
        self.process = processes.start(
            processes.command(module),
            access,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.since = ticks()
        self.close = weakref.finalize(self, _end, self.process)

    def first(self, asked: bytes) -> tuple[bytes, bytes]:
        """The first part of the answer to a line. Raises Ended."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(asked + b"\n")
            self.process.stdin.flush()
        except OSError as error:
            raise Ended("its process is gone") from error
        return self.part()

    def part(self) -> tuple[bytes, bytes]:
        """The next part's letter and content. Raises Ended."""
        head = self._read(_HEAD)
        length = int.from_bytes(head[1:], "big")
        if length > _MOST:
            raise Ended(f"a part of {length:,} bytes")
        return head[:1], self._read(length)

    def _read(self, count: int) -> bytes:
        assert self.process.stdout is not None
        pipe = self.process.stdout.fileno()
        pieces, left, until = [], count, ticks() + self.wait
        with selectors.DefaultSelector() as ready:
            ready.register(pipe, selectors.EVENT_READ)
            while left:
                if not ready.select(max(until - ticks(), 0)):
                    raise Ended(f"no rows within {self.wait:g} seconds")
                piece = os.read(pipe, min(left, 1 << 20))
                if not piece:
                    raise Ended(self._why())
                pieces.append(piece)
                left -= len(piece)
        return b"".join(pieces)

    def _why(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            code = self.process.wait(5)
            by = f" by signal {-code}" if code < 0 else ""
            return f"{self.unpacker} ended its process{by}"
        return "its process closed its output"


# One that has finished waits here for what is asked next; it ends by itself soon.
_idle: list[RowProcess] = []
_lock = Lock()


def answers(
    asked: bytes, module: str, unpacker: str, wait: float, access: processes.Access
) -> Generator[tuple[bytes, bytes]]:
    """The parts of the answer to a line, the last one (e, or a full stop) too. Raises Ended."""
    process = _taken(module, access) or RowProcess(module, unpacker, wait, access)
    whole = False
    try:
        try:
            kind, content = process.first(asked)
        except Ended:  # by itself, a moment ago, if it was idle
            process.close()
            process = RowProcess(module, unpacker, wait, access)
            kind, content = process.first(asked)
        while kind not in b"e.":
            yield kind, content
            kind, content = process.part()
        whole = True
        yield kind, content
    finally:
        if whole:
            _put_back(process)
        else:
            process.close()


def _taken(module: str, access: processes.Access) -> RowProcess | None:
    key = (module, processes.environment(access))
    with _lock:
        process = next((one for one in _idle if one.key == key), None)
        if process is None:
            return None
        _idle.remove(process)
    if ticks() - process.since < _IDLE_S / 2:
        return process
    process.close()
    return None


def _put_back(process: RowProcess) -> None:
    process.since = ticks()
    with _lock:
        older = [one for one in _idle if one.key[0] == process.key[0]]
        for one in older:
            _idle.remove(one)
        _idle.append(process)
    for one in older:
        one.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
    process.wait()
