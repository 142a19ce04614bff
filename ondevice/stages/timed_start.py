"""How a recipe with a time begins, and how it goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ondevice.common.errors import UserError
from ondevice.common.sanitize import to_stderr
from ondevice.config.recipe import Recipe, load_recipe
from ondevice.config.runs import RunConfig
from ondevice.config.times import parse_time, time_text
from ondevice.planning.dial import inputs
from ondevice.planning.dial import record as dial
from ondevice.planning.dial.fit import told
from ondevice.planning.dial.inputs import NAMED
from ondevice.planning.dial.record import DialRecord
from ondevice.planning.dial.road import exam_of, road, time_of
from ondevice.planning.report import machine_for
from ondevice.runs.folder import RunFolder
from ondevice.stages.timed import Timed


def loaded(name: str, cfg: RunConfig, sets: Sequence[str]) -> Recipe:
    """The recipe called `name`, with what the options of a run say of all its stages."""
    return load_recipe(
        name,
        sets,
        cfg.preference,
        seed=cfg.seed,
        backend=cfg.backend,
        device=cfg.device,
        dtype=cfg.dtype,
        memory=cfg.memory or None,
        anyway=cfg.anyway or None,
        keep_awake=None if cfg.keep_awake else False,
        track=cfg.track or None,
    )


def begun(cfg: RunConfig, recipe: Recipe, folder: RunFolder) -> tuple[Recipe, DialRecord | None]:
    """(the recipe that is run, its record where it has a time). What is planned is told. Raises
    UserError for a time that is too short, and for a recipe that does not scale."""
    machine = None
    if time_of(cfg, recipe) is not None:
        machine = machine_for(cfg, to_stderr, measure=True)
    found = road(cfg, recipe, machine, folder.path)
    if found.fit is None or found.seconds is None:
        for line in inputs.told(found.left_out):
            to_stderr(line)
        return found.recipe, None
    for line in told(found.fit, found.seconds, 0.0, found.left_out):
        to_stderr(line)
    scale = found.recipe.scale
    assert scale is not None
    given = {name: getattr(cfg, name) for name in NAMED if getattr(cfg, name)}
    record = DialRecord(recipe.name, found.seconds, scale, given, left_out=dict(found.left_out))
    return replace(found.recipe, scale=None), record


def going_on(cfg: RunConfig, folder: RunFolder) -> DialRecord | None:
    """The record of the run that the command goes on with, None where it has no time. Raises
    UserError where it was begun with other files, or without a time that is asked for now."""
    record = dial.load(folder.path)
    if not folder.recipe.is_file():
        return None  # nothing has begun
    if record is None:
        for name in ("time", *NAMED):
            if getattr(cfg, name):
                raise UserError(
                    "has no effect: this run was begun without it",
                    where=name,
                    hint="leave it out, or begin anew with another --out",
                )
        return None
    for name in NAMED:
        now, before = getattr(cfg, name), record.given.get(name, "")
        if now and now != before:
            raise UserError(
                f"this run was begun with {before or 'none'}",
                where=name,
                hint="leave it out, or give another --out",
            )
    seconds = parse_time(cfg.time)
    if seconds is not None and seconds != record.seconds:
        to_stderr(f"{time_text(seconds)} in place of {time_text(record.seconds)} from here on")
        record.seconds = seconds
    return record


def timed_run(recipe: Recipe, record: DialRecord, folder: RunFolder, began: float) -> Timed:
    """What divides the run's time; `began`: when this process's part of it did, in ticks."""
    first = next(iter(recipe.stages.values()))
    machine = machine_for(first, to_stderr, measure=True)
    return Timed(recipe, record, folder, machine, exam_of(recipe), to_stderr, began=began)
