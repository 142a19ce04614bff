"""What a stage's steps change, and what is kept of it: parameters, the optimizer's state, the record
of the loop, the state of what feeds it. It comes from the stage's start or a checkpoint, and goes into
the next one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ondevice.common.errors import UserError
from ondevice.common.numbers import number_or_none
from ondevice.config.stages import TrainingConfig
from ondevice.models.network import supports_packing
from ondevice.runs import checkpoint
from ondevice.runs.context import Context
from ondevice.runs.recovery import State
from ondevice.seam.ops import Loss
from ondevice.seam.protocols import Trainer
from ondevice.training import together
from ondevice.training.joined_models import JoinedModels
from ondevice.training.optimizer_settings import optim_settings
from ondevice.training.rows_at_once import RowsAtOnce
from ondevice.training.step_source import Prefetcher, StepSource


class TrainedState:
    """Call `load` first: `trainer` and `state` are there from then on."""

    trainer: Trainer
    state: State

    def __init__(
        self,
        models: JoinedModels,
        loss: Loss,
        feed: StepSource,
        rows: RowsAtOnce,
        ctx: Context,
        cfg: TrainingConfig,
    ) -> None:
        self.models = models
        self.loss = loss
        self.feed = feed
        self.rows = rows
        self.ctx = ctx
        self.cfg = cfg
        self._first_feed = feed.state_dict()

    def check_backend(self, found: checkpoint.Checkpoint | None) -> None:
        """Raises UserError where the checkpoint to go on from has another backend's tensors."""
        if found is None:
            return
        cfg = self.models.model.cfg
        begun = found.record.get("versions", {}).get("backend")
        if begun != self.ctx.backend.name and not supports_packing(cfg):
            raise UserError(
                f"was begun on {begun}, whose tensors of a {cfg.model_type} model are others",
                where=str(self.ctx.folder.path),
                hint=f"go on with --backend {begun}",
            )

    def check_finite(self, found: checkpoint.Checkpoint | None) -> None:
        """Raises UserError where the weights to begin with hold numbers that are not finite;
        `found`: the checkpoint that they are of.
        """
        broken = self.trainer.not_finite()
        if not broken:
            return
        if found is not None:
            place = found.path
            hint = "take this checkpoint away, then --resume"
        else:
            place = self.models.model.folder
            hint = "take another model"
        raise UserError(
            f"{broken[0]} holds numbers that are not finite", where=str(place), hint=hint
        )

    def load(self, found: checkpoint.Checkpoint | None) -> None:
        """A checkpoint's, or what the stage starts with."""
        start = found or self.ctx.start.continued
        feed_state = self._first_feed
        if start is not None:
            self.models.release()
        if found is not None:
            self.state = State.of(found.record)
            params = together.read(found, self.models, self.ctx.group)
            feed_state = found.record.get("feed", {})
        elif start is not None:
            first = start.record.get("first", 0) + start.step
            self.state = State(first=first, fingerprint=self.ctx.start.fingerprint)
            params = together.read(start, self.models, self.ctx.group)
        else:
            self.state = State(fingerprint=self.ctx.start.fingerprint)
            params = self.models.start()
        self.feed.load_state_dict(feed_state)
        trained = {name: p for name, p in params.items() if name in self.models.trained}
        frozen = {name: p for name, p in params.items() if name not in self.models.trained}
        self.trainer = self.ctx.backend.trainer(
            self.loss,
            trained,
            frozen,
            optim_settings(self.cfg, trained),
            compile=self.cfg.compile,
            take=together.may_take(self.models, start is not None, self.ctx.group),
        )
        if start is not None:
            self.trainer.load_state(start.optimizer)
        if isinstance(self.feed, Prefetcher):
            self.feed.first = self.state.first

    def load_sound(self, measured: Callable[[], float]) -> checkpoint.Checkpoint | None:
        """Loads the newest checkpoint whose figure is finite and returns it; None: it is the
        stage's start. `measured` gives the figure of what is loaded.
        """
        for target in together.sound_checkpoints(self.ctx):
            del self.trainer  # its memory
            self.load(target)
            known = self.state.measured is not None or target.step == 0
            if known or number_or_none(measured()) is not None:
                return target
        del self.trainer
        self.load(None)
        return None

    def save(self, announced: bool = True) -> None:
        """Writes a checkpoint; `announced`: callbacks are told."""
        state = self.state
        if not self.ctx.group.leader:
            together.follow_save(self.ctx.group, self.trainer)
            return

        def fill(folder: Any) -> None:
            self.models.write(folder, self.trainer.params())
            together.save_state(folder, self.ctx.group, self.trainer)

        record = {
            **state.__dict__,
            "feed": self.feed.state_dict(),
            "device_batch": self.rows.record(),
            "spent": self.ctx.spent.mapping(),
            "versions": self.ctx.versions(),
        }
        # a process that goes on from it has the steps before it from the events alone
        self.ctx.events.flush(sync=True)
        saved = checkpoint.save(
            self.ctx.folder.checkpoints,
            state.step,
            fill,
            record,
            keep=self.cfg.keep,
            best=state.best_saved_step,
            say=self.ctx.warn,
        )
        self.ctx.group.call("")
        if not saved.whole:
            return  # said already; nobody is to go on from it, or to be sent it
        self.ctx.events.emit("checkpoint", state.step, path=saved.path.name)
        if announced:
            for callback in self.ctx.callbacks:
                callback.on_save(saved, last=state.step == self.cfg.steps)
