"""THE training loop: accumulate, clip, schedule, evaluate, log, save, stop. Every stage that trains uses it.

A step is a pure function of the parameters, the optimizer's state and the step's number: whatever interrupts the loop,
going on from a checkpoint gives the curve of the run that was never interrupted. Where a stage learns from text of its
own, one step is one rollout with all its updates: checkpoints and stops fall between rollouts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ondevice import checkpoint
from ondevice.backend import Backend, Loss, OptimSettings, Params, Trainer
from ondevice.config.stages import TrainingConfig
from ondevice.context import Context
from ondevice.errors import Interrupted, UserError
from ondevice.hub_beside import Beside
from ondevice.models.folder import Model, read_trained, write
from ondevice.models.names import is_block_matrix, quantised, sub
from ondevice.models.network import packs
from ondevice.models.snapshot import is_name
from ondevice.runfolder import ticks
from ondevice.schedule import rate

SKIPPED_IN_A_ROW = 10  # after so many steps without a finite gradient the run is beyond mending itself
Batches = list[dict[str, np.ndarray]]


class Source(Protocol):
    """Where a stage's batches come from."""

    def batch(self, step: int) -> Batches:
        """The micro-batches of one optimizer step: a pure function of (seed, step)."""
        ...


class Held(Protocol):
    """Held-out batches, the same ones at every measurement."""

    def eval_batches(self, limit: int) -> Iterable[dict[str, np.ndarray]]: ...


@dataclass(frozen=True)
class Work:
    """One step's updates, each of some micro-batches, and figures that the step's event is to tell."""

    updates: Sequence[Batches]
    numbers: Mapping[str, float | int | None] = field(default_factory=dict)
    tokens: int | None = None  # None: the targets of all updates
    shown: tuple[str, ...] = ("loss",)  # the numbers beside the progress bar


class Feed(Protocol):
    """What the loop asks for each step's work."""

    def work(self, step: int, params: Callable[[], Params]) -> Work:
        """A pure function of (seed, step) and, where a stage learns from its own text, of the parameters."""
        ...

    def finished(self, step: int) -> str:
        """Looks at what a step gave; a text says why the stage is to end here."""
        ...

    def kept(self) -> dict[str, Any]:
        """What the next step's work follows from beside parameters and step; a checkpoint holds it."""
        ...

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Goes on from what `kept` gave."""
        ...


class Ahead(AbstractContextManager["Ahead"]):
    """The feed of a source that does not look at the parameters: one update a step, the next batch made meanwhile by a
    thread. The thread hands over numpy only: one thread owns the backend."""

    def __init__(self, source: Source, steps: int) -> None:
        self.source, self.steps = source, steps
        self._pool = ThreadPoolExecutor(1)
        self._coming: dict[int, Any] = {}

    def work(self, step: int, params: Callable[[], Params]) -> Work:
        found = self._coming.pop(step, None) or self._pool.submit(self.source.batch, step)
        batches = found.result()
        if step + 1 < self.steps:
            self._coming[step + 1] = self._pool.submit(self.source.batch, step + 1)
        return Work([batches])

    def finished(self, step: int) -> str:
        return ""

    def kept(self) -> dict[str, Any]:
        return {}

    def restore(self, kept: Mapping[str, Any]) -> None:
        """A source's batch follows from the step's number alone."""

    def __exit__(self, *raised: object) -> None:
        self._pool.shutdown(cancel_futures=True)


@dataclass
class State:
    """What a checkpoint keeps beside weights and optimizer."""

    step: int = 0
    tokens: int = 0
    best_step: int | None = None
    best_score: float | None = None
    best_saved_step: int | None = None
    best_saved_score: float | None = None
    since_best: int = 0
    skipped_in_a_row: int = 0
    ended: str = ""  # why the stage ended before its last step
    fingerprint: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Better:
    """Which measured figure says how good the parameters are."""

    name: str = "loss"
    higher: bool = False

    def than(self, score: float, best: float | None) -> bool:
        if not math.isfinite(score):
            return False
        return best is None or (score > best if self.higher else score < best)


def optim_settings(cfg: TrainingConfig, params: Params) -> OptimSettings:
    matrices = frozenset(n for n, p in params.items() if is_block_matrix(n, p.shape)) if cfg.optimizer == "muon" else ()
    return OptimSettings(optimizer=cfg.optimizer, beta1=cfg.beta1, beta2=cfg.beta2, eps=cfg.eps,
                         weight_decay=cfg.weight_decay, clip_norm=cfg.clip_norm,
                         muon_ratio=cfg.muon_learning_rate / cfg.learning_rate, muon_names=frozenset(matrices))


def held_out_figures(loss: Loss, held: Held, ctx: Context, cfg: TrainingConfig) -> Callable[[Params], dict[str, float]]:
    """Means of the loss's metrics over held-out batches, and `tokens`, how many targets they were taken over."""
    run = ctx.backend.evaluate(lambda p, b: loss(ctx.backend.ops, p, b)[1], compile=cfg.compile)

    def measure(params: Params) -> dict[str, float]:
        sums: dict[str, np.ndarray] = {}
        for batch in held.eval_batches(cfg.eval_batches):
            for name, pair in run(params, batch).items():
                sums[name] = sums.get(name, 0.0) + np.array([float(ctx.backend.numpy(x)) for x in pair])
        means = {name: float(total / max(count, 1.0)) for name, (total, count) in sums.items()}
        return {"loss": 0.0, **means, "tokens": int(sums["loss"][1]) if sums else 0}
    return measure


def fit(model: Model, loss: Loss, source: Source | Feed, held: Held | Callable[[Params], Mapping[str, float]],
        ctx: Context, cfg: TrainingConfig, *, sample: Callable[[int, Params], None] | None = None,
        beside: Mapping[str, Model] | None = None, better: Better = Better()) -> Params:  # noqa: B008
    """Trains for `cfg.steps` steps and returns the parameters. `sample` answers the fixed prompts with them.

    `held` measures: held-out batches, or a function of the parameters that returns figures; the one that `better` names
    decides which checkpoint is best. `beside` are models that are trained together with `model`, their tensors under
    `<name>.`. Raises Interrupted once a requested stop has been saved, UserError where the run cannot go on.
    """
    measure = held if callable(held) else held_out_figures(loss, held, ctx, cfg)
    feed: Any = source if hasattr(source, "work") else Ahead(source, cfg.steps)
    with feed if isinstance(feed, AbstractContextManager) else nullcontext():
        return _Fit(model, loss, feed, measure, ctx, cfg, sample, beside or {}, better).run()


class _Fit:
    def __init__(self, model: Model, loss: Loss, feed: Feed, measure: Callable[[Params], Mapping[str, float]],
                 ctx: Context, cfg: TrainingConfig, sample: Callable[[int, Params], None] | None,
                 beside: Mapping[str, Model], better: Better) -> None:
        self.model, self.feed, self.measure, self.ctx, self.cfg, self.sample = model, feed, measure, ctx, cfg, sample
        self.beside, self.better = beside, better
        self.backend: Backend = ctx.backend
        self.state = State(fingerprint=ctx.fingerprint)
        self.found = ctx.newest_checkpoint()
        params = {**model.params, **_beside({part: other.params for part, other in beside.items()})}
        trained = {n for n in model.params if model.trains(n)} | {
            f"{part}.{n}" for part, other in beside.items() for n in other.params if other.trains(n)}
        if not trained or (model.adapter is None and quantised(params)):
            raise UserError("quantised weights cannot be trained", where=str(model.folder),
                            hint="take the folder with whole weights")
        if self.found is not None:
            begun = self.found.record.get("versions", {}).get("backend")
            if begun != ctx.backend.name and not packs(model.cfg):
                raise UserError(f"was begun on {begun}, whose tensors of a {model.cfg.model_type} model are others",
                                where=str(ctx.folder.path), hint=f"go on with --backend {begun}")
            known = {k: v for k, v in self.found.record.items() if k in State.__dataclass_fields__}
            self.state = State(**known)
            self.feed.restore(self.found.record.get("feed", {}))
            params = self._read(self.found)
        self.pushes: Beside | None = None
        if cfg.push_every:
            if model.adapter is not None and not is_name(model.adapter.base):
                raise UserError("checkpoints are adapters whose base is a folder of this machine: nobody else has it",
                                where="push_every", hint="take a base by its name on the Hub, or train all weights")
            self.pushes = Beside(ctx.folder, cfg.push_to, cfg.push_every, ctx.warn, self.state.step)
        own, frozen = ({n: p for n, p in params.items() if (n in trained) is wanted} for wanted in (True, False))
        self.trainer: Trainer = self.backend.trainer(loss, own, frozen, optim_settings(cfg, own), compile=cfg.compile)
        if self.found is not None:
            self.trainer.load_state(self.found.optimizer)

    def run(self) -> Params:
        cfg, state, ctx = self.cfg, self.state, self.ctx
        if self.found is not None:
            ctx.events.emit("resume", state.step, checkpoint=self.found.path.name)
        with ctx.progress(cfg.steps, state.step) as bar:
            while state.step < cfg.steps and not state.ended:
                bar.update(state.step + 1, self._step())
                self._after_step(bar.note)
        return self._result()

    def _step(self) -> Mapping[str, float | None]:
        """One step; returns the numbers to show."""
        began, state, lr = ticks(), self.state, rate(self.state.step, self.cfg)
        work = self.feed.work(state.step, self.trainer.params)
        outs = [self.trainer.step(batches, lr) for batches in work.updates]
        skipped = sum(bool(out.pop("skipped")) for out in outs)
        tokens = work.tokens
        if tokens is None:
            tokens = int(sum(float(b["weights"].sum()) for batches in work.updates for b in batches))
        seconds = ticks() - began
        state.step += 1
        state.tokens += tokens
        state.skipped_in_a_row = state.skipped_in_a_row + 1 if outs and skipped == len(outs) else 0
        numbers: dict[str, Any] = {**_mean(outs), **work.numbers, "lr": lr, "tokens": state.tokens,
                                   "tokens_per_second": tokens / max(seconds, 1e-9), "seconds": seconds,
                                   "memory_bytes": self.backend.memory().peak}
        self.ctx.events.emit("step", state.step, **numbers)
        if skipped:
            self.ctx.warn("the gradient is not finite: this step changed nothing", state.step)
        if state.skipped_in_a_row >= SKIPPED_IN_A_ROW:
            raise UserError(f"the gradient was not finite for {SKIPPED_IN_A_ROW} steps in a row",
                            where=str(self.ctx.folder.path), hint="lower learning_rate, or look at the data")
        state.ended = self.feed.finished(state.step)
        return {name: numbers.get(name, float("nan")) for name in (*work.shown, "lr", "tokens_per_second")}

    def _after_step(self, note: Callable[[str], None]) -> None:
        """Measures, samples, saves and stops where it is time; `state.ended` ends the training early."""
        cfg, state = self.cfg, self.state
        last, stopping = state.step == cfg.steps or bool(state.ended), self.ctx.stop.requested
        saving, asked = last or _due(state.step, cfg.save_every), self.ctx.stop.save_requested()
        # a person's wish to stop or to save changes no measurement, by which a run may end early
        if saving or _due(state.step, cfg.eval_every):
            score = self.evaluate()
            word = "held-out " + self.better.name.replace("_", " ")
            note(f"step {state.step}: {word} {score:.4f}")
            improved = self.better.than(score, state.best_score)
            state.since_best = 0 if improved else state.since_best + 1
            if improved:
                saving, state.best_step, state.best_score = saving or cfg.take_best, state.step, score
            # only what is on disk can be the best checkpoint
            if (saving or stopping or asked) and self.better.than(score, state.best_saved_score):
                state.best_saved_step, state.best_saved_score = state.step, score
        if 0 < cfg.patience <= state.since_best and not last:
            state.ended = f"no better held-out {self.better.name} in {cfg.patience} measurements: stopping early"
        if self.sample is not None and _due(state.step, cfg.sample_every):
            self.sample(state.step, self.trainer.params())
        if saving or stopping or asked or state.ended:
            self._save()
        if state.ended:
            self.ctx.warn(state.ended, state.step)
        elif stopping and not last:
            raise Interrupted(f"stopped after step {state.step}, saved")

    def evaluate(self) -> float:
        """The figure that decides, on held-out data; an event tells all of them."""
        figures = dict(self.measure(self.trainer.params()))
        self.ctx.events.emit("eval", self.state.step, **figures)
        return float(figures[self.better.name])

    def _save(self) -> None:
        state = self.state

        def fill(folder: Any) -> None:
            params = self.trainer.params()
            for part, model in {"model": self.model, **self.beside}.items():
                (folder / part).mkdir()
                own = {n: params[n] for n in model.params} if part == "model" else sub(params, f"{part}.")
                write(folder / part, self.backend, model.with_params(own))
            self.trainer.save_state(folder / "optimizer.safetensors")

        record = {**state.__dict__, "feed": self.feed.kept(), "spent": self.ctx.spent.mapping(),
                  "versions": self.ctx.versions()}
        saved = checkpoint.save(self.ctx.folder.checkpoints, state.step, fill, record, keep=self.cfg.keep,
                                best=state.best_saved_step)
        self.ctx.events.emit("checkpoint", state.step, path=saved.path.name)
        if self.pushes is not None:
            self.pushes.offer(saved, last=state.step == self.cfg.steps)

    def _read(self, found: checkpoint.Checkpoint) -> Params:
        read = {part: read_trained(found.path / part, model, self.backend) for part, model in self.beside.items()}
        return {**read_trained(found.model, self.model, self.backend), **_beside(read)}

    def _result(self) -> Params:
        if self.cfg.take_best:
            best = checkpoint.best(self.ctx.folder.checkpoints)
            if best is not None and best.step != self.state.step:
                self.ctx.warn(f"the result is the best checkpoint on held-out data, step {best.step}", self.state.step)
                return self._read(best)
        return self.trainer.params()


def _beside(parts: Mapping[str, Params]) -> Params:
    return {f"{part}.{n}": p for part, params in parts.items() for n, p in params.items()}


def _mean(outs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Each figure's mean over a step's updates."""
    names = dict.fromkeys(name for out in outs for name in out)
    return {name: sum(out[name] for out in outs if name in out) / sum(name in out for out in outs) for name in names}


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
