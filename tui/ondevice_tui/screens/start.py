"""The form that starts a stage or a recipe, made from its settings dataclass: the command line's
names and checks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.widget import Widget
from textual.widgets import Input, Select

from ondevice.common.errors import UserError
from ondevice.config.auto import AUTO, BY_RULE
from ondevice.config.load import from_mapping, to_mapping
from ondevice.config.recipe import STAGES, recipe_names, stage_defaults
from ondevice.config.runs import RunConfig
from ondevice.runs.folder import RunFolder
from ondevice_tui import guide, plan_process, stage_processes
from ondevice_tui.fields import fields_of, settings
from ondevice_tui.proposals import MODEL_FIELDS, recipe_has
from ondevice_tui.screens.confirm import ask
from ondevice_tui.screens.page import Page
from ondevice_tui.screens.start_fields import Field, as_name, best_field
from ondevice_tui.start_checks import StartChecks
from ondevice_tui.widgets.safe import SafeInput, SafeText, content, line, titled
from ondevice_tui.worker_client import models_in

DEFAULTS = "(defaults)"


FIND = "a part of a field's name"
PAUSE_S = (
    0.4  # after a key, before a plan is asked for: who types on needs none of what is half typed
)
AT_ONCE = 8  # fields that a form begins with: it has up to fifty, and mounting them all takes a second or two


class StartScreen(Page):
    ABOUT = """\
The settings of a stage, with the names, help and checks of the command line. • marks what is not the default, ✗ what \
is wrong. At the foot is the command that does the same; ctrl+y copies it.

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

    TYPES = True

    def __init__(self, verb: str, values: Mapping[str, Any]) -> None:
        super().__init__()
        self.verb = verb
        self.cls: type = RunConfig
        if verb != "run":
            self.cls = STAGES[verb]
        self._checks = StartChecks(verb, self.cls)
        self.specs = fields_of(self.cls)
        given = dict(values)
        self.recipe = DEFAULTS
        if verb != "run":
            self.recipe = str(given.pop("recipe", DEFAULTS))
        self.base = self._base(self.recipe)
        if verb == "run" and not given.get("out"):
            given["out"] = str(RunFolder.new(str(given.get("recipe", "minute"))).path)
        self.values = {**self.base, **given}
        # whatever recipe the other values are taken from
        self.kept = {"out", "model", "reward_model", *given}
        # the command that the form stands for; none while something is wrong
        self._words: list[str] = []
        self._entered: dict[str, Any] = {}  # the values of the fields, where all could be read
        self._wrong = ""  # the field that is at fault
        self._checking = False  # a check is on its way
        # of each command that was planned, its line; empty while it is asked for
        self._plans: dict[tuple[str, ...], str] = {}
        # and what its settings at auto come to
        self._settled: dict[tuple[str, ...], dict[str, Any]] = {}
        self._measuring = False  # how fast this machine is, for the times of plans
        # a field that was looked for and is not mounted yet: what is typed is for it
        self._goal: Field | None = None
        self._coming = [
            Field(spec, self.values[spec.name], self.base[spec.name]) for spec in self.specs
        ]

    def _base(self, recipe: str) -> dict[str, Any]:
        """What a field has where nothing is typed: the recipe's value, else the default."""
        if recipe != DEFAULTS:
            return to_mapping(stage_defaults(self.verb, recipe))
        plain = to_mapping(self.cls())
        if self.verb == "run":
            plain["recipe"] = ""  # the command names even the default one
        return plain

    def body(self) -> Iterable[Widget]:
        with Horizontal(id="start"):
            with VerticalScroll(id="form", classes="box"):
                yield SafeText(id="about-narrow", classes="about")
                if self.verb != "run":
                    yield from self._recipe_choice()
                yield SafeInput(placeholder=FIND, id="find", compact=True)
                yield from self._next_fields()
            with VerticalScroll(id="about", classes="box"):
                yield SafeText(id="about-wide", classes="about")
        yield SafeText(id="command")
        yield SafeText(id="verdict")

    def _recipe_choice(self) -> Iterable[Widget]:
        names = [*recipe_names()]
        if self.recipe != DEFAULTS and self.recipe not in names:
            names.append(self.recipe)
        fitting = [DEFAULTS, *(name for name in names if recipe_has(name, self.verb))]
        with Horizontal(classes="field-row"):
            yield SafeText("  values from", classes="field-name")
            yield Select(
                [(content(name), name) for name in fitting],
                value=self.recipe,
                allow_blank=False,
                compact=True,
                id="recipe",
            )

    def on_mount(self) -> None:
        told = guide.about(self.verb, self.cls)
        text = content(told, "$muted")
        for name in ("#about-narrow", "#about-wide"):
            self.query_one(name, SafeText).show(text)
        titled(
            self.query_one("#form"),
            "settings",
            "Enter next   space yes/no   ctrl+f find   ctrl+g start",
        )
        titled(self.query_one("#about"), f"{self.verb}: what it does, what to watch")
        self.query_one("#find").display = False
        self.top(("start ", ""), (self.verb, "bold"))
        for field in self.query(Field):
            if field.spec.name in ("recipe", "model", "data"):
                field.control.focus()
                break
        self.run_worker(self._fill(), group="fields")

    def on_resize(self) -> None:
        if self.focused is not None:  # the field with the cursor stays in view
            self.call_after_refresh(self.focused.scroll_visible, animate=False)

    def _next_fields(self, most: int = AT_ONCE) -> list[Field]:
        made = self._coming[:most]
        self._coming = self._coming[most:]
        return made

    def _all_fields(self) -> list[Field]:
        """Those that are mounted, and those that are still coming."""
        return [*self.query(Field), *self._coming]

    async def _fill(self) -> None:
        """Mounts the other fields once the first ones are there, in two parts: more of them would
        cost more in all.
        """
        while self._coming:
            await self.query_one("#form").mount_all(self._next_fields(3 * AT_ONCE))
            self._filter()
            if self._goal is not None and self._goal not in self._coming:
                self._reach(self._goal)
        self._check_soon()

    def _check_soon(self) -> None:
        """One check for many changes: each field tells of its first value too."""
        if not self._checking:
            self._checking = True
            self.call_later(self._check_now)

    def _check_now(self) -> None:
        self._checking = False
        self.check()

    # what is typed

    def on_input_changed(self, event: Input.Changed) -> None:
        if event.input.id != "find":
            self._check_soon()
        elif event.input.display or not event.value:
            self._filter()
        else:  # a key was on its way to the search box as it was put away
            event.input.value = ""
            if isinstance(self.focused, Input):
                self.focused.insert_text_at_cursor(event.value)

    def _filter(self) -> None:
        box = self.query_one("#find", Input)
        part = ""
        if self._goal is None and box.display:
            part = as_name(box.value)
        for field in self.query(Field):
            field.display = part in field.spec.name

    def on_input_submitted(self, event: Input.Submitted) -> None:
        if event.input.id != "find":
            self._enter()
        elif self._goal is not None:  # a whole value, for a field that is still coming
            self._end_find()
        else:
            self._find_typed(event.value)

    def on_yes_no_entered(self) -> None:
        self._enter()

    def _enter(self) -> None:
        """Enter in a field: to the field that is wrong, with what is wrong there; else to the next
        one. The last one has none: it says what starts the stage."""
        if self._coming:
            self.app.action_focus_next()
        elif not self.check():
            self._go_to_wrong()
        elif self.focused is list(self.query(Field))[-1].control:
            self.ui.say("nothing is wrong: ctrl+g starts it")
        else:
            self.app.action_focus_next()

    def _go_to_wrong(self) -> None:
        """Says what is wrong, and puts the cursor where it is."""
        self.ui.say(self.query_one("#verdict", SafeText).plain.strip(), bad=True)
        if self._wrong in {spec.name for spec in self.specs} and not self._coming:
            self._find_field(self._wrong)

    def _find_typed(self, part: str) -> None:
        """Goes to the field of which a part of its name was typed."""
        name = best_field([spec.name for spec in self.specs], part)
        if name is None:
            self.ui.say(f"no setting of {self.verb} has {part.strip()!r} in its name", bad=True)
        else:
            self._find_field(name)

    def _find_field(self, name: str) -> None:
        """Goes to this field. Where it is not mounted yet, the search box takes what is typed for
        it.
        """
        field = next(field for field in self._all_fields() if field.spec.name == name)
        if field.is_mounted:
            self._reach(field)
            return
        self._goal = field
        box = self.query_one("#find", Input)
        box.value = ""
        box.placeholder = f"{name}: what is typed here goes into this field, which is being drawn"
        self._filter()

    def _reach(self, field: Field) -> None:
        """The cursor stands in this field, behind what was typed for it meanwhile; every field is
        shown again.
        """
        typed = self._end_find()
        if typed and isinstance(field.control, Input):
            # what is typed next goes on with it and does not replace it
            field.control.select_on_focus = False
            self.set_focus(field.control)
            field.control.cursor_position = len(field.control.value)
            # after it has taken the focus
            field.control.call_later(setattr, field.control, "select_on_focus", True)
        else:
            self.set_focus(field.control)

    def _end_find(self) -> bool:
        """Puts the search box away; gives whether it held a value for the field looked for, which
        has it now.
        """
        box = self.query_one("#find", Input)
        goal = self._goal
        typed = bool(goal is not None and box.value)
        if goal is not None and typed and isinstance(goal.control, Input):
            goal.control.value = box.value
        self._goal = None
        had_focus = box.has_focus
        box.value = ""
        box.display = False
        box.placeholder = FIND
        mounted = list(self.query(Field))
        if had_focus and mounted:
            self.set_focus(mounted[0].control)
        self._filter()
        return typed

    def on_checkbox_changed(self) -> None:
        self._check_soon()

    def on_select_changed(self, event: Select.Changed) -> None:
        if event.select.id == "recipe" and event.value != self.recipe:
            self._take_recipe(str(event.value))
        self._check_soon()

    def _take_recipe(self, name: str) -> None:
        self.base = self._base(name)
        self.recipe = name
        for field in self._all_fields():
            field.default = self.base[field.spec.name]
            if field.spec.name in self.kept:
                continue
            field.put(field.default)
            if field.spec.choices:
                field.begun = field.spec.text(field.default)
            else:
                field.begun = field.entry

    def check(self) -> bool:
        """Says whether it can start, marks the field at fault, shows the command."""
        if self._coming:
            self.query_one("#verdict", SafeText).show(
                content(" the other fields are coming …", "$muted")
            )
            return False
        where, told = self._find_wrong()
        self._wrong = where.partition(".")[0]
        for field in self.query(Field):
            field.mark(field.spec.name == self._wrong)
        planned = ""
        if not told:
            planned = self._planned()
        self._show_command()
        self._show_verdict(told, planned)
        for field in self.query(Field):
            self._explain(field, planned)
        return not told

    def _explain(self, field: Field, planned: str) -> None:
        """Shows behind a field's help what follows from the values: the plan at the steps, and what
        a setting at auto comes to."""
        name = field.spec.name
        words = []
        settled = self._settled.get(tuple(self._words), {})
        if self._entered.get(name) == AUTO and name in settled:
            words.append(f"here about {plan_process.figure(settled[name])}")
        if name == "steps" and planned:
            words.append(planned)
        if name in BY_RULE:
            field.add("; ".join(words))

    def _find_wrong(self) -> tuple[str, str]:
        """(field, what is wrong there), both empty where nothing is. Reads the fields and makes the
        command on the way."""
        self._words = []
        try:
            self._entered = self._read_fields()
            return self._checks.obstacle(self._entered) or ("", "")
        except UserError as problem:
            return problem.where.partition("[")[0], str(problem)
        except (OSError, ValueError) as problem:
            # a path that no disk takes: too long, with a NUL in it
            return "", f"a path cannot be used: {problem}"

    def _read_fields(self) -> dict[str, Any]:
        """The values of all fields, as the command has them. Raises UserError where one is wrong."""
        recipe = self.recipe
        if recipe == DEFAULTS:
            recipe = ""
        entries = {}
        filled = set()
        for field in self.query(Field):
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
        out = next(field.entry for field in self.query(Field) if field.spec.name == "out")
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
        for field in self.query(Field):
            if field.spec.name not in MODEL_FIELDS:
                continue
            if field.control.has_focus:
                return field
            if field.spec.name == "model":
                found = field
        return found

    def action_find(self) -> None:
        if self._goal is not None:
            self._end_find()
        box = self.query_one("#find", Input)
        box.display = True
        self.set_focus(box)  # at once: what is typed next is meant for it

    def action_step(self, by: int) -> None:
        if by > 0:
            self.app.action_focus_next()
        else:
            self.app.action_focus_previous()

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
