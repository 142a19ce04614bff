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

`next_turn` is all that a screen or a terminal asks; whoever has another order in mind gives it
another `order`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ondevice.preferences import assignment
from ondevice.preferences.database import Ratings
from ondevice.preferences.project import Project, read_project
from ondevice.preferences.votes import Item, Kind, Progress

GAP = 5  # votes between an item and its repeat, at least
FAR = 20  # and where there are enough: what was rated just now is remembered


@dataclass(frozen=True)
class Wanted:
    """What a rater wants to be asked only: answers of this checkpoint, prompts of this kind (as the
    built-in prompts have it), of this batch, no answer longer than so many characters. Empty and 0:
    all of them."""

    source: str = ""
    kind: str = ""
    batch: str = ""
    longest: int = 0

    def __str__(self) -> str:
        told = [text for text in (self.source, self.kind, self.batch) if text]
        if self.longest:
            told.append(f"up to {self.longest} characters")
        return ", ".join(told)


@dataclass(frozen=True)
class Asking:
    """Who is to be asked, and how: `session` is one opening of a program, `share` how often repeats
    and known answers come, `doubts` what a reward model does not know (`uncertainty`, by item),
    `skipped` what is not offered again in this session."""

    rater: str
    session: str
    share: float = 0.1
    seed: int = 0
    wanted: Wanted = Wanted()
    doubts: Mapping[int, float] = field(default_factory=dict)
    skipped: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Turn:
    """What is shown to a rater now: all that waits for them, in order, and the first of it (None:
    nothing waits), which is claimed; how far they are, of `total` that they have been or will be
    asked; what the project's people have agreed on."""

    waiting: list[int]
    item: Item | None
    progress: Progress
    total: int
    project: Project


Order = Callable[[Ratings, Asking], list[int]]
"""Ids of what waits for a rater, in the order in which it is to be shown."""


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


def next_turn(ratings: Ratings, asking: Asking, order: Order | None = None) -> Turn:
    """Chooses what this rater is shown next, and claims it, so that nobody else is shown the same
    unless the project wants it. Raises UserError as every write does."""
    with ratings.transaction():
        project = read_project(ratings)
        waiting = (order or usual_order)(ratings, asking)
        waiting = [item for item in waiting if item not in asking.skipped]
        waiting = _not_taken(ratings, asking, project, waiting)
        item = None
        if waiting:
            item = ratings.item(waiting[0])
            assignment.claim(ratings, item.id, asking.rater, asking.session)
        else:
            assignment.release(ratings, asking.session)
        progress = ratings.progress(asking.rater, asking.wanted.batch or None)
        total = min(progress.total, progress.rated + len(waiting))
    return Turn(waiting, item, progress, total, project)


def _not_taken(
    ratings: Ratings, asking: Asking, project: Project, waiting: Sequence[int]
) -> list[int]:
    """Without what enough others rate; what this rater has before them in another window last."""
    taken = assignment.taken(ratings, asking.rater, asking.session, project.overlap)
    left = [item for item in waiting if item not in taken.by_others]
    return sorted(left, key=lambda item: item in taken.by_me)


def usual_order(ratings: Ratings, asking: Asking) -> list[int]:
    """`rating_order`, of what is wanted only."""
    wanted = asking.wanted
    found = rating_order(
        ratings, asking.rater, wanted.batch or None, asking.share, asking.seed, asking.doubts
    )
    if not (wanted.source or wanted.kind or wanted.longest):
        return found
    allowed = _allowed(ratings, wanted)
    return [item for item in found if item in allowed]


def _allowed(ratings: Ratings, wanted: Wanted) -> set[int]:
    rows = ratings.rows(
        "SELECT id FROM item WHERE (:kind = '' OR json_extract(meta, '$.kind') = :kind) "
        "AND (:source = '' OR EXISTS (SELECT 1 FROM response WHERE item = item.id "
        "AND source = :source)) AND (:longest = 0 OR NOT EXISTS (SELECT 1 FROM response "
        "WHERE item = item.id AND length(text) > :longest))",
        {"kind": wanted.kind, "source": wanted.source, "longest": wanted.longest},
    )
    return {row["id"] for row in rows}


def choices(ratings: Ratings) -> tuple[list[str], list[str]]:
    """(checkpoints whose answers are there, kinds of prompts), for `Wanted`."""
    sources = ratings.rows("SELECT DISTINCT source FROM response WHERE source <> '' ORDER BY 1")
    kinds = ratings.rows(
        "SELECT DISTINCT json_extract(meta, '$.kind') AS kind FROM item "
        "WHERE json_type(meta, '$.kind') = 'text' ORDER BY 1"
    )
    return [row["source"] for row in sources], [row["kind"] for row in kinds]


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


def queue_repeat(ratings: Ratings, rater: str, batch: str | None, share: float, seed: int) -> None:
    """Queues an earlier item once more for this rater where that is due. When and which is drawn
    for all votes of this rater at once, so that an undo or a kill changes nothing; a rater cannot
    foresee it."""
    # here: it loads numpy, and a first pair is shown without
    from ondevice.common.rng import generator

    voted, again = ratings.repeatable(rater, batch)
    due = int((generator(seed, "repeat", rater).random(len(voted)) < share).sum())
    gap = max(GAP, min(len(voted) // 2, FAR))
    choice = [item for item in voted[:-gap] if item not in again]
    progress = ratings.progress(rater, batch)
    if len(again) < due and choice and progress.rated + progress.skipped < progress.total:
        draw = generator(seed, "repeat", rater, len(again)).integers(len(choice))
        ratings.repeat(choice[int(draw)], rater, seed=seed)


def _bits(p: float) -> float:
    if p in (0.0, 1.0):
        return 0.0
    return -p * math.log2(p) - (1 - p) * math.log2(1 - p)
