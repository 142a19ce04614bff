"""What the training loop asks for each step's work, and the source that makes the next batch while
the device works.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ondevice.runs.device_batch import DeviceBatch
from ondevice.seam.group import at_once
from ondevice.seam.ops import Params

Batches = list[dict[str, np.ndarray]]
Cut = Callable[[int | None], Batches]
"""One update's rows in batches of so many rows at most, None: in one. The rows, and what their
losses are divided by, are the same however they are cut."""


class BatchSource(Protocol):
    """Where a stage's batches come from."""

    batch_size: int  # rows of one optimizer step

    def batch(self, step: int, micro_batch: int | None = None) -> Batches:
        """One optimizer step in batches of `micro_batch` rows, None: in one: a pure function of
        (seed, step).
        """
        ...


def count_targets(batches: Iterable[Mapping[str, np.ndarray]]) -> float:
    """The tokens that are learned in all these batches."""
    return sum(float(batch["weights"].sum()) for batch in batches)


@dataclass(frozen=True)
class StepPlan:
    """One step's updates, of `rows` rows at most each, and figures that the step's event is to tell."""

    updates: Sequence[Cut]
    rows: int
    numbers: Mapping[str, float | int | None] = field(default_factory=dict)
    tokens: int | None = None  # None: the targets of all updates
    shown: tuple[str, ...] = ("loss",)  # the numbers beside the progress bar
    # all rows, where updates compute some of them: by these a micro-batch is chosen
    every_row: Cut | None = None


class StepSource(Protocol):
    """What the loop asks for each step's work."""

    def plan_step(self, step: int, params: Callable[[], Params], number: int) -> StepPlan:
        """A pure function of (seed, number) and, where a stage learns from its own text, of the
        parameters. `number` is the step's own except where batches were left out: it says what is
        learned from, `step` what is told. Where it raises, it has changed nothing: it can be asked
        again."""
        ...

    def finished(self, step: int) -> str:
        """Looks at what a step gave; a text says why the stage is to end here."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What the next step's work follows from beside parameters and step; a checkpoint holds it."""
        ...

    def load_state_dict(self, kept: Mapping[str, Any]) -> None:
        """Goes on from what `kept` gave."""
        ...


class Prefetcher(AbstractContextManager["Prefetcher"]):
    """The step source of batches that do not follow from the parameters: one update per step, the
    next batch made meanwhile by a thread. The thread hands over numpy only: one thread owns the
    backend. `processes`: how many share a step's rows."""

    def __init__(
        self, source: BatchSource, steps: int, device_batch: DeviceBatch, processes: int = 1
    ) -> None:
        self.source = source
        self.steps = steps
        self.device_batch = device_batch
        self.processes = processes
        self.first = 0  # the number of the source's batch that the stage begins with
        self._pool = ThreadPoolExecutor(1)
        self._coming: dict[tuple[int, int], Future[Batches]] = {}

    def plan_step(self, step: int, params: Callable[[], Params], number: int) -> StepPlan:
        rows = self.source.batch_size

        def fitting(micro_batch: int | None) -> int:
            return at_once(micro_batch, rows, self.processes)

        size = fitting(self.device_batch.micro_batch)
        pending = self._coming.get((number, size))
        if pending is None:
            pending = self._make(number, size)
        batches = pending.result()
        # no others: after going back there is what was made ahead of the step that was left
        self._coming = {(number, size): pending}
        if step + 1 < self.steps and self.device_batch.micro_batch is not None:
            self._coming[number + 1, size] = self._make(number + 1, size)

        def cut(micro_batch: int | None) -> Batches:
            if fitting(micro_batch) == size:
                return batches
            return self.batches(number, fitting(micro_batch))

        return StepPlan([cut], rows)

    def batches(self, number: int, micro_batch: int | None) -> Batches:
        """The batches of the stage's step of that number."""
        return self.source.batch(number + self.first, micro_batch)

    def _make(self, number: int, micro_batch: int) -> Future[Batches]:
        return self._pool.submit(self.batches, number, micro_batch)

    def finished(self, step: int) -> str:
        return ""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, kept: Mapping[str, Any]) -> None:
        """A source's batch follows from the step's number alone."""

    def __exit__(self, *raised: object) -> None:
        self._pool.shutdown(cancel_futures=True)
