"""Groups of completions, as a reasoning stage writes them to groups.jsonl: read defensively,
filtered, judged.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ondevice.common.numbers import number_or_none
from ondevice_tui.event_reader import History, texts_at

RIGHT = ("correct", "code", "accuracy", "exact", "exact_match", "answer", "math")
"""Rewards that say whether an answer is right, by their usual names."""


@dataclass(frozen=True)
class Answer:
    """One completion. `right` is None where nothing tells."""

    text: str
    tokens: int
    truncated: bool
    rewards: Mapping[str, float | None]
    reward: float | None
    advantage: float
    parsed: str | None
    span: tuple[int, int] | None
    right: bool | None
    tests: str = ""
    """How many unit tests passed, and what the first that did not came to; empty: there were none."""

    def mentions(self, text: str) -> bool:
        """Whether the completion has this text, in small letters."""
        return text in self.text.lower()


@dataclass(frozen=True)
class Group:
    """A prompt and its completions at one step."""

    step: int
    prompt: str
    answer: str | None
    answers: tuple[Answer, ...]

    @property
    def right(self) -> int:
        return sum(bool(answer.right) for answer in self.answers)

    @property
    def spread(self) -> float:
        """Standard deviation of the rewards (unbiased): 0, exactly so where all are alike, teaches
        nothing.
        """
        found = [a.reward for a in self.answers if a.reward is not None]
        if len(found) > 1:
            return statistics.stdev(found)
        return 0.0

    @property
    def reward(self) -> float | None:
        """The mean reward; None where no completion has one."""
        found = [a.reward for a in self.answers if a.reward is not None]
        return statistics.fmean(found) if found else None

    @property
    def value(self) -> float | None:
        """The share of right completions; where nothing tells which are, the mean reward."""
        if any(answer.right is not None for answer in self.answers):
            return self.right / len(self.answers)
        return self.reward

    def mentions(self, text: str) -> bool:
        """Whether the prompt or a completion has this text, in small letters."""
        return text in self.prompt.lower() or any(a.mentions(text) for a in self.answers)


def _any(group: Group) -> bool:
    return True


def _all_right(group: Group) -> bool:
    return bool(group.answers) and group.right == len(group.answers)


def _all_wrong(group: Group) -> bool:
    return all(answer.right is False for answer in group.answers)


def _mixed(group: Group) -> bool:
    return 0 < group.right < len(group.answers)


def _truncated(group: Group) -> bool:
    return any(answer.truncated for answer in group.answers)


def _no_spread(group: Group) -> bool:
    return group.spread == 0


FILTERS: Mapping[str, Callable[[Group], bool]] = {
    "all": _any,
    "all right": _all_right,
    "all wrong": _all_wrong,
    "mixed": _mixed,
    "truncated": _truncated,
    "no spread": _no_spread,
}


ORDERS: Mapping[str, Callable[[Answer], float]] = {
    "as written": lambda answer: 0.0,
    "best first": lambda answer: math.inf if answer.reward is None else -answer.reward,
    "longest first": lambda answer: -answer.tokens,
}
"""In which completions may stand: by a number of each."""


def groups_at(path: Path, step: int, offset: int) -> list[Group]:
    """The groups of the record at this place; what is not as it should be is left out."""
    return groups_of(texts_at(path, offset) or {}, step)


def groups_of(record: Mapping[str, Any], step: int) -> list[Group]:
    """The groups of a record; what is not as it should be is left out."""
    found = record.get("groups")
    if isinstance(found, list):
        return [_group(step, raw) for raw in found if isinstance(raw, Mapping)]
    return []


def warnings(history: History) -> list[str]:
    """What the curves say in words. Hold the history's lock."""
    found = []
    spread = _ends(history, "zero_spread")
    length = _ends(history, "completion_length")
    right = _ends(history, "accuracy")
    entropy = _ends(history, "entropy")
    shape = _ends(history, "reward/format")
    correct = _ends(history, "reward/correct") or right
    if spread and spread[1] > 0.5:
        found.append(f"{spread[1]:.0%} of the groups taught nothing (all right or all wrong)")
    if length and right and length[1] > 1.3 * length[0] and right[1] <= right[0] + 0.01:
        found.append("length rises, accuracy does not")
    if entropy and entropy[1] < 0.05:
        found.append("entropy near 0: it writes the same again and again")
    if shape and correct and shape[1] > 0.9 and correct[1] < 0.05:
        found.append("format is perfect, answers are wrong: is the reward gamed?")
    return found


def _ends(history: History, name: str) -> tuple[float, float] | None:
    """(mean of the first fifth, mean of the last fifth) of a curve with enough points to have
    them.
    """
    series = history.steps.get(name)
    if series is None:
        return None
    means = [mean for mean in series.columns(200).mean if not math.isnan(mean)]
    part = len(means) // 5
    if part < 2:
        return None
    return sum(means[:part]) / part, sum(means[-part:]) / part


def _group(step: int, raw: Mapping[str, Any]) -> Group:
    truth = _text(raw.get("answer"))
    answers = []
    found = raw.get("completions")
    if isinstance(found, Sequence):
        for completion in found:
            if isinstance(completion, Mapping):
                answers.append(_answer(completion, truth))
    if not any(_tells(answer) for answer in answers):
        # PPO reads no answers: nothing tells which is right
        answers = [replace(answer, right=None) for answer in answers]
    return Group(step, str(raw.get("prompt", "")), truth, tuple(answers))


def _tells(answer: Answer) -> bool:
    """Whether anything says if this answer is right: what was read of it, or a reward."""
    return answer.parsed is not None or not set(RIGHT).isdisjoint(answer.rewards)


def _answer(raw: Mapping[str, Any], truth: str | None) -> Answer:
    text = str(raw.get("text", ""))
    parsed = raw.get("parsed")
    rewards = {}
    given = raw.get("rewards")
    if isinstance(given, Mapping):
        rewards = {str(name): number_or_none(value) for name, value in given.items()}
    tokens = raw.get("tokens")
    if not isinstance(tokens, int):
        tokens = 0
    return Answer(
        text,
        tokens,
        bool(raw.get("truncated")),
        rewards,
        number_or_none(raw.get("reward")),
        number_or_none(raw.get("advantage")) or 0.0,
        _text(parsed),
        _span(raw.get("span"), len(text)),
        _right(rewards, parsed, truth),
        _tests(raw.get("tests")),
    )


def _tests(raw: Any) -> str:
    if not isinstance(raw, Mapping):
        return ""
    passed, of, why = raw.get("passed"), raw.get("of"), raw.get("why")
    if not isinstance(passed, int) or not isinstance(of, int):
        return ""
    return f"{passed} of {of} tests" + (f": {why}" if isinstance(why, str) and why else "")


def _text(raw: Any) -> str | None:
    if raw is None:
        return None
    return str(raw)


def _right(rewards: Mapping[str, float | None], parsed: Any, truth: str | None) -> bool | None:
    for name in RIGHT:
        value = rewards.get(name)
        if value is not None and name == "code":
            return value >= 1  # a share of the tests is not all of them
        if value is not None:
            return value > 0.5
    if truth is None:
        return None
    return parsed is not None and str(parsed).strip() == truth.strip()


def _span(raw: Any, length: int) -> tuple[int, int] | None:
    if not isinstance(raw, Sequence) or len(raw) != 2:
        return None
    first, last = raw
    if not isinstance(first, int) or not isinstance(last, int):
        return None
    if 0 <= first < last <= length:
        return first, last
    return None
