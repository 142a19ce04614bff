"""What every stage does around its own work: lock, look at what stands there, train, write the
model, take the exam.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ondevice.common import atomic, disk
from ondevice.common.errors import Interrupted, UserError
from ondevice.common.files import whole_folder, write_file
from ondevice.common.power import kept_awake, power_state, power_warning
from ondevice.config.auto import is_auto
from ondevice.config.load import to_mapping
from ondevice.config.preference import GRPOConfig, RaterConfig
from ondevice.config.stages import StageConfig, TrainingConfig
from ondevice.datasets.preference_pairs import COPY as PAIRS
from ondevice.datasets.spec import REJECTED
from ondevice.hub import snapshot
from ondevice.hub.pull import origin
from ondevice.inference.fixed_prompts import answer
from ondevice.models.compute_type import cast_once
from ondevice.models.model import Model
from ondevice.models.save import write
from ondevice.planning.plan import StagePlan
from ondevice.planning.start import plan_at_start
from ondevice.preferences.sqlite_store import FILE as RATINGS
from ondevice.publishing.background import FOLDER as PUSH
from ondevice.publishing.background import BackgroundPusher
from ondevice.publishing.model_card import model_card
from ondevice.reports.tracker_writers import refuse_missing
from ondevice.reports.trackers import FOLDER as TRACKERS
from ondevice.reports.trackers import Tracker
from ondevice.rewards.scorer import refuse_what_cannot_judge
from ondevice.rl.answer_form import BUILTIN
from ondevice.runs import checkpoint
from ondevice.runs.context import Context, RunSettings, StageResult, StageStart
from ondevice.runs.events import EventWriter
from ondevice.runs.folder import RunFolder, StageFolder
from ondevice.runs.place import check_disk, cloud_of, cloud_warning
from ondevice.runs.recovery import FOLDER as RUINED
from ondevice.seam.group import ALONE
from ondevice.seam.protocols import Backend
from ondevice.seam.select import check_shard, load_backend
from ondevice.stages import processes
from ondevice.stages.continued import state_of
from ondevice.stages.fingerprint import (
    changed_rates,
    changed_steps,
    check_start,
    compare,
    complete,
    fingerprint_of,
    goes_on_longer,
    refuse_unfinished,
)
from ondevice.stages.settled import as_recorded
from ondevice.stages.summary import outcome, summary
from ondevice.stages.tuning import result


@dataclass(frozen=True)
class Caller:
    """Who runs a stage. `resume_hint` says how a person goes on after a stop, `restart_hint` how
    one begins anew; `on_ready` is called once nothing stands in the way, `on_settled` with the
    settings once each has its number."""

    resume_hint: str = ""
    restart_hint: str = "give another --out"
    on_ready: Callable[[], None] = lambda: None
    on_settled: Callable[[StageConfig], None] = lambda cfg: None


def run_stage(
    name: str,
    cfg: StageConfig,
    run: RunFolder,
    *,
    shared: RunSettings,
    caller: Caller,
    redo: bool = False,
) -> Path:
    """Runs the stage, or finds it complete; returns what it made: a model's folder, or the ratings.

    Raises UserError: settings out of range, another process trains here, a complete or unfinished
    stage in the way, DiskFull where nobody waits for room. Raises Interrupted once a stop has been
    saved.
    """
    cfg.check()
    refuse_missing(cfg.track)
    folder = run.stage(name)
    redo = redo or folder.redo.is_file()

    def ready() -> _Ready:
        return _ready(name, cfg, folder, shared=shared, caller=caller, redo=redo)

    # before the folder: where it is refused, none is made
    one = disk.until_written(folder.path, ready)
    if not folder.path.exists():
        _refuse_rewards(cfg)
    with folder.locked():
        if shared.pause is not None:
            shared.pause.begin(folder)
        while True:
            group = one.backend.group  # what is left to do at its end the stage does alone
            try:
                made = _attempt(one, folder, shared=shared, caller=caller)
                disk.over()
                return made
            except Exception as error:
                found = disk.as_full(error, folder.path)
                if found is None:
                    raise
                if shared.pause is None and found is error:
                    raise
                full = found.bare()  # what it holds is not kept while it waits
            group.begin_again()
            _wait(full, name, caller)
            # as after a kill: from the newest checkpoint
            redo = folder.redo.is_file()
            cfg = replace(one.cfg, resume=True)
            one = disk.until_written(folder.path, ready)


def _refuse_rewards(cfg: StageConfig) -> None:
    """Raises UserError where a stage names rewards that cannot judge on this machine."""
    if isinstance(cfg, GRPOConfig):
        form = BUILTIN if is_auto(cfg, "answer") else cfg.answer
        refuse_what_cannot_judge(cfg.judges(), cfg.reward_weights, form, cfg.reward_file)
    elif isinstance(cfg, RaterConfig) and cfg.rewards:
        refuse_what_cannot_judge(cfg.rewards, cfg.reward_weights, cfg.answer)


@dataclass(frozen=True)
class _Ready:
    """All that one try of a stage begins with."""

    cfg: StageConfig
    start: StageStart
    backend: Backend
    redo: bool


def _ready(
    name: str,
    cfg: StageConfig,
    folder: StageFolder,
    *,
    shared: RunSettings,
    caller: Caller,
    redo: bool,
) -> _Ready:
    resume = cfg.resume and not redo
    if not redo and (resume or folder.done_record() is not None):
        cfg = as_recorded(cfg, folder)
        cfg.check()
    fingerprint = fingerprint_of(cfg, shared.corpus, folder, resume)
    check = partial(check_start, cfg, fingerprint)
    start = StageStart(resume, fingerprint, state_of(name, cfg), check, caller.on_settled)
    backend = load_backend(cfg.backend, cfg.device, cfg.dtype)
    check_shard(getattr(cfg, "shard", "none"), backend.name, backend.shards)
    return _Ready(cfg, start, backend, redo)


def _wait(full: disk.DiskFull, name: str, caller: Caller) -> None:
    """Returns once it is worth another try. Raises `full` where nobody waits, Interrupted where a
    stop is requested."""
    try:
        disk.wait(full)
    except Interrupted as error:
        raise Interrupted(f"{name}: {error}. {caller.resume_hint}".strip()) from None


def _attempt(one: _Ready, folder: StageFolder, *, shared: RunSettings, caller: Caller) -> Path:
    """One try of the stage, whose lock is held. Raises as `run_stage`, DiskFull where what was full
    is no write that can be done again by itself."""
    cfg, fingerprint = one.cfg, one.start.fingerprint
    if one.redo:
        folder.redo.touch()  # also for the process after this one
        _clear(folder, shared.say)
        folder.redo.unlink(missing_ok=True)
    if goes_on_longer(cfg, folder, fingerprint, caller.restart_hint):
        folder.done.unlink()
    elif complete(folder, fingerprint, cfg.resume, caller.restart_hint):
        shared.say(f"{folder.name}: complete, {result_of(cfg, folder)}")
        return result_of(cfg, folder)
    if not one.start.resume:
        refuse_unfinished(folder, caller.restart_hint)
        _clear(folder, shared.say)
    notes = _look_at_place(folder, shared)
    planned = _plan(cfg, folder, one.backend, shared)
    if planned is not None:
        plan, foreseen = planned
    else:
        plan, foreseen = (None, "")
    disk.over()  # what an attempt before this one has waited for
    shared.stop.begin(folder)
    if shared.pause is not None:
        shared.pause.under_way = True
    with EventWriter(folder.events) as events:
        ctx = Context(
            folder, one.backend, events, shared=shared, start=one.start, foreseen=foreseen
        )
        if isinstance(cfg, TrainingConfig) and cfg.push_every:
            ctx.callbacks = (BackgroundPusher(folder, cfg.push_to, cfg.push_every, ctx.warn),)
        with kept_awake(ctx.tell) if cfg.keep_awake else nullcontext(), _tracked(ctx, cfg):
            return _guarded(ctx, cfg, caller, plan, notes)


@contextmanager
def _tracked(ctx: Context, cfg: StageConfig) -> Iterator[None]:
    """Inside, another program's writer hears the stage's events, where one is asked for."""
    if cfg.track == "none":
        yield
        return
    tracker = Tracker(cfg.track, ctx.folder, ctx.warn, ctx.tell)
    ctx.events.listen(tracker.on_log)
    try:
        yield
    except BaseException:
        tracker.close(failed=True)
        raise
    tracker.close(failed=False)


def _look_at_place(folder: StageFolder, shared: RunSettings) -> list[str]:
    """Once a run: what is to be known of the place where its files lie, of its disk and of this
    machine's power. Raises UserError where work could be lost there."""
    if shared.pause is not None and shared.pause.under_way:
        return []
    notes: list[str] = []
    run = folder.path.parent
    if service := cloud_of(run):
        notes.append(cloud_warning(run, service))
    check_disk(folder.path, notes.append)
    if warning := power_warning(power_state()):
        notes.append(warning)
    return notes


def _plan(
    cfg: StageConfig, folder: StageFolder, backend: Backend, shared: RunSettings
) -> tuple[StagePlan, str] | None:
    """What the stage will take, and the line that says so. Raises UserError where it does not fit."""
    exam = shared.exam_settings if shared.exam is not None else None
    return plan_at_start(cfg, folder, backend, shared.corpus, exam)


def result_of(cfg: StageConfig, folder: StageFolder) -> Path:
    """Where what the stage makes is."""
    if cfg.gives != "ratings":
        return folder.model
    return Path(getattr(cfg, "ratings", "") or folder.path.parent / RATINGS)


def _clear(folder: StageFolder, say: Callable[[str], None]) -> None:
    """Removes what an earlier attempt left; the lock stays, it is held. A link to another disk is
    emptied where it holds checkpoints, and taken away, without what it points to, where it stands
    for a model.

    Raises UserError where something cannot be removed, or is not known to be an attempt's.
    """
    models = (folder.model, folder.path / "value_model")
    if not (folder.events.exists() or folder.done.exists()):  # an attempt begins with an event
        for path in models:
            if path.is_dir() and any(path.iterdir()):
                raise UserError(
                    "holds a model that no attempt of this stage has made",
                    where=str(path),
                    hint="move it away, or give another --out",
                )
    try:
        checkpoint.clear(folder.checkpoints, say)
        for path in (*models, folder.path / PUSH, folder.path / RUINED, folder.path / TRACKERS):
            atomic.remove(path, say)
        for path in (
            folder.done,
            folder.events,
            folder.samples,
            folder.groups,
            folder.settings,
            folder.path / PAIRS,
            folder.path / REJECTED,
        ):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot be removed ({error.strerror})",
            where=str(error.filename or folder.path),
            hint="remove it, or give another --out",
        ) from error


def _guarded(
    ctx: Context,
    cfg: StageConfig,
    caller: Caller,
    plan: StagePlan | None,
    notes: Sequence[str],
) -> Path:
    """The stage's work between the events of its beginning and its end. `notes` are told and
    written down at its start."""
    fingerprint = ctx.start.fingerprint
    events, newest = ctx.events, ctx.newest_checkpoint()
    if newest is not None:
        before = newest.record.get("fingerprint", {})
        ctx.changed = {
            **changed_rates(before, fingerprint),
            **changed_steps(cfg, before, fingerprint, newest.step),
        }
        compare(
            {**before, **{name: now for name, (_, now) in ctx.changed.items()}},
            fingerprint,
            ctx.folder,
            "has a checkpoint",
            caller.restart_hint,
        )
        ctx.spent.add(newest.record.get("spent", {}))
    caller.on_ready()
    events.emit(
        "start",
        newest.step if newest else 0,
        stage=ctx.name,
        steps=_known_steps(cfg),
        config=to_mapping(cfg),
        versions=ctx.versions(),
        plan=None if plan is None else plan.mapping(),
        **_time(ctx),
    )
    if ctx.shared.pause is not None:
        ctx.shared.pause.attach(events, ctx.spent.leave_out)
    for note in notes:
        ctx.warn(note)
    try:
        return _work(ctx, cfg)
    except Interrupted as error:
        _tell_end(ctx, "stopped", str(error))
        raise Interrupted(f"{ctx.name}: {error}. {caller.resume_hint}".strip()) from None
    except BaseException as error:
        if ctx.shared.pause is None or not disk.as_full(error, ctx.folder.path):
            _tell_end(ctx, type(error).__name__, str(error))
        raise
    finally:
        if ctx.shared.pause is not None:
            ctx.shared.pause.detach()


def _tell_end(ctx: Context, reason: str, message: str) -> None:
    """An event of the end, where there is room for one: `holder` says it where there is not."""
    with suppress(disk.DiskFull, Interrupted):
        ctx.events.emit("failed", reason=reason, message=message)


def _time(ctx: Context) -> dict[str, Any]:
    """How much of the run's time is used, where it has one."""
    time = ctx.shared.time()
    if time is None:
        return {}
    return {"time": asdict(time)}


def _known_steps(cfg: StageConfig) -> int:
    """0 where none are trained, or it is not settled yet how many."""
    if not isinstance(cfg, TrainingConfig) or is_auto(cfg, "steps"):
        return 0
    return cfg.steps


def _write_model(
    ctx: Context, cfg: StageConfig, made: StageResult, name: str, model: Model, dtype: str
) -> None:
    """One of the stage's models into the folder of its name."""
    target = ctx.folder.path / name
    card = model_card(
        ctx.name, cfg, replace(made, model=model), ctx.folder.path.parent.name, part=name
    )

    def fill() -> None:
        with whole_folder(target) as folder:
            write(folder, ctx.backend, model, dtype=dtype, card=card)

    disk.until_written(target, fill)


def _base(cfg: StageConfig, model: Model | None) -> dict[str, str]:
    """Where on the Hub the stage's start is from: pulled, or by its name; empty where it is from
    nowhere there, as of a stage that starts from no model."""
    start = getattr(cfg, "model", "")
    if not start:
        return {}
    if known := origin(start):
        return known
    if model is None:
        repo, commit = ("", None)
    else:
        repo, commit = snapshot.name_of(model.folder)
    if commit:
        return {"repo": repo, "commit": commit, "kind": "model"}
    return {}


def _work(ctx: Context, cfg: StageConfig) -> Path:
    body: Callable[[Any, Context], StageResult | Model] = importlib.import_module(
        f"ondevice.stages.{ctx.name}"
    ).run
    if ctx.name in processes.ALONE:
        ctx.backend.group = ALONE
    group = ctx.group
    processes.begin(ctx, cfg)
    stage_result = body(cfg, ctx)
    versions = ctx.versions()
    ctx.backend.group = ALONE  # what is left to do the first process does by itself
    cfg = ctx.settled or cfg
    if isinstance(stage_result, Model):
        stage_result = StageResult(stage_result)
    record: dict[str, Any] = {
        "fingerprint": ctx.start.fingerprint,
        "marks": dict(stage_result.marks),
        "notes": list(stage_result.notes),
    }
    if base := _base(cfg, stage_result.model):
        record["base"] = base
    if stage_result.model is None:
        model = None
    else:
        model = result(stage_result.model, cfg, ctx)
    if model is not None:
        ended = outcome(ctx)
        record["outcome"] = ended.mapping()
        for name, one in {"model": model, **stage_result.beside}.items():
            given = one is model and stage_result.model is not model
            _write_model(ctx, cfg, stage_result, name, one, one.cfg.dtype if given else "float32")
        if ctx.shared.stop.requested:
            raise Interrupted("trained and saved, stopped before its exam")
        if not model.cfg.num_labels:
            used = model.with_params(cast_once(model, model.params, ctx.backend))
            record["marks"] |= processes.examined(ctx, used, group)
            record["answers"] = answer(used, used.params, ctx.backend, ctx.prompts)
    group.call("")
    record |= {
        **ctx.spent.mapping(),
        "peak_bytes": ctx.backend.memory().peak,
        "versions": versions,
    }
    write_file(ctx.folder.done, json.dumps(record, indent=1) + "\n")
    ctx.events.emit(
        "done", seconds=record["seconds"], marks=record["marks"], outcome=record.get("outcome")
    )
    if model is not None:
        ctx.shared.say(summary(ctx, model, record, ended))
    return result_of(cfg, ctx.folder)
