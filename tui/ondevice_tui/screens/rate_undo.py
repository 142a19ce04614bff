"""Undo and redo on the rating screen: what is done in the database, and which votes may be stored
again."""

from __future__ import annotations

from dataclasses import dataclass

from ondevice.preferences.database import Ratings
from ondevice.preferences.votes import Item, Vote


@dataclass(frozen=True)
class Undone:
    """What came of an undo: the item that is rated anew and what the vote had been; `ask`: nothing
    yet, because the vote is of an earlier session."""

    item: Item
    was: Vote
    ask: bool


@dataclass(frozen=True)
class Restored:
    """What came of a redo: the vote that is stored again, None where there was none; `left`: how
    many may still be stored again."""

    vote: Vote | None
    left: int


class UndoneVotes:
    """The votes that were taken back in this session, the newest last. They belong to one database
    and one rater."""

    def __init__(self) -> None:
        self.votes: list[Vote] = []
        self._owner: tuple[str, str] = ("", "")  # (database, rater)

    def keep_only_of(self, database: str, rater: str) -> None:
        """Forgets all votes where the database or the rater is another one than before."""
        owner = (database, rater)
        if owner != self._owner:
            self.votes = []
            self._owner = owner


def undo_newest(ratings: Ratings, rater: str, session: str, confirmed: int) -> Undone | None:
    """Takes the rater's newest vote back; None where there is none. A vote of an earlier session is
    left as it is unless its id is `confirmed`: then a person has said that it is to be taken back.
    """
    with ratings.transaction():
        newest = ratings.newest(rater)
        if newest is None:
            return None
        if newest.session != session and newest.id != confirmed:
            return Undone(ratings.item(newest.item), newest, ask=True)
        item = ratings.undo(rater, session)
        assert item is not None
        return Undone(item, newest, ask=False)


def store_again(ratings: Ratings, rater: str, session: str, undone: list[Vote]) -> Restored:
    """Stores the newest of these votes whose item has not been rated anew since. Takes the votes
    that it has looked at off the list."""
    with ratings.transaction():
        while undone:
            was = undone.pop()
            if ratings.voted(was.item, rater) is None:
                _store(ratings, rater, session, was)
                return Restored(was, len(undone))
    return Restored(None, 0)


def _store(ratings: Ratings, rater: str, session: str, was: Vote) -> None:
    if was.action == "skip":
        ratings.skip(was.item, rater, session, dwell_ms=was.dwell_ms)
        return
    assert was.outcome is not None
    ratings.vote(
        was.item,
        rater,
        session,
        was.outcome,
        was.ranking,
        strength=was.strength,
        reason=was.reason,
        seen_end=was.seen_end,
        dwell_ms=was.dwell_ms,
    )
