"""The upper part of the rewards screen: a curve, each reward by itself, where a step's time goes,
how its completions are spread.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.content import Content

from ondevice.common.progress import number
from ondevice_tui.event_reader import History
from ondevice_tui.rollout_groups import Group
from ondevice_tui.screens.stage_page import SHORT
from ondevice_tui.series import Columns, histogram, spark
from ondevice_tui.widgets.curve import SCALES, Curve, Trace
from ondevice_tui.widgets.safe import SafeText, cell, content, line, lines, titled

CURVES = (
    "reward",
    "accuracy",
    "kl",
    "entropy",
    "completion_length",
    "zero_spread",
    "clip_fraction",
)
PARTS = {
    "sampling_seconds": "sampling",
    "scoring_seconds": "scoring",
    "rewards_seconds": "rewards",
    "update_seconds": "update",
}
"""Fields of a step's event that say where its time went, in words."""
RECENT = 20  # steps of which the time is told
BESIDE_TITLE = 4  # cells of a curve that its title leaves to the corners
WIDE = 44  # cells of a curve whose title has room for the spread
BAR = 12  # cells of a whole step's time
PANELS = ("rewards", "times", "spread")  # beside the curve, in turn


class RewardCurves(Horizontal):
    """`show` draws a history, whose lock is held."""

    def __init__(self) -> None:
        super().__init__(id="reason-top")
        self._chosen = "reward"
        self._panel = PANELS[0]

    def compose(self) -> ComposeResult:
        yield Curve("no step yet", id="reward-curve", classes="box")
        with Vertical(id="per-reward", classes="box"):
            yield SafeText(id="per-reward-text")

    @property
    def curve(self) -> Curve:
        return self.query_one(Curve)

    def next_curve(self, history: History) -> None:
        names = _there(history)
        if names:
            following = names.index(self._chosen) + 1 if self._chosen in names else 0
            self._chosen = names[following % len(names)]

    def next_scale(self) -> None:
        self.curve.scale = SCALES[(SCALES.index(self.curve.scale) + 1) % len(SCALES)]

    def next_panel(self) -> None:
        """What stands beside the curve."""
        self._panel = PANELS[(PANELS.index(self._panel) + 1) % len(PANELS)]

    def show_spread(self, groups: Sequence[Group]) -> None:
        """How the completions of one step are spread, where that is what stands beside the curve."""
        if self._panel != "spread":
            return
        box = self.query_one("#per-reward")
        rows = list(_spread_rows(groups, max(box.size.width - 2, 16)))
        text = lines(rows) if rows else content("no completions of this step", "$muted")
        self.query_one("#per-reward-text", SafeText).show(text)

    def show(self, history: History, empty: str) -> None:
        """`empty`: what stands in place of a curve that has no point."""
        self._show_curve(history, empty)
        box = self.query_one("#per-reward")
        width = max(box.size.width - 2, 16)
        if self._panel == "spread":
            titled(box, "how completions are spread", "% rewards")
            return
        if self._panel == "times":
            titled(box, "where a step's time goes", "% spread")
            rows = list(_time_rows(history))
            nothing = "The steps of this run do not tell: they are of an earlier version."
        else:
            title = "what to watch"
            if any(name.startswith("reward/") for name in history.steps):
                title = "each reward, and what to watch"
            titled(box, title, "% time")
            rows = _course_rows(history, width)
            nothing = "nothing yet"
        if not history.step:
            nothing = "nothing yet"
        text = lines(rows) if rows else content(nothing, "$muted")
        self.query_one("#per-reward-text", SafeText).show(text)

    def _show_curve(self, history: History, empty: str) -> None:
        curve = self.curve
        names = _there(history)
        name = self._chosen if self._chosen in names else next(iter(names), "")
        series = history.steps.get(name)
        if series is None or series.span is None:
            curve.show((), (0, 1), empty)
            titled(curve, "reward")
            return
        measured = name
        if name == "reward" and "score" in history.evals:
            measured = "score"  # as PPO calls it
        held_out = history.evals.get(measured)
        first, last = series.span[0], float(max(history.total, series.span[1]))
        if held_out is not None and held_out.span is not None:
            first = min(first, held_out.span[0])  # it is measured before the first step
        columns = series.columns(curve.places, first, last)
        title = f"{SHORT.get(name, name)} {short(series.last)}"
        if name == "reward" and "reward_std" in history.steps:
            band = history.steps["reward_std"]
            columns = _with_spread(columns, band.columns(curve.places, first, last))
            if curve.size.width >= WIDE:
                title += f" ±{short(band.last)}"
        traces = [Trace(columns)]
        if held_out is not None and len(held_out):
            traces.append(Trace(held_out.columns(curve.places // 2, first, last), "o", "second"))
            told = from_to(history, measured)
            title = _longest_that_fits(
                (
                    f"{title} o held-out {told}",
                    f"{title} o {told}",
                    f"{SHORT.get(name, name)} o {told}",
                    f"o {told}",
                ),
                curve.size.width - BESIDE_TITLE,
            )
        curve.show(traces, (first, max(last, first)))
        titled(curve, title, f"tab curve  y: {curve.scale}")


def _longest_that_fits(titles: Sequence[str], width: int) -> str:
    """The first of them (the last is the shortest) that so many cells hold."""
    for title in titles:
        if cell_len(title) <= width:
            return title
    return titles[-1]


def from_to(history: History, name: str) -> str:
    """A held-out figure before the first step and now: `0.41 → 0.69`. Hold the history's lock."""
    newest = short(history.evals[name].last)
    before = history.newest.get("before", {}).get(name)
    known = isinstance(before, (int, float)) and not isinstance(before, bool)
    if not known or "eval" not in history.newest:
        return newest
    return f"{short(before)} → {newest}"


def short(value: float | None) -> str:
    """A number for a narrow title: two decimals, where that tells enough."""
    if value is not None and 0.1 <= abs(value) < 100:
        return f"{value:.2f}"
    return number(value)


def _there(history: History) -> list[str]:
    return [name for name in CURVES if name in history.steps]


def _course_rows(history: History, width: int) -> list[Content]:
    rewards = [name for name in history.steps if name.startswith("reward/")]
    watched = [name for name in _there(history) if name != CURVES[0]]
    rows = [_course(history, name, "bold", width) for name in rewards]
    return rows + [_course(history, name, "$muted", width) for name in watched]


def _course(history: History, name: str, style: str, width: int) -> Content:
    """A figure's name, its newest value and its course."""
    series = history.steps[name]
    shown = SHORT.get(name, name.removeprefix("reward/").replace("_", " "))
    course = spark(series.columns(64).mean, max(min(width - 24, 16), 4))
    last = cell(number(series.last), 8, right=True)
    name_width = min(max(width - 14, 6), 14)
    return line((cell(shown, name_width), style), last, "  ", (course, "$primary"))


def _spread_rows(groups: Sequence[Group], width: int) -> Iterable[Content]:
    """`reward   0.00 ▂  █ 1.10`: of all completions of a step their reward, its parts, their length."""
    answers = [answer for group in groups for answer in group.answers]
    if not answers:
        return
    yield line(
        (f"step {groups[0].step:,}: {len(answers)} completions, {len(groups)} groups", "$muted")
    )
    names = dict.fromkeys(name for answer in answers for name in answer.rewards)
    yield _spread_row("reward", [answer.reward for answer in answers], "bold", width)
    yield _spread_row("length", [answer.tokens for answer in answers], "bold", width)
    for name in names:
        shown = name.replace("_", " ")
        values = [answer.rewards.get(name) for answer in answers]
        yield _spread_row(shown, values, "$muted", width)


def _spread_row(name: str, values: Sequence[float | None], style: str, width: int) -> Content:
    bins = max(min(width - 26, 16), 4)
    found = [value for value in values if value is not None]
    low, high, blocks = histogram(found, bins)
    if not blocks:
        return line((cell(name, 9), style), ("none", "$muted"))
    if low == high:
        return line((cell(name, 9), style), f"all {number(low)}")
    return line(
        (cell(name, 9), style),
        f"{cell(number(low), 7, right=True)} ",
        (blocks, "$primary"),
        f" {number(high)}",
    )


def _time_rows(history: History) -> Iterable[Content]:
    """`sampling  62 %  1.24 s ███████`, of the mean of the newest steps, and how fast it wrote."""
    whole = _recent(history, "seconds")
    parts = {name: _recent(history, name) for name in PARTS if name in history.steps}
    if not whole or not parts:
        return
    for name, seconds in parts.items():
        if seconds is not None:
            yield _time_row(PARTS[name], seconds, whole, "bold")
    rest = whole - sum(seconds or 0.0 for seconds in parts.values())
    yield _time_row("the rest", max(rest, 0.0), whole, "$muted")
    rate = _recent(history, "tokens_per_second")
    sampling = parts.get("sampling_seconds")
    if rate and sampling:
        yield line(
            (
                f"writes {number(rate * whole / sampling)} tokens/s, {number(rate)} with all",
                "$muted",
            )
        )


def _time_row(name: str, seconds: float, whole: float, style: str) -> Content:
    share = min(seconds / whole, 1.0)
    bar = "█" * round(share * BAR)
    return line((cell(name, 9), style), f"{share:5.0%} ", f"{seconds:8.3g} s  ", (bar, "$primary"))


def _recent(history: History, name: str) -> float | None:
    """The mean of a figure over the newest steps."""
    series = history.steps.get(name)
    if series is None or series.span is None:
        return None
    means = series.columns(RECENT, history.step - RECENT + 1).mean
    found = [value for value in means if not math.isnan(value)]
    return sum(found) / len(found) if found else series.last


def _with_spread(means: Columns, spread: Columns) -> Columns:
    """The band of a mean and its standard deviation, column by column."""
    if len(spread.mean) != len(means.mean):
        return means
    low = [m - s for m, s in zip(means.mean, spread.mean, strict=True)]
    high = [m + s for m, s in zip(means.mean, spread.mean, strict=True)]
    return Columns(means.x, low, high, means.mean, means.gaps)
