"""Which of the models in this folder of runs: for a chat, and for the stage that begins from one."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widgets import OptionList

from ondevice_tui.screens.page import Card
from ondevice_tui.widgets.rows import Rows
from ondevice_tui.widgets.safe import cell, line, titled


class ChooseModel(Card[tuple[str, str] | None]):
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "dismiss(None)", "close", key_display="esc")
    ]

    def __init__(self, known: list[tuple[str, str]]) -> None:
        super().__init__()
        self._known = known

    def compose(self) -> ComposeResult:
        rows = Rows()
        rows.show(
            [
                (str(i), line(cell(name, 34), " ", (path, "$muted")))
                for i, (name, path) in enumerate(self._known)
            ]
        )
        with Vertical(id="card") as card:
            titled(card, "which model", "Enter chooses   esc closes")
            yield rows

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(self._known[int(event.option_id or 0)])
