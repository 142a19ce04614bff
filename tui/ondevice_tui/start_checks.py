"""What the command of a form would refuse, said before it is started."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ondevice.common.errors import UserError
from ondevice.config.preference import PairsConfig
from ondevice.config.recipe import Recipe, load_recipe, recipe_for
from ondevice.runs.folder import RunFolder
from ondevice.runs.listing import has_ratings

Obstacle = tuple[str, str]  # (field, what stands in the way)


class StartChecks:
    """The obstacles to one command: a stage's, or `run`. A right recipe is read once: every key
    asks, and parsing YAML takes as long as all else that a key does."""

    def __init__(self, verb: str, config: type) -> None:
        self.verb = verb
        self.config = config
        self._right_recipes: dict[tuple[str, str], Recipe] = {}  # by (recipe, arch)

    def obstacle(self, values: Mapping[str, Any]) -> Obstacle | None:
        """The first thing that stands in the way; None where the command can be started. Raises
        OSError and ValueError for a path that no disk takes."""
        found = _missing_model(values, self.verb) or _unusable_out(values)
        if found is not None or values["resume"] or values.get("redo"):
            return found
        run = RunFolder(str(values["out"]))
        if self.verb == "run":
            return self._of_recipe(values, run)
        return self._of_stage(values, run)

    def _of_recipe(self, values: Mapping[str, Any], run: RunFolder) -> Obstacle | None:
        wrong = self._wrong_recipe(str(values["recipe"]), str(values["arch"]))
        if wrong:
            return "recipe", f"recipe: {wrong}"
        unfit = self._unfit_inputs(values)
        if unfit is not None:
            return unfit
        if run.stages():
            return "out", "out: a run stands there already; resume goes on with it"
        return None

    def _unfit_inputs(self, values: Mapping[str, Any]) -> Obstacle | None:
        """A time or a file that the recipe has no use for, or that is not there."""
        recipe = self._right_recipes[str(values["recipe"]), str(values["arch"])]
        for name in ("time", "text", "chats", "problems", "model"):
            if values[name] and recipe.scale is None:
                return name, f"{name}: {recipe.name} does not say how it scales; laptop does"
        for name in ("text", "chats", "problems"):
            path = str(values[name])
            if path and ":" not in path and not Path(path).exists():
                return name, f"{name}: there is no {path}"
        return None

    def _wrong_recipe(self, recipe: str, arch: str) -> str:
        if (recipe, arch) not in self._right_recipes:
            try:
                self._right_recipes[recipe, arch] = load_recipe(recipe_for(recipe, arch))
            except UserError as problem:
                return str(problem)
        return ""

    def _of_stage(self, values: Mapping[str, Any], run: RunFolder) -> Obstacle | None:
        if issubclass(self.config, PairsConfig) and not values["data"] and not has_ratings(run):
            return (
                "data",
                "data: this run has no ratings to learn from; name a file of pairs, or another run",
            )
        stage = run.stage(self.verb)
        if stage.holder() is not None:
            return "out", f"out: {self.verb} trains there now"
        if stage.stands:
            return "out", f"out: {self.verb} stands there already; give another folder, or resume"
        return None


def _missing_model(values: Mapping[str, Any], verb: str) -> Obstacle | None:
    for name in ("model", "reward_model"):
        folder = values.get(name, "-")
        if folder == "" and verb == "run":
            continue  # it begins from random weights
        if folder == "":
            return name, f"{name}: name the folder of a model to start from"
        if folder != "-" and not Path(str(folder)).exists():
            return name, f"{name}: there is no {folder}"
    return None


def _unusable_out(values: Mapping[str, Any]) -> Obstacle | None:
    if not values["out"]:
        return "out", "out: name the run folder"
    path = RunFolder(str(values["out"])).path
    place = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        return "out", f"out: cannot be written to: {place}"
    return None
