"""The list of runs: figures in columns, a search, an order, ticks. What its keys do with a run is
the screen's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.events import Click
from textual.widgets import Input

from ondevice.common.clock import clock
from ondevice.common.errors import UserError
from ondevice.common.progress import size
from ondevice.runs import table
from ondevice_tui import run_lines
from ondevice_tui.moved_keys import moved
from ondevice_tui.widgets.panel import Panel
from ondevice_tui.widgets.rows import Rows
from ondevice_tui.widgets.safe import SafeInput, SafeText, titled

if TYPE_CHECKING:
    from ondevice_tui.app import OndeviceApp

AGES_S = 10  # between two looks at how long ago the runs of the list began
STATES = ("", "training", "done", "stopped", "failed", "died", "open")  # what F goes through
SORTS = (
    "age",
    "name",
    "state",
    "exact",
    "held-out",
    "reward",
    "accuracy",
    "bits",
    "loss",
    "size",
    "time",
    "step",
)


class RunList(Panel):
    """`show` the app's runs. `ask` is what the screen does by a key that is for it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "space", "tick", "tick", tooltip="Tick this run, for o, d and D; once more: untick"
        ),
        Binding("o", "ask('overlay')", "overlay", tooltip="Lay the ticked runs over each other"),
        Binding(
            "d",
            "ask('differences')",
            "differences",
            tooltip="The settings in which the ticked runs differ (else this one and the chosen one)",
        ),
        Binding(
            "F", "state", "filter", tooltip="Only runs that train, are done, stopped, failed …"
        ),
        Binding("O", "sort(1)", "order", tooltip="Order by the next figure"),
        Binding(
            "exclamation_mark",
            "reverse",
            "reverse",
            key_display="!",
            tooltip="The other way round",
        ),
        Binding("N", "ask('note')", "note", tooltip="Write a note on this run"),
        Binding(
            "number_sign",
            "ask('tags')",
            "tags",
            key_display="#",
            tooltip="Tags of this run, or of the ticked ones",
        ),
        Binding("f2", "ask('rename')", "rename", tooltip="Give this run another name"),
        Binding("escape", "clear", "clear", show=False, tooltip="End the search, then the ticks"),
        *moved(f="F", equals_sign="d", less_than_sign="O", greater_than_sign="O", minus="!"),
    ]

    def __init__(self, ask: Callable[[str], object]) -> None:
        super().__init__(id="run-list", classes="box")
        self._ask = ask
        self.shown: list[dict[str, Any]] = []  # the runs that the search holds of, in order
        self.state = ""
        self.sort, self.reverse = "age", False
        self._search = table.search("")
        self._wrong = ""  # what is wrong with the search that is typed
        self._lines: dict[str, tuple[Any, Any, Content]] = {}  # path → (its run, its key, its line)
        self._followed: Path | None = None  # the chosen run that was highlighted by itself
        self._drawn: Any = None
        self._drawn_of: Any = None  # these records, so that no other has their identity

    def compose(self) -> ComposeResult:
        yield SafeInput(placeholder="lr3 state:done tag:good exact>0.5", id="runs-search")
        yield SafeText(id="runs-head")
        yield Rows(id="runs")

    def on_mount(self) -> None:
        self.search_field.display = False
        sort = self.ui.remembered.get("runs_sort", lambda name: name in SORTS)
        if sort is not None:
            self.sort = sort

    @property
    def ui(self) -> OndeviceApp:
        return cast("OndeviceApp", self.app)

    @property
    def rows(self) -> Rows:
        return self.query_one("#runs", Rows)

    @property
    def search_field(self) -> SafeInput:
        return self.query_one("#runs-search", SafeInput)

    # what is shown

    def show(self, runs: Sequence[dict[str, Any]] | None) -> None:
        """None: they are not read yet."""
        width = self._width()
        marks = (self.ui.chosen, self.ui.ticked_runs, width, clock() // AGES_S)
        asked = (self._search.words, self._wrong, self.state, self.sort, self.reverse)
        read = (self.ui.unread, None if runs is None else list(map(id, runs)))
        drawn = (marks, asked, read)
        if drawn == self._drawn:  # a record that was not read again is the same object
            return
        same_search = self._drawn is not None and asked == self._drawn[1]
        self._drawn, self._drawn_of = drawn, runs
        self.shown = self._those_wanted(runs or ())
        shape = run_lines.layout(width, run_lines.longest_name(self.shown), self.sort)
        head = self.query_one("#runs-head", SafeText)
        head.display = bool(self.shown)
        head.show(run_lines.head(shape, self.sort, self.reverse), layout=False)
        rows = [(run["path"], self._line(run, shape)) for run in self.shown]
        self.rows.show(rows, stay=same_search)  # a run that goes to the trash takes no cursor along
        self._lines = {path: self._lines[path] for path in (run["path"] for run in self.shown)}
        if self._followed != self.ui.chosen and self.ui.chosen and not self.rows.has_focus:
            self.go_to(self.ui.chosen)  # where the cursor begins
            self._followed = self.ui.chosen
        titled(self, self._title(runs), self._hint(runs))

    def _width(self) -> int:
        """Cells of a line: between the highlight's mark and the scrollbar."""
        return max(self.content_size.width - 2, 40)

    def _those_wanted(self, runs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        found = [
            run
            for run in runs
            if self._search.holds(run) and self.state in ("", table.state_of(run))
        ]
        return cast("list[dict[str, Any]]", table.ordered(found, self.sort, reverse=self.reverse))

    def _line(self, run: dict[str, Any], shape: run_lines.Layout) -> Content:
        """The run's line, made anew only where something in it changes."""
        chosen = run["path"] == str(self.ui.chosen)
        ticked = run["path"] in map(str, self.ui.ticked_runs)
        key = (shape, chosen, ticked, table.short_age(run["began"]))
        known = self._lines.get(run["path"])
        if known is None or known[0] is not run or known[1] != key:
            made = run_lines.run_line(run, shape, chosen=chosen, ticked=ticked)
            known = self._lines[run["path"]] = (run, key, made)
        return known[2]

    def _title(self, runs: Sequence[dict[str, Any]] | None) -> str:
        if runs is None:
            return f"runs in {self.ui.runs_folder}"
        count = f"{len(runs)} runs" if len(runs) != 1 else "1 run"
        if len(self.shown) != len(runs):
            count = f"{len(self.shown)} of {count}"
        known = [run["bytes"] for run in runs if run.get("bytes") is not None]
        taken = f" · {size(sum(known))}" if known else ""
        if known and len(known) < len(runs):
            taken += " and more"  # the others are not read yet
        if trains := sum(table.state_of(run) == "training" for run in runs):
            taken += f" · {trains} train" if trains > 1 else " · 1 trains"
        if self.ui.ticked_runs:
            taken += f" · {len(self.ui.ticked_runs)} ticked"
        return f"{count}{taken}"

    def _hint(self, runs: Sequence[dict[str, Any]] | None) -> str:
        if self._wrong:
            return f"✗ {self._wrong}"
        if runs is None:
            return "being read …"
        if self.ui.unread:
            return f"{self.ui.unread} more are being read …"
        if not runs:
            return "n begins one"
        asked = " ".join(filter(None, [self._search.words, self.state and f"state:{self.state}"]))
        if asked:
            return f"/ {asked} · esc ends it"
        return "Enter chooses   / searches"

    # which run

    @property
    def highlighted(self) -> dict[str, Any] | None:
        """The run under the cursor, as it was last read."""
        at = self.rows.highlighted
        if at is None or at >= len(self.shown):
            return None
        return self.shown[at]

    def go_to(self, path: Path) -> None:
        """Highlights this run, where it is shown."""
        for i, run in enumerate(self.shown):
            if Path(run["path"]) == path:
                self.rows.highlighted = i

    def meant(self) -> list[Path]:
        """The runs that are ticked, else the highlighted one."""
        if self.ui.ticked_runs:
            return list(self.ui.ticked_runs)
        run = self.highlighted
        return [] if run is None else [Path(run["path"])]

    # keys

    def begin_search(self) -> None:
        self.search_field.display = True
        self.screen.set_focus(self.search_field)  # at once: the next key is a letter of it

    def on_input_changed(self, event: Input.Changed) -> None:
        event.stop()
        try:
            self._search = table.search(event.value)
            self._wrong = ""
        except UserError as problem:  # half typed, for the most part: what was found stays
            self._wrong = str(problem)
        self._show_anew()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self.search_field.display = bool(event.value)
        self.screen.set_focus(self.rows)

    def action_clear(self) -> None:
        if self.search_field.value or self.search_field.display:
            self.search_field.value = ""
            self.search_field.display = False
            self.screen.set_focus(self.rows)
        elif self.state:
            self.state = ""
        elif self.ui.ticked_runs:
            self.ui.ticked_runs = ()
        else:
            self._ask("leave")
        self._show_anew()

    def action_ask(self, what: str) -> None:
        self._ask(what)

    def _show_anew(self) -> None:
        """After a key that chose other runs, another order or other ticks; the screen says what is
        highlighted now, if anything is."""
        self.show(self.ui.runs)
        self._ask("shown")

    def action_tick(self) -> None:
        run = self.highlighted
        if run is None:
            return
        path = Path(run["path"])
        if path in self.ui.ticked_runs:
            self.ui.ticked_runs = tuple(one for one in self.ui.ticked_runs if one != path)
        else:
            self.ui.ticked_runs = (*self.ui.ticked_runs, path)
        self._show_anew()
        self.rows.action_cursor_down()

    def action_state(self) -> None:
        self.state = STATES[(STATES.index(self.state) + 1) % len(STATES)]
        self._show_anew()

    def action_sort(self, by: int) -> None:
        self.sort = SORTS[(SORTS.index(self.sort) + by) % len(SORTS)]
        self.ui.keep("runs_sort", self.sort)
        self._show_anew()

    def action_reverse(self) -> None:
        self.reverse = not self.reverse
        self._show_anew()

    def on_click(self, event: Click) -> None:
        """A click on a column's name orders by it, a second one turns the order round."""
        if event.widget is not self.query_one("#runs-head"):
            return
        shape = run_lines.layout(self._width(), run_lines.longest_name(self.shown), self.sort)
        name = run_lines.column_at(shape, event.x - 1)
        if name == self.sort:
            self.action_reverse()
        elif name in SORTS:
            self.action_sort(SORTS.index(name) - SORTS.index(self.sort))
