"""Cards over the list of runs: a note, tags or a name to type, and what differs between runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from textual.content import Content

from ondevice.runs.differences import Difference
from ondevice_tui.screens.confirm import Details
from ondevice_tui.screens.text_card import Ask, Note
from ondevice_tui.widgets.safe import (
    cell,
    content,
    line,
    lines,
)

if TYPE_CHECKING:
    from ondevice_tui.app import OndeviceApp

_VALUE = 22  # cells of a value at most


def _ask(ui: OndeviceApp, card: Ask, then: Callable[[str], object]) -> None:
    def typed(text: str | None) -> None:
        if text is not None:
            then(text)

    ui.push_screen(card, typed)


def ask_note(ui: OndeviceApp, run: Mapping[str, Any], then: Callable[[str], object]) -> None:
    told = "An empty note takes it away."
    _ask(ui, Note(f"note on {run['run']}", str(run.get("note", "")), told), then)


def ask_tags(
    ui: OndeviceApp, run: Mapping[str, Any], ticked: int, then: Callable[[str], object]
) -> None:
    """`ticked`: how many runs are; 0: the tags of this run alone."""
    if ticked:
        told = "They are added to those that each run has."
        card = Ask(f"tags for {ticked} ticked runs", "", told)
    else:
        told = "Words with spaces between them; tag:WORD searches for one."
        before = " ".join(run.get("tags", ()))
        card = Ask(f"tags of {run['run']}", before, told, replaces=False)
    _ask(ui, card, then)


def ask_name(ui: OndeviceApp, run: Mapping[str, Any], then: Callable[[str], object]) -> None:
    def changed(name: str) -> None:
        if name.strip() != run["run"]:
            then(name.strip())

    told = "Whatever knows the run by its older name goes on finding it."
    name = str(run["run"])
    _ask(ui, Ask(f"another name for {name}", name, told, replaces=False), changed)


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
