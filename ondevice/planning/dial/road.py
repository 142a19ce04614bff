"""From the options of a run to a recipe that suits its time: what `ondevice run` and `ondevice plan`
have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ondevice.common.errors import UserError
from ondevice.config.finetuning import TuningConfig
from ondevice.config.recipe import ExamConfig, Recipe
from ondevice.config.runs import RunConfig
from ondevice.config.times import parse_time
from ondevice.planning.dial.costs import Factors, cost_of
from ondevice.planning.dial.fit import Fitted, TooShort, fitted, too_short
from ondevice.planning.dial.inputs import NAMED, Inputs, with_inputs
from ondevice.planning.machine import Machine
from ondevice.planning.model_facts import facts_of
from ondevice.planning.stage_facts import Surroundings
from ondevice.planning.verdict import verdict
from ondevice.runs.resolve import find_model


@dataclass(frozen=True)
class Road:
    """A recipe on what a person has given. `left_out`: stage → why; `fit` None: it was given no
    time, and its stages stand as the recipe says."""

    recipe: Recipe
    left_out: Mapping[str, str]
    seconds: float | None = None
    fit: Fitted | None = None


def time_of(cfg: RunConfig, recipe: Recipe) -> float | None:
    """Seconds that the run is to take; None: as its stages say. Raises UserError where the recipe
    does not say how it scales, and a time, files or a model are given."""
    if recipe.scale is None:
        for name in ("time", *NAMED):
            if getattr(cfg, name):
                raise UserError(
                    f"has no effect: {recipe.name} does not say how it scales",
                    where=name,
                    hint="take the recipe laptop, or one of yours with the key scale",
                )
        return None
    return parse_time(cfg.time or recipe.scale.time)


def road(cfg: RunConfig, recipe: Recipe, machine: Machine | None, folder: Path) -> Road:
    """The recipe for these options, in a run folder. `machine`: calibrated; None where `time_of`
    gives no time. Raises UserError for files that are not there, and for a time that is too short."""
    seconds = time_of(cfg, recipe)
    given = _inputs(cfg)
    recipe, left_out = with_inputs(recipe, given)
    scale = recipe.scale
    if seconds is None or scale is None:
        return Road(replace(recipe, scale=None), left_out)
    assert machine is not None
    scale = replace(scale, stages={n: s for n, s in scale.stages.items() if n in recipe.stages})
    around = Surroundings(machine, recipe.corpus, folder, exam_of(recipe))
    if given.model:
        recipe = _fitting_memory(recipe, around)
    try:
        fit = fitted(recipe, scale, seconds, around, Factors())
    except TooShort as error:
        raise too_short(recipe, seconds, error) from None
    return Road(replace(fit.recipe, scale=scale), left_out, seconds, fit)


def _inputs(cfg: RunConfig) -> Inputs:
    named = {name: getattr(cfg, name) for name in NAMED}
    given = Inputs(**named)
    given.check()
    if given.model:
        folder = str(find_model(given.model))
        given = replace(given, model=folder, facts=facts_of(folder))
    return given


def exam_of(recipe: Recipe) -> ExamConfig | None:
    """The exam that is taken after its stages: on data of its own, or where one of them reads the
    built-in corpus."""
    if recipe.exam.data:
        return recipe.exam
    for cfg in recipe.stages.values():
        ready = getattr(cfg, "tokenizer", "")
        if not ready and str(getattr(cfg, "data", "")).startswith("builtin"):
            return recipe.exam
    return None


def _fitting_memory(recipe: Recipe, around: Surroundings) -> Recipe:
    """With an adapter in the stages whose whole weights would not fit this machine's memory."""
    stages = dict(recipe.stages)
    for name, cfg in recipe.stages.items():
        changes: dict[str, Any] = {"adapter": "lora"}
        cost, after = cost_of(name, cfg, around, Factors())
        tuned = isinstance(cfg, TuningConfig) and cfg.adapter == "none"
        if tuned and verdict(cost.plan, cfg, around, None).fits == "no":
            stages[name] = replace(cfg, **changes)
        around = after
    return replace(recipe, stages=stages)
