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

RIGHT = ("correct", "accuracy", "exact", "exact_match", "answer", "math")
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


@dataclass(frozen=True)
class Group:
    """A prompt and its completions at one step."""

    step: int
    prompt: str
    answer: str | None
    answers: tuple[Answer, ...]

    @property
    def right(self) -> int:
        return sum(1 for a in self.answers if a.right)

    @property
    def spread(self) -> float:
        """Standard deviation of the rewards (unbiased): 0, exactly so where all are alike, teaches
        nothing.
        """
        found = [a.reward for a in self.answers if a.reward is not None]
        if len(found) > 1:
            return statistics.stdev(found)
        return 0.0


FILTERS: Mapping[str, Callable[[Group], bool]] = {
    "all": lambda group: True,
    "all right": lambda group: bool(group.answers) and group.right == len(group.answers),
    "all wrong": lambda group: all(a.right is False for a in group.answers),
    "mixed": lambda group: 0 < group.right < len(group.answers),
    "truncated": lambda group: any(a.truncated for a in group.answers),
    "no spread": lambda group: group.spread == 0,
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
        self.path, self.history = path, history
        self.filter, self.pinned = "all", ""
        self.place: tuple[int, int] | None = None  # (step, group in it); None follows the newest
        self._read: dict[int, list[Group]] = {}

    def current(self) -> tuple[Group | None, int, int]:
        """(the group, its number in its step, groups of that step); the newest that passes where
        none was chosen.
        """
        found = self._search(None, -1) if self.place is None else self.place
        if found is None:
            return None, 0, 0
        groups = self._groups(found[0])
        if found[1] < len(groups):
            return (groups[found[1]], found[1], len(groups))
        return (None, 0, 0)

    def move(self, by: int) -> bool:
        """To the next group that passes the filter, newer (1) or older (-1); False where none was
        found near.
        """
        here = self.place or self._search(None, -1)
        found = self._search(here, by) if here is not None else None
        if found is None:
            if by > 0:
                self.place = None
            return by > 0
        self.place = found
        return True

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
        with self.history.lock:
            steps = [step for step, _ in self.history.groups]
        if not steps:
            return None
        before = [i for i, step in enumerate(steps) if start is None or step <= start[0]]
        at = before[-1] if before else 0
        inside = start[1] if start is not None and steps[at] == start[0] else None
        for _ in range(SEARCHED):
            if not 0 <= at < len(steps):
                return None
            groups = self._groups(steps[at])
            order = range(len(groups)) if by > 0 else range(len(groups) - 1, -1, -1)
            for i in order:
                beyond = inside is None or (i > inside if by > 0 else i < inside)
                if beyond and self.passes(groups[i]):
                    return steps[at], i
            at, inside = at + by, None
        return None

    def _groups(self, step: int) -> list[Group]:
        if step not in self._read:
            with self.history.lock:
                offset = next((o for s, o in reversed(self.history.groups) if s == step), None)
            if offset is None:
                return []
            if len(self._read) > SEARCHED:
                self._read.clear()
            self._read[step] = groups_at(self.path, step, offset)
        return self._read[step]


class HeldOut:
    """The same few held-out prompts at every measurement: one of them over the steps."""

    def __init__(self, path: Path, history: History) -> None:
        self.path, self.history = path, history
        self.problem = 0
        self._read: dict[tuple[int, int], list[Group]] = {}

    def course(self) -> tuple[list[Group], int, int]:
        """(the chosen prompt with its one completion at each measurement, the newest first; the
        prompt's number; how many prompts there are)."""
        with self.history.lock:
            places = list(self.history.held_out)
        self._read = {
            place: self._read.get(place) or groups_at(self.path, *place) for place in places
        }
        measured = [groups for groups in self._read.values() if groups]
        if not measured:
            return [], 0, 0
        prompts = [group.prompt for group in measured[-1]]
        at = self.problem % len(prompts)
        found = [
            group
            for groups in reversed(measured)
            for group in groups
            if group.prompt == prompts[at]
        ]
        return [group for group in found if group.answers], at, len(prompts)


def warnings(history: History) -> list[str]:
    """What the curves say in words. Hold the history's lock."""
    found = []

    def ends(name: str) -> tuple[float, float] | None:
        """(mean of the first fifth, mean of the last fifth) of a curve with enough points to have
        them.
        """
        series = history.steps.get(name)
        if series is not None:
            means = [m for m in series.columns(200).mean if not math.isnan(m)]
        else:
            means = []
        part = len(means) // 5
        if part >= 2:
            return (sum(means[:part]) / part, sum(means[-part:]) / part)
        return None

    spread, length, right, entropy = (
        ends(n) for n in ("zero_spread", "completion_length", "accuracy", "entropy")
    )
    if spread and spread[1] > 0.5:
        found.append(f"{spread[1]:.0%} of the groups taught nothing (all right or all wrong)")
    if length and right and length[1] > 1.3 * length[0] and right[1] <= right[0] + 0.01:
        found.append("length rises, accuracy does not")
    if entropy and entropy[1] < 0.05:
        found.append("entropy near 0: it writes the same again and again")
    shape, correct = ends("reward/format"), ends("reward/correct") or right
    if shape and correct and shape[1] > 0.9 and correct[1] < 0.05:
        found.append("format is perfect, answers are wrong: is the reward gamed?")
    return found


def _group(step: int, raw: Mapping[str, Any]) -> Group:
    truth = raw.get("answer")
    answer = None if truth is None else str(truth)
    found = raw.get("completions")
    if isinstance(found, Sequence):
        made = [_answer(c, answer) for c in found if isinstance(c, Mapping)]
    else:
        made = []
    if not any(a.parsed is not None or set(RIGHT) & set(a.rewards) for a in made):
        # PPO reads no answers: nothing tells which is right
        made = [replace(a, right=None) for a in made]
    return Group(step, str(raw.get("prompt", "")), answer, tuple(made))


def _answer(raw: Mapping[str, Any], truth: str | None) -> Answer:
    text, parsed = str(raw.get("text", "")), raw.get("parsed")
    given = raw.get("rewards")
    rewards = {str(k): _number(v) for k, v in given.items()} if isinstance(given, Mapping) else {}
    tokens = raw.get("tokens")
    return Answer(
        text,
        tokens if isinstance(tokens, int) else 0,
        bool(raw.get("truncated")),
        rewards,
        _number(raw.get("reward")),
        _number(raw.get("advantage")) or 0.0,
        None if parsed is None else str(parsed),
        _span(raw.get("span"), len(text)),
        _right(rewards, parsed, truth),
    )


def _right(rewards: Mapping[str, float | None], parsed: Any, truth: str | None) -> bool | None:
    for name in RIGHT:
        value = rewards.get(name)
        if value is not None:
            return value > 0.5
    if truth is None:
        return None
    return parsed is not None and str(parsed).strip() == truth.strip()


def _span(raw: Any, length: int) -> tuple[int, int] | None:
    whole = isinstance(raw, Sequence) and len(raw) == 2 and all(isinstance(i, int) for i in raw)
    if whole and 0 <= raw[0] < raw[1] <= length:
        return (raw[0], raw[1])
    return None


def _number(value: Any) -> float | None:
    ok = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if ok:
        return float(value)
    return None
