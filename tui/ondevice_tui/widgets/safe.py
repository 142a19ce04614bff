"""The one door between text and the screen.

Model output, file names, messages, help strings: whatever is shown comes through `content` (or
`cell`, for one line of a fixed width), which make it inert and hand it over as plain text, so that
a widget reads no markup in it, attaches no action and sends the terminal nothing but characters.
Only this module makes `Content` or uses `Static`; a test looks at every other one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from rich.cells import cell_len, set_cell_size
from rich.text import Text
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.events import Key, Paste
from textual.geometry import Size
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Checkbox, Input, Static, TextArea

from ondevice.common.sanitize import LIMIT, sanitize

_TITLES = "_ondevice_titles"  # of a widget: what `titled` wrote last
_MARK = 400  # characters: combining marks beyond this in a row say nothing, and cost every repaint


def content(
    text: str, style: str = "", *, newlines: bool = True, limit: int | None = LIMIT
) -> Content:
    """`text` as plain, harmless content in one style (a Textual style such as "bold $accent")."""
    return Content.styled(sanitize(text, newlines=newlines, limit=limit), style)


def line(*parts: str | Content | tuple[str, str]) -> Content:
    """One line out of parts: text, (text, style), or content that was made here."""
    made = [
        part
        if isinstance(part, Content)
        else content(part, newlines=False)
        if isinstance(part, str)
        else content(part[0], part[1], newlines=False)
        for part in parts
    ]
    return Content("").join(made)


def lines(rows: Iterable[Content]) -> Content:
    """Rows under each other."""
    return Content("\n").join(list(rows))


def cell(text: str, width: int, *, right: bool = False, middle: bool = False) -> str:
    """`text` harmless, on one line, in exactly `width` terminal cells; an ellipsis says where it
    was cut: at its end, or in its `middle`, for names that differ at their ends.
    """
    shown = sanitize(
        re.sub(r"\s*\n\s*", " ↵ ", text[: width * 8 + _MARK].strip()), newlines=False, limit=None
    )
    if cell_len(shown) > width:
        if middle and width > 2:
            end = _end(shown, (width - 1) // 2)
            return set_cell_size(shown, width - 1 - cell_len(end)) + "…" + end
        if width:
            return set_cell_size(shown, max(width - 1, 0)) + "…"
        return ""
    room = " " * (width - cell_len(shown))
    if right:
        return room + shown
    return shown + room


def in_rows(text: str, width: int) -> str:
    """Inert text in rows of at most so many cells, broken between words. Of a path that is longer
    than a row its end is left, which tells it from others."""

    def shorter(word: re.Match[str]) -> str:
        if cell_len(word[0]) > width:
            return "…" + _end(word[0], max(width - 1, 1))
        return word[0]

    whole = re.sub(r"[^\s/]*/\S*", shorter, text)
    return "\n".join(row.plain.rstrip() for row in Content(whole).wrap(max(width, 1)))


def _end(text: str, width: int) -> str:
    """The last characters, in at most so many cells."""
    at, used = len(text), 0
    while at and used + cell_len(text[at - 1]) <= width:
        at -= 1
        used += cell_len(text[at])
    return text[at:]


def titled(widget: Widget, title: str, subtitle: str = "") -> None:
    """A box's title and subtitle, as plain text. Equal ones cost nothing: Textual would draw the
    whole box again."""
    if getattr(widget, _TITLES, None) == (title, subtitle):
        return
    setattr(widget, _TITLES, (title, subtitle))
    widget.border_title = content(title, newlines=False, limit=200)  # type: ignore[assignment]
    widget.border_subtitle = content(subtitle, newlines=False, limit=200)  # type: ignore[assignment]


class SafeText(Static):
    """Text of anyone's, made harmless. `show` replaces it; equal text costs nothing."""

    def __init__(
        self,
        text: str | Content = "",
        style: str = "",
        *,
        id: str | None = None,
        classes: str | None = None,
    ) -> None:
        self._shown = _as_content(text, style)
        super().__init__(self._shown, id=id, classes=classes, markup=False)

    def show(self, text: str | Content, style: str = "", *, layout: bool = True) -> None:
        """`layout` False where the size cannot change: a repaint without a layout of the screen."""
        made = _as_content(text, style)
        if made.is_same(self._shown):
            return
        self._shown = made
        self.update(made, layout=layout)

    @property
    def plain(self) -> str:
        return self._shown.plain


class YesNo(Checkbox):
    """A checkbox in characters, `[x] yes` or `[ ] no`: no colour is needed to tell them apart, nor
    sight. Space changes it; Enter is the form's, as in every other field."""

    class Entered(Message):
        """Enter was pressed in it."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "enter", show=False)]

    def action_enter(self) -> None:
        self.post_message(self.Entered())

    def __init__(self, value: bool) -> None:
        super().__init__("", value, compact=True)

    def render(self) -> Content:
        return content("[x] yes" if self.value else "[ ] no")

    def get_content_width(self, container: Size, viewport: Size) -> int:
        return len("[x] yes")


async def _in_turn(field: Input | TextArea, event: Key) -> None:
    """Does at once what a key that is no text does in a field. Textual does it when the key has come
    up to the app: behind the characters that were typed after it, where the machine is busy."""
    if event.is_printable:
        return
    for binding in field._bindings.key_to_bindings.get(event.key, ()):
        if not binding.priority and await field.app.run_action(binding.action, field):
            event.stop()
            event.prevent_default()
            return


class SafeInput(Input):
    """An input whose value, which may be a folder's name or pasted, is drawn harmless. The value
    itself stays as it is; each character is drawn as one, so that the cursor stays where it is.
    Lines that are pasted become one, and that is said."""

    async def _on_key(self, event: Key) -> None:
        await _in_turn(self, event)

    def _on_paste(self, event: Paste) -> None:
        """In place of Textual's, which keeps the first line and drops the others without a word."""
        event.prevent_default()
        event.stop()
        parts = [part.strip() for part in event.text.splitlines()]
        joined = " ".join(part for part in parts if part)
        if len(parts) > 1:
            told = f"{len(parts)} lines were pasted into a field of one line: they were joined by spaces"
            self.app.notify(told, severity="warning", markup=False)
        else:
            joined = event.text
        self.replace(joined, *self.selection)

    def action_copy(self) -> None:
        """ctrl+c: copies what is selected, as the whole value is at first, and says so."""
        super().action_copy()  # where nothing is selected, the screen's ctrl+c has its turn
        self.app.notify("copied. ctrl+q closes the app; what trains goes on", markup=False)

    def action_paste(self) -> None:
        """ctrl+v: what was copied in this app, as if it were pasted."""
        self._on_paste(Paste(self.app.clipboard))

    @property
    def _value(self) -> Text:
        shown = sanitize(self.value, newlines=False, limit=None)
        if shown != self.value:
            drawn = (sanitize(character, newlines=False) for character in self.value)
            shown = "".join(one if len(one) == 1 else "\ufffd" for one in drawn)
        return Text(shown, no_wrap=True, overflow="ignore", end="")


class SafeArea(TextArea):
    """Text of several lines, drawn harmless. Enter sends it (`Sent`); ctrl+j, or shift+enter where
    a terminal tells it, begins a line. What is pasted arrives whole."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("ctrl+j,shift+enter", "line", show=False)]

    @dataclass
    class Sent(Message):
        """Enter was pressed."""

        area: SafeArea
        text: str

        @property
        def control(self) -> SafeArea:
            return self.area

    def __init__(self, text: str = "", *, placeholder: str = "", id: str | None = None) -> None:
        super().__init__(
            text,
            placeholder=content(placeholder),
            id=id,
            compact=True,
            soft_wrap=True,
            show_line_numbers=False,
            tab_behavior="focus",
            highlight_cursor_line=False,
        )
        self.move_cursor(self.document.end)

    def get_line(self, line_index: int) -> Text:
        """A line as it is drawn: each character as one, so that the cursor stays where it is."""
        text = self.document.get_line(line_index)
        shown = sanitize(text, newlines=False, limit=None)
        if shown != text:
            drawn = (sanitize(character, newlines=False) for character in text)
            shown = "".join(one if len(one) == 1 else "\ufffd" for one in drawn)
        return Text(shown, end="", no_wrap=True)

    async def _on_key(self, event: Key) -> None:
        if event.key == "enter":
            event.prevent_default()
            event.stop()
            self.post_message(self.Sent(self, self.text))
        else:
            await _in_turn(self, event)

    def action_line(self) -> None:
        self.insert("\n")

    def action_copy(self) -> None:
        """As of an input."""
        super().action_copy()
        self.app.notify("copied. ctrl+q closes the app; what trains goes on", markup=False)


def _as_content(text: str | Content, style: str) -> Content:
    if isinstance(text, Content):
        return text
    return content(text, style)
