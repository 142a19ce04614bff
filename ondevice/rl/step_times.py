"""Where the time of a step goes, in stages that learn from text of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from ondevice.common.clock import ticks

Part = Literal["sampling", "scoring", "rewards"]


class StepTimes:
    """Seconds that a step spends on each part of its rollout: `sampling` completions, `scoring` them
    (log-probabilities and values), waiting for their `rewards`. Rewards that are found while the
    device scores are waited for no longer than they take beyond that. One for each step; the loop
    tells the rest, `update_seconds`."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def of(self, part: Part) -> Iterator[None]:
        """Counts what is done inside as time of this part."""
        began = ticks()
        yield
        self._seconds[part] = self._seconds.get(part, 0.0) + ticks() - began

    def numbers(self) -> dict[str, float]:
        """{"sampling_seconds": …}, for the step's event."""
        return {f"{part}_seconds": seconds for part, seconds in self._seconds.items()}
