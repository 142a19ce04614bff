"""Which of the pairs that were written are rated next: those whose votes would teach most.

What a vote teaches is the information that it gives of the rater's taste (`taste.py`). Pairs are
taken one after the other, each as if the ones before were known already, and the more the less its
prompt is like those that were just taken: ten answers to one kind of question teach what two do.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ondevice.common.rng import generator
from ondevice.rating_rounds.taste import Forecast

MEASURE, RANDOM, TAUGHT = "measure", "random", "taught"
_BLOCK = 20  # places of which a share is of a kind
_WORD = re.compile(r"\w+")


def kind_of_place(
    place: int, seed: int, measure: float, random: float, *, version: int, active: bool
) -> str:
    """Why the pair at this place of the stream is asked: a share of every block of places is drawn
    to measure the newest version, a share of the others is drawn at random. A rater cannot foresee
    either."""
    block, at = divmod(place, _BLOCK)
    order = generator(seed, "rounds places", block).permutation(_BLOCK).tolist().index(at)
    measured = round(measure * _BLOCK)
    if version and order < measured:
        return MEASURE
    if not active or order - measured < round(random * (_BLOCK - measured)):
        return RANDOM
    return TAUGHT


def words_of(text: str) -> frozenset[str]:
    """What is compared of two prompts."""
    return frozenset(_WORD.findall(text.lower()))


def unlike(words: frozenset[str], others: Sequence[frozenset[str]]) -> float:
    """1 where a prompt shares no word with any of the others, 0 where it is one of them (Jaccard)."""
    most = 0.0
    for other in others:
        union = len(words | other)
        if union:
            most = max(most, len(words & other) / union)
    return 1.0 - most


def chosen(
    texts: Sequence[str], forecast: Forecast | None, count: int, lately: Sequence[str]
) -> list[tuple[int, float | None]]:
    """(number, bits that its vote teaches) of the `count` pairs that teach most, the first one
    first; without a forecast by their prompts alone. `texts` are these, `lately` those that were
    asked before."""
    words = [words_of(text) for text in texts]
    taken = [words_of(text) for text in lately]
    left = list(range(len(texts)))
    picked: list[tuple[int, float | None]] = []
    while left and len(picked) < count:
        if forecast is None:
            bits = [1.0] * len(texts)
        else:
            bits = forecast.bits().tolist()
        best = max(left, key=lambda n: (bits[n] * (1 + unlike(words[n], taken)), -n))
        left.remove(best)
        taken.append(words[best])
        if forecast is None:
            picked.append((best, None))
        else:
            picked.append((best, bits[best]))
            forecast = forecast.after(best)
    return picked
