"""Answers that share a prompt: a batch reads it once, and each answer sees it and itself.

All tokens of a batch stand in one row, so that everything but attention is computed of it at once:
R prompts of P places, then N answers of A places. Row by row a group of N answers would take N · (P +
A) places. Attention is computed in two parts, each without a T × T mask: the prompts as rows of
their own, and each answer's queries against the keys of its prompt and its own.

Shapes: R prompts, P places of a prompt, N answers, A places of an answer, T = R·P + N·A, H heads,
C width of a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ondevice.seam.ops import Array, Ops


@dataclass(frozen=True)
class SharedPrompts:
    """Where prompts and answers stand. `lengths` (R,) are the prompts', `of` (N,) says which of
    them an answer has."""

    prompts: tuple[int, int]
    answers: tuple[int, int]
    lengths: Array
    of: Array

    def attention(
        self, ops: Ops, q: Array, k: Array, v: Array, *, scale: float, window: int
    ) -> Array:
        """(1, H, T, C) from queries, keys and values (1, H or H_kv, T, C)."""
        read_q, written_q = self._parts(q)
        read_k, written_k = self._parts(k)
        read_v, written_v = self._parts(v)
        read = (read_q, read_k, read_v)
        written = (written_q, written_k, written_v)
        parts = attention_after_prompts(
            ops, read, written, self.lengths, self.of, scale=scale, window=window
        )
        return ops.concat([_in_one_row(part) for part in parts], 2)

    def _parts(self, x: Array) -> tuple[Array, Array]:
        """(R, H, P, C) of the prompts and (N, H, A, C) of the answers."""
        _, h, _, c = x.shape
        rows, width = self.prompts
        end = rows * width
        read = x[:, :, :end].reshape(h, rows, width, c).swapaxes(0, 1)
        written = x[:, :, end:].reshape(h, *self.answers, c).swapaxes(0, 1)
        return read, written


def attention_after_prompts(
    ops: Ops,
    read: tuple[Array, ...],
    written: tuple[Array, ...],
    lengths: Array,
    of: Array,
    *,
    scale: float,
    window: int,
) -> list[Array]:
    """(R, H, P, C) of prompts and (N, H, A, C) of answers, from queries, keys and values of both.
    Each answer sees its prompt, number `of` (N,) of them, of which `lengths` (R,) tokens are there.
    """
    _, keys, values = read
    asked, own_keys, own_values = written
    return [
        ops.attention(*read, scale=scale, window=window),
        ops.attention(
            asked,
            ops.concat([rows_of(ops, keys, of), own_keys], 2),
            ops.concat([rows_of(ops, values, of), own_values], 2),
            scale=scale,
            window=window,
            prefix=ops.take(lengths, of),
        ),
    ]


def shared_prompts(batch: Mapping[str, Array]) -> SharedPrompts | None:
    """Where prompts and answers of a batch stand; None: its rows hold whole texts."""
    if "prompt_ids" not in batch:
        return None
    rows, width = batch["prompt_ids"].shape
    answers, room = batch["ids"].shape
    return SharedPrompts(
        (rows, width), (answers, room), batch["prompt_lengths"], batch["prompt_of"]
    )


def in_one_row(ops: Ops, batch: Mapping[str, Array], name: str) -> Array:
    """(1, T) what the batch says of its prompts' tokens, then of its answers'."""
    prompts = batch[f"prompt_{name}"].reshape(1, -1)
    answers = batch[name].reshape(1, -1)
    return ops.concat([prompts, answers], 1)


def rows_of(ops: Ops, x: Array, which: Array) -> Array:
    """(N, …) the rows `which` (N,) of x (R, …)."""
    r, *rest = x.shape
    return ops.take(x.reshape(r, -1), which).reshape(which.shape[0], *rest)


def _in_one_row(x: Array) -> Array:
    """(1, H, R·P, C) from (R, H, P, C)."""
    r, h, p, c = x.shape
    return x.swapaxes(0, 1).reshape(1, h, r * p, c)
