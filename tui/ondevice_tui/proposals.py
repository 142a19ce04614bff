"""Which settings the form of a stage begins with: what a run has, and what comes before the stage."""

from __future__ import annotations

import dataclasses
from typing import Any

from ondevice.common.errors import UserError
from ondevice.config.preference import PairsConfig
from ondevice.config.recipe import STAGES, gives, stage_defaults
from ondevice.runs.folder import RunFolder

MODEL_FIELDS = {"model": "policy", "reward_model": "reward"}  # field → what its stage gives


def proposal(stage: str, run: RunFolder | None) -> dict[str, Any]:
    """Settings worth proposing: the run's folder, the newest model before this stage, the run's own
    recipe; where the stage stands in this run, complete or stopped, a new run's folder, and the votes
    of this one.
    """
    if run is None:
        return {"out": str(RunFolder.new(stage).path)}
    here = run.stage(stage)
    taken = here.stands or here.holder() is not None
    found: dict[str, Any] = {"out": str(run.path)}
    if taken:
        found["out"] = str(RunFolder.new(stage).path)
    found |= _newest_models(stage, run)
    # no data means the votes of the run's own folder
    if taken and issubclass(STAGES[stage], PairsConfig):
        # here: who starts something else waits for no database
        from ondevice.preferences.sqlite_store import FILE

        if (run.path / FILE).is_file():
            found["data"] = str(run.path / FILE)
    if run.recipe.is_file() and recipe_has(str(run.path), stage):
        found["recipe"] = str(run.path)
    return found


def _newest_models(stage: str, run: RunFolder) -> dict[str, str]:
    """For each field of the stage that names a model: the newest one before the stage, else the
    newest one of the run."""
    order = list(STAGES)
    whole = [s for s in run.stages() if s.name in order and s.name != stage and s.has_model]
    before = [s for s in whole if order.index(s.name) < order.index(stage)] or whole
    names = {field.name for field in dataclasses.fields(STAGES[stage])}
    found = {}
    for field, kind in MODEL_FIELDS.items():
        models = [s.model for s in before if gives(s.name) == kind]
        if models and field in names:
            found[field] = str(models[-1])
    return found


def recipe_has(recipe: str, stage: str) -> bool:
    """Whether a recipe that can be read has settings for this stage."""
    try:
        stage_defaults(stage, recipe)
    except UserError:
        return False
    return True
