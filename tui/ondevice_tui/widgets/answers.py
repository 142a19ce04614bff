"""Answers beside or under each other, without names; what was read of each; the words in which two
of them differ.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from textual.app import ComposeResult
from textual.containers import Container, VerticalScroll
from textual.content import Content

from ondevice.common.sanitize import LIMIT
from ondevice.preferences.votes import Item
from ondevice_tui.widgets.markdown import drawn
from ondevice_tui.widgets.safe import SafeText, cell, content, line, lines, titled

DIFF_WORDS = 1500  # more are not compared: it would hold up the keys
MOST = 4
RANKS = ("1st", "2nd", "3rd", "4th")
EDGES = 5  # cells that borders, padding and a scrollbar take of a box
WHOLE = 10 * LIMIT  # characters of a message on the card that shows all of them: it takes a second


class _Body(SafeText):
    """The text of a box, which looks again once it has got its place on the screen."""

    def on_resize(self) -> None:
        if isinstance(self.parent, Readable):
            self.parent.look()


class Readable(VerticalScroll):
    """Text in a box, with the share of it that has been on the screen. `read_to_end` once its last
    line has been."""

    KEY = "j"  # that scrolls it

    def __init__(self, text: Content | str = "", *, id: str, classes: str = "box") -> None:
        super().__init__(id=id, classes=classes)
        self.can_focus = False
        self._first = text
        self.read_to_end, self.name_shown = False, ""
        self._read = ""  # what the lower edge says
        self.key = self.KEY
        self.share = 0.0  # read so far, 0 to 1
        self.laid_out = True  # else its sizes are those of the text before

    def compose(self) -> ComposeResult:
        yield _Body(self._first)

    def show(self, text: Content, name: str, *, read: float = 0.0) -> None:
        """`read`: the share that was read of the same text before."""
        self.share, self.read_to_end, self._read = read, read >= 1, ""
        self.laid_out = False
        self.query_one(SafeText).show(text)
        self.rename(name)
        self.scroll_home(animate=False)
        self.call_after_refresh(self._look_first)

    def _look_first(self) -> None:
        self.laid_out = True
        self.look()

    def rename(self, name: str) -> None:
        self.name_shown = name
        titled(self, name, self._read)

    def look(self) -> None:
        """How much of it has been in sight by now, and what is below."""
        if not self.size.height or not self.laid_out or self._stands_as_before():
            return  # it has no place on the screen yet; its text looks again when it has
        more = round(self.max_scroll_y - self.scroll_offset.y)
        whole = max(self.virtual_size.height, 1)
        seen = 1.0 if more <= 0 else (self.scroll_offset.y + self.size.height) / whole
        self.share = max(self.share, min(seen, 1.0))
        self.read_to_end = self.share >= 1
        told = ["✓ read" if self.read_to_end else f"{self.share:.0%} read"]
        if more > 0:
            told.append(f"▼ {more} more: {self.key}")
        self._read = " · ".join(told)
        titled(self, self.name_shown, self._read)

    def _stands_as_before(self) -> bool:
        """Whether the sizes are still those of the text before: a screen under another one, or one
        with much to do, is laid out only later."""
        text = self.query_one(SafeText)
        width = text.size.width
        return text.size.height != text.get_content_height(self.size, self.app.size, width)

    def watch_scroll_y(self, old: float, new: float) -> None:
        super().watch_scroll_y(old, new)
        if self.is_mounted:
            self.look()

    def on_resize(self) -> None:
        self.call_after_refresh(self.look)


class Question(Readable):
    """What is asked: the last message, whole, whatever came before it. A key shows that."""

    def __init__(self) -> None:
        super().__init__(id="rate-prompt-box")

    def show_message(self, item: Item, text: Content, *, read: float = 0.0) -> None:
        before = len(item.messages) - 1
        earlier = ""
        if before > 0:
            earlier = f" · {before} earlier message{'' if before == 1 else 's'}: c"
        self.show(text, f"question{earlier}", read=read)


class Answer(Readable):
    """One answer."""

    def __init__(self, place: int) -> None:
        super().__init__(classes="box answer", id=f"answer-{place}")
        self.place = place


class Answers(Container):
    """The two to four answers of an item, in the order in which they are shown, to the question
    above them. One of these boxes is scrolled by J and K, the answers together by j and k.
    """

    ONE = "J"

    def __init__(self, question: Question) -> None:
        super().__init__(id="rate-answers")
        self.question = question
        # side by side or not, as a person wants it; None where the width decides
        self.beside: bool | None = None
        self.diff = False
        self.verbatim = False  # Markdown as it is written
        self.ranking: list[int] = []  # places picked so far, the best first
        self.own_keys: Mapping[str, str] = {}  # a person's own, by deed
        self._item: Item | None = None

    def compose(self) -> ComposeResult:
        yield from (Answer(place) for place in range(MOST))

    @property
    def panes(self) -> list[Answer]:
        return [pane for pane in self.query(Answer) if pane.display]

    @property
    def boxes(self) -> list[Readable]:
        return [self.question, *self.panes]

    @property
    def one(self) -> Readable:
        """The box that J and K scroll."""
        for box in self.boxes:
            if box.key == self.ONE:
                return box
        return self.question

    def turn_to(self, box: Readable) -> None:
        """J and K scroll this one from now on."""
        for each in (self.question, *self.query(Answer)):
            each.key = self.ONE if each is box else Readable.KEY
            each.set_class(each is box, "-one")
            each.look()

    def turn_on(self) -> None:
        """J and K scroll the next one."""
        boxes = self.boxes
        self.turn_to(boxes[(boxes.index(self.one) + 1) % len(boxes)])

    @property
    def laid_out(self) -> bool:
        """Whether the boxes have been drawn with what they hold now."""
        return all(box.laid_out for box in self.boxes)

    @property
    def all_read(self) -> bool:
        return not self.unread

    @property
    def unread(self) -> str:
        """Whose end has not been on the screen, and the key that brings it; empty where all were
        read.
        """
        if not self.question.read_to_end:
            return f"the end of the question was not read: {self.question.key} scrolls it"
        if not all(pane.read_to_end for pane in self.panes):
            return "the end of an answer was not read: j or space scrolls, end shows it"
        return ""

    def show(self, item: Item | None, *, again: bool = False) -> None:
        """`again`: the same item drawn anew; what was read stays read."""
        for place, pane in enumerate(self.query(Answer)):
            pane.display = item is not None and place < len(item.responses)
        self._item = item
        if item is None:
            return
        if not again:
            self.ranking = []
            self.turn_to(self.question)
        self.lay_out(len(item.responses))
        asked = self._drawn(said((item.messages or [{}])[-1]).rstrip(), self.app.size.width)
        self.question.show_message(item, asked, read=self.question.share if again else 0.0)
        for place, slot in enumerate(item.shown):
            pane = self.query_one(f"#answer-{place}", Answer)
            pane.show(
                self._text(item, place, slot),
                self._place_name(item, place),
                read=pane.share if again else 0.0,
            )

    def rank(self, ranking: list[int]) -> None:
        """Which answers have been picked: each one's title says its rank."""
        self.ranking = ranking
        if self._item is not None:
            for pane in self.panes:
                pane.rename(self._place_name(self._item, pane.place))

    def lay_out(self, count: int) -> None:
        self.set_class(self.stand_beside(count), "-beside")

    def stand_beside(self, count: int) -> bool:
        if self.beside is not None:
            return self.beside
        # two stand beside each other from 80 columns on: 36 cells of text each
        return self.app.size.width >= (80 if count == 2 else 50 * count)

    def _place_name(self, item: Item, place: int) -> str:
        own = self.own_keys.get(("left", "right", "third", "fourth")[place], "")
        if len(item.responses) == 2:
            name = f"{place + 1} {own or '←→'[place]}"
            return name if self.stand_beside(2) else f"{name} {('above', 'below')[place]}"
        name = f"{place + 1} {own}".rstrip()
        if place in self.ranking:
            return f"{name} · {RANKS[self.ranking.index(place)]}"
        return name

    def _text(self, item: Item, place: int, slot: int) -> Content:
        width = self.app.size.width
        if self.stand_beside(len(item.responses)):
            width //= len(item.responses)
        made = self._drawn(item.responses[slot].text, width)
        if self.diff and len(item.responses) == 2:
            other = self._drawn(item.responses[item.shown[1 - place]].text, width)
            return differences(made, other.plain)
        return made

    def _drawn(self, text: str, width: int) -> Content:
        """A text as a box of this width, borders included, shows it."""
        if self.verbatim:
            return content(text or "(nothing)")
        return drawn(text or "(nothing)", max(width - EDGES, 10))


def differences(text: Content, other: str) -> Content:
    """`text` with the words that `other` has not at this place underlined."""
    words = list(re.finditer(r"\S+", text.plain))
    others = other.split()
    if max(len(words), len(others)) > DIFF_WORDS:
        return text
    matcher = difflib.SequenceMatcher(None, [word[0] for word in words], others, autojunk=False)
    for tag, i, j, _, _ in matcher.get_opcodes():
        if i < j and tag != "equal":
            text = text.stylize("bold underline $warning", words[i].start(), words[j - 1].end())
    return text


def said(message: Mapping[str, Any]) -> str:
    """The text of a message; of one in parts (as some chats have them), its parts as they are
    written.
    """
    text = message.get("content", "")
    if isinstance(text, str):
        return text
    return str(text)


def conversation(item: Item, width: int, verbatim: bool) -> Content:
    """Every message of an item's prompt, whole, with who said it."""
    rows = []
    for message in item.messages:
        text = said(message) or "(nothing)"
        rows += [
            line((cell(str(message.get("role", "")), 30).strip(), "bold $primary")),
            content(text, limit=WHOLE) if verbatim else drawn(text, width, limit=WHOLE),
            content(""),
        ]
    return lines(rows[:-1])
