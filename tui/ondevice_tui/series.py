"""Curves in bounded memory: min, max and mean of buckets, which hold twice as many points whenever
all are full.
"""

from __future__ import annotations

import bisect
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

BUCKETS = 4096  # 200 kB a series; a terminal is a few hundred columns wide


@dataclass(frozen=True)
class Columns:
    """A series as a plot draws it: x, lowest, highest and mean value of each column, NaN where it
    has no finite value; `gaps` are the x of points that were no number."""

    x: list[float]
    low: list[float]
    high: list[float]
    mean: list[float]
    gaps: list[float]


class Series:
    """Points in order of x. `add` a value that is None or not finite and it counts as a gap."""

    def __init__(self, limit: int = BUCKETS) -> None:
        self.limit, self.width = limit, 1
        self.points = 0
        self.whole = True  # a count: every value was a whole number
        self.last: float | None = None
        self._x, self._low, self._high, self._sum = array("d"), array("d"), array("d"), array("d")
        self._count, self._gaps = array("l"), array("l")
        self._in_last = 1  # points of the newest bucket, gaps included; all that it holds, so that the first one opens
        # the newest bucket's low, high, sum, count, gaps
        self._open = (math.inf, -math.inf, 0.0, 0, 0)

    def __len__(self) -> int:
        return len(self._x)

    def add(self, x: float, value: float | None) -> None:
        low, high, total, count, gaps = self._open
        if self._in_last == self.width:
            self._settle()
            if len(self._x) == self.limit:
                self._merge()
            self._begin(x)
            low, high, total, count, gaps = math.inf, -math.inf, 0.0, 0, 0
        self._in_last += 1
        self.points += 1
        if value is None or not math.isfinite(value):
            self.last, self._open = None, (low, high, total, count, gaps + 1)
            return
        self.last = value
        if value.__class__ is not int:
            self.whole = False
        self._open = (
            value if value < low else low,
            value if value > high else high,
            total + value,
            count + 1,
            gaps,
        )

    def _settle(self) -> None:
        """The newest bucket as it stands goes where the others are."""
        if self._x:
            self._low[-1], self._high[-1], self._sum[-1], self._count[-1], self._gaps[-1] = (
                self._open
            )

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
            return (self._x[0], self._x[-1])
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
        first, last = bisect.bisect_left(self._x, start), bisect.bisect_right(self._x, end)
        out = Columns([], [], [], [], [])
        step = max(-(-(last - first) // max(number, 1)), 1)
        for i in range(first, last, step):
            j = min(i + step, last)
            count = sum(self._count[i:j])
            out.x.append(self._x[i])
            out.low.append(min(self._low[i:j]) if count else math.nan)
            out.high.append(max(self._high[i:j]) if count else math.nan)
            out.mean.append(sum(self._sum[i:j]) / count if count else math.nan)
            if sum(self._gaps[i:j]):
                out.gaps.append(self._x[i])
        return out


def smooth(values: Sequence[float], weight: float) -> list[float]:
    """Exponential moving average without the bias of its beginning (Kingma and Ba 2014, section 3);
    NaN is left out.
    """
    out, mean, scale = [], 0.0, 0.0
    for value in values:
        if math.isnan(value):
            out.append(math.nan)
            continue
        mean = weight * mean + (1 - weight) * value
        scale = weight * scale + (1 - weight)
        out.append(mean / scale)
    return out


def spark(values: Sequence[float], width: int) -> str:
    """A curve of one line of blocks, each the mean over its share of the values."""
    values = [v for v in values if math.isfinite(v)]
    if not values or width < 1:
        return ""
    columns = min(width, len(values))
    means = [
        sum(part) / len(part)
        for part in (
            values[i * len(values) // columns : (i + 1) * len(values) // columns]
            for i in range(columns)
        )
    ]
    low, high = min(means), max(means)
    if high - low < 1e-9 * max(abs(low), abs(high)):
        high = low  # rounding is no course
    return "".join(
        "▁▂▃▄▅▆▇█"[round((m - low) / (high - low) * 7) if high > low else 0] for m in means
    )
