"""What to begin: a recipe (the whole road), or one stage from any model folder."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widgets import OptionList

from ondevice.config.recipe import STAGES, for_decoders, load_recipe
from ondevice_tui.guide import first_paragraph
from ondevice_tui.proposals import proposal
from ondevice_tui.run_status import startable
from ondevice_tui.screens.page import Card
from ondevice_tui.screens.start import StartScreen
from ondevice_tui.widgets.rows import Rows
from ondevice_tui.widgets.safe import SafeText, cell, line, titled


def _order(recipe: str) -> tuple[bool, bool]:
    """The first try first, then what a person chooses a time for, then the rest."""
    return recipe != "minute", recipe != "laptop"


class ChooseScreen(Card[None]):
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "dismiss(None)", "close", key_display="esc")
    ]

    def __init__(self) -> None:
        super().__init__()
        self._told: dict[str, str] = {}  # what each row begins → what that does

    def compose(self) -> ComposeResult:
        rows = Rows(id="new-rows")
        with Vertical(id="card") as card:
            titled(card, "begin a run", "Enter chooses   esc closes")
            yield SafeText("The whole road by a recipe, or one stage from any model folder:")
            yield rows
            yield SafeText(id="new-about")
        made = []
        for name in sorted(for_decoders(), key=_order):
            told = self._told[f"run:{name}"] = load_recipe(name).describe
            head = (cell(name, 15), "bold $primary")
            made.append((f"run:{name}", line(head, "recipe  ", (told, "$muted"))))
        for name, cls in ((name, cls) for name, cls in STAGES.items() if startable(name)):
            told = self._told[name] = first_paragraph(cls)
            made.append((name, line((cell(name, 15), "bold"), "stage   ", (told, "$muted"))))
        rows.show(made)

    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        """All of what its row has no room for."""
        told = self._told.get(event.option_id or "", "")
        self.query_one("#new-about", SafeText).show(told)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        verb, _, recipe = (event.option_id or "").partition(":")
        self.dismiss(None)
        self.app.push_screen(
            StartScreen(verb, {"recipe": recipe} if recipe else proposal(verb, None))
        )
