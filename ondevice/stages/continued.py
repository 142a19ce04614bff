"""A stage that goes on from a finished one of the same kind: from its weights and its optimizer's
state, with a schedule of its own. The batches go on where they stopped."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from ondevice.common.errors import UserError
from ondevice.config.earlier import upgraded
from ondevice.config.recipe import STAGES
from ondevice.config.stages import StageConfig
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
    "backend",
    "device",
    "dtype",
    "micro_batch",
    "checkpointing",
}
"""Settings of a stage that goes on that are not those of the finished one: how long it trains, where
it lies, and the machine's."""


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


def state_of(name: str, cfg: StageConfig) -> checkpoint.Checkpoint | None:
    """The checkpoint of the very weights that the finished stage gave. Raises UserError where it is
    gone or damaged, and for settings under which its optimizer's state means nothing."""
    stage = finished(name, cfg)
    if stage is None:
        return None
    done, where = stage.done_record() or {}, str(stage.path)
    before = done.get("fingerprint") or {}
    if before.get("adapter", "none") != "none" or getattr(cfg, "adapter", "none") != "none":
        raise UserError(
            "an adapter on top of an adapter has no optimizer state to go on from",
            where="continue_from",
            hint="give the finished stage's folder as the model instead",
        )
    if before.get("optimizer") != getattr(cfg, "optimizer", None):
        raise UserError(
            f"its state is {before.get('optimizer')}'s",
            where="optimizer",
            hint=f"give --optimizer {before.get('optimizer')}",
        )
    model = Path(os.path.expanduser(str(getattr(cfg, "model", ""))))
    if model.resolve() != stage.model.resolve():
        raise UserError(
            f"is not the model of {stage.model}, whose optimizer is to go on",
            where="model",
            hint="leave it out",
        )
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
