"""Where each step's groups begin in groups.jsonl, for any step of a training of any length, in
bounded memory: every so many steps are kept, and what lies between is read from the file.
"""

from __future__ import annotations

import bisect
import re
from array import array
from pathlib import Path

from ondevice.common import bounded

PLACES = 1 << 15  # steps whose place is kept: 16 bytes each
_BEYOND = 1 << 62  # no file is so long
_BEGINS = re.compile(rb'\{"step": ?(\d{1,15}),')  # a line of groups, as it is written
Place = tuple[int, int]
"""(step, byte offset of its line)."""


class GroupPlaces:
    """Places of steps in the order of training. Whenever `limit` of them are kept, every second one
    is left out, and from then on twice as few are kept."""

    def __init__(self, limit: int = PLACES) -> None:
        self.limit = limit
        self.stride = 1  # steps from one that is kept to the next
        self.count = 0
        self.newest: Place | None = None
        self._steps = array("q")
        self._offsets = array("q")
        self._block: tuple[tuple[int, int], list[Place]] | None = None  # the one read last

    def __len__(self) -> int:
        return self.count

    @property
    def first(self) -> Place | None:
        if self._steps:
            return self._steps[0], self._offsets[0]
        return None

    def add(self, step: int, offset: int) -> None:
        """The place of the next step. One that is told again takes the place of what was told of
        it, and of all later ones."""
        if not 0 <= offset < _BEYOND:
            return
        if self.newest is not None and step <= self.newest[0]:
            kept = bisect.bisect_left(self._steps, step)
            del self._steps[kept:], self._offsets[kept:]
            self.count = kept * self.stride
        if self.count % self.stride == 0:
            if len(self._steps) == self.limit:
                self._steps = self._steps[::2]
                self._offsets = self._offsets[::2]
                self.stride *= 2
            if self.count % self.stride == 0:
                self._steps.append(step)
                self._offsets.append(offset)
        self.count += 1
        self.newest = (step, offset)

    def until(self, path: Path, step: int) -> Place | None:
        """The last step that is not beyond this one; None where there is none."""
        at = bisect.bisect_right(self._steps, step) - 1
        if at < 0:
            return None
        return [place for place in self._read(path, at) if place[0] <= step][-1]

    def after(self, path: Path, step: int) -> Place | None:
        """The first step beyond this one; None where there is none."""
        at = bisect.bisect_right(self._steps, step) - 1
        if at >= 0:
            for place in self._read(path, at):
                if place[0] > step:
                    return place
        if at + 1 < len(self._steps):
            return self._steps[at + 1], self._offsets[at + 1]
        return None

    def _read(self, path: Path, at: int) -> list[Place]:
        """All steps from the kept one of this number up to the next kept one: from memory where
        each is kept, else from the file. The kept one is always among them, and so is the newest.
        """
        kept = (self._steps[at], self._offsets[at])
        last = at + 1 == len(self._steps)
        if self.stride == 1:
            return [kept]
        assert self.newest is not None
        if last:
            end = self.newest[1]
        else:
            end = self._offsets[at + 1]
        if self._block is None or self._block[0] != (kept[1], end):
            self._block = ((kept[1], end), [kept, *_between(path, kept, end, 8 * self.stride)])
        found = self._block[1]
        if last and self.newest != found[-1]:
            return [*found, self.newest]
        return found


def _between(path: Path, kept: Place, end: int, most: int) -> list[Place]:
    """The places of the steps that the file has after a kept one and before the byte `end`, of
    `most` lines at most; what is not as it should be is left out."""
    found: list[Place] = []
    last = kept[0]
    try:
        with bounded.open_plain(path) as file:
            file.seek(kept[1])
            at = kept[1]
            for number, line in enumerate(bounded.lines(file)):
                if number and at < end:
                    step = _step(line or b"")
                    if step is not None and step > last:
                        found.append((step, at))
                        last = step
                at = file.tell()
                if at >= end or number >= most:
                    break
    except OSError:
        return found  # what reads a group says that there is none
    return found


def _step(line: bytes) -> int | None:
    """The step of a line of groups; None for a measurement, and for what is no such line."""
    begins = _BEGINS.match(line[:64])
    return int(begins[1]) if begins else None
