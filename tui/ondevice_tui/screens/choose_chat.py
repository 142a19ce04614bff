"""Which of a run's saved conversations goes on."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import OptionList

from ondevice.common.errors import UserError
from ondevice.inference.conversations import load
from ondevice_tui.screens.page import Card
from ondevice_tui.widgets.rows import Rows
from ondevice_tui.widgets.safe import cell, line, titled

MOST = 200  # conversations that are listed, the newest ones: each is read for its first words


class ChooseChat(Card[Path | None]):
    """Gives the file of the chosen conversation."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "dismiss(None)", "close", key_display="esc")
    ]

    def __init__(self, known: list[Path]) -> None:
        super().__init__()
        self._known = known[:MOST]

    def compose(self) -> ComposeResult:
        rows = Rows()
        rows.show([(str(i), _row(file)) for i, file in enumerate(self._known)])
        with Vertical(id="card") as card:
            titled(card, "which conversation", "Enter chooses   esc closes")
            yield rows

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(self._known[int(event.option_id or 0)])


def _row(file: Path) -> Content:
    """A conversation's name, how many turns it has, and how it begins; or why it cannot be read."""
    try:
        turns = load(file).messages
    except UserError as problem:
        return line(cell(file.stem, 24), " ", (f"✗ {problem.message}", "$error"))
    asked = next((str(turn["content"]) for turn in turns if turn["role"] == "user"), "")
    return line(
        cell(file.stem, 24), f" {len(turns):>3} turns  ", (cell(asked, 80).rstrip(), "$muted")
    )
