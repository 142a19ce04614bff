"""Undo and redo on the rating screen: which votes may be stored again, and what is shown of it."""

from __future__ import annotations

from collections.abc import Sequence

from ondevice.preferences.database import Ratings
from ondevice.preferences.history import newest_of, votes_on
from ondevice.preferences.undo import (
    Restored,
    Undone,
    leave_out,
    pairs_in_words,
    put_back_newest,
    question_to_leave_out,
    store_again,
    undo_newest,
)
from ondevice.preferences.votes import Item, Vote, is_settled, said
from ondevice_tui.run_status import ago
from ondevice_tui.screens.confirm import ask
from ondevice_tui.screens.rate_queue import QueuePage

# what was undone, the newest vote now, the votes that it had settled
_Found = tuple[Undone | None, Vote | None, list[Vote]]


class UndoneVotes:
    """The votes that were taken back in this session, the newest last. They belong to one database
    and one rater."""

    def __init__(self) -> None:
        self.votes: list[Vote] = []
        # not undone: what was left out at once, each a whole; it is here since it has the same owner
        self.left_out: list[list[Vote]] = []
        self._owner: tuple[str, str] = ("", "")  # (database, rater)

    def keep_only_of(self, database: str, rater: str) -> bool:
        """Forgets all votes where the database or the rater is another one than before; returns
        whether it is."""
        owner = (database, rater)
        if owner == self._owner:
            return False
        self.votes, self.left_out = [], []
        self._owner = owner
        return True


class UndoPage(QueuePage):
    """A rating screen that takes votes back and stores them again."""

    def __init__(self) -> None:
        super().__init__()
        self._undone = UndoneVotes()

    def counted(self, votes: int) -> None:
        """So many votes more, or fewer, in this session."""
        raise NotImplementedError

    def count_anew(self) -> None:
        """Another person, or another database: no vote of theirs in this session yet."""
        raise NotImplementedError

    def show_earlier(
        self, item: Item, was: Vote, still: Vote | None, others: Sequence[Vote]
    ) -> None:
        """An item that has been rated before, to be rated anew by the name that `was` is of;
        `still`: the vote that counts until then; `others`: what `was` has settled."""
        raise NotImplementedError

    def _undo(self, confirmed: int) -> None:
        """`confirmed`: the vote of an earlier session of which a person has said that it is to be
        taken back.
        """
        rater = self.rater
        group = self._undone.left_out[-1] if self._undone.left_out else []

        def work(ratings: Ratings) -> _Found | list[int]:
            back = put_back_newest(ratings, group, rater, self.session)
            if back is not None:
                return back
            undone = undo_newest(ratings, rater, self.session, confirmed)
            others = []
            if undone is not None and is_settled(undone.was.rater):
                others = votes_on(ratings, undone.was.item)
            return undone, newest_of(ratings, rater), others

        def then(found: _Found | list[int]) -> None:
            if isinstance(found, list):
                self._undone.left_out.pop()
                self._skipped.difference_update(found)
                self.count_marks()
                self.next(f"taken back: {pairs_in_words(len(found))} as before")
                return
            undone, self.newest, others = found
            self._taken_back(undone, others)

        self._do(work, then)

    # many at once

    def ask_to_leave_out(self, items: Sequence[int], which: str, own: int = 0) -> None:
        """Whether all these are to leave the queue. `own`: how many of them have a vote of this
        rater's, which no longer counts then."""
        if not items:
            self._show_told("no pair is there to leave out")
            return
        rater, session = self.rater, self.session

        def then(skips: list[Vote]) -> None:
            self._undone.left_out.append(skips)
            self._skipped |= set(items)
            self.count_marks()
            self.next(f"left out: {pairs_in_words(len(items))}   u takes that back")

        ask(
            self.ui,
            "leave out",
            question_to_leave_out(len(items), which, own),
            "leave them out",
            lambda: self._do(lambda ratings: leave_out(ratings, items, rater, session), then),
        )

    def action_leave_out(self) -> None:
        """All that waits, of what is asked only."""
        if self.turn is None:
            self._here()
        else:
            which = f"that wait ({self.wanted})" if str(self.wanted) else "that wait"
            self.ask_to_leave_out(self.turn.waiting, which)

    def _taken_back(self, found: Undone | None, others: Sequence[Vote]) -> None:
        if found is None:
            self._show_told("nothing to undo")
            return
        if found.ask:  # a key that is held down ends here
            self._ask_undo(found.was)
            return
        self._skipped.discard(found.item.id)
        self._undone.votes.append(found.was)
        self.counted(-1)
        self.show_earlier(found.item, found.was, found.still, others)
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
        undone = list(self._undone.votes)
        if not undone:
            self._show_told("nothing to store again")
            return
        self._do(lambda ratings: store_again(ratings, self.session, undone), self._stored_again)

    def _stored_again(self, found: Restored) -> None:
        self._undone.votes = self._undone.votes[: found.left]
        if found.vote is not None:
            self.counted(1)
            self.next(f"stored again: {said(found.vote)} ({found.left} left)")
        else:
            self.next("nothing to store again")

    def _forget_undone(self) -> None:
        """Another database, or another person: what was taken back belongs to neither."""
        database = ""
        if self.ratings is not None:
            database = str(self.ratings.path)
        if self._undone.keep_only_of(database, self.rater):
            self.count_anew()
