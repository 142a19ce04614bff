"""Undo and redo on the rating screen: what is done in the database, which votes may be stored again,
and what is shown of it."""

from __future__ import annotations

from dataclasses import dataclass

from ondevice.preferences.database import Ratings
from ondevice.preferences.votes import Item, Vote, said
from ondevice_tui.run_status import ago
from ondevice_tui.screens.confirm import ask
from ondevice_tui.screens.rate_queue import QueuePage


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


class UndoPage(QueuePage):
    """A rating screen that takes votes back and stores them again."""

    def __init__(self) -> None:
        super().__init__()
        self._undone = UndoneVotes()

    def _undo(self, confirmed: int) -> None:
        """`confirmed`: the vote of an earlier session of which a person has said that it is to be
        taken back.
        """
        rater = self.rater
        self._do(
            lambda ratings: undo_newest(ratings, rater, self.session, confirmed), self._taken_back
        )

    def _taken_back(self, found: Undone | None) -> None:
        if found is None:
            self._show_told("nothing to undo")
            return
        if found.ask:  # a key that is held down ends here
            self._ask_undo(found.was)
            return
        self._skipped.discard(found.item.id)
        self._undone.votes.append(found.was)
        self.item = found.item
        self._begin_vote()
        self.show()
        count = len(self._undone.votes)
        self._show_told(f"taken back ({count}): it was {said(found.was)}   U stores it again")
        self._news()

    def _ask_undo(self, was: Vote) -> None:
        """Whether a vote of an earlier session is to be taken back."""
        if self.app.screen is not self:  # it is asked already
            return
        ask(
            self.ui,
            "undo",
            f"The vote before is of an earlier session, {ago(was.at)}: {said(was)}. Take it back?",
            "take it back",
            lambda: self._undo(was.id),
        )

    def action_redo(self) -> None:
        """The vote that was taken back last and stands for nothing else now."""
        rater = self.rater
        undone = list(self._undone.votes)
        if not undone:
            self._show_told("nothing to store again")
            return
        self._do(
            lambda ratings: store_again(ratings, rater, self.session, undone), self._stored_again
        )

    def _stored_again(self, found: Restored) -> None:
        self._undone.votes = self._undone.votes[: found.left]
        if found.vote is not None:
            self.next(f"stored again: {said(found.vote)} ({found.left} left)")
        else:
            self.next("nothing to store again")

    def _forget_undone(self) -> None:
        """Another database, or another person: what was taken back belongs to neither."""
        database = ""
        if self.ratings is not None:
            database = str(self.ratings.path)
        self._undone.keep_only_of(database, self.rater)
