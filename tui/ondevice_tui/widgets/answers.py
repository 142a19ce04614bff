"""Answers beside or under each other, without names; what was read of each; the words in which two
of them differ.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from textual.app import ComposeResult
from textual.containers import Container, VerticalScroll
from textual.content import Content

from ondevice.common.sanitize import LIMIT
from ondevice.preferences.votes import Item
from ondevice_tui.widgets.safe import SafeText, cell, content, line, lines, titled

DIFF_WORDS = 1500  # more are not compared: it would hold up the keys
MOST = 4
WHOLE = 10 * LIMIT  # characters of a message on the card that shows all of them: it takes a second


class Readable(VerticalScroll):
    """Text in a box. `read_to_end` once its last line has been on the screen."""

    KEY = "j"  # that scrolls it

    def __init__(self, text: Content | str = "", *, id: str, classes: str = "box") -> None:
        super().__init__(id=id, classes=classes)
        self.can_focus = False
        self._first = text
        self.read_to_end, self.name_shown = False, ""

    def compose(self) -> ComposeResult:
        yield SafeText(self._first)

    def show(self, text: Content, name: str, *, read: bool = False) -> None:
        self.name_shown, self.read_to_end = name, read
        titled(self, name)
        self.query_one(SafeText).show(text)
        self.scroll_home(animate=False)
        self.call_after_refresh(self.look)

    def look(self) -> None:
        """Whether the end is in sight."""
        if not self.size.height:
            return  # it has no place on the screen yet
        more = self.max_scroll_y - self.scroll_offset.y
        self.read_to_end = self.read_to_end or more <= 0
        told = f"▼ {more} more: {self.KEY}" if more > 0 else "end read"
        titled(
            self, self.name_shown, f"end read, {told}" if self.read_to_end and more > 0 else told
        )

    def watch_scroll_y(self, old: float, new: float) -> None:
        super().watch_scroll_y(old, new)
        if self.is_mounted:
            self.look()

    def on_resize(self) -> None:
        self.call_after_refresh(self.look)


class Question(Readable):
    """What is asked: the last message, whole, whatever came before it. A key shows that."""

    KEY = "J"

    def __init__(self) -> None:
        super().__init__(id="rate-prompt-box")

    def show_item(self, item: Item, *, read: bool = False) -> None:
        before = len(item.messages) - 1
        if before > 0:
            earlier = f" · {before} earlier message{'' if before == 1 else 's'}: c"
        else:
            earlier = ""
        last = item.messages[-1] if item.messages else {}
        self.show(content(said(last) or "(nothing)", "bold"), f"question{earlier}", read=read)


class Answer(Readable):
    """One answer."""

    def __init__(self, place: int) -> None:
        super().__init__(classes="box answer", id=f"answer-{place}")
        self.place = place


class Answers(Container):
    """The two to four answers of an item, in the order in which they are shown, to the question
    above them.
    """

    def __init__(self, question: Question) -> None:
        super().__init__(id="rate-answers")
        self.question = question
        # side by side or not, as a person wants it; None where the width decides
        self.beside: bool | None = None
        self.diff = False

    def compose(self) -> ComposeResult:
        yield from (Answer(place) for place in range(MOST))

    @property
    def panes(self) -> list[Answer]:
        return [pane for pane in self.query(Answer) if pane.display]

    @property
    def all_read(self) -> bool:
        return not self.unread

    @property
    def unread(self) -> str:
        """Whose end has not been on the screen, and the key that brings it; empty where all were
        read.
        """
        if not self.question.read_to_end:
            return f"the end of the question was not read: {self.question.KEY} scrolls it"
        if not all(pane.read_to_end for pane in self.panes):
            return f"the end of an answer was not read: {Answer.KEY} scrolls"
        return ""

    def show(self, item: Item | None, *, again: bool = False) -> None:
        """`again`: the same item drawn anew; what was read stays read."""
        seen = [pane.read_to_end for pane in self.query(Answer)]
        for place, pane in enumerate(self.query(Answer)):
            pane.display = item is not None and place < len(item.responses)
        if item is None:
            return
        self.lay_out(len(item.responses))
        self.question.show_item(item, read=again and self.question.read_to_end)
        for place, slot in enumerate(item.shown):
            pane = self.query_one(f"#answer-{place}", Answer)
            pane.show(
                self._text(item, place, slot),
                self._place_name(item, place),
                read=again and seen[place],
            )

    def lay_out(self, count: int) -> None:
        self.set_class(self.stand_beside(count), "-beside")

    def stand_beside(self, count: int) -> bool:
        if self.beside is not None:
            return self.beside
        return self.app.size.width >= (100 if count == 2 else 50 * count)

    def _place_name(self, item: Item, place: int) -> str:
        if len(item.responses) == 2:
            if self.stand_beside(2):
                return ("1 ← left", "2 → right")[place]
            return ("1 ← above", "2 → below")[place]
        return str(place + 1)

    def _text(self, item: Item, place: int, slot: int) -> Content:
        text = item.responses[slot].text
        if self.diff and len(item.responses) == 2:
            return differences(text, item.responses[item.shown[1 - place]].text)
        return content(text or "(nothing)")


def differences(text: str, other: str) -> Content:
    """`text` with the words that `other` has not at this place underlined."""
    words, others = text.split(" "), other.split(" ")
    if max(len(words), len(others)) > DIFF_WORDS:
        return content(text)
    parts: list[Content] = []
    for tag, i, j, _, _ in difflib.SequenceMatcher(
        None, words, others, autojunk=False
    ).get_opcodes():
        if i < j:
            parts.append(
                content(" ".join(words[i:j]), "" if tag == "equal" else "bold underline $warning")
            )
    return Content(" ").join(parts)


def said(message: Mapping[str, Any]) -> str:
    """The text of a message; of one in parts (as some chats have them), its parts as they are
    written.
    """
    text = message.get("content", "")
    if isinstance(text, str):
        return text
    return str(text)


def conversation(item: Item) -> Content:
    """Every message of an item's prompt, whole, with who said it."""
    rows = []
    for message in item.messages:
        rows += [
            line((cell(str(message.get("role", "")), 30).strip(), "bold $primary")),
            content(said(message) or "(nothing)", limit=WHOLE),
            content(""),
        ]
    return lines(rows[:-1])
