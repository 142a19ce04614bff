"""Text with holes, for encoder-decoders: span corruption (Raffel 2019, T5), text infilling with sentence permutation
(Lewis 2019, BART). Rows are windows over one stream of tokens in which documents end with `eos`; what is hidden is
keyed by epoch and row.

L tokens of a window, S of a source, T of what is to be written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ondevice.data.completions import Row, completion_batch
from ondevice.data.packing import Batch
from ondevice.data.sources import RowSource
from ondevice.data.tokenizer import Tokenizer
from ondevice.errors import UserError
from ondevice.randomness import generator

Ints = NDArray[np.int32]
Corrupt = Callable[[Ints, np.random.Generator], tuple[Ints, Ints]]


def spans(length: int, share: float, mean: float, draw: np.random.Generator) -> NDArray[np.bool_]:
    """(L,) whether each token is hidden: round(L·share) of them, in round(hidden / mean) spans; all ways of
    cutting hidden and shown tokens into so many parts are equally likely, and the first part is shown."""
    hidden = min(max(round(length * share), 1), length - 1)
    count = min(max(round(hidden / mean), 1), hidden, length - hidden)
    sizes = np.stack([_cut(length - hidden, count, draw), _cut(hidden, count, draw)], 1).reshape(-1)
    return np.repeat(np.arange(2 * count) % 2 == 1, sizes)


def _cut(total: int, parts: int, draw: np.random.Generator) -> NDArray[np.int64]:
    """Lengths of `parts` parts, none empty."""
    borders = np.sort(draw.permutation(total - 1)[:parts - 1]) + 1
    return np.diff(np.concatenate([[0], borders, [total]]))


def split_at_spans(ids: Ints, hidden: NDArray[np.bool_], sentinels: Ints, eos: int) -> tuple[Ints, Ints]:
    """(source, target): each hidden span is one sentinel in the source; the target is every sentinel with what it
    hides. Both end with `eos`. Raises UserError for more spans than sentinels."""
    first = hidden & ~np.append(False, hidden[:-1])
    number = np.cumsum(first) - 1
    if number[-1] >= len(sentinels):
        raise UserError(f"{number[-1] + 1} spans are more than the tokenizer's {len(sentinels)} sentinels",
                        where="mask_share", hint="hide less, take shorter rows, or a larger mean_span")
    marks = sentinels[np.maximum(number, 0)]
    source = np.where(hidden, marks, ids)[~hidden | first]
    target = np.stack([marks, ids], 1)[hidden]
    kept = np.stack([first[hidden], np.ones(int(hidden.sum()), np.bool_)], 1)
    return np.append(source, eos).astype(np.int32), np.append(target[kept], eos).astype(np.int32)


def infill(ids: Ints, share: float, mean: float, mask: int, draw: np.random.Generator) -> Ints:
    """The text with spans of Poisson(`mean`) tokens put behind one mask each, until `share` of the tokens is hidden; a
    span of length 0 puts a mask between two tokens."""
    left = round(len(ids) * share)
    hidden, before = np.zeros(len(ids), np.bool_), np.zeros(len(ids) + 1, np.int64)
    while left > 0:
        length = min(int(draw.poisson(mean)), left)
        start = int(draw.integers(len(ids) - length + 1))
        around = hidden[max(start - 1, 0):start + length + 1]
        if around.any() and draw.random() < 0.98:  # spans do not touch; where hardly any place is left they may
            continue
        hidden[start:start + length] = True
        before[start] = 1
        left -= max(length, 1)
    pieces = np.concatenate([np.stack([np.full(len(ids), mask), ids], 1).reshape(-1), [mask]])
    kept = np.concatenate([np.stack([before[:-1] > 0, ~hidden], 1).reshape(-1), before[-1:] > 0])
    made: Ints = pieces[kept].astype(np.int32)
    return made


def shuffle_sentences(ids: Ints, ends: NDArray[np.bool_], draw: np.random.Generator) -> Ints:
    """The sentences of a text in another order; `ends` (L,) says which tokens end one."""
    parts = np.split(ids, np.flatnonzero(ends[:-1]) + 1)
    return np.concatenate([parts[i] for i in draw.permutation(len(parts))])


class CorruptedSource(RowSource):
    """Windows of `sequence_length` tokens; `corrupt` makes of each a source, and what to write after `start`. A source
    that many marks make longer than `longest` is cut before its last token."""

    def __init__(self, tokens: NDArray[Any], *, corrupt: Corrupt, start: int, sequence_length: int, batch_size: int,
                 longest: int, accumulate: int = 1, seed: int = 0) -> None:
        if len(tokens) < 2:
            raise UserError("too little text to learn from", where="data", hint="two tokens are the least")
        self.tokens, self.length, self.corrupt, self.start = tokens, sequence_length, corrupt, start
        self.longest = longest
        # what is left at the end is a row too where there is something to hide and something to show
        rows = len(tokens) // sequence_length + (len(tokens) % sequence_length > 1)
        super().__init__(rows, batch_size, accumulate, seed, "corrupted")

    def _collate(self, group: list[tuple[int, int]]) -> Batch:
        rows = []
        for epoch, row in group:
            window = np.asarray(self.tokens[row * self.length:(row + 1) * self.length], np.int32)
            source, target = self.corrupt(window, generator(self.seed, "corrupt", epoch, row))
            if len(source) > self.longest:
                source = np.append(source[:self.longest - 1], source[-1:])
            rows.append(Row(source, target))
        batch = completion_batch(rows, self.batch_size, start=self.start)
        del batch["member"]
        return batch


def span_corruption(tokenizer: Tokenizer, share: float, mean: float) -> Corrupt:
    """Raises UserError for a tokenizer without sentinels."""
    if not len(tokenizer.sentinels):
        raise UserError("the tokenizer has no sentinels", where="tokenizer.json", hint="add <extra_id_0> and so on")

    def corrupt(ids: Ints, draw: np.random.Generator) -> tuple[Ints, Ints]:
        return split_at_spans(ids, spans(len(ids), share, mean, draw), tokenizer.sentinels, tokenizer.eos_id)
    return corrupt


def text_infilling(tokenizer: Tokenizer, share: float, mean: float) -> Corrupt:
    """Raises UserError for a tokenizer without a mask."""
    if tokenizer.mask_id is None:
        raise UserError("the tokenizer has no mask token", where="tokenizer_config.json", hint="give mask_token")
    mask = tokenizer.mask_id

    def corrupt(ids: Ints, draw: np.random.Generator) -> tuple[Ints, Ints]:
        ends = tokenizer.ends_sentence[ids] | (ids == tokenizer.eos_id)
        source = infill(shuffle_sentences(ids, ends, draw), share, mean, mask, draw)
        closing = [tokenizer.eos_id]
        return np.append(source, closing).astype(np.int32), np.append(ids, closing).astype(np.int32)
    return corrupt
