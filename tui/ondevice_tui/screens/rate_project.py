"""Cards on what all raters of a database share (guidelines, reasons, how many rate each pair), and
on what one rater wants to be asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Input, Select

from ondevice.common.errors import UserError
from ondevice.preferences.project import Project
from ondevice.preferences.rating_queue import Wanted
from ondevice.preferences.rubric import LEAST, MOST
from ondevice_tui.moved_keys import moved
from ondevice_tui.screens.page import Card
from ondevice_tui.widgets.answers import Readable
from ondevice_tui.widgets.markdown import drawn
from ondevice_tui.widgets.safe import (
    SafeArea,
    SafeInput,
    SafeText,
    YesNo,
    cell,
    content,
    line,
    lines,
    titled,
)

ALL = ""
CARD_WIDTH = 72


class Guidelines(Card[bool]):
    """What the raters of this project go by. Comes back with whether it is to be changed."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,I,enter", "dismiss(False)", "close", key_display="esc"),
        Binding("f2", "dismiss(True)", "change"),
        *moved(e="F2"),
        Binding("j,down", "scroll(2)", "down", show=False),
        Binding("k,up", "scroll(-2)", "up", show=False),
        Binding("space,pagedown", "scroll(10)", "page down", show=False),
        Binding("pageup", "scroll(-10)", "page up", show=False),
    ]

    def __init__(self, project: Project) -> None:
        super().__init__()
        self._project = project

    def compose(self) -> ComposeResult:
        with Vertical(id="card", classes="-conversation") as card:
            titled(card, "guidelines of this project", "F2 changes them   esc closes")
            yield Readable(told_of(self._project), id="conversation", classes="")

    def action_scroll(self, by: int) -> None:
        self.query_one(Readable).scroll_relative(y=by, animate=False)


def told_of(project: Project) -> Content:
    rows = []
    if project.guidelines:
        rows.append(drawn(project.guidelines, CARD_WIDTH))
    else:
        rows.append(
            content("No guidelines yet: F2 writes some. All raters of this run see them.", "$muted")
        )
    reasons = ", ".join(f"{n} {reason}" for n, reason in enumerate(project.reasons, 1))
    asked = "everybody is asked every pair"
    if project.overlap:
        asked = f"{project.overlap} {'person is' if project.overlap == 1 else 'people are'} asked each pair"
    rows += [
        content(""),
        line(("reasons (r)  ", "$muted"), reasons),
        line(("raters       ", "$muted"), asked),
    ]
    if project.rubric:
        scales = f"{', '.join(project.rubric)}, {LEAST} to {MOST} each"
        rows.insert(-1, line(("scales (*)   ", "$muted"), scales))
    if project.feedback:
        rows.append(line(("gold pairs   ", "$muted"), "whether you hit the known answer is told"))
    if project.reveal:
        rows.append(line(("after a vote ", "$muted"), "who wrote the answers is told"))
    return lines(rows)


class FieldCard(Card[Any]):
    """A card of fields: Enter in one of them, or ctrl+g, takes all."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "close", key_display="esc"),
        Binding("ctrl+g", "take", "take", priority=True),
    ]
    TITLE_, HELP = "", ""

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="card") as card:
            card.can_focus = False
            titled(card, self.TITLE_, self.HELP)
            yield from self.fields()
            yield SafeText(id="more-verdict")

    def fields(self) -> ComposeResult:
        raise NotImplementedError

    def taken(self) -> Any:
        """What the fields say. Raises UserError naming the field at fault."""
        raise NotImplementedError

    def row(self, name: str, control: Widget, about: str) -> ComposeResult:
        control.id = f"field-{name}"
        with Horizontal(classes="field-row"):
            yield SafeText(name, classes="field-name -narrow-name")
            yield control
        yield SafeText(about, "$muted", classes="field-help")

    def text(self, name: str) -> str:
        return self.query_one(f"#field-{name}", Input).value.strip()

    def names(self, name: str) -> tuple[str, ...]:
        """What stands between commas."""
        found = [each.strip() for each in self.text(name).split(",")]
        return tuple(each for each in found if each)

    def number(self, name: str) -> int:
        text = self.text(name) or "0"
        if not text.isdecimal() or len(text) > 9:
            raise UserError(f"{text!r} is not a whole number", where=name)
        return int(text)

    def on_input_submitted(self) -> None:
        self.action_take()

    def on_yes_no_entered(self) -> None:
        self.action_take()

    def on_safe_area_sent(self) -> None:
        self.action_take()

    def action_take(self) -> None:
        try:
            self.dismiss(self.taken())
        except UserError as problem:
            self.query_one("#more-verdict", SafeText).show(f"✗ {problem}", "$error")
            self.query_one(f"#field-{problem.where}").focus()


class ChangeProject(FieldCard):
    """Comes back with a `Project`; None where it was left."""

    TITLE_, HELP = "guidelines of this project", "Enter keeps   ctrl+j a line   esc leaves"

    def __init__(self, project: Project) -> None:
        super().__init__()
        self._project = project

    def fields(self) -> ComposeResult:
        project = self._project
        yield SafeText("guidelines: what makes an answer better, in Markdown", "$muted")
        area = SafeArea(project.guidelines)
        area.id = "field-guidelines"
        yield area
        yield from self.row(
            "reasons",
            SafeInput(", ".join(project.reasons), compact=True),
            "Up to nine, by commas: r and a digit give one to a vote.",
        )
        yield from self.row(
            "rubric",
            SafeInput(", ".join(project.rubric), compact=True),
            "Scales from 1 to 5, by commas: * scores each answer. Empty: none.",
        )
        yield from self.row(
            "overlap",
            SafeInput(str(project.overlap), compact=True),
            "How many people are asked each pair. 0: everybody, every pair.",
        )
        yield from self.row(
            "feedback",
            YesNo(project.feedback),
            "After a pair whose better answer is known: whether it was hit.",
        )
        yield from self.row(
            "reveal", YesNo(project.reveal), "After a vote: who wrote the answers, and who leads."
        )

    def taken(self) -> Project:
        project = Project(
            guidelines=self.query_one("#field-guidelines", SafeArea).text.strip(),
            reasons=self.names("reasons"),
            rubric=self.names("rubric"),
            overlap=self.number("overlap"),
            feedback=self.query_one("#field-feedback", YesNo).value,
            reveal=self.query_one("#field-reveal", YesNo).value,
        )
        project.check()
        return project


@dataclass(frozen=True)
class Asked:
    """What a rater wants to be asked, and how many votes they mean to give now (0: no goal)."""

    wanted: Wanted
    goal: int


class AskOnly(FieldCard):
    """Comes back with `Asked`; None where it was left."""

    TITLE_, HELP = "what is asked", "Enter takes it   esc leaves"

    def __init__(self, asked: Asked, sources: list[str], kinds: list[str]) -> None:
        super().__init__()
        self._asked, self._sources, self._kinds = asked, sources, kinds

    def fields(self) -> ComposeResult:
        wanted = self._asked.wanted
        yield from self.row(
            "checkpoint",
            self._choice(self._sources, wanted.source),
            "Only pairs with answers of it.",
        )
        if self._kinds:
            yield from self.row(
                "kind", self._choice(self._kinds, wanted.kind), "Only prompts of this kind."
            )
        yield from self.row(
            "longest",
            SafeInput(str(wanted.longest or ""), compact=True),
            "Only answers of at most so many characters. Empty: of any length.",
        )
        yield from self.row(
            "goal",
            SafeInput(str(self._asked.goal or ""), compact=True),
            "So many votes in this session: it is said when they are there. Empty: no goal.",
        )

    def _choice(self, names: list[str], chosen: str) -> Select[str]:
        named = [(content(cell(name, 40).rstrip()), name) for name in names]
        return Select(
            [(content("all", "$muted"), ALL), *named],
            value=chosen if chosen in names else ALL,
            allow_blank=False,
            compact=True,
        )

    def taken(self) -> Asked:
        kind = ""
        if self._kinds:
            kind = str(self.query_one("#field-kind", Select).value)
        source = str(self.query_one("#field-checkpoint", Select).value)
        wanted = Wanted(source, kind, "", self.number("longest"))
        return Asked(wanted, self.number("goal"))
