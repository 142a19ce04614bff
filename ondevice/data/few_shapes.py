"""Few shapes for the batches of a stage whose rows are known when it begins.

Each shape of a batch is another trace for a compiler: half a minute on a GPU. The sizes of
`data/padding_free.py` are of any data, so that a stage meets many of them, and in each there is room
for more than its batches need. Here the shapes are those of the stage itself: its batches are sorted
by their tokens and parted so that each part has one shape, that of its largest. Chosen are as few
parts as leave no more padding than the general sizes do, and take hardly longer; where no such few are
found, where the general ones are as few, and for a batch that fits none of them, the general sizes
stay.

The shapes follow from the data and from how many rows are computed at once, so that a resume finds
the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ondevice.data.completion_batches import Row, general_width
from ondevice.data.padding_free import SCORES, Layout, attention_scores, layout

MOST = 6  # shapes of one kind of batch
HARDLY = 1.05  # what takes so many times as long takes hardly longer
RESERVE = 1.06
LOOKED_AT = 2048  # batches from which they are chosen
CUTS = 48  # places between sorted batches where a part may end
UNIT, FINE = 16, 8  # tokens and targets, and widths, are multiples of these
EVEN = 2  # and widths of rows by themselves of this


@dataclass(frozen=True)
class Shape:
    """What a batch has room for: tokens, rows' and prompts' widths, targets, rows of prompts (0:
    rows hold their prompts)."""

    tokens: int
    width: int
    prompt_width: int
    targets: int
    prompt_rows: int

    def holds(self, other: Shape) -> bool:
        mine, its = self._numbers(), other._numbers()
        same = bool(self.prompt_rows) == bool(other.prompt_rows)
        return same and all(a >= b for a, b in zip(mine, its, strict=True))

    def _numbers(self) -> tuple[int, ...]:
        return self.tokens, self.width, self.prompt_width, self.targets, self.prompt_rows

    def cost(self, size: int) -> float:
        """As `Layout.cost`, of a batch of `size` rows."""
        scores = attention_scores(size, self.width, self.prompt_rows, self.prompt_width)
        return self.tokens + scores / SCORES


def needed(rows: Sequence[Row], found: Layout) -> Shape:
    """The least shape that the rows fit in: one token at least is nothing, and one place empty."""
    width = max(len(r.completion) if found.prompts else r.length for r in rows) - 1
    if found.prompts:
        prompt_width = max(map(len, found.prompts.ids))
    else:
        prompt_width = 0
    if found.used >= found.rows * _up(width, FINE) + found.prompt_rows * _up(prompt_width, FINE):
        width += FINE
    return Shape(
        _up(found.used + 1, UNIT),
        _up(max(width, 1), FINE),
        _up(prompt_width, FINE),
        _up(sum(len(r.completion) for r in rows), UNIT),
        found.prompt_rows if found.prompts else 0,
    )


class FewShapes:
    """The shapes of a stage's batches, chosen anew for each number of rows that is computed at once:
    `groups` gives those of its batches."""

    def __init__(self, groups: Callable[[int], Iterable[Sequence[Row]]]) -> None:
        self._groups = groups
        self._chosen: dict[tuple[int, int], list[Shape]] = {}

    def layout(
        self,
        rows: Sequence[Row],
        size: int,
        prompt_rows: int,
        usual: Callable[[Sequence[Row]], tuple[float, float]],
    ) -> Layout | None:
        """How a batch of `size` of the stage's rows is laid out; None where the general way is as
        good. `usual`: the places, and the cost in places, of the general way."""
        key = (size, prompt_rows)
        if key not in self._chosen:
            groups = islice(self._groups(size), LOOKED_AT)
            self._chosen[key] = _chosen(groups, size, prompt_rows, usual)
        found = layout(rows, size, prompt_rows)
        least = needed(rows, found)
        fitting = [shape for shape in self._chosen[key] if shape.holds(least)]
        if not fitting:
            return None
        shape = min(fitting, key=lambda one: one.cost(size))
        return replace(
            found,
            tokens=shape.tokens,
            width=shape.width,
            prompt_rows=shape.prompt_rows,
            prompt_width=shape.prompt_width,
            targets=shape.targets,
        )


class Widths:
    """Few widths of rows whose lengths are known when a stage begins: as few as together take no more
    places than the general ones, which a longer row has. `instead`: how many rows of the general
    widths each row stands for; `spare`: places that each may take beyond that."""

    def __init__(self, lengths: Sequence[int], instead: int = 1, spare: float = 0.0) -> None:
        rows = sorted(map(int, lengths))
        usual = [general_width(length) for length in rows]
        most = instead * sum(usual) + spare * len(rows)
        self._widths = _fewest_widths(rows, len(set(usual)), most)
        places = sum(map(self.of, rows))
        self.saved = (instead * sum(usual) - places) / max(1, len(rows))  # of each row

    def of(self, longest: int) -> int:
        for width in self._widths:
            if width >= longest:
                return width
        return general_width(longest)


def _fewest_widths(lengths: Sequence[int], fewer: int, most: float) -> list[int]:
    """Fewer widths than so many, under which the rows take so many places at most."""
    # rows of one width: at most one for each length that there is
    own = [_up(length, EVEN) for length in lengths]
    for parts in range(1, fewer):
        found = _best_widths(own, parts)
        if sum(n * width for n, width in found) <= most:
            return [width for _, width in found]
    return []


def _best_widths(own: Sequence[int], parts: int) -> list[tuple[int, int]]:
    """(how many rows, their width) of the cheapest `parts` parts of the sorted widths."""
    widths, counts = np.unique(np.array(own), return_counts=True)
    ends = np.cumsum(counts)
    # total[j]: the places of the first rows up to width j in so many parts
    total = (ends * widths).astype(np.float64)
    came: list[NDArray[Any]] = []
    begun = np.concatenate([[0], ends])
    after = (ends[None] - begun[1:, None]) * widths[None]  # rows after i, up to and with j
    after = np.where(after > 0, after, np.inf)
    for _ in range(1, min(parts, len(widths))):
        way = total[:, None] + after
        came.append(np.argmin(way, 0))
        total = np.min(way, 0)
    cuts = [len(widths) - 1]
    for before in reversed(came):
        cuts.append(int(before[cuts[-1]]))
    cuts.reverse()
    rows = np.diff([0, *ends[cuts]])
    return [(int(n), int(widths[c])) for n, c in zip(rows, cuts, strict=True)]


def _chosen(
    groups: Iterable[Sequence[Row]],
    size: int,
    prompt_rows: int,
    usual: Callable[[Sequence[Row]], tuple[float, float]],
) -> list[Shape]:
    needs: list[Shape] = []
    places = cost = 0.0
    kinds: set[tuple[float, float]] = set()
    for rows in groups:
        needs.append(needed(rows, layout(rows, size, prompt_rows)))
        usually = usual(rows)
        kinds.add(usually)
        places += usually[0]
        cost += usually[1]
    if len({bool(one.prompt_rows) for one in needs}) != 1:
        return []  # batches of two kinds, or none
    needs.sort(key=lambda one: one.tokens)
    for parts in _best_parts(needs, size):
        shapes = [_around(needs[a:b]) for a, b in parts]
        shapes[-1] = _with_reserve(shapes[-1])
        if len(shapes) >= len(kinds):
            break  # no fewer than in general
        counts = [b - a for a, b in parts]
        total = sum(n * one.tokens for n, one in zip(counts, shapes, strict=True))
        if total > places:
            continue
        longer = sum(n * one.cost(size) for n, one in zip(counts, shapes, strict=True)) / cost
        if longer <= HARDLY:
            return shapes
    return []


def _with_reserve(largest: Shape) -> Shape:
    """Room for what later epochs put together out of the same rows."""
    return replace(
        largest,
        tokens=_up(int(largest.tokens * RESERVE), UNIT),
        targets=_up(int(largest.targets * RESERVE), UNIT),
    )


def _around(needs: Sequence[Shape]) -> Shape:
    """The least shape that holds all of these."""
    return Shape(*map(max, zip(*(one._numbers() for one in needs), strict=True)))


def _best_parts(needs: Sequence[Shape], size: int) -> Iterable[list[tuple[int, int]]]:
    """The cheapest way to part the sorted batches into 1, 2 … `MOST` parts: (start, end) of each."""
    count = len(needs)
    ends = np.unique(np.linspace(0, count, min(count, CUTS) + 1).astype(np.int64)).tolist()
    n = len(ends)
    price: NDArray[Any] = np.full((n, n), np.inf)
    for a in range(n - 1):
        whole = needs[ends[a]]
        for b in range(a + 1, n):
            whole = _around([whole, *needs[ends[b - 1] : ends[b]]])
            price[a, b] = (ends[b] - ends[a]) * whole.cost(size)
    best = price[0]
    before: list[NDArray[Any]] = []
    for parts in range(1, min(MOST, count) + 1):
        if parts > 1:
            total = best[:, None] + price
            before.append(np.argmin(total, 0))
            best = np.min(total, 0)
        cuts = [n - 1]
        for came in reversed(before):
            cuts.append(int(came[cuts[-1]]))
        marks = [0, *(ends[c] for c in reversed(cuts))]
        yield [(a, b) for a, b in zip(marks, marks[1:], strict=False) if b > a]


def _up(n: int, unit: int) -> int:
    return -(-n // unit) * unit
