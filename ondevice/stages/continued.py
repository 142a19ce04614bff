"""A stage that goes on from a finished one of the same kind: from its weights and its optimizer's
state, with a schedule of its own. The batches go on where they stopped."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ondevice.common.errors import UserError
from ondevice.config.earlier import upgraded
from ondevice.config.lists import list_text
from ondevice.config.recipe import STAGES
from ondevice.config.stages import StageConfig
from ondevice.models.digest import model_digest
from ondevice.runs import checkpoint, events
from ondevice.runs.folder import RunFolder, StageFolder

_OF_ITS_OWN = {
    "model",
    "out",
    "resume",
    "continue_from",
    "steps",
    "epochs",
    "warmup_steps",
    "eval_every",
    "save_every",
    "push_every",
    "push_to",
    "track",
    "backend",
    "device",
    "dtype",
    "micro_batch",
    "checkpointing",
    "shard",
}
"""Settings of a stage that goes on that are not those of the finished one: how long it trains, where
it lies, and the machine's."""
_OF_PARAMETERS = (
    "optimizer",
    "adapter",
    "lora_rank",
    "lora_alpha",
    "lora_rslora",
    "lora_targets",
    "lora_whole",
)
"""Settings that say of which parameters the state is."""


def finished(name: str, cfg: StageConfig) -> StageFolder | None:
    """The stage that `continue_from` names, by its folder or its run's; None where it names none.
    Raises UserError for one that is not there, is not finished or is of another kind."""
    named = str(getattr(cfg, "continue_from", ""))
    if not named:
        return None
    return _finished(name, named)


def settings_of(name: str, named: str) -> dict[str, Any]:
    """The settings of the finished stage that is named so, except those that each stage has of its
    own. Raises UserError as `finished`.
    """
    stage = _finished(name, named)
    told: dict[str, Any] = {}
    for event in events.read(stage.events):
        if event.get("event") == "start" and isinstance(event.get("config"), dict):
            told = event["config"]
    told = upgraded(name, told) | stage.settings_record().get("settings", {})
    known = {field.name for field in fields(STAGES[name])} - _OF_ITS_OWN
    return {key: value for key, value in told.items() if key in known}


def _finished(name: str, named: str) -> StageFolder:
    path = Path(os.path.expanduser(named))
    if path.name == name and not (path / name).is_dir():
        run = RunFolder(path.parent)
    else:
        run = RunFolder(path)
    stage = run.stage(name)
    if not stage.path.is_dir():
        raise UserError(
            f"has no stage {name}", where=named, hint=f"give a run with a finished {name}"
        )
    if not stage.done_record():
        raise UserError(
            f"its stage {name} is not finished",
            where=named,
            hint="--resume goes on with it, with more --steps too where its schedule allows that",
        )
    return stage


def start_of(name: str, stage: StageFolder) -> Path:
    """The model folder that a stage begins with which goes on from this finished one: what that one
    gave, or, where it trained an adapter, what it began with; the adapter is in its state."""
    settings = settings_of(name, str(stage.path))
    if settings.get("adapter", "none") == "none":
        return stage.model
    told = ""
    for event in events.read(stage.events):
        if event.get("event") == "start" and isinstance(event.get("config"), dict):
            told = str(event["config"].get("model", ""))
    return Path(os.path.expanduser(told))


def _check_same_parameters(cfg: StageConfig, stage: StageFolder, before: Mapping[str, Any]) -> None:
    """Raises UserError for settings under which the optimizer's state is of other parameters, and
    for another model than the one whose state it is."""
    before = {"adapter": "none", **before}
    for name in _OF_PARAMETERS:
        now, then = _plain(getattr(cfg, name, None)), before.get(name)
        if name in before and now != then:
            if isinstance(then, list):
                told = list_text(then)
            else:
                told = str(then)
            raise UserError(
                f"the finished stage has {told or 'none'}, and its optimizer's state is of that",
                where=name,
                hint=f"set it to {told!r}, or begin anew with the stage's folder as the model",
            )
    model = Path(os.path.expanduser(str(getattr(cfg, "model", ""))))
    if getattr(cfg, "adapter", "none") == "none":
        if model.resolve() == stage.model.resolve():
            return
        owner = str(stage.model)
    else:
        if model_digest(model) == before.get("model"):
            return
        owner = f"{stage.path} and its adapter"
    raise UserError(
        f"is not the model of {owner}, whose optimizer is to go on",
        where="model",
        hint="leave it out",
    )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def state_of(name: str, cfg: StageConfig) -> checkpoint.Checkpoint | None:
    """The checkpoint of the very weights that the finished stage gave. Raises UserError where it is
    gone or damaged, and for settings under which its optimizer's state means nothing."""
    stage = finished(name, cfg)
    if stage is None:
        return None
    done, where = stage.done_record() or {}, str(stage.path)
    _check_same_parameters(cfg, stage, done.get("fingerprint") or {})
    step = (done.get("outcome") or {}).get("measured")
    if isinstance(step, int):
        path = checkpoint.path_at(stage.checkpoints, step)
    else:
        path = stage.checkpoints
    if (reason := checkpoint.find_damage(path)) is not None:
        raise UserError(
            f"the checkpoint of its result cannot be read ({reason})",
            where=where,
            hint="give the finished stage's folder as the model: the optimizer then begins anew",
        )
    return checkpoint.load(path)
