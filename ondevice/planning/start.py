"""The plan of a stage at its start: one line of it, and a refusal of what does not fit."""

from __future__ import annotations

from pathlib import Path

from ondevice.common.disk import free_bytes, space_of
from ondevice.common.errors import UserError
from ondevice.config.corpus import CorpusConfig
from ondevice.config.recipe import ExamConfig, Recipe
from ondevice.config.stages import StageConfig
from ondevice.planning import calibration
from ondevice.planning.machine import Machine, machine_of, planned_machine, shared_by
from ondevice.planning.plan import StagePlan, plan_stage
from ondevice.planning.report import is_planned, line, plan_recipe
from ondevice.planning.stage_facts import Surroundings
from ondevice.planning.verdict import Verdict, refuse, verdict
from ondevice.runs.folder import StageFolder
from ondevice.seam.group import Group
from ondevice.seam.protocols import Backend


def plan_at_start(
    cfg: StageConfig,
    folder: StageFolder,
    backend: Backend,
    corpus: CorpusConfig,
    exam: ExamConfig | None,
) -> tuple[StagePlan, str] | None:
    """(the plan of a stage, its line), of a machine that is not measured without its time. None for
    a stage that takes nothing, and where its model or data cannot be used: that the stage says
    itself, better. Raises UserError for what does not fit, unless `cfg.anyway`."""
    if not is_planned(cfg):
        return None
    found = calibration.load(backend.name, cfg.device, cfg.dtype)
    machine = machine_of(backend, cfg.memory, found)
    around = Surroundings(machine, corpus, folder.path.parent, exam)
    try:
        plan, _ = plan_stage(folder.name, cfg, around)
    except UserError:
        return None
    if folder.path.is_dir():
        there = space_of(folder.path)
    else:
        there = 0
    found_fit = verdict(plan, cfg, around, free_bytes(folder.path), there=there)
    if not cfg.anyway:
        refuse(folder.name, found_fit, folder.path)
    return plan, line(plan, found_fit)


def plan_recipe_at_start(recipe: Recipe, folder: Path, group: Group) -> dict[str, float]:
    """{stage: seconds that it is to take}, of a machine that is not measured {}, where the processes
    of `group` train together. Raises UserError for a recipe of which a stage does not fit, before
    its first stage begins, unless `anyway`."""
    first = next(iter(recipe.stages.values()))
    machine = shared_by(_machine(first), group)
    try:
        report = plan_recipe(recipe, folder, machine)
    except UserError:
        return {}  # the stage says it itself, better
    for row in report["stages"]:
        if row["fits"] == "no" and not first.anyway:
            needed = row["disk"] if row["on_disk"] else 0.0
            refuse(row["stage"], Verdict(row["fits"], row["why"], row["change"], needed), folder)
    if machine.speeds is None:
        return {}
    return {row["stage"]: row["seconds"] or 0.0 for row in report["stages"]}  # None: it is nothing


def _machine(cfg: StageConfig) -> Machine:
    found = calibration.load(cfg.backend, cfg.device, cfg.dtype)
    return planned_machine(cfg.backend, cfg.device, cfg.dtype, cfg.memory, found)
