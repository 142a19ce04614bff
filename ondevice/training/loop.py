"""The training loop: accumulate, clip, schedule, evaluate, log, save, stop. Every stage that trains
uses it.

A step is a pure function of the parameters, the optimizer's state and the step's number: whatever
interrupts the loop, going on from a checkpoint gives the curve of the run that was never
interrupted. Where a stage learns from text of its own, one step is one rollout with all its
updates: checkpoints and stops fall between rollouts.

Chosen: batches are asked for by number, so that a resume skips nothing (transformers' Trainer reads
the data again up to the step). One synchronisation with the device per step: metrics come as sums
and counts and are divided on the host. Updates that are not finite are left out by the trainer, and
ruined weights are gone back from (`runs/recovery.py`). What changes and how it comes from a
checkpoint and goes into one: `trained_state.py`.
Left out: callbacks that change a step. What looks on has two moments (`runs/callbacks.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from ondevice.common.clock import ticks
from ondevice.common.errors import Interrupted, UserError
from ondevice.common.numbers import number_or_none
from ondevice.config.stages import TrainingConfig
from ondevice.models.compute_type import cast_once
from ondevice.models.model import Model
from ondevice.models.tables import with_tables
from ondevice.runs import checkpoint, events
from ondevice.runs.context import Context
from ondevice.runs.recovery import State
from ondevice.seam.group import at_once
from ondevice.seam.ops import Loss, Params
from ondevice.seam.protocols import Backend, Trainer
from ondevice.training import together
from ondevice.training.heldout_metrics import LOWEST_LOSS, BestMetric, EvalBatches, heldout_metrics
from ondevice.training.joined_models import JoinedModels
from ondevice.training.lr_schedule import learning_rate
from ondevice.training.no_progress import NoProgress
from ondevice.training.rows_at_once import MEASUREMENT, ROLLOUT, START, RowsAtOnce, of_update
from ondevice.training.stage_result import StageWeights
from ondevice.training.step_source import (
    Batches,
    BatchSource,
    Cut,
    Prefetcher,
    StepPlan,
    StepSource,
    count_targets,
)
from ondevice.training.suspects import Suspects
from ondevice.training.trained_state import TrainedState

# after so many steps without a finite gradient the run is beyond mending itself
SKIPPED_IN_A_ROW = 10


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
    better: BestMetric = LOWEST_LOSS,
    restart: Callable[[], Params] | None = None,
) -> Params:
    """Trains for `cfg.steps` steps and returns the parameters. `sample` answers the fixed prompts
    with them.

    `held` measures: held-out batches, or a function of the parameters that returns figures; the one
    that `better` names decides which checkpoint is best. `beside` are models that are trained
    together with `model`, their tensors under `<name>.`. `restart` loads the parameters of the
    stage's start again, those of `beside` among them: where all weights are trained, the loop then
    takes them out of the models, which have none from then on. Raises Interrupted once a requested
    stop has been saved, UserError where the run cannot go on.
    """
    ctx.tell_foreseen()
    if callable(held):
        measure = held
    else:
        measure = heldout_metrics(model.network, loss, held, ctx, cfg)
    feed: Any = source
    if not hasattr(source, "plan_step"):
        feed = Prefetcher(source, cfg.steps, ctx.device_batch, ctx.group.size)
    with feed if isinstance(feed, AbstractContextManager) else nullcontext():
        return _Fit(
            model, loss, feed, measure, ctx, cfg, sample, beside or {}, better, restart
        ).run()


class _Fit:
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
        restart: Callable[[], Params] | None,
    ) -> None:
        self.model = model
        self.network = model.network
        self.feed = feed
        self.measure = measure
        self.ctx = ctx
        self.cfg = cfg
        self.sample = sample
        self.better = better
        self.backend: Backend = ctx.backend
        self.models = JoinedModels(model, beside, _checked(restart, ctx), ctx.backend)
        self.suspects = Suspects()
        self._sick_end = False  # whether the stage's own source ended it
        self.no_progress = NoProgress(ctx.warn_sick, cfg.steps)
        self.found = together.newest_checkpoint(ctx)
        self.rows = RowsAtOnce(ctx, cfg, model)
        self.rows.load(self.found.record if self.found is not None else {}, self._events())
        self.trained = TrainedState(self.models, loss, feed, self.rows, ctx, cfg)
        self.trained.check_backend(self.found)
        for callback in ctx.callbacks:
            callback.on_train_begin(model, self.found.step if self.found is not None else 0)
        self.trained.load(self.found)
        self.trained.check_finite(self.found)

    @property
    def state(self) -> State:
        return self.trained.state

    @property
    def trainer(self) -> Trainer:
        return self.trained.trainer

    def run(self) -> Params:
        cfg = self.cfg
        self._go_on()
        self._begin()
        with self.ctx.progress(cfg.steps, self.state.step) as bar:
            while self.state.step < cfg.steps and not self.state.ended:
                shown, ruined = self._step()
                if ruined or self.state.skipped_in_a_row >= SKIPPED_IN_A_ROW:
                    self._go_back(ruined)
                    continue
                self.state.ended = self.feed.finished(self.state.step)
                self._sick_end = bool(self.state.ended)
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
        elif ctx.start.resume and any(
            e.get("event") == "step" for e in events.read(ctx.folder.events)
        ):
            # killed before its first checkpoint: what it told is told again
            ctx.events.emit("resume", 0)

    def _events(self) -> Iterator[Mapping[str, Any]]:
        """What earlier processes of this stage have told."""
        if self.ctx.start.resume:
            yield from events.read(self.ctx.folder.events)

    def _begin(self) -> None:
        """Measures before the first step, so that the end can tell what the stage achieved."""
        state = self.state
        if isinstance(self.feed, Prefetcher) and state.step < self.cfg.steps:
            plan = self.feed.plan_step(state.step, self._params_for_use, state.number())
            self.rows.choose(state.step, START, plan)
        if self.found is None:
            # of an attempt that was killed before its first checkpoint
            self.ctx.folder.groups.unlink(missing_ok=True)
            state.before = self._measure()
            self.ctx.events.emit("before", 0, **state.before)

    def _params_for_use(self) -> Params:
        """The parameters as they are, for forwards alone: to be dropped before they change."""
        return cast_once(self.model, self.trainer.params(), self.backend)

    def _measure(self) -> dict[str, float]:
        """What is measured of the parameters as they are."""

        def work() -> dict[str, float]:
            return dict(self.measure(self._params_for_use()))

        self.backend.clear_cache()
        figures = self.rows.attempt(self.state.step, MEASUREMENT, work)
        self.backend.clear_cache()
        return figures

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
            state.rate_factor = 1.0
            state.rolled_back = None
            state.skipped_in_a_row = 0

    def _step(self) -> tuple[Mapping[str, float | None], bool]:
        """One step; returns the numbers to show, and whether its update has made the weights not
        finite.
        """
        began = ticks()
        together.sent(self.ctx.group)  # what was sent between steps is of none
        state = self.state
        lr = learning_rate(state.step, self.cfg) * state.rate_factor
        number = state.number()

        def plan() -> StepPlan:
            return self.feed.plan_step(state.step, self._params_for_use, number)

        work = self.rows.attempt(state.step, ROLLOUT, plan)
        if not isinstance(self.feed, Prefetcher):
            self.backend.clear_cache()  # a rollout's shapes are of no use to an update
        planned = ticks()
        outs, batches, ruined = self._update(work, lr)
        skipped = sum(bool(out.pop("skipped")) for out in outs)
        nothing = bool(outs) and skipped == len(outs)
        self.suspects.note(self.state, number, batches, skipped=nothing)
        tokens = work.tokens
        if tokens is None:
            tokens = int(count_targets(batches))
        now = ticks()
        seconds = now - began
        state.step += 1
        state.tokens += tokens
        self._forget_measurement()
        numbers: dict[str, Any] = {
            **_mean(outs),
            **work.numbers,
            "lr": lr,
            "tokens": state.tokens,
            "tokens_per_second": tokens / max(seconds, 1e-9),
            "seconds": seconds,
            "memory_bytes": self.backend.memory().peak,
            **together.sent(self.ctx.group),
        }
        if not isinstance(self.feed, Prefetcher):
            numbers["update_seconds"] = now - planned
        self.ctx.events.emit("step", state.step, **numbers)
        if skipped:
            self.ctx.warn_sick("the gradient is not finite: this step changed nothing", state.step)
        # a stage that learns from its own text says by itself why it does not
        if isinstance(self.feed, Prefetcher):
            self.no_progress.look_at_step(state.step, tokens, numbers.get("grad_norm"))
        shown = (*work.shown, "lr", "tokens_per_second")
        return {name: numbers.get(name, float("nan")) for name in shown}, ruined

    def _update(self, work: StepPlan, lr: float) -> tuple[list[dict[str, float]], Batches, bool]:
        """The step's updates, up to one that ruins the weights: what the trainer says of each, all
        that was learned from, and whether one did.
        """
        outs = []
        learned: Batches = []
        for number, cut in enumerate(work.updates):
            learned += self._gradient(work, number, cut)
            out = self._apply_gradient(lr)
            outs.append(out)
            if out.pop("ruined"):
                return outs, learned, True
        return outs, learned, False

    def _gradient(self, work: StepPlan, number: int, cut: Cut) -> Batches:
        """Computes the gradient of one update, in micro-batches that fit, and returns these."""
        step = self.state.step
        self.rows.choose(step, of_update(number), work)

        group = self.ctx.group

        def compute() -> Batches:
            size = self.ctx.device_batch.micro_batch
            if group.several:
                size = at_once(size, work.rows, group.size)
            batches = cut(size)
            own = group.share(batches)
            self.trainer.gradient([with_tables(self.network, self.backend.ops, b) for b in own])
            return batches

        return self.rows.attempt(step, of_update(number), compute)

    def _apply_gradient(self, lr: float) -> dict[str, float]:
        """Updates the parameters. Raises UserError where memory runs out: they may have changed in
        part, so that only a checkpoint is sound.
        """
        try:
            return self.trainer.update(lr)
        except Exception as error:
            if not self.backend.out_of_memory(error):
                raise
            raise UserError(
                f"step {self.state.step + 1}: memory ran out while the optimizer changed the weights",
                where=str(self.ctx.folder.path),
                hint="end other programs, or give --adapter lora; --resume goes on from the last "
                "checkpoint",
            ) from error

    def _forget_measurement(self) -> None:
        """The weights have changed: what was measured before is not of these."""
        self.state.measured = None
        self.state.score = None
        self.state.sound = False

    def _go_back(self, ruined: bool) -> None:
        """Once: to the newest sound checkpoint, at half the rate, without the batch that ruined the
        weights.

        Raises UserError the second time. The next process goes on from that checkpoint then.
        """
        ctx = self.ctx
        left = self.state
        broken = self.trainer.not_finite()
        if broken:
            what = f"{broken[0]} is not finite"
        else:
            what = f"the gradient was not finite for {left.skipped_in_a_row} steps in a row"
        target = self.trained.load_sound(lambda: self._measure()[self.better.name])
        step = 0
        where = "the stage's start"
        if target is not None:
            step = target.step
            where = target.path.name
        number = left.culprit(ruined, step)
        file = self.suspects.keep(number, self.feed, ctx)
        what += f", after batch {number}"
        if file is not None:
            what += f" (kept in {file.relative_to(ctx.folder.path)})"
        checkpoint.drop_after(ctx.folder.checkpoints, step, ctx.warn)
        if left.rolled_back is not None:
            raise UserError(
                f"step {left.step}: {what}, and the stage had gone back once "
                f"already; {where} is the newest whose figure is finite",
                where=str(ctx.folder.path),
                hint="--resume with a lower --learning_rate goes on from there; or look at the data",
            )
        tensor = broken[0] if broken else None
        self.state.go_back_from(left, number)
        self.state.rolled_back = {"at": left.step, "to": step, "tensor": tensor, "batch": number}
        self.suspects = Suspects()
        ctx.events.emit("resume", step, checkpoint=target.path.name if target is not None else None)
        ctx.warn_sick(
            f"step {left.step}: {what}. Back to {where}, once, with "
            f"{self.state.rate_factor:g} times the learning rate and without that batch",
            step,
            tensor=tensor,
            batch=number,
            file=str(file) if file is not None else None,
        )
        self.trained.save(announced=False)

    def _after_step(self, note: Callable[[str], None]) -> None:
        """Measures, samples, saves and stops where it is time; `state.ended` ends the training
        early.
        """
        cfg = self.cfg
        state = self.state
        last = state.step == cfg.steps or bool(state.ended)
        stopping, asked = self.ctx.wishes()
        saving = last or _due(state.step, cfg.save_every)
        # neither a save nor a person's wish to stop changes a measurement, by which a run may end
        if last or _due(state.step, cfg.eval_every) or (saving and state.saves_measure):
            score = self._evaluate()
            note(f"step {state.step}: {self.better.words()} {score:.4f}")
            if self._note_score(score) and cfg.take_best:
                saving = True
            # only what is on disk can be the best checkpoint
            if (saving or stopping or asked) and self.better.than(score, state.best_saved_score):
                state.best_saved_step = state.step
                state.best_saved_score = score
        if 0 < cfg.patience <= state.since_best and not last:
            state.ended = f"no better held-out {self.better.name} in {cfg.patience} measurements: stopping early"
        if self.sample is not None and self.ctx.group.leader and _due(state.step, cfg.sample_every):
            self.sample(state.step, self._params_for_use())
        if saving or stopping or asked or state.ended:
            state.sound = not state.skipped_in_a_row and (
                state.measured is None or state.score is not None
            )
            self.trained.save()
        if state.ended:
            if self._sick_end:
                warn = self.ctx.warn_sick
            else:
                warn = self.ctx.warn
            warn(state.ended, state.step)
        elif stopping and not last:
            raise Interrupted(f"stopped after step {state.step}, saved")

    def _note_score(self, score: float) -> bool:
        """Whether the figure that decides is the best so far, which the state then holds."""
        state = self.state
        if not self.better.than(score, state.best_score):
            state.since_best += 1
            return False
        state.since_best = 0
        state.best_step = state.step
        state.best_score = score
        return True

    def _evaluate(self) -> float:
        """The figure that decides, on held-out data; an event tells all of them, and a checkpoint
        holds them.
        """
        figures = self._measure()
        self.state.measured = figures
        self.state.score = number_or_none(figures[self.better.name])
        self.ctx.events.emit("eval", self.state.step, **figures)
        self.no_progress.look_at_figures(self.state.step, figures, self.state.before or {})
        return float(figures[self.better.name])

    def _result(self) -> Params:
        """The parameters that the stage gives."""
        if self.state.measured is None:  # a record that does not hold it
            self._evaluate()
        weights = StageWeights(self.ctx, self.state, self.better, self.models.read)
        params = together.chosen(weights, self.cfg.take_best, self.ctx, self.models)
        if params is None:
            return self.trainer.params()
        return params


def _checked(restart: Callable[[], Params] | None, ctx: Context) -> Callable[[], Params] | None:
    """`restart`, after a look whether the start is still what the stage began from."""
    if restart is None:
        return None

    def again() -> Params:
        ctx.start.check()
        return restart()

    return again


def _mean(outs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Each figure's mean over a step's updates."""
    values: dict[str, list[float]] = {}
    for out in outs:
        for name, value in out.items():
            values.setdefault(name, []).append(value)
    return {name: sum(found) / len(found) for name, found in values.items()}


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
