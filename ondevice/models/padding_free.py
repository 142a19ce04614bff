"""Attention where a batch is one row of tokens without padding (`data/padding_free.py`).

Shapes: T tokens, N answers or whole rows of A places, R prompts of P places, H heads, C width of a
head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ondevice.models.shared_prompts import attention_after_prompts
from ondevice.seam.ops import Array, Ops


@dataclass(frozen=True)
class PaddingFree:
    """Which tokens rows have: `places` (N, A) and, where prompts stand once, `prompts` (R, P),
    `lengths` (R,) and `of` (N,), the prompt of each answer. `slots` (T,): where each token stands
    among the places of all prompts and then of all rows.
    """

    places: Array
    slots: Array
    prompts: Array | None = None
    lengths: Array | None = None
    of: Array | None = None

    def attention(
        self, ops: Ops, q: Array, k: Array, v: Array, *, scale: float, window: int
    ) -> Array:
        """(1, H, T, C) from queries, keys and values (1, H or H_kv, T, C)."""
        asked, keys, values = (_tokens(x) for x in (q, k, v))
        written = tuple(_rows(ops, x, self.places) for x in (asked, keys, values))
        parts: list[Array] = []
        if self.prompts is None:
            parts.append(ops.attention(*written, scale=scale, window=window))
        else:
            assert self.lengths is not None and self.of is not None
            prompts = self.prompts
            read = tuple(_rows(ops, x, prompts) for x in (asked, keys, values))
            parts += attention_after_prompts(
                ops, read, written, self.lengths, self.of, scale=scale, window=window
            )
        _, h, t, c = q.shape
        flat = [x.swapaxes(1, 2).reshape(-1, h * c) for x in parts]
        together = flat[0] if len(flat) == 1 else ops.concat(flat, 0)
        return ops.take(together, self.slots).reshape(1, t, h, c).swapaxes(1, 2)


def padding_free(batch: Mapping[str, Array]) -> PaddingFree | None:
    """Where the tokens of a batch stand; None: its rows are padded."""
    if "slots" not in batch:
        return None
    if "prompt_places" not in batch:
        return PaddingFree(batch["places"], batch["slots"])
    return PaddingFree(
        batch["places"],
        batch["slots"],
        batch["prompt_places"],
        batch["prompt_lengths"],
        batch["prompt_of"],
    )


def _tokens(x: Array) -> Array:
    """(T, H, C) of x (1, H, T, C)."""
    _, h, t, c = x.shape
    return x.swapaxes(1, 2).reshape(t, h, c)


def _rows(ops: Ops, x: Array, places: Array) -> Array:
    """(N, H, A, C) the tokens of x (T, H, C) at `places` (N, A)."""
    t, h, c = x.shape
    n, a = places.shape
    found = ops.take(x.reshape(t, h * c), places.reshape(-1))
    return found.reshape(n, a, h, c).swapaxes(1, 2)
