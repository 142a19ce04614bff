"""`--track tensorboard|trackio|wandb`: what a stage's events say, written by another program's own
writer as training goes on.

A tracker hears each event once it is in `events.jsonl`, so that the file is ahead of it and never
behind: at a resume the file says which steps the tracker has. It goes on with the same run there,
and writes no step twice; TensorBoard's later steps are taken back, as the file's are. What a writer
raises is told once, and training goes on without it.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ondevice.common.clock import clock
from ondevice.common.errors import UserError
from ondevice.common.files import write_file
from ondevice.common.json_files import load_json
from ondevice.common.numbers import is_number
from ondevice.reports.tracker_writers import WRITERS, TrackedStage, TrackerWriter
from ondevice.runs import events
from ondevice.runs.folder import StageFolder

FOLDER = "trackers"  # of a stage
SEEN = 1 << 24  # bytes of the events that are read for the steps that a tracker has
_GROUPS = {"step": "train", "eval": "held-out", "done": "result"}
"""Events with figures → what stands before a figure's name."""
_NOT_FIGURES = ("t", "event", "step", "offset", "groups", "plan", "steps")


class Tracker:
    """Listens to a stage's events (`runs.callbacks.EventListener`). Made before the stage writes its
    first one. `warn` tells a failure, once; `tell` where it writes."""

    def __init__(
        self,
        kind: str,
        folder: StageFolder,
        warn: Callable[[str], None],
        tell: Callable[[str], None],
    ) -> None:
        self.kind, self.folder = kind, folder
        self._warn, self._tell = warn, tell
        self._writer: TrackerWriter | None = None
        self._ended = False  # it failed, or was closed
        self._seen = dict(_highest(folder.events))  # event → the highest step that was written
        self._back = 0  # the step of the last resume, of a writer that can write again

    def on_log(self, event: Mapping[str, Any]) -> None:
        """Writes what the event says. Does not raise."""
        if self._ended:
            return
        try:
            self._write(event)
        except Exception as error:  # whatever it is, and of whatever type: training goes on
            self._fail(error)

    def close(self, *, failed: bool) -> None:
        """The stage has ended. Does not raise."""
        if self._ended:
            return
        self._ended = True
        try:
            if self._writer is not None:
                self._writer.close(failed=failed)
        except Exception as error:
            self._warn(f"{self.kind} did not end well: {_first_line(error)}")

    def _fail(self, error: Exception) -> None:
        self._ended = True  # before it is told: that is an event too
        self._warn(
            f"{self.kind} cannot be written any more ({_first_line(error)}): training goes on without it"
        )

    def _write(self, event: Mapping[str, Any]) -> None:
        kind = str(event.get("event"))
        step = _step(event)
        at = float(event.get("t") or clock())
        if kind == "start" and self._writer is None:
            self._begin(event, step)
        if self._writer is None:
            return
        if kind == "resume":
            self._writer.go_back(at, step)
            if self._writer.rewrites:
                self._back = step
                self._seen = {name: min(last, step) for name, last in self._seen.items()}
        values = _figures(event)
        if values and self._is_new(kind, step):
            self._writer.log(at, step, values)
        if kind == "checkpoint":
            self._writer.flush()

    def _is_new(self, kind: str, step: int) -> bool:
        if kind == "done":
            return True
        if step <= self._seen.get(kind, -1):
            return False
        self._seen[kind] = step
        return True

    def _begin(self, event: Mapping[str, Any], step: int) -> None:
        folder = self.folder.path / FOLDER
        ident = _ident(folder / f"{self.kind}.json")
        config = event.get("config")
        goes_on = step if self._seen else None
        stage = TrackedStage(
            self.folder.path.parent.name,
            self.folder.name,
            ident,
            folder,
            config if isinstance(config, Mapping) else {},
            goes_on,
        )
        self._writer = WRITERS[self.kind](stage)
        self._tell(self._writer.told)


def _ident(file: Path) -> str:
    """The name of the tracker's run: kept beside the stage, so that a resume goes on with it."""
    try:
        if file.is_file():
            known = load_json(file, 1 << 16)
        else:
            known = {}
    except (OSError, ValueError, RecursionError):
        known = {}
    if isinstance(known, dict):
        ident = known.get("id")
    else:
        ident = None
    if isinstance(ident, str) and ident.isalnum() and len(ident) <= 32:
        return ident
    ident = uuid.uuid4().hex[:8]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot be made ({error.strerror})", where=str(file.parent)) from error
    write_file(file, json.dumps({"id": ident}) + "\n")
    return ident


def _highest(file: Path) -> Iterator[tuple[str, int]]:
    """(event, the highest step of one) of what earlier processes of the stage have written."""
    found: dict[str, int] = {}
    for event in events.lines(file, tail=SEEN):
        kind = str(event.get("event"))
        if kind in _GROUPS:
            found[kind] = max(found.get(kind, -1), _step(event))
    yield from found.items()


def _figures(event: Mapping[str, Any]) -> dict[str, float]:
    """What of an event can be drawn: `train/loss`, `held-out/accuracy`, `result/exact_match`."""
    group = _GROUPS.get(str(event.get("event")))
    if group is None:
        return {}
    found = {}
    for name, value in event.items():
        if name in _NOT_FIGURES:
            continue
        if is_number(value):
            found[f"{group}/{name}"] = float(value)
        elif isinstance(value, Mapping):
            inner = value.items()
            prefix = f"{group}/" if name == "marks" else f"{group}/{name}."
            found |= {f"{prefix}{key}": float(one) for key, one in inner if is_number(one)}
    return found


def _step(event: Mapping[str, Any]) -> int:
    step = event.get("step")
    if isinstance(step, int) and not isinstance(step, bool):
        return step
    return 0


def _first_line(error: Exception) -> str:
    text = str(error).strip() or "no word why"
    return f"{type(error).__name__}: {text.splitlines()[0][:200]}"
