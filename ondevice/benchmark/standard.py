"""`ondevice bench`: the standard cases on this machine, and the block to paste."""

from __future__ import annotations

import os
import platform
import statistics
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from ondevice.benchmark.cases import Case, cases, random_model
from ondevice.common.clock import ticks
from ondevice.common.distribution import own_version
from ondevice.common.physical_memory import physical_memory
from ondevice.common.processor import processor_name
from ondevice.config.benchmark import BenchConfig
from ondevice.seam.protocols import Backend
from ondevice.seam.select import load_backend

_GROWTH = 4  # rows are raised by this factor while a step takes a small part of the case's time
_LEAST_RUNS = 2
_MOST_RUNS = 20


def bench(cfg: BenchConfig, tell: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Times a step of every stage. `tell` hears each figure as it comes.

    Returns {"machine", "sizes": {size: [{"stage", "what", "rows", "tokens_per_second", "spread",
    "runs"}]}, "peak_bytes"}; `spread` is (slowest, fastest), in tokens per second. Raises UserError
    for a device that is not there.
    """
    backend = load_backend(cfg.backend, cfg.device, cfg.dtype)
    say = tell or _to_stderr
    found: dict[str, list[dict[str, Any]]] = {}
    seconds = cfg.seconds / (8 * len(cfg.sizes))
    for size in cfg.sizes:
        found[size] = []
        model = random_model(size, backend)
        for case in cases(model, backend):
            measured = measure(case, backend, seconds)
            found[size].append(measured)
            say(f"{size} {case.stage} ({case.what}): {measured['tokens_per_second']:,.0f} tokens/s")
        del model
        backend.free_memory()
    return {
        "machine": machine(backend),
        "sizes": found,
        "peak_bytes": backend.memory().peak,
    }


def measure(case: Case, backend: Backend, seconds: float) -> dict[str, Any]:
    """The case's tokens per second, with as many rows at once as leave time for some steps."""
    began = ticks()
    rows = 1
    last = _timed(case, rows, backend)  # what is compiled is compiled here
    while rows < case.most_rows and last.seconds * _GROWTH * 3 < seconds - (ticks() - began):
        rows = min(case.most_rows, rows * _GROWTH)
        last = _timed(case, rows, backend)
    rates: list[float] = []
    while len(rates) < _LEAST_RUNS or (
        len(rates) < _MOST_RUNS and ticks() - began + last.seconds < seconds
    ):
        last = _timed(case, rows, backend)
        rates.append(last.tokens / last.seconds)
    return {
        "stage": case.stage,
        "what": case.what,
        "rows": rows,
        "tokens_per_second": statistics.median(rates),
        "spread": [min(rates), max(rates)],
        "runs": len(rates),
    }


class _Timed(NamedTuple):
    tokens: int
    seconds: float


def _timed(case: Case, rows: int, backend: Backend) -> _Timed:
    began = ticks()
    tokens = case.work(rows)
    backend.sync()
    return _Timed(tokens, max(ticks() - began, 1e-9))


def machine(backend: Backend) -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "processor": processor_name(),
        "device": backend.device_name() or backend.device,
        "cores": os.cpu_count(),
        "memory": physical_memory(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "ondevice": own_version(),
        "backend": backend.name,
        "dtype": backend.dtype,
        **backend.versions(),
    }


def render(result: dict[str, Any]) -> str:
    """The block to paste: Markdown, a table for each size."""
    about = result["machine"]
    memory = f"{about['memory'] / 2**30:.0f} GB" if about["memory"] else "memory unknown"
    versions = f"{about['backend']} {about.get(about['backend'], '')}"
    lines = [
        f"**{about['processor']}**, {about['cores']} cores, {memory}, {about['system']}  ",
        f"ondevice {about['ondevice']}, {versions} on {about['device']} in {about['dtype']}, "
        f"Python {about['python']}; peak {result['peak_bytes'] / 2**30:.1f} GB",
    ]
    for size, rows in result["sizes"].items():
        lines += [
            "",
            f"| {size} | rows at once | tokens/s | slowest to fastest |",
            "|---|---|---|---|",
        ]
        for row in rows:
            low, high = row["spread"]
            lines.append(
                f"| {row['stage']}: {row['what']} | {row['rows']} | {row['tokens_per_second']:,.0f} "
                f"| {low:,.0f} to {high:,.0f} |"
            )
    return "\n".join(lines)


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
