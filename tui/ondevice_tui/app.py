"""The terminal UI: `ondevice` without arguments.

It holds no model and trains nothing. Stages are processes of their own (`stage_processes`), it
reads what they write (`event_reader`, `run_reader`), and models are talked to through `ondevice
worker` (`worker_client`). So it may be closed, killed or lost with its terminal at any moment, and
opened again.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from textual.app import ScreenStackError, SystemCommand
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.worker import WorkerFailed

from ondevice.common import processes
from ondevice.common.errors import UserError
from ondevice.common.remembered import Remembered
from ondevice.common.sanitize import sanitize
from ondevice.config.recipe import STAGES
from ondevice.runs.folder import RunFolder
from ondevice_tui import imports, plain_terminal, stage_processes
from ondevice_tui.alerts import Alert, Alerts, is_terminal, sequence
from ondevice_tui.key_order import KeysInOrder
from ondevice_tui.messages import ChildEnded, MachineRead, RunsRead
from ondevice_tui.run_reader import RunsReader
from ondevice_tui.screens.page import Page, is_ours, of_textual
from ondevice_tui.screens.road import RoadScreen
from ondevice_tui.themes import DARK, LIGHT
from ondevice_tui.trouble import Steady, write_trouble
from ondevice_tui.widgets.safe import in_rows

SOON_S = 0.5  # after the start: the first screen stands
BETWEEN_S = 0.02  # between two modules that are imported ahead: keys have their turn
LOOK_S = 1.0  # between two looks at the folder of runs
TOAST = 70  # cells of a row of a toast at most


def later(module: str, name: str) -> Callable[[], Screen[Any]]:
    """A screen that is imported when it is first opened, or a moment after the start: the first one
    waits for none.
    """

    def make() -> Screen[Any]:
        imports.load_all()  # it may start threads, and they import nothing
        return getattr(importlib.import_module(f"ondevice_tui.screens.{module}"), name)()  # type: ignore[no-any-return]

    return make


class OndeviceApp(Steady, KeysInOrder):
    """`runs` is the folder of runs. Returns what is to be said on the terminal at the end.
    `survives`: an error in a worker or a handler is told and written down; without, it ends the app
    and is raised, as tests want it."""

    CSS_PATH = "app.tcss"
    TITLE = "ondevice"
    MODES: ClassVar[dict[str, Any]] = {
        "road": RoadScreen,
        "train": later("train", "TrainScreen"),
        "ladder": later("ladder", "LadderScreen"),
        "chat": later("chat", "ChatScreen"),
        "reason": later("rewards", "ReasonScreen"),
        "rate": later("rate", "RateScreen"),
        "push": later("push", "PushScreen"),
    }
    DEFAULT_MODE = "road"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (80, "-normal"), (110, "-wide")]
    VERTICAL_BREAKPOINTS = [(0, "-short"), (24, "-std"), (34, "-tall")]
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "1",
            "go('road')",
            "screens",
            key_display="1–7",
            tooltip="The road of stages and the list of runs",
        ),
        Binding("2", "go('train')", "train", show=False, tooltip="Curves and samples of one stage"),
        Binding(
            "3", "go('reason')", "rewards", show=False, tooltip="Rewards and groups of PPO and GRPO"
        ),
        Binding(
            "4", "go('rate')", "rate", show=False, tooltip="Say which of two answers is better"
        ),
        Binding("5", "go('ladder')", "ladder", show=False, tooltip="What every stage achieved"),
        Binding("6", "go('chat')", "chat", show=False, tooltip="Talk with a stage's model"),
        Binding(
            "7",
            "go('push')",
            "push",
            show=False,
            tooltip="Send a model or ratings to the Hugging Face Hub",
        ),
        Binding("T", "light", "light", tooltip="Switch between the light and the dark theme"),
        Binding(
            "question_mark",
            "explain",
            "help",
            key_display="?",
            tooltip="Explain this screen and its keys",
        ),
        # the same where ? is a letter
        Binding("f1", "explain", "help", tooltip="Explain this screen and its keys"),
        Binding("q", "leave", "quit", tooltip="Close this app; training goes on"),
        Binding("ctrl+q", "leave", "quit", show=False, priority=True),
        Binding(
            "ctrl+z", "suspend_process", show=False, priority=True
        ),  # to the shell; `fg` comes back
    ]

    def __init__(
        self, runs: str | Path = "runs", *, look_at_machine: bool = True, survives: bool = False
    ) -> None:
        super().__init__()
        self.survives = survives
        self.remembered = Remembered()
        self.key_shown: dict[str, str] = {}  # by a binding's id, where a person has own keys
        self.runs_folder = Path(runs)
        self.reader = RunsReader(self.runs_folder)
        self.runs: list[dict[str, Any]] | None = None  # None: not read yet
        self.unread = 0  # runs that are there and not read yet
        self._proposed = False  # the chosen run is not a person's choice, and others are unread
        self.runs_trouble = ""  # why the folder of runs cannot be read
        self._troubles: list[str] = []  # errors that were told
        self.chosen: Path | None = None
        # ticked in the list of runs, in that order: what is laid over each other, compared, moved
        self.ticked_runs: tuple[Path, ...] = ()
        self.stage = ""  # the stage that is watched; empty: what trains, else the newest
        # the stage whose model was asked for (empty: the run's newest), and how many times
        self.talk_with = ("", 0)
        self.alerts = Alerts()
        self.machine = "looking at this machine …"
        self.started: list[stage_processes.Child] = []
        self.looks_at_machine = look_at_machine
        self._reading = False
        for theme in (DARK, LIGHT):
            self.register_theme(theme)
        self._keeps_theme = self.theme == "textual-dark"  # none was asked for (TEXTUAL_THEME)
        if self._keeps_theme:
            # before any style is worked out: set later, it has all of them worked out again
            self.set_reactive(OndeviceApp.theme, DARK.name)
            self.stylesheet.set_variables(self.get_css_variables())

    def get_theme_variable_defaults(self) -> dict[str, str]:
        return {"muted": "#8B98A5"}  # what Textual's own themes lack

    def on_mount(self) -> None:
        if self._keeps_theme:
            theme = self.remembered.get("theme", lambda name: name in self.available_themes)
            self.theme = theme or DARK.name
            self.watch(self, "theme", lambda name: self.keep("theme", name), init=False)
        if self.remembered.trouble:
            self.say(self.remembered.trouble, bad=True)
        # `fg` after ctrl+z finds an empty terminal
        self.app_resume_signal.subscribe(self, lambda _: self.refresh(layout=True))
        self.call_after_refresh(self.look)
        self.set_interval(LOOK_S, self.look)
        self.set_timer(SOON_S, self._import_ahead)
        if self.looks_at_machine:
            self.run_worker(self._ask_doctor(), group="machine")

    def _import_ahead(self) -> None:
        """One module, then the next a moment later, so that the first key that opens a screen waits
        for none. Here and in no thread: see `imports`."""
        left = imports.waiting()
        if left:
            imports.load(left[0])
            self.set_timer(BETWEEN_S, self._import_ahead)

    # what stands in the folder of runs

    def look(self) -> None:
        """Reads the runs in a thread, and what has become of the processes that were started here."""
        for child in list(self.started):
            ended = child.ended()
            if ended is not None:
                self.started.remove(child)
                self.post_message(ChildEnded(child.what, *ended))
        if not self._reading:
            self._reading = True
            imports.load(*imports.FOR_READING_RUNS)
            chosen = self.chosen
            self.run_worker(lambda: self._read_runs(chosen), thread=True, group="runs")

    def _read_runs(self, chosen: Path | None) -> None:
        try:
            runs = self.reader.read(chosen)
            self.post_message(RunsRead(runs, unread=self.reader.unread))
        except UserError as problem:
            self.post_message(RunsRead([], f"the folder of runs {problem.message}"))
        finally:
            self._reading = False

    def on_runs_read(self, message: RunsRead) -> None:
        self.runs = message.runs
        self.runs_trouble = message.trouble
        self.unread = message.unread
        self.alert(self.alerts.look(message.runs))
        for child in self.started:
            child.look(self.state_of(child.run))
        if self.chosen is None or self._proposed or not self.chosen.is_dir():
            self.chosen = _first_choice(message.runs)
            self._proposed = bool(message.unread)
        if message.unread:
            self.call_after_refresh(self.look)
        if self.ticked_runs:
            there = {run["path"] for run in message.runs}
            self.ticked_runs = tuple(path for path in self.ticked_runs if str(path) in there)
        self.tell_page()

    def tell_page(self) -> None:
        """The screen that is open looks at the runs anew; at the app's very end there is none."""
        try:
            screen = self.screen
        except ScreenStackError:
            return
        if isinstance(screen, Page) and screen.composed:
            screen.runs_changed()

    @property
    def run_state(self) -> dict[str, Any] | None:
        """The chosen run, as it was last read."""
        if self.chosen is not None:
            return self.state_of(self.chosen)
        return None

    def state_of(self, path: Path) -> dict[str, Any] | None:
        """This run, as it was last read; None where there is none."""
        for run in self.runs or ():
            if run["path"] == str(path):
                return run
        return None

    @property
    def starting(self) -> set[str]:
        """Stages of the chosen run whose process was started here and has not begun them."""
        found = set()
        for child in self.started:
            if child.run == self.chosen:
                found.add(child.starts(self.run_state))
        found.discard("")
        return found

    @property
    def run_folder(self) -> RunFolder | None:
        if self.chosen is not None:
            return RunFolder(self.chosen)
        return None

    def choose(self, run: Path, stage: str = "") -> None:
        self.chosen = run
        self.stage = stage
        self._proposed = False

    def training(self) -> list[tuple[str, str]]:
        """(run, stage) of whatever trains now."""
        found = []
        for run in self.runs or ():
            for stage in run["stages"]:
                if stage["state"] == "training":
                    found.append((run["run"], stage["stage"]))
        return found

    # what this machine is

    async def _ask_doctor(self) -> None:
        """In a process of its own: it loads the array libraries to see whether they work. An app
        that is closed before the answer comes does not wait for it."""
        try:
            answer = await stage_processes.json_of(["doctor", "--json"], processes.Access.OWN)
            self.post_message(MachineRead(machine_line(answer)))
        except (stage_processes.NoAnswer, KeyError) as problem:
            self.post_message(MachineRead(f"`ondevice doctor` failed: {problem}"))

    def on_machine_read(self, message: MachineRead) -> None:
        self.machine = message.line
        self.tell_page()

    # starting and stopping

    def start(self, words: Sequence[str], run: Path) -> bool:
        """Runs `ondevice WORDS…` as a process of its own and makes `run` the chosen one. False
        where it could not, or where one that does the same is only just starting."""
        if self._is_starting(words[0], run):
            self.say("it is starting already: loading takes some seconds")
            return False
        try:
            child = stage_processes.start(words, run)
        except (OSError, UserError) as problem:
            self.say(f"could not start: {problem}", bad=True)
            return False
        self.started.append(child)
        stage = words[0]
        if stage in ("run", "runs"):
            stage = ""
        self.choose(run, stage)
        self.say(f"started: {child.what}")
        self.look()
        return True

    def _is_starting(self, verb: str, run: Path) -> bool:
        """Whether a process that does the same in this run has been started and has not begun."""
        for child in self.started:
            same = verb not in STAGES or child.stage in ("", verb)
            if child.run == run and not child.begun and same:
                return True
        return False

    def on_child_ended(self, message: ChildEnded) -> None:
        if message.code == 0:
            self.say(f"done: {message.what}")
        elif message.code == 130:
            self.say(f"stopped, saved: {message.what}")
        else:
            why = message.tail or "(it said nothing)"
            self.say(f"{message.what}\nended with code {message.code}:\n{why}", bad=True)

    def say(self, text: str, *, bad: bool = False) -> None:
        """A toast. The one place that makes them: text is made inert, and read as no markup. A path
        that takes more than a line is shown from its end."""
        shown = in_rows(sanitize(text, limit=1500), min(self.size.width - 6, TOAST))
        if bad:
            self.notify(shown, severity="error", markup=False, timeout=15)
        else:
            self.notify(shown, markup=False, timeout=5)

    def action_tell_moved(self, old: str, new: str) -> None:
        old = self.get_key_display(Binding(old, ""))
        self.say(f"{old} is {new} now: a key does the same on every screen")

    def keep(self, name: str, value: Any) -> None:
        """Remembers what a person chose, for the next time the app is opened."""
        trouble = self.remembered.keep(name, value)
        if trouble:
            self.say(f"{name.replace('_', ' ')} is not remembered: {trouble}", bad=True)

    # calling a person back

    @property
    def rings(self) -> bool:
        """Whether an alert rings; a person may have turned it off."""
        return self.remembered.get("alerts", lambda value: isinstance(value, bool)) is not False

    def alert(self, found: Sequence[Alert]) -> None:
        """Shows what is sick, and rings where a terminal hears it."""
        for alert in found:
            if alert.sick:
                self.say(alert.text, bad=True)
        if self.rings and is_terminal() and not self.is_headless and self._driver is not None:
            written = sequence(found)
            if written:
                self._driver.write(written)

    def action_ring(self) -> None:
        self.keep("alerts", not self.rings)
        if self.rings:
            self.say("a bell rings when a stage ends, or turns sick")
        else:
            self.say("no bell rings any more")

    # errors that nobody foresaw

    def tell_trouble(self, doing: str, error: BaseException) -> None:
        """Once for each: the same one again (a look at the runs each second) is not told again,
        only the first is written down."""
        told = f"{doing}: {type(error).__name__}: {error}"
        if told not in self._troubles:
            self._troubles = [*self._troubles[-100:], told]
            self.say(
                f"an error of ondevice's own, in {told}\nThe app goes on; the traceback is in "
                f"{write_trouble(doing, error)}",
                bad=True,
            )

    def _handle_exception(self, error: Exception) -> None:
        """What Textual ends the app at. A worker that failed, or a timer of ours, takes nothing
        else with it; a screen that cannot be made or drawn does."""
        if self.survives and isinstance(error, WorkerFailed) and error.error is not None:
            self.tell_trouble("a task in the background", error.error)
        else:
            super()._handle_exception(error)

    # keys

    def get_key_display(self, binding: Binding) -> str:
        return self.key_shown.get(binding.id or "") or super().get_key_display(binding)

    def action_go(self, mode: str) -> None:
        if self.current_mode != mode:
            self.switch_mode(mode)

    def action_copy_or_tell(self) -> None:
        """ctrl+c: copies what is selected; where nothing is, says how to leave."""
        selected = self.screen.get_selected_text()
        if selected:
            self.copy_to_clipboard(selected)
        elif getattr(self.screen, "TYPES", False):
            self.say("ctrl+q closes the app; what trains goes on")
        else:
            self.say("q closes the app; what trains goes on")

    def action_light(self) -> None:
        if self.current_theme.dark:
            self.theme = LIGHT.name
        else:
            self.theme = DARK.name

    def action_explain(self) -> None:
        from ondevice_tui.screens.help import HelpScreen

        if not isinstance(self.screen, HelpScreen):
            self.push_screen(HelpScreen(self.screen))

    def action_leave(self) -> None:
        told = ""
        for run, stage in self.training():
            told += f"{run}: {stage} goes on training; `ondevice` shows it again\n"
        self.exit(told)

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """Every key of the screen that is open, and the app's own."""
        for binding, node in own_bindings(screen):

            async def perform(action: str = binding.action, node: Any = node) -> None:
                await self.run_action(action, node)

            told = binding.tooltip or binding.description
            yield SystemCommand(
                f"{binding.description} ({self.get_key_display(binding)})", told, perform
            )
        for command in super().get_system_commands(screen):
            if command.title in ("Theme", "Screenshot"):
                yield command


def _first_choice(runs: Sequence[dict[str, Any]]) -> Path | None:
    """The run that is shown where none was chosen: the first that trains, else the first."""
    for run in runs:
        if any(stage["state"] == "training" for stage in run["stages"]):
            return Path(run["path"])
    if runs:
        return Path(runs[0]["path"])
    return None


def own_bindings(screen: Screen[Any]) -> list[tuple[Binding, Any]]:
    """The keys of a screen, of its panel with the focus and of the app, one for each action; what
    other widgets bind for themselves is left out.
    """
    found: dict[str, tuple[Binding, Any]] = {}
    for active in screen.active_bindings.values():
        told = active.binding.description and active.binding.action != "command_palette"
        if told and is_ours(active.node, screen) and not of_textual(active.binding):
            found.setdefault(active.binding.action, (active.binding, active.node))
    return list(found.values())


def machine_line(report: dict[str, Any]) -> str:
    """`ondevice doctor` in one line."""
    name = report["auto"]["backend"]
    found = report["backends"].get(name) or {}
    memory = report["memory"]
    parts = [
        name or "no backend",
        found.get("device") or "no device",
        f"{report['cores']} cores",
        f"{_gigabytes(memory['available'])} of {_gigabytes(memory['total'])} GB free",
        f"disk {report['disk']['free'] / 2**30:.0f} GB",
    ]
    return " · ".join(parts)


def _gigabytes(size: int | None) -> str:
    if not size:
        return "?"
    return f"{size / 2**30:.1f}"


def main() -> int:
    """The command `ondevice` without arguments: its exit code."""
    plain_terminal.suit(sys.__stderr__)  # where Textual draws
    app = OndeviceApp(survives=True)
    said = app.run()
    if said:
        print(sanitize(said, limit=None), end="")
    return app.return_code or 0
