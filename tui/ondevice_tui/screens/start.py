"""The form that starts a stage or a recipe, made from its settings dataclass: the command line's
names and checks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from textual.binding import Binding, BindingType
from textual.widgets import Input

from ondevice.common.errors import UserError
from ondevice.config.auto import AUTO, BY_RULE
from ondevice.config.load import from_mapping, to_mapping
from ondevice_tui import plan_process, stage_processes
from ondevice_tui.fields import settings
from ondevice_tui.proposals import MODEL_FIELDS
from ondevice_tui.screens.confirm import ask
from ondevice_tui.screens.form_page import DEFAULTS, FormPage
from ondevice_tui.screens.start_fields import Field
from ondevice_tui.start_checks import StartChecks
from ondevice_tui.widgets.safe import SafeText, content, line
from ondevice_tui.worker_client import models_in

PAUSE_S = (
    0.4  # after a key, before a plan is asked for: who types on needs none of what is half typed
)


class StartScreen(FormPage):
    ABOUT = """\
The settings of a stage, with the names, help and checks of the command line. • marks what is not the default, ✗ what \
is wrong. At the foot is the command that does the same; ctrl+y copies it.

The basics come first; the other settings are in groups that Enter or space unfolds (ctrl+e: all of them). A field \
that is changed or wrong is always shown. Below, or beside: the help of the field with the cursor and what the command \
takes: how often it goes through the data, time, memory.

The stage is started as a process of its own: it goes on when this app is closed."""
    # Priority: a key that only bubbled up from its field would come after letters that were typed
    # later.
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "escape", "back", "back", key_display="esc", tooltip="Leave the form, start nothing"
        ),
        Binding("ctrl+g", "go", "start", priority=True, tooltip="Start it"),
        Binding(
            "ctrl+t",
            "model",
            "model",
            priority=True,
            tooltip="Begin from a model of any run here (any other folder: type it)",
        ),
        Binding("ctrl+y", "copy", "copy command", priority=True, tooltip="Copy the command line"),
        Binding(
            "ctrl+f", "find", "find a field", priority=True, tooltip="Type a part of a field's name"
        ),
        Binding(
            "ctrl+e", "unfold", "all", priority=True, tooltip="Show every setting, or the basics"
        ),
        Binding("tab", "app.focus_next", "next", tooltip="The next field or choice"),
        Binding(
            "down",
            "step(1)",
            "field",
            key_display="↑ ↓",
            tooltip="The field below; ↑ the one above",
        ),
        Binding("up", "step(-1)", "field above", show=False),
        Binding(
            "ctrl+q", "app.leave", "quit", priority=True, tooltip="Close this app; training goes on"
        ),
    ]

    def __init__(self, verb: str, values: Mapping[str, Any]) -> None:
        super().__init__(verb, values)
        self._checks = StartChecks(verb, self.cls)
        # the command that the form stands for; none while something is wrong
        self._words: list[str] = []
        self._entered: dict[str, Any] = {}  # the values of the fields, where all could be read
        # of each command that was planned, its line; empty while it is asked for
        self._plans: dict[tuple[str, ...], str] = {}
        # and what its settings at auto come to
        self._settled: dict[tuple[str, ...], dict[str, Any]] = {}
        self._measuring = False  # how fast this machine is, for the times of plans

    def check(self) -> bool:
        """Says whether it can start, marks the field at fault, shows the command."""
        if self._coming:
            self.query_one("#verdict", SafeText).show(
                content(" the other fields are coming …", "$muted")
            )
            return False
        where, told = self._find_wrong()
        self.wrong = where.partition(".")[0]
        for field in self.fields:
            field.mark(field.spec.name == self.wrong)
        planned = ""
        if not told:
            planned = self._planned()
        self._show_command()
        self._show_verdict(told, planned)
        for field in self.fields:
            self._explain(field, planned)
        self._planned_line = planned
        self._filter()
        self._show_hint()
        return not told

    def _explain(self, field: Field, planned: str) -> None:
        """Says behind a field's help what follows from the values: the plan at the steps, and what
        a setting at auto comes to."""
        name = field.spec.name
        words = []
        settled = self._settled.get(tuple(self._words), {})
        if self._entered.get(name) == AUTO and name in settled:
            words.append(f"here about {plan_process.figure(settled[name])}")
        if name == "steps" and planned:
            words.append(planned)
        if name in BY_RULE:
            field.follows = "; ".join(words)

    def _find_wrong(self) -> tuple[str, str]:
        """(field, what is wrong there), both empty where nothing is. Reads the fields and makes the
        command on the way."""
        self._words = []
        try:
            self._entered = self._read_fields()
            wrong = self._checks.obstacle(self._entered) or ("", "")
        except UserError as problem:
            wrong = problem.where.partition("[")[0], str(problem)
        except (OSError, ValueError) as problem:
            # a path that no disk takes: too long, with a NUL in it
            wrong = "", f"a path cannot be used: {problem}"
        if any(wrong):
            self._words = []  # a command that would be refused is none to copy
        return wrong

    def _read_fields(self) -> dict[str, Any]:
        """The values of all fields, as the command has them. Raises UserError where one is wrong."""
        recipe = self.recipe
        if recipe == DEFAULTS:
            recipe = ""
        entries = {}
        filled = set()
        for field in self.fields:
            entries[field.spec.name] = field.entry
            if recipe and not field.changed:
                filled.add(field.spec.name)
        values = to_mapping(from_mapping(self.cls, settings(self.specs, entries), filled=filled))
        # what has no effect is left out by the command too
        values |= {name: self.base[name] for name in filled}
        self._words = stage_processes.words_for(self.verb, self.cls, values, self.base, recipe)
        return values

    def _show_command(self) -> None:
        command: str | tuple[str, str] = ("no command while a setting is wrong", "$muted")
        if self._words:
            command = stage_processes.shown(self._words)
        self.query_one("#command", SafeText).show(line((" $ ", "bold $primary"), command))

    def _show_verdict(self, told: str, planned: str) -> None:
        verdict = self.query_one("#verdict", SafeText)
        mark = (" ✓ ", "bold $success")
        if told:
            verdict.show(line((" ✗ ", "bold $error"), (told, "$error")))
        elif planned:
            ready = ("ready: ctrl+g starts it", "$success")
            verdict.show(line(mark, ready, (f" · {planned}", "$warning")))
        else:
            ready = ("ready: ctrl+g starts it as a process of its own", "$success")
            verdict.show(line(mark, ready))

    def _planned(self) -> str:
        """What the command would take, once it is known; asks for it where it is not."""
        words = tuple(self._words)
        if words not in self._plans:
            self.run_worker(partial(self._ask_plan, words), group="plan", exclusive=True)
        return self._plans.get(words, "")

    async def _ask_plan(self, words: tuple[str, ...]) -> None:
        await asyncio.sleep(PAUSE_S)
        run = Path(str(self._entered.get("out") or "runs"))
        plan = await plan_process.ask(words, run)
        self._plans[words] = plan_process.told(plan)
        self._settled[words] = plan_process.settings(plan)
        if not plan_process.is_calibrated(plan) and not self._measuring:
            self._measuring = True
            self.run_worker(partial(self._measure, words, run), group="measure")
        self._check_soon()

    async def _measure(self, words: tuple[str, ...], run: Path) -> None:
        """Has this machine measured, and asks for all plans anew, which then have times."""
        plan = await plan_process.ask(words, run, measure=True)
        if "wrong" not in plan:
            self._plans = {words: plan_process.told(plan)}
            self._check_soon()

    # keys

    def action_go(self) -> None:
        if not self.check():
            self._go_to_wrong()
            return
        out = next(field.entry for field in self.fields if field.spec.name == "out")
        if self.ui.start(self._words, Path(str(out))):
            self.dismiss(None)
            self.ui.action_go("train")

    def action_copy(self) -> None:
        if not self._words:
            self.ui.say("nothing copied: a setting is wrong, so there is no command", bad=True)
            return
        # a path that is not UTF-8 holds lone surrogates, which no terminal takes
        self.app.copy_to_clipboard(
            stage_processes.shown(self._words).encode("utf-8", "replace").decode()
        )
        self.ui.say(f"copied: {stage_processes.shown(self._words)}")

    def action_model(self) -> None:
        """Fills in the model (the reward model where that field has the cursor) from a list of what
        the runs have.
        """
        from ondevice_tui.screens.choose_model import ChooseModel

        field = self._model_field()
        if field is None:
            self.ui.say(f"{self.verb} begins from no model")
            return
        kind = MODEL_FIELDS[field.spec.name]
        known = models_in(self.ui.runs or (), kind)
        if known:
            self.app.push_screen(
                ChooseModel(known), lambda model: field.put(model[1]) if model else None
            )
        elif kind == "reward":
            self.ui.say("no run here has a reward model yet")
        else:
            self.ui.say("no run here has a model yet")

    def _model_field(self) -> Field | None:
        """The field of a model that has the cursor, else the field `model`, where there is one."""
        found: Field | None = None
        for field in self.fields:
            if field.spec.name not in MODEL_FIELDS:
                continue
            if field.control.has_focus:
                return field
            if field.spec.name == "model":
                found = field
        return found

    def action_back(self) -> None:
        if self.query_one("#find", Input).display:
            self._end_find()
            return
        changed = [field.spec.name for field in self._all_fields() if field.entry != field.begun]
        if not changed:
            self.dismiss(None)
            return
        ask(
            self.ui,
            "leave the form",
            f"What you changed is lost: {', '.join(changed)}.",
            "close the form",
            lambda: self.dismiss(None),
            no="go on with it",
        )
