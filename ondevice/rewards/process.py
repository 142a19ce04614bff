"""Calls reward functions in a process of their own (host.py): what hangs is killed, what crashes is
started again.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ondevice.common import disk, processes
from ondevice.common.bounded import LARGEST
from ondevice.common.clock import ticks
from ondevice.common.errors import UserError
from ondevice.common.json_files import parse_json
from ondevice.common.sanitize import sanitize

START_S = 120.0
"""How long a file may take to be imported: libraries that it imports are slow on a cold disk."""
LOG = 16 << 20  # bytes of what a reward prints
LOOK_S = 1.0
"""Between two looks at whether a process that says nothing is still there."""


class CallFailed(Exception):
    """A call gave no values. The text says why in one line; `cause` is the same whenever the same
    goes wrong.
    """

    def __init__(self, text: str, cause: str = "") -> None:
        super().__init__(text)
        self.cause = cause or text


@dataclass(frozen=True)
class Function:
    """A reward function of a file, and the parameters that it must be given."""

    name: str
    needs: tuple[str, ...]


class Host:
    """Functions of `file`, those of `names` or, where that is empty, all that are rewards.

    `timeout` is seconds a call. What the functions print is appended to the file `log`; without one
    it is dropped. Nothing is started before `start` or the first call.
    """

    def __init__(
        self, file: Path, names: Sequence[str] = (), *, timeout: float, log: Path | None = None
    ) -> None:
        self.file = Path(file).absolute()
        self.names = tuple(names)
        self.timeout = timeout
        self.log = log
        self.unused: tuple[str, ...] = ()
        """Public functions of the file that are no rewards, once it was started."""
        self._process: subprocess.Popen[bytes] | None = None
        self._unread = b""
        self._ender: weakref.finalize[Any, Any] | None = None

    def start(self) -> list[Function]:
        """The functions of the file. Raises UserError, with file and line, for a file that does not
        yield any.
        """
        if not self.file.is_file():
            raise UserError(
                "there is no such file", where=str(self.file), hint="give a Python file of rewards"
            )
        self.close()
        self._process = _spawn(self.file, self.names, self.log)
        self._unread = b""
        self._ender = weakref.finalize(self, _kill, self._process)
        try:
            first = self._exchange(b"", max(START_S, self.timeout))
        except CallFailed as error:
            raise UserError(f"cannot be imported: {error}", where=str(self.file)) from error
        if "failed" in first:
            self.close()
            raise UserError(
                sanitize(first["failed"], newlines=False),
                where=first["where"],
                hint="`def my_reward(prompts, completions, **columns)` gives a list of numbers",
            )
        self.unused = tuple(first["unused"])
        return [Function(f["name"], tuple(f["needs"])) for f in first["ready"]]

    def call(
        self, name: str, arguments: Mapping[str, Any], timeout: float | None = None
    ) -> list[Any]:
        """What the function returned, an item as host.py writes it. Raises CallFailed; the next
        call starts afresh; DiskFull where what the function writes has no room and nobody waits.
        """
        if self._process is None:
            try:
                self.start()
            except disk.DiskFull:
                raise
            except UserError as error:
                raise CallFailed(str(error)) from error
        request = (
            json.dumps({"call": name, "arguments": arguments}, default=str, skipkeys=True) + "\n"
        )

        def ask() -> dict[str, Any]:
            reply = self._exchange(request.encode(), timeout or self.timeout)
            if reply.get("full"):  # what the function writes itself
                raise disk.DiskFull(Path(reply["full"]))
            return reply

        reply = disk.until_written(self.file, ask)
        if "error" in reply:
            message = sanitize(reply["error"], newlines=False)
            kind = message.partition(":")[0]
            where = reply["where"]
            raise CallFailed(f"{message} ({where})", f"{kind} {where}")
        values: list[Any] = reply["values"]
        return values

    def close(self) -> None:
        """Ends the process and everything in its group."""
        if self._ender is not None:
            self._ender()
        self._process = self._ender = None

    def _exchange(self, request: bytes, timeout: float) -> dict[str, Any]:
        """Sends a line and waits for one. Whatever else happens, the process is ended: its pipes
        would be out of step."""
        try:
            reply: dict[str, Any] = parse_json(self._talk(request, timeout))
            return reply
        except ValueError as error:
            self.close()
            raise CallFailed("its process wrote what is not a reply") from error
        except BaseException:
            self.close()
            raise

    def _talk(self, request: bytes, timeout: float) -> bytes:
        """Reads and writes at once, for neither side may wait for a pipe that the other does not
        empty.
        """
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
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
                self._bound_log()
                if not events and process.poll() is not None:
                    raise CallFailed(_end_of(process))  # a child of its own still holds the pipe
                for key, _ in events:
                    if key.fileobj is process.stdin:
                        rest = rest[_write(process.stdin.fileno(), rest) :]
                        if not rest:
                            ready.unregister(process.stdin)
                    elif piece := os.read(process.stdout.fileno(), 1 << 16):
                        self._unread += piece
                        if len(self._unread) > LARGEST:
                            raise CallFailed(f"answered with more than {LARGEST:,} bytes")
                    else:
                        raise CallFailed(_end_of(process))
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _bound_log(self) -> None:
        """Keeps the beginning of what a reward prints without end: what went wrong first."""
        if self.log is not None and self.log.stat().st_size > LOG:
            os.truncate(self.log, LOG // 2)  # the child appends: it goes on from there


def _spawn(file: Path, names: Sequence[str], log: Path | None) -> subprocess.Popen[bytes]:
    """A group of its own, so that all of it can be ended, and Ctrl-C does not reach it."""
    arguments = [str(file), str(os.getpid())]
    if names:
        arguments.append(",".join(names))
    place = log or Path(os.devnull)
    # the child has its own
    with disk.until_written(place, lambda: place.open("ab")) as printed:
        process = processes.start(
            processes.command("ondevice.rewards.host", *arguments),
            processes.Access.REWARD,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=printed,
            bufsize=0,
            start_new_session=True,
        )
    assert process.stdin is not None
    os.set_blocking(process.stdin.fileno(), False)
    return process


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
