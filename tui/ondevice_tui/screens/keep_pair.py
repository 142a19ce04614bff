"""The card that keeps a chat's answer as a preference pair: it stands beside another answer, and a
key says which is better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll

from ondevice.common.clock import clock
from ondevice.preferences.database import Ratings
from ondevice.preferences.sqlite_store import FILE
from ondevice.preferences.votes import Response
from ondevice_tui.screens.page import Card
from ondevice_tui.widgets.safe import SafeText, content, line, titled

BATCH = "chat"


@dataclass(frozen=True)
class Kept:
    """Two answers to the same messages, the run whose ratings they belong to, and who keeps them."""

    run: Path
    messages: Sequence[dict[str, Any]]
    answers: tuple[Response, Response]
    rater: str

    def store(self, choice: str) -> str:
        """Queues the pair and votes on it: 1, 2, tie or bad. Who wrote the answers was seen, so
        that the pair is marked as not blind: it trains, and is left out of the strengths of
        checkpoints. Raises UserError."""
        with Ratings.open(self.run, create=True) as ratings, ratings.transaction():
            item = ratings.add(BATCH, self.messages, self.answers, meta={"blind": False}, seed=0)
            ranking = [int(choice) - 1] if choice in ("1", "2") else []
            outcome: Any = {"tie": "tie", "bad": "all_bad"}.get(choice, "ranked")
            ratings.vote(
                item, self.rater, f"chat-{int(clock() * 1000):x}", outcome, ranking, seen_end=True
            )
        return f"kept in {self.run.name}/{FILE}"


class Keep(Card[str | None]):
    """Comes back with 1, 2, tie or bad; None where nothing is kept."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "dismiss(None)", "leave", key_display="esc"),
        Binding("1,left", "dismiss('1')", "first"),
        Binding("2,right", "dismiss('2')", "second"),
        Binding("t", "dismiss('tie')", "tie"),
        Binding("x", "dismiss('bad')", "both bad"),
        Binding("a,b,A,B", "letter", show=False),  # as on the screen that rates: no vote by habit
        Binding("j,down", "scroll(1)", "down", show=False),
        Binding("k,up", "scroll(-1)", "up", show=False),
    ]

    def __init__(self, kept: Kept) -> None:
        super().__init__()
        self._kept = kept

    def compose(self) -> ComposeResult:
        with Vertical(id="card", classes="-keep") as card:
            titled(card, "which answer is better?", "esc keeps nothing")
            with Horizontal(id="kept"):
                for number, answer in enumerate(self._kept.answers, 1):
                    with VerticalScroll(classes="box") as box:
                        box.can_focus = False
                        titled(box, f"{number} · {answer.source}")
                        yield SafeText(content(answer.text.strip() or "(nothing)"))
            yield SafeText(
                line(
                    ("1 ", "bold $primary"),
                    "the first   ",
                    ("2 ", "bold $primary"),
                    "the second   ",
                    ("t ", "bold $primary"),
                    "tie   ",
                    ("x ", "bold $primary"),
                    "both bad",
                ),
                id="keep-keys",
            )

    def action_letter(self) -> None:
        told = "a and b do nothing here: 1 or 2 is better, t a tie, x both are bad"
        self.query_one("#keep-keys", SafeText).show(told, "$warning")

    def action_scroll(self, by: int) -> None:
        for box in self.query(VerticalScroll):
            box.scroll_relative(y=by * 2, animate=False)
