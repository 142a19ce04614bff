"""The home screen of who has no run yet: one card, and one key that begins."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from textual.binding import Binding, BindingType
from textual.content import Content

from ondevice.common.progress import duration
from ondevice.runs.folder import RunFolder
from ondevice_tui import plan_process
from ondevice_tui.widgets.panel import Panel
from ondevice_tui.widgets.safe import SafeText, content, line, lines, titled

if TYPE_CHECKING:
    from textual.app import ComposeResult

    from ondevice_tui.app import OndeviceApp

RECIPE = "minute"
UNMEASURED = "about two minutes on two CPU cores"  # as docs/results has it


class Welcome(Panel, can_focus=True):
    """`begin` focuses it and asks how long the recipe takes here."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "start", "start", tooltip="Start the recipe minute")
    ]

    def __init__(self) -> None:
        super().__init__(id="welcome", classes="box")
        self._time: tuple[str, str] = (UNMEASURED, "$muted")
        self._asked = False

    def compose(self) -> ComposeResult:
        yield SafeText(id="welcome-text")

    @property
    def ui(self) -> OndeviceApp:
        return cast("OndeviceApp", self.app)

    def begin(self) -> None:
        titled(self, f"no run yet in {self.ui.runs_folder}")
        self._show()
        self.focus()
        if not self._asked and self.ui.looks_at_machine:
            self._asked = True
            self.run_worker(self._ask(), group="plan", exclusive=True)

    async def _ask(self) -> None:
        """What the recipe takes here, by what is known of this machine; then, where nothing is, by
        measuring it, which takes some seconds."""
        words, run = self._words(RunFolder.new(RECIPE, self.ui.runs_folder).path)
        plan = await plan_process.ask(words, run)
        self._time = _time(plan)
        self._show()
        if not plan_process.is_calibrated(plan):
            plan = await plan_process.ask(words, run, measure=True)
            self._time = _time(plan, measured=True)
            self._show()

    def _words(self, run: Path) -> tuple[list[str], Path]:
        """The command that begins the recipe in this folder."""
        return ["run", RECIPE, f"--out={run}"], run

    def _show(self) -> None:
        if not self.is_attached:
            return
        self.query_one("#welcome-text", SafeText).show(lines(self._lines()))

    def _lines(self) -> list[Content]:
        return [
            content(""),
            line(("Enter ", "bold $primary"), ("starts the recipe minute", "bold")),
            line("      ", self._time),
            content(""),
            content(
                "A small language model, from random weights to sums that it reasons about. No data "
                "of yours is needed, and nothing is fetched. You will see, as it comes:"
            ),
            content("▸ each stage's curve, and one question answered after each"),
            content("▸ answers in pairs: you say which is better (4)"),
            content("▸ rewards (3), and all stages side by side (5)"),
            content("X stops it and R goes on; closing this app does not stop it."),
            content(""),
            line(("n ", "bold $primary"), "another recipe, or one stage from a model of yours"),
            line(("? ", "bold $primary"), "help   ", ("q ", "bold $primary"), "closes the app"),
        ]

    def action_start(self) -> None:
        words, run = self._words(RunFolder.new(RECIPE, self.ui.runs_folder).path)
        self.ui.start(words, run)


def _time(plan: dict[str, Any], *, measured: bool = False) -> tuple[str, str]:
    """How long it takes here, or why it cannot be said, and the style of that."""
    if "wrong" in plan:
        return f"{UNMEASURED}; here: {plan['wrong']}", "$warning"
    seconds = plan.get("seconds")
    if seconds is not None:
        return f"about {duration(seconds)} on this machine", "bold"
    if measured or plan_process.is_calibrated(plan):
        return UNMEASURED, "$muted"
    return f"{UNMEASURED}; measuring this machine …", "$muted"
