"""A stage's events as curves, and a curve as inline SVG: few points, labelled axes, colours from
the page's style.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ondevice.common.progress import number
from ondevice.common.sanitize import sanitize_html
from ondevice.runs import events

Points = list[tuple[float, float]]  # (step, value)
MOST = 400  # points of a drawn curve
WIDTH, HEIGHT = 340, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 10, 34

# (the events' name, its title, the name in held-out measurements), of a stage that minimises a loss
# and of one that earns rewards, whose loss says nothing
_LOSSES = (("loss", "loss", "loss"), ("accuracy", "pairs ranked rightly", "accuracy"))
_CLASSES = (("loss", "loss", "loss"), ("accuracy", "classes found", "accuracy"))
_REWARDS = (
    ("reward", "reward", ""),
    ("accuracy", "accuracy", "accuracy"),
    ("kl", "KL to the start", "kl"),
    ("completion_length", "tokens a completion", "completion_length"),
)


@dataclass(frozen=True)
class Curve:
    """One figure as the steps reported it, and as it was measured on held-out data."""

    title: str
    steps: Points
    held: Points


def curves(path: Path) -> list[Curve]:
    """The curves of an event file; none of a stage that does not train."""
    steps = []
    evaluations = []
    of_classes = False
    for event in events.read(path):
        kind = event.get("event")
        if kind == "step" and "lr" in event:
            steps.append(event)
        elif kind == "eval":
            evaluations.append(event)
        elif kind == "start" and event.get("stage") == "classify":
            of_classes = True
    found = []
    for name, title, measured in _figures(steps, of_classes):
        if not measured:
            measured = _measured_reward(evaluations)
        curve = Curve(title, _points(steps, name), _points(evaluations, measured))
        if curve.steps:
            found.append(curve)
    return found


def _figures(
    steps: Sequence[Mapping[str, Any]], of_classes: bool
) -> tuple[tuple[str, str, str], ...]:
    """The figures that a stage with these steps has a curve of."""
    if any("reward" in event for event in steps):
        return _REWARDS
    if of_classes:
        return _CLASSES
    return _LOSSES


def _measured_reward(evaluations: Sequence[Mapping[str, Any]]) -> str:
    """PPO measures the reward model's score, GRPO the reward."""
    if any("score" in event for event in evaluations):
        return "score"
    return "reward"


def decimate(points: Sequence[tuple[float, float]], most: int = MOST) -> Points:
    """At most `most` points, the first and the last and the extremes of what lies between: no spike
    is lost.
    """
    if len(points) <= most:
        return list(points)
    inner, parts = points[1:-1], (most - 2) // 2
    kept = [points[0]]
    for i in range(parts):
        part = inner[i * len(inner) // parts : (i + 1) * len(inner) // parts]
        low, high = min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])
        kept += sorted({low, high})
    return [*kept, points[-1]]


def smooth(points: Sequence[tuple[float, float]]) -> Points:
    """The mean over a window about each point, a twentieth of the curve wide."""
    half = len(points) // 40
    sums = [0.0]
    for _, value in points:
        sums.append(sums[-1] + value)
    out = []
    for i, (step, _) in enumerate(points):
        reach = min(half, i, len(points) - 1 - i)  # the same on both sides, or the ends would bend
        out.append((step, (sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1)))
    return out


def svg(curve: Curve, stage: str) -> str:
    """The curve: training steps, dim under their mean where they are many; held-out measurements as
    dots. `stage` is made harmless here."""
    points = [*curve.steps, *curve.held]
    across = _Scale([x for x, _ in points], _LEFT, WIDTH - _RIGHT)
    up = _Scale([y for _, y in points], HEIGHT - _BOTTOM, _TOP)
    middle, centre = (HEIGHT - _BOTTOM + _TOP) / 2, (WIDTH + _LEFT - _RIGHT) / 2
    return (
        f'<svg role="img" viewBox="0 0 {WIDTH} {HEIGHT}">'
        f"<title>{sanitize_html(_in_words(curve, stage))}</title>"
        f"{_grid(across, up)}{_lines(curve, across, up)}{_dots(curve, across, up)}"
        f'<text class="axis" x="{centre:.0f}" y="{HEIGHT - 4}" text-anchor="middle">step</text>'
        f'<text class="axis" transform="translate(10 {middle:.0f}) rotate(-90)" text-anchor="middle">'
        f"{sanitize_html(curve.title)}</text></svg>"
    )


def _grid(across: _Scale, up: _Scale) -> str:
    """Level lines with their values, and the numbers of steps below."""
    parts = []
    for y in up.ticks(4):
        parts.append(f'<path class="grid" d="M{_LEFT} {up(y):.1f}H{WIDTH - _RIGHT}"/>')
        place = f'x="{_LEFT - 6}" y="{up(y) + 3.5:.1f}" text-anchor="end"'
        parts.append(f'<text class="tick" {place}>{_tick(y)}</text>')
    below = f'y="{HEIGHT - _BOTTOM + 14}" text-anchor="middle"'
    for x in across.ticks(5):
        if x == int(x):  # steps are whole numbers
            parts.append(f'<text class="tick" x="{across(x):.1f}" {below}>{_tick(x)}</text>')
    return "".join(parts)


def _lines(curve: Curve, across: _Scale, up: _Scale) -> str:
    """The steps and, where they are many, their mean over a window: of few it would be the curve
    itself."""
    line = _path(decimate(curve.steps), across, up)
    if len(curve.steps) < 40:
        return f'<path class="mean" d="{line}"/>'
    mean = _path(decimate(smooth(curve.steps), MOST // 2), across, up)
    return f'<path class="raw" d="{line}"/><path class="mean" d="{mean}"/>'


def _dots(curve: Curve, across: _Scale, up: _Scale) -> str:
    """The held-out measurements."""
    dots = ""
    for x, y in decimate(curve.held, 100):
        dots += f'<circle class="held" cx="{across(x):.1f}" cy="{up(y):.1f}" r="3"/>'
    return dots


_STYLE = (
    ".grid{stroke:#e2e3df;fill:none}.raw{stroke:#2456a6;stroke-opacity:.38;stroke-width:1.1;fill:none}"
    ".mean{stroke:#2456a6;stroke-width:2;fill:none}.held{fill:#b34700}text{font:10px sans-serif;fill:#5f6875}"
)


def picture(curve: Curve, stage: str) -> str:
    """`svg` as a file of its own: on white, in the colours of the light page."""
    head, sign, rest = svg(curve, stage).partition("</title>")
    room = f'xmlns="http://www.w3.org/2000/svg" width="{2 * WIDTH}" height="{2 * HEIGHT}"'
    head = head.replace("<svg ", f"<svg {room} ", 1)
    return f'{head}{sign}<style>{_STYLE}</style><rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>{rest}\n'


class _Scale:
    """Values onto a stretch of the picture."""

    def __init__(self, values: Iterable[float], start: float, end: float) -> None:
        numbers = list(values)
        self.low, self.high = min(numbers), max(numbers)
        self.start, self.end = start, end
        level = max(1e-12 * abs(self.high), 1e-200)
        if self.high / 2 - self.low / 2 <= level:  # a level line has no ticks of its own
            room = abs(self.low) * 0.1 or 1.0
            self.low, self.high = self.low - room, self.high + room

    def __call__(self, value: float) -> float:
        # halves, so that the difference of two large numbers does not overflow
        share = (value / 2 - self.low / 2) / (self.high / 2 - self.low / 2)
        return self.start + share * (self.end - self.start)

    def ticks(self, most: int) -> list[float]:
        """At most `most` + 1 round values within."""
        rough = self.high / most - self.low / most
        unit = 10.0 ** math.floor(math.log10(rough))
        enough = rough * (1 - 1e-9)
        step = next(unit * n for n in (1, 2, 5, 10) if unit * n >= enough)
        first = math.ceil(self.low / step - 1e-9)
        end = self.high + step * 1e-9
        values = [(first + i) * step for i in range(most + 2)]
        return [value for value in values if value <= end]


def _points(measured: Sequence[Mapping[str, Any]], name: str) -> Points:
    points = []
    for event in measured:
        step, value = _finite(event.get("step")), _finite(event.get(name))
        if step is not None and value is not None:
            points.append((step, value))
    return points


def _finite(value: Any) -> float | None:
    """A number that can be drawn: sums and differences of it are finite too."""
    if isinstance(value, int | float) and abs(value) < 1e200:
        return float(value)
    return None


def _path(points: Sequence[tuple[float, float]], across: _Scale, up: _Scale) -> str:
    return "M" + "L".join(f"{across(x):.1f} {up(y):.1f}" for x, y in points)


def _tick(value: float) -> str:
    if abs(value) < 1000:
        return f"{value:.3g}"
    return number(int(value))


def _in_words(curve: Curve, stage: str) -> str:
    """What the picture shows, for those who cannot see it."""
    mean = smooth(curve.steps)
    (first, start), (last, end) = mean[0], mean[-1]
    text = (
        f"{stage}: {curve.title} over {len(curve.steps):,} steps, from {number(start)} at step "
        f"{first:.0f} to {number(end)} at step {last:.0f}"
    )
    if curve.held:
        step, value = curve.held[-1]
        return f"{text}; held out {number(value)} at step {step:.0f}"
    return text
