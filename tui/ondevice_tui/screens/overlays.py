"""Other runs laid over the curves of one: which, and what was read of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import OptionList

from ondevice.common.progress import number, numbers_line
from ondevice.runs.folder import StageFolder
from ondevice_tui.event_reader import Follower, History, follow
from ondevice_tui.moved_keys import moved
from ondevice_tui.screens.page import Card, Page
from ondevice_tui.series import Columns
from ondevice_tui.widgets.curve import HUES, Trace
from ondevice_tui.widgets.rows import Rows
from ondevice_tui.widgets.safe import SafeText, cell, content, line, titled

MOST = len(HUES)  # runs that are laid over one
NAMES = "abcde"
BUCKETS = 1024  # of each of their curves
GROUP = "overlay"
MOST_NAME = 34  # cells of a name in the list
BESIDE_NAMES = 44  # cells of a terminal that the names in the list leave to the rest


class Overlays:
    """The ticked runs that have the stage, each with what was read of it."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._stage: StageFolder | None = None
        self._followers: dict[Path, Follower] = {}
        self._left_out = 0  # ticked ones beyond MOST
        self._lacking = 0  # ticked ones that have no such stage

    def follow(self, stage: StageFolder | None, ticked: Sequence[Path]) -> bool:
        """Reads these runs' stage of the same name, but for the stage itself. True where others are
        read than before."""
        wanted: list[Path] = []
        self._lacking = 0
        if stage is not None:
            for run in ticked:
                other = run / stage.name
                if other == stage.path or other in wanted:
                    continue
                if other.is_dir():
                    wanted.append(other)
                else:
                    self._lacking += 1
        self._stage = stage
        self._left_out = len(wanted[MOST:])
        wanted = wanted[:MOST]
        if list(self._followers) == wanted:
            return False
        self._page.workers.cancel_group(self._page, GROUP)
        self._followers = {}
        for path in wanted:
            follower = Follower(StageFolder(path).events, History(BUCKETS))
            self._followers[path] = follower
            reading = partial(follow, self._page, follower)
            self._page.run_worker(reading, thread=True, group=GROUP)
        return True

    def has(self, history: History) -> bool:
        return any(follower.history is history for follower in self._followers.values())

    def traces(
        self,
        metric: str,
        places: int,
        shown: tuple[float, float],
        to_axis: Callable[[History], Callable[[Columns], Columns]],
    ) -> list[Trace]:
        """The metric of each run that has it, between the `shown` steps."""
        found = []
        for at, follower in enumerate(self._followers.values()):
            with follower.history.lock:
                series = follower.history.steps.get(metric)
                if series is None or series.span is None:
                    continue
                columns = to_axis(follower.history)(series.columns(places, *shown))
            found.append(Trace(columns, style=HUES[at], name=NAMES[at]))
        return found

    def legend(self, metric: str) -> Content | None:
        """`a second 1.23  b third –`, in their hues; None where no run is ticked."""
        if not self._followers and not self._lacking:
            return None
        parts: list[str | tuple[str, str]] = [(" laid over it  ", "$muted")]
        for at, (path, follower) in enumerate(self._followers.items()):
            with follower.history.lock:
                series = follower.history.steps.get(metric)
                last = None if series is None else series.last
            parts.append((NAMES[at], f"bold {STYLES[at]}"))
            parts.append(f" {cell(path.parent.name, 28, middle=True).rstrip()} {number(last)}   ")
        if self._left_out:
            parts.append((f"{self._left_out} more ticked, not shown   ", "$muted"))
        if self._lacking and self._stage is not None:
            parts.append((f"{self._lacking} ticked without {self._stage.name}", "$muted"))
        return line(*parts)


STYLES = ("$success", "$error", "$secondary", "$foreground", "$accent")
"""Of the hues of a curve."""


class TickRuns(Card[tuple[Path, ...]]):
    """A list of runs to tick. Comes back with those that are ticked."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,o", "close", "close", key_display="esc"),
        Binding("space", "tick", "tick"),
        Binding("u", "none", "none"),
        *moved(n="u"),
    ]

    def __init__(
        self, stage: str, runs: Sequence[Mapping[str, Any]], ticked: Sequence[Path]
    ) -> None:
        super().__init__()
        self._stage = stage
        self._runs = runs
        self._ticked = list(ticked)

    def compose(self) -> ComposeResult:
        with Vertical(id="card") as card:
            titled(
                card,
                f"runs with {self._stage}: up to {MOST} laid over it",
                "space ticks  u unticks all  Enter or esc shows them",
            )
            yield Rows(id="tick-runs")
            yield SafeText(id="tick-told")

    def on_mount(self) -> None:
        self._show()
        self.query_one(Rows).focus()

    def _show(self) -> None:
        options = []
        name_cells = min(MOST_NAME, max(16, self.app.size.width - BESIDE_NAMES))
        for run in self._runs:
            box = "[x] " if Path(run["path"]) in self._ticked else "[ ] "
            state = next(one for one in run["stages"] if one["stage"] == self._stage)
            figures = numbers_line(dict(list(state["numbers"].items())[:3]))
            text = line(
                box,
                (cell(run["run"], name_cells, middle=True), "bold"),
                f" {state['state']:<9}",
                figures,
            )
            options.append((str(run["path"]), text))
        self.query_one(Rows).show(options)
        told = f"{len(self._ticked)} ticked"
        self.query_one("#tick-told", SafeText).show(content(told, "$muted"))

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        self.action_close()

    def action_tick(self) -> None:
        at = self.query_one(Rows).highlighted
        if at is None:
            return
        path = Path(self._runs[at]["path"])
        if path in self._ticked:
            self._ticked.remove(path)
        elif len(self._ticked) >= MOST:
            self.ui.say(f"{MOST} runs are laid over it at most: take one away first")
        else:
            self._ticked.append(path)
        self._show()

    def action_none(self) -> None:
        self._ticked = []
        self._show()

    def action_close(self) -> None:
        self.dismiss(tuple(self._ticked))
