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
    """What the steps told of one figure, and what was measured of it on held-out data."""

    title: str
    steps: Points
    held: Points


def curves(path: Path) -> list[Curve]:
    """The curves of an event file; none of a stage that does not train."""
    found = list(events.read(path))
    steps = [event for event in found if event.get("event") == "step" and "lr" in event]
    held = [event for event in found if event.get("event") == "eval"]
    rewarded = any("reward" in event for event in steps)
    out = []
    of_classes = any(
        event.get("event") == "start" and event.get("stage") == "classify" for event in found
    )
    for name, title, measured in _REWARDS if rewarded else _CLASSES if of_classes else _LOSSES:
        if not measured:  # PPO measures the reward model's score, GRPO the reward
            measured = "score" if any("score" in event for event in held) else "reward"
        curve = Curve(title, _points(steps, name), _points(held, measured))
        if curve.steps:
            out.append(curve)
    return out


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
    across = _Scale([x for x, _ in (*curve.steps, *curve.held)], _LEFT, WIDTH - _RIGHT)
    up = _Scale([y for _, y in (*curve.steps, *curve.held)], HEIGHT - _BOTTOM, _TOP)
    grid = [
        f'<path class="grid" d="M{_LEFT} {up(y):.1f}H{WIDTH - _RIGHT}"/>'
        f'<text class="tick" x="{_LEFT - 6}" y="{up(y) + 3.5:.1f}" text-anchor="end">{_tick(y)}</text>'
        for y in up.ticks(4)
    ]
    below = f'y="{HEIGHT - _BOTTOM + 14}" text-anchor="middle"'
    grid += [
        f'<text class="tick" x="{across(x):.1f}" {below}>{_tick(x)}</text>'
        for x in across.ticks(5)
        if x == int(x)
    ]
    many = len(curve.steps) >= 40  # else the mean over a window would be the curve itself
    lines = f'<path class="{"raw" if many else "mean"}" d="{_path(decimate(curve.steps), across, up)}"/>'
    if many:
        lines += f'<path class="mean" d="{_path(decimate(smooth(curve.steps), MOST // 2), across, up)}"/>'
    dots = "".join(
        f'<circle class="held" cx="{across(x):.1f}" cy="{up(y):.1f}" r="3"/>'
        for x, y in decimate(curve.held, 100)
    )
    middle, centre = (HEIGHT - _BOTTOM + _TOP) / 2, (WIDTH + _LEFT - _RIGHT) / 2
    return (
        f'<svg role="img" viewBox="0 0 {WIDTH} {HEIGHT}"><title>{sanitize_html(_told(curve, stage))}</title>'
        f"{''.join(grid)}{lines}{dots}"
        f'<text class="axis" x="{centre:.0f}" y="{HEIGHT - 4}" text-anchor="middle">step</text>'
        f'<text class="axis" transform="translate(10 {middle:.0f}) rotate(-90)" text-anchor="middle">'
        f"{sanitize_html(curve.title)}</text></svg>"
    )


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
        found = list(values)
        self.low, self.high, self.start, self.end = min(found), max(found), start, end
        if self.high / 2 - self.low / 2 <= max(
            1e-12 * abs(self.high), 1e-200
        ):  # a level line has no ticks of its own
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
        step = next(unit * n for n in (1, 2, 5, 10) if unit * n >= rough * (1 - 1e-9))
        first = math.ceil(self.low / step - 1e-9)
        return [
            (first + i) * step
            for i in range(most + 2)
            if (first + i) * step <= self.high + step * 1e-9
        ]


def _points(found: Sequence[Mapping[str, Any]], name: str) -> Points:
    values = [(_finite(event.get("step")), _finite(event.get(name))) for event in found]
    return [(x, y) for x, y in values if x is not None and y is not None]


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


def _told(curve: Curve, stage: str) -> str:
    """What the picture shows, for who cannot see it."""
    mean = smooth(curve.steps)
    text = (
        f"{stage}: {curve.title} over {len(curve.steps):,} steps, from {number(mean[0][1])} at step "
        f"{mean[0][0]:.0f} to {number(mean[-1][1])} at step {mean[-1][0]:.0f}"
    )
    if curve.held:
        return f"{text}; held out {number(curve.held[-1][1])} at step {curve.held[-1][0]:.0f}"
    return text
