"""Cards over the list of runs: a note, tags or a name to type, and what differs between runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rich.cells import cell_len
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Input

from ondevice.runs.differences import Difference
from ondevice_tui.screens.confirm import Details
from ondevice_tui.screens.page import Card
from ondevice_tui.widgets.safe import (
    SafeArea,
    SafeInput,
    SafeText,
    cell,
    content,
    line,
    lines,
    titled,
)

if TYPE_CHECKING:
    from ondevice_tui.app import OndeviceApp

_VALUE = 22  # cells of a value at most


class Typed(Card[str]):
    """A text to type: Enter takes it, esc leaves all as it was. `long`: of several lines."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "leave", key_display="esc")
    ]

    def __init__(self, title: str, told: str, text: str, *, long: bool = False) -> None:
        super().__init__()
        self._title, self._told, self._text, self._long = title, told, text, long

    def compose(self) -> ComposeResult:
        with Vertical(id="card") as card:
            titled(card, self._title, "Enter writes it   esc leaves it as it was")
            yield SafeText(self._told, "$muted")
            if self._long:
                yield SafeArea(self._text, id="typed")
            else:
                yield SafeInput(self._text, id="typed", select_on_focus=False)

    def on_mount(self) -> None:
        self.query_one("#typed").focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self.dismiss(event.value)

    def on_safe_area_sent(self, event: SafeArea.Sent) -> None:
        event.stop()
        self.dismiss(event.text)


def _ask(ui: OndeviceApp, card: Typed, then: Callable[[str], object]) -> None:
    def typed(text: str | None) -> None:
        if text is not None:
            then(text)

    ui.push_screen(card, typed)


def ask_note(ui: OndeviceApp, run: Mapping[str, Any], then: Callable[[str], object]) -> None:
    told = "An empty note takes it away. ctrl+j begins a line."
    _ask(ui, Typed(f"note on {run['run']}", told, str(run.get("note", "")), long=True), then)


def ask_tags(
    ui: OndeviceApp, run: Mapping[str, Any], ticked: int, then: Callable[[str], object]
) -> None:
    """`ticked`: how many runs are; 0: the tags of this run alone."""
    if ticked:
        told = "They are added to those that each run has."
        card = Typed(f"tags for {ticked} ticked runs", told, "")
    else:
        told = "Words with spaces between them; tag:WORD searches for one."
        card = Typed(f"tags of {run['run']}", told, " ".join(run.get("tags", ())))
    _ask(ui, card, then)


def ask_name(ui: OndeviceApp, run: Mapping[str, Any], then: Callable[[str], object]) -> None:
    def changed(name: str) -> None:
        if name.strip() != run["run"]:
            then(name.strip())

    told = "Whatever knows the run by its older name goes on finding it."
    _ask(ui, Typed(f"another name for {run['run']}", told, str(run["run"])), changed)


def show_differences(ui: OndeviceApp, runs: Sequence[Path], found: Sequence[Difference]) -> None:
    """A card with a line for each setting that differs."""
    width = max(min(ui.size.width, 100) - 12, 40)
    ui.push_screen(Details("settings that differ", lines(difference_lines(runs, found, width))))


def difference_lines(
    runs: Sequence[Path], found: Sequence[Difference], width: int
) -> list[Content]:
    """A table where the width has room for it; else a line for each value, under its setting."""
    if not found:
        return [content("No setting differs.")]
    names = [run.name for run in runs]
    setting = max(cell_len(one.setting) for one in found) + 2
    values = [name for one in found for name in one.values]
    each = min(max(map(cell_len, [*names, *values])), _VALUE) + 2
    if setting + each * len(runs) <= width:
        head = [("", setting), *((name, each) for name in names)]
        rows = [line(*((cell(text, cells), "bold") for text, cells in head))]
        for one in found:
            told = [(cell(value, each - 1) + " ", "") for value in one.values]
            rows.append(line((cell(one.setting, setting), "$primary"), *told))
        return rows
    rows = []
    name_cells = min(max(map(cell_len, names)), width // 2)
    for one in found:
        rows.append(content(one.setting, "bold $primary", newlines=False))
        for name, value in zip(names, one.values, strict=True):
            rows.append(line((f"  {cell(name, name_cells)}  ", "$muted"), value))
    return rows
