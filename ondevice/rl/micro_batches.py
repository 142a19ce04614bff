"""What PPO and GRPO share: dealing prompts, rows at once, and cutting a rollout into micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ondevice.common.rng import permutation
from ondevice.data.completion_batches import general_width
from ondevice.data.packing import Batch
from ondevice.data.shared_prompts import NO_SHARING, answer_batch, cut_rows
from ondevice.models.model import Model
from ondevice.rl.rollout import Sampled
from ondevice.runs.context import Context
from ondevice.runs.device_batch import choose_decode_batch
from ondevice.runs.recovery import ResultRecord

SCORED = 64  # rows that are scored at once where no micro-batch is chosen yet
Floats = NDArray[np.floating[Any]]


def prompt_indices(count: int, step: int, rows: int, seed: int, name: str) -> list[int]:
    """Numbers of the `count` prompts of a step: every prompt once an epoch, in an order of its own
    each time.
    """
    orders: dict[int, NDArray[np.int64]] = {}
    indices = []
    for place in range(step * count, (step + 1) * count):
        epoch = place // rows
        if epoch not in orders:
            orders[epoch] = permutation(seed, name, epoch, rows)
        indices.append(int(orders[epoch][place % rows]))
    return indices


def micro_batches(
    sampled: Sequence[Sampled],
    chosen: Sequence[int],
    size: int,
    tokens: Mapping[str, Sequence[Floats]],
    start: int | None = None,
    prompt_rows: int = NO_SHARING,
    width_of: Callable[[int], int] = general_width,
) -> Iterator[tuple[Batch, list[int]]]:
    """The `chosen` completions as batches of `size` rows, as `cut_rows` cuts them, with the numbers
    of their rows. `tokens`: name → for every completion of the rollout one value per token; `start`,
    `prompt_rows` and `width_of` as for `answer_batch`."""
    if not chosen:
        return
    for group in cut_rows([sampled[i].row for i in chosen], size, start, prompt_rows):
        rows = [chosen[i] for i in group]
        own_tokens = {}
        for name, values in tokens.items():
            own_tokens[name] = [values[i] for i in rows]
        completions = [sampled[i].row for i in rows]
        batch = answer_batch(completions, size, own_tokens, start, prompt_rows, width_of=width_of)
        yield batch, rows


def repeat_per_token(values: Sequence[float] | Floats, sampled: Sequence[Sampled]) -> list[Floats]:
    """Repeats one value per completion over its tokens."""
    repeated: list[Floats] = []
    for value, one in zip(values, sampled, strict=True):
        repeated.append(np.full(len(one.ids), value, np.float32))
    return repeated


def length_metrics(sampled: Sequence[Sampled]) -> dict[str, float]:
    """What a step's event says of the completions."""
    lengths = np.array([len(one.ids) for one in sampled])
    return {
        "completion_length": float(lengths.mean()),
        "longest_completion": float(lengths.max()),
        "truncated": float(np.mean([not one.stopped for one in sampled])),
    }


def held_out(taken: ResultRecord | None) -> dict[str, Any]:
    """What was measured of the very weights that the stage gives, by name."""
    if not taken:
        return {}
    figures = dict(taken.figures)
    figures.pop("groups", None)  # their place in a file
    return figures


def scoring_batch(ctx: Context) -> int:
    """How many rows are scored at once: a micro-batch; before one is chosen no more than are
    written at once, so that halving these where memory runs out helps here too.
    """
    now = ctx.device_batch
    if now.micro_batch is not None:
        return now.micro_batch
    return min(SCORED, now.decode_batch or SCORED)


def group_scoring_batch(ctx: Context, rows: int) -> int:
    """The same where rows come in groups that share a prompt, of `rows` in all: two micro-batches, so
    that a prompt is read half as often. Nothing is kept for a gradient: memory suffices."""
    size = scoring_batch(ctx)
    if ctx.device_batch.micro_batch is not None:
        size *= 2
    return min(size, rows)


def decode_batch(ctx: Context, model: Model, context: int) -> int:
    """How many rows of `context` tokens are written at once: what is in force, else what suits the
    machine, which then is in force.
    """
    now = ctx.device_batch
    if now.decode_batch is None:
        now.decode_batch = ctx.group.least(choose_decode_batch(model, ctx.backend, context))
    return now.decode_batch
