"""How often each problem of a reasoning stage was passed over training, out of groups.jsonl, in
bounded memory: a strip of cells for each, whose steps become twice as wide whenever all are full.

A thread calls `Problems.read_on`; a screen looks under the lock. The file is read from where the last
look stopped.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from textual.widget import Widget
from textual.worker import get_current_worker

from ondevice.common import bounded
from ondevice.common.json_files import parse_json
from ondevice_tui.event_reader import EVERY_S, NEWS_S
from ondevice_tui.group_places import Place
from ondevice_tui.messages import ProblemsRead
from ondevice_tui.rollout_groups import Group, groups_of
from ondevice_tui.series import BLOCKS

CELLS = 64  # of a strip
PROBLEMS = 4000  # that are kept apart: some hundred bytes each, and the beginning of the prompt
PROMPT = 300  # characters of a prompt that are kept
LINES = 16  # that are read under one hold of the lock
ORDERS = ("newest", "worst now", "most gained", "most lost")


@dataclass
class Problem:
    """One prompt. `first` and `newest` are the places of its groups in the file."""

    key: bytes
    prompt: str
    answer: str | None
    held_out: bool
    first: Place
    newest: Place
    begin: float | None = None  # its value when it was asked first
    now: float | None = None  # and last
    asked: int = 0
    sums: array[float] = field(default_factory=lambda: array("d", [0.0] * CELLS))
    counts: array[int] = field(default_factory=lambda: array("l", [0] * CELLS))

    @property
    def gain(self) -> float:
        if self.begin is None or self.now is None:
            return 0.0
        return self.now - self.begin


class Problems:
    """All problems of a stage, as far as the file has been read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.Lock()
        self.version = 0
        self.unread = 1  # bytes; unknown before the first look
        self._again(None)

    def _again(self, inode: int | None) -> None:
        self.found: dict[bytes, Problem] = {}
        self.left_out = 0  # groups of problems beyond PROBLEMS
        self.width = 1  # steps of a cell
        self.last_step = 0
        self.low, self.high = 0.0, 1.0  # of the values
        self._offset, self._inode = 0, inode
        self.version += 1

    def read_on(self, most: int = LINES) -> bool:
        """Takes in some more lines; True where there were some. A file that was replaced or cut is
        read again from its beginning."""
        try:
            with bounded.open_plain(self.path) as file:
                status = os.fstat(file.fileno())
                with self.lock:
                    if status.st_ino != self._inode or status.st_size < self._offset:
                        self._again(status.st_ino)
                    file.seek(self._offset)
                    read = self._take(file, most)
                    self.unread = status.st_size - self._offset
                return read
        except OSError:  # it is not there: nothing was written yet
            self.unread = 0
            return False

    def _take(self, file: Any, most: int) -> bool:
        at = self._offset
        for number, raw in enumerate(bounded.lines(file)):
            if number == most or (raw is not None and not raw.endswith(b"\n")):
                break
            self._line(raw or b"", at)
            at = file.tell()
        read = at > self._offset
        self._offset = at
        if read:
            self.version += 1
        return read

    def _line(self, raw: bytes, at: int) -> None:
        try:
            record = parse_json(raw)
        except (ValueError, RecursionError):
            return
        if isinstance(record, dict):
            step = record.get("step")
        else:
            step = None
        if not isinstance(step, int) or not 0 <= step < 1 << 53:
            return
        self.last_step = max(self.last_step, step)
        while self.last_step >= CELLS * self.width:
            self._widen()
        for group in groups_of(record, step):
            self._add(group, bool(record.get("held_out")), (step, at))

    def _add(self, group: Group, held_out: bool, place: Place) -> None:
        key = _key(group.prompt, held_out)
        problem = self.found.get(key)
        if problem is None:
            if len(self.found) >= PROBLEMS:
                self.left_out += 1
                return
            if group.answer is None:
                answer = None
            else:
                answer = group.answer[:PROMPT]
            problem = Problem(key, group.prompt[:PROMPT], answer, held_out, place, place)
            self.found[key] = problem
        problem.asked += 1
        problem.newest = place
        value = group.value
        problem.now = value
        if value is None:
            return
        if problem.begin is None:
            problem.begin = value
        self.low = min(self.low, value)
        self.high = max(self.high, value)
        cell = place[0] // self.width
        problem.sums[cell] += value
        problem.counts[cell] += 1

    def _widen(self) -> None:
        """Pairs of cells become one, in every strip."""
        self.width *= 2
        rest = CELLS // 2
        for problem in self.found.values():
            sums = map(float.__add__, problem.sums[::2], problem.sums[1::2])
            counts = map(int.__add__, problem.counts[::2], problem.counts[1::2])
            problem.sums = array("d", [*sums, *[0.0] * rest])
            problem.counts = array("l", [*counts, *[0] * rest])

    def problem_of(self, prompt: str, held_out: bool) -> Problem | None:
        """Hold the lock."""
        return self.found.get(_key(prompt, held_out))

    def listed(self, order: str, search: str = "") -> list[Problem]:
        """The problems whose prompt has this text (in small letters), the held-out ones first,
        which are the same at every measurement. Hold the lock."""
        found = [one for one in self.found.values() if search in one.prompt.lower()]
        if order == "worst now":
            found.sort(key=lambda one: 2.0 if one.now is None else one.now)
        elif order == "most gained":
            found.sort(key=lambda one: -one.gain)
        elif order == "most lost":
            found.sort(key=lambda one: one.gain)
        else:
            found.sort(key=lambda one: -one.newest[0])
        return sorted(found, key=lambda one: not one.held_out)

    def strip(self, problem: Problem, width: int) -> str:
        """The problem's values from the first step to the newest in at most `width` cells of
        blocks, a space where it was not asked. Hold the lock."""
        used = self.last_step // self.width + 1
        width = min(width, used)
        values: list[float | None] = []
        for cell in range(width):
            cells = slice(cell * used // width, (cell + 1) * used // width)
            count = sum(problem.counts[cells])
            values.append(sum(problem.sums[cells]) / count if count else None)
        return blocks(values, self.low, self.high)


def blocks(values: Iterable[float | None], low: float, high: float) -> str:
    """Each value between `low` and `high` as a block of that height, None as a space."""
    drawn = []
    for value in values:
        if value is None:
            drawn.append(" ")
            continue
        if high > low:
            height = (value - low) / (high - low)
        else:
            height = 0.0
        drawn.append(BLOCKS[round(height * (len(BLOCKS) - 1))])
    return "".join(drawn)


def group_of(problem: Problem, groups: Sequence[Group]) -> Group | None:
    """The problem's group among those of a record."""
    for group in groups:
        if _key(group.prompt, problem.held_out) == problem.key:
            return group
    return None


def _key(prompt: str, held_out: bool) -> bytes:
    own = hashlib.blake2b(prompt.encode("utf-8", "replace"), digest_size=16)
    return own.digest() + (b"h" if held_out else b"t")


def read_problems(owner: Widget, problems: Problems) -> None:
    """The body of a thread worker: reads until it is cancelled, and tells `owner` at most once in
    NEWS_S."""
    worker = get_current_worker()
    told, seen = 0.0, -1
    while not worker.is_cancelled:
        read = problems.read_on()
        due = time.monotonic() - told >= NEWS_S or not read
        if seen != problems.version and due:
            told, seen = time.monotonic(), problems.version
            owner.post_message(ProblemsRead(problems))
        time.sleep(0.002 if read else EVERY_S)
