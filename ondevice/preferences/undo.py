"""Undo and redo of one rater: what is taken back, and what may be stored again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ondevice.preferences import assignment
from ondevice.preferences.database import Ratings
from ondevice.preferences.history import newest_of
from ondevice.preferences.votes import Item, Vote


@dataclass(frozen=True)
class Undone:
    """What came of an undo: the item that is rated anew and what the vote had been; `ask`: nothing
    yet, because the vote is of an earlier session; `still`: the vote that counts again, where the
    one that was taken back had changed an earlier one."""

    item: Item
    was: Vote
    ask: bool
    still: Vote | None = None


@dataclass(frozen=True)
class Restored:
    """What came of a redo: the vote that is stored again, None where there was none; `left`: how
    many may still be stored again."""

    vote: Vote | None
    left: int


def undo_newest(ratings: Ratings, rater: str, session: str, confirmed: int) -> Undone | None:
    """Takes the rater's newest vote back; None where there is none. A vote of an earlier session is
    left as it is unless its id is `confirmed`: then a person has said that it is to be taken back.
    """
    with ratings.transaction():
        newest = newest_of(ratings, rater)
        if newest is None:
            return None
        if newest.session != session and newest.id != confirmed:
            return Undone(ratings.item(newest.item), newest, ask=True)
        item = ratings.undo(newest.rater, session)
        assert item is not None
        assignment.claim(ratings, item.id, rater, session)
        return Undone(item, newest, ask=False, still=ratings.voted(item.id, newest.rater))


def leave_out(ratings: Ratings, items: Sequence[int], rater: str, session: str) -> list[Vote]:
    """Skips all of these items at once: they come at the end of this rater's queue, and votes of
    theirs no longer count. Returns the skips, for `put_back`."""
    with ratings.transaction():
        return [ratings.skip(item, rater, session) for item in items]


def put_back(ratings: Ratings, skips: Sequence[Vote], session: str) -> list[int]:
    """Undoes a `leave_out` as a whole, except for what has been rated since: what was said before
    counts again. Returns the items."""
    with ratings.transaction():
        live = {vote.id for vote in ratings.live_votes(raters=[skip.rater for skip in skips[:1]])}
        back = [skip for skip in skips if skip.id in live]
        for skip in back:
            ratings.take_back(skip, session)
    return [skip.item for skip in back]


def put_back_newest(
    ratings: Ratings, skips: Sequence[Vote], rater: str, session: str
) -> list[int] | None:
    """`put_back` where this rater has voted on nothing since; else None, and nothing is done: an
    undo is then of what they said last."""
    with ratings.transaction():
        newest = newest_of(ratings, rater)
        if newest is None or all(newest.id != skip.id for skip in skips):
            return None
        return put_back(ratings, skips, session)


def pairs_in_words(count: int) -> str:
    """`1 pair`, `3 pairs`."""
    return "1 pair" if count == 1 else f"{count} pairs"


def question_to_leave_out(count: int, which: str, own: int) -> str:
    """What a rater is asked before so many pairs are left out; `own`: how many of them have a vote
    of theirs."""
    told = f"Leave out {pairs_in_words(count)} {which}?"
    if own:
        told += f" Your votes on {own} of them no longer count."
    return f"{told} They come again at the end, another time; u takes this back as a whole."


def store_again(ratings: Ratings, session: str, undone: list[Vote]) -> Restored:
    """Stores the newest of these votes whose item has not been rated anew since. Takes the votes
    that it has looked at off the list."""
    with ratings.transaction():
        while undone:
            was = undone.pop()
            now = ratings.voted(was.item, was.rater)
            if now is None or now.id < was.id:  # nothing since, or only what it had changed
                _store(ratings, session, was)
                return Restored(was, len(undone))
    return Restored(None, 0)


def _store(ratings: Ratings, session: str, was: Vote) -> None:
    if was.action == "skip":
        ratings.skip(was.item, was.rater, session, dwell_ms=was.dwell_ms)
        return
    assert was.outcome is not None
    ratings.vote(
        was.item,
        was.rater,
        session,
        was.outcome,
        was.ranking,
        strength=was.strength,
        reason=was.reason,
        seen_end=was.seen_end,
        dwell_ms=was.dwell_ms,
    )
