"""Keys one after the other: each waits until the one before has done its deed.

A key goes from the widget with the focus up to the app, by the queue of each. What is typed faster
than that (`/` and a word, on a machine that is busy) would go to where the focus was: the letters of
a word that was meant for a search were taken for deeds of the list.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from textual.app import App
from textual.events import Event, Key
from textual.message import Message

PATIENCE_S = 1.0  # that a key waits for one whose way up ended: a widget that was removed


class Through(Message):
    """Follows a key on its way up, so that it reaches the app once the key has been handled; then
    what the key has sent up itself (a row that was chosen, a field that was entered)."""

    def __init__(self, number: int, *, second: bool = False) -> None:
        super().__init__()
        self.number = number  # of the key that it follows
        self.second = second


class KeysInOrder(App[str]):
    """An app whose keys are taken one after the other, what they open being there in between."""

    def __init__(self) -> None:
        super().__init__()
        self._held: deque[Key] = deque()
        self._key = 0  # number of the newest key that was let through
        self._under_way = False

    async def on_event(self, event: Event) -> None:
        if not isinstance(event, Key) or event.is_forwarded:
            await super().on_event(event)
        elif self._under_way:
            self._held.append(event)
            self.set_timer(PATIENCE_S, lambda: self._has_waited(event))
        else:
            await self._let_through(event)

    async def _let_through(self, event: Key) -> None:
        self._key += 1
        self._under_way = True
        target: Any = self.focused or self.screen
        await super().on_event(event)
        if not target.post_message(Through(self._key)):
            self._over(self._key)

    def on_through(self, message: Through) -> None:
        if not self.screen_stack:
            return  # the app ends
        target: Any = self.focused or self.screen
        if not message.second and target.post_message(Through(message.number, second=True)):
            return
        # behind what the key has put into the queues: a screen that was opened is drawn and has its
        # focus by then, and so has a field
        if not self.screen.call_later(self._over, message.number):
            self._over(message.number)

    def _has_waited(self, event: Key) -> None:
        if event in self._held:
            self._over(self._key)

    def _over(self, number: int) -> None:
        """The key of this number has done its deed: the next one."""
        if number != self._key or not self._under_way:
            return
        if self._held:
            self.call_later(self._let_through, self._held.popleft())
            self._key += 1  # a second word of this key's end counts for nothing
        else:
            self._under_way = False
