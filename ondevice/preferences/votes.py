"""What the preference database holds: items, their responses, and votes, and how its rows become
these.

A rater whose name begins with `simulated:` is a program; whoever counts votes says how many are of
that kind. A vote of `settled:NAME` is what NAME has decided where raters disagree: it counts in
place of theirs, and is no opinion of its own.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ondevice.common.json_files import parse_json

SIMULATED = "simulated:"
SETTLED = "settled:"
Outcome = Literal["ranked", "tie", "all_bad"]
Kind = Literal["normal", "gold", "repeat"]
Row = sqlite3.Row | dict[str, Any]


@dataclass(frozen=True)
class Response:
    """One answer to an item's prompt. `source` names the checkpoint that wrote it."""

    text: str
    source: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Item:
    """A prompt and its responses, by slot. `shown`: the slots from left to right; `gold`: the slot
    known to be best.
    """

    id: int
    batch: str
    prompt: str
    prompt_sha: str
    shown: tuple[int, ...]
    kind: Kind
    gold: int | None
    repeat_of: int | None
    meta: Mapping[str, Any]
    created: float
    responses: tuple[Response, ...]

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The prompt as a chat: [{"role", "content"}, …]."""
        if self.meta.get("form") == "messages":
            return list(parse_json(self.prompt))
        return [{"role": "user", "content": self.prompt}]


@dataclass(frozen=True)
class QueueEntry:
    """An item that a rater has not voted on; `skipped` where they have put it off."""

    item: int
    kind: Kind
    skipped: bool


@dataclass(frozen=True)
class Vote:
    """A row of the table `vote`. `ranking` and `shown` are slots; () where there is none."""

    id: int
    item: int
    rater: str
    session: str
    action: str
    outcome: Outcome | None
    ranking: tuple[int, ...]
    strength: int | None
    shown: tuple[int, ...]
    undoes: int | None
    reason: str | None
    note: str | None
    seen_end: bool | None
    dwell_ms: int | None
    at: float
    app: str


def said(vote: Vote, marks: str = "1234") -> str:
    """A vote in a word or two, by the places at which the responses were shown: "2 is better", "3 >
    1", "tie".
    """
    if vote.action == "skip":
        return "skipped"
    if vote.outcome != "ranked":
        if vote.outcome == "all_bad":
            return "all bad"
        return str(vote.outcome)
    places = [marks[vote.shown.index(slot)] for slot in vote.ranking]
    much = "much better" if vote.strength == 2 else "better"
    if len(places) == 1 or len(vote.shown) == 2:
        return f"{places[0]} is {much}"
    return " > ".join(places)


def brief(vote: Vote, marks: str = "1234") -> str:
    """A vote in a few characters: "1 ›", "2 ››" (much better), "3 › 1", "tie"."""
    if vote.outcome != "ranked":
        return said(vote)
    places = [marks[vote.shown.index(slot)] for slot in vote.ranking]
    if len(vote.shown) == 2:
        places = places[:1]
    if len(places) == 1:
        return f"{places[0]} {'››' if vote.strength == 2 else '›'}"
    return " › ".join(places)


@dataclass(frozen=True)
class Progress:
    """How far one rater is, repeats left out. `usable`: (better, worse) pairs that the ranked votes
    give.
    """

    rated: int
    total: int
    skipped: int
    usable: int
    ties: int
    all_bad: int

    def __str__(self) -> str:
        plural = "" if self.usable == 1 else "s"
        return f"{self.rated} of {self.total} rated, {self.usable} usable pair{plural}"


def is_simulated(rater: str) -> bool:
    """Whether this rater is a program."""
    return rater.startswith(SIMULATED)


def is_settled(rater: str) -> bool:
    """Whether a vote of this name settles what others disagree on."""
    return rater.startswith(SETTLED)


def person_of(rater: str) -> str:
    """Who votes under this name: a settlement is its settler's."""
    return rater.removeprefix(SETTLED)


class Unreadable(ValueError):
    """A row says what no version of ours has written."""


def _parsed(text: Any, kind: type) -> Any:
    """JSON of one kind. Raises Unreadable."""
    try:
        value = parse_json(text)
    except (ValueError, TypeError, RecursionError) as error:  # TypeError: no text at all
        raise Unreadable(str(error)) from error
    if not isinstance(value, kind):
        raise Unreadable(f"{text[:40]!r} is not a {kind.__name__}")
    return value


def _slots(text: str | None, width: int = 4) -> tuple[int, ...]:
    """Slots out of JSON: different ones, each below `width`. Raises Unreadable."""
    slots = _parsed(text or "[]", list)
    known = True
    for slot in slots:
        known = known and type(slot) is int and 0 <= slot < width
    if not known or len(set(slots)) != len(slots):
        raise Unreadable(f"{text!r} are not slots")
    return tuple(slots)


def item_of(row: Row, responses: Sequence[Row]) -> Item:
    """Rows of `item` and `response`, by slot, as they are stored. Raises Unreadable."""
    told = []
    for each in responses:
        told.append(Response(each["text"], each["source"], _parsed(each["meta"], dict)))
    values = dict(row)
    values["shown"] = _slots(row["shown"])
    values["meta"] = _parsed(row["meta"], dict)
    item = Item(**values, responses=tuple(told))
    if len(item.responses) < 2 or sorted(item.shown) != list(range(len(item.responses))):
        raise Unreadable(
            f"item {item.id} has {len(item.responses)} responses, shown as {row['shown']}"
        )
    if item.meta.get("form") == "messages":
        for message in _parsed(item.prompt, list):
            if not isinstance(message, dict):
                raise Unreadable(f"item {item.id} has a prompt that is not a chat")
    return item


def vote_of(row: Row) -> Vote:
    """A row of `vote` as it is stored. Raises Unreadable."""
    values = dict(row)
    values["ranking"] = _slots(row["ranking"])
    values["shown"] = _slots(row["shown"])
    if row["seen_end"] is not None:
        values["seen_end"] = bool(row["seen_end"])
    return Vote(**values)
