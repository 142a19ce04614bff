"""Curves in braille: the band from min to max of what each column holds, and its moving average
over it.

No point is left out: a column that stands for many points shows their lowest and highest (striding,
as other widgets have it, hides spikes). Points that are not numbers are a ✗ at the foot. The second
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
HUES = ("other-a", "other-b", "other-c", "other-d", "other-e")  # of other runs' averages
NAMED_EVERY = 24  # sub-columns between two places where a line bears its name
LABEL = 8  # cells of the y axis
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # [row][column] of a braille cell


@dataclass(frozen=True)
class Trace:
    """One thing to draw. `glyph` empty: band and average in braille; else this character at each
    point. `name`: one letter; the average alone, in a hue of its own (`style`), with its name on it
    here and there.
    """

    columns: Columns
    glyph: str = ""
    style: str = "second"
    name: str = ""


@dataclass
class _Canvas:
    """Cells (row, column) → what stands there."""

    width: int
    height: int
    dots: dict[tuple[int, int], int] = field(default_factory=dict)  # the band
    line: dict[tuple[int, int], int] = field(default_factory=dict)  # the average, over the band
    marks: dict[tuple[int, int], tuple[str, str]] = field(default_factory=dict)
    # (style, the average of another run), the first one on top
    others: list[tuple[str, dict[tuple[int, int], int]]] = field(default_factory=list)

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
        "curve--gap",
        *(f"curve--{hue}" for hue in HUES),
    }
    DEFAULT_CSS = """
    Curve {
        height: 1fr; min-height: 4;
        & > .curve--axis { color: $muted; }
        & > .curve--band { color: $primary 45%; }
        & > .curve--line { color: $primary; text-style: bold; }
        & > .curve--second { color: $warning; text-style: bold; }
        & > .curve--other-a { color: $success; }
        & > .curve--other-b { color: $error; }
        & > .curve--other-c { color: $secondary; }
        & > .curve--other-d { color: $foreground; }
        & > .curve--other-e { color: $accent; }
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
        self._traces = tuple(traces)
        self._range = x_range
        self._whole = whole
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
            self._rows = self._draw()
            self._drawn = state
        if y >= len(self._rows):
            return Strip.blank(self.size.width, self.rich_style)
        base = self.rich_style
        styles = {
            name: self.get_component_rich_style(f"curve--{name}")
            for name in ("axis", "band", "line", "second", "gap", *HUES)
        }
        segments = [Segment(text, styles.get(style, base)) for text, style in self._rows[y]]
        return Strip(segments).adjust_cell_length(self.size.width, base)

    # drawing

    def _draw(self) -> list[list[tuple[str, str]]]:
        width = self.size.width - LABEL
        height = self.size.height - 1
        if width < 4 or height < 2:
            return []
        values: list[float] = []
        for trace in self._traces:
            values.extend(_values(trace))
        if not values:
            return self._message(self._empty)
        if self.scale == "log":
            values = [value for value in values if value > 0]
        if not values:
            return self._message("no positive value: y shows another scale")
        alone = self._only_value()
        if alone is not None:
            return self._message(f"{number(alone)}: the only value")
        low, high = self._bounds(values)
        canvas = _Canvas(width, height)
        for trace in self._traces:
            self._draw_trace(canvas, trace, low, high)
        return self._with_axes(canvas, low, high)

    def _message(self, text: str) -> list[list[tuple[str, str]]]:
        """A line in the middle, where there is nothing to draw."""
        width = self.size.width
        shown = sanitize(text, newlines=False)[:width].center(width)
        rows: list[list[tuple[str, str]]] = [[] for _ in range((self.size.height - 1) // 2)]
        rows.append([("", ""), (shown, "axis")])
        return rows

    def _only_value(self) -> float | None:
        """The value, where there is no more than one and nothing else to draw: a dot says less than
        the number.
        """
        found: list[float] = []
        for trace in self._traces:
            if trace.columns.gaps:
                return None
            found += [value for value in trace.columns.mean if not math.isnan(value)]
        if len(found) != 1:
            return None
        if self._whole:
            return round(found[0])
        return found[0]

    def _bounds(self, values: list[float]) -> tuple[float, float]:
        ordered = sorted(values)
        if self.scale == "fit" and len(ordered) > 20:
            # the first losses (about the logarithm of the vocabulary) would squash all that follow
            left_out = len(ordered) // 50
            low = ordered[left_out]
            high = ordered[-1 - left_out]
        else:
            low = ordered[0]
            high = ordered[-1]
        if self.scale == "log":
            low = math.log10(low)
            high = math.log10(high)
        room = (high - low) * 0.04 or abs(high) * 0.05 or 0.5
        foot = low - room
        # an axis below 0 would tell of what cannot be
        if self.scale != "log" and ordered[0] >= 0:
            foot = max(foot, 0.0)
        return foot, high + room

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
        if trace.name:
            self._draw_other(canvas, trace, low, high)
        elif trace.glyph:
            self._draw_points(canvas, trace, low, high)
        else:
            self._draw_band(canvas, trace.columns, low, high)
        for x in trace.columns.gaps:
            place = self._column(x, canvas.width * 2)
            if place is not None:
                canvas.marks[canvas.height - 1, place // 2] = ("✗", "gap")

    def _draw_points(self, canvas: _Canvas, trace: Trace, low: float, high: float) -> None:
        """The trace's character at each value."""
        columns = trace.columns
        for i, x in enumerate(columns.x):
            place = self._column(x, canvas.width * 2)
            if place is None or math.isnan(columns.mean[i]):
                continue
            row = self._row(columns.mean[i], low, high, canvas.height)
            if row is not None:
                canvas.marks[row, place // 2] = (trace.glyph, trace.style)

    def _draw_other(self, canvas: _Canvas, trace: Trace, low: float, high: float) -> None:
        """Another run's average, with its name on it."""
        drawn: dict[tuple[int, int], int] = {}
        canvas.others.append((trace.style, drawn))
        smoothing = 0.0 if self._whole else self.smoothing
        averages = smooth(trace.columns.mean, smoothing)
        before: tuple[int, int] | None = None
        shift = len(canvas.others) * NAMED_EVERY // len(HUES)  # so that names do not meet
        named = -NAMED_EVERY + shift
        for i, x in enumerate(trace.columns.x):
            place = self._column(x, canvas.width * 2)
            if place is None or math.isnan(trace.columns.mean[i]):
                continue
            row = self._row(averages[i], low, high, canvas.height * 4)
            if row is None:
                continue
            _join(canvas, drawn, before, (place, row))
            before = (place, row)
            if place - named >= NAMED_EVERY:
                canvas.marks[row // 4, place // 2] = (trace.name, trace.style)
                named = place

    def _draw_band(self, canvas: _Canvas, columns: Columns, low: float, high: float) -> None:
        """The band from lowest to highest, where it is smoothed, and the average over it."""
        fine = canvas.height * 4
        smoothing = self.smoothing
        if self._whole:
            smoothing = 0
        averages = smooth(columns.mean, smoothing)
        before: tuple[int, int] | None = None
        for i, x in enumerate(columns.x):
            place = self._column(x, canvas.width * 2)
            if place is None or math.isnan(columns.mean[i]):
                continue
            top = self._row(columns.high[i], low, high, fine)
            foot = self._row(columns.low[i], low, high, fine)
            if top is not None and foot is not None and smoothing:
                canvas.set(canvas.dots, place, top, foot)
            row = self._row(averages[i], low, high, fine)
            if row is not None:
                _join(canvas, canvas.line, before, (place, row))
                before = (place, row)

    def _with_axes(self, canvas: _Canvas, low: float, high: float) -> list[list[tuple[str, str]]]:
        ticks = {0, canvas.height // 2, canvas.height - 1}
        plain = not braille_works()
        rows = []
        for row in range(canvas.height):
            label = ""
            edge = "│"
            if row in ticks:
                label = self._label(high - (high - low) * row / max(canvas.height - 1, 1))
                edge = "┤"
            cells = [(f"{label:>{LABEL - 1}}{edge}", "axis")]
            for column in range(canvas.width):
                cells.append(_cell(canvas, (row, column), plain))
            rows.append(_packed(cells))
        rows.append([(" " * LABEL + self._foot(canvas.width), "axis")])
        return rows

    def _label(self, value: float) -> str:
        """A value of the y axis, as this scale has it."""
        if self.scale == "log":
            value = 10**value
        if self._whole:
            value = round(value)
        return number(value)

    def _foot(self, width: int) -> str:
        """The x axis: its ends, and the middle where there is room."""
        first = _tick(self._range[0])
        last = _tick(self._range[1])
        middle = _tick((self._range[0] + self._range[1]) / 2)
        room = width - len(first) - len(last)
        if room > len(middle) + 4:
            return first + middle.center(room) + last
        return first + " " * max(room, 1) + last


def _join(
    canvas: _Canvas,
    target: dict[tuple[int, int], int],
    before: tuple[int, int] | None,
    at: tuple[int, int],
) -> None:
    """A line of dots from one place to the next; what lies between two far columns is filled in."""
    place, row = at
    if before is None or before[0] >= place:
        canvas.set(target, place, row, row)
        return
    start, first = before
    then = first
    for x in range(start + 1, place + 1):
        now = round(first + (row - first) * (x - start) / (place - start))
        canvas.set(target, x, min(then, now), max(then, now))
        then = now


def _cell(canvas: _Canvas, key: tuple[int, int], plain: bool) -> tuple[str, str]:
    if key in canvas.marks:
        return canvas.marks[key]
    if key in canvas.line:
        return _braille(canvas.line[key], "*", plain), "line"
    for style, drawn in canvas.others:
        if key in drawn:
            return _braille(drawn[key], "-", plain), style
    if key in canvas.dots:
        return _braille(canvas.dots[key], ":", plain), "band"
    return " ", ""


def _braille(dots: int, substitute: str, plain: bool) -> str:
    if plain:
        return substitute
    return chr(0x2800 + dots)


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
    """The finite values that the y axis has to span."""
    values = trace.columns.mean
    if not trace.glyph and not trace.name:
        values = [*trace.columns.low, *trace.columns.high]
    return [value for value in values if math.isfinite(value)]


def _tick(x: float) -> str:
    if abs(x) < 1e6:
        return str(round(x))
    return number(x)
