"""Kills work of this process at one file operation after another, in children of it. No test by
itself."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Work = Callable[[Path], None]
_CHANGES = ("os.", "shutil.", "fcntl.")


def killed_at_each(work: Work, start: Path, folder: Path, every: int) -> Iterator[Path]:
    """For each `every`-th file operation under its folder that `work` does, a copy of `start` in
    which it was killed there, until it is not reached any more. `work` is given the copy."""
    deadly = 1
    while True:
        place = folder / f"at-{deadly}"
        shutil.copytree(start, place, symlinks=True)
        code = in_a_child(work, place, deadly)
        if code == 0:
            assert deadly > every, "the hook has seen no operation"
            return
        assert code == -signal.SIGKILL, f"ended with {code} at {deadly}"
        yield place
        deadly += every


def in_a_child(work: Work, place: Path, deadly: int = 0) -> int:
    """The exit code of a child that does it; -9 where it was killed at an operation."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        _Killer(place, deadly)
        work(place)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(3)


class _Killer:
    """Ends the process at the `deadly`-th change of a file below the folder, or statement of a
    database."""

    def __init__(self, place: Path, deadly: int) -> None:
        self.place, self.deadly, self.seen = str(place), deadly, 0
        sys.addaudithook(self.hook)
        connect = sqlite3.connect

        def traced(*given: Any, **how: Any) -> sqlite3.Connection:
            connection = connect(*given, **how)
            connection.set_trace_callback(lambda statement: self.count())
            return connection

        setattr(sqlite3, "connect", traced)  # noqa: B010  # a child has this for itself

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        changes = event == "open" or event.startswith(_CHANGES)
        if changes and any(self._is_here(one) for one in arguments[:2]):
            self.count()

    def _is_here(self, argument: Any) -> bool:
        if isinstance(argument, bytes):
            argument = argument.decode(errors="replace")
        if isinstance(argument, (str, os.PathLike)):
            return str(argument).startswith(self.place)
        # a descriptor, as of fcntl.flock
        return isinstance(argument, int) and self._leads_here(argument)

    def _leads_here(self, descriptor: int) -> bool:
        try:
            return os.readlink(f"/proc/self/fd/{descriptor}").startswith(self.place)
        except OSError:
            return False

    def count(self) -> None:
        self.seen += 1
        if self.seen == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)


def files_in(folder: Path) -> dict[str, bytes]:
    """Path within the folder → content, of every file but locks."""
    found = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and not file.name.endswith("lock"):
            found[str(file.relative_to(folder))] = file.read_bytes()
    return found
