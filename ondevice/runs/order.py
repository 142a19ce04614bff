"""In which order the stages of a run stand: by its recipe and by which model another began with.

Never by a clock: it may be set back between two stages, and a copied folder has other times.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from ondevice.common.errors import UserError
from ondevice.runs.events import first_event

STARTS = ("model", "reward_model", "other", "continue_from")
"""Settings that may name another stage's model."""


def ordered(run: Path, begun: Sequence[Path]) -> list[Path]:
    """The folders of stages, each after those whose models it began with; where that leaves a
    choice, in the order of the run's recipe, else in that of the stages that a recipe can have."""
    rank = _ranks(run)
    waiting = sorted(begun, key=lambda stage: (rank.get(stage.name, len(rank)), stage.name))
    names = {stage.name for stage in waiting}
    before = {stage.name: _began_with(stage) & names for stage in waiting}
    found: list[Path] = []
    while waiting:
        done = {stage.name for stage in found}
        free = [stage for stage in waiting if before[stage.name] <= done]
        # two that began with each other's models, one of them anew: as the recipe has them
        following = (free or waiting)[0]
        found.append(following)
        waiting.remove(following)
    return found


def start_in_run(stage: Path, config: Mapping[str, Any], field: str = "model") -> str:
    """The stage of the same run that a setting of this stage names; empty: it is elsewhere, or
    none."""
    value = config.get(field)
    if not isinstance(value, str) or not value:
        return ""
    start = Path(os.path.expanduser(value))
    if field != "continue_from":
        if start.name != "model":
            return ""
        start = start.parent
    runs = [stage.parent.absolute()]
    out = config.get("out")
    if isinstance(out, str) and out:
        runs.append(Path(os.path.expanduser(out)))
    if start.parent in runs or start.absolute().parent in runs:
        return start.name
    return ""


def _began_with(stage: Path) -> set[str]:
    events = stage / "events.jsonl"
    try:
        status = events.stat()
        config = _start_settings(
            events.absolute(), status.st_mtime_ns, status.st_size, status.st_ino
        )
    except OSError:
        return set()
    return {start_in_run(stage, config, field) for field in STARTS} - {"", stage.name}


@lru_cache(maxsize=4096)
def _start_settings(events: Path, changed: int, size: int, number: int) -> dict[str, Any]:
    """What `start_in_run` asks of a stage's settings. Read once while the file is as it was, as
    `_stages_in`. Raises OSError where it cannot be read, which is not kept."""
    config = first_event(events).get("config")
    if not isinstance(config, Mapping):
        return {}
    return {name: config[name] for name in (*STARTS, "out") if name in config}


def _ranks(run: Path) -> dict[str, int]:
    from ondevice.config.recipe import STAGES  # 50 ms, with the settings of every stage

    names = recipe_stages(run / "recipe.yaml")
    names += [name for name in STAGES if name not in names]
    return {name: number for number, name in enumerate(names)}


def recipe_stages(recipe: Path) -> list[str]:
    """The stages that a run's recipe names; none where there is no recipe or a damaged one."""
    try:
        if not recipe.is_file():
            return []
        status = recipe.stat()
    except OSError:
        return []
    return list(_stages_in(recipe, status.st_mtime_ns, status.st_size, status.st_ino))


@lru_cache(maxsize=256)
def _stages_in(recipe: Path, changed: int, size: int, number: int) -> tuple[str, ...]:
    """Read once while the file is as it was: listings ask for it every second."""
    from ondevice.config.load import read_yaml  # 5 ms

    try:
        stages = read_yaml(recipe).get("stages")
    except UserError:
        return ()
    if isinstance(stages, Mapping):
        return tuple(map(str, stages))
    return ()
