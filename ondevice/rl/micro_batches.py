"""What PPO and GRPO share: dealing prompts, and cutting a rollout into updates of micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ondevice.common.rng import permutation
from ondevice.config.preference import RolloutConfig
from ondevice.data.completion_batches import completion_batch, group_by_length
from ondevice.data.packing import Batch
from ondevice.rl.rollout import Sampled
from ondevice.runs.context import Context

Floats = NDArray[np.floating[Any]]


def prompt_indices(count: int, step: int, rows: int, seed: int, name: str) -> list[int]:
    """Numbers of the `count` prompts of a step: every prompt once an epoch, in an order of its own
    each time.
    """
    places = range(step * count, (step + 1) * count)
    order = {
        epoch: permutation(seed, name, epoch, rows) for epoch in {place // rows for place in places}
    }
    return [int(order[place // rows][place % rows]) for place in places]


def micro_batches(
    sampled: Sequence[Sampled],
    chosen: Sequence[int],
    size: int,
    tokens: Mapping[str, Sequence[Floats]],
    start: int | None = None,
) -> Iterator[tuple[Batch, list[int]]]:
    """The `chosen` completions as batches of `size` rows, like lengths together, with the numbers
    of their rows. `tokens`: name → for every completion of the rollout one value a token; `start`
    as for `completion_batch`."""
    for group in group_by_length([sampled[i].row.length for i in chosen], size):
        rows = [chosen[i] for i in group]
        yield (
            completion_batch(
                [sampled[i].row for i in rows],
                size,
                {name: [values[i] for i in rows] for name, values in tokens.items()},
                start,
            ),
            rows,
        )


def repeat_per_token(values: Sequence[float] | Floats, sampled: Sequence[Sampled]) -> list[Floats]:
    """One value a completion, said of each of its tokens."""
    return [
        np.full(len(s.ids), value, np.float32) for value, s in zip(values, sampled, strict=True)
    ]


def length_metrics(sampled: Sequence[Sampled]) -> dict[str, float]:
    """What a step's event says of the completions."""
    lengths = np.array([len(s.ids) for s in sampled])
    return {
        "completion_length": float(lengths.mean()),
        "longest_completion": float(lengths.max()),
        "truncated": float(np.mean([not s.stopped for s in sampled])),
    }


def held_out(ctx: Context) -> dict[str, Any]:
    """What was measured of the very weights that the stage gives, by name."""
    return {
        name: value
        for name, value in (ctx.taken.figures if ctx.taken else {}).items()
        if name != "groups"
    }


def micro_batch_size(cfg: RolloutConfig, completions: int) -> int:
    """Rows of a micro-batch: no more than there are completions."""
    return min(cfg.batch_size, completions)
