"""Attention where a batch is one row of tokens without padding (`data/padding_free.py`).

Shapes: T tokens, N answers or whole rows of A places, R prompts of P places, H heads, C width of a
head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        shapes = [self.places.shape]
        tables = [self.places.reshape(-1)]
        if self.prompts is not None:
            shapes.insert(0, self.prompts.shape)
            tables.insert(0, self.prompts.reshape(-1))
        asked, keys, values = (self._rows(ops, x, tables, shapes) for x in (q, k, v))
        written = (asked[-1], keys[-1], values[-1])
        if self.prompts is None:
            parts = [ops.attention(*written, scale=scale, window=window)]
        else:
            assert self.lengths is not None and self.of is not None
            read = (asked[0], keys[0], values[0])
            parts = attention_after_prompts(
                ops, read, written, self.lengths, self.of, scale=scale, window=window
            )
        _, h, t, c = q.shape
        flat = [x.swapaxes(1, 2).reshape(-1, h * c) for x in parts]
        return ops.from_rows(flat, tables, self.slots).reshape(1, t, h, c).swapaxes(1, 2)

    def _rows(
        self, ops: Ops, x: Array, tables: Sequence[Array], shapes: Sequence[tuple[int, ...]]
    ) -> list[Array]:
        """(N, H, A, C) for each table of tokens (N, A) from x (1, H, T, C)."""
        _, h, t, c = x.shape
        found = ops.to_rows(x.swapaxes(1, 2).reshape(t, h * c), tables, self.slots)
        rows: list[Array] = []
        for part, (n, a) in zip(found, shapes, strict=True):
            rows.append(part.reshape(n, a, h, c).swapaxes(1, 2))
        return rows


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
