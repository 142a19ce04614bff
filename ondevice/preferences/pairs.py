"""From votes to what a reward model, DPO or KTO learns from: the majority of the raters, and a
count of all the rest.

A rater's opinion on two responses of an item is which is better, or a tie, or that all are bad; a
ranking that names neither of the two has no opinion on them. A pair is used where more than half of
the opinions say the same. Where somebody has settled what raters disagree on, the newest settlement
is the only opinion. Gold items and repeats measure raters and are never learned from.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Protocol, TypeVar

from ondevice.preferences.database import Ratings
from ondevice.preferences.votes import Item, Vote, is_settled, is_simulated


@dataclass(frozen=True)
class Pair:
    """Two responses to a prompt, the better one and the worse one.

    `raters` said so, in order of their names, `against` said otherwise (a tie included); `strength`
    is the mean of theirs (1 better, 2 much better, 1 where none was given). `meta`: that of the
    item, and of its two responses.
    """

    prompt: list[dict[str, Any]]
    chosen: str
    rejected: str
    item: int
    batch: str
    prompt_sha: str
    raters: tuple[str, ...]
    against: int
    strength: float
    source_chosen: str
    source_rejected: str
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def simulated(self) -> bool:
        """Whether a program is among those who said so."""
        return any(map(is_simulated, self.raters))

    def trl(self) -> dict[str, Any]:
        """The row as TRL reads it: {"prompt", "chosen", "rejected"}, lists of messages; and its
        strength, where that is more than 1."""
        row: dict[str, Any] = {
            "prompt": self.prompt,
            "chosen": _answer(self.chosen),
            "rejected": _answer(self.rejected),
        }
        if self.strength != 1:
            row["strength"] = self.strength
        return row

    def extras(self) -> dict[str, Any]:
        """What TRL has no place for: where it comes from, and who said so how strongly."""
        return {
            "item": self.item,
            "batch": self.batch,
            "raters": list(self.raters),
            "against": self.against,
            "strength": self.strength,
            "source_chosen": self.source_chosen,
            "source_rejected": self.source_rejected,
        }


@dataclass(frozen=True)
class Unpaired:
    """A response to a prompt that is good (`label`) or bad."""

    prompt: list[dict[str, Any]]
    completion: str
    label: bool
    item: int
    batch: str
    prompt_sha: str
    raters: tuple[str, ...]
    against: int
    source: str
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def simulated(self) -> bool:
        """Whether a program is among those who said so."""
        return any(map(is_simulated, self.raters))

    def trl(self) -> dict[str, Any]:
        """The row as TRL reads it: {"prompt", "completion", "label"}."""
        return {"prompt": self.prompt, "completion": _answer(self.completion), "label": self.label}

    def extras(self) -> dict[str, Any]:
        """What TRL has no place for: where it comes from, and who said so."""
        return {
            "item": self.item,
            "batch": self.batch,
            "raters": list(self.raters),
            "against": self.against,
            "source": self.source,
        }


@dataclass(frozen=True)
class Pairs:
    """Pairs in the order of items and slots, and what gave none.

    `left_out` counts pairs of responses by why they are not here: tie, all_bad (where the majority
    says so), disagreement (no majority), unordered (nobody ordered these two), identical (the same
    text twice); and votes: skip, gold, repeat. `votes` were live in all, `simulated_votes` of them
    programs'.
    """

    rows: list[Pair]
    left_out: dict[str, int]
    votes: int
    simulated_votes: int

    def __iter__(self) -> Iterator[Pair]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class LabelledCompletions:
    """Single responses; `left_out` counts responses (tie, disagreement, unordered: neither end) and
    votes.
    """

    rows: list[Unpaired]
    left_out: dict[str, int]
    votes: int
    simulated_votes: int

    def __iter__(self) -> Iterator[Unpaired]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


def pairs_of(
    ratings: Ratings,
    batch: str | None = None,
    *,
    raters: Iterable[str] = (),
    simulated: bool = True,
) -> Pairs:
    """Every pair of responses of which a majority of these raters (of all, where none is named)
    prefers one.
    """
    votes = ratings.live_votes(batch, raters=raters, simulated=simulated)
    rows, left_out = [], Counter[str]()
    for item, said in _opinions(ratings, batch, votes, left_out):
        for one, other in itertools.combinations(range(len(item.responses)), 2):
            pair = _pair(item, one, other, said)
            if isinstance(pair, Pair):
                rows.append(pair)
            else:
                left_out[pair] += 1
    return Pairs(rows, dict(sorted(left_out.items())), *_counts(votes))


def unpaired_of(
    ratings: Ratings,
    batch: str | None = None,
    *,
    raters: Iterable[str] = (),
    simulated: bool = True,
) -> LabelledCompletions:
    """Responses that a majority calls best (good) or worst (bad) of their item, or that are bad as
    all of them are.
    """
    votes = ratings.live_votes(batch, raters=raters, simulated=simulated)
    rows, left_out = [], Counter[str]()
    for item, said in _opinions(ratings, batch, votes, left_out):
        for slot, response in enumerate(item.responses):
            verdicts = {vote.rater: _verdict(vote, slot, len(item.responses)) for vote in said}
            word, agree, against = _majority(verdicts)
            if word not in ("good", "bad"):
                left_out[word] += 1
                continue
            rows.append(
                Unpaired(
                    item.messages,
                    response.text,
                    word == "good",
                    item.id,
                    item.batch,
                    item.prompt_sha,
                    agree,
                    against,
                    response.source,
                    {"item": dict(item.meta), "response": dict(response.meta)},
                )
            )
    return LabelledCompletions(rows, dict(sorted(left_out.items())), *_counts(votes))


class Prompted(Protocol):
    @property
    def prompt_sha(self) -> str: ...


Row = TypeVar("Row", bound=Prompted)


def held_out(prompt_sha: str, share: float, seed: int = 0) -> bool:
    """Whether this prompt belongs to the held-out part, about `share` of all prompts: by its hash,
    so that it is there whatever else is rated, and with every one of its pairs."""
    digest = sha256(f"{seed} {prompt_sha}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2.0**64


def split(rows: Iterable[Row], share: float, seed: int = 0) -> tuple[list[Row], list[Row]]:
    """(to learn from, held out), no prompt in both, the order kept."""
    parts: tuple[list[Row], list[Row]] = ([], [])
    for row in rows:
        parts[held_out(row.prompt_sha, share, seed)].append(row)
    return parts


def better(vote: Vote, one: int, other: int) -> int | None:
    """The slot of the two that this ranked vote prefers; None: it names neither, or is no ranked
    vote.
    """
    for slot in vote.ranking:
        if slot in (one, other):
            return slot
    return None


def labels(vote: Vote) -> dict[tuple[int, int], Hashable]:
    """What a vote says of each pair of slots: the better slot, or the outcome."""
    found: dict[tuple[int, int], Hashable] = {}
    for one, other in itertools.combinations(sorted(vote.shown), 2):
        said: Hashable = vote.outcome
        if vote.outcome == "ranked":
            said = better(vote, one, other)
        if said is not None:
            found[one, other] = said
    return found


def _answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _opinions(
    ratings: Ratings, batch: str | None, votes: Sequence[Vote], left_out: Counter[str]
) -> Iterator[tuple[Item, list[Vote]]]:
    """The normal items that have votes, each with these; skips, and votes on other items, are
    counted.
    """
    of: dict[int, list[Vote]] = {}
    for vote in votes:
        of.setdefault(vote.item, []).append(vote)
    for item in ratings.items(batch):
        given = of.get(item.id, [])
        said = [vote for vote in given if vote.action == "vote"]
        left_out["skip"] += len(given) - len(said)
        if item.kind != "normal":
            left_out[item.kind] += len(said)
        elif said:
            yield item, [vote for vote in said if is_settled(vote.rater)][-1:] or said
    for word, count in list(left_out.items()):
        if not count:
            del left_out[word]


def _pair(item: Item, one: int, other: int, said: Sequence[Vote]) -> Pair | str:
    """The pair, or the word for why there is none."""
    opinions: dict[str, str | int | None] = {}
    for vote in said:
        opinions[vote.rater] = vote.outcome
        if vote.outcome == "ranked":
            opinions[vote.rater] = better(vote, one, other)
    best, agree, against = _majority(opinions)
    if isinstance(best, str):
        return best
    chosen, rejected = item.responses[best], item.responses[one + other - best]
    if chosen.text == rejected.text:
        return "identical"
    strengths = [vote.strength or 1 for vote in said if vote.rater in agree]
    meta = {"item": dict(item.meta), "chosen": dict(chosen.meta), "rejected": dict(rejected.meta)}
    return Pair(
        item.messages,
        chosen.text,
        rejected.text,
        item.id,
        item.batch,
        item.prompt_sha,
        agree,
        against,
        sum(strengths) / len(strengths),
        chosen.source,
        rejected.source,
        meta,
    )


Opinion = TypeVar("Opinion", bound=str | int)


def _majority(opinions: Mapping[str, Opinion | None]) -> tuple[Opinion | str, tuple[str, ...], int]:
    """(what more than half of the raters with an opinion say, who they are, how many say
    otherwise); where none has one, or no half agrees: the word for that."""
    counts = Counter(opinion for opinion in opinions.values() if opinion is not None)
    if not counts:
        return "unordered", (), 0
    word, agree = counts.most_common(1)[0]
    if 2 * agree <= counts.total():
        return "disagreement", (), counts.total()
    raters = sorted(rater for rater, opinion in opinions.items() if opinion == word)
    return word, tuple(raters), counts.total() - agree


def _verdict(vote: Vote, slot: int, width: int) -> str | None:
    """good, bad or tie; "unordered" for what lies between the best and the worst, or beside the
    ranking.
    """
    if vote.outcome != "ranked":
        if vote.outcome == "all_bad":
            return "bad"
        return "tie"
    if slot == vote.ranking[0]:
        return "good"
    if len(vote.ranking) == width and slot == vote.ranking[-1]:
        return "bad"
    return "unordered"


def _counts(votes: Sequence[Vote]) -> tuple[int, int]:
    """(votes that are no skips, those of programs among them)."""
    given = [vote for vote in votes if vote.action == "vote"]
    return len(given), sum(is_simulated(vote.rater) for vote in given)
