"""Curves in bounded memory: min, max and mean of buckets, which hold twice as many points whenever
all are full.
"""

from __future__ import annotations

import bisect
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

BUCKETS = 4096  # 200 kB per series; a terminal is a few hundred columns wide
NOTHING = (math.inf, -math.inf, 0.0, 0, 0)  # a bucket's low, high, sum, count, gaps at first
BLOCKS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Columns:
    """A series as a plot draws it: x, lowest, highest and mean value of each column, NaN where it
    has no finite value; `gaps` are the x of points that were not numbers."""

    x: list[float]
    low: list[float]
    high: list[float]
    mean: list[float]
    gaps: list[float]


class Series:
    """Points in order of x. `add` a value that is None or not finite and it counts as a gap."""

    def __init__(self, limit: int = BUCKETS) -> None:
        self.limit = limit
        self.width = 1  # points per bucket
        self.points = 0
        self.whole = True  # a count: every value was a whole number
        self.last: float | None = None
        self._x = array("d")
        self._low = array("d")
        self._high = array("d")
        self._sum = array("d")
        self._count = array("l")
        self._gaps = array("l")
        # points of the newest bucket, gaps included; at first all that it holds, so that the first
        # point opens one
        self._in_last = 1
        # the newest bucket's low, high, sum, count, gaps
        self._open = NOTHING

    def __len__(self) -> int:
        return len(self._x)

    def add(self, x: float, value: float | None) -> None:
        low, high, total, count, gaps = self._open
        if self._in_last == self.width:
            self._settle()
            if len(self._x) == self.limit:
                self._merge()
            self._begin(x)
            low, high, total, count, gaps = NOTHING
        self._in_last += 1
        self.points += 1
        if value is None or not math.isfinite(value):
            self.last = None
            self._open = (low, high, total, count, gaps + 1)
            return
        self.last = value
        if value.__class__ is not int:
            self.whole = False
        if value < low:
            low = value
        if value > high:
            high = value
        self._open = (low, high, total + value, count + 1, gaps)

    def _settle(self) -> None:
        """The newest bucket as it stands goes where the others are."""
        if not self._x:
            return
        low, high, total, count, gaps = self._open
        self._low[-1] = low
        self._high[-1] = high
        self._sum[-1] = total
        self._count[-1] = count
        self._gaps[-1] = gaps

    def _begin(self, x: float) -> None:
        for values in (self._x, self._low, self._high, self._sum):
            values.append(x)
        self._count.append(0)
        self._gaps.append(0)
        self._in_last = 0

    def _merge(self) -> None:
        """Pairs of buckets become one: half as many, each twice as wide."""
        self._x = self._x[::2]
        self._low = array("d", map(min, self._low[::2], self._low[1::2]))
        self._high = array("d", map(max, self._high[::2], self._high[1::2]))
        self._sum = array("d", map(float.__add__, self._sum[::2], self._sum[1::2]))
        self._count = array("l", map(int.__add__, self._count[::2], self._count[1::2]))
        self._gaps = array("l", map(int.__add__, self._gaps[::2], self._gaps[1::2]))
        self.width *= 2

    @property
    def span(self) -> tuple[float, float] | None:
        """The first and the newest bucket's x."""
        if self._x:
            return self._x[0], self._x[-1]
        return None

    def at(self, x: float) -> float | None:
        """The mean of the bucket that holds x (the one before it, at the ends)."""
        if not self._x:
            return None
        self._settle()
        i = max(bisect.bisect_right(self._x, x) - 1, 0)
        if self._count[i]:
            return self._sum[i] / self._count[i]
        return None

    def columns(self, number: int, start: float = -math.inf, end: float = math.inf) -> Columns:
        """At most `number` columns over the points with start <= x <= end; neighbours are merged,
        none is left out.
        """
        self._settle()
        first = bisect.bisect_left(self._x, start)
        last = bisect.bisect_right(self._x, end)
        out = Columns([], [], [], [], [])
        step = max(-(-(last - first) // max(number, 1)), 1)
        for i in range(first, last, step):
            j = min(i + step, last)
            count = sum(self._count[i:j])
            out.x.append(self._x[i])
            if count:
                out.low.append(min(self._low[i:j]))
                out.high.append(max(self._high[i:j]))
                out.mean.append(sum(self._sum[i:j]) / count)
            else:
                out.low.append(math.nan)
                out.high.append(math.nan)
                out.mean.append(math.nan)
            if sum(self._gaps[i:j]):
                out.gaps.append(self._x[i])
        return out


def smooth(values: Sequence[float], weight: float) -> list[float]:
    """Exponential moving average without the bias of its beginning (Kingma and Ba 2014, section 3);
    NaN is left out.
    """
    out = []
    mean = 0.0
    scale = 0.0
    for value in values:
        if math.isnan(value):
            out.append(math.nan)
            continue
        mean = weight * mean + (1 - weight) * value
        scale = weight * scale + (1 - weight)
        out.append(mean / scale)
    return out


def histogram(values: Sequence[float], width: int) -> tuple[float, float, str]:
    """(least, most, how many lie in each of `width` equal parts between: a space for none, ▁ for a
    few, █ for the most). Values that are no numbers are left out; all zero and empty without one."""
    values = [v for v in values if math.isfinite(v)]
    if not values or width < 1:
        return 0.0, 0.0, ""
    low, high = min(values), max(values)
    if high == low:
        return low, high, BLOCKS[-1]
    counts = [0] * width
    for value in values:
        counts[min(int((value - low) / (high - low) * width), width - 1)] += 1
    blocks = ""
    for count in counts:
        height = round(count / max(counts) * (len(BLOCKS) - 1))
        blocks += BLOCKS[height] if count else " "
    return low, high, blocks


def spark(values: Sequence[float], width: int) -> str:
    """A curve of one line of blocks, each the mean over its share of the values."""
    values = [v for v in values if math.isfinite(v)]
    if not values or width < 1:
        return ""
    columns = min(width, len(values))
    means = []
    for i in range(columns):
        part = values[i * len(values) // columns : (i + 1) * len(values) // columns]
        means.append(sum(part) / len(part))
    low = min(means)
    high = max(means)
    # a difference by rounding alone is not a course
    if high - low < 1e-9 * max(abs(low), abs(high)) or high == low:
        return BLOCKS[0] * columns
    blocks = []
    for mean in means:
        height = round((mean - low) / (high - low) * (len(BLOCKS) - 1))
        blocks.append(BLOCKS[height])
    return "".join(blocks)
