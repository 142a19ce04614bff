"""What a person has named to be sent: a model's folder, with the run and the stage that made it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ondevice.common.errors import UserError, nearest
from ondevice.runs.folder import RunFolder, StageFolder, holds_model
from ondevice.runs.resolve import find_model


@dataclass(frozen=True)
class Target:
    """What was named: a model's folder, and the run and the stage that made it, where one did.
    `home` keeps the record of the push."""

    home: Path
    model: Path | None
    run: RunFolder | None = None
    stage: StageFolder | None = None


def find_target(path: str, stage: str = "") -> Target:
    """A model's folder, a stage's or a run's. Raises UserError for what is none of them."""
    folder = Path(os.path.expanduser(path))
    if not folder.is_dir():
        problem = "there is no such folder"
        if folder.exists():
            problem = "is a file, not a folder"
        raise UserError(problem, where=path, hint="give the folder of a model or of a run")
    if holds_model(folder):
        if stage:
            raise UserError(
                "is a model's folder: it has no stages", where=path, hint="give its run's folder"
            )
        return _model_target(folder)
    if (folder / "done.json").is_file() and holds_model(folder / "model") and not stage:
        found = StageFolder(folder.resolve())
        return Target(folder, found.model, RunFolder(found.path.parent), found)
    run = RunFolder(folder)
    made = stages_with_models(run)
    if stage:
        named = _stage_named(stage, made, path)
        return Target(folder, named.model, run, named)
    newest = find_model(path)
    model = None
    if holds_model(newest):
        model = newest
    if not made:
        return Target(folder, model)
    for last in made:
        if last.model == newest:
            return Target(folder, model, run, last)
    return Target(folder, model, run)


def _model_target(folder: Path) -> Target:
    """A model's folder, with the run and the stage that made it, where one did."""
    made_by = StageFolder(folder.resolve().parent)
    if folder.resolve().name == "model" and made_by.done.is_file():
        return Target(folder, folder, RunFolder(made_by.path.parent), made_by)
    return Target(folder, folder)


def stages_with_models(run: RunFolder) -> list[StageFolder]:
    """The finished stages of a run that gave a model."""
    return [stage for stage in run.stages() if holds_model(stage.model) and stage.done_record()]


def _stage_named(name: str, made: Sequence[StageFolder], path: str) -> StageFolder:
    """The stage of this name. Raises UserError naming the nearest of those `made` in the run that
    `path` named.
    """
    for stage in made:
        if stage.name == name:
            return stage
    hint = ""
    if made:
        hint = nearest(name, [stage.name for stage in made])
    raise UserError(f"has no finished stage {name!r} with a model", where=path, hint=hint)
