"""Train: one stage's curves, numbers, samples and messages, while it runs or long after."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.widget import Widget

from ondevice.common.progress import duration, number
from ondevice.config.recipe import gives
from ondevice_tui import stage_processes
from ondevice_tui.event_reader import History, texts_at
from ondevice_tui.messages import StageNews
from ondevice_tui.moved_keys import moved
from ondevice_tui.screens.overlays import Overlays, TickRuns
from ondevice_tui.screens.stage_page import SHORT, StagePage
from ondevice_tui.series import Columns, Series, smooth, spark
from ondevice_tui.widgets.curve import SCALES, SMOOTHINGS, Curve, Trace
from ondevice_tui.widgets.safe import SafeText, cell, content, line, lines, titled

PREFERRED = (
    "loss",
    "reward",
    "accuracy",
    "margin",
    "kl",
    "entropy",
    "completion_length",
    "grad_norm",
    "lr",
    "tokens_per_second",
    "memory_bytes",
)
HIDDEN = ("t", "tokens", "seconds")  # axes, or told otherwise
AXES = ("step", "time", "tokens")
EMPTY = "no step yet: the stage prepares its data"


class TrainScreen(StagePage):
    ABOUT = """\
One stage's curves. The bright line is the moving average of the training values, the dim band their minimum and \
maximum in each column (no spike is hidden), o marks held-out measurements, letters name the lines of runs laid over \
it (o), ✗ a value that is not a number. Below: the newest numbers with their course, and what the model answers to \
the fixed prompts. b rings a bell when a stage ends or turns sick (a loss that is not a number, rewards that teach \
nothing, a policy far from its reference), or does not."""
    SHORT_ROWS = 3
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("tab", "metric(1)", "curve", tooltip="Next curve (shift+tab: the one before)"),
        Binding("shift+tab", "metric(-1)", "curve back", show=False),
        Binding(
            "y", "scale", "y scale", tooltip="y axis: fit (2 to 98 percent), full, logarithmic"
        ),
        Binding(
            "e", "smoothing", "smooth", tooltip="How much the average smooths: 0, 0.6, 0.9, 0.97"
        ),
        Binding("a", "axis", "x axis", tooltip="x axis: steps, seconds, tokens"),
        Binding(
            "plus,equals_sign",
            "zoom(1)",
            "zoom",
            key_display="+ -",
            tooltip="Look at the newest half",
        ),
        Binding("minus", "zoom(-1)", "zoom out", show=False, key_display="-"),
        Binding(
            "left_square_bracket",
            "sample(-1)",
            "older",
            key_display="[ ]",
            tooltip="The sample before in training; ] the one after it",
        ),
        Binding("right_square_bracket", "sample(1)", "newer sample", show=False, key_display="]"),
        Binding(
            "right_curly_bracket",
            "prompt(1)",
            "prompt",
            key_display="{ }",
            tooltip="The next prompt among the samples",
        ),
        Binding("left_curly_bracket", "prompt(-1)", "prompt before", show=False, key_display="{"),
        Binding(
            "o", "overlay", "overlay", tooltip="Tick runs whose same stage is laid over the curve"
        ),
        Binding("L", "details", "log", tooltip="The end of the log, messages, settings"),
        Binding(
            "comma",
            "other_stage(-1)",
            "stage",
            key_display=", .",
            tooltip="The stage before; . the next one",
        ),
        Binding("full_stop", "other_stage(1)", "next stage", show=False, key_display="."),
        Binding("Z", "freeze", "freeze", tooltip="Hold the view still; training goes on"),
        Binding("b", "app.ring", "bell", tooltip="Ring when a stage ends or turns sick, or do not"),
        Binding(
            "C", "checkpoint", "save", tooltip="Save a checkpoint after this step; training goes on"
        ),
        Binding("X", "stop", "stop", tooltip="Ask the stage to finish its step, save and stop"),
        Binding("R", "resume", "resume", tooltip="Go on from the newest checkpoint"),
        *moved(x="a", s="{ }", d="L", space="Z"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._metric = ""
        self._axis = "step"
        self._halvings = 0  # of the steps that are shown, by zooming in
        self._back = 0  # samples before the newest
        self._prompt = 0
        self._overlays = Overlays(self)

    def body(self) -> Iterable[Widget]:
        with Horizontal(id="train"):
            with Vertical(id="train-left"):
                yield Curve(EMPTY, id="curve", classes="box")
                yield SafeText(id="overlays")
                yield SafeText(id="tiles")
                with VerticalScroll(id="sample", classes="box"):
                    yield SafeText(id="sample-text")
            with Vertical(id="train-right"):
                yield Curve(EMPTY, id="second", classes="box")
                with VerticalScroll(id="notes", classes="box"):
                    yield SafeText(id="notes-text")

    def on_mount(self) -> None:
        for widget in self.query(VerticalScroll):
            widget.can_focus = False
        titled(self.query_one("#notes"), "events")
        for curve in self.query(Curve):
            smoothing = self.ui.remembered.get("smoothing", lambda value: value in SMOOTHINGS)
            if smoothing is not None:  # 0 is one of them
                curve.smoothing = float(smoothing)
            scale = self.ui.remembered.get("scale", lambda value: value in SCALES)
            if scale:
                curve.scale = scale

    def stage_changed(self) -> None:
        self._metric = ""
        self._back = 0
        self._halvings = 0
        self._prompt = 0
        self._overlays.follow(self.folder, self.ui.ticked_runs)

    def runs_changed(self) -> None:
        self._overlays.follow(self.folder, self.ui.ticked_runs)  # others may be ticked elsewhere
        super().runs_changed()

    # what is shown

    def on_resize(self) -> None:
        self.call_after_refresh(self.show_history)

    def show_history(self) -> None:
        self.top(*self.status())
        with self.history.lock:
            names = self._names()
            metric = self._metric
            if metric not in names:
                metric = next(iter(names), "")
            self._show_curve(self.query_one("#curve", Curve), metric)
            if self.query_one("#train-right").display:
                second = _second_metric(names, metric)
                self._show_curve(self.query_one("#second", Curve), second)
            self.query_one("#tiles", SafeText).show(self._tiles(metric), layout=False)
            legend = self._overlays.legend(metric)
            notes = list(self.history.notes)[-60:]
            samples = list(self.history.samples)
        laid_over = self.query_one("#overlays", SafeText)
        laid_over.display = legend is not None
        laid_over.show(legend or "")
        self._show_sample(samples)
        if self.query_one("#train-right").display:
            self._show_notes(notes)

    def _names(self) -> list[str]:
        known = [name for name in self.history.steps if name not in HIDDEN]
        if "loss" in known or "reward" in known:
            # The loss says little of a stage that learns from rewards.
            return sorted(known, key=lambda name: (name != "reward", _rank(name)))
        # it learns nothing: what it counts, then how fast it was
        return sorted(known, key=lambda name: -_rank(name))

    def _show_curve(self, curve: Curve, metric: str) -> None:
        series = self.history.steps.get(metric)
        if series is None or series.span is None:
            curve.show((), (0, 1), self._why_empty())
            titled(curve, "curves")
            return
        held = self.history.evals.get(metric)
        first, newest = series.span
        if held is not None and held.span is not None:
            first = min(first, held.span[0])  # it is measured before the first step
        first, last = self._shown_steps(first, newest)
        to_axis = self._to_axis(self.history)
        traces = [Trace(to_axis(series.columns(curve.places, first, last)))]
        title = f"{metric} {number(series.last)}"
        # of a count that grows, an average is one that was
        if curve.smoothing and not series.whole:
            title += f"  average {number(_average(traces[0].columns, curve.smoothing))}"
        traces += self._overlays.traces(metric, curve.places, (first, last), self._to_axis)
        if held is not None and len(held):
            points = held.columns(curve.places // 2, first, last)
            traces.append(Trace(to_axis(points), "o", "second"))
            title += f"  o held-out {number(held.last)}"
        ends = to_axis(Columns([first, last], [0, 0], [0, 0], [0, 0], [])).x
        curve.show(traces, (ends[0], max(ends[1], ends[0])), whole=series.whole)
        titled(curve, title, self._view_told(curve, series))

    def _why_empty(self) -> str:
        """What stands in place of a curve that has no point."""
        if self.state is None:
            if self.ui.started:
                return "It has been started: its first stage appears here."
            return self.unless_reading("Nothing to watch yet. esc, then n begins a run.")
        if self.state["state"] != "done":
            return EMPTY
        if self.history.events:
            return "This stage has no steps: it does not train."
        return "Its events are gone: events.jsonl is empty or missing."

    def _shown_steps(self, first: float, newest: float) -> tuple[float, float]:
        """The steps that the x axis spans: all that are planned while the stage trains, else all
        that there are; zoomed in, the newest part of these."""
        if self._halvings:
            return newest - (newest - first) / 2**self._halvings, newest
        if self.state is not None and self.state["state"] == "training":
            return first, float(max(self.history.total, newest))
        return first, float(newest)

    def _view_told(self, curve: Curve, series: Series) -> str:
        """How the curve is drawn: scale, axis, smoothing, zoom."""
        told = f"y: {curve.scale}  x: {self._axis}"
        if series.whole:
            told += "  counts"
        else:
            told += f"  smooth {curve.smoothing:g}"
        if self._halvings:
            told += f"  zoom {2**self._halvings}×"
        return told

    def _to_axis(self, history: History) -> Callable[[Columns], Columns]:
        """Columns with their x as the chosen axis has it."""
        start = 0.0
        by: Series | None = None
        if self._axis == "time":
            by = history.steps.get("t")
            start = history.start.get("t", 0)
        elif self._axis == "tokens":
            by = history.steps.get("tokens")

        def at(series: Series, x: float) -> float:
            found = series.at(x)
            if found is not None:
                return found - start
            return math.nan

        def place(columns: Columns) -> Columns:
            if by is None:
                return columns
            return Columns(
                [at(by, x) for x in columns.x],
                columns.low,
                columns.high,
                columns.mean,
                [at(by, x) for x in columns.gaps],
            )

        return place

    def _tiles(self, metric: str) -> Content:
        """The newest numbers, each with its course in a few blocks, as many as have room."""
        parts: list[Content] = []
        room = self.query_one("#tiles").size.width - 2
        blocks = 4
        if room > 90:
            blocks = 6
        for name in self._names():
            if name == metric:
                continue
            part = self._tile(name, blocks)
            if part.cell_length > room:
                break
            room -= part.cell_length
            parts.append(part)
        row = line(" ", *parts)
        ended = self.ended_line()
        if ended is not None:
            return lines([ended, row])
        return row

    def _tile(self, name: str, blocks: int) -> Content:
        value = self.history.value(name)
        shown = number(value)
        if name == "memory_bytes" and value is not None:
            shown = f"{value / 1e9:.1f} GB"
        course = spark(self.history.steps[name].columns(64).mean, blocks)
        return line(
            (f"{SHORT.get(name, name.replace('_', ' '))} ", "$muted"),
            (shown, "bold"),
            " ",
            (course, "$primary"),
            "  ",
        )

    def _show_sample(self, samples: list[tuple[int, int]]) -> None:
        box = self.query_one("#sample")
        text = self.query_one("#sample-text", SafeText)
        answers, where, at = self._answers(samples)
        if not answers:
            titled(box, "samples")
            text.show(content(self._why_no_samples(), "$muted"))
            return
        chosen = answers[self._prompt % len(answers)]
        keys = "{ } prompt"
        if samples:
            keys += f"  [ ] {at + 1} of {len(samples)}"
        titled(box, f"{where} · {cell(str(chosen.get('prompt', '')), 60).strip()}", keys)
        text.show(content(str(chosen.get("answer", ""))))

    def _why_no_samples(self) -> str:
        if self.folder is None or gives(self.folder.name) == "policy":
            return (
                "The model's answers to the fixed prompts appear here: at the stage's end, and every "
                "sample_every steps where the recipe says so."
            )
        return f"{self.folder.name} makes no model that writes: it answers no prompts."

    def _answers(self, samples: list[tuple[int, int]]) -> tuple[list[dict[str, Any]], str, int]:
        """(the answers that are shown, of when they are, their number among the samples)."""
        if self.folder is None:
            return [], "", 0
        if samples:
            at = max(len(samples) - 1 - self._back, 0)
            step, offset = samples[at]
            record = texts_at(self.folder.samples, offset) or {}
            where = f"step {step:,}"
        else:
            at = 0
            record = self.folder.done_record() or {}
            where = "at the end"
        answers = record.get("answers")
        if not isinstance(answers, list):
            return [], where, at
        return [answer for answer in answers if isinstance(answer, dict)], where, at

    def _show_notes(self, notes: list[tuple[float, int | None, str]]) -> None:
        start = self.history.start.get("t", 0)
        rows = []
        for at, step, text in reversed(notes):
            since = ""
            if isinstance(start, (int, float)):
                since = f"{duration(max(at - start, 0)):>6} "
            where = ""
            if step is not None:
                where = f"@{step} "
            rows.append(line((since, "$muted"), (where, "$muted"), cell(text, 300).rstrip()))
        if not rows:
            rows = [content("Measurements, checkpoints and warnings appear here.", "$muted")]
        self.query_one("#notes-text", SafeText).show(lines(rows))

    # keys

    def action_metric(self, by: int) -> None:
        if self._curve_comes():
            return
        with self.history.lock:
            names = self._names()
        if names:
            at = 0
            if self._metric in names:
                at = names.index(self._metric)
            self._metric = names[(at + by) % len(names)]
            self.show_history()

    def action_scale(self) -> None:
        self._curve_comes()
        for curve in self.query(Curve):
            curve.scale = SCALES[(SCALES.index(curve.scale) + 1) % len(SCALES)]
        self.ui.keep("scale", self.query_one("#curve", Curve).scale)
        self.show_history()

    def action_smoothing(self) -> None:
        self._curve_comes()
        for curve in self.query(Curve):
            curve.smoothing = SMOOTHINGS[(SMOOTHINGS.index(curve.smoothing) + 1) % len(SMOOTHINGS)]
        self.ui.keep("smoothing", self.query_one("#curve", Curve).smoothing)
        self.show_history()

    def action_axis(self) -> None:
        self._curve_comes()
        self._axis = AXES[(AXES.index(self._axis) + 1) % len(AXES)]
        self.show_history()

    def action_zoom(self, by: int) -> None:
        self._curve_comes()
        self._halvings = min(max(self._halvings + by, 0), 8)
        self.show_history()

    def action_sample(self, by: int) -> None:
        if self._samples_come():
            return
        self._back = min(max(self._back - by, 0), max(len(self.history.samples) - 1, 0))
        self.show_history()

    def action_prompt(self, by: int) -> None:
        if self._samples_come():
            return
        self._prompt += by
        self.show_history()

    def _samples_come(self) -> bool:
        """Where there is no room for both, the first key about samples shows them in place of the
        curve; a key about the curve brings that back."""
        if self.query_one("#sample").display:
            return False
        self.add_class("-samples")
        self.call_after_refresh(self.show_history)
        return True

    def _curve_comes(self) -> bool:
        """Whether it was away."""
        if self.query_one("#curve").display:
            return False
        self.remove_class("-samples")
        self.call_after_refresh(self.show_history)
        return True

    def action_checkpoint(self) -> None:
        try:
            asked = self.folder is not None and stage_processes.save(self.folder)
        except OSError as error:
            self.ui.say(f"a checkpoint cannot be asked for: {error.strerror}", bad=True)
            return
        if asked:
            self.ui.say("asked for a checkpoint: it comes after this step, and training goes on")
        else:
            self.ui.say("nothing to save: this stage does not train now")

    def action_overlay(self) -> None:
        """Which runs are laid over this one."""
        if self.folder is None:
            return
        others = self._others_with(self.folder.name)
        if not others:
            self.ui.say("no other run has this stage")
            return
        shown = {Path(run["path"]) for run in others}
        ticked = [path for path in self.ui.ticked_runs if path in shown]

        def take(chosen: tuple[Path, ...] | None) -> None:
            if chosen is not None:
                # those that have no such stage stay ticked
                rest = [path for path in self.ui.ticked_runs if path not in shown]
                self.ui.ticked_runs = (*chosen, *rest)
                self.runs_changed()

        self.app.push_screen(TickRuns(self.folder.name, others, ticked), take)

    def _others_with(self, stage: str) -> list[dict[str, Any]]:
        """The runs other than this one that have a stage."""
        assert self.folder is not None
        here = self.folder.path.parent
        found = []
        for run in self.ui.runs or ():
            if Path(run["path"]) != here and stage in [known["stage"] for known in run["stages"]]:
                found.append(run)
        return found

    def on_stage_news(self, message: StageNews) -> None:
        super().on_stage_news(message)
        if self._overlays.has(message.history) and not self.frozen:
            self.show_history()

    def left(self) -> None:
        super().left()
        self._overlays.follow(None, ())


def _second_metric(names: list[str], metric: str) -> str:
    """The metric of the smaller curve beside this one; empty where there is no other."""
    for name in ("grad_norm", "lr", *names):
        if name in names and name != metric:
            return name
    return ""


def _rank(name: str) -> int:
    if name in PREFERRED:
        return PREFERRED.index(name)
    return len(PREFERRED)


def _average(columns: Columns, weight: float) -> float | None:
    found = [value for value in smooth(columns.mean, weight) if not math.isnan(value)]
    if found:
        return found[-1]
    return None
