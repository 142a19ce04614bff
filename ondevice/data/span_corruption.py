"""Text with holes, for encoder-decoders: span corruption (Raffel 2019, T5), text infilling with
sentence permutation (Lewis 2019, BART). Rows are windows over one stream of tokens in which
documents end with `eos`; what is hidden is keyed by epoch and row.

L tokens of a window, S of a source, T of what is to be written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ondevice.common.errors import UserError
from ondevice.common.rng import generator
from ondevice.data.batches import RowSource
from ondevice.data.completion_batches import Row, completion_batch, shortened
from ondevice.data.packing import Batch, ranges
from ondevice.data.tokenizer import Tokenizer

Ints = NDArray[np.int32]
Corrupt = Callable[[Ints, np.random.Generator], tuple[Ints, Ints]]


def spans(length: int, share: float, mean: float, draw: np.random.Generator) -> NDArray[np.bool_]:
    """(L,) whether each token is hidden: round(L·share) of them, in round(hidden / mean) spans; all
    ways of cutting hidden and shown tokens into so many parts are equally likely, and the first
    part is shown."""
    hidden = min(max(round(length * share), 1), length - 1)
    count = min(max(round(hidden / mean), 1), hidden, length - hidden)
    shown_parts = _cut(length - hidden, count, draw)
    hidden_parts = _cut(hidden, count, draw)
    sizes = np.stack([shown_parts, hidden_parts], 1).reshape(-1)  # in turn, a shown one first
    return np.repeat(np.arange(2 * count) % 2 == 1, sizes)


def _cut(total: int, parts: int, draw: np.random.Generator) -> NDArray[np.int64]:
    """Lengths of `parts` parts, none empty."""
    borders = np.sort(draw.permutation(total - 1)[: parts - 1]) + 1
    return np.diff(np.concatenate([[0], borders, [total]]))


def split_at_spans(
    ids: Ints, hidden: NDArray[np.bool_], sentinels: Ints, eos: int
) -> tuple[Ints, Ints]:
    """(source, target): each hidden span is one sentinel in the source; the target is every
    sentinel with what it hides. Both end with `eos`. Raises UserError for more spans than
    sentinels."""
    first = hidden & ~np.append(False, hidden[:-1])
    number = np.cumsum(first) - 1
    if number[-1] >= len(sentinels):
        raise UserError(
            f"{number[-1] + 1} spans are more than the tokenizer's {len(sentinels)} sentinels",
            where="mask_share",
            hint="hide less, take shorter rows, or a larger mean_span",
        )
    marks = sentinels[np.maximum(number, 0)]
    source = np.where(hidden, marks, ids)[~hidden | first]
    target = np.stack([marks, ids], 1)[hidden]
    # a mark where a span begins, every token that is hidden
    every = np.ones(int(hidden.sum()), np.bool_)
    kept = np.stack([first[hidden], every], 1)
    source = np.append(source, eos).astype(np.int32)
    target = np.append(target[kept], eos).astype(np.int32)
    return source, target


def span_lengths(hidden: int, mean: float, draw: np.random.Generator) -> NDArray[np.int64]:
    """Lengths of spans, each drawn from Poisson(`mean`), until they hide so many tokens; the last
    is cut to fit. Spans of nothing are among them."""
    found = np.zeros(0, np.int64)
    while found.sum() < hidden:
        found = np.append(found, draw.poisson(mean, max(8, hidden)))
    count = int(np.searchsorted(np.cumsum(found), hidden)) + 1
    return np.append(found[: count - 1], hidden - found[: count - 1].sum())


def infill(ids: Ints, share: float, mean: float, mask: int, draw: np.random.Generator) -> Ints:
    """The text with round(L·`share`) of its tokens in spans of Poisson(`mean`) behind one mask
    each; a span of nothing puts a mask between two tokens. Spans do not touch, and all places for
    them are equally likely; where the tokens shown are too few to part them, some are joined."""
    count = len(ids)
    to_hide = min(max(round(count * share), 1), count)
    lengths = span_lengths(to_hide, mean, draw)
    sizes = lengths[lengths > 0]
    nothing = int((lengths == 0).sum())
    shown = count - int(sizes.sum())
    if len(sizes) > shown + 1:
        groups = np.arange(shown + 1) * len(sizes) // (shown + 1)
        sizes = np.add.reduceat(sizes, groups)
    sizes = draw.permutation(sizes)  # the last one was cut
    starts = _starts(sizes, shown, draw)
    hidden = np.zeros(count, np.bool_)
    hidden[np.repeat(starts, sizes) + ranges(sizes)] = True
    masked = np.zeros(count + 1, np.bool_)  # whether a mask stands before each token, or at the end
    masked[starts] = True
    apart = np.flatnonzero(~np.append(hidden, False) & ~np.append(False, hidden))
    masked[draw.permutation(apart)[:nothing]] = True
    # a mask and the token behind it by turns, and a mask at the end
    with_masks = np.stack([np.full(count, mask), ids], 1)
    pieces = np.append(with_masks.reshape(-1), mask)
    shows = np.stack([masked[:-1], ~hidden], 1)
    kept = np.append(shows.reshape(-1), masked[-1])
    made: Ints = pieces[kept].astype(np.int32)
    return made


def _starts(sizes: NDArray[np.int64], shown: int, draw: np.random.Generator) -> NDArray[np.int64]:
    """Where spans of these sizes begin in a text that shows so many tokens: before, between (one
    token at least) and behind the spans.
    """
    count = len(sizes)
    free = shown - (count - 1)
    chosen = np.sort(draw.choice(free + count, count, replace=False))
    borders = chosen - np.arange(count)
    starts: NDArray[np.int64] = borders + np.arange(count) + np.cumsum(sizes) - sizes
    return starts


def shuffle_sentences(
    ids: Ints, ends: NDArray[np.bool_], eos: int, draw: np.random.Generator
) -> Ints:
    """The sentences of each document in another order; `ends` (L,) says which tokens end a
    sentence, a document ends at `eos`, which stays where it is."""
    made = ids.copy()
    borders = np.flatnonzero(ids == eos)
    begins = np.append(0, borders + 1)
    stops = np.append(borders, len(ids))
    for start, end in zip(begins, stops, strict=True):
        breaks = np.flatnonzero(ends[start:end][:-1]) + 1
        sentences = np.split(ids[start:end], breaks)
        order = draw.permutation(len(sentences))
        made[start:end] = np.concatenate([sentences[i] for i in order])
    return made


class CorruptedSource(RowSource):
    """Windows of `sequence_length` tokens; `corrupt` makes of each a source, and what to write
    after `start`. A source that many marks make longer than `longest` is cut before its last token.
    """

    def __init__(
        self,
        tokens: NDArray[Any],
        *,
        corrupt: Corrupt,
        start: int,
        sequence_length: int,
        batch_size: int,
        longest: int,
        seed: int = 0,
    ) -> None:
        if len(tokens) < 2:
            raise UserError(
                "too little text to learn from", where="data", hint="two tokens are the least"
            )
        self.tokens = tokens
        self.length = sequence_length
        self.corrupt = corrupt
        self.start = start
        self.longest = longest
        # what is left at the end is a row too where there is something to hide and something to
        # show
        rows = len(tokens) // sequence_length
        if len(tokens) % sequence_length > 1:
            rows += 1
        super().__init__(rows, batch_size, seed, "corrupted")

    def _collate(self, group: list[tuple[int, int]], size: int) -> Batch:
        rows = []
        for epoch, row in group:
            window = np.asarray(self.tokens[row * self.length : (row + 1) * self.length], np.int32)
            source, target = self.corrupt(window, generator(self.seed, "corrupt", epoch, row))
            rows.append(Row(shortened(source, self.longest), target))
        batch = completion_batch(rows, size, start=self.start)
        del batch["member"]
        return batch


def span_corruption(tokenizer: Tokenizer, share: float, mean: float) -> Corrupt:
    """Raises UserError for a tokenizer without sentinels."""
    if not len(tokenizer.sentinels):
        raise UserError(
            "the tokenizer has no sentinels",
            where="tokenizer.json",
            hint="add <extra_id_0> and so on",
        )

    def corrupt(ids: Ints, draw: np.random.Generator) -> tuple[Ints, Ints]:
        hidden = spans(len(ids), share, mean, draw)
        return split_at_spans(ids, hidden, tokenizer.sentinels, tokenizer.eos_id)

    return corrupt


def text_infilling(tokenizer: Tokenizer, share: float, mean: float) -> Corrupt:
    """What is read and what is written stand between the tokens that open and close a text, as
    BART's do. Raises UserError for a tokenizer without a mask."""
    if tokenizer.mask_id is None:
        raise UserError(
            "the tokenizer has no mask token", where="tokenizer_config.json", hint="give mask_token"
        )
    mask = tokenizer.mask_id
    opening = [tokenizer.cls_id]
    closing = [tokenizer.eos_id]

    def corrupt(ids: Ints, draw: np.random.Generator) -> tuple[Ints, Ints]:
        shuffled = shuffle_sentences(ids, tokenizer.ends_sentence[ids], tokenizer.eos_id, draw)
        source = infill(shuffled, share, mean, mask, draw)
        read = np.concatenate([opening, source, closing]).astype(np.int32)
        written = np.concatenate([opening, ids, closing]).astype(np.int32)
        return read, written

    return corrupt
