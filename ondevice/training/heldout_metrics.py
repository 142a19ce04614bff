"""What is measured on held-out data while a stage trains, and which figure says how good the
parameters are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np

from ondevice.config.stages import TrainingConfig
from ondevice.models.tables import HasTables, with_tables
from ondevice.runs.context import Context
from ondevice.seam.ops import Array, Loss, Params


class EvalBatches(Protocol):
    """Held-out batches, the same ones at every measurement."""

    def eval_batches(
        self, limit: int, micro_batch: int | None = None
    ) -> Iterable[dict[str, np.ndarray]]: ...


@dataclass(frozen=True)
class BestMetric:
    """Which measured figure says how good the parameters are."""

    name: str = "loss"
    higher: bool = False

    def words(self) -> str:
        """The figure, in words."""
        return "held-out " + self.name.replace("_", " ")

    def than(self, score: float, best: float | None) -> bool:
        """Whether `score` is a finite number better than `best`; None: there is no best one yet."""
        if not math.isfinite(score):
            return False
        if best is None:
            return True
        if self.higher:
            return score > best
        return score < best


LOWEST_LOSS = BestMetric()


def heldout_metrics(
    network: HasTables,
    loss: Loss,
    heldout: EvalBatches,
    ctx: Context,
    cfg: TrainingConfig,
    unit: str = "tokens",
    beside: Callable[[Params], Mapping[str, np.ndarray]] | None = None,
) -> Callable[[Params], dict[str, float]]:
    """Means of the loss's metrics over held-out batches, and how many they were taken over, by the
    name of their `unit`: "tokens" that are targets, "pairs", "completions", "texts". `beside` is what all batches have
    beside their own, as it follows from the parameters."""

    def metrics(params: Params, batch: dict[str, Array]) -> dict[str, tuple[Array, Array]]:
        return loss(ctx.backend.ops, params, batch)[1]

    run = ctx.backend.inference_fn(metrics, compile=cfg.compile)

    def measure(params: Params) -> dict[str, float]:
        sums: dict[str, np.ndarray] = {}
        if beside is None:
            shared = {}
        else:
            shared = dict(beside(params))
        group = ctx.group  # each process measures some of the batches
        batches = heldout.eval_batches(cfg.eval_batches, ctx.device_batch.micro_batch)
        for batch in islice(batches, group.rank, None, group.size):
            whole = with_tables(network, ctx.backend.ops, {**batch, **shared})
            for name, pair in run(params, whole).items():
                sum_and_count = np.array([float(ctx.backend.numpy(x)) for x in pair])
                sums[name] = sums.get(name, 0.0) + sum_and_count
        figures = {"loss": 0.0}
        of_all = group.sum_figures({n: pair.tolist() for n, pair in sums.items()})
        for name, (total, count) in of_all.items():
            figures[name] = float(total / max(count, 1.0))
        counted = of_all.get("loss" if unit == "tokens" else "accuracy", (0.0, 0.0))[1]
        figures[unit] = int(counted)
        return figures

    return measure
