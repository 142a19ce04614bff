"""The fields of the form that starts a stage or a recipe: mounted, in groups that fold, looked for,
gone through."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.events import DescendantFocus
from textual.widget import Widget
from textual.widgets import Input, Select

from ondevice.config.load import to_mapping
from ondevice.config.recipe import STAGES, recipe_names, stage_defaults
from ondevice.config.runs import RunConfig
from ondevice.runs.folder import RunFolder
from ondevice_tui import guide
from ondevice_tui.field_groups import FIRST, in_groups
from ondevice_tui.fields import fields_of
from ondevice_tui.proposals import recipe_has
from ondevice_tui.screens.page import Page
from ondevice_tui.screens.start_fields import Field, Fields, GroupHead, as_name, best_field
from ondevice_tui.widgets.safe import SafeInput, SafeText, content, lines, titled

DEFAULTS = "(defaults)"
FIND = "a part of a field's name"
AT_ONCE = 10  # fields that a form begins with: it has up to seventy, and mounting them all takes a second or two


class FormPage(Page):
    """The fields. `check` says whether the form can start and `checked` is what it last said."""

    TYPES = True

    def __init__(self, verb: str, values: Mapping[str, Any]) -> None:
        super().__init__()
        self.verb = verb
        self.cls: type = RunConfig
        if verb != "run":
            self.cls = STAGES[verb]
        self.specs = fields_of(self.cls)
        self.groups = in_groups(verb, self.cls, self.specs)
        self.heads = {name: GroupHead(name, len(specs)) for name, specs in self.groups.items()}
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
        self.wrong = ""  # the field that is at fault
        self._checking = False  # a check is on its way
        self._planned_line = ""  # what the command would take
        # a field that was looked for and is not mounted yet: what is typed is for it
        self._goal: Field | None = None
        self._reached: Field | None = None  # the one that was looked for last
        self.fields: list[Field] = []  # those that are on the screen
        self._coming: list[Widget] = []
        for name, specs in self.groups.items():
            if name != FIRST:
                self._coming.append(self.heads[name])
            for spec in specs:
                value, default = self.values[spec.name], self.base[spec.name]
                self._coming.append(Field(spec, value, default, name))

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
            with Fields(id="form", classes="box"):
                if self.verb != "run":
                    yield from self._recipe_choice()
                yield SafeInput(placeholder=FIND, id="find", compact=True)
                yield from self._next_fields()
            with VerticalScroll(id="about", classes="box"):
                yield SafeText(id="about-text")
        yield SafeText(id="hint")
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
        titled(
            self.query_one("#form"),
            "settings",
            "Enter next  space yes/no, unfolds  ctrl+f find  ctrl+g start",
        )
        titled(self.query_one("#about"), f"{self.verb}: this field, what to watch")
        self.query_one("#find").display = False
        self.top(("start ", ""), (self.verb, "bold"))
        for field in self.fields:
            if field.spec.name in ("recipe", "model", "data"):
                field.control.focus()
                break
        self.run_worker(self._fill(), group="fields")

    def on_resize(self) -> None:
        self._keep_in_view()

    def _next_fields(self, most: int = AT_ONCE) -> list[Widget]:
        made = self._coming[:most]
        self._coming = self._coming[most:]
        self.fields += [one for one in made if isinstance(one, Field)]
        return made

    def _all_fields(self) -> list[Field]:
        """Those that are mounted, and those that are still coming."""
        return [*self.fields, *(one for one in self._coming if isinstance(one, Field))]

    async def _fill(self) -> None:
        """Mounts the other fields once the first ones are there, in two parts: more of them would
        cost more in all.
        """
        while self._coming:
            await self.query_one("#form").mount_all(self._next_fields(3 * AT_ONCE))
            self._filter()
            if self._goal is not None and self._goal not in self._coming:
                self._reach(self._goal)
        self.call_after_refresh(self._filter)
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
        elif event.input.display or not event.input.value:
            self._filter()
        else:  # keys were on their way to the search box as it was put away
            typed = event.input.value
            event.input.value = ""
            if isinstance(self.focused, Input):
                self.focused.insert_text_at_cursor(typed)

    def _filter(self) -> None:
        """Shows the fields that are looked for; else the basics, those of groups that are open, and
        whatever is changed, wrong or has the cursor."""
        box = self.query_one("#find", Input)
        part = ""
        if self._goal is None and box.display:
            part = as_name(box.value)
        changed: dict[str, int] = {}
        for field in self.fields:
            if field.changed:
                changed[field.group] = changed.get(field.group, 0) + 1
            if part:
                field.display = part in field.spec.name
            else:
                field.display = self._is_shown(field)
        for head in self.heads.values():
            head.display = not part
            head.tell(changed.get(head.group, 0))

    def _is_shown(self, field: Field) -> bool:
        unfolded = field.group == FIRST or self.heads[field.group].open
        in_view = field.control.has_focus or field is self._reached
        return unfolded or field.changed or field.wrong or in_view

    def on_group_head_toggled(self, message: GroupHead.Toggled) -> None:
        message.head.open = not message.head.open
        self._filter()
        self.call_after_refresh(message.head.scroll_visible, animate=False)

    def action_unfold(self) -> None:
        """All groups, or none."""
        opened = not all(head.open for head in self.heads.values())
        for head in self.heads.values():
            head.open = opened
        self._filter()

    def on_descendant_focus(self, event: DescendantFocus) -> None:
        self._filter()  # a field of a folded group is shown while it has the cursor
        self._show_hint()

    def help_here(self) -> list[Content]:
        """The whole help of the field with the cursor, and what the stage does: below the form
        there is room for some lines of it."""
        told = [field.told for field in self.fields if field.control.has_focus]
        return [*told, content(guide.about(self.verb, self.cls))]

    def _show_hint(self) -> None:
        """The help of the field with the cursor, what follows from the values, and, beside the
        form, what the stage does."""
        rows = []
        for field in self.fields:
            if field.control.has_focus:
                rows.append(field.told)
        if not rows:
            rows.append(content(guide.about(self.verb, self.cls).partition("\n")[0], "$muted"))
        if self._planned_line:
            rows.append(content(self._planned_line, "$warning"))
        self.query_one("#hint", SafeText).show(lines(rows), layout=False)
        about = content(guide.about(self.verb, self.cls), "$muted")
        self.query_one("#about-text", SafeText).show(lines([*rows, content(""), about]))

    def on_input_submitted(self, event: Input.Submitted) -> None:
        box = event.input
        behind = ""  # what was typed after Enter, and came first: it is for the next field
        if box.value != event.value and box.value.startswith(event.value):
            behind = box.value.removeprefix(event.value)
        if box.id == "find" and not box.display:
            self._enter()  # it was on its way to the search box, for the field that was found
        elif box.id != "find":
            self._enter()
            if behind and isinstance(self.focused, Input) and self.focused is not box:
                box.value = event.value
                self._type_into(self.focused, behind)
        elif self._goal is not None:  # a whole value, for a field that is still coming
            self._end_find()
        else:
            self._find_typed(event.value, behind)

    def on_yes_no_entered(self) -> None:
        self._enter()

    def _enter(self) -> None:
        """Enter in a field: to the field that is wrong, with what is wrong there; else to the next
        one. The last one has none: it says what starts the stage."""
        if self._coming:
            self.app.action_focus_next()
        elif not self.check():
            self._go_to_wrong()
        elif self.focused is [field for field in self.fields if field.display][-1].control:
            self.ui.say("nothing is wrong: ctrl+g starts it")
        else:
            self.app.action_focus_next()

    def _go_to_wrong(self) -> None:
        """Says what is wrong, and puts the cursor where it is."""
        self.ui.say(self.query_one("#verdict", SafeText).plain.strip(), bad=True)
        if self.wrong in {spec.name for spec in self.specs} and not self._coming:
            self._find_field(self.wrong)

    def _find_typed(self, part: str, behind: str) -> None:
        """Goes to the field of which a part of its name was typed, with what was typed behind that."""
        name = best_field([spec.name for spec in self.specs], part)
        if name is None:
            self.ui.say(f"no setting of {self.verb} has {part.strip()!r} in its name", bad=True)
        else:
            self._find_field(name, behind)

    def _find_field(self, name: str, typed: str = "") -> None:
        """Goes to this field. Where it is not mounted yet, the search box takes what is typed for
        it.
        """
        field = next(field for field in self._all_fields() if field.spec.name == name)
        if field.is_mounted:
            self._reach(field, typed)
            return
        self._goal = field
        box = self.query_one("#find", Input)
        box.value = typed
        box.placeholder = f"{name}: what is typed here goes into this field, which is being drawn"
        self._filter()

    def _reach(self, field: Field, typed: str = "") -> None:
        """The cursor stands in this field, behind what was typed for it meanwhile; every field is
        shown again.
        """
        self._reached = field  # a field of a folded group is shown before it can have the cursor
        held = self._end_find()
        if (held or typed) and isinstance(field.control, Input):
            self._type_into(field.control, typed or field.control.value)
        else:
            self.set_focus(field.control)
        self.refresh(layout=True)  # what has just been shown has no place before that
        self._keep_in_view()

    def _keep_in_view(self) -> None:
        """Scrolls to the field with the cursor, once the fields have their places."""
        if self.focused is not None:
            self.call_after_refresh(self.focused.scroll_visible, animate=False)

    def _type_into(self, control: Input, text: str) -> None:
        """The cursor stands in this field, behind the text: what is typed next goes on with it and
        does not replace it."""
        control.select_on_focus = False
        self.set_focus(control)
        control.value = text
        control.cursor_position = len(text)
        # after it has taken the focus
        control.call_later(setattr, control, "select_on_focus", True)

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
        if had_focus and self.fields:
            self.set_focus(self.fields[0].control)
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
        raise NotImplementedError

    # keys

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
