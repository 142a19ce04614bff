"""What a stage gets beside its settings: a folder, a backend, a place for events, what it shares
with the other stages of its run, and how it begins.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ondevice.common.clock import ticks
from ondevice.common.progress import Progress
from ondevice.common.sanitize import to_stderr
from ondevice.config.corpus import CorpusConfig
from ondevice.config.recipe import ExamConfig
from ondevice.config.stages import StageConfig, TrainingConfig
from ondevice.data.context import DataContext, silent
from ondevice.models.model import Model
from ondevice.runs import checkpoint
from ondevice.runs.callbacks import Callback
from ondevice.runs.device_batch import DeviceBatch
from ondevice.runs.disk_pause import DiskPause
from ondevice.runs.events import EventWriter, LineFile
from ondevice.runs.folder import StageFolder, StopRequest
from ondevice.runs.recovery import ResultRecord
from ondevice.runs.run_time import RunTime
from ondevice.seam.group import Group
from ondevice.seam.protocols import Backend


def _apart(before: Any, now: Mapping[str, str]) -> str:
    """What of them differs, in words: "processes (2, now 1)"."""
    if not isinstance(before, Mapping):
        return "versions (it does not say which)"
    alone = {"processes": "1"}  # it is said only where there are several
    before, now = {**alone, **before}, {**alone, **now}
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return ", ".join(f"{n} ({before.get(n, 'none')}, now {now.get(n, 'none')})" for n in names)


def _cpu_seconds() -> float:
    """Of this process, and of those that it has waited for. (os.times alone counts hundredths of a
    second.)
    """
    return time.process_time() + sum(os.times()[2:4])


class ElapsedTime:
    """Seconds on the clock and on processors that a stage has taken, its processes before a resume
    included.
    """

    def __init__(self) -> None:
        self._began, self._cpu = ticks(), _cpu_seconds()
        self._before = {"seconds": 0.0, "cpu_seconds": 0.0}

    def add(self, before: Mapping[str, float]) -> None:
        """What `mapping` told a checkpoint: a resumed stage goes on from there."""
        self._before = {**self._before, **before}

    def leave_out(self, seconds: float) -> None:
        """Seconds in which nothing was done."""
        self._began += seconds

    def mapping(self) -> dict[str, float]:
        now = {"seconds": ticks() - self._began, "cpu_seconds": _cpu_seconds() - self._cpu}
        return {name: round(self._before[name] + value, 3) for name, value in now.items()}


class Exam(Protocol):
    """Measures a finished model; the folder is for the tokens of its documents."""

    def __call__(self, model: Model, backend: Backend, cache: Path, /) -> Mapping[str, Any]: ...

    def to_mapping(self) -> dict[str, Any]:
        """What it asks, for the other processes of a run."""
        ...


@dataclass(frozen=True)
class RunSettings:
    """What a stage shares with the other stages of its run. `corpus` is what `builtin` means;
    `prompts` are asked and `exam`, of `exam_settings`, is taken at a stage's end; `time`:
    how much of the run's time is used, where it has one; `say` tells a person."""

    stop: StopRequest
    _: KW_ONLY
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    prompts: tuple[str, ...] = ()
    exam: Exam | None = None
    exam_settings: ExamConfig | None = None
    time: Callable[[], RunTime | None] = lambda: None
    say: Callable[[str], None] = to_stderr
    pause: DiskPause | None = None
    """Waits where the disk is full; None: nobody does, and the stage ends."""


@dataclass(frozen=True)
class StageStart:
    """How a stage begins. `resume`: from its newest checkpoint, where it has one; `continued`: the
    finished stage's state from which this one goes on; `check` raises UserError where the models
    that it began from have changed since."""

    resume: bool = False
    fingerprint: dict[str, Any] = field(default_factory=dict)
    continued: checkpoint.Checkpoint | None = None
    check: Callable[[], None] = lambda: None
    on_settled: Callable[[StageConfig], None] = lambda cfg: None


@dataclass
class Context:
    """One stage's surroundings while it runs."""

    folder: StageFolder
    backend: Backend
    events: EventWriter
    _: KW_ONLY
    shared: RunSettings
    start: StageStart = field(default_factory=StageStart)
    spent: ElapsedTime = field(default_factory=ElapsedTime)
    changed: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Settings that are other ones than the checkpoint's: what they were, and are."""
    device_batch: DeviceBatch = field(default_factory=DeviceBatch)
    """How many rows the device works on at once; the loop keeps it."""
    callbacks: Sequence[Callback] = ()
    """What looks on while the stage trains."""
    foreseen: str = ""
    """What the stage will take, in a line, until it is told."""
    settled: TrainingConfig | None = None
    """The stage's settings, with a number in place of each `auto`; None: nothing is settled yet."""
    asked: Sequence[str | tuple[str, Sequence[int]]] | None = None
    """The fixed prompts, of those from held-out data (text, ids); None: the run's."""
    taken: ResultRecord | None = None
    """Whose weights the stage's result has, once it is trained."""
    warned: set[str] = field(default_factory=set)
    """What a person was warned of."""
    heard: set[str] = field(default_factory=set)
    """Warnings of other processes that this one has told, and may yet come to itself."""

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def prompts(self) -> Sequence[str | tuple[str, Sequence[int]]]:
        """What the model is asked through training and at its end."""
        if self.asked is None:
            return self.shared.prompts
        return self.asked

    @property
    def group(self) -> Group:
        """The processes that do the stage's work together."""
        return self.backend.group

    @property
    def data(self) -> DataContext:
        """What reading the stage's data needs of this. All processes read the same data: the first
        one says what was not used.
        """
        warn = self.warn if self.group.leader else silent
        return DataContext(self.folder.path, self.shared.corpus, self.tell, warn)

    def newest_checkpoint(self) -> checkpoint.Checkpoint | None:
        """Where to go on from; None at a beginning. A checkpoint that other library versions wrote
        is told of.
        """
        if not self.start.resume:
            return None
        newest = checkpoint.newest(self.folder.checkpoints, self.warn)
        if newest is None:
            return None
        before, now = newest.record.get("versions"), self.versions()
        if before != now:
            message = (
                f"{newest.path.name} was written with other {_apart(before, now)}: the curve goes on, "
                "but not to the last digit"
            )
            if message not in self.warned:  # it is looked for more than once
                self.warn(message)
        return newest

    def versions(self) -> dict[str, str]:
        """What an exact resume needs to be the same."""
        if self.group.several:
            several = {"processes": str(self.group.size)}
        else:
            several = {}
        return {
            "backend": self.backend.name,
            "device": self.backend.device,
            "dtype": self.backend.dtype,
            **self.backend.versions(),
            "machine": platform.machine(),
            **several,
        }

    def wishes(self) -> tuple[bool, bool]:
        """Whether a stop, and whether a checkpoint is asked for: where several processes work, of
        any of them, so that all do the same."""
        stop = self.shared.stop
        stopping, saving = self.group.any(stop.requested, stop.save_requested())
        if stopping:
            stop.request("another process")
        return stopping, saving

    def progress(self, total: int, first: int) -> Progress:
        """Shown by the first of several processes alone, whose stderr a person sees."""
        return Progress(self.name, total, first, beside=self._time_words)

    def _time_words(self) -> str:
        time = self.shared.time()
        return "" if time is None else time.words()

    def tell(self, message: str) -> None:
        """Tells a person, after the stage's name."""
        self.shared.say(f"{self.name}: {message}")

    def tell_foreseen(self) -> None:
        """Tells what the stage will take: once its data are read, which may be of no use."""
        if self.foreseen:
            self.tell(self.foreseen)
        self.foreseen = ""

    def warn(self, message: str, step: int | None = None, **fields: Any) -> None:
        """Tells a person, and an event with further `fields`: not what another process has just been
        the first to say."""
        self.warned.add(message)
        if message in self.heard:
            self.heard.remove(message)
            return
        self.events.emit("warning", step, message=message, **fields)
        self.tell(message)

    def warn_sick(self, message: str, step: int | None = None, **fields: Any) -> None:
        """Warns that the training itself is not well: whoever watches is called."""
        self.warn(message, step, sick=True, **fields)

    def hear_others(self) -> None:
        """From now on warnings of the other processes are told here, but for those that are this
        one's too."""

        def on_said(rank: int, message: str) -> None:
            if message not in self.warned:
                self.warned.add(message)
                self.heard.add(message)
                self.warn(f"{self.group.title(rank)}: {message}")

        self.group.on_said = on_said

    def keep_samples(self, step: int, answers: list[dict[str, str]]) -> None:
        """Long texts go to samples.jsonl; the event says where."""
        with LineFile(self.folder.samples) as file:
            offset = file.append({"step": step, "answers": answers})
        self.events.emit("sample", step, offset=offset)


@dataclass(frozen=True)
class StageResult:
    """What a stage gives: a model, or None where its result lies elsewhere; figures of its own for
    the ladder; models that belong beside it, each a folder of that name; what was rated by whom,
    for the model's card."""

    model: Model | None
    marks: Mapping[str, Any] = field(default_factory=dict)
    beside: Mapping[str, Model] = field(default_factory=dict)
    notes: Sequence[str] = ()
