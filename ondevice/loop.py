"""THE training loop: accumulate, clip, schedule, evaluate, log, save, stop. Every stage that trains uses it.

A step is a pure function of the parameters, the optimizer's state and the step's number: whatever interrupts the loop,
going on from a checkpoint gives the curve of the run that was never interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ondevice import checkpoint
from ondevice.backend import Backend, Loss, OptimSettings, Params, Trainer
from ondevice.config.stages import TrainingConfig
from ondevice.context import Context
from ondevice.errors import Interrupted, UserError
from ondevice.models.folder import Model, write_model
from ondevice.models.names import is_block_matrix
from ondevice.runfolder import ticks
from ondevice.schedule import rate

SKIPPED_IN_A_ROW = 10  # after so many steps without a finite gradient the run is beyond mending itself


class Source(Protocol):
    """Where a stage's batches come from."""

    def batch(self, step: int) -> list[dict[str, np.ndarray]]:
        """The micro-batches of one optimizer step: a pure function of (seed, step)."""
        ...


class Held(Protocol):
    """Held-out batches, the same ones at every measurement."""

    def eval_batches(self, limit: int) -> Iterable[dict[str, np.ndarray]]: ...


@dataclass
class State:
    """What a checkpoint keeps beside weights and optimizer."""

    step: int = 0
    tokens: int = 0
    best_step: int | None = None
    best_loss: float | None = None
    since_best: int = 0
    skipped_in_a_row: int = 0
    fingerprint: dict[str, Any] = field(default_factory=dict)


def optim_settings(cfg: TrainingConfig, params: Params) -> OptimSettings:
    matrices = frozenset(n for n, p in params.items() if is_block_matrix(n, p.shape)) if cfg.optimizer == "muon" else ()
    return OptimSettings(optimizer=cfg.optimizer, beta1=cfg.beta1, beta2=cfg.beta2, eps=cfg.eps,
                         weight_decay=cfg.weight_decay, clip_norm=cfg.clip_norm,
                         muon_ratio=cfg.muon_learning_rate / cfg.learning_rate, muon_names=frozenset(matrices))


def fit(model: Model, loss: Loss, source: Source, held: Held, ctx: Context, cfg: TrainingConfig, *,
        sample: Callable[[int, Params], None] | None = None) -> Params:
    """Trains for `cfg.steps` steps and returns the parameters. `sample` answers the fixed prompts with them.

    Raises Interrupted once a requested stop has been saved, UserError where the run cannot go on.
    """
    return _Fit(model, loss, source, held, ctx, cfg, sample).run()


class _Fit:
    def __init__(self, model: Model, loss: Loss, source: Source, held: Held, ctx: Context, cfg: TrainingConfig,
                 sample: Callable[[int, Params], None] | None) -> None:
        self.model, self.source, self.held, self.ctx, self.cfg, self.sample = model, source, held, ctx, cfg, sample
        self.backend: Backend = ctx.backend
        self.state = State(fingerprint=ctx.fingerprint)
        self.found = ctx.newest_checkpoint()
        params = model.params
        if self.found is not None:
            known = {k: v for k, v in self.found.record.items() if k in State.__dataclass_fields__}
            self.state = State(**known)
            params = self.backend.load(self.found.model / "model.safetensors")
        self.trainer: Trainer = self.backend.trainer(loss, params, {}, optim_settings(cfg, params), compile=cfg.compile)
        if self.found is not None:
            self.trainer.load_state(self.found.optimizer)
        self._measure = self.backend.evaluate(lambda p, b: loss(self.backend.ops, p, b)[1], compile=cfg.compile)

    def run(self) -> Params:
        cfg, state, ctx = self.cfg, self.state, self.ctx
        if self.found is not None:
            ctx.events.emit("resume", state.step, checkpoint=self.found.path.name)
        with ctx.progress(cfg.steps, state.step) as bar, ThreadPoolExecutor(1) as ahead:
            coming = ahead.submit(self.source.batch, state.step)
            while state.step < cfg.steps:
                began = ticks()
                batches = coming.result()
                if state.step + 1 < cfg.steps:  # the thread hands over numpy only: one thread owns the backend
                    coming = ahead.submit(self.source.batch, state.step + 1)
                bar.update(state.step, self._step(batches, began))
                if not self._after_step(bar.note):
                    break
        return self._result()

    def _step(self, batches: list[dict[str, np.ndarray]], began: float) -> Mapping[str, float]:
        state, lr = self.state, rate(self.state.step, self.cfg)
        out = self.trainer.step(batches, lr)
        skipped = bool(out.pop("skipped"))
        tokens = int(sum(float(b["weights"].sum()) for b in batches))
        seconds = ticks() - began
        state.step += 1
        state.tokens += tokens
        state.skipped_in_a_row = state.skipped_in_a_row + 1 if skipped else 0
        numbers = {**out, "lr": lr, "tokens": state.tokens, "tokens_per_second": tokens / max(seconds, 1e-9),
                   "seconds": seconds, "memory_bytes": self.backend.memory().peak}
        self.ctx.events.emit("step", state.step, **numbers)
        if skipped:
            self.ctx.warn("the gradient is not finite: this step changed nothing", state.step)
        if state.skipped_in_a_row >= SKIPPED_IN_A_ROW:
            raise UserError(f"the gradient was not finite for {SKIPPED_IN_A_ROW} steps in a row",
                            where=str(self.ctx.folder.path), hint="lower learning_rate, or look at the data")
        return {"loss": numbers.get("loss", float("nan")), "lr": lr, "tokens_per_second": numbers["tokens_per_second"]}

    def _after_step(self, note: Callable[[str], None]) -> bool:
        """Measures, samples, saves and stops where it is time; False ends the training early."""
        cfg, state = self.cfg, self.state
        last, stopping = state.step == cfg.steps, self.ctx.stop.requested
        saving = last or stopping or _due(state.step, cfg.save_every)
        if last or _due(state.step, cfg.eval_every) or (saving and not stopping):
            loss = self.evaluate()
            note(f"step {state.step}: held-out loss {loss:.4f}")
            improved = math.isfinite(loss) and (state.best_loss is None or loss < state.best_loss)
            state.since_best = 0 if improved else state.since_best + 1
            if improved:  # only what is on disk can be the best checkpoint
                saving, state.best_step, state.best_loss = saving or cfg.take_best, state.step, loss
        early = 0 < cfg.patience <= state.since_best and not last
        if self.sample is not None and _due(state.step, cfg.sample_every):
            self.sample(state.step, self.trainer.params())
        if saving or early:
            self._save()
        if stopping and not last:
            raise Interrupted(f"stopped after step {state.step}, saved")
        if early:
            self.ctx.warn(f"no better held-out loss in {cfg.patience} measurements: stopping early", state.step)
        return not early

    def evaluate(self) -> float:
        """Mean loss a token over the held-out batches; an event tells it."""
        params = self.trainer.params()
        total = count = 0.0
        for batch in self.held.eval_batches(self.cfg.eval_batches):
            got, n = self._measure(params, batch)["loss"]
            total, count = total + float(self.backend.numpy(got)), count + float(self.backend.numpy(n))
        loss = total / max(count, 1.0)
        self.ctx.events.emit("eval", self.state.step, loss=loss, tokens=int(count))
        return loss

    def _save(self) -> None:
        state = self.state

        def write(folder: Path) -> None:
            (folder / "model").mkdir()
            write_model(folder / "model", self.backend, self.model.cfg, self.trainer.params(), self.model.tokenizer)
            self.trainer.save_state(folder / "optimizer.safetensors")

        record = {**state.__dict__, "versions": self.ctx.versions()}
        on_disk = {int(p.name[5:]) for p in checkpoint.steps(self.ctx.folder.checkpoints)} | {state.step}
        best = state.best_step if state.best_step in on_disk else None
        saved = checkpoint.save(self.ctx.folder.checkpoints, state.step, write, record, keep=self.cfg.keep, best=best)
        self.ctx.events.emit("checkpoint", state.step, path=saved.path.name)

    def _result(self) -> Params:
        if self.cfg.take_best:
            best = checkpoint.best(self.ctx.folder.checkpoints)
            if best is not None and best.step != self.state.step:
                self.ctx.warn(f"the result is the best checkpoint on held-out data, step {best.step}", self.state.step)
                return self.backend.load(best.model / "model.safetensors")
        return self.trainer.params()


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


