"""The input of a chat: ↑ above the first line brings back what was said before."""

from __future__ import annotations

from ondevice_tui.widgets.safe import SafeArea

MOST = 200  # messages that are remembered, until the app is closed


class SayArea(SafeArea):
    """`remember` what was sent; ↑ and ↓ beyond the text go through it. What stood there comes back
    at the end."""

    def __init__(self, *, placeholder: str, id: str) -> None:
        super().__init__(placeholder=placeholder, id=id)
        self._said: list[str] = []
        self._at: int | None = None  # the one that is shown; None: what is typed
        self._typed = ""

    def remember(self, text: str) -> None:
        if self._said[-1:] != [text]:
            self._said = [*self._said, text][-MOST:]
        self._at = None

    def action_cursor_up(self, select: bool = False) -> None:
        if select or not self.cursor_at_first_line or not self._said:
            super().action_cursor_up(select)
            return
        if self._at is None:
            self._typed = self.text
            self._at = len(self._said)
        if self._at:
            self._at -= 1
            self._put(self._said[self._at])

    def action_cursor_down(self, select: bool = False) -> None:
        if select or not self.cursor_at_last_line or self._at is None:
            super().action_cursor_down(select)
            return
        self._at += 1
        if self._at < len(self._said):
            self._put(self._said[self._at])
        else:
            self._at = None
            self._put(self._typed)

    def _put(self, text: str) -> None:
        self.text = text
        self.move_cursor(self.document.end)
