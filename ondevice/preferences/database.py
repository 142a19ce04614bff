"""The preference database: prompts with two to four responses, and what people said about them.

SQLite, one file. A vote is on disk when `vote` returns (WAL with synchronous=FULL), and stays:
votes are append-only, an undo is a row of its own. Which response stands left is drawn when an item
is queued, from a seed, balanced within the batch, and stored; who wrote a response is stored beside
it and is not for the rater's eyes.

The file must lie on a local disk: SQLite's WAL does not work over a network.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from ondevice.common.clock import clock
from ondevice.common.distribution import own_version
from ondevice.common.errors import UserError
from ondevice.preferences.sqlite_store import REPAIR, Damaged, Store, clean
from ondevice.preferences.votes import (
    Item,
    Kind,
    Outcome,
    Progress,
    QueueEntry,
    Response,
    Unreadable,
    Vote,
    is_simulated,
    item_of,
    vote_of,
)

Message = Mapping[str, Any]
# Columns that are written: the database counts ids itself.
_ITEM = tuple(f.name for f in fields(Item) if f.name not in ("id", "responses"))
_VOTE = tuple(f.name for f in fields(Vote) if f.name != "id")


class Ratings(Store):
    """An open database: what was asked and answered, and what was said about it."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        super().__init__(connection, path)
        self._places: dict[str, Counter[tuple[str, ...]]] = {}  # batch → sources → how many items
        self._places_of = -1

    @contextmanager
    def transaction(self) -> Iterator[None]:
        try:
            with super().transaction():
                yield
        except BaseException:
            self._places.clear()  # what was counted may have been taken back
            raise

    # Items

    def add(
        self,
        batch: str,
        prompt: str | Sequence[Message],
        responses: Sequence[Response],
        *,
        kind: Kind = "normal",
        gold: int | None = None,
        repeat_of: int | None = None,
        meta: Mapping[str, Any] | None = None,
        seed: int,
    ) -> int:
        """Queues a prompt (a user's message, or a chat) with two to four responses; returns the
        item's id.

        The order in which they are shown is drawn from (seed, batch) so that within the batch every
        source (every slot, where sources have no names) stands at every place equally often. A
        repeat is shown in the opposite order of the item that it repeats.
        """
        assert 2 <= len(responses) <= 4
        assert gold is None or 0 <= gold < len(responses)
        assert (kind == "gold") == (gold is not None)
        assert (kind == "repeat") == (repeat_of is not None)
        text, form = _prompt(prompt)
        batch = clean(batch)
        with self.transaction():
            if repeat_of is not None:
                shown = self.item(repeat_of).shown[::-1]
            else:
                sources = [clean(response.source) for response in responses]
                shown = self._draw_shown(batch, sources, seed)
            return self.insert_item(
                {
                    "batch": batch,
                    "prompt": text,
                    "prompt_sha": sha256(text.encode()).hexdigest(),
                    "shown": shown,
                    "kind": kind,
                    "gold": gold,
                    "repeat_of": repeat_of,
                    "meta": {"form": form, **(meta or {})},
                    "created": clock(),
                },
                responses,
            )

    def repeat(self, item: int, rater: str, *, seed: int = 0) -> int:
        """Queues the item once more for this rater alone, its sides swapped: what measures their
        own consistency.
        """
        of = self.item(item)
        meta = {**of.meta, "rater": rater}
        return self.add(
            of.batch, of.messages, of.responses, kind="repeat", repeat_of=item, meta=meta, seed=seed
        )

    def insert_item(self, row: Mapping[str, Any], responses: Sequence[Response]) -> int:
        """A whole row of `item` as it is, except its id; for reading exported ratings. `add` makes
        new ones.
        """
        with self.transaction():
            item = self._insert("item", {name: row[name] for name in _ITEM})
            for slot, response in enumerate(responses):
                self._insert(
                    "response",
                    {
                        "item": item,
                        "slot": slot,
                        "text": response.text,
                        "source": response.source,
                        "meta": dict(response.meta),
                    },
                )
        return item

    def items(self, batch: str | None = None) -> list[Item]:
        """All items (of a batch) in the order in which they were queued."""
        return self._items("(:batch IS NULL OR batch = :batch)", {"batch": batch})

    def item(self, id: int) -> Item:
        """Raises UserError where there is none."""
        found = self._items("id = :id", {"id": id})
        if not found:
            raise UserError(f"has no item {id}", where=str(self.path))
        return found[0]

    def batches(self) -> list[str]:
        """Names of the batches, the first queued first."""
        rows = self._rows("SELECT batch FROM item GROUP BY batch ORDER BY min(id)")
        return [row["batch"] for row in rows]

    def queue(self, rater: str, batch: str | None = None) -> list[int]:
        """Ids of what this rater has not yet rated: repeats that wait, the others in order, then
        what was skipped.
        """
        return [waiting.item for waiting in self.waiting(rater, batch)]

    def waiting(self, rater: str, batch: str | None = None) -> list[QueueEntry]:
        """The queue, with each item's kind. (`rating.in_turn` says what of it is shown next.)"""
        rows = self._rows(
            "SELECT item.id, item.kind, live.id IS NOT NULL AS skipped FROM item "
            "LEFT JOIN live ON live.item = item.id AND live.rater = :rater "
            "WHERE (live.id IS NULL OR live.action = 'skip') AND (:batch IS NULL OR batch = :batch) "
            "AND (kind <> 'repeat' OR ifnull(json_extract(meta, '$.rater'), :rater) = :rater) "
            "ORDER BY live.id IS NOT NULL, kind <> 'repeat', live.id, item.id",
            {"rater": rater, "batch": batch},
        )
        return [QueueEntry(row["id"], row["kind"], bool(row["skipped"])) for row in rows]

    def progress(self, rater: str, batch: str | None = None) -> Progress:
        """Counts of this rater's live votes on normal and gold items."""
        rows = self._rows(
            "SELECT live.action, live.outcome, json_array_length(live.ranking) AS named, "
            "json_array_length(item.shown) AS width FROM item LEFT JOIN live ON live.item = item.id "
            "AND live.rater = :rater WHERE kind <> 'repeat' AND (:batch IS NULL OR batch = :batch)",
            {"rater": rater, "batch": batch},
        )
        counts = Counter(row["outcome"] or row["action"] for row in rows)
        usable = 0
        for row in rows:
            # the first named is better than width-1 others, the second than width-2, …
            for place in range(row["named"] or 0):
                usable += row["width"] - 1 - place
        rated = counts["ranked"] + counts["tie"] + counts["all_bad"]
        return Progress(rated, len(rows), counts["skip"], usable, counts["tie"], counts["all_bad"])

    def repeatable(self, rater: str, batch: str | None = None) -> tuple[list[int], list[int]]:
        """(normal items that this rater has voted on, in the order of the votes; those queued for
        them once more).
        """
        voted = self._rows(
            "SELECT item.id FROM live JOIN item ON item.id = live.item WHERE rater = :rater "
            "AND action = 'vote' AND kind = 'normal' AND (:batch IS NULL OR batch = :batch) "
            "ORDER BY live.id",
            {"rater": rater, "batch": batch},
        )
        again = self._rows(
            "SELECT repeat_of FROM item WHERE kind = 'repeat' "
            "AND json_extract(meta, '$.rater') = :rater AND (:batch IS NULL OR batch = :batch)",
            {"rater": rater, "batch": batch},
        )
        return [row["id"] for row in voted], [row["repeat_of"] for row in again]

    def gold_voted(self, rater: str, batch: str | None = None) -> int:
        """How many gold items this rater has voted on."""
        rows = self._rows(
            "SELECT count(*) FROM live JOIN item ON item.id = live.item WHERE rater = ? "
            "AND action = 'vote' AND kind = 'gold' AND (? IS NULL OR batch = ?)",
            (rater, batch, batch),
        )
        return int(rows[0][0])

    # Votes

    def vote(
        self,
        item: int,
        rater: str,
        session: str,
        outcome: Outcome = "ranked",
        ranking: Sequence[int] = (),
        *,
        strength: int | None = None,
        reason: str | None = None,
        note: str | None = None,
        seen_end: bool | None = None,
        dwell_ms: int | None = None,
    ) -> Vote:
        """Stores a vote; it is on disk when this returns. A later vote of the same rater replaces
        an earlier one.

        `ranking`: slots, best first, for the outcome `ranked`; slots that are not named are worse
        than the named ones, in no order among themselves. `strength`: 1, or 2 for much better.
        """
        of = self.item(item)
        if outcome == "ranked":
            ranking = _whole(ranking, len(of.responses))
        assert bool(ranking) == (outcome == "ranked"), (outcome, ranking)
        return self._act(
            of,
            rater,
            session,
            "vote",
            outcome=outcome,
            ranking=tuple(ranking) or None,
            strength=strength,
            shown=of.shown,
            reason=reason,
            note=note,
            seen_end=seen_end,
            dwell_ms=dwell_ms,
        )

    def skip(self, item: int, rater: str, session: str, *, dwell_ms: int | None = None) -> Vote:
        """Puts the item at the end of this rater's queue."""
        of = self.item(item)
        return self._act(of, rater, session, "skip", shown=of.shown, dwell_ms=dwell_ms)

    def note(self, item: int, rater: str, session: str, note: str) -> Vote:
        """A remark on an item, beside any vote."""
        return self._act(self.item(item), rater, session, "note", note=note)

    def flag(self, item: int, rater: str, session: str, note: str | None = None) -> Vote:
        """Marks an item as one to look at."""
        return self._act(self.item(item), rater, session, "flag", note=note)

    def newest(self, rater: str) -> Vote | None:
        """This rater's newest live vote or skip: what `undo` would take back."""
        rows = self._rows(
            "SELECT * FROM live WHERE rater = ? ORDER BY id DESC LIMIT 1", (clean(rater),)
        )
        with self._readable("a vote"):
            if rows:
                return vote_of(rows[0])
            return None

    def voted(self, item: int, rater: str) -> Vote | None:
        """This rater's live vote on an item, a skip left out: another window may have stored one."""
        rows = self._rows(
            "SELECT * FROM live WHERE item = ? AND rater = ? AND action = 'vote'",
            (item, clean(rater)),
        )
        with self._readable("a vote"):
            if rows:
                return vote_of(rows[0])
            return None

    def undo(self, rater: str, session: str) -> Item | None:
        """Takes this rater's newest live vote or skip back, whatever session it is from; returns
        its item, None where nothing is left to take back."""
        with self.transaction():
            newest = self._rows(
                "SELECT id, item FROM live WHERE rater = ? ORDER BY id DESC LIMIT 1", (rater,)
            )
            if not newest:
                return None
            item = self.item(newest[0]["item"])
            self._act(item, rater, session, "undo", undoes=newest[0]["id"])
        return item

    def take_back(self, vote: Vote, session: str) -> None:
        """Undoes this vote or skip, whether or not it is the newest."""
        self._act(self.item(vote.item), vote.rater, session, "undo", undoes=vote.id)

    def live_votes(
        self, batch: str | None = None, *, raters: Iterable[str] = (), simulated: bool = True
    ) -> list[Vote]:
        """Votes and skips that count, the oldest first: of these raters, or of all, programs among
        them or not.
        """
        return self._votes("live", batch, raters, simulated)

    def votes(
        self, batch: str | None = None, *, raters: Iterable[str] = (), simulated: bool = True
    ) -> list[Vote]:
        """Every row ever written, undone ones, undos, notes and flags included, the oldest first."""
        return self._votes("vote", batch, raters, simulated)

    def insert_vote(self, row: Mapping[str, Any]) -> int:
        """A whole row of `vote` as it is, except its id; for reading exported ratings."""
        return self._insert("vote", {name: row[name] for name in _VOTE})

    def insert_score(self, row: Mapping[str, Any]) -> int:
        """A whole row of `score`, except its id (`rubric.py` gives them)."""
        return self._insert("score", row)

    # Within

    def _act(self, item: Item, rater: str, session: str, action: str, **given: Any) -> Vote:
        """Stores a row of `vote` with what is `given` of its columns, the others empty."""
        assert rater
        row: dict[str, Any] = dict.fromkeys(_VOTE)
        row |= {"item": item.id, "rater": rater, "session": session, "action": action}
        row |= given
        row |= {"at": clock(), "app": app_name()}
        with self.transaction():
            vote = self.insert_vote(row)
        return vote_of(self._rows("SELECT * FROM vote WHERE id = ?", (vote,))[0])

    def _items(self, where: str, values: Mapping[str, Any]) -> list[Item]:
        with self._readable("an item"):
            responses: dict[int, list[sqlite3.Row]] = {}
            for row in self._rows(
                "SELECT response.* FROM response WHERE item IN (SELECT id FROM item WHERE "
                f"{where}) ORDER BY item, slot",
                values,
            ):
                responses.setdefault(row["item"], []).append(row)
            rows = self._rows(f"SELECT * FROM item WHERE {where} ORDER BY id", values)
            return [item_of(row, responses.get(row["id"], [])) for row in rows]

    def _votes(
        self, table: str, batch: str | None, raters: Iterable[str], simulated: bool
    ) -> list[Vote]:
        rows = self._rows(
            f"SELECT v.* FROM {table} v JOIN item ON item.id = v.item "
            "WHERE ? IS NULL OR batch = ? ORDER BY v.id",
            (batch, batch),
        )
        wanted = {clean(rater) for rater in raters}
        found = []
        with self._readable("a vote"):
            for row in rows:
                if wanted and row["rater"] not in wanted:
                    continue
                if not simulated and is_simulated(row["rater"]):
                    continue
                found.append(vote_of(row))
        return found

    @contextmanager
    def _readable(self, what: str) -> Iterator[None]:
        """Raises Damaged for JSON in the database that is not what it should be."""
        try:
            yield
        except Unreadable as error:
            raise Damaged(
                f"{what} in it is damaged ({error})", where=str(self.path), hint=REPAIR
            ) from error

    def _draw_shown(self, batch: str, sources: Sequence[str], seed: int) -> tuple[int, ...]:
        """The order of the next item with these sources. Orders come in blocks that are balanced in
        themselves, each block shuffled: no rater can tell the next one, and any number of items is
        balanced to within a block."""
        # here: it loads numpy, and who only votes does without
        from ondevice.common.rng import generator

        by_source = sorted(range(len(sources)), key=lambda slot: (sources[slot], slot))
        group = tuple(sources[slot] for slot in by_source)
        before = self._count(batch)
        orders = _balanced(len(sources))
        block, place = divmod(before[group], len(orders))
        before[group] += 1
        draw = generator(seed, "shown", batch, *group, block).permutation(len(orders))
        return tuple(by_source[place] for place in orders[draw[place]])

    def _count(self, batch: str) -> Counter[tuple[str, ...]]:
        changed = self._pragma("data_version")  # another connection has written since
        if changed != self._places_of:
            self._places.clear()
            self._places_of = changed
        if batch not in self._places:
            sources: dict[int, list[str]] = {}
            for row in self._rows(
                "SELECT item, source FROM response JOIN item ON item.id = item WHERE batch = ? "
                "AND kind <> 'repeat' ORDER BY item, source",
                (batch,),
            ):
                sources.setdefault(row["item"], []).append(row["source"])
            self._places[batch] = Counter(map(tuple, sources.values()))
        return self._places[batch]


def _balanced(width: int) -> list[tuple[int, ...]]:
    """Orders in which every slot stands at every place equally often, and every two in either
    order: the rotations and their opposites (2 orders of two, 6 of three, 8 of four)."""
    slots = tuple(range(width))
    rotations = [slots[start:] + slots[:start] for start in slots]
    opposites = [order[::-1] for order in rotations]
    return list(dict.fromkeys(rotations + opposites))


def _prompt(prompt: str | Sequence[Message]) -> tuple[str, str]:
    """(text as stored, form). A chat of one plain user message is that message: one prompt has one
    hash.
    """
    if isinstance(prompt, str):
        return clean(prompt), "text"
    messages = [dict(message) for message in prompt]
    if len(messages) == 1 and set(messages[0]) == {"role", "content"}:
        [message] = messages
        if message["role"] == "user":
            return clean(message["content"]), "text"
    return clean(json.dumps(messages, ensure_ascii=False)), "messages"


def _whole(ranking: Sequence[int], width: int) -> tuple[int, ...]:
    """The ranking, with the last slot added where only one place for it is left."""
    assert ranking, ranking
    assert len(set(ranking)) == len(ranking), ranking
    assert set(ranking) <= set(range(width)), ranking
    rest = [slot for slot in range(width) if slot not in ranking]
    if len(rest) == 1:
        return (*ranking, *rest)
    return tuple(ranking)


@lru_cache(maxsize=1)
def app_name() -> str:
    """What is written into a row as its writer."""
    return f"ondevice {own_version()}"
