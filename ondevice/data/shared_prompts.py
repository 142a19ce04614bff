"""Which answers have the same prompt, so that a batch holds it once, and how rows are cut then.

A batch either has a row for each answer with its prompt, or prompts and answers apart, or, where
rows are ragged, all tokens without padding (`data/padding_free.py`); what is learned is the same.
Rows are counted in answers each way. Of these ways the one is chosen that takes the least time: a
group's answers that a micro-batch splits have their prompt in each part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ondevice.data.completion_batches import (
    Row,
    completion_batch,
    different_prompts,
    general_width,
    group_by_length,
    prompt_and_completion,
    row_positions,
    source_batch,
    target_arrays,
    text_batch,
)
from ondevice.data.few_shapes import FewShapes
from ondevice.data.packing import Batch, bucket, eighths
from ondevice.data.padding_free import SCORES, Layout, attention_scores, layout, padding_free_batch

NO_SHARING = 0
"""`prompt_rows` where each answer is to have its prompt in its own row."""
HARDLY = 0.8
"""A way that takes so much of another's time takes hardly less."""


def answer_batch(
    rows: Sequence[Row],
    size: int,
    tokens: Mapping[str, Sequence[NDArray[Any]]] | None = None,
    start: int | None = None,
    prompt_rows: int = 1,
    few: FewShapes | None = None,
    width_of: Callable[[int], int] = general_width,
) -> Batch:
    """A batch of `size` answers as `completion_batch` makes it, or, where that takes fewer places,
    with each prompt once: `prompt_rows` rows of prompts at least. Its ids and positions (N, A) are
    then the answers' without their last tokens, and beside them stand prompt_ids, prompt_positions
    (R, P), prompt_lengths (R,) and prompt_of (N,), the row of each answer's prompt; `index` counts
    the places of all prompts and then those of all answers. Ragged rows have no padding, and are
    laid out as `padding_free_batch` says, in one of the stage's `few` shapes where it has them.
    `width_of` says P by the longest prompt's tokens. What is written after `start` has the
    sources (R, S) once and source_of (N,)."""
    unpadded = None
    if few is not None and start is None and prompt_rows != NO_SHARING:
        usual = partial(_usual, size=size, prompt_rows=prompt_rows)
        unpadded = few.layout(rows, size, prompt_rows, usual)
    if unpadded is None:
        unpadded = unpadded_layout(rows, size, start, prompt_rows)
    if unpadded is not None:
        return padding_free_batch(rows, unpadded, tokens)
    room = prompt_room(rows, size, start, prompt_rows)
    if not room:
        return completion_batch(rows, size, tokens, start)
    prompts = different_prompts(rows)
    of = np.zeros(size, np.int32)
    of[: len(rows)] = prompts.of
    read = source_batch(prompts.ids, room, width_of)
    if start is not None:
        written = [Row([start], row.completion) for row in rows]
        return completion_batch(written, size, tokens) | read | {"source_of": of}
    width = read["source_ids"].shape[1]
    lengths = read["source_lengths"]
    own = _longest(rows, start).completion
    ids = np.zeros((size, own), np.int32)
    targets: list[NDArray[np.int32]] = []
    index: list[NDArray[np.int32]] = []
    for r, (prompt, completion) in enumerate(rows):
        ids[r, : len(completion) - 1] = completion[:-1]
        targets.append(np.asarray(completion, np.int32))
        first = of[r] * width + len(prompt) - 1
        others = room * width + r * own + np.arange(len(completion) - 1)
        index.append(np.append(first, others).astype(np.int32))
    batch = {
        "ids": ids,
        "positions": lengths[of][:, None] + row_positions(size, own),
        "prompt_ids": read["source_ids"],
        "prompt_positions": row_positions(room, width),
        "prompt_lengths": lengths,
        "prompt_of": of,
    }
    learned = eighths(sum(map(len, targets)), size * (own + 1))
    return batch | target_arrays(targets, index, size, learned, tokens)


def judged_batch(
    rows: Sequence[Row], size: int, reads: str = "last", prompt_rows: int = NO_SHARING
) -> Batch:
    """Prompts with completions as whole texts to be judged, as `text_batch` makes them, or with
    each prompt once as in `answer_batch`; `read` (N,) is then the place of a completion's last
    token."""
    # so that the last token of each is read, and predicts one
    longer = [Row(row.prompt, np.append(row.completion, 0)) for row in rows]
    if not unpadded_layout(longer, size, None, prompt_rows) and not prompt_room(
        longer, size, None, prompt_rows
    ):
        return text_batch([prompt_and_completion(row) for row in rows], size, reads)
    batch = answer_batch(longer, size, prompt_rows=prompt_rows)
    read = np.zeros(size, np.int32)
    ends = np.cumsum([len(row.completion) for row in longer]) - 1
    read[: len(rows)] = batch["index"][ends]
    for name in ("targets", "index", "weights", "member"):
        del batch[name]
    return batch | {"read": read}


def prompt_room(rows: Sequence[Row], size: int, start: int | None, least: int) -> int:
    """How many rows of prompts a batch of `size` answers has, `least` or more; 0: a row for each
    answer takes no more places, or `least` is NO_SHARING."""
    if least == NO_SHARING:
        return 0
    prompts = len(different_prompts(rows).ids)
    room = max(least, bucket(prompts, 1, finer=2))
    if prompts == len(rows) or room >= size:
        return 0
    longest = _longest(rows, start)
    if room * longest.prompt + size * longest.completion < size * longest.both:
        return room
    return 0


class _Longest(NamedTuple):
    """Places for the longest prompt, for the longest completion beside it, and for both as one
    row (for an encoder-decoder's two rows).
    """

    prompt: int
    completion: int
    both: int


def _longest(rows: Sequence[Row], start: int | None) -> _Longest:
    prompt = bucket(max(len(row.prompt) for row in rows), finer=2)
    longest = max(len(row.completion) for row in rows)
    if start is not None:
        completion = bucket(longest, finer=2)
        return _Longest(prompt, completion, prompt + completion)
    both = bucket(max(row.length for row in rows) - 1, finer=2)
    return _Longest(prompt, bucket(longest - 1, finer=2), both)


def unpadded_layout(
    rows: Sequence[Row], size: int, start: int | None, prompt_rows: int
) -> Layout | None:
    """How a batch of `size` answers is laid out without padding; None where that takes no less time,
    or where each answer is to have its row.
    """
    if prompt_rows == NO_SHARING or start is not None:
        return None
    found = layout(rows, size, prompt_rows)
    if found.is_ragged and found.cost < _padded_cost(rows, size, start, prompt_rows):
        return found
    return None


def room_for(rows: Sequence[Row], most: int, start: int | None, prompt_rows: int) -> int:
    """For how many rows a batch of at most `most` of these has room: one of few numbers, and one of
    fewer where rows that are not there cost attention alone.
    """
    found = min(bucket(len(rows), 1, finer=2), most)
    if unpadded_layout(rows, max(found, len(rows)), start, prompt_rows) is not None:
        return min(bucket(len(rows), 1, finer=0), most)
    return found


def _padded_cost(rows: Sequence[Row], size: int, start: int | None, prompt_rows: int) -> float:
    """Places that a batch of `size` answers takes with padding, and its attention as so many more."""
    longest = _longest(rows, start)
    room = prompt_room(rows, size, start, prompt_rows)
    if room:
        places = room * longest.prompt + size * longest.completion
        scores = attention_scores(size, longest.completion, room, longest.prompt)
    else:
        places = size * longest.both
        scores = attention_scores(size, longest.both)
    return places + scores / SCORES


def _usual(rows: Sequence[Row], size: int, prompt_rows: int) -> tuple[float, float]:
    """Places of a batch of `size` answers, and `cost`, without a stage's own shapes."""
    unpadded = unpadded_layout(rows, size, None, prompt_rows)
    if unpadded is not None:
        return unpadded.tokens, unpadded.cost
    longest = _longest(rows, None)
    room = prompt_room(rows, size, None, prompt_rows)
    places = size * longest.both
    if room:
        places = room * longest.prompt + size * longest.completion
    return places, _padded_cost(rows, size, None, prompt_rows)


def cost(rows: Sequence[Row], size: int, start: int | None, prompt_rows: int) -> float:
    """What the device computes of a batch of `size` answers, in places of a row."""
    unpadded = unpadded_layout(rows, size, start, prompt_rows)
    if unpadded is not None:
        return unpadded.cost
    return _padded_cost(rows, size, start, prompt_rows)


def cut_rows(
    rows: Sequence[Row], size: int, start: int | None = None, prompt_rows: int = 1
) -> list[NDArray[np.int64]]:
    """The numbers of the rows of each batch of at most `size`: like lengths together, or, where
    prompts are shared and that takes no longer, like prompts together. These come as they stand
    where that takes hardly longer: batches are then alike, and a compiler sees few shapes.
    """
    found = list(group_by_length([row.length for row in rows], size))
    if prompt_rows == NO_SHARING or len(found) < 2:
        return found
    by_prompt = _cut(_by_prompt(rows, np.concatenate(found)), size)
    standing = _cut(np.argsort(different_prompts(rows).of, kind="stable"), size)

    def total(parts: list[NDArray[np.int64]]) -> float:
        return sum(cost([rows[i] for i in part], size, start, prompt_rows) for part in parts)

    least = total(found)
    together = total(by_prompt)
    if HARDLY * total(standing) <= min(least, together):
        return standing
    if together <= least:
        return by_prompt
    return found


def _cut(order: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    return [order[first : first + size] for first in range(0, len(order), size)]


def _by_prompt(rows: Sequence[Row], by_length: NDArray[np.int64]) -> NDArray[np.int64]:
    """All rows, those of one prompt together, the prompt with the shortest longest row first."""
    of = different_prompts(rows).of
    last = np.zeros(len(rows), np.int64)  # of each prompt, the place of its longest row
    last[of[by_length]] = np.arange(len(rows))
    order: NDArray[np.int64] = by_length[np.argsort(last[of[by_length]], kind="stable")]
    return order
