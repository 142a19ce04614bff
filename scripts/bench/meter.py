"""What a process measures of itself: seconds, tokens, losses, memory."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from job import Job

MARK = "BENCH "  # a result's line begins so; whatever else a library prints is passed over


def peak_rss() -> float:
    """The process's largest resident set so far, in MB.

    On Linux getrusage counts from before the program was started: what the process that started it
    held is the least that it ever says. The kernel's own mark of the program's memory does not.
    """
    status = Path("/proc/self/status")
    if status.exists():
        marks = (line.split() for line in status.read_text().splitlines())
        return next(int(mark[1]) for mark in marks if mark[0] == "VmHWM:") * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        1e6 if sys.platform == "darwin" else 1e6 / 1024
    )


def resident() -> float:
    """What the process holds now, in MB; its peak where the system does not tell."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return peak_rss()
    return int(statm.read_text().split()[1]) * resource.getpagesize() / 1e6


def print_result(**result: Any) -> None:
    print(MARK + json.dumps(result), flush=True)


def device_peak(job: Job) -> dict[str, float]:
    """The most that the array library has held on its device, in MB; empty where it does not count
    (torch on a CPU)."""
    if job.backend == "mlx":
        import mlx.core as mx

        return {"device_peak": mx.get_peak_memory() / 1e6}
    import torch

    name = torch_device(job)
    if name == "cuda":
        return {"device_peak": torch.cuda.max_memory_allocated() / 1e6}
    if name == "mps":
        return {"device_peak": torch.mps.driver_allocated_memory() / 1e6}
    return {}


def torch_device(job: Job) -> str:
    """The device of a peer on torch: the one that our backend takes for the same `--device`."""
    import torch

    if job.device == "cpu":
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def mlx_device(job: Job) -> str:
    """The device of a peer on MLX: the one that our backend takes for the same `--device`."""
    import mlx.core as mx

    return "gpu" if job.device != "cpu" and mx.is_available(mx.gpu) else "cpu"


def use_mlx_device(job: Job) -> None:
    import mlx.core as mx

    mx.set_default_device(mx.gpu if mlx_device(job) == "gpu" else mx.cpu)


def device_of(job: Job) -> str:
    return mlx_device(job) if job.backend == "mlx" else torch_device(job)


def wait_for_device(job: Job) -> None:
    """Until the device has done what it was given, so that a clock may be read."""
    if job.backend == "mlx":
        import mlx.core as mx

        mx.synchronize()
        return
    import torch

    name = torch_device(job)
    if name == "cuda":
        torch.cuda.synchronize()
    elif name == "mps":
        torch.mps.synchronize()


@dataclass
class Meter:
    """One process's measurements: CPU seconds of all threads, wall seconds, useful tokens, losses."""

    job: Job
    before: float = field(default_factory=resident)
    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    peak: float = 0.0
    # wall seconds so far, of what is timed by itself
    parts: dict[str, float] = field(default_factory=dict)
    parts_at: list[dict[str, float]] = field(default_factory=list)  # the same after each step

    def start(self) -> None:
        """Just before training: what was read and imported by now is not the training's."""
        self.before = resident()

    def mark(self) -> None:
        """At the end of each step."""
        wait_for_device(self.job)
        self.cpu.append(time.process_time())
        self.wall.append(time.perf_counter())
        self.parts_at.append(dict(self.parts))
        self.peak = peak_rss()

    def timed(self, part: str, fn: Callable[..., Any]) -> Callable[..., Any]:
        """`fn`, its seconds added to a part of the step."""

        def run(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            out = fn(*args, **kwargs)
            wait_for_device(self.job)
            self.parts[part] = self.parts.get(part, 0.0) + time.perf_counter() - began
            return out

        return run

    def report(self, **more: Any) -> None:
        """Prints the result. `tokens` has one entry per step, in the order of the steps; later ones
        are ignored.
        """
        first = self.job.skipped
        steps = len(self.cpu) - first
        useful = sum(self.tokens[first : len(self.cpu)])
        parts = {}
        for name, total in self.parts_at[-1].items():
            parts[name] = (total - self.parts_at[first - 1].get(name, 0.0)) / steps
        wall = self.wall[-1] - self.wall[first - 1]
        rollout = sum(parts.get(name, 0.0) for name in ("generation", "rewards"))
        print_result(
            **{
                "tokens": useful,
                "cpu": self.cpu[-1] - self.cpu[first - 1],
                "wall": wall,
                "update": (wall / steps - rollout) * steps,
                "peak": self.peak,
                "grown": self.peak - self.before,
                "losses": self.losses,
                "parts": parts,
                "flops": 6 * self.job.shape.parameters * useful,
                **device_peak(self.job),
                **more,
            }
        )

    def rounds(self, run: Callable[[], list[list[int]]], count: int = 3) -> None:
        """Decodes once unmeasured, then `count` times; prints the median round and its ids."""
        run()
        self.start()
        measured = []
        for _ in range(count):
            cpu, wall = time.process_time(), time.perf_counter()
            ids = run()
            wait_for_device(self.job)
            seconds = (time.perf_counter() - wall, time.process_time() - cpu)
            measured.append((*seconds, sum(map(len, ids))))
        wall, cpu, tokens = sorted(measured, key=lambda m: m[0] / m[2])[count // 2]
        peak = peak_rss()
        print_result(
            tokens=tokens,
            cpu=cpu,
            wall=wall,
            peak=peak,
            grown=peak - self.before,
            ids=ids,
            flops=2 * self.job.shape.parameters * tokens,
            **device_peak(self.job),
        )
