"""Rows of prompts and answers as one row of tokens without padding between them.

Ragged rows padded to the longest are padding by a third to more than a half, and each further
longest row is another shape for a compiler. Here everything but attention is computed of the tokens
alone, one after another: T of them, rounded up to one of few sizes. For attention a table says which
tokens each row has, padded to few widths too; prompts stand once, as in `data/shared_prompts.py`.

Chosen: tables of places, not one row of several segments as in `data/packing.py`: attention to a
part of a long row takes a mask of T × T, and the fast ways of attention take none.

Shapes: T tokens, N answers or whole rows, A places of the longest of them, R prompts, P places of
the longest prompt, S = R·P + N·A places of all rows, K targets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ondevice.data.completion_batches import Prompts, Row, different_prompts, target_arrays
from ondevice.data.packing import Batch, bucket

LEAST_TOKENS = 64
LEAST_WIDTH = 64
LEAST_PROMPT = 128
"""Few rows are prompts, so that their width costs little."""
FEW_WIDTHS = 512
"""Up to here a width is a power of two: what attention takes in vain is little."""
SCORES = 1024
"""Scores of attention, of all heads, that take about as long as a token in a block's matrices: few
where attention is no single kernel, as on CPUs."""


@dataclass(frozen=True)
class Layout:
    """How a batch of rows is laid out. `used` of the `tokens` are some. `prompts` None: rows hold
    their prompts."""

    used: int
    tokens: int
    rows: int
    width: int
    prompts: Prompts | None = None
    prompt_rows: int = 0
    prompt_width: int = 0
    targets: int = 0  # for how many there is room; 0: as `_targets` says

    @property
    def is_ragged(self) -> bool:
        """Whether a place of a row is left empty."""
        return self.used < self.rows * self.width + self.prompt_rows * self.prompt_width

    @property
    def cost(self) -> float:
        """Places that the blocks' matrices would compute in the same time."""
        scores = attention_scores(self.rows, self.width, self.prompt_rows, self.prompt_width)
        return self.tokens + scores / SCORES


def attention_scores(rows: int, width: int, prompt_rows: int = 0, prompt_width: int = 0) -> int:
    return rows * width * (width + prompt_width) + prompt_rows * prompt_width**2


def layout(rows: Sequence[Row], size: int, least: int) -> Layout:
    """Of `rows` in a batch that has room for `size`, with `least` rows of prompts or more."""
    prompts = different_prompts(rows)
    room = max(least, bucket(len(prompts.ids), 1, finer=0))
    if len(prompts.ids) == len(rows) or room >= size:
        total = sum(row.length - 1 for row in rows)
        return Layout(total, _tokens(total), size, _width(max(row.length - 1 for row in rows)))
    total = sum(len(ids) for ids in prompts.ids) + sum(len(row.completion) - 1 for row in rows)
    return Layout(
        total,
        _tokens(total),
        size,
        _width(max(len(row.completion) - 1 for row in rows)),
        prompts,
        room,
        _width(max(len(ids) for ids in prompts.ids), LEAST_PROMPT),
    )


def _tokens(count: int) -> int:
    """With one at least that is nothing."""
    return bucket(count + 1, LEAST_TOKENS, finer=1)


def _width(longest: int, least: int = LEAST_WIDTH) -> int:
    return bucket(longest, least, finer=0 if longest <= FEW_WIDTHS else 1)


def _targets(count: int, tokens: int) -> int:
    """For how many targets there is room: all tokens, three quarters of them, and further halves of
    that, so that batches of like shares have one size."""
    room = tokens
    smaller = 3 * tokens // 4
    while smaller >= max(count, 1):
        room, smaller = smaller, smaller // 2
    return room


def padding_free_batch(
    rows: Sequence[Row],
    found: Layout,
    tokens: Mapping[str, Sequence[NDArray[Any]]] | None = None,
) -> Batch:
    """The batch of `completion_batch` in this layout: ids and positions (1, T), `index` into these,
    targets, weights (K,), member (N, K); places (N, A), the token at each place of a row; slots
    (T,), where among all S places each token stands. Where prompts stand once also prompt_places
    (R, P), prompt_lengths (R,) and prompt_of (N,), the prompt of each answer. Empty places are filled
    with the last token, which is nothing, and tokens that are nothing stand at an empty place."""
    writer = _Writer(found)
    batch: Batch = {}
    if found.prompts is None:
        for r, (prompt, completion) in enumerate(rows):
            text = np.concatenate([prompt, completion]).astype(np.int32)
            first = writer.write(r, text[:-1], 0)
            writer.learn(text[len(prompt) :], np.arange(len(prompt) - 1, len(text) - 1) + first)
    else:
        firsts = [writer.write_prompt(r, ids) for r, ids in enumerate(found.prompts.ids)]
        lengths = np.ones(found.prompt_rows, np.int32)
        lengths[: len(firsts)] = [len(ids) for ids in found.prompts.ids]
        of = np.zeros(found.rows, np.int32)
        of[: len(rows)] = found.prompts.of
        for r, (prompt, completion) in enumerate(rows):
            first = writer.write(r, completion[:-1], len(prompt))
            end = firsts[of[r]] + len(prompt) - 1
            writer.learn(completion, np.append(end, np.arange(len(completion) - 1) + first))
        batch = {
            "prompt_places": writer.prompt_places,
            "prompt_lengths": lengths,
            "prompt_of": of,
        }
    writer.fill_up()
    batch |= {
        "ids": writer.ids[None],
        "positions": writer.positions[None],
        "places": writer.places,
        "slots": writer.slots,
    }
    room = found.targets or _targets(sum(map(len, writer.targets)), found.tokens)
    return batch | target_arrays(writer.targets, writer.index, found.rows, room, tokens)


class _Writer:
    """Writes tokens one after another, and where they stand."""

    def __init__(self, found: Layout) -> None:
        prompts = (found.prompt_rows, found.prompt_width)
        rows = (found.rows, found.width)
        self.end = 0
        self.ids = np.zeros(found.tokens, np.int32)
        self.positions = np.zeros(found.tokens, np.int32)
        self.prompt_places = np.full(prompts, found.tokens - 1, np.int32)
        self.places = np.full(rows, found.tokens - 1, np.int32)
        self.before = prompts[0] * prompts[1]
        assert found.is_ragged and found.used < found.tokens
        self.slots = np.zeros(found.tokens, np.int32)
        self.targets: list[NDArray[np.int32]] = []
        self.index: list[NDArray[np.int32]] = []

    def write_prompt(self, row: int, ids: Any) -> int:
        return self._write(self.prompt_places[row], row * self.prompt_places.shape[1], ids, 0)

    def write(self, row: int, ids: Any, position: int) -> int:
        return self._write(
            self.places[row], self.before + row * self.places.shape[1], ids, position
        )

    def _write(self, places: NDArray[np.int32], slot: int, ids: Any, position: int) -> int:
        """Where the first of the tokens stands."""
        first = self.end
        count = len(ids)
        self.end += count
        each = np.arange(count, dtype=np.int32)
        self.ids[first : self.end] = ids
        self.positions[first : self.end] = position + each
        places[:count] = first + each
        self.slots[first : self.end] = slot + each
        return first

    def fill_up(self) -> None:
        """Lets tokens that are nothing stand at an empty place."""
        taken = np.zeros(self.before + self.places.size, np.bool_)
        taken[self.slots[: self.end]] = True
        self.slots[self.end :] = np.argmin(taken)

    def learn(self, targets: Any, index: Any) -> None:
        self.targets.append(np.asarray(targets, np.int32))
        self.index.append(np.asarray(index, np.int32))
