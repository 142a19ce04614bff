"""Prompts with completions as batches: every token of a completion is a target, its stop token
included.

Shapes: R rows of a batch, T tokens of a row, K targets, padded. Row r reads prompt and completion
except for the last token; rows are padded at the end, where causal attention cannot reach.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ondevice.common.errors import UserError
from ondevice.data.batches import RowSource
from ondevice.data.mixture import Lazy
from ondevice.data.packing import Batch, bucket, eighths, pad_targets
from ondevice.data.token_cache import ChatRows
from ondevice.data.tokenizer import Tokenizer
from ondevice.data.truncation import truncated

Ids = Sequence[int] | NDArray[np.int32]


class Row(NamedTuple):
    """Token ids of a prompt and of its completion; neither is empty."""

    prompt: Ids
    completion: Ids

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.completion)


class Prompts(NamedTuple):
    """The different prompts of some rows, in the order in which they come, and which of them each
    row has.
    """

    ids: list[Ids]
    of: NDArray[np.int32]


def different_prompts(rows: Sequence[Row]) -> Prompts:
    found: dict[bytes, int] = {}
    ids: list[Ids] = []
    of = np.zeros(len(rows), np.int32)
    for r, row in enumerate(rows):
        key = np.asarray(row.prompt, np.int32).tobytes()
        if key not in found:
            found[key] = len(ids)
            ids.append(row.prompt)
        of[r] = found[key]
    return Prompts(ids, of)


def context_length(prompt: Any, completion: Any, start: int | None) -> Any:
    """Tokens of a context that a prompt and its completion take, numbers or arrays of them: both
    together, or, where the completion is written after `start` and the prompt read beside it, the
    longer one."""
    if start is None:
        return prompt + completion
    return np.maximum(prompt, completion + 1)


def shortened(ids: NDArray[np.int32], most: int) -> NDArray[np.int32]:
    """At most so many of a text's tokens, the one that closes it among them."""
    if len(ids) <= most:
        return ids
    return np.append(ids[: most - 1], ids[-1:])


def completion_batch(
    rows: Sequence[Row],
    size: int,
    tokens: Mapping[str, Sequence[NDArray[Any]]] | None = None,
    start: int | None = None,
) -> Batch:
    """A batch of `size` ≥ len(rows) rows, those added empty: ids, positions (R, T), targets, index,
    weights (K,), member (R, K). `tokens` are further values, one array per row with one value per
    token of its completion; they come out as (K,) under their names, 0 where padded. With `start` the
    completions are written after that token and the prompts are read beside them: source_ids (R,
    S), source_lengths (R,)."""
    batch: Batch = {}
    if start is not None:
        batch = source_batch([row.prompt for row in rows], size)
        rows = [Row([start], row.completion) for row in rows]
    width = bucket(max(row.length for row in rows) - 1, finer=2)
    ids = np.zeros((size, width), np.int32)
    targets: list[NDArray[np.int32]] = []
    index: list[NDArray[np.int32]] = []
    for r, (prompt, completion) in enumerate(rows):
        text = np.concatenate([prompt, completion]).astype(np.int32)
        ids[r, : len(text) - 1] = text[:-1]
        targets.append(text[len(prompt) :])
        index.append(np.arange(len(prompt) - 1, len(text) - 1, dtype=np.int32) + r * width)
    batch |= {"ids": ids, "positions": row_positions(size, width)}
    room = eighths(sum(map(len, targets)), size * width)
    return batch | target_arrays(targets, index, size, room, tokens)


def target_arrays(
    targets: Sequence[NDArray[np.int32]],
    index: Sequence[NDArray[np.int32]],
    size: int,
    room: int,
    tokens: Mapping[str, Sequence[NDArray[Any]]] | None = None,
) -> Batch:
    """What a batch of `size` rows with room for so many targets learns: targets, index, weights
    (K,), member (R, K), from each row's targets and the places that predict them; `tokens` as for
    `completion_batch`.
    """
    counts = np.array([len(t) for t in targets])
    total = int(counts.sum())
    batch = pad_targets(np.concatenate(targets), np.concatenate(index), room)
    batch["member"] = np.zeros((size, room), np.float32)
    batch["member"][np.repeat(np.arange(len(targets)), counts), np.arange(total)] = 1.0
    for name, values in (tokens or {}).items():
        batch[name] = np.zeros(room, np.float32)
        batch[name][:total] = np.concatenate(list(values))
    return batch


def answers_of(chats: ChatRows) -> Sequence[Row]:
    """Every answer of every chat, with all that stands before it as its prompt, made when it is
    asked for.
    """
    return counted_answers(chats)[0]


def counted_answers(chats: ChatRows) -> tuple[Sequence[Row], int]:
    """(`answers_of` the chats, how many cannot be learned: answers with nothing before them, chats
    without one).
    """
    bounds = array("q")  # where the chat, the answer and what follows it begin
    skipped = 0
    for start, end in zip(map(int, chats.starts), map(int, chats.ends), strict=True):
        mask = chats.mask[start:end]
        begins = np.flatnonzero(mask & ~np.append(False, mask[:-1]))
        ends = np.flatnonzero(mask & ~np.append(mask[1:], False)) + 1
        if not len(begins):
            skipped += 1
        for a, b in zip(begins.tolist(), ends.tolist(), strict=True):
            if a:
                bounds.extend((start, start + a, start + b))
            else:
                skipped += 1
    each = np.array(bounds, np.int64).reshape(-1, 3)

    def row(number: int) -> Row:
        start, begin, end = each[number]
        return Row(chats.ids[start:begin], chats.ids[begin:end])

    return Lazy(row, np.arange(len(each))), skipped


def fitted_row(row: Row, most: int, tokenizer: Tokenizer) -> Row:
    """A prompt that is read beside its answer, and the answer, each within `most` tokens: the
    prompt is cut as `truncated` cuts a text, the answer at its end."""
    return Row(truncated(row.prompt, most, tokenizer), row.completion[:most])


class CompletionSource(RowSource):
    """Answers to prompts that are read beside them, in an order of their own each epoch;
    `fitted_row` says what becomes of one that is too long. `truncated`: how many are, `cut_prompts`
    those of them whose prompt is; `skipped`: what `counted_answers` leaves out."""

    def __init__(
        self,
        rows: Sequence[Row],
        *,
        start: int,
        tokenizer: Tokenizer,
        sequence_length: int,
        batch_size: int,
        seed: int = 0,
        skipped: int = 0,
    ) -> None:
        if not rows:
            raise UserError(
                "no chat has a token to learn", where="data", hint="give chats with answers"
            )
        self.start = start
        self.examples = len(rows)
        self.skipped = skipped
        self.truncated = 0
        self.cut_prompts = 0
        for row in rows:
            if len(row.prompt) > sequence_length:
                self.cut_prompts += 1
            if max(len(row.prompt), len(row.completion)) > sequence_length:
                self.truncated += 1
        self._rows = rows
        self._most = sequence_length
        self._tokenizer = tokenizer
        super().__init__(len(rows), batch_size, seed, "completions")

    def _collate(self, group: list[tuple[int, int]], size: int) -> Batch:
        rows: list[Row] = []
        for _, number in group:
            rows.append(fitted_row(self._rows[number], self._most, self._tokenizer))
        batch = completion_batch(rows, size, start=self.start)
        del batch["member"]
        return batch


def general_width(longest: int) -> int:
    return bucket(longest, finer=2)


def source_batch(
    sources: Sequence[Ids], size: int, width_of: Callable[[int], int] = general_width
) -> Batch:
    """What an encoder-decoder reads: source_ids (R, S), padded at the right, and source_lengths
    (R,), at least 1. `width_of` says S by the longest one's tokens.
    """
    width = width_of(max(len(source) for source in sources))
    ids = np.zeros((size, width), np.int32)
    lengths = np.ones(size, np.int32)
    for r, source in enumerate(sources):
        ids[r, : len(source)] = source
        lengths[r] = len(source)
    return {"source_ids": ids, "source_lengths": lengths}


def text_batch(
    rows: Sequence[Ids], size: int, reads: str = "last", types: Sequence[Ids] | None = None
) -> Batch:
    """Whole texts: ids, positions (R, T) and `read` (R,), the flat place of each text's `first` or
    `last` token. Who reads the first sees what follows it, so segments (R, T) say where a text ends
    and padding begins. `types` say of each token which of two texts it is of; they come out as (R,
    T)."""
    width = bucket(max(len(row) for row in rows), finer=2)
    ids = np.zeros((size, width), np.int32)
    for r, row in enumerate(rows):
        ids[r, : len(row)] = row
    batch: Batch = {"ids": ids, "positions": row_positions(size, width)}
    if types is not None:
        batch["types"] = np.zeros((size, width), np.int32)
        for r, row in enumerate(types):
            batch["types"][r, : len(row)] = row
    last = np.zeros(size, np.int64)
    for r, row in enumerate(rows):
        last[r] = len(row) - 1
    if reads == "first":
        batch["segments"] = (batch["positions"] <= last[:, None]).astype(np.int32)
        # padding may stand beyond the last position
        batch["positions"] = batch["positions"] * batch["segments"]
        last = last * 0
    return {**batch, "read": (np.arange(size) * width + last).astype(np.int32)}


def group_by_length(lengths: Sequence[int], size: int) -> Iterator[NDArray[np.int64]]:
    """Groups of at most `size` numbers of rows, like lengths together: less padding."""
    order = np.argsort(np.asarray(lengths), kind="stable")
    for start in range(0, len(order), size):
        yield order[start : start + size]


def row_positions(rows: int, width: int) -> NDArray[np.int32]:
    """(rows, width) of rows that all begin at position 0."""
    return np.tile(np.arange(width, dtype=np.int32), (rows, 1))


def prompt_and_completion(row: Row) -> NDArray[np.int32]:
    return np.concatenate([row.prompt, row.completion]).astype(np.int32)
