"""What a rater is shown next. With active choice: the pair whose vote would teach the reward model
most, by how little it knows of the answer itself.

The measure is the entropy of its own forecast (uncertainty sampling; Lewis and Gale 1994): under
Bradley–Terry the first of two responses is preferred with probability σ(difference of scores). 1
bit is a coin toss, 0 is certainty.

Chosen: the reward model's own uncertainty, since it is there and costs one pass. An ensemble would
tell apart what is not known from what nobody can know, and is several models in memory.
Repeats and gold items come before all else, and when they are due is drawn from the seed: raters
are measured on what nobody chose for them. Left out: dropping pairs of which the model is certain.
They come last, so that a person may still contradict it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

from ondevice.preferences.database import Ratings
from ondevice.preferences.votes import Kind


def forecast(one: float, other: float) -> float:
    """The probability that the response with score `one` is preferred to the one with score
    `other`.
    """
    apart = min(max(one - other, -60.0), 60.0)  # exp overflows beyond some 700
    return 1 / (1 + math.exp(-apart))


def uncertainty(scores: Sequence[float]) -> float:
    """Bits that the reward model does not know of a choice among two or more responses: the mean
    over their pairs.
    """
    pairs = list(itertools.combinations(scores, 2))
    return sum(_bits(forecast(one, other)) for one, other in pairs) / len(pairs)


def most_uncertain_first(items: Sequence[int], doubts: Mapping[int, float]) -> list[int]:
    """Items in the order in which votes on them teach most; those without scores last, as they
    stood.
    """
    return sorted(items, key=lambda item: -doubts.get(item, -1.0))


def rating_order(
    ratings: Ratings,
    rater: str,
    batch: str | None,
    share: float,
    seed: int,
    doubts: Mapping[int, float] | None = None,
) -> list[int]:
    """Ids of what waits for this rater, in the order in which it is shown: repeats; a gold item
    where one is due, which is drawn as a repeat is; the others, those first of which the reward
    model knows least (`uncertainty`, by item); gold items that are left; what was skipped."""
    waiting = ratings.waiting(rater, batch)
    fresh: dict[Kind, list[int]] = {"repeat": [], "gold": [], "normal": []}
    skipped = []
    for entry in waiting:
        if entry.skipped:
            skipped.append(entry.item)
        else:
            fresh[entry.kind].append(entry.item)
    repeats, gold = fresh["repeat"], fresh["gold"]
    normal = most_uncertain_first(fresh["normal"], doubts or {})
    if gold:
        # here: it loads numpy, and mostly there is no gold
        from ondevice.common.rng import generator

        voted = len(ratings.repeatable(rater, batch)[0])
        due = int((generator(seed, "gold", rater).random(voted) < share).sum())
        if ratings.gold_voted(rater, batch) < due:
            return [*repeats, gold[0], *normal, *gold[1:], *skipped]
    return [*repeats, *normal, *gold, *skipped]


def _bits(p: float) -> float:
    if p in (0.0, 1.0):
        return 0.0
    return -p * math.log2(p) - (1 - p) * math.log2(1 - p)
