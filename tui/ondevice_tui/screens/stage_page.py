"""A screen that follows one stage of the chosen run: its events, its state, the keys that stop and
resume it."""

from __future__ import annotations

from functools import partial
from typing import Any

from rich.cells import cell_len
from textual.content import Content

from ondevice.common.clock import clock
from ondevice.common.errors import UserError
from ondevice.runs.folder import StageFolder
from ondevice_tui import run_status, stage_processes
from ondevice_tui.event_reader import Follower, History, follow
from ondevice_tui.messages import StageNews
from ondevice_tui.run_status import HALTED, MARKS, STALE_S, STYLES
from ondevice_tui.screens.page import Page
from ondevice_tui.widgets.safe import cell, line

SHORT = {
    "tokens_per_second": "tok/s",
    "grad_norm": "grad",
    "memory_bytes": "memory",
    "completion_length": "length",
    "clip_fraction": "clipped",
    "zero_spread": "no spread",
}


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
        newest = ""
        training = ""
        for stage in self._stages():
            newest = str(stage["stage"])
            if newest == self.ui.stage:
                return newest
            if stage["state"] == "training" and not training:
                training = newest
        return training or newest

    def _stages(self) -> list[dict[str, Any]]:
        """The states of the chosen run's stages."""
        run = self.ui.run_state
        if not run:
            return []
        found: list[dict[str, Any]] = run["stages"]
        return found

    def entered(self) -> None:
        self.frozen = False
        self.runs_changed()

    def left(self) -> None:
        self.workers.cancel_group(self, "tail")
        self.folder = None

    def runs_changed(self) -> None:
        run = self.ui.run_folder
        name = self.wanted()
        self.state = None
        for stage in self._stages():
            if stage["stage"] == name:
                self.state = stage
                break
        wanted = None
        if run is not None and self.state is not None:
            wanted = StageFolder(run.path / name)
        other = wanted != self.folder
        if other:
            self._follow(wanted)
        if other or not self.frozen:
            self.show_history()

    def _follow(self, folder: StageFolder | None) -> None:
        """Reads the events of another stage from now on, or of none."""
        self.workers.cancel_group(self, "tail")
        self.folder = folder
        self.history = History()
        self.lag = 0
        if folder is not None:
            follower = Follower(folder.events)
            self.history = follower.history
            self.run_worker(partial(follow, self, follower), thread=True, group="tail")
        self.stage_changed()

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

        stage = ""
        if self.folder is not None:
            stage = self.folder.name
        ask_to_stop(self.ui, stage)

    def action_resume(self) -> None:
        run = self.ui.run_folder
        state = (self.state or {}).get("state")
        if run is None or self.folder is None or state not in HALTED:
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
        names = [stage["stage"] for stage in self._stages()]
        if self.folder is not None and self.folder.name in names:
            self.ui.stage = names[(names.index(self.folder.name) + by) % len(names)]
            self.runs_changed()

    def status(self) -> list[str | Content | tuple[str, str]]:
        """The stage's name, state, step, time left."""
        state = self.state
        if state is None or self.folder is None:
            return [self.unless_reading("no stage yet")]
        width = 30
        if self.app.size.width >= 110:
            width = 52
        kind = state["state"]
        word = kind
        style = STYLES[kind]
        if kind == "training":
            word = "running"
        if state.get("waiting"):
            word, style = "paused", STYLES["stopped"]
        parts: list[str | Content | tuple[str, str]] = [
            (self._run_and_stage(width), "bold"),
            "  ",
            (f"{MARKS[kind]} {word}", f"bold {style}"),
            "  ",
        ]
        step = self.history.step
        total = self.history.total
        if step and total:
            parts.append(f"step {step:,}/{total:,} {step / total:.0%}")
        elif step:
            parts.append(f"step {step:,}")
        if kind == "training" and not state.get("waiting"):
            parts.append("  " + run_status.left({**state, "step": step}))
            used = run_status.time_used(state)
            if width < 52:
                used = used.rpartition(", ")[2]
            used = used or self._run_left(width < 52)
            if used:
                parts.append((f"  {used}", "$accent"))
            at = self.history.newest.get(self.history.last_kind, {}).get("t")
            if isinstance(at, (int, float)) and clock() - at > STALE_S:
                parts.append((f"  last event {run_status.ago(at)}", "$warning"))
        if self.lag > 1 << 20:
            parts.append((f"  reading, {self.lag >> 20} MB left", "$muted"))
        if self.frozen:
            parts.append(("  frozen", "bold $warning"))
        return parts

    def _run_left(self, narrow: bool) -> str:
        """What is left of the run after this stage too."""
        told = run_status.run_left(self.ui.run_state or {"stages": ()})
        return told.replace(" left of the run", " run") if narrow else told

    def _run_and_stage(self, width: int) -> str:
        """Run and stage; where there is no room for both, the run's name is cut."""
        assert self.folder is not None
        stage = f" · {self.folder.name}"
        return cell(self.folder.path.parent.name, max(width - cell_len(stage), 8)).rstrip() + stage

    def ended_line(self) -> Content | None:
        """What to say of a stage that is not well."""
        state = self.state
        if state is not None and state.get("waiting"):
            style = STYLES["stopped"]
            paused = f" {MARKS['stopped']} paused until there is room: "
            return line((paused, f"bold {style}"), (state["waiting"], style))
        if state is None or state["state"] not in HALTED:
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
            ("   R resumes   L last lines", "$muted"),
        )
