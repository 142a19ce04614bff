"""What an encoder-decoder writes into the gaps of a text: the likeliest ways to fill all of them,
found by a search.

A model that learned by span corruption writes the spans alone, each behind its sentinel; one that
learned by infilling writes the whole text anew, in which the spans stand between what was there.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from ondevice.common.errors import UserError
from ondevice.data.tokenizer import Tokenizer
from ondevice.inference.beam_search import Search, beam_search
from ondevice.inference.external_generator import generator_of
from ondevice.inference.next_token import Sampling
from ondevice.models.model import Model
from ondevice.models.network import objective
from ondevice.seam.protocols import Backend

WRITTEN = "[MASK]"  # what a person writes, whatever the tokenizer calls it
BEAMS = 8
SPAN = 12  # tokens that a gap is thought to hold at most


class Filling(NamedTuple):
    """A way to fill a text: what stands in each gap, and the whole."""

    spans: Sequence[str]
    text: str


def parts_around(text: str, tokenizer: Tokenizer) -> list[str]:
    """What stands before, between and behind the gaps. A gap takes the space before it along, as
    the words that it may stand for do."""
    patterns = [re.escape(WRITTEN)]
    mask = tokenizer.named.get("mask_token")
    if mask:
        patterns.append(re.escape(mask))
    patterns.append("<extra_id_[0-9]+>")
    return re.split(f" ?(?:{'|'.join(patterns)})", text)


def fill_gaps(model: Model, backend: Backend, text: str, top: int) -> dict[str, Any]:
    """{"text": filled in the likeliest way, "masks": for each gap the candidates [{"token",
    "probability"}]}: what stands there in the ways that were found, and how likely those are among
    all that were found. Raises UserError for a text that is too long or has more gaps than the
    model can tell apart."""
    tokenizer, parts = model.tokenizer, parts_around(text, model.tokenizer)
    by_spans = objective(model.cfg) == "spans"
    marks = _marks(tokenizer, len(parts) - 1, by_spans)
    between = [tokenizer.encode(part) for part in parts]
    source = [*_joined(between, [[mark] for mark in marks]), tokenizer.eos_id]
    room = SPAN * len(marks)
    if by_spans:
        first = marks[0]
    else:  # the whole text is written anew
        first = tokenizer.cls_id
        source.insert(0, first)
        room += len(source)
    generator = generator_of(model, backend, Sampling(max_new_tokens=room, temperature=0))
    found = beam_search(
        generator,
        model.params,
        source,
        max(BEAMS, 2 * top),
        Search(length_penalty=0.0, early_stopping="never", forced_bos_token_id=first),
    )
    ways: list[tuple[Filling, float]] = []
    for one in found:
        ids = one.completion.ids
        if by_spans:
            filling: Filling | None = _by_spans(ids, between, marks, tokenizer)
        else:
            filling = _by_text(ids, parts, tokenizer)
        if filling is not None:
            ways.append((filling, math.exp(one.score - found[0].score)))
    masks = [_candidates(ways, gap, top) for gap in range(len(marks))]
    if not ways:
        return {"text": tokenizer.decode(found[0].completion.ids), "masks": masks}
    best, _ = ways[0]
    return {"text": best.text, "masks": masks}


def _candidates(
    ways: Sequence[tuple[Filling, float]], gap: int, top: int
) -> list[dict[str, str | float]]:
    """What stands in a gap, likeliest first, and its share of all ways."""
    total = sum(weight for _, weight in ways)
    likely: dict[str, float] = defaultdict(float)
    for filling, weight in ways:
        likely[filling.spans[gap]] += weight / total
    best = sorted(likely.items(), key=lambda one: -one[1])[:top]
    return [{"token": span, "probability": probability} for span, probability in best]


def _joined(between: Sequence[Sequence[int]], gaps: Sequence[Sequence[int]]) -> list[int]:
    """The parts with what is in the gaps between them."""
    first, *others = between
    ids = list(first)
    for gap, part in zip(gaps, others, strict=True):
        ids += gap
        ids += part
    return ids


def _marks(tokenizer: Tokenizer, gaps: int, by_spans: bool) -> list[int]:
    """The token that stands for each gap."""
    if not by_spans:
        if tokenizer.mask_id is None:
            raise UserError(
                "the tokenizer has no mask token",
                where="tokenizer_config.json",
                hint="give mask_token",
            )
        return [tokenizer.mask_id] * gaps
    if gaps > len(tokenizer.sentinels):
        raise UserError(
            f"has {gaps} gaps, the tokenizer has {len(tokenizer.sentinels)} sentinels to name them",
            where="text",
            hint="hide less",
        )
    return [int(i) for i in tokenizer.sentinels[:gaps]]


def _by_spans(
    ids: Sequence[int], between: Sequence[Sequence[int]], marks: Sequence[int], tokenizer: Tokenizer
) -> Filling:
    """A gap whose sentinel was not written holds nothing."""
    spans: dict[int, list[int]] = {mark: [] for mark in marks}
    writing: list[int] = []
    for i in ids:
        if i in tokenizer.sentinels:
            writing = spans.get(i, [])
        else:
            writing.append(i)
    whole = _joined(between, [*spans.values()])
    return Filling(
        tuple(tokenizer.decode(span) for span in spans.values()), tokenizer.decode(whole)
    )


def _by_text(ids: Sequence[int], parts: Sequence[str], tokenizer: Tokenizer) -> Filling | None:
    """None where what stood around the gaps was written otherwise."""
    text = tokenizer.decode(ids)
    match = re.fullmatch("(.*?)".join(map(re.escape, parts)), text, re.DOTALL)
    return match and Filling(match.groups(), text)
