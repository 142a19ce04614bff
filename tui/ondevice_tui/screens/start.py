"""The form that starts a stage or a recipe, made from its settings dataclass: the command line's
names and checks.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widget import Widget
from textual.widgets import Checkbox, Input, Select

from ondevice.common.errors import UserError
from ondevice.config.load import from_mapping, to_mapping
from ondevice.config.preference import PairsConfig
from ondevice.config.recipe import (
    STAGES,
    gives,
    load_recipe,
    recipe_for,
    recipe_names,
    stage_defaults,
)
from ondevice.config.use import RunConfig
from ondevice.runs.folder import RunFolder
from ondevice.runs.listing import has_ratings
from ondevice_tui import epochs, guide, imports, stage_processes
from ondevice_tui.fields import FieldSpec, fields_of, settings
from ondevice_tui.screens.confirm import ask
from ondevice_tui.screens.page import Page
from ondevice_tui.widgets.safe import SafeInput, SafeText, YesNo, content, line, titled
from ondevice_tui.worker_client import models_in

DEFAULTS = "(defaults)"


def proposal(stage: str, run: RunFolder | None) -> dict[str, Any]:
    """Settings worth proposing: the run's folder, the newest model before this stage, the run's own
    recipe; where the stage is complete in this run, a new run's folder, and the votes of this one.
    """
    if run is None:
        return {"out": str(RunFolder.new(stage).path)}
    order = list(STAGES)
    whole = [s for s in run.stages() if s.name in order and s.name != stage and s.has_model]
    before = [s for s in whole if order.index(s.name) < order.index(stage)] or whole
    fits = run.stage(stage)
    taken = fits.done.is_file() or fits.holder() is not None
    found: dict[str, Any] = {"out": str(RunFolder.new(stage).path if taken else run.path)}
    for field, kind in (("model", "policy"), ("reward_model", "reward")):
        models = [s.model for s in before if gives(s.name) == kind]
        if models and field in {f.name for f in dataclasses.fields(STAGES[stage])}:
            found[field] = str(models[-1])
    if taken and issubclass(
        STAGES[stage], PairsConfig
    ):  # no data means the votes of the run's own folder
        # here: who starts something else waits for no database
        from ondevice.preferences.sqlite_store import FILE

        if (run.path / FILE).is_file():
            found["data"] = str(run.path / FILE)
    if run.recipe.is_file() and _has(str(run.path), stage):
        found["recipe"] = str(run.path)
    return found


class Field(Vertical):
    """A name, its control, its help; a mark where the value is not the default."""

    def __init__(self, spec: FieldSpec, value: Any, default: Any) -> None:
        super().__init__(classes="field")
        self.spec, self.default = spec, default
        self.control: Input | Checkbox | Select[str]
        if spec.flag:
            self.control = YesNo(bool(value))
        elif spec.choices:
            self.control = Select(
                [(content(choice), choice) for choice in spec.choices],
                value=str(value),
                allow_blank=False,
                compact=True,
            )
        else:
            self.control = SafeInput(spec.text(value), compact=True)
        self.label = SafeText(spec.name, classes="field-name")
        self.about = SafeText(spec.help, "$muted", classes="field-help")
        # what it holds before anybody changes it; a choice knows its own only once it is mounted
        self.begun: str | bool = (
            bool(value) if spec.flag else str(value) if spec.choices else spec.text(value)
        )

    def compose(self) -> Iterable[Widget]:
        with Horizontal(classes="field-row"):
            yield self.label
            yield self.control
        yield self.about

    def add(self, text: str) -> None:
        """Something that follows from the values, behind the help."""
        self.about.show(
            line((f"{self.spec.help} ", "$muted"), (text, "$warning"))
            if text
            else content(self.spec.help, "$muted")
        )

    @property
    def entry(self) -> str | bool:
        return cast("str | bool", self.control.value)

    def put(self, value: Any) -> None:
        if isinstance(self.control, Checkbox):
            self.control.value = bool(value)
        elif isinstance(self.control, Select):
            self.control.value = str(value)
        else:
            self.control.value = self.spec.text(value)

    @property
    def changed(self) -> bool:
        """Whether the value is not the default."""
        return self.entry != (self.default if self.spec.flag else self.spec.text(self.default))

    def mark(self, wrong: bool) -> None:
        mark = ("✗ ", "bold $error") if wrong else ("• ", "bold $primary") if self.changed else "  "
        self.label.show(line(mark, (self.spec.name, "bold" if self.changed or wrong else "")))


FIND = "a part of a field's name"
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
        self.cls: type = RunConfig if verb == "run" else STAGES[verb]
        self.specs = fields_of(self.cls)
        given = dict(values)
        self.recipe = DEFAULTS if verb == "run" else str(given.pop("recipe", DEFAULTS))
        self.base = self._base(self.recipe)
        if verb == "run" and not given.get("out"):
            given["out"] = str(RunFolder.new(str(given.get("recipe", "minute"))).path)
        self.values = {**self.base, **given}
        # whatever recipe the other values are taken from
        self.kept = {"out", "model", "reward_model", *given}
        self._words: list[
            str
        ] = []  # the command that the form stands for; none while something is wrong
        self._wrong = ""  # the field that is at fault
        self._checking = False  # a check is on its way
        self._rows: dict[
            tuple[Path, int], int | None
        ] = {}  # (file of rows, its time) → how many, once counted
        # a field that was looked for and is not mounted yet: what is typed is for it
        self._goal: Field | None = None
        # (recipe, arch) that have been read and are right
        self._recipes: set[tuple[str, str]] = set()
        self._coming = [
            Field(spec, self.values[spec.name], self.base[spec.name]) for spec in self.specs
        ]

    def _base(self, recipe: str) -> dict[str, Any]:
        """What a field has where nothing is typed: the recipe's value, else the default."""
        if recipe != DEFAULTS:
            return to_mapping(stage_defaults(self.verb, recipe))
        plain = to_mapping(self.cls())
        # the command names even the default one
        return {**plain, "recipe": ""} if self.verb == "run" else plain

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
        names = [
            DEFAULTS,
            *recipe_names(),
            *([self.recipe] if self.recipe not in (DEFAULTS, *recipe_names()) else []),
        ]
        fitting = [name for name in names if name == DEFAULTS or _has(name, self.verb)]
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
        told = guide.about(self.verb, self.cls.__doc__ or "")
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
        first = next(
            (f for f in self.query(Field) if f.spec.name in ("recipe", "model", "data")), None
        )
        if first is not None:
            first.control.focus()
        self.run_worker(self._fill(), group="fields")

    def on_resize(self) -> None:
        if self.focused is not None:  # the field with the cursor stays in view
            self.call_after_refresh(self.focused.scroll_visible, animate=False)

    def _next_fields(self, most: int = AT_ONCE) -> list[Field]:
        made, self._coming = self._coming[:most], self._coming[most:]
        return made

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
        part = _as_name(box.value) if self._goal is None and box.display else ""
        for field in self.query(Field):
            field.display = part in field.spec.name

    def on_input_submitted(self, event: Input.Submitted) -> None:
        if event.input.id != "find":
            self._enter()
        elif self._goal is not None:  # a whole value, for a field that is still coming
            self._end_find()
        elif (name := best_field([spec.name for spec in self.specs], event.value)) is None:
            self.ui.say(
                f"no setting of {self.verb} has {event.value.strip()!r} in its name", bad=True
            )
        else:
            self._find_field(name)

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

    def _find_field(self, name: str) -> None:
        """Goes to this field. Where it is not mounted yet, the search box takes what is typed for
        it.
        """
        field = next(
            field for field in [*self.query(Field), *self._coming] if field.spec.name == name
        )
        if field.is_mounted:
            self._reach(field)
            return
        self._goal = field
        box = self.query_one("#find", Input)
        box.value, box.placeholder = (
            "",
            f"{name}: what is typed here goes into this field, which is being drawn",
        )
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
        box, goal = self.query_one("#find", Input), self._goal
        typed = bool(goal is not None and box.value)
        if goal is not None and typed and isinstance(goal.control, Input):
            goal.control.value = box.value
        self._goal = None
        had_focus = box.has_focus
        box.value, box.display, box.placeholder = "", False, FIND
        if had_focus and (first := next(iter(self.query(Field)), None)) is not None:
            self.set_focus(first.control)
        self._filter()
        return typed

    def on_checkbox_changed(self) -> None:
        self._check_soon()

    def on_select_changed(self, event: Select.Changed) -> None:
        if event.select.id == "recipe" and event.value != self.recipe:
            self._take_recipe(str(event.value))
        self._check_soon()

    def _take_recipe(self, name: str) -> None:
        self.recipe, self.base = name, self._base(name)
        for field in [*self.query(Field), *self._coming]:
            field.default = self.base[field.spec.name]
            if field.spec.name not in self.kept:
                field.put(field.default)
                field.begun = str(field.default) if field.spec.choices else field.entry

    def check(self) -> bool:
        """Says whether it can start, marks the field at fault, shows the command."""
        if self._coming:
            self.query_one("#verdict", SafeText).show(
                content(" the other fields are coming …", "$muted")
            )
            return False
        entries = {field.spec.name: field.entry for field in self.query(Field)}
        where, told = "", ""
        self._words = []
        values: dict[str, Any] = {}
        try:
            recipe = "" if self.recipe == DEFAULTS else self.recipe
            filled = {
                field.spec.name for field in self.query(Field) if recipe and not field.changed
            }
            values = to_mapping(
                from_mapping(self.cls, settings(self.specs, entries), filled=filled)
            )
            # what has no effect is left out by the command too
            values |= {name: self.base[name] for name in filled}
            self._words = stage_processes.words_for(self.verb, self.cls, values, self.base, recipe)
            where, told = self._obstacle(values)
        except UserError as problem:
            where, told = problem.where.partition("[")[0], str(problem)
        except (
            OSError,
            ValueError,
        ) as problem:  # a path that no disk takes: too long, with a NUL in it
            told = f"a path cannot be used: {problem}"
        through = self._through(values) if not told else ""
        self._wrong = where.partition(".")[0]
        for field in self.query(Field):
            field.mark(field.spec.name == self._wrong)
        self.query_one("#command", SafeText).show(
            line(
                (" $ ", "bold $primary"),
                stage_processes.shown(self._words)
                if self._words
                else ("no command while a setting is wrong", "$muted"),
            )
        )
        self.query_one("#verdict", SafeText).show(
            line((" ✗ ", "bold $error"), (told, "$error"))
            if told
            else line(
                (" ✓ ", "bold $success"),
                (
                    f"ready: ctrl+g starts it{'' if through else ' as a process of its own'}",
                    "$success",
                ),
                (f" · {through}" if through else "", "$warning"),
            )
        )
        for field in self.query(Field):
            if field.spec.name == "steps":
                field.add(through)
        return not told

    def _through(self, values: Mapping[str, Any]) -> str:
        """How often the data is gone through, once its rows are counted."""
        a_step = epochs.rows_a_step(self.cls, values)
        key = epochs.source_of(values) if a_step else None
        if a_step is None or key is None:
            return ""
        if key not in self._rows:
            self._rows[key] = None
            imports.load_all()  # the thread imports nothing
            self.run_worker(lambda: self._count(key), thread=True, group="rows")
        rows = self._rows[key]
        if rows:
            return epochs.told(int(values["steps"]), a_step, rows)
        return ""

    def _count(self, key: tuple[Path, int]) -> None:
        """In a thread."""
        self._rows[key] = epochs.count(key[0])
        self.app.call_from_thread(self._check_soon)

    def _obstacle(self, values: Mapping[str, Any]) -> tuple[str, str]:
        """(field, what stands in the way): what the command would refuse, said before it is
        started.
        """
        for name in ("model", "reward_model"):
            folder = values.get(name, "-")
            if folder == "":
                return name, f"{name}: name the folder of a model to start from"
            if folder != "-" and not Path(str(folder)).exists():
                return name, f"{name}: there is no {folder}"
        if not values["out"]:
            return "out", "out: name the run folder"
        run = RunFolder(str(values["out"]))
        place = next(
            folder for folder in (run.path, *run.path.absolute().parents) if folder.exists()
        )
        if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
            return "out", f"out: cannot be written to: {place}"
        if values["resume"] or values.get("redo"):
            return "", ""
        if self.verb == "run":
            if wrong := self._wrong_recipe(str(values["recipe"]), str(values["arch"])):
                return "recipe", f"recipe: {wrong}"
            begun = [stage.name for stage in run.stages()]
            if begun:
                return ("out", "out: a run stands there already; resume goes on with it")
            return ("", "")
        if issubclass(self.cls, PairsConfig) and not values["data"] and not has_ratings(run):
            return (
                "data",
                "data: this run has no ratings to learn from; name a file of pairs, or another run",
            )
        stage = run.stage(self.verb)
        if stage.holder() is not None:
            return "out", f"out: {self.verb} trains there now"
        if stage.done.is_file() or any(stage.checkpoints.glob("step-*")):
            return "out", f"out: {self.verb} stands there already; give another folder, or resume"
        return "", ""

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
        # a path that is no UTF-8 holds lone surrogates, which no terminal takes
        self.app.copy_to_clipboard(
            stage_processes.shown(self._words).encode("utf-8", "replace").decode()
        )
        self.ui.say(f"copied: {stage_processes.shown(self._words)}")

    def action_model(self) -> None:
        """Fills in the model (the reward model where that field has the cursor) from a list of what
        the runs have.
        """
        from ondevice_tui.screens.choose_model import ChooseModel

        fields = {
            field.spec.name: field
            for field in self.query(Field)
            if field.spec.name in ("model", "reward_model")
        }
        typing = [field for field in fields.values() if field.control.has_focus]
        field = (typing or [fields[name] for name in fields if name == "model"] or [None])[0]
        kind = "reward" if field is not None and field.spec.name == "reward_model" else "policy"
        known = models_in(self.ui.runs or (), kind)
        if field is None:
            self.ui.say(f"{self.verb} begins from no model")
        elif not known:
            self.ui.say(f"no run here has a {'reward ' if kind == 'reward' else ''}model yet")
        else:
            self.app.push_screen(
                ChooseModel(known), lambda model: field.put(model[1]) if model else None
            )

    def _wrong_recipe(self, recipe: str, arch: str) -> str:
        """A right one is read once: every key asks, and parsing YAML takes as long as all else that
        a key does.
        """
        if (recipe, arch) not in self._recipes:
            try:
                load_recipe(recipe_for(recipe, arch))
            except UserError as problem:
                return str(problem)
            self._recipes.add((recipe, arch))
        return ""

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
        changed = [
            field.spec.name
            for field in [*self.query(Field), *self._coming]
            if field.entry != field.begun
        ]
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


def best_field(names: Iterable[str], part: str) -> str | None:
    """The name that somebody means who types this: the whole name, else the first that begins with
    it, else the first that has it in it; None where there is none, or nothing was typed."""
    wanted = _as_name(part)
    found = [name for name in names if wanted and wanted in name]
    return min(found, key=lambda name: (name != wanted, not name.startswith(wanted)), default=None)


def _as_name(part: str) -> str:
    return part.strip().lower().replace("-", "_")


def _has(recipe: str, stage: str) -> bool:
    try:
        stage_defaults(stage, recipe)
    except UserError:
        return False
    return True
