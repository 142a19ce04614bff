"""A place among all groups of completions of a stage, and one held-out problem over its
measurements."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ondevice_tui.event_reader import History
from ondevice_tui.group_places import Place
from ondevice_tui.rollout_groups import FILTERS, ORDERS, Answer, Group, groups_at

SEARCHED = 80  # steps looked through for a group that passes, at one key
HOP = 20  # steps that a search in the background looks through before it asks whether to go on

At = tuple[int, int]
"""(step, group in it)."""


class Browser:
    """A place among all groups: (step, group in it), the newest unless it was moved.

    What a key does looks through SEARCHED steps; `find` goes on from there in a thread, through all
    of them."""

    def __init__(self, path: Path, history: History) -> None:
        self.path = path
        self.history = history
        self.filter = "all"
        self.order = "as written"  # of the completions of a group
        self.search = ""  # in small letters: what passes mentions it; empty: all
        self.pinned = ""  # the one prompt whose groups pass; empty: any
        self.place: At | None = None  # None follows the newest
        self.rest: At | None = None  # where the last look had to end, with more steps beyond
        self._read: dict[Place, list[Group]] = {}

    @property
    def plain(self) -> bool:
        """Whether every group passes."""
        return self.filter == "all" and not self.search and not self.pinned

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
        groups = self.of_step(step)
        if number < len(groups):
            return groups[number], number, len(groups)
        return None, 0, 0

    def of_step(self, step: int) -> list[Group]:
        """All groups of a step, whatever passes."""
        place = self._until(step)
        if place is not None and place[0] == step:
            return self._groups(place)
        return []

    def answers(self, group: Group) -> list[tuple[int, Answer]]:
        """(number, completion) of a group in the order that was chosen."""
        return sorted(enumerate(group.answers), key=lambda pair: ORDERS[self.order](pair[1]))

    def move(self, by: int) -> bool:
        """To the next group that passes, newer (1) or older (-1); False where none was found near."""
        here = self.place or self._search(None, -1)
        found = None
        if here is not None:
            found = self._search(here, by)
        if found is not None:
            self.place = found
            return True
        if by > 0 and self.rest is None:  # the newest is followed again
            self.place = None
            return True
        return False

    def move_step(self, by: int) -> bool:
        """To the first group that passes of the next step, newer (1) or older (-1)."""
        here = self.place or self._search(None, -1)
        if here is None:
            return False
        if by > 0:
            found = self._search((here[0] + 1, -1), 1)
        else:
            found = self._search((here[0], 0), -1)
            if found is not None:  # its last group: to the first of the same step
                found = self._search((found[0], -1), 1)
        if found is not None:
            self.place = found
        return found is not None

    def go_to(self, step: int) -> bool:
        """To the first group that passes at this step, or near it; False where none was found."""
        found = self._search((step, -1), 1) or self._search((step, 0), -1)
        if found is not None:
            self.place = found
        return found is not None

    def passes(self, group: Group) -> bool:
        if self.pinned and group.prompt != self.pinned:
            return False
        if self.search and not group.mentions(self.search):
            return False
        return FILTERS[self.filter](group)

    def _search(self, start: At | None, by: int) -> At | None:
        """The nearest group that passes, newer (1) or older (-1) than `start`; from the newest step
        on where that is None. None where SEARCHED steps have none: `rest` is where to go on."""
        found, self.rest = self._look(start, by, SEARCHED, self._groups)
        return found

    def find(self, start: At, by: int, stopped: Callable[[], bool]) -> At | None:
        """As `_search`, to the end of all steps; for a thread."""
        rest: At | None = start

        def read(place: Place) -> list[Group]:
            return groups_at(self.path, *place)

        while rest is not None and not stopped():
            found, rest = self._look(rest, by, HOP, read)
            if found is not None:
                return found
        return None

    def _look(
        self, start: At | None, by: int, most: int, read: Callable[[Place], list[Group]]
    ) -> tuple[At | None, At | None]:
        """(the group that was found, where to go on where `most` steps have none)."""
        place = self._first_place(start)
        inside: int | None = None  # the group of the first step behind which it begins
        if start is not None and place is not None and place[0] == start[0]:
            inside = start[1]
        elif start is not None and place is not None and by > 0 and place[0] < start[0]:
            place = self._next(place[0], 1)
        for _ in range(most):
            if place is None:
                return None, None
            number = self._passing(read(place), inside, by)
            if number is not None:
                return (place[0], number), None
            inside = None
            last = place[0]
            place = self._next(last, by)
        if place is None:
            return None, None
        return None, (place[0], -1 if by > 0 else 1 << 30)

    def _first_place(self, start: At | None) -> Place | None:
        """The place of the last step that is not beyond `start`, else of the first."""
        with self.history.lock:
            groups = self.history.groups
            if start is None:
                return groups.newest
            return groups.until(self.path, start[0]) or groups.first

    def _next(self, step: int, by: int) -> Place | None:
        with self.history.lock:
            groups = self.history.groups
            if by > 0:
                return groups.after(self.path, step)
            return groups.until(self.path, step - 1)

    def _until(self, step: int) -> Place | None:
        with self.history.lock:
            return self.history.groups.until(self.path, step)

    def _passing(self, groups: list[Group], inside: int | None, by: int) -> int | None:
        """The first of these groups that passes, beyond group `inside` where that is one of them."""
        if by > 0:
            begin = 0 if inside is None else inside + 1
            order = range(max(begin, 0), len(groups))
        else:
            if inside is None:
                begin = len(groups) - 1
            else:
                begin = inside - 1
            order = range(min(begin, len(groups) - 1), -1, -1)
        for number in order:
            if self.passes(groups[number]):
                return number
        return None

    def _groups(self, place: Place) -> list[Group]:
        if place not in self._read:
            if len(self._read) > SEARCHED:
                self._read.clear()
            self._read[place] = groups_at(self.path, *place)
        return self._read[place]


class HeldOut:
    """The same few held-out prompts at every measurement: one of them over the steps."""

    def __init__(self, path: Path, history: History) -> None:
        self.path = path
        self.history = history
        self.problem = 0
        self._read: dict[Place, list[Group]] = {}

    def course(self) -> tuple[list[Group], int, int]:
        """(the chosen prompt with its one completion at each measurement, the newest first; the
        prompt's number; how many prompts there are)."""
        with self.history.lock:
            places = list(self.history.held_out)
            first = self.history.first_held_out
        if first is not None and first not in places:
            places.insert(0, first)
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
