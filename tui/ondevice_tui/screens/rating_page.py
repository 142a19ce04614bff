"""A screen on a run's ratings: their database is open while the screen is, on a thread of its own,
and is asked one thing at a time, so that no key is taken for what could not be stored."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from ondevice.common.clock import ticks
from ondevice.common.errors import UserError
from ondevice.preferences.database import Ratings
from ondevice.preferences.sqlite_store import FILE, Damaged, Replaced
from ondevice.preferences.votes import Item, Progress
from ondevice_tui.ratings_thread import RatingsThread
from ondevice_tui.screens.one_key_page import STORING, OneKeyPage

WAIT_S = 0.3  # what the database takes longer for is told
WAITING = "waiting for the database: another program holds it, or the machine is busy"
RETRY_S = 5.0  # between two tries to open a database that could not be opened
T = TypeVar("T")


class RatingPage(OneKeyPage):
    """`item` is what is rated now, `progress` how far the rater is, `trouble` why there is no
    database. A subclass shows all that (`show`), tells a line (`_show_told`) and goes on where the
    database has been opened (`begun`)."""

    def __init__(self) -> None:
        super().__init__()
        self.ratings: RatingsThread | None = None
        self.item: Item | None = None
        self.progress: Progress | None = None
        self.trouble = ""
        # something is being stored or looked up; keys that vote wait for the next pair
        self.busy = False
        self._said: tuple[str, str] = ("", "")  # the line beneath the answers, and its style
        self._failed_at = -RETRY_S

    def show(self, *, again: bool = False) -> None:
        raise NotImplementedError

    def begun(self) -> None:
        raise NotImplementedError

    def _show_told(self, text: str = "", style: str = "$warning") -> None:
        raise NotImplementedError

    def tell_again(self) -> None:
        self._show_told(*self._said)

    def _here(self) -> Item | None:
        """The item that a key is about; where there is none, that is told."""
        if self.item is None:
            self._refuse("no pair was there for it")
        return self.item

    def _last(self, ratings: Ratings) -> None:
        """Done before the database is closed, where it can be."""

    def _close(self) -> None:
        if self.ratings is not None:
            self.ratings.close(self._last)
        self.ratings, self.item, self.progress, self.busy = None, None, None, False

    def _open(self, *, create: bool = False) -> None:
        """Begins to open the run's database, where it has one."""
        run = self.ui.run_folder
        if self.ratings is not None or run is None or not (create or (run.path / FILE).is_file()):
            return
        if not create and ticks() - self._failed_at < RETRY_S:
            return
        self.ratings, self.busy = RatingsThread(run.path / FILE), True
        begun = self.ratings.open(create=create)
        self.run_worker(partial(self._opened, self.ratings, begun), group="ratings")

    async def _opened(self, ratings: RatingsThread, begun: Awaitable[list[str]]) -> None:
        try:
            told = await begun
        except UserError as problem:
            ratings.close()
            if self.ratings is ratings:
                self._leave_database(str(problem))
            return
        for text in told:
            self.ui.say(text, bad=True)
        if self.ratings is ratings:
            self.trouble, self.busy = "", False
            self.begun()

    def _leave_database(self, why: str) -> None:
        """It is opened anew after a moment, and repaired where it has to be."""
        self._close()
        self.trouble, self._failed_at = why, ticks()
        self.show()

    def _do(
        self,
        work: Callable[[Ratings], T],
        then: Callable[[T], None],
        failed: Callable[[UserError], None] | None = None,
        *,
        opens: bool = False,
        follows: bool = False,
    ) -> None:
        """Has something done in the database, then goes on with what came of it; where it fails,
        that is told. One thing at a time: while one is being done, keys that ask for another one
        are told to wait. `opens`: a card is opened then, and gets what is typed meanwhile;
        `follows`: no key has asked for it, so that what keys were not taken is still to be read."""
        if self.ratings is None:
            self._refuse("no pairs are there yet")
            return
        if self.busy:
            self._refuse(STORING)
            return
        if not follows:
            self._take()
        self.busy = True
        if opens:
            self.ui.card_comes()
        begun = self.ratings.do(work)
        self.run_worker(
            partial(self._done, self.ratings, begun, then, failed or self._not_saved),
            group="ratings",
        )

    async def _done(
        self,
        ratings: RatingsThread,
        begun: Awaitable[T],
        then: Callable[[T], None],
        failed: Callable[[UserError], None],
    ) -> None:
        waits = True

        def tell_wait() -> None:
            if waits:  # on a busy machine a timer that was stopped may still be on its way
                self._show_told(WAITING)

        slow = self.set_timer(WAIT_S, tell_wait)
        try:
            result = await begun
        except UserError as problem:
            if self.ratings is ratings:
                self.busy = False
                failed(problem)
                self.ui.card_came()
            else:  # the screen was left meanwhile
                self.ui.say(f"not saved: {problem}", bad=True)
            return
        finally:
            waits = False
            slow.stop()
            if self.ratings is ratings and self._said[0] == WAITING:
                self._show_told()  # the wait is over, however it ended
        if self.ratings is ratings:
            self.busy = False
            then(result)
            self.ui.card_came()

    def _not_saved(self, problem: UserError) -> None:
        if isinstance(problem, Damaged | Replaced):
            self._leave_database(f"not saved: {problem}")
        else:
            self._show_told(f"not saved: {FILE}: {problem.message}", "$error")
