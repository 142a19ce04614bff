"""Processes of Python that begin with torch imported: where a process is there to be killed or
stopped, and its seconds of imports prove nothing.

On Linux they are forked from one that has done nothing but import (`warm_server`). Elsewhere, where
not every library may be forked, they are plain processes, which come to the same a little later.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

SERVER = Path(__file__).with_name("warm_server.py")


class WarmProcess:
    """As much of `subprocess.Popen[str]` as these tests ask for."""

    def __init__(
        self,
        words: tuple[str, ...],
        door: socket.socket | None = None,
        environment: dict[str, str] | None = None,
        folder: str = "",
    ) -> None:
        self.returncode: int | None = None
        self.printed = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115
        self.status, theirs = socket.socketpair()
        request = {
            "words": words,
            "environment": environment or dict(os.environ),
            "folder": folder or os.getcwd(),
        }
        with theirs, open(os.devnull) as nothing:
            handles = [end.fileno() for end in (nothing, *self.printed, theirs)]
            socket.send_fds(door or server(), [json.dumps(request).encode()], handles)
        self.pid = self._told()

    def _told(self) -> int:
        """The next number that the server tells."""
        line = b""
        while not line.endswith(b"\n"):
            piece = self.status.recv(1)
            assert piece, "the server of warm processes has ended"
            line += piece
        return int(line)

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self.status], [], [], 0)[0]:
            self.returncode = self._told()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        if self.returncode is None:
            if not select.select([self.status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("a warm process", timeout or 0.0)
            self.returncode = self._told()
        for file in self.printed:
            file.seek(0)
        out, err = (file.read() for file in self.printed)
        return out, err

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@lru_cache(maxsize=1)
def server() -> socket.socket:
    """The way to a process that has imported and forks. It ends with this one, whose end closes."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        subprocess.Popen(
            [sys.executable, str(SERVER), str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
    return ours


Process = subprocess.Popen[str] | WarmProcess


def start(*words: str, torch: bool = True) -> Process:
    """`python WORDS`: -m and a module, or -c and code, and their arguments. Warm for what takes
    torch.
    """
    if torch and sys.platform == "linux":
        return WarmProcess(words)
    return subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def killed_at_first_save(stage: str, settings: dict[str, Any]) -> None:
    """A stage in a process that is killed as soon as a checkpoint stands."""
    code = (
        "import json, os, sys; import ondevice as od; from ondevice.runs import checkpoint\n"
        "save = checkpoint.save\n"
        "def killed(*a, **k):\n    save(*a, **k); os.kill(os.getpid(), 9)\n"
        "checkpoint.save = killed; getattr(od, sys.argv[1])(**json.loads(sys.argv[2]))"
    )
    process = start("-c", code, stage, json.dumps(settings), torch=settings["backend"] == "torch")
    _, stderr = process.communicate()
    assert process.returncode == -signal.SIGKILL, stderr
