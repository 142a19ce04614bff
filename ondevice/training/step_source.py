"""What the training loop asks for each step's work, and the source that makes the next batch while
the device works.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ondevice.seam.ops import Params

Batches = list[dict[str, np.ndarray]]


class BatchSource(Protocol):
    """Where a stage's batches come from."""

    def batch(self, step: int) -> Batches:
        """The micro-batches of one optimizer step: a pure function of (seed, step)."""
        ...


@dataclass(frozen=True)
class StepPlan:
    """One step's updates, each of some micro-batches, and figures that the step's event is to tell."""

    updates: Sequence[Batches]
    numbers: Mapping[str, float | int | None] = field(default_factory=dict)
    tokens: int | None = None  # None: the targets of all updates
    shown: tuple[str, ...] = ("loss",)  # the numbers beside the progress bar

    def batches(self) -> Batches:
        """The micro-batches of all updates."""
        found: Batches = []
        for update in self.updates:
            found += update
        return found

    def count_tokens(self) -> int:
        """The tokens that the step learns from."""
        if self.tokens is not None:
            return self.tokens
        return int(sum(float(batch["weights"].sum()) for batch in self.batches()))


class StepSource(Protocol):
    """What the loop asks for each step's work."""

    def plan_step(self, step: int, params: Callable[[], Params], number: int) -> StepPlan:
        """A pure function of (seed, number) and, where a stage learns from its own text, of the
        parameters. `number` is the step's own except where batches were left out: it says what is
        learned from, `step` what is told."""
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
    backend."""

    def __init__(self, source: BatchSource, steps: int) -> None:
        self.source = source
        self.steps = steps
        self.first = 0  # the number of the source's batch that the stage begins with
        self._pool = ThreadPoolExecutor(1)
        self._coming: dict[int, Future[Batches]] = {}

    def plan_step(self, step: int, params: Callable[[], Params], number: int) -> StepPlan:
        found = self._coming.pop(number, None)
        if found is None:
            found = self._make(number)
        batches = found.result()
        self._coming.clear()  # after going back: what was made ahead of the step that was left
        if step + 1 < self.steps:
            self._coming[number + 1] = self._make(number + 1)
        return StepPlan([batches])

    def _make(self, number: int) -> Future[Batches]:
        return self._pool.submit(self.source.batch, number + self.first)

    def finished(self, step: int) -> str:
        return ""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, kept: Mapping[str, Any]) -> None:
        """A source's batch follows from the step's number alone."""

    def __exit__(self, *raised: object) -> None:
        self._pool.shutdown(cancel_futures=True)
