"""Cards over the rewards screen: completions one by one in full width, and the same problem first
against now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical
from textual.content import Content

from ondevice.common.progress import number
from ondevice_tui.moved_keys import moved
from ondevice_tui.rollout_groups import Answer, Group
from ondevice_tui.screens.page import Card
from ondevice_tui.screens.reward_lines import Shown, marked
from ondevice_tui.widgets.answers import Readable, differences
from ondevice_tui.widgets.safe import SafeText, cell, content, line, lines, titled


class FullCompletion(Card[int]):
    """One completion in the whole width of the terminal; ↑ ↓ go on to the others. Comes back with
    the number of the one that was shown last."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,enter", "close", "close", key_display="esc"),
        Binding("down,j", "go(1)", "next", key_display="↑ ↓"),
        Binding("up,k", "go(-1)", "before", show=False),
        Binding("space,pagedown", "page(1)", "page", key_display="space"),
        Binding("pageup", "page(-1)", "page up", show=False),
        Binding("home", "page(-1000)", "top", show=False),
        Binding("end", "page(1000)", "end", show=False),
        Binding("ctrl+y", "copy", "copy"),
        *moved(y="ctrl+y"),
    ]

    def __init__(self, shown: Sequence[Shown], at: int) -> None:
        super().__init__()
        self._shown, self._at = shown, at

    def compose(self) -> ComposeResult:
        with Vertical(id="card", classes="-full"):
            yield Readable(id="full", classes="")

    def on_mount(self) -> None:
        self._show()

    def _show(self) -> None:
        shown = self._shown[self._at]
        titled(
            self.query_one("#card"),
            f"{shown.title} · {shown.answer.tokens} tokens · {self._at + 1} of {len(self._shown)}",
            "↑ ↓ the others  space page  ^y copies  esc",
        )
        box = self.query_one(Readable)
        box.show(full_text(shown), "")

    def action_go(self, by: int) -> None:
        self._at = min(max(self._at + by, 0), len(self._shown) - 1)
        self._show()

    def action_page(self, by: int) -> None:
        box = self.query_one(Readable)
        box.scroll_relative(y=by * max(box.size.height - 1, 1), animate=False)

    def action_copy(self) -> None:
        self.app.copy_to_clipboard(self._shown[self._at].answer.text)
        self.ui.say("copied: the completion, as it was written")

    def action_close(self) -> None:
        self.dismiss(self._at)


def full_text(shown: Shown) -> Content:
    """The prompt, what the completion came to, and the completion."""
    answer = shown.answer
    told: list[str | tuple[str, str]] = [("reward  ", "$muted"), number(answer.reward)]
    if not shown.held_out:
        told += [("   advantage  ", "$muted"), f"{answer.advantage:+.2f}"]
    told += [("   parsed  ", "$muted"), cell(answer.parsed or "–", 60).rstrip()]
    each: list[str | tuple[str, str]] = []
    for name, value in answer.rewards.items():
        each += [(f"{cell(name, 20).rstrip()} ", "$muted"), f"{number(value)}   "]
    rows = [line(("prompt  ", "$muted"), cell(shown.prompt, 4000).rstrip()), line(*told)]
    if len(answer.rewards) > 1:
        rows.append(line(*each))
    if answer.tests:
        rows.append(line(("tests  ", "$muted"), cell(answer.tests, 200).rstrip()))
    return lines([*rows, content(""), marked(answer)])


CHOICES = ("typical", "best", "worst")


class FirstAndNow(Card[None]):
    """The same problem when it was asked first and last: what became of it, and one completion of
    each, with the words that the other has not underlined."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,d,enter", "dismiss(None)", "close", key_display="esc"),
        Binding("tab", "choice", "typical, best, worst"),
        Binding("j,down", "scroll(2)", "down", show=False),
        Binding("k,up", "scroll(-2)", "up", show=False),
        Binding("space,pagedown", "page(1)", "page down", show=False),
        Binding("pageup", "page(-1)", "page up", show=False),
    ]

    def __init__(self, first: Group, now: Group) -> None:
        super().__init__()
        self._groups = (first, now)
        self._choice = 0

    def compose(self) -> ComposeResult:
        with Vertical(id="card", classes="-full"):
            yield SafeText(id="compared-told")
            with Container(id="compared"):
                yield Readable(id="then", classes="box answer")
                yield Readable(id="now", classes="box answer")

    def on_mount(self) -> None:
        self._show()

    def on_resize(self) -> None:
        self.query_one("#compared").set_class(self.app.size.width >= 80, "-beside")

    def _show(self) -> None:
        first, now = self._groups
        one_each = len(first.answers) == len(now.answers) == 1
        keys = "j k scroll  esc closes" if one_each else "b typical best worst  j k  esc closes"
        titled(self.query_one("#card"), f"same problem · step {first.step:,} → {now.step:,}", keys)
        self.query_one("#compared-told", SafeText).show(compared(first, now))
        name = CHOICES[self._choice]
        chosen = [chosen_answer(group, name) for group in self._groups]
        for group, answer, other, box in zip(
            self._groups, chosen, reversed(chosen), self.query(Readable), strict=True
        ):
            mark = {True: "✓ ", False: "✗ ", None: ""}[answer.right]
            which = "" if one_each else f" · the {name} one"
            title = f"step {group.step:,}{which} · {mark}{number(answer.reward)}"
            box.show(differences(marked(answer), other.text), title)

    def action_choice(self) -> None:
        self._choice = (self._choice + 1) % len(CHOICES)
        self._show()

    def action_scroll(self, by: int) -> None:
        for box in self.query(Readable):
            box.scroll_relative(y=by, animate=False)

    def action_page(self, by: int) -> None:
        for box in self.query(Readable):
            box.scroll_relative(y=by * max(box.size.height - 1, 1), animate=False)


def chosen_answer(group: Group, choice: str) -> Answer:
    """The completion with the highest or the lowest reward, or the one nearest to the mean."""
    scored = [answer for answer in group.answers if answer.reward is not None]
    if not scored:
        return group.answers[0]
    if choice == "best":
        return max(scored, key=lambda answer: answer.reward or 0.0)
    if choice == "worst":
        return min(scored, key=lambda answer: answer.reward or 0.0)
    mean = group.reward or 0.0
    return min(scored, key=lambda answer: abs((answer.reward or 0.0) - mean))


def compared(first: Group, now: Group) -> Content:
    """The prompt, and the figures of both sides in one line."""
    figures = []
    if any(answer.right is not None for answer in (*first.answers, *now.answers)):
        figures.append(f"right {_right(first)} → {_right(now)}")
    figures.append(f"reward {number(first.reward)} → {number(now.reward)}")
    figures.append(f"tokens {_length(first)} → {_length(now)}")
    prompt: list[str | tuple[str, str]] = [(cell(now.prompt, 300).rstrip(), "bold")]
    if now.answer:
        prompt += [("   truth ", "$muted"), (cell(now.answer, 24).rstrip(), "bold $success")]
    return lines([line(*prompt), content("   ".join(figures))])


def _right(group: Group) -> str:
    return f"{group.right}/{len(group.answers)}"


def _length(group: Group) -> str:
    return f"{sum(answer.tokens for answer in group.answers) / max(len(group.answers), 1):.0f}"
