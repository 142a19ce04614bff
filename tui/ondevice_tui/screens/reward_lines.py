"""An answer and its rewards on the rewards screen: in one line, and in full."""

from __future__ import annotations

from collections.abc import Iterable

from textual.content import Content

from ondevice.common.progress import number
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


def head(names: list[str], width: int, *, held_out: bool = False) -> str:
    """The columns' names above the completions."""
    start = f"  #    reward  advantage{'':{BAR - 4}}"
    if held_out:
        start = "  step    reward"
    rewards = "".join(f" {cell(name, 8, right=True)}" for name in _fit(names, width))
    return f"{start}{rewards}  answer"


def answer_line(
    label: str, answer: Answer, names: list[str], width: int, *, held_out: bool = False
) -> Content:
    """`1 ✓  1.200  +1.63 ██████  1.00  0.20  43   the first words`, in `width` cells; a held-out
    answer has no advantage."""
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
    return line(start, (cell(answer.text, max(width - start.cell_length, 0)), "$muted"))


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
