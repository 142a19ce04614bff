"""`ondevice plan RECIPE` and `ondevice plan STAGE MODEL DATA …`: what it takes, without running it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ondevice.common.errors import UserError
from ondevice.common.sanitize import to_stderr
from ondevice.config.recipe import Recipe, load_recipe, recipe_for
from ondevice.config.runs import RunConfig
from ondevice.config.stages import StageConfig
from ondevice.hub import snapshot
from ondevice.planning.dial import inputs
from ondevice.planning.dial.road import road, time_of
from ondevice.planning.machine import Machine
from ondevice.planning.report import machine_for, plan_one, plan_recipe
from ondevice.runs.resolve import find_model, find_reward_model


def plan(
    what: str,
    cfg: RunConfig | StageConfig,
    sets: Sequence[str] = (),
    *,
    measure: bool = True,
    tell: Callable[[str], None] | None = None,
    processes: int = 1,
) -> dict[str, Any]:
    """A plan as JSON values (see `report.plan_recipe`). `what` names the recipe or the stage whose
    settings `cfg` are; `sets` are changes of a recipe. `measure`: this machine, where it was not
    before. `processes`: how many like this machine are to train together. Raises UserError for what
    could not begin."""
    say = tell or to_stderr
    cfg.check()
    if processes < 1:
        raise UserError(f"{processes} is too small", where="processes", hint="give 1 or more")
    machine = replace(machine_for(cfg, say, measure=measure), processes=processes)
    if isinstance(cfg, RunConfig):
        recipe = load_recipe(
            recipe_for(cfg.recipe, cfg.arch),
            sets,
            cfg.preference,
            seed=cfg.seed,
            backend=cfg.backend,
            device=cfg.device,
            dtype=cfg.dtype,
        )
        return plan_run(cfg, recipe, Path(cfg.out or "runs"), machine)
    return plan_one(what, with_models(what, cfg), Path(cfg.out or "runs"), machine)


def plan_run(cfg: RunConfig, recipe: Recipe, folder: Path, machine: Machine) -> dict[str, Any]:
    """The plan of a recipe; of one that has a time the plan for it, with `time` (seconds that were
    asked for) and `left_out` (stage → why) beside it."""
    seconds = time_of(cfg, recipe)
    if seconds is not None and machine.speeds is None:
        if cfg.time:
            raise UserError(
                "this machine is not measured yet",
                where="time",
                hint="ondevice plan without --no-time measures it",
            )
        assert recipe.scale is not None
        recipe = replace(recipe, scale=replace(recipe.scale, time=""))
        seconds = None
    found = road(cfg, recipe, machine, folder)
    report = plan_recipe(found.recipe, folder, machine)
    left_out = dict(found.left_out)
    lines = inputs.told(left_out)
    return {**report, "time": seconds, "left_out": left_out, "left_out_lines": lines}


def with_models(name: str, cfg: StageConfig) -> StageConfig:
    """`cfg` with the folders of the models that it names. Raises UserError for one that cannot be
    found, and where none is named."""
    if getattr(cfg, "model", None) == "":
        raise UserError("no model was named", where="model", hint=f"ondevice plan {name} MODEL")
    found: dict[str, Any] = {}
    for field, find in (
        ("model", find_model),
        ("other", find_model),
        ("reward_model", find_reward_model),
    ):
        named = getattr(cfg, field, "")
        # of a model on the Hub the config alone is fetched, where it is read
        if named and (Path(named).exists() or not snapshot.is_name(named)):
            found[field] = str(find(named))
    changed: StageConfig = replace(cfg, **found)
    return changed
