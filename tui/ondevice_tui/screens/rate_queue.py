"""The queue of the rating screen: which item is rated next (`order`, by `rating_queue.next_turn`), and
the pairs that are sampled beside the rating."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from functools import partial

from ondevice.common.errors import UserError
from ondevice.preferences import assignment, history
from ondevice.preferences.database import Ratings
from ondevice.preferences.history import Marks, newest_of
from ondevice.preferences.rating_queue import Asking, Order, Turn, Wanted, next_turn
from ondevice.preferences.sqlite_store import Damaged, Replaced, ratings_file
from ondevice.preferences.votes import Progress, Vote
from ondevice_tui.live_sampling import Pairing, rater_name
from ondevice_tui.ratings_thread import RatingsThread
from ondevice_tui.screens.rate_marks import MarkingPage
from ondevice_tui.screens.rating_page import RETRY_S

# of the votes: an earlier pair again, its sides swapped; and as often one whose answer is known
REPEAT_SHARE = 0.1


@dataclass(frozen=True)
class Look:
    """What the database says at one moment: whose turn it is, and the vote that an undo would take
    back."""

    turn: Turn
    newest: Vote | None


class QueuePage(MarkingPage):
    """A rating screen that goes from one item of the queue to the next. A subclass begins a vote on
    an item (`_begin_vote`) and shows how far the rater is (`_show_top`)."""

    order: Order | None = None  # another one than the usual one, for whoever sets it

    def __init__(self) -> None:
        super().__init__()
        self.pairing = Pairing(
            lambda: self.ratings,
            lambda: self.rater,
            lambda: self.ui.run_folder,
            self._news,
            lambda told: self.ui.say(told),
        )
        self._skipped: set[int] = set()
        self.wanted = Wanted()  # what is asked only
        self.turn: Turn | None = None
        self.newest: Vote | None = None
        self.marks = Marks(0, 0, 0)

    def _begin_vote(self) -> None:
        raise NotImplementedError

    def _show_top(self) -> None:
        raise NotImplementedError

    # the database

    def entered(self) -> None:
        self._failed_at = -RETRY_S
        self._open()
        self.show()
        self.run_worker(self.pairing.run(), group="pairing", exclusive=True)

    def left(self) -> None:
        self.workers.cancel_group(self, "pairing")
        self._close()

    def on_unmount(self) -> None:
        self.pairing.kill()
        self._close()

    def _last(self, ratings: Ratings) -> None:
        """What was shown is nobody's any more: others may be asked it. (A claim that cannot be
        given back ends by itself.)"""
        assignment.release(ratings, self.session)

    def runs_changed(self) -> None:
        """Another run, or its first pairs: looked at every second while there is nothing to rate."""
        run = self.ui.run_folder
        wanted = None
        if run is not None:
            wanted = ratings_file(run.path)
        if self.ratings is not None and self.ratings.path != wanted:
            self._close()
            self.trouble = ""
            self.pairing.forget()
            self.pairing.begin(None)
            self._failed_at = -RETRY_S
        if self.ratings is None:
            self._open()
        if self.item is None:
            self.next()

    def _open(self, *, create: bool = False) -> None:
        self.rater = self.rater or rater_name(self.ui.remembered)
        super()._open(create=create)

    @property
    def asking(self) -> Asking:
        return Asking(
            self.rater,
            self.session,
            REPEAT_SHARE,
            wanted=self.wanted,
            doubts=self.pairing.doubts.copy(),
            skipped=frozenset(self._skipped),
        )

    def look(self, ratings: Ratings) -> Look:
        """On the database's thread."""
        return Look(next_turn(ratings, self.asking, self.order), newest_of(ratings, self.rater))

    def count_marks(self) -> None:
        """In the background: no key waits for it."""
        if self.ratings is not None:
            before = self.marks
            at_the_end = self.item is None  # there is time then to count what can be learned from
            begun = self.ratings.do(lambda found: history.marks(found, before, pairs=at_the_end))
            self.run_worker(
                partial(self._take_marks, self.ratings, begun), group="marks", exclusive=True
            )

    async def _take_marks(self, ratings: RatingsThread, begun: Awaitable[Marks]) -> None:
        try:
            marks = await begun
        except UserError as problem:
            self._show_told(str(problem), "$error")
            return
        if self.ratings is ratings and marks != self.marks:
            self.marks = marks
            self._show_told(*self._said)

    def next(self, told: str = "") -> None:
        """Looks for the next item of the queue, and shows it or why there is none; `told` stands
        beneath it.
        """
        if self.ratings is None:
            self._show_next(None)
        elif not self.busy:
            self._do(
                self.look, lambda found: self._show_next(found, told), self._not_read, follows=True
            )

    def _not_read(self, problem: UserError) -> None:
        """It is looked for again at the next look at the runs."""
        if isinstance(problem, Damaged | Replaced):
            self._leave_database(str(problem))
            return
        self.item = None
        self.trouble = str(problem)
        self.show()

    def _show_next(self, found: Look | None, told: str = "") -> None:
        self.item = None
        self.progress = None
        self.turn = None
        if found is not None:
            self.turn = found.turn
            self.newest = found.newest
            self.item = found.turn.item
            self.progress = found.turn.progress
            self.trouble = ""
            if found.turn.project.guidelines and not found.turn.progress.rated:
                told = told or "this project has guidelines: I shows them"
        self._begin_vote()
        self._said = ("", "")
        self.show()
        if self.item is None:
            self.count_marks()
        if told and self.item is not None:
            self._show_told(told)
        elif told:
            self.ui.say(told)

    def _news(self) -> None:
        """Something has happened behind: pairs are there, or it has something to say."""
        if self.ratings is None or not self.composed:
            return
        if self.item is None:
            self.next()
        else:
            rater = self.rater
            begun = self.ratings.do(lambda found: found.progress(rater))
            self.run_worker(
                partial(self._count_anew, self.ratings, begun),
                group="ratings-count",
                exclusive=True,
            )

    async def _count_anew(self, ratings: RatingsThread, begun: Awaitable[Progress]) -> None:
        try:
            progress = await begun
        except UserError as problem:
            self._show_told(str(problem), "$error")
            return
        if self.ratings is ratings:
            self.progress = progress
            self._show_top()
            self._show_told(*self._said)
