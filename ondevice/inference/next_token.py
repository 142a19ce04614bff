"""Which token comes next: how a distribution is changed before it is drawn from, and the draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ondevice.config.drawing import check_temperature
from ondevice.seam.ops import Array, Ops


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy; top_k 0 and top_p 1 keep the whole distribution. A
    repetition_penalty (Keskar 2019) divides the logits of tokens that stand in the prompt or the
    answer where they are above 0, and multiplies the others; 1 changes nothing. Raises UserError
    for a temperature that cannot be drawn at."""

    max_new_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        check_temperature(self.temperature)


def draw(
    ops: Ops, logits: Array, sampling: Sampling, u: Array, seen: Sequence[Array] = ()
) -> Array:
    """(B,) next tokens from logits (B, V) and uniforms (B,), by the inverse of the cumulative
    distribution; `seen`: (B, V) tables, 1 where a row has a token already."""
    for table in seen:
        logits = _penalised(ops, logits, table, sampling.repetition_penalty)
    if not sampling.temperature:
        return ops.cast(ops.argmax(logits, -1), "int32")
    p = ops.softmax(logits / sampling.temperature, -1)
    v = p.shape[-1]
    if 0 < sampling.top_k < v:
        p = _top_k(ops, p, sampling.top_k)
    if sampling.top_p < 1:
        p = _top_p(ops, p, sampling.top_p)
    heap = ops.cumsum(p, -1)
    below = ops.cast(heap <= u.reshape(-1, 1) * heap[:, v - 1 : v], "int32")
    return ops.cast(ops.minimum(ops.sum(below, -1), v - 1), "int32")


def _penalised(ops: Ops, logits: Array, table: Array, penalty: float) -> Array:
    """Logits of tokens in the table made smaller (Keskar 2019)."""
    smaller = ops.where(logits < 0, logits * penalty, logits / penalty)
    return ops.where(table > 0, smaller, logits)


def _top_k(ops: Ops, p: Array, k: int) -> Array:
    """(B, V) probabilities, 0 except for the k largest of each row."""
    least = -ops.max(-ops.largest(p, k), -1, True)
    return ops.where(p < least, 0.0, p)


def _top_p(ops: Ops, p: Array, share: float) -> Array:
    """(B, V) probabilities, 0 except for the fewest of each row that together are `share`."""
    v = p.shape[-1]
    p = p / ops.sum(p, -1, True)
    rising = ops.sort(p, -1)
    kept = ops.where(ops.cumsum(rising, -1) > 1 - share, -rising, -2.0)
    least = -ops.max(kept, -1, True)
    # the likeliest stays, also where rounding leaves no sum above 1 - share
    least = ops.minimum(least, rising[:, v - 1 : v])
    return ops.where(p < least, 0.0, p)
