"""Answers beside or under each other, without names; what was read of each; the words in which two of them differ."""

from __future__ import annotations

import difflib

from textual.app import ComposeResult
from textual.containers import Container, VerticalScroll
from textual.content import Content

from ondevice.ratings import Item
from ondevice_tui.widgets.safe import SafeText, cell, content, line, lines, titled

DIFF_WORDS = 1500  # more are not compared: it would hold up the keys
MOST = 4


class Answer(VerticalScroll):
    """One answer. `read_to_end` once its last line has been on the screen."""

    def __init__(self, place: int) -> None:
        super().__init__(classes="box answer", id=f"answer-{place}")
        self.can_focus = False
        self.place, self.read_to_end, self.name_shown = place, False, ""

    def compose(self) -> ComposeResult:
        yield SafeText(classes="answer-text")

    def show(self, text: Content, name: str) -> None:
        self.name_shown, self.read_to_end = name, False
        titled(self, name)
        self.query_one(SafeText).show(text)
        self.scroll_home(animate=False)
        self.call_after_refresh(self.look)

    def look(self) -> None:
        """Whether the end is in sight."""
        self.read_to_end = self.read_to_end or self.scroll_offset.y >= self.max_scroll_y
        titled(self, self.name_shown, "end read" if self.read_to_end else "▼ more, j scrolls")

    def watch_scroll_y(self, old: float, new: float) -> None:
        super().watch_scroll_y(old, new)
        if self.is_mounted:
            self.look()

    def on_resize(self) -> None:
        self.call_after_refresh(self.look)


class Answers(Container):
    """The two to four answers of an item, in the order in which they are shown."""

    def __init__(self) -> None:
        super().__init__(id="rate-answers")
        self.beside: bool | None = None  # side by side or not, as a person wants it; None where the width decides
        self.diff = False

    def compose(self) -> ComposeResult:
        yield from (Answer(place) for place in range(MOST))

    @property
    def panes(self) -> list[Answer]:
        return [pane for pane in self.query(Answer) if pane.display]

    @property
    def all_read(self) -> bool:
        return all(pane.read_to_end for pane in self.panes)

    def show(self, item: Item | None, *, again: bool = False) -> None:
        """`again`: the same item drawn anew; what was read stays read."""
        seen = [pane.read_to_end for pane in self.query(Answer)]
        for place, pane in enumerate(self.query(Answer)):
            pane.display = item is not None and place < len(item.responses)
        if item is None:
            return
        self.lay_out(len(item.responses))
        for place, slot in enumerate(item.shown):
            pane = self.query_one(f"#answer-{place}", Answer)
            pane.show(self._text(item, place, slot), self._place_name(item, place))
            if again:
                pane.read_to_end = seen[place]

    def lay_out(self, count: int) -> None:
        self.set_class(self.stand_beside(count), "-beside")

    def stand_beside(self, count: int) -> bool:
        if self.beside is not None:
            return self.beside
        return self.app.size.width >= (100 if count == 2 else 50 * count)

    def _place_name(self, item: Item, place: int) -> str:
        if len(item.responses) == 2:
            return ("1 ← left", "2 → right")[place] if self.stand_beside(2) else ("1 ← above", "2 → below")[place]
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
    for tag, i, j, _, _ in difflib.SequenceMatcher(None, words, others, autojunk=False).get_opcodes():
        if i < j:
            parts.append(content(" ".join(words[i:j]), "" if tag == "equal" else "bold underline $warning"))
    return Content(" ").join(parts)


def prompt_of(item: Item) -> Content:
    """The last message as it is; what came before it above, with who said it."""
    rows = []
    for message in item.messages[:-1]:
        rows.append(line((f"{cell(str(message.get('role', '')), 12).strip()}: ", "$muted"),
                         cell(str(message.get("content", "")), 400).strip()))
    last = item.messages[-1] if item.messages else {}
    return lines([*rows, content(str(last.get("content", "")), "bold")])
