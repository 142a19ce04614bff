"""A process that answers lines with lines, over pipes: read within limits of time and size, and
ended with everything in its group. Reward functions, isolated code and readers of documents run
in one.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import weakref
from collections.abc import Callable
from contextlib import suppress

from ondevice.common.clock import ticks

LOOK_S = 1.0
"""Between two looks at whether a process that says nothing is still there."""


class CallFailed(Exception):
    """A call gave no values. The text says why in one line; `cause` is the same whenever the same
    goes wrong.
    """

    def __init__(self, text: str, cause: str = "") -> None:
        super().__init__(text)
        self.cause = cause or text


class LineProcess:
    """`process` has pipes for stdin and stdout, and is the first of a group of its own. A line of
    its own has `most` bytes at most."""

    def __init__(self, process: subprocess.Popen[bytes], most: int) -> None:
        assert process.stdin is not None and process.stdout is not None
        os.set_blocking(process.stdin.fileno(), False)
        self.process = process
        self.most = most
        self._unread = b""
        self._ender = weakref.finalize(self, _kill, process)

    def close(self) -> None:
        """Ends the process and everything in its group."""
        self._ender()

    def exchange(
        self, request: bytes, timeout: float, look: Callable[[], None] | None = None
    ) -> bytes:
        """Sends a request and waits for one line, with reads and writes at once, for neither side
        may wait for a pipe that the other does not empty. `look` is called now and then.

        Raises CallFailed; the pipes are then out of step, and the process is to be closed.
        """
        process = self.process
        assert process.stdin is not None and process.stdout is not None
        until, rest = ticks() + timeout, memoryview(request)
        with selectors.DefaultSelector() as ready:
            ready.register(process.stdout, selectors.EVENT_READ)
            if rest:
                ready.register(process.stdin, selectors.EVENT_WRITE)
            while b"\n" not in self._unread:
                left = until - ticks()
                if left <= 0:
                    raise CallFailed(f"gave no answer within {timeout:g} seconds and was ended")
                events = ready.select(min(left, LOOK_S))
                if look is not None:
                    look()
                if not events and process.poll() is not None:
                    raise CallFailed(_end_of(process))  # a child of its own still holds the pipe
                for key, _ in events:
                    if key.fileobj is process.stdin:
                        rest = rest[_write(process.stdin.fileno(), rest) :]
                        if not rest:
                            ready.unregister(process.stdin)
                    elif piece := os.read(process.stdout.fileno(), 1 << 16):
                        self._unread += piece
                        if len(self._unread) > self.most:
                            raise CallFailed(f"answered with more than {self.most:,} bytes")
                    else:
                        raise CallFailed(_end_of(process))
        line, _, self._unread = self._unread.partition(b"\n")
        return line


def _write(pipe: int, data: memoryview) -> int:
    """Bytes that are written, all of them where nobody reads any more: that is seen where the
    output ends.
    """
    try:
        return os.write(pipe, data)
    except BlockingIOError:
        return 0
    except BrokenPipeError:
        return len(data)


def _end_of(process: subprocess.Popen[bytes]) -> str:
    try:
        code = process.wait(5)
    except subprocess.TimeoutExpired:
        return "its process closed its output"
    if code < 0:
        return f"its process was ended by a signal ({signal.strsignal(-code) or -code})"
    return f"its process ended with exit code {code}"


def _kill(process: subprocess.Popen[bytes]) -> None:
    # gone already; macOS says EPERM of a zombie
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
