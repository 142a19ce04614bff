"""Our side's surroundings: the backend, the settings of a step's batches, a listener to events."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from job import Job
from meter import Meter

from ondevice.runs.context import Context, RunSettings
from ondevice.runs.events import EventWriter
from ondevice.runs.folder import RunFolder, StopRequest
from ondevice.seam.protocols import Backend
from ondevice.seam.select import load_backend


def batch_settings(rows: int) -> dict[str, Any]:
    """The settings of a source or a stage whose optimizer step has so many rows."""
    return {"batch_size": rows}


def rollout_settings(micro_batch: int | None = None) -> dict[str, Any]:
    """The settings of a stage whose step is a rollout: how many completions it learns from at once;
    None: as many as the machine chooses."""
    return {"micro_batch": micro_batch} if micro_batch else {}


def backend_of(job: Job) -> Backend:
    return load_backend(job.backend, job.device, job.dtype)


class Done(Exception):
    """The last step is measured: what a stage measures after it, the peers do not."""


class Listener(EventWriter):
    """Writes events as always, marks the meter at each step, and ends the stage after the last."""

    def __init__(self, path: Path, meter: Meter) -> None:
        super().__init__(path)
        self.meter, self.before = meter, 0

    def emit(self, event: str, step: int | None = None, **fields: Any) -> None:
        super().emit(event, step, **fields)
        if event != "step":
            return
        self.meter.tokens.append(fields["tokens"] - self.before)
        self.meter.losses.append(fields["loss"])
        self.before = fields["tokens"]
        self.meter.mark()
        if step == self.meter.job.steps:
            raise Done


@contextmanager
def stage_context(meter: Meter, backend: Backend) -> Iterator[Context]:
    """Surroundings of a stage that is left after its last step."""
    with tempfile.TemporaryDirectory() as folder:
        stage = RunFolder(folder).create().stage("bench").create()
        events = Listener(stage.events, meter)
        with suppress(Done):
            yield Context(stage, backend, events, shared=RunSettings(StopRequest()))
        events.close()
