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

from ondevice_tui.event_reader import History, texts_at

RIGHT = ("correct", "code", "accuracy", "exact", "exact_match", "answer", "math")
"""Rewards that say whether an answer is right, by their usual names."""
SEARCHED = 80  # steps looked through for a group that passes a filter, at one key


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


def groups_at(path: Path, step: int, offset: int) -> list[Group]:
    """The groups of the record at this place; what is not as it should be is left out."""
    record = texts_at(path, offset) or {}
    found = record.get("groups")
    if isinstance(found, list):
        return [_group(step, raw) for raw in found if isinstance(raw, Mapping)]
    return []


class Browser:
    """A place among all groups of a stage: (which record, which group in it), the newest unless it
    was moved.
    """

    def __init__(self, path: Path, history: History) -> None:
        self.path = path
        self.history = history
        self.filter = "all"
        self.pinned = ""  # the one prompt whose groups pass; empty: any
        self.place: tuple[int, int] | None = None  # (step, group in it); None follows the newest
        self._read: dict[int, list[Group]] = {}

    def current(self) -> tuple[Group | None, int, int]:
        """(the group, its number in its step, groups of that step); the newest that passes where
        none was chosen.
        """
        found = self.place
        if found is None:
            found = self._search(None, -1)
        if found is None:
            return None, 0, 0
        step, number = found
        groups = self._groups(step)
        if number < len(groups):
            return groups[number], number, len(groups)
        return None, 0, 0

    def move(self, by: int) -> bool:
        """To the next group that passes the filter, newer (1) or older (-1); False where none was
        found near.
        """
        here = self.place or self._search(None, -1)
        found = None
        if here is not None:
            found = self._search(here, by)
        if found is not None:
            self.place = found
            return True
        if by > 0:  # the newest is followed again
            self.place = None
            return True
        return False

    def go_to(self, step: int) -> bool:
        """To the first group that passes the filter at this step, or near it; False where none was
        found.
        """
        found = self._search((step, -1), 1) or self._search((step, 0), -1)
        if found is not None:
            self.place = found
        return found is not None

    def passes(self, group: Group) -> bool:
        return FILTERS[self.filter](group) and (not self.pinned or group.prompt == self.pinned)

    def _search(self, start: tuple[int, int] | None, by: int) -> tuple[int, int] | None:
        """The nearest group that passes, newer (1) or older (-1) than `start`; from the newest step
        on where that is None. None where SEARCHED steps have none."""
        with self.history.lock:
            steps = [step for step, _ in self.history.groups]
        if not steps:
            return None
        at = _newest_until(steps, start)
        inside: int | None = None  # the group of the first step behind which it begins
        if start is not None and steps[at] == start[0]:
            inside = start[1]
        for _ in range(SEARCHED):
            if not 0 <= at < len(steps):
                return None
            number = self._passing(self._groups(steps[at]), inside, by)
            if number is not None:
                return steps[at], number
            at += by
            inside = None
        return None

    def _passing(self, groups: list[Group], inside: int | None, by: int) -> int | None:
        """The first of these groups that passes, beyond group `inside` where that is one of them."""
        if by > 0:
            begin = 0 if inside is None else inside + 1
            order = range(max(begin, 0), len(groups))
        else:
            begin = len(groups) - 1 if inside is None else inside - 1
            order = range(min(begin, len(groups) - 1), -1, -1)
        for number in order:
            if self.passes(groups[number]):
                return number
        return None

    def _groups(self, step: int) -> list[Group]:
        if step not in self._read:
            offset = self._offset(step)
            if offset is None:
                return []
            if len(self._read) > SEARCHED:
                self._read.clear()
            self._read[step] = groups_at(self.path, step, offset)
        return self._read[step]

    def _offset(self, step: int) -> int | None:
        """Where the newest record of this step begins in the file."""
        with self.history.lock:
            for known, offset in reversed(self.history.groups):
                if known == step:
                    return offset
        return None


class HeldOut:
    """The same few held-out prompts at every measurement: one of them over the steps."""

    def __init__(self, path: Path, history: History) -> None:
        self.path = path
        self.history = history
        self.problem = 0
        self._read: dict[tuple[int, int], list[Group]] = {}

    def course(self) -> tuple[list[Group], int, int]:
        """(the chosen prompt with its one completion at each measurement, the newest first; the
        prompt's number; how many prompts there are)."""
        with self.history.lock:
            places = list(self.history.held_out)
        read = {}
        for place in places:
            read[place] = self._read.get(place) or groups_at(self.path, *place)
        self._read = read
        measured = [groups for groups in self._read.values() if groups]
        if not measured:
            return [], 0, 0
        prompts = [group.prompt for group in measured[-1]]
        at = self.problem % len(prompts)
        found = []
        for groups in reversed(measured):
            for group in groups:
                if group.prompt == prompts[at] and group.answers:
                    found.append(group)
        return found, at, len(prompts)


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


def _newest_until(steps: list[int], start: tuple[int, int] | None) -> int:
    """The place of the last step that is not beyond `start`, else the first."""
    if start is None:
        return len(steps) - 1
    for place in range(len(steps) - 1, -1, -1):
        if steps[place] <= start[0]:
            return place
    return 0


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
        rewards = {str(name): _number(value) for name, value in given.items()}
    tokens = raw.get("tokens")
    if not isinstance(tokens, int):
        tokens = 0
    return Answer(
        text,
        tokens,
        bool(raw.get("truncated")),
        rewards,
        _number(raw.get("reward")),
        _number(raw.get("advantage")) or 0.0,
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


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if math.isfinite(value):
        return float(value)
    return None
