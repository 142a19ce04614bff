"""Several processes that train together, as torchrun and mlx.launch start them, without these: what
they set in the environment is set here. No test by itself.

A launch costs seconds of processor time, so that one does many jobs: a job is a function of the
Python API with its fields. What became of each is returned, process by process.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

TIMEOUT = float(os.environ.get("MANY_TIMEOUT", "180"))  # seconds after which a launch has failed
WORKER = Path(__file__).with_name("many_worker.py")


def free_ports(count: int) -> list[int]:
    """Ports on the loopback that are free now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def free_of(*ports: int) -> list[int]:
    """Those of these ports on the loopback that are free now."""
    free = []
    for port in ports:
        with socket.socket() as one:
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
            free.append(port)
    return free


def environments(
    backend: str, size: int, folder: Path, hosts: Sequence[str] = ()
) -> list[dict[str, str]]:
    """What a launcher would give each of `size` processes, on these addresses."""
    hosts = hosts or ["127.0.0.1"] * size
    ports = free_ports(size)
    if backend == "torch":
        shared = {"MASTER_ADDR": hosts[0], "MASTER_PORT": str(ports[0])}
        shared |= {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
        return [{**shared, "RANK": str(r), "LOCAL_RANK": str(r)} for r in range(size)]
    file = folder / "hosts.json"
    file.write_text(
        json.dumps([[f"{host}:{port}"] for host, port in zip(hosts, ports, strict=True)])
    )
    return [{"MLX_HOSTFILE": str(file), "MLX_RANK": str(r)} for r in range(size)]


class Launch:
    """`size` processes at work on `jobs`, each (function of the Python API, fields)."""

    def __init__(
        self,
        backend: str,
        size: int,
        jobs: Sequence[tuple[str, Mapping[str, Any]]],
        folder: Path,
        *,
        own: Mapping[int, Mapping[str, str]] | None = None,
        hosts: Sequence[str] = (),
        within: Sequence[Sequence[str]] = (),
    ) -> None:
        """`own`: environment of some of them; `hosts`: their addresses; `within`: what starts each."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        (folder / "jobs.json").write_text(json.dumps(jobs))
        self.processes = []
        for rank, env in enumerate(environments(backend, size, folder, hosts)):
            words = [
                *(within[rank] if within else ()),
                sys.executable,
                str(WORKER),
                str(folder),
                str(rank),
            ]
            with (folder / f"out-{rank}").open("wb") as out:
                self.processes.append(
                    subprocess.Popen(
                        words,
                        stdout=out,
                        stderr=subprocess.STDOUT,
                        env={**os.environ, **env, **(own or {}).get(rank, {})},
                    )
                )

    def wait(self) -> list[list[dict[str, Any]]]:
        """What became of each job, for each process: {"result": …} or {"error": …, "kind": …}."""
        end = time.monotonic() + TIMEOUT
        try:
            for process in self.processes:
                process.wait(max(0.1, end - time.monotonic()))
        finally:
            for process in self.processes:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        return [self.outcome(rank) for rank in range(len(self.processes))]

    def outcome(self, rank: int) -> list[dict[str, Any]]:
        file = self.folder / f"outcome-{rank}.json"
        return json.loads(file.read_text()) if file.is_file() else []

    def shown(self, rank: int) -> str:
        """What a process has written to its terminal."""
        return (self.folder / f"out-{rank}").read_text()

    def when(self, ready: Callable[[], bool]) -> None:
        """Waits for something that the processes are to bring about."""
        end = time.monotonic() + TIMEOUT
        while not ready():
            assert time.monotonic() < end, [self.shown(r) for r in range(len(self.processes))]
            assert all(process.poll() is None for process in self.processes), self.shown(0)
            time.sleep(0.02)

    def signal(self, rank: int, number: signal.Signals) -> None:
        self.processes[rank].send_signal(number)


def launch(
    backend: str,
    size: int,
    jobs: Sequence[tuple[str, Mapping[str, Any]]],
    folder: Path,
    **how: Any,
) -> Launch:
    """The same, once all is done; each process has to have ended well."""
    started = Launch(backend, size, jobs, folder, **how)
    for rank, done in enumerate(started.wait()):
        for (name, _), one in zip(jobs, done, strict=True):
            assert "error" not in one, (rank, name, one, started.shown(rank))
    return started
