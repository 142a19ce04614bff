"""What is typed faster than a screen or a card opens goes to it, not to what lies beneath.

Textual hands a key to the widget that has the focus at that moment, and its deed is done when it has
come up from there to the app. `N` and a note, typed at once on a machine that is busy, were a key and
then deeds of the screen beneath the note. Here a key that is no text does its deed at once, and while
what it has opened is not there yet the next keys are kept aside for it. No other key waits.
"""

from __future__ import annotations

from collections import deque

from textual.app import App
from textual.events import Event, Key
from textual.message_pump import MessagePump
from textual.timer import Timer

PATIENCE_S = 2.0  # that keys are kept for a screen that does not come
COMES_S = 0.3  # and for a card whose text is being looked up


class Opening(MessagePump):
    """Mixed into a screen: it says when it takes keys, which is when it is drawn and has given the focus away."""

    takes_keys = False

    def on_mount(self) -> None:
        self.call_after_refresh(self._is_drawn)

    def _is_drawn(self) -> None:
        # behind what gives a field the focus, which goes the same way
        self.app.call_later(self._take_keys)

    def own_action(self, character: str) -> str:
        """What a person has given this character to do here; empty: nothing."""
        return ""

    async def _take_keys(self) -> None:
        self.takes_keys = True
        app = self.app
        assert isinstance(app, KeysInOrder)
        await app.release()


class KeysInOrder(App[str]):
    """An app whose screens are `Opening`."""

    def __init__(self) -> None:
        super().__init__()
        self._aside: deque[Key] = deque()
        self._comes: Timer | None = None  # a card that is looked up

    async def on_event(self, event: Event) -> None:
        if not isinstance(event, Key) or event.is_forwarded or not self.screen_stack:
            await super().on_event(event)
        elif self._aside or self._opens:
            if not self._aside:
                self.set_timer(PATIENCE_S, self._wait_no_longer)
            self._aside.append(event)
            if not self._opens:
                await self.release()
        else:
            await self._take(event)

    @property
    def _opens(self) -> bool:
        """Whether what is in front, or comes to the front in a moment, takes no keys yet."""
        if self.screen_stack:
            front = self.screen_stack[-1]
        else:
            front = None
        return self._comes is not None or (isinstance(front, Opening) and not front.takes_keys)

    async def _take(self, key: Key) -> None:
        """Does the deed of a key, or hands it to the widget that has the focus."""
        focused = self.focused
        types = focused is not None and focused.check_consume_key("a", "a")
        front = self.screen
        if types or not isinstance(front, Opening) or front.maximized is not None:
            await super().on_event(key)
            return
        own = front.own_action(key.character or "")
        if own:
            await self.run_action(own, front)
            return
        for priority in (True, False):
            if await self._check_bindings(key.key, priority=priority):
                return
        await super().on_event(key)

    async def release(self) -> None:
        """Takes the keys that were kept aside, up to one that opens something itself."""
        while self._aside and not self._opens:
            await self._take(self._aside.popleft())

    async def _wait_no_longer(self) -> None:
        if self.screen_stack:
            front = self.screen_stack[-1]
        else:
            front = None
        if self._aside and isinstance(front, Opening):
            front.takes_keys = True
        await self.release()

    # a card whose text is looked up first

    def card_comes(self) -> None:
        """Keys are kept aside for a card that is opened when something has been looked up, for a
        moment; say `card_came` when it is open, or does not come."""
        self.card_came()
        self._comes = self.set_timer(COMES_S, self.card_came)

    def card_came(self) -> None:
        if self._comes is not None:
            self._comes.stop()
            self._comes = None
            self.call_later(self.release)
