"""Asks processes of their own (child.py) for the text of documents: several at once, each file within
a limit of time.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ondevice.common import processes
from ondevice.common.json_files import parse_json
from ondevice.common.line_process import CallFailed, LineProcess
from ondevice.data.extraction.child import TOO_MUCH

SECONDS = 120.0
"""By the clock, after which a file is given up."""
MEMORY = 2 << 30
"""Bytes that reading one file may take."""
_MOST_FILES = 200  # that one process reads: what libraries keep of them stays bounded
_REPLY = 1 << 20


class Asker:
    """One process that reads documents, started at the first request and again after a failure."""

    def __init__(self, seconds: float = SECONDS, memory: int = MEMORY) -> None:
        self.seconds = seconds
        self.memory = memory
        self._process: LineProcess | None = None
        self._files = 0

    def __enter__(self) -> Asker:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def text_of(self, file: Path, kind: str, out: Path) -> Mapping[str, Any]:
        """Writes the text of a file to `out`. Its account as child.py gives it, or {"reason"}."""
        fresh = self._process is None
        found = self._ask(file, kind, out)
        if found.get("reason") == TOO_MUCH and not fresh:
            found = self._ask(file, kind, out)  # earlier files may have left little of it
        return found

    def close(self) -> None:
        if self._process is not None:
            self._process.close()
        self._process = None
        self._files = 0

    def _ask(self, file: Path, kind: str, out: Path) -> Mapping[str, Any]:
        if self._files >= _MOST_FILES:
            self.close()
        if self._process is None:
            self._process = _start(self.memory)
        request = {"file": str(file.absolute()), "kind": kind, "out": str(out.absolute())}
        self._files += 1
        try:
            line = self._process.exchange(json.dumps(request).encode() + b"\n", self.seconds)
            found: Mapping[str, Any] = parse_json(line)
        except CallFailed as error:
            self.close()
            if "within" in str(error):
                return {"reason": f"was given up after {self.seconds:g} seconds"}
            return {"reason": f"ends its reader: {error}"}
        except BaseException:
            self.close()
            raise
        if found.get("reason") == TOO_MUCH:
            self.close()
        return found


def _start(memory: int) -> LineProcess:
    process = processes.start(
        processes.command("ondevice.data.extraction.child", str(os.getpid()), str(memory)),
        processes.Access.REWARD,  # no tokens, and nothing of a person's own
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        start_new_session=True,
    )
    return LineProcess(process, _REPLY)


class Askers:
    """As many of them as threads ask at once, each for itself; a context manager."""

    def __init__(self) -> None:
        self._here = threading.local()
        self._all: list[Asker] = []

    def __enter__(self) -> Askers:
        return self

    def __exit__(self, *raised: object) -> None:
        for asker in self._all:
            with suppress(OSError):
                asker.close()

    def mine(self) -> Asker:
        """That of the thread that calls."""
        if not hasattr(self._here, "asker"):
            self._here.asker = Asker()
            self._all.append(self._here.asker)
        asker: Asker = self._here.asker
        return asker
