"""Cards for a text to type: one line, or several."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widget import Widget
from textual.widgets import Input

from ondevice_tui.screens.page import Card
from ondevice_tui.widgets.safe import SafeArea, SafeInput, SafeText, titled


class Ask(Card[str | None]):
    """One line of text, None where it was left. `told` stands above it; `replaces`: what is typed
    takes the place of `text`, and does not go behind it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "close", key_display="esc")
    ]
    KEYS = "Enter keeps it   esc leaves"

    def __init__(self, title: str, text: str, told: str = "", *, replaces: bool = True) -> None:
        super().__init__()
        self._title, self._text, self._told, self._replaces = title, text, told, replaces

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="card", classes="" if self._told else "-small") as card:
            card.can_focus = False
            titled(card, self._title, self.KEYS)
            if self._told:
                yield SafeText(self._told, "$muted")
            yield self.control()

    def control(self) -> Widget:
        return SafeInput(self._text, compact=True, select_on_focus=self._replaces)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self.dismiss(event.value)


class Note(Ask):
    """Text of some lines."""

    KEYS = "Enter keeps it   ctrl+j a line   esc leaves"

    def control(self) -> Widget:
        return SafeArea(self._text)

    def on_safe_area_sent(self, event: SafeArea.Sent) -> None:
        event.stop()
        self.dismiss(event.text)
