"""The training loop: accumulate, clip, schedule, evaluate, log, save, stop. Every stage that trains
uses it.

A step is a pure function of the parameters, the optimizer's state and the step's number: whatever
interrupts the loop, going on from a checkpoint gives the curve of the run that was never
interrupted. Where a stage learns from text of its own, one step is one rollout with all its
updates: checkpoints and stops fall between rollouts.

Chosen: batches are asked for by number, so that a resume skips nothing (transformers' Trainer reads
the data again up to the step). One synchronisation with the device per step: metrics come as sums
and counts and are divided on the host. Updates that are not finite are left out by the trainer, and
ruined weights are gone back from (`runs/recovery.py`).
Left out: callbacks that change a step. What looks on has two moments (`runs/callbacks.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ondevice.common.clock import ticks
from ondevice.common.errors import Interrupted, UserError
from ondevice.config.stages import TrainingConfig
from ondevice.models.load import read_trained
from ondevice.models.model import Model
from ondevice.models.network import supports_packing
from ondevice.models.save import write
from ondevice.models.state_dict import quantised
from ondevice.models.tensor_names import is_block_matrix
from ondevice.runs import checkpoint, events
from ondevice.runs.context import Context
from ondevice.runs.recovery import (
    FACTOR,
    ResultRecord,
    State,
    finite,
    keep_batch,
    measured_checkpoints,
    sound_checkpoints,
)
from ondevice.seam.ops import Loss, Params, sub
from ondevice.seam.protocols import Backend, OptimSettings, Trainer
from ondevice.training.lr_schedule import learning_rate

# after so many steps without a finite gradient the run is beyond mending itself
SKIPPED_IN_A_ROW = 10
IDLE = 3  # so many first steps that teach nothing are no chance
Batches = list[dict[str, np.ndarray]]


class BatchSource(Protocol):
    """Where a stage's batches come from."""

    def batch(self, step: int) -> Batches:
        """The micro-batches of one optimizer step: a pure function of (seed, step)."""
        ...


class EvalBatches(Protocol):
    """Held-out batches, the same ones at every measurement."""

    def eval_batches(self, limit: int) -> Iterable[dict[str, np.ndarray]]: ...


@dataclass(frozen=True)
class StepPlan:
    """One step's updates, each of some micro-batches, and figures that the step's event is to tell."""

    updates: Sequence[Batches]
    numbers: Mapping[str, float | int | None] = field(default_factory=dict)
    tokens: int | None = None  # None: the targets of all updates
    shown: tuple[str, ...] = ("loss",)  # the numbers beside the progress bar


class StepSource(Protocol):
    """What the loop asks for each step's work."""

    def plan_step(self, step: int, params: Callable[[], Params], number: int) -> StepPlan:
        """A pure function of (seed, number) and, where a stage learns from its own text, of the
        parameters. `number` is the step's own but where batches were left out: it says what is
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
    """The feed of a source that does not look at the parameters: one update a step, the next batch
    made meanwhile by a thread. The thread hands over numpy only: one thread owns the backend."""

    def __init__(self, source: BatchSource, steps: int) -> None:
        self.source, self.steps, self.first = source, steps, 0
        self._pool = ThreadPoolExecutor(1)
        self._coming: dict[int, Any] = {}

    def plan_step(self, step: int, params: Callable[[], Params], number: int) -> StepPlan:
        found = self._coming.pop(number, None) or self._pool.submit(
            self.source.batch, number + self.first
        )
        batches = found.result()
        self._coming.clear()  # after going back: what was made ahead of the step that was left
        if step + 1 < self.steps:
            self._coming[number + 1] = self._pool.submit(self.source.batch, number + 1 + self.first)
        return StepPlan([batches])

    def finished(self, step: int) -> str:
        return ""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, kept: Mapping[str, Any]) -> None:
        """A source's batch follows from the step's number alone."""

    def __exit__(self, *raised: object) -> None:
        self._pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class BestMetric:
    """Which measured figure says how good the parameters are."""

    name: str = "loss"
    higher: bool = False

    def than(self, score: float, best: float | None) -> bool:
        if not math.isfinite(score):
            return False
        return best is None or (score > best if self.higher else score < best)


def optim_settings(cfg: TrainingConfig, params: Params) -> OptimSettings:
    if cfg.optimizer == "muon":
        matrices = frozenset(n for n, p in params.items() if is_block_matrix(n, p.shape))
    else:
        matrices = frozenset()
    return OptimSettings(
        optimizer=cfg.optimizer,
        beta1=cfg.beta1,
        beta2=cfg.beta2,
        eps=cfg.eps,
        weight_decay=cfg.weight_decay,
        clip_norm=cfg.clip_norm,
        muon_ratio=cfg.muon_learning_rate / cfg.learning_rate,
        muon_names=frozenset(matrices),
    )


def heldout_metrics(
    loss: Loss, held: EvalBatches, ctx: Context, cfg: TrainingConfig, unit: str = "tokens"
) -> Callable[[Params], dict[str, float]]:
    """Means of the loss's metrics over held-out batches, and how many they were taken over, by the
    name of their `unit`: "tokens" that are targets, "pairs", "completions", "texts"."""
    run = ctx.backend.inference_fn(lambda p, b: loss(ctx.backend.ops, p, b)[1], compile=cfg.compile)

    def measure(params: Params) -> dict[str, float]:
        sums: dict[str, np.ndarray] = {}
        for batch in held.eval_batches(cfg.eval_batches):
            for name, pair in run(params, batch).items():
                sums[name] = sums.get(name, 0.0) + np.array(
                    [float(ctx.backend.numpy(x)) for x in pair]
                )
        means = {name: float(total / max(count, 1.0)) for name, (total, count) in sums.items()}
        counted = sums.get("loss" if unit == "tokens" else "accuracy", np.zeros(2))[1]
        return {"loss": 0.0, **means, unit: int(counted)}

    return measure


def fit(
    model: Model,
    loss: Loss,
    source: BatchSource | StepSource,
    held: EvalBatches | Callable[[Params], Mapping[str, float]],
    ctx: Context,
    cfg: TrainingConfig,
    *,
    sample: Callable[[int, Params], None] | None = None,
    beside: Mapping[str, Model] | None = None,
    better: BestMetric = BestMetric(),
) -> Params:  # noqa: B008
    """Trains for `cfg.steps` steps and returns the parameters. `sample` answers the fixed prompts
    with them.

    `held` measures: held-out batches, or a function of the parameters that returns figures; the one
    that `better` names decides which checkpoint is best. `beside` are models that are trained
    together with `model`, their tensors under `<name>.`. Raises Interrupted once a requested stop
    has been saved, UserError where the run cannot go on.
    """
    measure = held if callable(held) else heldout_metrics(loss, held, ctx, cfg)
    feed: Any = source if hasattr(source, "plan_step") else Prefetcher(source, cfg.steps)
    with feed if isinstance(feed, AbstractContextManager) else nullcontext():
        return _Fit(model, loss, feed, measure, ctx, cfg, sample, beside or {}, better).run()


class _Fit:
    trainer: Trainer
    state: State

    def __init__(
        self,
        model: Model,
        loss: Loss,
        feed: StepSource,
        measure: Callable[[Params], Mapping[str, float]],
        ctx: Context,
        cfg: TrainingConfig,
        sample: Callable[[int, Params], None] | None,
        beside: Mapping[str, Model],
        better: BestMetric,
    ) -> None:
        self.model, self.feed, self.measure, self.ctx, self.cfg, self.sample = (
            model,
            feed,
            measure,
            ctx,
            cfg,
            sample,
        )
        self.loss, self.beside, self.better, self.first_feed = (
            loss,
            beside,
            better,
            feed.state_dict(),
        )
        self.backend: Backend = ctx.backend
        self.suspects: dict[
            int, list[dict[str, np.ndarray]]
        ] = {}  # batches that may have ruined the weights
        self.idle = 0  # steps in a row that taught nothing
        # whether a measurement was held against the one before the first step
        self.compared = False
        self.found = ctx.newest_checkpoint()
        self.trained = {n for n in model.params if model.trains(n)} | {
            f"{part}.{n}" for part, other in beside.items() for n in other.params if other.trains(n)
        }
        packed = quantised(
            {**model.params, **_beside({part: other.params for part, other in beside.items()})}
        )
        if not self.trained or (model.adapter is None and packed):
            raise UserError(
                "quantised weights cannot be trained",
                where=str(model.folder),
                hint="take the folder with whole weights",
            )
        if self.found is not None:
            begun = self.found.record.get("versions", {}).get("backend")
            if begun != ctx.backend.name and not supports_packing(model.cfg):
                raise UserError(
                    f"was begun on {begun}, whose tensors of a {model.cfg.model_type} model are others",
                    where=str(ctx.folder.path),
                    hint=f"go on with --backend {begun}",
                )
        for callback in ctx.callbacks:
            callback.on_train_begin(model, self.found.step if self.found is not None else 0)
        self._load(self.found)
        if broken := self.trainer.not_finite():
            place = self.found.path if self.found is not None else model.folder
            raise UserError(
                f"{broken[0]} holds numbers that are not finite",
                where=str(place),
                hint="take this checkpoint away, then --resume"
                if self.found
                else "take another model",
            )

    def _load(self, found: checkpoint.Checkpoint | None) -> None:
        """State, feed, parameters and optimizer: a checkpoint's, or those of the stage's start."""
        start = found or self.ctx.continued
        if found is None and start is not None:
            self.state = State(
                first=start.record.get("first", 0) + start.step, fingerprint=self.ctx.fingerprint
            )
            params = self._read(start)
        elif found is None:
            self.state = State(fingerprint=self.ctx.fingerprint)
            params = {
                **self.model.params,
                **_beside({part: other.params for part, other in self.beside.items()}),
            }
        else:
            self.state, params = State.of(found.record), self._read(found)
        self.feed.load_state_dict(
            found.record.get("feed", {}) if found is not None else self.first_feed
        )
        own, frozen = (
            {n: p for n, p in params.items() if (n in self.trained) is wanted}
            for wanted in (True, False)
        )
        self.trainer = self.backend.trainer(
            self.loss, own, frozen, optim_settings(self.cfg, own), compile=self.cfg.compile
        )
        if start is not None:
            self.trainer.load_state(start.optimizer)
        if isinstance(self.feed, Prefetcher):
            self.feed.first = self.state.first

    def run(self) -> Params:
        cfg, ctx = self.cfg, self.ctx
        self._go_on()
        self._begin()
        with ctx.progress(cfg.steps, self.state.step) as bar:
            while self.state.step < cfg.steps and not self.state.ended:
                shown, ruined = self._step()
                if ruined or self.state.skipped_in_a_row >= SKIPPED_IN_A_ROW:
                    self._go_back(ruined)
                    continue
                self.state.ended = self.feed.finished(self.state.step)
                bar.update(self.state.step, shown)
                self._after_step(bar.note)
        return self._result()

    def _go_on(self) -> None:
        """Tells where the stage goes on, and puts in order what a process that was killed has left."""
        ctx, state = self.ctx, self.state
        if self.found is not None:
            ctx.events.emit("resume", state.step, checkpoint=self.found.path.name)
            self._changes()
            checkpoint.prune(
                ctx.folder.checkpoints,
                state.step,
                keep=self.cfg.keep,
                best=state.best_saved_step,
                say=ctx.warn,
            )
        elif ctx.resume and any(e.get("event") == "step" for e in events.read(ctx.folder.events)):
            # killed before its first checkpoint: what it told is told again
            ctx.events.emit("resume", 0)

    def _begin(self) -> None:
        """Measures before the first step, so that the end can tell what the stage achieved."""
        if self.found is None:
            # of an attempt that was killed before its first checkpoint
            self.ctx.folder.groups.unlink(missing_ok=True)
            self.state.before = dict(self.measure(self.trainer.params()))
            self.ctx.events.emit("before", 0, **self.state.before)

    def _changes(self) -> None:
        """What a person has changed since the checkpoint: with other settings the stage may go back
        once more.
        """
        state = self.state
        for name, (before, now) in self.ctx.changed.items():
            self.ctx.warn(f"{name} is {now:g} from here on; it was {before:g}", state.step)
            state.changes.append({"step": state.step, "field": name, "before": before, "now": now})
            state.fingerprint[name] = now
        if set(self.ctx.changed) - {"steps"}:
            state.rate_factor, state.rolled_back, state.skipped_in_a_row = 1.0, None, 0

    def _step(self) -> tuple[Mapping[str, float | None], bool]:
        """One step; returns the numbers to show, and whether its update has made the weights not
        finite.
        """
        began, state, lr = (
            ticks(),
            self.state,
            learning_rate(self.state.step, self.cfg) * self.state.rate_factor,
        )
        number = state.number()
        work = self.feed.plan_step(state.step, self.trainer.params, number)
        outs, ruined = [], False
        for batches in work.updates:
            outs.append(self.trainer.step(batches, lr))
            ruined = bool(outs[-1].pop("ruined"))
            if ruined:
                break
        skipped = sum(bool(out.pop("skipped")) for out in outs)
        self._suspect(number, work, nothing=bool(outs) and skipped == len(outs))
        tokens = work.tokens
        if tokens is None:
            tokens = int(
                sum(float(b["weights"].sum()) for batches in work.updates for b in batches)
            )
        seconds = ticks() - began
        state.step += 1
        state.tokens += tokens
        state.measured, state.score, state.sound = None, None, False
        numbers: dict[str, Any] = {
            **_mean(outs),
            **work.numbers,
            "lr": lr,
            "tokens": state.tokens,
            "tokens_per_second": tokens / max(seconds, 1e-9),
            "seconds": seconds,
            "memory_bytes": self.backend.memory().peak,
        }
        self.ctx.events.emit("step", state.step, **numbers)
        if skipped:
            self.ctx.warn("the gradient is not finite: this step changed nothing", state.step)
        if isinstance(
            self.feed, Prefetcher
        ):  # a stage that learns from its own text says by itself why it does not
            self._look(tokens, numbers.get("grad_norm"))
        return {
            name: numbers.get(name, float("nan"))
            for name in (*work.shown, "lr", "tokens_per_second")
        }, ruined

    def _look(self, tokens: int, norm: float | None) -> None:
        """Says at the first steps, and again where it goes on, that nothing is learned."""
        if not tokens:
            why = "no token of their batches is one to learn"
        elif norm == 0:
            why = "the gradient is 0"
        else:
            why = ""
        self.idle = self.idle + 1 if why else 0
        first = self.idle == min(IDLE, self.cfg.steps) and self.state.step <= 10
        if why and (first or self.idle % 100 == 0):
            self.ctx.warn(f"{self.idle} steps in a row taught nothing: {why}", self.state.step)

    def _compare(self, figures: Mapping[str, Any]) -> None:
        """Says at the first measurement that training has not changed the held-out loss by one bit."""
        loss = figures.get("loss")
        if not self.compared and loss and loss == (self.state.before or {}).get("loss"):
            self.ctx.warn(
                "the held-out loss is to the last digit what it was before the first step: nothing has been "
                "learned; is a setting such as the learning rate too small?",
                self.state.step,
            )
        self.compared = True

    def _suspect(self, number: int, work: StepPlan, nothing: bool) -> None:
        """Counts steps without a finite gradient, and holds the last batch before them and the
        first of them.
        """
        state, batches = self.state, [batch for update in work.updates for batch in update]
        if not nothing:
            state.skipped_in_a_row, state.last_update, self.suspects = 0, number, {number: batches}
        else:
            state.skipped_in_a_row += 1
            if state.skipped_in_a_row == 1:
                self.suspects[number] = batches

    def _go_back(self, ruined: bool) -> None:
        """Once: to the newest sound checkpoint, at half the rate, without the batch that ruined the
        weights.

        Raises UserError the second time. The next process goes on from that checkpoint then.
        """
        ctx, left, place = self.ctx, self.state, self.ctx.folder.checkpoints
        broken = self.trainer.not_finite()
        if broken:
            what = f"{broken[0]} is not finite"
        else:
            what = f"the gradient was not finite for {left.skipped_in_a_row} steps in a row"
        target = self._load_sound()
        step, where = (
            (target.step, target.path.name) if target is not None else (0, "the stage's start")
        )
        number = left.culprit(ruined, step)
        batches = self.suspects.get(number)
        if batches is None and isinstance(
            self.feed, Prefetcher
        ):  # a process before this one did that step
            batches = self.feed.source.batch(number + self.feed.first)
        file = keep_batch(ctx.folder.path, number, batches) if batches else None
        kept = f" (kept in {file.relative_to(ctx.folder.path)})" if file is not None else ""
        checkpoint.drop_after(place, step, ctx.warn)
        if left.rolled_back is not None:
            raise UserError(
                f"step {left.step}: {what}, after batch {number}{kept}, and the stage had gone back once "
                f"already; {where} is the newest whose figure is finite",
                where=str(ctx.folder.path),
                hint="--resume with a lower --learning_rate goes on from there; or look at the data",
            )
        now = self.state
        now.left_out, now.rate_factor = [*left.left_out, number], left.rate_factor * FACTOR
        now.before = left.before
        # a person's may be newer than the checkpoint
        now.fingerprint, now.changes = (left.fingerprint, left.changes)
        now.rolled_back = {
            "at": left.step,
            "to": step,
            "tensor": broken[0] if broken else None,
            "batch": number,
        }
        self.suspects = {}
        ctx.events.emit("resume", step, checkpoint=target.path.name if target is not None else None)
        ctx.warn(
            f"step {left.step}: {what}, after batch {number}{kept}. Back to {where}, once, with "
            f"{now.rate_factor:g} times the learning rate and without that batch",
            step,
            tensor=now.rolled_back["tensor"],
            batch=number,
            file=str(file) if file is not None else None,
        )
        self._save(announced=False)

    def _load_sound(self) -> checkpoint.Checkpoint | None:
        """Loads the newest checkpoint whose figure is finite and returns it; None: it is the
        stage's start.
        """
        for target in sound_checkpoints(self.ctx.folder.checkpoints, self.ctx.warn):
            del self.trainer  # its memory
            self._load(target)
            if (
                self.state.measured is not None
                or target.step == 0
                or finite(self.measure(self.trainer.params())[self.better.name]) is not None
            ):
                return target
        del self.trainer
        self._load(None)
        return None

    def _after_step(self, note: Callable[[str], None]) -> None:
        """Measures, samples, saves and stops where it is time; `state.ended` ends the training
        early.
        """
        cfg, state = self.cfg, self.state
        last, stopping = state.step == cfg.steps or bool(state.ended), self.ctx.stop.requested
        saving, asked = last or _due(state.step, cfg.save_every), self.ctx.stop.save_requested()
        # a person's wish to stop or to save changes no measurement, by which a run may end early
        if saving or _due(state.step, cfg.eval_every):
            score = self._evaluate()
            word = "held-out " + self.better.name.replace("_", " ")
            note(f"step {state.step}: {word} {score:.4f}")
            improved = self.better.than(score, state.best_score)
            state.since_best = 0 if improved else state.since_best + 1
            if improved:
                saving, state.best_step, state.best_score = (
                    saving or cfg.take_best,
                    state.step,
                    score,
                )
            # only what is on disk can be the best checkpoint
            if (saving or stopping or asked) and self.better.than(score, state.best_saved_score):
                state.best_saved_step, state.best_saved_score = state.step, score
        if 0 < cfg.patience <= state.since_best and not last:
            state.ended = f"no better held-out {self.better.name} in {cfg.patience} measurements: stopping early"
        if self.sample is not None and _due(state.step, cfg.sample_every):
            self.sample(state.step, self.trainer.params())
        if saving or stopping or asked or state.ended:
            state.sound = not state.skipped_in_a_row and (
                state.measured is None or state.score is not None
            )
            self._save()
        if state.ended:
            self.ctx.warn(state.ended, state.step)
        elif stopping and not last:
            raise Interrupted(f"stopped after step {state.step}, saved")

    def _evaluate(self) -> float:
        """The figure that decides, on held-out data; an event tells all of them, and a checkpoint
        holds them.
        """
        figures = dict(self.measure(self.trainer.params()))
        self.state.measured, self.state.score = figures, finite(figures[self.better.name])
        self.ctx.events.emit("eval", self.state.step, **figures)
        self._compare(figures)
        return float(figures[self.better.name])

    def _save(self, announced: bool = True) -> None:
        state = self.state

        def fill(folder: Any) -> None:
            params = self.trainer.params()
            for part, model in {"model": self.model, **self.beside}.items():
                (folder / part).mkdir()
                if part == "model":
                    own = {n: params[n] for n in model.params}
                else:
                    own = sub(params, f"{part}.")
                write(folder / part, self.backend, model.with_params(own))
            self.trainer.save_state(folder / "optimizer.safetensors")

        record = {
            **state.__dict__,
            "feed": self.feed.state_dict(),
            "spent": self.ctx.spent.mapping(),
            "versions": self.ctx.versions(),
        }
        saved = checkpoint.save(
            self.ctx.folder.checkpoints,
            state.step,
            fill,
            record,
            keep=self.cfg.keep,
            best=state.best_saved_step,
            say=self.ctx.warn,
        )
        if not saved.whole:
            return  # said already; nobody is to go on from it, or to be sent it
        self.ctx.events.emit("checkpoint", state.step, path=saved.path.name)
        if announced:
            for callback in self.ctx.callbacks:
                callback.on_save(saved, last=state.step == self.cfg.steps)

    def _read(self, found: checkpoint.Checkpoint) -> Params:
        read = {
            part: read_trained(found.path / part, model, self.backend)
            for part, model in self.beside.items()
        }
        return {**read_trained(found.model, self.model, self.backend), **_beside(read)}

    def _result(self) -> Params:
        """The parameters that the stage gives; `ctx.taken` tells whose they are and what was
        measured of them.
        """
        state = self.state
        if state.measured is None:  # a record that does not hold it
            self._evaluate()
        self.ctx.taken = self._taken(state.step, state.measured or {})
        if self.cfg.take_best and state.best_saved_step not in (None, state.step):
            params = self._best()
        else:
            params = None
        if self.ctx.taken.value is None:
            self.ctx.warn(
                f"the held-out {self.better.name} of the result is not a number", state.step
            )
        if params is None:
            return self.trainer.params()
        return params

    def _taken(self, step: int, figures: Mapping[str, Any]) -> ResultRecord:
        return ResultRecord(step, figures, self.better.name, self.better.higher, self.state.before)

    def _best(self) -> Params | None:
        """Those of the best checkpoint or, where that is damaged, of the best one left; None: the
        last ones are.
        """
        state, place = self.state, self.ctx.folder.checkpoints
        assert state.best_saved_step is not None
        path = checkpoint.path_at(place, state.best_saved_step)
        reason = checkpoint.find_damage(path)
        if reason is None:
            best = checkpoint.load(path)
            self.ctx.taken = self._taken(best.step, best.record.get("measured") or {})
            self.ctx.warn(
                f"the result is the best checkpoint on held-out data, step {best.step}", state.step
            )
            return self._read(best)
        word = "held-out " + self.better.name.replace("_", " ")
        found = None
        for other in measured_checkpoints(place, self.better.name, state.step):
            score = other.record["measured"][self.better.name]
            assert self.ctx.taken is not None
            if other.step != state.step and self.better.than(score, self.ctx.taken.value):
                found, self.ctx.taken = other, self._taken(other.step, other.record["measured"])
        assert self.ctx.taken is not None
        said = f"{self.ctx.taken.value:.4f}" if self.ctx.taken.value is not None else "not a number"
        self.ctx.warn(
            f"{path.name}, the best on held-out data ({word} {state.best_saved_score:.4f}), is damaged "
            f"({reason}): the result is step {self.ctx.taken.step} ({word} {said})",
            state.step,
        )
        if found is None:
            return None
        return self._read(found)


def _beside(parts: Mapping[str, Params]) -> Params:
    return {f"{part}.{n}": p for part, params in parts.items() for n, p in params.items()}


def _mean(outs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Each figure's mean over a step's updates."""
    names = dict.fromkeys(name for out in outs for name in out)
    return {
        name: sum(out[name] for out in outs if name in out) / sum(name in out for out in outs)
        for name in names
    }


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
