"""What a checkpoint's record holds beside weights and optimizer, and the way back from weights that
are ruined.

Weights are ruined where an update makes one of them not finite, or where no step's gradient is
finite any more. The stage then goes back by itself, once: to the newest sound checkpoint (or to its
start), with half the learning rate and without the batch that did it. Everything that decides this
follows from the seed and the step, and stands in the record: whatever kills the process on the way,
the next one comes to the same weights.

A checkpoint is sound where its step's gradient was finite and so is its figure. One that a person's
stop saved is not measured: it is when it is gone back to.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ondevice.common import atomic, disk
from ondevice.common.numbers import number_or_none
from ondevice.runs import checkpoint
from ondevice.runs.checkpoint import Checkpoint

FACTOR = 0.5  # of the learning rate, after going back
FOLDER = "ruined"  # in the stage's folder: the batches that were left out


@dataclass
class State:
    """What a checkpoint keeps beside weights and optimizer."""

    step: int = 0
    # the number of the first batch: after those of the stage that this one continues
    first: int = 0
    tokens: int = 0
    best_step: int | None = None
    best_score: float | None = None
    best_saved_step: int | None = None
    best_saved_score: float | None = None
    since_best: int = 0
    skipped_in_a_row: int = 0
    ended: str = ""  # why the stage ended before its last step
    before: dict[str, Any] | None = None  # the held-out figures before the first step
    # the held-out figures of these very weights; None: not measured
    measured: dict[str, Any] | None = None
    score: float | None = None  # the one of them that decides, where it is finite
    sound: bool = False
    # whether a save measures, too: of a stage that an earlier version began
    saves_measure: bool = False
    last_update: int | None = None  # the number of the batch that changed the weights last
    # numbers of batches that are not learned from
    left_out: list[int] = field(default_factory=list)
    rate_factor: float = 1.0
    rolled_back: dict[str, Any] | None = (
        None  # {"at", "to", "tensor", "batch"}, once it has happened
    )
    # {"step", "field", "before", "now"}: a person's
    changes: list[dict[str, Any]] = field(default_factory=list)
    fingerprint: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> State:
        known: dict[str, Any] = {"saves_measure": True}
        for name, value in record.items():
            if name in cls.__dataclass_fields__:
                known[name] = value
        return cls(**known)

    def number(self) -> int:
        """The number of the next step's batch."""
        return batch_number(self.step, self.left_out)

    def culprit(self, applied: bool, saved: int) -> int:
        """The number of the batch to leave out, after going back to step `saved`: the one that
        changed the weights last, or the first whose gradient was not finite, where the weights that
        are gone back to hold that change.

        `applied`: the step that was ruined is the one that was just done.
        """
        first = batch_number(self.step - (1 if applied else self.skipped_in_a_row), self.left_out)
        last = first if applied else self.last_update
        if last is not None and last >= batch_number(saved, self.left_out):
            return last
        return first

    def go_back_from(self, left: State, number: int) -> None:
        """Gives this state, a checkpoint's, what holds from now on: `left` is the state before going
        back, and batch `number` is not learned from again."""
        self.left_out = [*left.left_out, number]
        self.rate_factor = left.rate_factor * FACTOR
        self.before = left.before
        # a person's may be newer than the checkpoint
        self.fingerprint = left.fingerprint
        self.changes = left.changes


@dataclass(frozen=True)
class ResultRecord:
    """Whose weights a stage's result has: the step, all that was measured of them, and the figure
    that decides.
    """

    step: int
    figures: Mapping[str, Any]
    name: str = "loss"
    higher: bool = False  # whether more of it is better
    before: Mapping[str, Any] | None = None  # the same figures before the first step

    @property
    def value(self) -> float | None:
        return number_or_none(self.figures.get(self.name))


def batch_number(step: int, left_out: Iterable[int]) -> int:
    """The number of a step's batch: its own, counted on past those that are left out."""
    number = step
    for gone in sorted(left_out):
        number += gone <= number
    return number


def sound_checkpoints(checkpoints: Path, warn: checkpoint.Say) -> Iterator[Checkpoint]:
    """The whole checkpoints that are sound, the newest first, and that of step 0, which is a
    stage's start.
    """
    for path in reversed(checkpoint.steps(checkpoints)):
        if not checkpoint.is_sound(checkpoint.record_of(path)):
            continue
        reason = checkpoint.find_damage(path)
        if reason is None:
            yield checkpoint.load(path)
        else:
            warn(f"{path.name} is damaged ({reason}); going back one")


def measured_checkpoints(checkpoints: Path, name: str, newest: int) -> list[Checkpoint]:
    """The whole checkpoints up to step `newest` of which the figure `name` was measured, and is
    finite.
    """
    measured = []
    for path in checkpoint.steps(checkpoints):
        record = checkpoint.record_of(path)
        figures = record.get("measured")
        if (
            isinstance(figures, Mapping)
            and number_or_none(figures.get(name)) is not None
            and record["step"] <= newest
        ):
            measured.append(path)
    return [checkpoint.load(path) for path in measured if checkpoint.find_damage(path) is None]


def keep_batch(stage: Path, number: int, batches: Sequence[Mapping[str, Any]]) -> Path:
    """Writes a step's micro-batches to `<stage>/ruined/batch-00000012.npz`, as arrays `0.ids`,
    `0.weights`, `1.ids` …, for a person to look at or to replay. Raises DiskFull where nobody waits for room.
    """
    file = stage / FOLDER / f"batch-{number:08d}.npz"
    buffer = io.BytesIO()
    arrays: Any = {}
    for n, batch in enumerate(batches):
        for name, values in batch.items():
            arrays[f"{n}.{name}"] = np.asarray(values)
    np.savez(buffer, **arrays)

    def write() -> None:
        file.parent.mkdir(exist_ok=True)
        with atomic.aside(file) as new:
            new.write_bytes(buffer.getvalue())
            atomic.sync(new)
            atomic.replace(new, file)

    disk.until_written(file, write)
    return file
