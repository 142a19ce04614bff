"""Train: one stage's curves, numbers, samples and messages, while it runs or long after."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from rich.cells import cell_len
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.widget import Widget

from ondevice.common.clock import clock
from ondevice.common.errors import UserError
from ondevice.common.progress import duration, number
from ondevice.runs.folder import StageFolder
from ondevice_tui import run_status, stage_processes
from ondevice_tui.event_reader import Follower, History, follow, texts_at
from ondevice_tui.messages import StageNews
from ondevice_tui.run_status import MARKS, STALE_S, STYLES
from ondevice_tui.screens.page import Page
from ondevice_tui.series import Columns, smooth, spark
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
SHORT = {
    "tokens_per_second": "tok/s",
    "grad_norm": "grad",
    "memory_bytes": "memory",
    "completion_length": "length",
    "clip_fraction": "clipped",
    "zero_spread": "no spread",
}
AXES = ("step", "time", "tokens")
EMPTY = "no step yet: the stage prepares its data"


class StagePage(Page):
    """A screen that follows one stage of the chosen run. `show_history` is called when there is
    news.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder: StageFolder | None = None
        self.history = History()
        self.state: dict[str, Any] | None = None
        self.frozen = False
        self.lag = 0

    def wanted(self) -> str:
        """The stage to follow: the one that was asked for, else the one that trains, else the
        newest.
        """
        state = self.ui.run_state
        names = [stage["stage"] for stage in state["stages"]] if state else []
        if self.ui.stage in names:
            return self.ui.stage
        if state:
            busy = [stage["stage"] for stage in state["stages"] if stage["state"] == "training"]
        else:
            busy = []
        return (busy or names[-1:] or [""])[0]

    def entered(self) -> None:
        self.frozen = False
        self.runs_changed()

    def left(self) -> None:
        self.workers.cancel_group(self, "tail")
        self.folder = None

    def runs_changed(self) -> None:
        run, name, state = self.ui.run_folder, self.wanted(), self.ui.run_state
        self.state = (
            next((s for s in state["stages"] if s["stage"] == name), None) if state else None
        )
        if run is not None and self.state is not None:
            wanted = StageFolder(run.path / name)
        else:
            wanted = None
        if wanted != self.folder:
            self.workers.cancel_group(self, "tail")
            self.folder, self.history, self.lag = wanted, History(), 0
            if wanted is not None:
                follower = Follower(wanted.events)
                self.history = follower.history
                self.run_worker(partial(follow, self, follower), thread=True, group="tail")
            self.stage_changed()
        self.show_history()

    def on_stage_news(self, message: StageNews) -> None:
        if message.history is self.history:
            self.lag = message.lag
            if not self.frozen:
                self.show_history()

    def stage_changed(self) -> None:
        """Another stage is followed now."""

    def show_history(self) -> None:
        raise NotImplementedError

    def action_freeze(self) -> None:
        self.frozen = not self.frozen
        self.show_history()

    def action_stop(self) -> None:
        from ondevice_tui.screens.confirm import ask_to_stop

        ask_to_stop(self.ui, self.folder.name if self.folder is not None else "")

    def action_resume(self) -> None:
        run = self.ui.run_folder
        if (
            run is None
            or self.folder is None
            or (self.state or {}).get("state") not in ("died", "failed", "stopped")
        ):
            self.ui.say("nothing to resume: this stage is done or trains now")
            return
        try:
            self.ui.start(stage_processes.resume_words(run, self.folder), run.path)
        except UserError as problem:
            self.ui.say(str(problem), bad=True)

    def action_details(self) -> None:
        from ondevice_tui.screens.confirm import show_details

        if self.folder is not None and self.ui.run_folder is not None:
            show_details(self.ui, self.ui.run_folder, self.folder.name)

    def action_other_stage(self, by: int) -> None:
        state = self.ui.run_state
        names = [stage["stage"] for stage in state["stages"]] if state else []
        if self.folder is not None and self.folder.name in names:
            self.ui.stage = names[(names.index(self.folder.name) + by) % len(names)]
            self.runs_changed()

    def status(self) -> list[str | Content | tuple[str, str]]:
        """The stage's name, state, step, time left."""
        state = self.state
        if state is None or self.folder is None:
            return ["no stage yet"]
        kind = state["state"]
        parts: list[str | Content | tuple[str, str]] = [
            (self._run_and_stage(52 if self.app.size.width >= 110 else 30), "bold"),
            "  ",
            (f"{MARKS[kind]} {'running' if kind == 'training' else kind}", f"bold {STYLES[kind]}"),
            "  ",
        ]
        step, total = self.history.step, self.history.total
        if step:
            parts.append(f"step {step:,}" + (f"/{total:,} {step / total:.0%}" if total else ""))
        if kind == "training":
            parts.append("  " + run_status.left({**state, "step": step}))
            at = self.history.newest.get(self.history.last_kind, {}).get("t")
            if isinstance(at, (int, float)) and clock() - at > STALE_S:
                parts.append((f"  last event {run_status.ago(at)}", "$warning"))
        if self.lag > 1 << 20:
            parts.append((f"  reading, {self.lag >> 20} MB left", "$muted"))
        if self.frozen:
            parts.append(("  frozen", "bold $warning"))
        return parts

    def _run_and_stage(self, width: int) -> str:
        """Run and stage; where there is no room for both, the run's name is cut."""
        assert self.folder is not None
        stage = f" · {self.folder.name}"
        return cell(self.folder.path.parent.name, max(width - cell_len(stage), 8)).rstrip() + stage

    def ended_line(self) -> Content | None:
        """What to say of a stage that is not well."""
        state = self.state
        if state is None or state["state"] not in ("died", "failed", "stopped"):
            return None
        told = {
            "died": "the process is gone and left no word",
            "failed": state["message"] or "failed",
            "stopped": state["message"] or "stopped",
        }[state["state"]]
        style = STYLES[state["state"]]
        return line(
            (f" {MARKS[state['state']]} ", f"bold {style}"),
            (told, style),
            ("   R resumes   d last lines", "$muted"),
        )


class TrainScreen(StagePage):
    ABOUT = """\
One stage's curves. The bright line is the moving average of the training values, the dim band their minimum and \
maximum in each column (no spike is hidden), o marks held-out measurements, · another run laid over it, ✗ a value that \
is no number. Below: the newest numbers with their course, and what the model answers to the fixed prompts."""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("tab", "metric(1)", "curve", tooltip="Next curve (shift+tab: the one before)"),
        Binding("shift+tab", "metric(-1)", "curve back", show=False),
        Binding(
            "y", "scale", "y scale", tooltip="y axis: fit (2 to 98 percent), full, logarithmic"
        ),
        Binding(
            "e", "smoothing", "smooth", tooltip="How much the average smooths: 0, 0.6, 0.9, 0.97"
        ),
        Binding("x", "axis", "x axis", tooltip="x axis: steps, seconds, tokens"),
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
        Binding("s", "prompt", "prompt", tooltip="The next prompt among the samples"),
        Binding(
            "o", "overlay", "overlay", tooltip="Lay the same stage of another run over the curve"
        ),
        Binding("L", "details", "log", tooltip="The end of the log"),
        Binding("d", "details", "details", tooltip="The end of the log, messages, settings"),
        Binding(
            "comma",
            "other_stage(-1)",
            "stage",
            key_display=", .",
            tooltip="The stage before; . the next one",
        ),
        Binding("full_stop", "other_stage(1)", "next stage", show=False, key_display="."),
        Binding("space", "freeze", "freeze", tooltip="Hold the view still; training goes on"),
        Binding(
            "C", "checkpoint", "save", tooltip="Save a checkpoint after this step; training goes on"
        ),
        Binding("X", "stop", "stop", tooltip="Ask the stage to finish its step, save and stop"),
        Binding("R", "resume", "resume", tooltip="Go on from the newest checkpoint"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._metric, self._axis, self._halvings, self._back, self._prompt = "", "step", 0, 0, 0
        self._overlay: Follower | None = None
        self._overlay_name = ""

    def body(self) -> Iterable[Widget]:
        with Horizontal(id="train"):
            with Vertical(id="train-left"):
                yield Curve(EMPTY, id="curve", classes="box")
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
            # 0 is one of them
            smoothing = self.ui.remembered.get("smoothing", lambda value: value in SMOOTHINGS)
            curve.smoothing = curve.smoothing if smoothing is None else float(smoothing)
            curve.scale = (
                self.ui.remembered.get("scale", lambda value: value in SCALES) or curve.scale
            )

    def stage_changed(self) -> None:
        self._metric, self._back, self._halvings, self._prompt = "", 0, 0, 0
        self._drop_overlay()

    # what is shown

    def on_resize(self) -> None:
        self.call_after_refresh(self.show_history)

    def show_history(self) -> None:
        self.top(*self.status())
        with self.history.lock:
            names = self._names()
            metric = self._metric if self._metric in names else (names[0] if names else "")
            self._show_curve(self.query_one("#curve", Curve), metric)
            second = next(
                (n for n in ("grad_norm", "lr", *names) if n in names and n != metric), ""
            )
            if self.query_one("#train-right").display:
                self._show_curve(self.query_one("#second", Curve), second)
            self.query_one("#tiles", SafeText).show(self._tiles(metric), layout=False)
            notes = list(self.history.notes)[-60:]
            samples = list(self.history.samples)
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
            started = self.state is not None
            empty = EMPTY if started else "Nothing to watch yet. esc, then n begins a run."
            if not started and self.ui.started:
                empty = "It has been started: its first stage appears here."
            if started and self.state and self.state["state"] == "done":
                if self.history.events:
                    empty = "This stage has no steps: it does not train."
                else:
                    empty = "Its events are gone: events.jsonl is empty or missing."
            curve.show((), (0, 1), empty)
            titled(curve, "curves")
            return
        ended = self.state is None or self.state["state"] != "training"
        first, last = (
            series.span[0],
            float(series.span[1] if ended else max(self.history.total, series.span[1])),
        )
        if self._halvings:
            last = series.span[1]
            first = last - (last - first) / 2**self._halvings
        to_axis = self._to_axis(self.history)
        traces = [Trace(to_axis(series.columns(curve.places, first, last)))]
        title = f"{metric} {number(series.last)}"
        if (
            curve.smoothing and not series.whole
        ):  # of a count that grows, an average is one that was
            title += f"  average {number(_average(traces[0].columns, curve.smoothing))}"
        held = self.history.evals.get(metric)
        other = self._overlay.history.steps.get(metric) if self._overlay is not None else None
        if other is not None and self._overlay is not None:
            with self._overlay.history.lock:
                columns = other.columns(curve.places, first, last)
                columns = Columns(
                    columns.x,
                    columns.low,
                    columns.high,
                    smooth(columns.mean, 0 if series.whole else curve.smoothing),
                    [],
                )
                traces.append(Trace(self._to_axis(self._overlay.history)(columns), "·", "third"))
            title += f"  · {self._overlay_name}"
        if held is not None and len(held):
            traces.append(
                Trace(to_axis(held.columns(curve.places // 2, first, last)), "o", "second")
            )
            title += f"  o held-out {number(held.last)}"
        ends = to_axis(Columns([first, last], [0, 0], [0, 0], [0, 0], [])).x
        curve.show(traces, (ends[0], max(ends[1], ends[0])), whole=series.whole)
        smoothed = "counts" if series.whole else f"smooth {curve.smoothing:g}"
        zoom = f"  zoom {2**self._halvings}×" if self._halvings else ""
        titled(curve, title, f"y: {curve.scale}  x: {self._axis}  {smoothed}{zoom}")

    def _to_axis(self, history: History) -> Any:
        """Columns with their x as the chosen axis has it."""
        if self._axis != "step":
            by = history.steps.get("t" if self._axis == "time" else "tokens")
        else:
            by = None
        start = history.start.get("t", 0) if self._axis == "time" else 0

        def place(columns: Columns) -> Columns:
            if by is None:
                return columns

            def at(x: float) -> float:
                found = by.at(x)
                if found is not None:
                    return found - start
                return math.nan

            return Columns(
                [at(x) for x in columns.x],
                columns.low,
                columns.high,
                columns.mean,
                [at(x) for x in columns.gaps],
            )

        return place

    def _tiles(self, metric: str) -> Content:
        """The newest numbers, each with its course in a few blocks, as many as have room."""
        ended = self.ended_line()
        parts: list[Content] = []
        room = self.query_one("#tiles").size.width - 2
        wide = room > 90
        for name in self._names():
            if name == metric:
                continue
            series = self.history.steps[name]
            value = self.history.value(name)
            if name == "memory_bytes" and value is not None:
                shown = f"{value / 1e9:.1f} GB"
            else:
                shown = number(value)
            course = spark(series.columns(64).mean, 6 if wide else 4)
            part = line(
                (f"{SHORT.get(name, name.replace('_', ' '))} ", "$muted"),
                (shown, "bold"),
                " ",
                (course, "$primary"),
                "  ",
            )
            if part.cell_length > room:
                break
            room -= part.cell_length
            parts.append(part)
        row = line(" ", *parts)
        if ended is not None:
            return lines([ended, row])
        return row

    def _show_sample(self, samples: list[tuple[int, int]]) -> None:
        box, text = self.query_one("#sample"), self.query_one("#sample-text", SafeText)
        answers, where, at = self._answers(samples)
        if not answers:
            titled(box, "samples")
            writes = self.folder is None or run_status.gives(self.folder.name) == "policy"
            text.show(
                content(
                    "The model's answers to the fixed prompts appear here: at the stage's end, and every "
                    "sample_every steps where the recipe says so."
                    if writes
                    else f"{self.folder.name if self.folder else ''} makes no model that writes: it answers no "
                    "prompts.",
                    "$muted",
                )
            )
            return
        chosen = answers[self._prompt % len(answers)]
        newer = f"[ ] {at + 1} of {len(samples)}" if samples else ""
        titled(
            box,
            f"{where} · {cell(str(chosen.get('prompt', '')), 60).strip()}",
            f"s prompt  {newer}".strip(),
        )
        text.show(content(str(chosen.get("answer", ""))))

    def _answers(self, samples: list[tuple[int, int]]) -> tuple[list[dict[str, Any]], str, int]:
        if self.folder is None:
            return [], "", 0
        if samples:
            at = max(len(samples) - 1 - self._back, 0)
            step, offset = samples[at]
            record = texts_at(self.folder.samples, offset) or {}
            where = f"step {step:,}"
        else:
            at, record, where = 0, self.folder.done_record() or {}, "at the end"
        answers = record.get("answers")
        return (
            [a for a in answers if isinstance(a, dict)] if isinstance(answers, list) else [],
            where,
            at,
        )

    def _show_notes(self, notes: list[tuple[float, int | None, str]]) -> None:
        start = self.history.start.get("t", 0)
        rows = [
            line(
                (
                    f"{duration(max(t - start, 0)):>6} " if isinstance(start, (int, float)) else "",
                    "$muted",
                ),
                (f"@{step} " if step is not None else "", "$muted"),
                cell(text, 300).rstrip(),
            )
            for t, step, text in reversed(notes)
        ]
        self.query_one("#notes-text", SafeText).show(
            lines(rows)
            if rows
            else content("Measurements, checkpoints and warnings appear here.", "$muted")
        )

    # keys

    def action_metric(self, by: int) -> None:
        with self.history.lock:
            names = self._names()
        if names:
            at = names.index(self._metric) if self._metric in names else 0
            self._metric = names[(at + by) % len(names)]
            self.show_history()

    def action_scale(self) -> None:
        for curve in self.query(Curve):
            curve.scale = SCALES[(SCALES.index(curve.scale) + 1) % len(SCALES)]
        self.ui.keep("scale", self.query_one("#curve", Curve).scale)
        self.show_history()

    def action_smoothing(self) -> None:
        for curve in self.query(Curve):
            curve.smoothing = SMOOTHINGS[(SMOOTHINGS.index(curve.smoothing) + 1) % len(SMOOTHINGS)]
        self.ui.keep("smoothing", self.query_one("#curve", Curve).smoothing)
        self.show_history()

    def action_axis(self) -> None:
        self._axis = AXES[(AXES.index(self._axis) + 1) % len(AXES)]
        self.show_history()

    def action_zoom(self, by: int) -> None:
        self._halvings = min(max(self._halvings + by, 0), 8)
        self.show_history()

    def action_sample(self, by: int) -> None:
        self._back = min(max(self._back - by, 0), max(len(self.history.samples) - 1, 0))
        self.show_history()

    def action_prompt(self) -> None:
        self._prompt += 1
        self.show_history()

    def action_checkpoint(self) -> None:
        if self.folder is not None and stage_processes.save(self.folder):
            self.ui.say("asked for a checkpoint: it comes after this step, and training goes on")
        else:
            self.ui.say("nothing to save: this stage does not train now")

    def action_overlay(self) -> None:
        """The next run that has this stage; after the last one, none."""
        if self.folder is None:
            return
        here = self.folder.path.parent.name
        others = [
            run
            for run in self.ui.runs or ()
            if run["run"] != here
            and any(stage["stage"] == self.folder.name for stage in run["stages"])
        ]
        names = [run["run"] for run in others]
        at = names.index(self._overlay_name) + 1 if self._overlay_name in names else 0
        self._drop_overlay()
        if at >= len(names):
            self.ui.say("no other run has this stage" if not names else "overlay off")
            self.show_history()
            return
        self._overlay_name = names[at]
        self._overlay = Follower(StageFolder(Path(others[at]["path"]) / self.folder.name).events)
        self.run_worker(partial(follow, self, self._overlay), thread=True, group="overlay")

    def on_stage_news(self, message: StageNews) -> None:
        super().on_stage_news(message)
        if (
            self._overlay is not None
            and message.history is self._overlay.history
            and not self.frozen
        ):
            self.show_history()

    def _drop_overlay(self) -> None:
        self.workers.cancel_group(self, "overlay")
        self._overlay, self._overlay_name = None, ""

    def left(self) -> None:
        super().left()
        self._drop_overlay()


def _rank(name: str) -> int:
    if name in PREFERRED:
        return PREFERRED.index(name)
    return len(PREFERRED)


def _average(columns: Columns, weight: float) -> float | None:
    found = [value for value in smooth(columns.mean, weight) if not math.isnan(value)]
    if found:
        return found[-1]
    return None
