"""Runs the rows that were chosen: us and the peer in turn, as often as asked."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from job import Job
from material import prepare
from material_preference import prepare_preference
from processes import Result, Runner
from rows import Row

PREFERENCE = ("reward", "dpo", "ppo", "grpo")
ROLLOUTS = (*PREFERENCE, "sums")


class Measurement:
    """`work`: a folder for material; `model`: the folder that stands for SmolLM2-135M."""

    def __init__(
        self,
        runner: Runner,
        work: Path,
        device: str,
        backends: Sequence[str],
        small: bool,
        repeats: int,
        model: Path | None,
    ) -> None:
        self.runner, self.work, self.device, self.backends = runner, work, device, backends
        self.small, self.repeats, self.model = small, repeats, model
        # fewer cases of what is counted, where it is only to be seen that it can be
        self.dtypes = ("bfloat16",) if small else ("float32", "bfloat16")
        self._matmul: dict[tuple[str, str], float] = {}

    def job(self, row: Row, peer: bool = False) -> Job:
        """The job of one side, its material at hand."""
        job = row.job(str(self.work), self.device, self.small, peer)
        folder = self.work / f"{row.size}-{job.steps}"  # how much there is follows from the steps
        job = replace(job, work=str(folder))
        if not job.file("").exists():
            prepare(job, self.model if row.size == "smollm2" else None)
        needs_pairs = row.group in PREFERENCE
        if needs_pairs and not job.file("pairs.jsonl").exists():
            prepare_preference(job)
        return job

    def row(self, row: Row) -> dict[str, Any]:
        """The figures of a row, as speed.json keeps them."""
        ours: list[Result] = []
        peer: list[Result] = []
        for _ in range(self.repeats):
            ours.append(self._side(row, row.ours, self.job(row)))
            if row.peer is not None:
                job = self.job(row, peer=True)
                peer.append(self._side(row, row.peer.script, job, row.peer.folder))
        matmul = self._rate_of_matmul(row)
        return {
            "group": row.group,
            "title": row.title,
            "backend": row.backend,
            "peer": row.peer.name if row.peer else "",
            "ours": [_figures(row, result, matmul) for result in ours],
            "theirs": [_figures(row, result, matmul) for result in peer],
            "agreement": agreement(row, ours[0], peer[0]) if peer else "",
        }

    def _side(self, row: Row, script: str, job: Job, folder: str = "") -> Result:
        result = self.runner.run(script, job, folder)
        rate = result["tokens"] / result["wall"]
        print(
            f"{row.key}, {script}: {rate:.0f} tokens per second, {result['peak']:.0f} MB",
            file=sys.stderr,
            flush=True,
        )
        return result

    def _rate_of_matmul(self, row: Row) -> float:
        key = (row.backend, row.dtype)
        if key not in self._matmul:
            job = Job("matmul", row.size, "", *self._where(row), small=self.small)
            self._matmul[key] = float(self.runner.run("matmul", job)["rate"])
        return self._matmul[key]

    def _where(self, row: Row) -> tuple[str, str, str]:
        return row.backend, self.device, row.dtype


def _figures(row: Row, result: Result, matmul: float) -> dict[str, float]:
    figures = {
        "rate": result["tokens"] / result[row.seconds],
        "cpu_rate": result["tokens"] / result["cpu"],
        "peak": result["peak"],
        "grown": result["grown"],
    }
    if row.group not in ROLLOUTS:  # whose steps decode, score and learn
        figures["mfu"] = result["flops"] / result["wall"] / matmul
    if "device_peak" in result:
        figures["device_peak"] = result["device_peak"]
    return figures


def agreement(row: Row, ours: Result, peer: Result) -> str:
    """What says that both sides do the same work."""
    if "ids" in ours:
        if row.what == "geometric":
            return _counted(ours, peer, "tokens")
        same = sum(a == b for a, b in zip(ours["ids"], peer["ids"], strict=True))
        return f"{same} of {len(ours['ids'])} completions are the same tokens"
    if row.group in ("ppo", "grpo", "sums"):
        return _counted(ours, peer, "tokens of completions, each side's own text")
    packed = row.what in ("lora", "quantised", "vocabulary", "chats-packed")
    if packed or (row.backend == "mlx" and row.group == "dpo"):
        return _own_batches(ours, peer)
    first = list(zip(ours["losses"][:3], peer["losses"][:3], strict=True))
    said = ", ".join(f"{a:.6f} : {b:.6f}" for a, b in first)
    furthest = max(abs(a - b) for a, b in first)
    return f"losses of the first steps {said} (largest difference {furthest:.0e})"


def _own_batches(ours: Result, peer: Result) -> str:
    said = ""
    if ours.get("first") is not None and peer.get("first") is not None:
        said = f"loss of the first chats {ours['first']:.6f} : {peer['first']:.6f}; "
    return said + _counted(ours, peer, "targets, each side's own batches")


def _counted(ours: Result, peer: Result, of: str) -> str:
    return f"{ours['tokens']} : {peer['tokens']} {of}"


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Least, median, largest."""
    return min(values), statistics.median(values), max(values)
