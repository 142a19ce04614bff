"""Small cards over the rate screen: the whole conversation, the reasons for a vote, scores of the
answers, why a pair is shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content

from ondevice.inference.pair_sampling import Judge
from ondevice.preferences.project import LONGEST_SCALE, MOST_REASONS
from ondevice.preferences.rating_queue import forecast, uncertainty
from ondevice.preferences.rubric import LEAST, MOST, TAKEN_BACK
from ondevice.preferences.votes import Item
from ondevice_tui.live_sampling import Pairing
from ondevice_tui.screens.page import Card
from ondevice_tui.widgets.answers import Readable
from ondevice_tui.widgets.safe import (
    SafeText,
    cell,
    content,
    line,
    lines,
    titled,
)

BAR = 20  # cells of a bit


class Conversation(Card[bool]):
    """Every message of a prompt, to read. Comes back with whether its end was in sight."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,c,enter", "close", "close", key_display="esc"),
        Binding("j,J,down", "scroll(2)", "down", show=False),
        Binding("k,K,up", "scroll(-2)", "up", show=False),
        Binding("space,pagedown", "page(1)", "page down", show=False),
        Binding("pageup", "page(-1)", "page up", show=False),
        Binding("home", "page(-1000)", "top", show=False),
        Binding("end", "page(1000)", "end", show=False),
    ]

    def __init__(self, text: Content) -> None:
        super().__init__()
        self._text = text

    def compose(self) -> ComposeResult:
        with Vertical(id="card", classes="-conversation") as card:
            titled(card, "the whole conversation", "j k, space a page, end   esc closes")
            yield Readable(self._text, id="conversation", classes="")

    @property
    def box(self) -> Readable:
        return self.query_one(Readable)

    def action_scroll(self, by: int) -> None:
        self.box.scroll_relative(y=by, animate=False)

    def action_page(self, by: int) -> None:
        self.box.scroll_relative(y=by * max(self.box.size.height - 1, 1), animate=False)

    def action_close(self) -> None:
        self.dismiss(self.box.read_to_end)


class Reasons(Card[None]):
    """Numbers switch the reasons for the next vote on and off."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,enter,r,q", "dismiss(None)", "close", key_display="esc"),
        *(Binding(str(i + 1), f"switch({i})", show=False) for i in range(MOST_REASONS)),
    ]

    def __init__(self, chosen: list[str], reasons: Sequence[str]) -> None:
        super().__init__()
        self._chosen, self._reasons = chosen, reasons

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="card", classes="-small") as card:
            titled(card, "why? (for the next vote)", f"1 to {len(self._reasons)}   Enter closes")
            yield SafeText(self._told(), id="reasons")

    def _told(self) -> Content:
        return lines(
            [
                line(
                    (f"{i + 1} ", "bold $primary"),
                    "[x] " if reason in self._chosen else "[ ] ",
                    reason,
                )
                for i, reason in enumerate(self._reasons)
            ]
        )

    def action_switch(self, at: int) -> None:
        if at >= len(self._reasons):
            return
        reason = self._reasons[at]
        if reason in self._chosen:
            self._chosen.remove(reason)
        else:
            self._chosen.append(reason)
        self.query_one("#reasons", SafeText).show(self._told())


class ScoreCard(Card[dict[tuple[int, str], int] | None]):
    """Each answer on each scale of the project; the answers stay in view above it. Comes back with
    the scores by slot and scale (0: taken back), None where it was left."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "dismiss(None)", "close", key_display="esc"),
        Binding("enter", "enter", "keep"),
        *(Binding(str(n), f"score({n})", show=False) for n in range(LEAST, MOST + 1)),
        Binding("u,backspace", "undo", "back", show=False),
        Binding("right,tab", "turn(1)", "next", show=False),
        Binding("left,shift+tab", "turn(-1)", "before", show=False),
        Binding("down,j", "go(1)", "down", show=False),
        Binding("up,k", "go(-1)", "up", show=False),
    ]

    def __init__(
        self, shown: Sequence[int], scales: Sequence[str], before: dict[tuple[int, str], int]
    ) -> None:
        super().__init__()
        self._scales, self._scores = scales, dict(before)
        self._cells = [(slot, scale) for scale in scales for slot in shown]
        self._width = len(shown)
        self._at = 0

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="card", classes="-small -low") as card:
            card.can_focus = False
            titled(card, f"scores, {LEAST} to {MOST}", "u back   Enter keeps   esc leaves")
            yield SafeText(self._told(), id="scores")

    def _told(self) -> Content:
        head = "".join(f"{n:^5}" for n in range(1, self._width + 1))
        rows = [line(" " * LONGEST_SCALE, (head, "$muted"))]
        for row, scale in enumerate(self._scales):
            parts: list[str | Content | tuple[str, str]] = [cell(scale, LONGEST_SCALE)]
            for column in range(self._width):
                at = row * self._width + column
                mark = str(self._scores.get(self._cells[at]) or "·")
                parts.append((f" [{mark}] ", "bold $primary") if at == self._at else f"  {mark}  ")
            rows.append(line(*parts))
        return lines(rows)

    def action_score(self, score: int) -> None:
        self._scores[self._cells[self._at]] = score
        self._move(min(self._at + 1, len(self._cells) - 1))

    def action_undo(self) -> None:
        """The cell's own score, or where it has none the one before."""
        if not self._scores.get(self._cells[self._at]) and self._at:
            self._at -= 1
        self._scores[self._cells[self._at]] = TAKEN_BACK
        self._move(self._at)

    def action_turn(self, by: int) -> None:
        self._move((self._at + by) % len(self._cells))

    def action_go(self, by: int) -> None:
        self._move((self._at + by * self._width) % len(self._cells))

    def _move(self, at: int) -> None:
        self._at = at
        self.query_one("#scores", SafeText).show(self._told())

    def action_enter(self) -> None:
        self.dismiss(self._scores)


def why_this(item: Item, pairing: Pairing, waiting: list[int]) -> Content:
    """Why this pair and no other. Which answer the reward model prefers is not told: it would sway
    the rater.
    """
    judge, scores = pairing.judge, pairing.scores.get(item.id) or []
    if judge is None:
        return lines(
            [
                content("It is the next one in the queue."),
                content(""),
                content(
                    "Once this run has a reward model (stage reward), the pairs come first of which that model "
                    "knows least: a vote on them teaches it most.",
                    "$muted",
                ),
            ]
        )
    if item.kind != "normal" or not scores:
        return lines(
            [
                content("It stands here by its place in the queue, or by chance."),
                content(""),
                content(
                    "Now and then a pair is shown that nobody chose, so that raters can be measured. The others "
                    "come by how little the reward model knows of them.",
                    "$muted",
                ),
            ]
        )
    return _by_doubt(
        judge, scores, [pairing.doubts[i] for i in waiting if i in pairing.doubts and i != item.id]
    )


def _by_doubt(judge: Judge, scores: list[float], others: list[float]) -> Content:
    bits = uncertainty(scores)
    more = sum(other > bits for other in others)
    rows = [
        line("The reward model (", (judge.name, "bold"), ") does not know what you will say:"),
        content(""),
    ]
    if len(scores) == 2:
        sure = max(forecast(scores[0], scores[1]), forecast(scores[1], scores[0]))
        rows.append(
            line(f"it gives one of the two {sure:.0%} (which one is not told before you vote)")
        )
    full = round(bits * BAR)
    rows += [
        line(
            "doubt ",
            ("█" * full, "$primary"),
            ("░" * (BAR - full), "$muted"),
            f" {bits:.2f} of 1 bit",
        ),
        line(f"more doubt in {more} of the {len(others)} other pairs that wait"),
        content(""),
        content(
            "A vote on what it is unsure of teaches it most. Pairs come in the order of this doubt (the "
            "entropy of its forecast, the mean over the pairs of answers).",
            "$muted",
        ),
    ]
    return lines(rows)
