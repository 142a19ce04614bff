"""An answer and its rewards on the rewards screen: in one line, and in full."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from textual.content import Content

from ondevice.common.progress import number
from ondevice_tui.problems import Problem
from ondevice_tui.rollout_groups import Answer
from ondevice_tui.widgets.safe import cell, content, line

BAR = 6  # cells of an advantage
_MARKS = {
    True: ("✓", "bold $success"),
    False: ("✗", "bold $error"),
    None: ("·", "$muted"),
}
"""Sign and style of an answer that is right, wrong, or neither."""
_MARKED = {True: "bold reverse $success", False: "bold reverse $error", None: "bold reverse"}
"""The style of what was read as the answer."""


class Shown(NamedTuple):
    """An answer in the list: its name beside it, the title of its own card, its prompt, and whether
    it is a measurement's."""

    name: str
    title: str
    prompt: str
    answer: Answer
    held_out: bool


def head(names: list[str], width: int, *, held_out: bool = False) -> str:
    """The columns' names above the completions."""
    start = f"  #    reward  advantage{'':{BAR - 4}}"
    if held_out:
        start = "  step    reward"
    rewards = "".join(f" {cell(name, 8, right=True)}" for name in _fit(names, width))
    return f"{start}{rewards}  answer"


def answer_line(
    label: str,
    answer: Answer,
    names: list[str],
    width: int,
    *,
    held_out: bool = False,
    search: str = "",
) -> Content:
    """`1 ✓  1.200  +1.63 ██████  1.00  0.20  43   the first words`, in `width` cells; a held-out
    answer has no advantage. The words are those around what was searched for, where it has that."""
    mark, style = _MARKS[answer.right]
    label_width = 6 if held_out else 3
    cut = "…" if answer.truncated else " "
    parts: list[str | tuple[str, str] | Content] = [
        f"{label:>{label_width}} ",
        (mark, style),
        cut,
        cell(number(answer.reward), 7, right=True),
    ]
    if not held_out:
        parts += ["  ", f"{answer.advantage:+6.2f} ", bar(answer.advantage)]
    for name in _fit(names, width):
        parts.append(f" {cell(number(answer.rewards.get(name)), 8, right=True)}")
    parsed = "–"
    if answer.parsed is not None:
        parsed = answer.parsed
    parts += ["  ", (cell(parsed, 8), "bold"), " "]
    start = line(*parts)
    room = max(width - start.cell_length, 0)
    at = answer.text.lower().find(search) if search else -1
    if at < 0:
        return line(start, (cell(answer.text, room), "$muted"))
    around = answer.text[max(at - room // 3, 0) :]
    return line(start, found_in(cell(around, room), search, "$muted"))


STRIP = 32  # cells of a problem's strip, where there is room


def strip_width(width: int) -> int:
    return min(STRIP, max(width // 3, 8))


def problem_head(width: int) -> str:
    return f"    {cell('first → newest step', strip_width(width))}  first    now   asked  problem"


def problem_line(problem: Problem, strip: str, width: int, *, rate: bool) -> Content:
    """`h ▁▁▃▅█  25% → 75%  12  What is 3+4?`; a held-out problem has an h in front. `rate`: the
    values are shares of right completions."""
    mark = "h" if problem.held_out else " "
    style = "$muted"
    if problem.gain > 0:
        style = "$success"
    elif problem.gain < 0:
        style = "$error"
    start = line(
        (f"  {mark} ", "$muted"),
        (cell(strip, strip_width(width)), "$primary"),
        f" {_value(problem.begin, rate)} → ",
        (_value(problem.now, rate), f"bold {style}"),
        f" {problem.asked:>5}×  ",
    )
    return line(start, cell(problem.prompt, max(width - start.cell_length, 0)))


def _value(value: float | None, rate: bool) -> str:
    if value is None:
        return f"{'–':>5}"
    return f"{value:>5.0%}" if rate else cell(number(value), 5, right=True)


def found_in(text: str, search: str, style: str = "") -> Content:
    """`text` with what was searched for (in small letters) reversed."""
    at = text.lower().find(search) if search else -1
    if at < 0:
        return content(text, style, newlines=False)
    end = at + len(search)
    return line((text[:at], style), (text[at:end], "reverse"), (text[end:], style))


def bar(advantage: float) -> Content:
    """An advantage as a bar of BAR cells; the glyph tells the sign, not the colour alone. Two
    deviations fill it.
    """
    full = min(round(abs(advantage) / 2 * BAR), BAR)
    glyph, style = "▒", "$warning"
    if advantage > 0:
        glyph, style = "█", "$success"
    return line((glyph * full, style), " " * (BAR - full))


def marked(answer: Answer) -> Content:
    """A completion with the answer that was read from it made visible."""
    if answer.span is None:
        return content(answer.text)
    start, end = answer.span
    return Content("").join(
        [
            content(answer.text[:start]),
            content(answer.text[start:end], _MARKED[answer.right]),
            content(answer.text[end:]),
        ]
    )


def reward_names(answers: Iterable[Answer]) -> list[str]:
    """The names of all rewards of some answers, each once."""
    names: dict[str, None] = {}
    for answer in answers:
        names |= dict.fromkeys(answer.rewards)
    return list(names)


def _fit(names: list[str], width: int) -> list[str]:
    """As many rewards as leave room for some of the answer."""
    return names[: max((width - 46) // 9, 0)]
