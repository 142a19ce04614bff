"""The fields of the form that starts a stage: a setting's name, control and help; and which field a
person means who types a part of a name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from textual.containers import Horizontal, Vertical
from textual.widget import Widget
from textual.widgets import Checkbox, Input, Select

from ondevice_tui.fields import FieldSpec
from ondevice_tui.widgets.safe import SafeInput, SafeText, YesNo, content, line


class Field(Vertical):
    """A name, its control, its help; a mark where the value is not the default."""

    def __init__(self, spec: FieldSpec, value: Any, default: Any) -> None:
        super().__init__(classes="field")
        self.spec = spec
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
        self.about = SafeText(spec.help, "$muted", classes="field-help")
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
        yield self.about

    def add(self, text: str) -> None:
        """Something that follows from the values, behind the help."""
        if text:
            self.about.show(line((f"{self.spec.help} ", "$muted"), (text, "$warning")))
        else:
            self.about.show(content(self.spec.help, "$muted"))

    @property
    def entry(self) -> str | bool:
        return cast("str | bool", self.control.value)

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
