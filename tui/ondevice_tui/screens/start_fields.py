"""The fields of the form that starts a stage: a setting's name, control and help; and which field a
person means who types a part of a name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Checkbox, Input, Select

from ondevice_tui.fields import FieldSpec
from ondevice_tui.widgets.safe import SafeInput, SafeText, YesNo, content, line


class GroupHead(SafeText, can_focus=True):
    """The heading of a group of fields: Enter or space folds it, or shows its fields."""

    @dataclass
    class Toggled(Message):
        """Enter, space or a click."""

        head: GroupHead

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter,space", "fold", show=False)]

    def __init__(self, group: str, count: int) -> None:
        super().__init__(classes="group-head")
        self.group = group
        self.count = count
        self.open = False

    def tell(self, changed: int) -> None:
        """`▸ optimizer  12 settings, 2 changed`."""
        mark = "▾" if self.open else "▸"
        told = f"{self.count} settings" if self.count > 1 else "1 setting"
        if changed:
            told += f", {changed} changed"
        self.show(line((f"{mark} {self.group}", "bold $primary"), (f"  {told}", "$muted")))

    def action_fold(self) -> None:
        self.post_message(self.Toggled(self))

    def on_click(self) -> None:
        self.action_fold()


class Fields(VerticalScroll):
    """All fields. Where what stands below takes a row of them, the one with the cursor stays in view."""

    def on_resize(self) -> None:
        focused = self.screen.focused
        if focused is not None and self in focused.ancestors:
            self.call_after_refresh(focused.scroll_visible, animate=False)


class Field(Vertical):
    """A name and its control; a mark where the value is not the default. Its help is `told` where
    the form shows it."""

    def __init__(self, spec: FieldSpec, value: Any, default: Any, group: str = "") -> None:
        super().__init__(classes="form-field")
        self.spec = spec
        self.group = group
        self.wrong = False
        self._marked: tuple[bool, bool] | None = None  # (wrong, changed), as the label shows it
        self.follows = ""  # what follows from the values
        self.default = default
        self.control: Input | Checkbox | Select[str]
        if spec.flag:
            self.control = YesNo(bool(value))
        elif spec.choices:
            self.control = Select(
                [(content(choice), choice) for choice in spec.choices],
                value=spec.text(value),
                allow_blank=False,
                compact=True,
            )
        else:
            self.control = SafeInput(spec.text(value), compact=True)
        self.label = SafeText(spec.name, classes="field-name")
        # what it holds before anybody changes it; a choice knows its own only once it is mounted
        self.begun: str | bool = spec.text(value)
        if spec.flag:
            self.begun = bool(value)
        elif spec.choices:
            self.begun = spec.text(value)

    def compose(self) -> Iterable[Widget]:
        with Horizontal(classes="field-row"):
            yield self.label
            yield self.control

    @property
    def told(self) -> Content:
        """The help, and what follows from the values."""
        parts: list[str | tuple[str, str]] = [(f"{self.spec.name}  ", "bold"), self.spec.help]
        if self.follows:
            parts.append((f" {self.follows}", "$warning"))
        return line(*parts)

    @property
    def entry(self) -> str | bool:
        value = self.control.value
        if isinstance(value, str | bool):
            return value
        return self.begun  # a choice that is not on the screen yet holds no value at all

    def put(self, value: Any) -> None:
        if isinstance(self.control, Checkbox):
            self.control.value = bool(value)
        elif isinstance(self.control, Select):
            self.control.value = self.spec.text(value)
        else:
            self.control.value = self.spec.text(value)

    @property
    def changed(self) -> bool:
        """Whether the value is not the default."""
        if self.spec.flag:
            return bool(self.entry != self.default)
        return self.entry != self.spec.text(self.default)

    def mark(self, wrong: bool) -> None:
        """Shows whether it is wrong, or changed."""
        self.wrong = wrong
        if (wrong, self.changed) == self._marked:
            return
        self._marked = (wrong, self.changed)
        mark: str | tuple[str, str] = "  "
        style = ""
        if wrong:
            mark = ("✗ ", "bold $error")
            style = "bold"
        elif self.changed:
            mark = ("• ", "bold $primary")
            style = "bold"
        self.label.show(line(mark, (self.spec.name, style)))


def best_field(names: Iterable[str], part: str) -> str | None:
    """The name that somebody means who types this: the whole name, else the first that begins with
    it, else the first that has it in it; None where there is none, or nothing was typed."""
    wanted = as_name(part)
    if not wanted:
        return None
    inside: str | None = None
    beginning: str | None = None
    for name in names:
        if name == wanted:
            return name
        if beginning is None and name.startswith(wanted):
            beginning = name
        if inside is None and wanted in name:
            inside = name
    return beginning or inside


def as_name(part: str) -> str:
    """What was typed, in the form of a field's name."""
    return part.strip().lower().replace("-", "_")
