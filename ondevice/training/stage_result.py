"""Which weights a stage gives: those of its last step or, with `take_best`, those of its best
checkpoint on held-out data. `ctx.taken` tells whose they are and what was measured of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ondevice.runs import checkpoint
from ondevice.runs.context import Context
from ondevice.runs.recovery import ResultRecord, State, measured_checkpoints
from ondevice.seam.ops import Params
from ondevice.training.heldout_metrics import BestMetric


class StageWeights:
    """`state` is that of the last step, `better` says which figure decides, `read` loads the
    parameters of a checkpoint.
    """

    def __init__(
        self,
        ctx: Context,
        state: State,
        better: BestMetric,
        read: Callable[[checkpoint.Checkpoint], Params],
    ) -> None:
        self.ctx = ctx
        self.state = state
        self.better = better
        self.read = read

    def choose(self, take_best: bool) -> Params | None:
        """The parameters that the stage gives; None: those of its last step."""
        state = self.state
        self.ctx.taken = self._record(state.step, state.measured or {})
        params = None
        if take_best and state.best_saved_step not in (None, state.step):
            params = self._best()
        if self.ctx.taken.value is None:
            self.ctx.warn(
                f"the held-out {self.better.name} of the result is not a number", state.step
            )
        return params

    def _record(self, step: int, figures: Mapping[str, Any]) -> ResultRecord:
        return ResultRecord(step, figures, self.better.name, self.better.higher, self.state.before)

    def _best(self) -> Params | None:
        """Those of the best checkpoint or, where that is damaged, of the best one left; None: the
        last ones are.
        """
        state = self.state
        assert state.best_saved_step is not None
        path = checkpoint.path_at(self.ctx.folder.checkpoints, state.best_saved_step)
        reason = checkpoint.find_damage(path)
        if reason is not None:
            return self._best_left(path.name, reason)
        best = checkpoint.load(path)
        self.ctx.taken = self._record(best.step, best.record.get("measured") or {})
        self.ctx.warn(
            f"the result is the best checkpoint on held-out data, step {best.step}", state.step
        )
        return self.read(best)

    def _best_left(self, damaged: str, reason: str) -> Params | None:
        """The best parameters without those of the best checkpoint, whose name is `damaged`; None:
        the last ones are.
        """
        state = self.state
        taken = self.ctx.taken
        assert taken is not None
        best = None
        for other in measured_checkpoints(
            self.ctx.folder.checkpoints, self.better.name, state.step
        ):
            figures = other.record["measured"]
            if other.step == state.step:
                continue
            if self.better.than(figures[self.better.name], taken.value):
                best = other
                taken = self._record(other.step, figures)
        self.ctx.taken = taken
        words = self.better.words()
        value = f"{taken.value:.4f}" if taken.value is not None else "not a number"
        self.ctx.warn(
            f"{damaged}, the best on held-out data ({words} {state.best_saved_score:.4f}), is damaged "
            f"({reason}): the result is step {taken.step} ({words} {value})",
            state.step,
        )
        if best is None:
            return None
        return self.read(best)
