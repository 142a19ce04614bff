"""Votes so far: a list to filter, and a way back to each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import OptionList

from ondevice.preferences.history import FILTERS, Entry, Filter
from ondevice.preferences.votes import Vote, brief, said
from ondevice_tui.run_status import ago
from ondevice_tui.screens.page import Card
from ondevice_tui.widgets.rows import Rows
from ondevice_tui.widgets.safe import SafeText, cell, content, line, lines, titled

QUESTION = 200  # cells of a question in the list
WIDE, SHORT = 80, 8  # of a terminal; characters of a list's name where it is narrower


@dataclass(frozen=True)
class Jump:
    """The entry to go to; `settle`: to decide what raters disagree on; `flag`: not to go there, but
    to take its flags back, or to flag it."""

    entry: Entry
    settle: bool
    flag: bool = False


@dataclass(frozen=True)
class AllOf:
    """To leave out all entries of a list; `own`: how many have a vote of this rater's."""

    items: tuple[int, ...]
    wanted: Filter
    own: int


class History(Card[Jump | AllOf | None]):
    """Comes back with where to go; None where it was left. What others said of a pair that this
    rater has not rated is not shown: it would sway. Where they disagree it is, to be settled."""

    AUTO_FOCUS = "Rows"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,H", "dismiss(None)", "close", key_display="esc"),
        Binding("right,tab", "turn(1)", "filter", priority=True),
        Binding("left,shift+tab", "turn(-1)", "filter back", show=False, priority=True),
        Binding("j", "move(1)", "down", show=False),
        Binding("k", "move(-1)", "up", show=False),
        Binding("space", "page(1)", "page", show=False),
        Binding("f", "flag", "flag", show=False),
        Binding("ctrl+a", "leave_out", "skip all", show=False),
    ]

    def __init__(self, entries: Sequence[Entry], rater: str, wanted: Filter = "mine") -> None:
        super().__init__()
        self._entries, self._rater, self.wanted = entries, rater, wanted

    def compose(self) -> ComposeResult:
        with Vertical(id="card", classes="-conversation") as card:
            titled(card, "votes so far", "← → another list   Enter opens   ^a skips all   esc")
            yield SafeText(id="history-lists")
            yield Rows(id="history")
            yield SafeText(id="history-told")

    def on_mount(self) -> None:
        self._show()

    @property
    def _shown(self) -> list[Entry]:
        return [entry for entry in self._entries if entry.fits(self.wanted, self._rater)]

    def _show(self) -> None:
        parts: list[str | Content | tuple[str, str]] = []
        for name in FILTERS:
            count = sum(entry.fits(name, self._rater) for entry in self._entries)
            told = name if self.app.size.width >= WIDE else name[:SHORT]
            if name == self.wanted:
                parts.append((f"[{told} {count}]", "bold $primary"))
            else:
                parts.append((f" {told} {count} ", "$muted"))
        self.query_one("#history-lists", SafeText).show(line(*parts))
        shown = self._shown
        self.query_one(Rows).show([(str(entry.item), self._row(entry)) for entry in shown])
        at = self.query_one(Rows).highlighted
        if not shown or at is None:
            self._tell(content("Nothing in this list.", "$muted"))
        else:
            self._tell(self._details(shown[at]))

    def _row(self, entry: Entry) -> Content:
        cells = 15 if self.wanted == "disagreements" else 9
        votes = entry.told_to(self._rater, self.wanted)
        told = " / ".join(dict.fromkeys(map(brief, votes))) or "–"
        marks = "".join(
            mark if there else " "
            for mark, there in (
                ("⚑", entry.flagged),
                ("✎", bool(entry.note)),
                ("≠", entry.disagreed and entry.settled is None),
                ("✓", entry.settled is not None),
            )
        )
        return line(
            (cell(told, cells), "bold"),
            (f"{marks} ", "$warning"),
            cell(entry.question, QUESTION).rstrip(),
        )

    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        entry = self._of(event.option.id)
        if entry is not None:
            self._tell(self._details(entry))

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        entry = self._of(event.option.id)
        if entry is not None:
            self.dismiss(Jump(entry, self.wanted == "disagreements"))

    def action_flag(self) -> None:
        shown = self._shown
        at = self.query_one(Rows).highlighted
        if at is not None and at < len(shown):
            self.dismiss(Jump(shown[at], settle=False, flag=True))

    def action_leave_out(self) -> None:
        shown = self._shown
        own = sum(each.vote is not None and each.vote.rater == self._rater for each in shown)
        self.dismiss(AllOf(tuple(entry.item for entry in shown), self.wanted, own))

    def _of(self, item: str | None) -> Entry | None:
        for entry in self._entries:
            if str(entry.item) == item:
                return entry
        return None

    def _details(self, entry: Entry) -> Content:
        votes = entry.told_to(self._rater, self.wanted)
        if entry.vote is not None and entry.vote.rater == self._rater:
            votes = [entry.vote, *entry.others]  # what the others say of what one has rated
        rows = [_said_by(vote) for vote in votes]
        if entry.settled is not None and rows:
            rows.append(_said_by(entry.settled))
        if entry.vote is not None and not rows:
            told = "Others have rated it; you have not, so it is not told how."
            rows.append(content(told, "$muted"))
        if entry.flagged:
            by = ", ".join(entry.flagged_by)
            rows.append(
                line(("flagged by  ", "$muted"), by, ("   f: looked at, no more", "$muted"))
            )
        if entry.note:
            rows.append(line(("note  ", "$muted"), entry.note))
        return lines(rows)

    def _tell(self, told: Content) -> None:
        self.query_one("#history-told", SafeText).show(told)

    def action_turn(self, by: int) -> None:
        self.wanted = FILTERS[(FILTERS.index(self.wanted) + by) % len(FILTERS)]
        self._show()

    def action_move(self, by: int) -> None:
        rows = self.query_one(Rows)
        if by > 0:
            rows.action_cursor_down()
        else:
            rows.action_cursor_up()

    def action_page(self, by: int) -> None:
        self.query_one(Rows).action_page_down()


def _said_by(vote: Vote) -> Content:
    """`Ada  1 is better (wrong)  3 min ago`."""
    why = f" ({vote.reason})" if vote.reason else ""
    return line(
        (f"{cell(vote.rater, 30).rstrip()}  ", "bold"),
        said(vote),
        why,
        (f"  {ago(vote.at)}", "$muted"),
    )
