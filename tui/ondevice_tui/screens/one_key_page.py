"""A screen on which one key stores one judgement: a key that does nothing is counted, and it is said
why, until one is taken."""

from __future__ import annotations

from textual.events import Key

from ondevice_tui.screens.page import Page

STORING = "the one before was still being stored"


class OneKeyPage(Page):
    """A subclass shows `refused` where it tells what a key did (`tell_again`)."""

    def __init__(self) -> None:
        super().__init__()
        # keys since the last one that was taken, and why not: what is shown next says it still
        self._refusals: tuple[int, str] = (0, "")

    def tell_again(self) -> None:
        """Shows the line of what was said once more."""
        raise NotImplementedError

    def _refuse(self, why: str) -> None:
        """A key does nothing: that stands there until one is taken, also when what it came too early
        for has come meanwhile."""
        self._refusals = (self._refusals[0] + 1, why)
        self.tell_again()

    def _take(self) -> None:
        """A key is taken: what was said of others is over."""
        self._refusals = (0, "")

    @property
    def refused(self) -> str:
        """The keys that did nothing, and why the last of them did not; empty where none."""
        count, why = self._refusals
        if not count:
            return ""
        return f"{'that key was' if count == 1 else f'{count} keys were'} not taken: {why}"

    def on_key(self, event: Key) -> None:
        """Nobody's key."""
        if event.is_printable and event.character:
            self._refuse(f"{event.character} does nothing here; ? lists the keys")
