"""Right answers that no completion can give: counted before a run, which would learn nothing from
them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from ondevice.common.numbers import is_number
from ondevice.data.builtin.scoring import plain
from ondevice.rewards.answers import final_answer, number, same_answer
from ondevice.rewards.builtin import letter

_WRITTEN = {"hash": "#### {}", "boxed": "\\boxed{{{}}}", "tag": "<answer>{}</answer>"}


class Unreadable(NamedTuple):
    """Of `asked` right answers `bad` can never be given, as far as `reward` reads them; `example`
    is the first.
    """

    reward: str
    bad: int
    asked: int
    example: str

    @property
    def text(self) -> str:
        return f"{self.bad} of {self.asked} right answers"


def attainable(right: str, form: str) -> bool:
    """Whether a completion in this form can be the right answer."""
    spellings = [right]
    value = number(plain(right))
    if value is not None:
        spellings.append(str(value))
        if is_number(value):
            spellings.append(f"{float(value):f}".rstrip("0").rstrip("."))
    for text in spellings:
        completion = _WRITTEN.get(form, "{}").format(text)
        answer = final_answer(completion, form)
        if answer is not None and same_answer(answer, right):
            return True
    return False


def unreadable(
    names: Iterable[str], rows: Iterable[Mapping[str, Any]], form: str
) -> list[Unreadable]:
    """What of the `answer`s of these rows no completion can be, for each of the rewards `names`
    that reads them. A gym's task judges by itself."""
    answers = []
    for row in rows:
        if row.get("answer") is not None and row.get("gym") is None:
            answers.append(str(row["answer"]))
    found = []
    for name, readable in _READERS.items():
        if name not in names:
            continue
        bad = [right for right in answers if not readable(right, form)]
        if bad:
            found.append(Unreadable(name, len(bad), len(answers), bad[0]))
    return found


_READERS: Mapping[str, Callable[[str, str], bool]] = {
    "correct": attainable,
    "exact": lambda right, form: bool(plain(right)),
    "choice": lambda right, form: letter(right) is not None,
}
