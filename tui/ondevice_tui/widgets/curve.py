"""Curves in braille: the band from min to max of what each column holds, and its moving average
over it.

No point is left out: a column that stands for many points shows their lowest and highest (striding,
as other widgets have it, hides spikes). Points that are no number are a ✗ at the foot. The second
series has a glyph of its own, so that colour is never the only difference.
"""

from __future__ import annotations

import locale
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from rich.segment import Segment
from textual.geometry import Size
from textual.reactive import reactive
from textual.strip import Strip
from textual.widget import Widget

from ondevice.common.progress import number
from ondevice.common.sanitize import sanitize
from ondevice_tui.series import Columns, smooth

SCALES = ("fit", "full", "log")
SMOOTHINGS = (0.0, 0.6, 0.9, 0.97)
LABEL = 8  # cells of the y axis
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # [row][column] of a braille cell


@dataclass(frozen=True)
class Trace:
    """One thing to draw. `glyph` empty: band and average in braille; else this character at each
    point.
    """

    columns: Columns
    glyph: str = ""
    style: str = "second"


@dataclass
class _Canvas:
    """Cells (row, column) → what stands there."""

    width: int
    height: int
    dots: dict[tuple[int, int], int] = field(default_factory=dict)  # the band
    line: dict[tuple[int, int], int] = field(default_factory=dict)  # the average, over the band
    marks: dict[tuple[int, int], tuple[str, str]] = field(default_factory=dict)

    def set(self, target: dict[tuple[int, int], int], x: int, low: int, high: int) -> None:
        """Dots of sub-column x from sub-row low to high, counted from the top."""
        for y in range(max(low, 0), min(high, self.height * 4 - 1) + 1):
            key = (y // 4, x // 2)
            target[key] = target.get(key, 0) | _DOTS[y % 4][x % 2]


def braille_works() -> bool:
    return "utf" in (locale.getpreferredencoding(False) or "").lower()


class Curve(Widget):
    """Set `traces` with `show`; `scale` and `smoothing` repaint by themselves."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "curve--axis",
        "curve--band",
        "curve--line",
        "curve--second",
        "curve--third",
        "curve--gap",
    }
    DEFAULT_CSS = """
    Curve {
        height: 1fr; min-height: 4;
        & > .curve--axis { color: $muted; }
        & > .curve--band { color: $primary 45%; }
        & > .curve--line { color: $primary; text-style: bold; }
        & > .curve--second { color: $warning; text-style: bold; }
        & > .curve--third { color: $success; }
        & > .curve--gap { color: $error; text-style: bold; }
    }
    """
    scale = reactive("fit")
    smoothing = reactive(0.6)

    def __init__(
        self, empty: str = "nothing yet", *, id: str | None = None, classes: str | None = None
    ) -> None:
        super().__init__(id=id, classes=classes)
        self._empty = empty
        self._traces: tuple[Trace, ...] = ()
        self._range = (0.0, 1.0)
        self._whole = False
        self._rows: list[list[tuple[str, str]]] = []
        self._drawn: tuple[object, ...] | None = None
        self._version = 0

    def show(
        self,
        traces: Sequence[Trace],
        x_range: tuple[float, float],
        empty: str = "",
        whole: bool = False,
    ) -> None:
        """`x_range` is what the x axis spans, also where no point is yet. `whole`: the values are
        counts, which are not smoothed and stay whole numbers."""
        self._traces, self._range, self._whole = tuple(traces), x_range, whole
        self._empty = empty or self._empty
        self._version += 1
        self.refresh()

    @property
    def places(self) -> int:
        """Sub-columns that a band has: as many columns are worth asking a series for."""
        return max((self.size.width - LABEL) * 2, 2)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return 8

    def render_line(self, y: int) -> Strip:
        state = (self._version, self.size, self.scale, self.smoothing)
        if state != self._drawn:
            self._rows, self._drawn = self._draw(), state
        if y >= len(self._rows):
            return Strip.blank(self.size.width, self.rich_style)
        base = self.rich_style
        styles = {
            name: self.get_component_rich_style(f"curve--{name}")
            for name in ("axis", "band", "line", "second", "third", "gap")
        }
        segments = [Segment(text, styles.get(style, base)) for text, style in self._rows[y]]
        return Strip(segments).adjust_cell_length(self.size.width, base)

    # drawing

    def _draw(self) -> list[list[tuple[str, str]]]:
        width, height = self.size.width - LABEL, self.size.height - 1
        if width < 4 or height < 2:
            return []
        values = [v for trace in self._traces for v in _values(trace)]
        if self.scale == "log":
            values = [v for v in values if v > 0]
        if not values:
            if any(map(_values, self._traces)):
                text = "no positive value: y shows another scale"
            else:
                text = self._empty
            return self._message(text)
        if (alone := self._only_value()) is not None:
            return self._message(f"{number(alone)}: the only value")
        low, high = self._bounds(values)
        canvas = _Canvas(width, height)
        for trace in self._traces:
            self._draw_trace(canvas, trace, low, high)
        return self._with_axes(canvas, low, high)

    def _message(self, text: str) -> list[list[tuple[str, str]]]:
        """A line in the middle, where there is nothing to draw."""
        middle = [
            ("", ""),
            (sanitize(text, newlines=False)[: self.size.width].center(self.size.width), "axis"),
        ]
        return [[] for _ in range((self.size.height - 1) // 2)] + [middle]

    def _only_value(self) -> float | None:
        """The value, where there is no more than one and nothing else to draw: a dot says less than
        the number.
        """
        found = [
            value for trace in self._traces for value in trace.columns.mean if not math.isnan(value)
        ]
        if len(found) != 1 or any(trace.columns.gaps for trace in self._traces):
            return None
        if self._whole:
            return round(found[0])
        return found[0]

    def _bounds(self, values: list[float]) -> tuple[float, float]:
        ordered = sorted(values)
        if self.scale == "fit" and len(ordered) > 20:
            # the first losses (about the logarithm of the vocabulary) would squash all that follow
            low, high = ordered[len(ordered) // 50], ordered[-1 - len(ordered) // 50]
        else:
            low, high = ordered[0], ordered[-1]
        if self.scale == "log":
            low, high = math.log10(low), math.log10(high)
        room = (high - low) * 0.04 or abs(high) * 0.05 or 0.5
        # an axis below 0 would tell of what cannot be
        positive = self.scale != "log" and ordered[0] >= 0
        return max(low - room, 0.0) if positive else low - room, high + room

    def _row(self, value: float, low: float, high: float, rows: int) -> int | None:
        """The row of a value, counted from the top; beyond the axis it is the edge's. None: not on
        this scale.
        """
        if self.scale == "log":
            if value <= 0:
                return None
            value = math.log10(value)
        return min(max(round((high - value) / (high - low) * (rows - 1)), 0), rows - 1)

    def _column(self, x: float, places: int) -> int | None:
        first, last = self._range
        if not first <= x <= last:
            return None
        if last > first:
            return min(int((x - first) / (last - first) * (places - 1) + 0.5), places - 1)
        return 0

    def _draw_trace(self, canvas: _Canvas, trace: Trace, low: float, high: float) -> None:
        columns, fine = trace.columns, canvas.height * 4
        smoothing = 0 if self._whole else self.smoothing
        averages = smooth(columns.mean, smoothing)
        before: tuple[int, int] | None = None
        for i, x in enumerate(columns.x):
            place = self._column(x, canvas.width * 2)
            if place is None or math.isnan(columns.mean[i]):
                continue
            if trace.glyph:
                row = self._row(columns.mean[i], low, high, canvas.height)
                if row is not None:
                    canvas.marks[row, place // 2] = (trace.glyph, trace.style)
                continue
            top, foot = (self._row(v, low, high, fine) for v in (columns.high[i], columns.low[i]))
            if top is not None and foot is not None and smoothing:
                canvas.set(canvas.dots, place, top, foot)
            row = self._row(averages[i], low, high, fine)
            if row is None:
                continue
            _join(canvas, before, (place, row))
            before = (place, row)
        for x in columns.gaps:
            place = self._column(x, canvas.width * 2)
            if place is not None:
                canvas.marks[canvas.height - 1, place // 2] = ("✗", "gap")

    def _with_axes(self, canvas: _Canvas, low: float, high: float) -> list[list[tuple[str, str]]]:
        def label(row: int) -> str:
            value = high - (high - low) * row / max(canvas.height - 1, 1)
            value = 10**value if self.scale == "log" else value
            return number(round(value) if self._whole else value)

        ticks = {0, canvas.height // 2, canvas.height - 1}
        plain = not braille_works()
        rows = []
        for row in range(canvas.height):
            cells = [
                (
                    f"{label(row) if row in ticks else '':>{LABEL - 1}}"
                    + ("┤" if row in ticks else "│"),
                    "axis",
                )
            ]
            for column in range(canvas.width):
                cells.append(_cell(canvas, (row, column), plain))
            rows.append(_packed(cells))
        first, last = (_tick(x) for x in self._range)
        middle = _tick((self._range[0] + self._range[1]) / 2)
        room = canvas.width - len(first) - len(last)
        foot = (
            first + (middle.center(room) if room > len(middle) + 4 else " " * max(room, 1)) + last
        )
        rows.append([(" " * LABEL + foot, "axis")])
        return rows


def _join(canvas: _Canvas, before: tuple[int, int] | None, at: tuple[int, int]) -> None:
    """A line of dots from one place to the next; what lies between two far columns is filled in."""
    place, row = at
    if before is None or before[0] >= place:
        canvas.set(canvas.line, place, row, row)
        return
    then = before[1]
    for x in range(before[0] + 1, place + 1):
        now = round(before[1] + (row - before[1]) * (x - before[0]) / (place - before[0]))
        canvas.set(canvas.line, x, min(then, now), max(then, now))
        then = now


def _cell(canvas: _Canvas, key: tuple[int, int], plain: bool) -> tuple[str, str]:
    if key in canvas.marks:
        return canvas.marks[key]
    for dots, style in ((canvas.line, "line"), (canvas.dots, "band")):
        if key in dots:
            return ("*" if style == "line" else ":") if plain else chr(0x2800 + dots[key]), style
    return " ", ""


def _packed(cells: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Neighbours of one style joined."""
    out: list[tuple[str, str]] = []
    for text, style in cells:
        if out and out[-1][1] == style:
            out[-1] = (out[-1][0] + text, style)
        else:
            out.append((text, style))
    return out


def _values(trace: Trace) -> list[float]:
    columns = trace.columns
    return [
        v
        for v in (columns.mean if trace.glyph else [*columns.low, *columns.high])
        if math.isfinite(v)
    ]


def _tick(x: float) -> str:
    if abs(x) < 1e6:
        return str(round(x))
    return number(x)
