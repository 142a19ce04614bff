"""The ratings database of the Rate screen, on a thread of its own.

What waits for the disk, or for another program that holds the database, waits there: the app goes
on drawing and taking keys. One thread, so that what is asked is done in the order in which it was
asked, and by the connection's own thread, as SQLite's module wants it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from ondevice.common.errors import UserError
from ondevice.preferences.database import Ratings
from ondevice.preferences.repair import open_for_rating
from ondevice.preferences.sqlite_store import ratings_file

T = TypeVar("T")


class RatingsThread:
    """Call `open` once, then `do` as often as is needed, then `close`."""

    def __init__(self, path: Path) -> None:
        self.path = ratings_file(path)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ratings")
        self._ratings: Ratings | None = None
        self._closed = False

    def open(self, *, create: bool = False) -> Awaitable[list[str]]:
        """Checks, repairs and copies as a rating session begins; gives what is to be told of it.
        Raises UserError.
        """

        def work() -> list[str]:
            self._ratings, told = open_for_rating(self.path, create=create)
            return told

        return self._submit(work)

    def do(self, work: Callable[[Ratings], T]) -> Awaitable[T]:
        """What `work` gives for the open database. It is begun when this is called, and done to its
        end even where nobody waits for it any more. Raises what `work` raises: UserError for a
        database that is held, full or damaged; UserError where it could not be opened, and where it
        was closed before."""

        def with_ratings() -> T:
            if self._ratings is None:  # asked for before it was known that it cannot be opened
                raise UserError("could not be opened", where=str(self.path))
            return work(self._ratings)

        return self._submit(with_ratings)

    def close(self, last: Callable[[Ratings], object] | None = None) -> None:
        """After what was asked before, and after `last` where that can be done: whoever gives it
        does without it. Waits for nothing."""
        if not self._closed:
            self._closed = True
            self._thread.submit(self._close, last)
            self._thread.shutdown(wait=False)

    def _submit(self, work: Callable[[], T]) -> Awaitable[T]:
        if self._closed:
            raise UserError("was closed", where=str(self.path))
        return asyncio.shield(asyncio.wrap_future(self._thread.submit(work)))

    def _close(self, last: Callable[[Ratings], object] | None) -> None:
        if self._ratings is not None:
            if last is not None:
                with suppress(UserError):  # it is held or full: nobody is there to be told
                    last(self._ratings)
            self._ratings.close()
            self._ratings = None
