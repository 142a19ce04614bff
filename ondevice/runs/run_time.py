"""How much of a run's time is used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ondevice.common.progress import duration


@dataclass(frozen=True)
class RunTime:
    """Seconds of a run's time, and which of its stages is under way."""

    stage: int
    stages: int
    used: float
    seconds: float

    def words(self, further: float = 0.0) -> str:
        """ "stage 3 of 7, 4:10 of 10:00", where so many `further` seconds have passed since."""
        used = duration(self.used + further)
        return f"stage {self.stage} of {self.stages}, {used} of {duration(self.seconds)}"


def run_time_of(event: Mapping[str, Any]) -> RunTime | None:
    """What a stage's first event says of it; None where the run has no time, or the event is not as
    a stage writes it."""
    told = event.get("time")
    if not isinstance(told, Mapping):
        return None
    found = [told.get(name) for name in ("stage", "stages", "used", "seconds")]
    if not all(isinstance(one, int | float) and 0 <= one < 1e9 for one in found):
        return None
    stage, stages, used, seconds = (float(one) for one in found if one is not None)
    return RunTime(int(stage), int(stages), used, seconds)
