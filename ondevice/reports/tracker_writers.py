"""The writers of TensorBoard, trackio and Weights & Biases, each behind the same few calls. None is
imported before somebody asks for it.

* `tensorboard`: TensorBoard's own event files, by its package's own writer. It needs no TensorFlow.
* `trackio`: its local database, unless TRACKIO_SPACE_ID or TRACKIO_SERVER_URL say otherwise.
* `wandb`: offline, unless WANDB_MODE says otherwise. `wandb sync` sends it later.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from ondevice.common.distribution import install_hint
from ondevice.common.errors import UserError
from ondevice.common.json_files import to_json

PROJECT = "ondevice"
"""What trackio and Weights & Biases file our runs under."""


@dataclass(frozen=True)
class TrackedStage:
    """What a tracker is told of the stage that it follows. `ident` is of this attempt, and the same
    at each resume; `folder` is the tracker's own; `step`: where a resume goes on, None at the
    beginning."""

    run: str
    stage: str
    ident: str
    folder: Path
    config: Mapping[str, Any]
    step: int | None = None

    @property
    def name(self) -> str:
        return f"{self.run}/{self.stage}"


class TrackerWriter(Protocol):
    """One tracker's run, as it is written. Whatever it raises ends it, never the training."""

    told: str
    """Where it writes, and how a person looks at it, in a line."""
    rewrites: bool
    """Whether values can be written again after `go_back`: TensorBoard's can."""

    def log(self, at: float, step: int, values: Mapping[str, float]) -> None:
        """Values of one moment (`at`: seconds since 1970) after `step` optimizer steps."""
        ...

    def go_back(self, at: float, step: int) -> None:
        """What was written for later steps does not count any more."""
        ...

    def flush(self) -> None:
        """What was written is on the disk, or on its way."""
        ...

    def close(self, *, failed: bool) -> None:
        """No value follows. `failed`: the stage has not come to its end."""
        ...


class TensorBoard:
    """Event files of TensorBoard. What a resume undoes is taken back by a session's start with the
    next step, as TensorFlow's writers do it: TensorBoard then drops what came before with a later
    step."""

    rewrites = True

    def __init__(self, stage: TrackedStage) -> None:
        writers = importlib.import_module("tensorboard.summary.writer.event_file_writer")
        self._events = importlib.import_module("tensorboard.compat.proto.event_pb2")
        self._summary = importlib.import_module("tensorboard.compat.proto.summary_pb2")
        self._tensors = importlib.import_module("tensorboard.compat.proto.tensor_pb2")
        self._types = importlib.import_module("tensorboard.compat.proto.types_pb2")
        folder = stage.folder / "tensorboard"
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = writers.EventFileWriter(str(folder))
        self.told = f"TensorBoard: tensorboard --logdir {stage.folder.parent.parent}"
        if stage.step is None:
            self._text(0.0, "config", to_json(stage.config, indent=1))

    def _text(self, at: float, tag: str, text: str) -> None:
        """A text on TensorBoard's page of texts, as it is and no Markdown."""
        shown = "\n".join(f"    {line}" for line in text.splitlines())
        kind = self._summary.SummaryMetadata.PluginData(plugin_name="text")
        tensor = self._tensors.TensorProto(
            dtype=self._types.DT_STRING,
            string_val=[shown.encode("utf-8", "replace")],
        )
        value = self._summary.Summary.Value(
            tag=tag, metadata=self._summary.SummaryMetadata(plugin_data=kind), tensor=tensor
        )
        summary = self._summary.Summary(value=[value])
        self._writer.add_event(self._events.Event(wall_time=at, step=0, summary=summary))

    def log(self, at: float, step: int, values: Mapping[str, float]) -> None:
        value = self._summary.Summary.Value
        found = [value(tag=name, simple_value=number) for name, number in values.items()]
        summary = self._summary.Summary(value=found)
        self._writer.add_event(self._events.Event(wall_time=at, step=step, summary=summary))

    def go_back(self, at: float, step: int) -> None:
        start = self._events.SessionLog(status=self._events.SessionLog.START)
        self._writer.add_event(self._events.Event(wall_time=at, step=step + 1, session_log=start))

    def flush(self) -> None:
        self._writer.flush()

    def close(self, *, failed: bool) -> None:
        self._writer.close()


class Trackio:
    """A run of trackio's local database."""

    rewrites = False

    def __init__(self, stage: TrackedStage) -> None:
        # what it shows runs with reports its use unless it is told not to
        os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
        self._trackio = importlib.import_module("trackio")
        with _quiet():
            self._run = self._trackio.init(
                project=PROJECT,
                name=f"{stage.name} {stage.ident}",
                group=stage.run,
                config=_plain(stage.config),
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        remote = os.environ.get("TRACKIO_SPACE_ID") or os.environ.get("TRACKIO_SERVER_URL")
        if remote:
            self.told = f"trackio: sent to {remote}, as the environment says"
        else:
            place = importlib.import_module("trackio.utils").TRACKIO_DIR
            self.told = f"trackio: in {place}; trackio show --project {PROJECT}"

    def log(self, at: float, step: int, values: Mapping[str, float]) -> None:
        with _quiet():
            self._run.log(dict(values), step=step)

    def go_back(self, at: float, step: int) -> None:
        """It has no way: what was written stays, and steps that it has are not written again."""

    def flush(self) -> None:
        """It writes by itself."""

    def close(self, *, failed: bool) -> None:
        with _quiet():
            self._trackio.finish()


class Wandb:
    """A run of Weights & Biases."""

    rewrites = False

    def __init__(self, stage: TrackedStage) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        wandb = importlib.import_module("wandb")
        mode = os.environ.get("WANDB_MODE") or "offline"
        stage.folder.mkdir(parents=True, exist_ok=True)
        with _quiet():
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT") or PROJECT,
                id=stage.ident,
                name=stage.name,
                group=stage.run,
                job_type=stage.stage,
                config=_plain(stage.config),
                dir=str(stage.folder),
                mode=mode,
                resume="allow",
                settings=wandb.Settings(
                    console="off",
                    disable_code=True,
                    disable_git=True,
                    silent=True,
                    x_disable_stats=mode == "offline",
                ),
            )
        if mode == "offline":
            self.told = (
                f"Weights & Biases: offline in {stage.folder / 'wandb'}; wandb sync sends it"
            )
        else:
            self.told = f"Weights & Biases: {mode}, as WANDB_MODE says"

    def log(self, at: float, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def go_back(self, at: float, step: int) -> None:
        """It has no way: what was written stays, and steps that it has are not written again."""

    def flush(self) -> None:
        """It writes by itself, in a process of its own."""

    def close(self, *, failed: bool) -> None:
        with _quiet():
            self._run.finish(exit_code=1 if failed else 0)


WRITERS: dict[str, Callable[[TrackedStage], TrackerWriter]] = {
    "tensorboard": TensorBoard,
    "trackio": Trackio,
    "wandb": Wandb,
}


def refuse_missing(kind: str) -> None:
    """Raises UserError where this tracker's package is not installed."""
    if kind in WRITERS and find_spec(kind) is None:
        raise UserError(f"{kind} is not installed", where="track", hint=install_hint(kind))


def _quiet() -> contextlib.AbstractContextManager[Any]:
    """Inside, what is printed goes nowhere: stdout is ours, and may be JSON."""
    return contextlib.redirect_stdout(io.StringIO())


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of simple types: what has another is its JSON text."""
    return {
        name: value
        if isinstance(value, (str, int, float, bool)) or value is None
        else to_json(value)
        for name, value in config.items()
    }
