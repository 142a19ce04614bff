"""The batches that may have ruined a model's weights: the last one that changed them, and the first
one after it without a finite gradient. They are held so that the loop can write down the one that it
leaves out when it goes back (`runs/recovery.py` decides which)."""

from __future__ import annotations

from pathlib import Path

from ondevice.runs.context import Context
from ondevice.runs.recovery import State, keep_batch
from ondevice.training.step_source import Batches, Prefetcher, StepSource


class Suspects:
    """Batches by their number."""

    def __init__(self) -> None:
        self._batches: dict[int, Batches] = {}

    def note(self, state: State, number: int, batches: Batches, *, skipped: bool) -> None:
        """After a step with this batch; `skipped`: no update of it had a finite gradient. Counts
        such steps in the state."""
        if not skipped:
            state.skipped_in_a_row = 0
            state.last_update = number
            self._batches = {number: batches}
            return
        state.skipped_in_a_row += 1
        if state.skipped_in_a_row == 1:
            self._batches[number] = batches

    def keep(self, number: int, feed: StepSource, ctx: Context) -> Path | None:
        """Writes the batch of this number into the stage's folder and returns its file; None: the
        batch is not known."""
        batches = self._batches.get(number)
        # a process before this one may have done that step
        if batches is None and isinstance(feed, Prefetcher):
            batches = feed.batches(number, ctx.device_batch.micro_batch)
        if not batches:
            return None
        return keep_batch(ctx.folder.path, number, batches)
