"""Calls reward functions in a process of their own (host.py): what hangs is killed, what crashes is
started again.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ondevice.common import disk, processes
from ondevice.common.bounded import LARGEST
from ondevice.common.errors import UserError
from ondevice.common.json_files import parse_json
from ondevice.common.line_process import CallFailed, LineProcess
from ondevice.common.sanitize import sanitize

START_S = 120.0
"""How long a file may take to be imported: libraries that it imports are slow on a cold disk."""
LOG = 16 << 20  # bytes of what a reward prints


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
        self._process: LineProcess | None = None

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
        if self._process is not None:
            self._process.close()
        self._process = None

    def _exchange(self, request: bytes, timeout: float) -> dict[str, Any]:
        """Sends a line and waits for one. Whatever else happens, the process is ended: its pipes
        would be out of step."""
        assert self._process is not None
        try:
            line = self._process.exchange(request, timeout, self._bound_log)
            reply: dict[str, Any] = parse_json(line)
            return reply
        except ValueError as error:
            self.close()
            raise CallFailed("its process wrote what is not a reply") from error
        except BaseException:
            self.close()
            raise

    def _bound_log(self) -> None:
        """Keeps the beginning of what a reward prints without end: what went wrong first."""
        if self.log is not None and self.log.stat().st_size > LOG:
            os.truncate(self.log, LOG // 2)  # the child appends: it goes on from there


def _spawn(file: Path, names: Sequence[str], log: Path | None) -> LineProcess:
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
    return LineProcess(process, LARGEST)
