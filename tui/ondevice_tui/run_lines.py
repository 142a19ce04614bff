"""Runs as lines of a table: which columns a width has room for, a run in them, and the highlighted
run in some lines.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from textual.content import Content

from ondevice.common.progress import size
from ondevice.runs import table
from ondevice_tui import run_status
from ondevice_tui.run_status import MARKS, STYLES
from ondevice_tui.widgets.safe import cell, content, line

Run = Mapping[str, Any]
TICK = "*"  # a character that every terminal has, and no state
# figures and what else has a column, the first to be kept first; with their widths
_COLUMNS = (("age", 6), ("exact", 7), ("held-out", 10), ("size", 7), ("reward", 9))
_OTHER = 10  # cells of another figure
# as they stand from left to right
_ORDER = ("exact", "held-out", "reward", "size", "age")
_MARKS = 2  # cells of what stands before a name: whether chosen, whether ticked
_NAME = (16, 32)  # cells of a name: at least, at most
_STAGES = 13  # cells of the marks of stages
_NOTE = 12  # fewer say nothing


@dataclass(frozen=True)
class Layout:
    """What a width has room for: cells of the name, of a note (0: none), and columns."""

    name: int
    note: int
    columns: tuple[tuple[str, int], ...]


def layout(width: int, longest: int, sort: str = "") -> Layout:
    """`longest`: cells of the longest name. What the runs are ordered by has a column before any
    other, also where it usually has none."""
    room = width - _MARKS - _NAME[0] - 1 - _STAGES
    chosen = []
    known = dict(_COLUMNS)
    if sort in table.SORTS and sort not in ("name", "state"):  # which stand there anyhow
        known = {sort: known.pop(sort, _OTHER), **known}
    for name, cells in known.items():
        if cells <= room:
            chosen.append((name, cells))
            room -= cells
    more = max(min(longest, _NAME[1]) - _NAME[0], 0)
    name_cells = _NAME[0] + min(more, max(room, 0))
    room -= name_cells - _NAME[0]
    note = room - 1 if room > _NOTE else 0
    if not note:
        name_cells += max(room, 0)
    order = _ORDER if sort in _ORDER else (sort, *_ORDER)
    columns = sorted(chosen, key=lambda column: order.index(column[0]))
    return Layout(name_cells, note, tuple(columns))


def head(shape: Layout, sort: str, reverse: bool) -> Content:
    """The names of the columns; an arrow stands at the one that the runs are ordered by."""
    parts: list[str | tuple[str, str]] = [
        " " * _MARKS,
        _head_cell("name", shape.name, sort, reverse, right=False),
        " ",
        _head_cell("state", _STAGES, sort, reverse, right=False),
    ]
    for name, cells in shape.columns:
        parts.append(_head_cell(name, cells, sort, reverse))
    if shape.note:
        parts.append(("  note", "$muted"))
    return line(*parts)


def _head_cell(
    name: str, cells: int, sort: str, reverse: bool, *, right: bool = True
) -> tuple[str, str]:
    if name != sort:
        return cell(name, cells, right=right), "$muted"
    arrow = "▴" if reverse else "▾"
    return cell(f"{name}{arrow}", cells, right=right), "bold $primary"


def column_at(shape: Layout, x: int) -> str:
    """The name of the column at this cell of a line; empty where there is none."""
    at = _MARKS
    for name, cells in (("name", shape.name + 1), ("state", _STAGES), *shape.columns):
        at += cells
        if x < at:
            return name
    return ""


def run_line(run: Run, shape: Layout, *, chosen: bool, ticked: bool) -> Content:
    """A run in the columns of this layout."""
    marks = f"{'▸' if chosen else ' '}{TICK if ticked else ' '}"
    name = (cell(str(run["run"]), shape.name, middle=True), "bold" if chosen or ticked else "")
    begin = line((marks, "bold $primary"), name, " ")
    trouble = run.get("wrong")
    if trouble:
        width = _STAGES + sum(cells for _, cells in shape.columns) + shape.note
        told = f"{MARKS['wrong']} cannot be read: {trouble}"
        return line(begin, (cell(told, width), STYLES["wrong"]))
    parts: list[str | Content | tuple[str, str]] = [begin, stage_marks(run, _STAGES)]
    for name_of, cells in shape.columns:
        value = table.value_of(run, name_of)
        told = table.shown(name_of, value)
        parts.append((cell(told, cells, right=True), "" if value is not None else "$muted"))
    if shape.note:
        parts.append((f" {cell(note_line(run), shape.note)}", "$muted"))
    return line(*parts)


def stage_marks(run: Run, width: int) -> Content:
    """A mark for each stage and the newest one's name, or how far it is: `✓✓▶ sft 27%`."""
    stages = run["stages"]
    if not stages:
        word, style = nothing_begun(run)
        return line((cell(word, width), style))
    parts = [(MARKS[stage["state"]], STYLES[stage["state"]]) for stage in stages[-(width - 5) :]]
    newest = stages[-1]
    word = newest["stage"]
    step, steps = newest.get("step"), newest.get("steps")
    if newest["state"] == "training" and isinstance(step, int) and steps:
        word = f"{step / steps:.0%}"
    return line(*parts, " ", (cell(word, width - len(parts) - 1), STYLES[newest["state"]]))


def nothing_begun(run: Run) -> tuple[str, str]:
    """What there is of a run without stages, and its style."""
    if unstarted := run.get("unstarted"):
        return f"{MARKS['failed']} {' '.join(unstarted)} did not start", STYLES["failed"]
    if run.get("ratings"):
        return "pairs to rate", "$muted"
    return "nothing begun", "$muted"


def note_line(run: Run) -> str:
    """Its tags and its note in one line, or why they cannot be read."""
    tags = [f"#{tag}" for tag in run.get("tags", ())]
    note = " ".join(str(run.get("note", "")).split())
    return " ".join(filter(None, [*tags, note, run.get("labels_trouble", "")]))


def card(run: Run) -> list[Content]:
    """The highlighted run: its stages, and what a person wrote on it."""
    if run.get("wrong"):
        return [line((f"{MARKS['wrong']} cannot be read: {run['wrong']}", STYLES["wrong"]))]
    parts: list[str | tuple[str, str]] = []
    for row in run_status.rows(run):
        if row.state in run_status.OPEN and row.stage not in run["recipe"]:
            continue
        word = row.state
        if row.share is not None and row.state == "training":
            word = f"{row.share:.0%}"
        told = "" if row.state in ("done", *run_status.OPEN) else f" {word}"
        parts.append((f"{MARKS[row.state]} {row.stage}{told}  ", STYLES[row.state]))
    rows = [line(*parts) if parts else line(nothing_begun(run))]
    if words := note_line(run):  # before the figures, which stand in the table too
        rows.append(content(words, newlines=False))
    newest = run["stages"][-1] if run["stages"] else {}
    said = str(newest.get("message") or "")
    if newest.get("state") in run_status.HALTED and said:
        rows.append(line((said, STYLES[newest["state"]])))
    figures = ", ".join(
        f"{name} {table.shown(name, value)}" for name, value in table.figures(run).items()
    )
    taken = run.get("bytes")
    place = run_status.place_in_recipe(run)
    facts = [place, figures, "size is being read" if taken is None else size(taken)]
    if used := table.seconds_of(run):
        facts.append(f"{table.shown('time', used)} of work")
    rows.append(line((" · ".join(filter(None, facts)), "$muted")))
    return rows


def longest_name(runs: Sequence[Run]) -> int:
    """Cells of the longest name."""
    return max((cell_len(str(run["run"])) for run in runs), default=0)


def those_ticked(runs: Sequence[Run], ticked: Collection[Path]) -> list[Run]:
    """The runs that are ticked, in the order in which they were."""
    by_path = {Path(run["path"]): run for run in runs}
    return [by_path[path] for path in ticked if path in by_path]
