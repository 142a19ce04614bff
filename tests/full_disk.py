"""A disk that gets full at the n-th operation that needs room, for processes that the tests start.
No test by itself.

`full_disk.c` is loaded before libc, so that it meets writes of Python, Rust, C++ and SQLite alike.
"""

from __future__ import annotations

import mmap
import os
import shutil
import socket
import struct
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest

from warm_processes import SERVER, WarmProcess

SOURCE = Path(__file__).with_name("full_disk.c")
LOOK_S = 0.05
CODE = f"""
import sys
from ondevice import cli
from ondevice.runs import disk_pause
disk_pause.LOOK_S, disk_pause.STOP_LOOK_S = {LOOK_S}, 0.01
code = cli.main(sys.argv[1:])
cli._close_streams()
sys.exit(code)
"""
needs_compiler = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("cc") is None,
    reason="a full disk is made by LD_PRELOAD, which needs Linux and a C compiler",
)


class FullDisk:
    """What is below `root` in processes that this starts. `first`: the number of the operation that
    is refused, 0: none; `end`: the first that is not refused any more, 0: all are from there on."""

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.realpath(root))
        self.file = self.root.parent / f"{self.root.name}.counters"
        self.file.write_bytes(bytes(4096))
        with self.file.open("r+b") as opened:
            self._counters = mmap.mmap(opened.fileno(), 4096)
        environment = {
            **os.environ,
            "LD_PRELOAD": " ".join(filter(None, (library(), os.environ.get("LD_PRELOAD", "")))),
            "FULL_ROOT": str(self.root),
            "FULL_FILE": str(self.file),
            "TMPDIR": str(self.root / "tmp"),
            "HF_HOME": str(self.root / "hf"),
            "ONDEVICE_CACHE": str(self.root.parent / "calibration"),
        }
        self.environment = environment
        self._server, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, str(SERVER), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=environment,
            )

    def close(self) -> None:
        self._server.close()
        self._process.wait()

    @property
    def operations(self) -> int:
        return int(self._read(0))

    @property
    def refused(self) -> int:
        return int(self._read(3))

    def fill(self, first: int, end: int = 0) -> None:
        """Counts from 0 again."""
        self._counters[:32] = struct.pack("4q", 0, first, end, 0)

    def make_room(self) -> None:
        self._counters[8:16] = struct.pack("q", 0)

    def _read(self, number: int) -> int:
        return int(struct.unpack_from("q", self._counters, 8 * number)[0])

    def start(self, *words: str) -> WarmProcess:
        """`ondevice WORDS` in the folder."""
        (self.root / "tmp").mkdir(exist_ok=True)
        return WarmProcess(
            ("-c", CODE, *words), self._server, self.environment, folder=str(self.root)
        )

    def run(self, *words: str) -> tuple[int, str, str]:
        """(exit code, stdout, stderr)"""
        process = self.start(*words)
        out, err = process.communicate(timeout=300)
        assert process.returncode is not None
        return process.returncode, out, err


@lru_cache(maxsize=1)
def library() -> str:
    """The library, compiled once."""
    place = Path(os.environ.get("TMPDIR", "/tmp")) / f"full_disk-{os.getpid()}.so"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-O1", "-o", str(place), str(SOURCE), "-ldl"], check=True
    )
    return str(place)
