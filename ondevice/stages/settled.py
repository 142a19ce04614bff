"""A stage's settings with a value in place of each `auto`: chosen once, at its start, by the rules
of `training/defaults.py`; said, recorded beside the stage, and the same again at a resume, whatever
the data and the machine are by then.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

import numpy as np

from ondevice.common.files import write_file
from ondevice.config.auto import AUTO, BY_RULE, is_auto
from ondevice.config.earlier import upgraded
from ondevice.config.effects import effects
from ondevice.config.load import convert
from ondevice.config.preference import PairsConfig, RolloutConfig
from ondevice.config.stages import PretrainConfig, StageConfig, TrainingConfig
from ondevice.data.mixture import is_generated
from ondevice.datasets.objectives import most_of
from ondevice.datasets.prompts import Prompt
from ondevice.models.model import Model
from ondevice.models.network import supports_packing
from ondevice.runs import checkpoint, events
from ondevice.runs.context import Context
from ondevice.runs.device_batch import needs_checkpointing, parameter_count
from ondevice.runs.folder import StageFolder
from ondevice.seam.protocols import Backend
from ondevice.stages.fingerprint import settle_fingerprint
from ondevice.training.defaults import DataFacts, ModelFacts, resolved, rows_per_step, steps_of

Config = TypeVar("Config", bound=TrainingConfig)
_PARTS_OF_STEPS = {"warmup_steps", "eval_every", "save_every"}


def automatic(cfg: StageConfig) -> list[str]:
    """The settings of this stage that a rule decides where they are left at auto, and that have an
    effect there.
    """
    if not isinstance(cfg, TrainingConfig):
        return []
    has_effect = effects(type(cfg))
    names = []
    for name in BY_RULE:
        if not hasattr(cfg, name):
            continue
        # steps follow from epochs where these are given
        if name == "steps" or name not in has_effect or has_effect[name].holds(cfg):
            names.append(name)
    return names


def settle(
    cfg: Config,
    model: Model,
    facts: Callable[[], DataFacts],
    ctx: Context,
) -> Config:
    """`cfg` without any auto, which is said, recorded and put into the stage's fingerprint.

    `facts` are those of the rows to learn from, asked for where they are needed.
    """
    settled, why, rows = by_rules(cfg, model, facts, ctx.backend)
    if ctx.group.several:  # one machine's memory may say something else than another's
        names = automatic(settled)
        told = ctx.group.tell({name: getattr(settled, name) for name in names})
        settled = dataclasses.replace(settled, **told)
    record = _record(cfg, settled, why, rows, ctx)
    ctx.events.emit("settings", steps=settled.steps, settings=record["settings"], why=why)
    for name, reason in why.items():
        ctx.tell(f"{name} {_shown(getattr(settled, name))}: {reason}")
    settle_fingerprint(ctx.start.fingerprint, settled)
    ctx.settled = settled
    ctx.start.on_settled(settled)
    return settled


def by_rules(
    cfg: Config,
    model: Model,
    facts: Callable[[], DataFacts],
    backend: Backend,
) -> tuple[Config, dict[str, str], int | None]:
    """(the settings without any auto, why each is what it is, rows of an epoch where the steps
    follow from them).
    """
    facts = cache(facts)
    names = [name for name in automatic(cfg) if is_auto(cfg, name)]
    why: dict[str, str] = {}
    rows = None
    settled = cfg
    if set(names) - {"checkpointing"}:
        found = resolved(cfg, _model_facts(cfg, model, backend), facts())
        settled = found.cfg
        why = found.why
        rows = found.rows
    if "checkpointing" in names:
        whole = getattr(cfg, "adapter", "none") == "none"
        longest = _longest(settled, facts)
        needed = needs_checkpointing(model, backend, longest, whole=whole)
        settled = dataclasses.replace(settled, checkpointing=needed)
        fits = "does not fit" if needed else "fits"
        why["checkpointing"] = (
            f"a row of {longest:,} tokens {fits} this machine's memory without it"
        )
    return settled, why, rows


def prompt_facts(
    prompts: Sequence[Prompt],
    unit: str,
    data: str,
    answer: tuple[str, str] | None = None,
) -> DataFacts:
    """What of the prompts to answer the settings follow from; `answer`: the form of
    answers, and why."""
    lengths = np.fromiter((len(prompt.ids) for prompt in prompts), np.int64, len(prompts))
    return DataFacts(lengths, unit, builtin=is_generated(data), answer=answer)


def _model_facts(cfg: TrainingConfig, model: Model, backend: Backend) -> ModelFacts:
    context = model.cfg.max_position_embeddings
    fresh = False
    if isinstance(cfg, PretrainConfig):
        context = most_of(model, context)
        fresh = is_fresh(model, backend)
    packs = supports_packing(model.cfg) and model.network.decoder_start_token_id is None
    return ModelFacts(parameter_count(model), context, packs=packs, fresh=fresh)


def is_fresh(model: Model, backend: Backend) -> bool:
    """Whether the weights are as they are made at random: every norm's begin as a constant, and one
    step changes that.
    """
    norms = []
    for name, p in model.params.items():
        if len(p.shape) == 1 and "norm" in name.lower() and name.endswith("weight"):
            norms.append(backend.numpy(p))
    return bool(norms) and not any(np.ptp(norm) for norm in norms)


def _longest(cfg: TrainingConfig, facts: Callable[[], DataFacts]) -> int:
    """Tokens of the longest row, both sides of a pair together."""
    if isinstance(cfg, RolloutConfig):
        return int(np.max(facts().lengths)) + cfg.max_new_tokens
    length: int = typing.cast(Any, cfg).sequence_length  # as every other stage has
    if isinstance(cfg, PairsConfig):
        return 2 * length
    return length


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else f"{value:,}"


# ---- recorded ----------------------------------------------------------------------------------


def _record(
    given: TrainingConfig,
    settled: TrainingConfig,
    why: Mapping[str, str],
    rows: int | None,
    ctx: Context,
) -> dict[str, Any]:
    """Writes what is in force now, and returns it; the reasons of what was settled earlier stay."""
    if ctx.start.resume:
        before = ctx.folder.settings_record()
    else:
        before = {}
    epochs = getattr(given, given.epochs_field)
    if epochs == AUTO:
        epochs = before.get("epochs")
    known = {
        "settings": {name: getattr(settled, name) for name in automatic(settled)},
        "why": {**before.get("why", {}), **why},
        "epochs": epochs,
        "rows": before.get("rows") if rows is None else rows,
    }
    if known != before:
        write_file(ctx.folder.settings, json.dumps(known, indent=1) + "\n")
    return known


def with_rules_of(cfg: StageConfig, settled: StageConfig) -> StageConfig:
    """`cfg` with the settings that a rule has decided in `settled`, which is of the same stage."""
    if not isinstance(cfg, TrainingConfig):
        return cfg
    changes: dict[str, Any] = {cfg.epochs_field: AUTO}
    for name in BY_RULE:
        if hasattr(cfg, name):
            changes[name] = getattr(settled, name)
    return dataclasses.replace(cfg, **changes)


def as_recorded(cfg: StageConfig, folder: StageFolder) -> StageConfig:
    """`cfg` with what the stage was begun with in place of each auto, where it was begun."""
    if not isinstance(cfg, TrainingConfig):
        return cfg
    record = folder.settings_record()
    before = record.get("settings") or {}
    if set(automatic(cfg)) - set(before):  # an earlier version began it, or nobody has yet
        before = {**_told_before(folder), **before}
    steps = _steps(cfg, record, before)
    if steps is not None:
        changes: dict[str, Any] = {"steps": steps, cfg.epochs_field: AUTO}
        cfg = dataclasses.replace(cfg, **changes)
    kinds = typing.get_type_hints(type(cfg))
    known = set(automatic(cfg)) - {"steps"}
    if cfg.steps != before.get("steps") and not checkpoint.steps(folder.checkpoints):
        known -= _PARTS_OF_STEPS  # nothing is trained yet, and it is another run by now
    for name in known:
        value = before.get(name, AUTO)
        if is_auto(cfg, name) and value != AUTO:
            where = str(folder.settings)
            cfg = dataclasses.replace(cfg, **{name: convert(value, kinds[name], where)})
    return cfg


def _steps(cfg: TrainingConfig, record: Mapping[str, Any], before: Mapping[str, Any]) -> int | None:
    """The steps that the stage was begun with; those of another number of epochs where a person
    asks for that now. None: they are said, or not known yet.
    """
    steps = before.get("steps")
    if not is_auto(cfg, "steps") or not isinstance(steps, int):
        return None
    epochs = getattr(cfg, cfg.epochs_field)
    rows = record.get("rows")
    if epochs in (AUTO, record.get("epochs")) or not isinstance(rows, int):
        return steps
    size = before.get("batch_size") or before.get("prompts") or rows_per_step(cfg)
    return steps_of(rows, float(epochs), size)


def _told_before(folder: StageFolder) -> dict[str, Any]:
    """The settings of a stage that an earlier version began: what its last process said at its
    start, and what its newest checkpoint or its result follows from.
    """
    told: dict[str, Any] = {}
    for event in events.read(folder.events):
        if event.get("event") == "start" and isinstance(event.get("config"), Mapping):
            told = dict(event["config"])
    paths = checkpoint.steps(folder.checkpoints)
    if paths:
        told |= checkpoint.record_of(paths[-1]).get("fingerprint") or {}
    done = folder.done_record()
    if done is not None:
        told |= done.get("fingerprint") or {}
    return upgraded(folder.name, told)
