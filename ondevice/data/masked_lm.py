"""Masked language modelling (Devlin 2018): some tokens of a text are hidden, and guessed from both
sides.

Of the tokens of a text a share is chosen, each by a draw of its own, or all tokens of a word
together (whole-word masking). Of the chosen ones 80 % become the mask, 10 % any other token, 10 %
stay: the model cannot know which of the tokens that it sees are true. Special tokens are neither
chosen nor put in place of others. The draws are keyed by the epoch and the row: each epoch hides
others, and a resume hides the same.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ondevice.common.errors import UserError
from ondevice.common.rng import generator
from ondevice.data import packing
from ondevice.data.batches import PackedSource
from ondevice.data.packing import Batch
from ondevice.data.tokenizer import Tokenizer

MASKED, REPLACED = 0.8, 0.1
_READ = 1 << 24  # tokens looked through at once


class Hidden(NamedTuple):
    """`ids` as the model sees them; `chosen`, which of them it is to guess. Both (N,)."""

    ids: NDArray[np.int32]
    chosen: NDArray[np.bool_]


def hide(
    ids: NDArray[np.int32],
    eligible: NDArray[np.bool_],
    word: NDArray[np.int64],
    share: float,
    mask: int,
    ordinary: NDArray[np.int64],
    draw: np.random.Generator,
) -> Hidden:
    """Tokens (N,) of words numbered from 0 on in `word` (N,); `ordinary` are the ids that may stand
    in for others.
    """
    picked = draw.random(int(word.max(initial=-1)) + 1) < share
    chosen = picked[word] & eligible
    how, other = draw.random(len(ids)), ordinary[draw.integers(len(ordinary), size=len(ids))]
    seen = np.where(how < MASKED, mask, np.where(how < MASKED + REPLACED, other, ids))
    return Hidden(np.where(chosen, seen, ids).astype(np.int32), chosen)


class MaskedSource(PackedSource):
    """Documents of a stream of tokens, in which each ends with `eos`, as rows of `sequence_length`.

    A document that is too long for a row is cut into pieces; each piece stands between the tokens
    that open and close a text, and several share a row without seeing each other. Raises UserError
    for a tokenizer without a mask.
    """

    def __init__(
        self,
        tokens: NDArray[Any],
        *,
        tokenizer: Tokenizer,
        sequence_length: int,
        batch_size: int,
        share: float = 0.15,
        whole_words: bool = False,
        seed: int = 0,
    ) -> None:
        if tokenizer.mask_id is None:
            raise UserError(
                "the tokenizer has no mask token",
                where="tokenizer_config.json",
                hint="give mask_token",
            )
        if sequence_length < 3:
            raise UserError(
                f"{sequence_length} leaves no room between what opens and closes a text",
                where="sequence_length",
                hint="give 3 or more",
            )
        self.tokens, self.tokenizer, self.share, self.whole_words = (
            tokens,
            tokenizer,
            share,
            whole_words,
        )
        self._mask, self._ordinary = tokenizer.mask_id, np.flatnonzero(~tokenizer.is_special)
        self._starts, sizes = pieces(tokens, tokenizer.eos_id, sequence_length - 2)
        if not len(sizes):
            raise UserError(
                "too little text to learn from", where="data", hint="one token is the least"
            )
        super().__init__(sizes + 2, sequence_length, True, batch_size, seed, "masked")

    def _collate(self, group: list[tuple[int, int]], size: int) -> Batch:
        chosen, row_of, column, number = self._members(group)
        lengths, shape = self._lengths[chosen], (size, self.length)
        batch: Batch = {
            name: np.zeros(shape, np.int32) for name in ("ids", "positions", "segments")
        }
        flat = {name: values.reshape(-1) for name, values in batch.items()}
        place = row_of * self.length + column
        source, inside, _ = packing.lay_out(
            self._starts[chosen], lengths - 2, row_of, column + 1, self.length
        )
        flat["ids"][inside] = self.tokens[source]
        flat["ids"][place], flat["ids"][place + lengths - 1] = (
            self.tokenizer.cls_id,
            self.tokenizer.sep_id,
        )
        position = packing.ranges(lengths)
        everywhere = np.repeat(place, lengths) + position
        flat["positions"][everywhere], flat["segments"][everywhere] = (
            position,
            np.repeat(number, lengths),
        )
        # a document may spell a special token's id only where it is a template's: those are not
        # guessed either
        eligible = np.zeros(shape, np.bool_)
        eligible.reshape(-1)[inside] = ~self.tokenizer.is_special[flat["ids"][inside]]
        truth, hidden = batch["ids"].copy(), np.zeros(shape, np.bool_)
        for r, (epoch, row) in enumerate(group):
            if self.whole_words:
                word = self._words(truth[r])
            else:
                word = np.arange(self.length)
            draw = generator(self.seed, "mask", epoch, row)
            batch["ids"][r], hidden[r] = hide(
                truth[r], eligible[r], word, self.share, self._mask, self._ordinary, draw
            )
        index = np.flatnonzero(hidden)
        return batch | packing.pad_targets(
            truth.reshape(-1)[index], index, packing.eighths(len(index), truth.size)
        )

    def _words(self, ids: NDArray[np.int32]) -> NDArray[np.int64]:
        """The number of each token's word, (T,)."""
        begins = ~self.tokenizer.continues[ids]
        begins[1:] |= self.tokenizer.is_special[ids[:-1]]
        begins[:1] = True
        return np.cumsum(begins) - 1


def pieces(
    tokens: NDArray[Any], eos: int, room: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(start, length) of every document of the stream, without its end token; longer ones in pieces
    of `room`.
    """
    found = [np.zeros(0, np.int64)]
    for start in range(0, len(tokens), _READ):
        window = tokens[start : start + _READ]
        found.append(np.flatnonzero(window == eos) + start)
    ends = np.append(np.concatenate(found), len(tokens)).astype(np.int64)
    starts = np.append(0, ends[:-1] + 1)
    count = -(-(ends - starts) // room)
    nth = packing.ranges(count)
    begin = np.repeat(starts, count) + nth * room
    return begin, np.minimum(room, np.repeat(ends, count) - begin)
