"""Prompts with completions as batches: every token of a completion is a target, its stop token included.

Shapes: R rows of a batch, T tokens of a row, K targets, padded. Row r reads prompt and completion but for the last
token; rows are padded at the end, where causal attention cannot reach.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ondevice.data.packing import Batch, bucket, eighths, pad_targets

Ids = Sequence[int] | NDArray[np.int32]


class Row(NamedTuple):
    """Token ids of a prompt and of its completion; neither is empty."""

    prompt: Ids
    completion: Ids

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.completion)


def completion_batch(rows: Sequence[Row], size: int,
                     tokens: Mapping[str, Sequence[NDArray[Any]]] | None = None) -> Batch:
    """A batch of `size` ≥ len(rows) rows, those added empty: ids, positions (R, T), targets, index, weights (K,),
    member (R, K). `tokens` are further values, one array a row with one value a token of its completion; they come out
    as (K,) under their names, 0 where padded."""
    width = bucket(max(row.length for row in rows) - 1, finer=2)
    ids = np.zeros((size, width), np.int32)
    targets, index = [], []
    for r, (prompt, completion) in enumerate(rows):
        text = np.concatenate([prompt, completion]).astype(np.int32)
        ids[r, :len(text) - 1] = text[:-1]
        targets.append(text[len(prompt):])
        index.append(np.arange(len(prompt) - 1, len(text) - 1, dtype=np.int32) + r * width)
    counts = np.array([len(t) for t in targets])
    total = int(counts.sum())
    room = eighths(total, size * width)
    batch: Batch = {"ids": ids, "positions": _positions(size, width)}
    batch |= pad_targets(np.concatenate(targets), np.concatenate(index), room)
    batch["member"] = np.zeros((size, room), np.float32)
    batch["member"][np.repeat(np.arange(len(rows)), counts), np.arange(total)] = 1.0
    for name, values in (tokens or {}).items():
        batch[name] = np.zeros(room, np.float32)
        batch[name][:total] = np.concatenate(list(values))
    return batch


def text_batch(rows: Sequence[Ids], size: int, reads: str = "last") -> Batch:
    """Whole texts: ids, positions (R, T) and `read` (R,), the flat place of each text's `first` or `last` token. Who
    reads the first sees what follows it, so segments (R, T) say where a text ends and padding begins."""
    width = bucket(max(len(row) for row in rows), finer=2)
    ids = np.zeros((size, width), np.int32)
    for r, row in enumerate(rows):
        ids[r, :len(row)] = row
    batch: Batch = {"ids": ids, "positions": _positions(size, width)}
    last = np.array([len(row) - 1 for row in rows] + [0] * (size - len(rows)))
    if reads == "first":
        batch["segments"] = (batch["positions"] <= last[:, None]).astype(np.int32)
        batch["positions"] = batch["positions"] * batch["segments"]  # padding may stand beyond the last position
        last = last * 0
    return {**batch, "read": (np.arange(size) * width + last).astype(np.int32)}


def like_lengths(lengths: Sequence[int], size: int) -> Iterator[NDArray[np.int64]]:
    """Groups of at most `size` numbers of rows, like lengths together: less padding."""
    order = np.argsort(np.asarray(lengths), kind="stable")
    for start in range(0, len(order), size):
        yield order[start:start + size]


def _positions(rows: int, width: int) -> NDArray[np.int32]:
    return np.tile(np.arange(width, dtype=np.int32), (rows, 1))
