"""Trains one version of a run's rounds: a process of its own, behind the person who rates.

    python -P launch.py ondevice.rating_rounds.trainer RUN NUMBER

It is the usual stages with the usual exam, in `RUN/rounds/v001`: locks, checkpoints, a full disk, the
planner and a resume after a kill are theirs. A version begins from the start's weights and learns
from all votes; what the versions before it have learned is in those votes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from ondevice.common.errors import Interrupted, UserError
from ondevice.common.files import write_file
from ondevice.common.json_files import read_json
from ondevice.common.sanitize import to_stderr
from ondevice.config.auto import AUTO, is_auto
from ondevice.config.beside import ChatsBesideConfig
from ondevice.config.corpus import CorpusConfig
from ondevice.config.preference import DPOConfig, PPOConfig, RewardConfig, SampleConfig
from ondevice.config.recipe import WAYS, Recipe, load_recipe, recipe_names
from ondevice.config.rounds import RoundsConfig
from ondevice.config.stages import StageConfig
from ondevice.models.load import load_generative
from ondevice.rating_rounds.places import STAGES, RoundsFolder, Version, start_model
from ondevice.runs.context import RunSettings
from ondevice.runs.disk_pause import DiskPause
from ondevice.runs.folder import RunFolder, StopRequest
from ondevice.seam.select import load_backend
from ondevice.stages.pipeline import recipe_exam
from ondevice.stages.runner import Caller, run_stage

SFT_BATCH = 8
"""Rows of chats beside each update: a version is to be there soon."""
C = TypeVar("C", bound=StageConfig)


def train(folder: RoundsFolder, version: Version) -> Path:
    """The version's model, trained from where an earlier process was stopped. Raises UserError and
    Interrupted as `run_stage`."""
    cfg = folder.kept_settings()
    start = start_model(cfg)
    stop = StopRequest()
    pause = DiskPause(stop)
    shared = replace(_surroundings(folder, stop), pause=pause)
    caller = Caller(f"Go on: ondevice rounds {folder.run.path}")
    given = {"model": str(start)}
    made = Path()
    with stop, pause():
        measure_start(folder, cfg, shared)
        for name in STAGES[cfg.method]:
            stage = stage_settings(name, cfg, folder, version)
            stage = _filled(stage, {**given, "resume": True})
            made = run_stage(name, stage, RunFolder(version.path), shared=shared, caller=caller)
            if stage.gives == "reward":
                given["reward_model"] = str(made)
    return made


def measure_start(folder: RoundsFolder, cfg: RoundsConfig, shared: RunSettings) -> None:
    """Takes the exam of the start, once: what it knows is what the versions are not to lose."""
    if folder.start.is_file() or shared.exam is None:
        return
    backend = load_backend(cfg.backend, cfg.device, cfg.dtype)
    marks = shared.exam(load_generative(start_model(cfg), backend), backend, folder.path / "data")
    write_file(folder.start, json.dumps(dict(marks), indent=1) + "\n")


def _surroundings(folder: RoundsFolder, stop: StopRequest) -> RunSettings:
    """The corpus and the exam of the run's recipe; without a recipe there is no exam."""
    recipe = recipe_of(folder)
    if recipe is None:
        return RunSettings(stop)
    # what is compared with the start is the person's business here
    if recipe.exam.data:
        exam = recipe.exam
    else:
        exam = replace(recipe.exam, duels=0)
    return RunSettings(
        stop,
        corpus=recipe.corpus,
        exam=recipe_exam(replace(recipe, exam=exam)),
        exam_settings=exam,
    )


def recipe_of(folder: RoundsFolder) -> Recipe | None:
    """The run's recipe, with the stages of the method; None where it has none."""
    if not folder.run.recipe.is_file():
        return None
    return load_recipe(str(folder.run.recipe))


def corpus_of_run(folder: RoundsFolder) -> CorpusConfig:
    """What `builtin` means in the run."""
    recipe = recipe_of(folder)
    return CorpusConfig() if recipe is None else recipe.corpus


def prompts_of(cfg: RoundsConfig, folder: RoundsFolder) -> str:
    """What is asked. Raises UserError where neither the settings nor the run's recipe say it: the
    built-in prompts are for models of the built-in corpus alone."""
    recipe = recipe_of(folder)
    if recipe is None:
        sample = None
    else:
        sample = recipe.stages.get("sample")
    data = cfg.data or (sample.data if isinstance(sample, SampleConfig) else "")
    if not data and recipe is not None and recipe.stages.get("sft") is not None:
        tuned = str(getattr(recipe.stages["sft"], "data", ""))
        data = tuned if tuned.startswith("builtin") else ""
    if not data:
        raise UserError(
            "nothing says what is to be asked", where="data", hint="give --data, a file of prompts"
        )
    return data


def stage_settings(
    name: str, cfg: RoundsConfig, folder: RoundsFolder, version: Version
) -> StageConfig:
    """A stage's settings for one version: those of the run's recipe where it has the stage, as long
    as the votes ask for."""
    common: dict[str, Any] = {
        "seed": cfg.seed,
        "backend": cfg.backend,
        "device": cfg.device,
        "dtype": cfg.dtype,
        "memory": cfg.memory,
        "out": "",
        "eval_every": 0,
    }
    if not is_auto(cfg, "learning_rate"):
        common["learning_rate"] = cfg.learning_rate
    if name != "reward" and cfg.sft_coef:
        common |= {"sft_coef": cfg.sft_coef, "sft_batch": SFT_BATCH}
    elif name != "reward":
        common |= {"sft_coef": 0.0, "sft_batch": ChatsBesideConfig.sft_batch, "sft_data": ""}
    if name == "ppo":
        # the reward model has seen answers of the length that is rated
        common |= {"data": prompts_of(cfg, folder), "max_new_tokens": cfg.max_new_tokens}
        return replace(_of_recipe(PPOConfig, name, folder), **common)
    pairs: dict[str, Any] = {
        **common,
        "data": str(version.votes),
        "validation": "",
        "steps": AUTO,
        "epochs": cfg.epochs,
        "batch_size": 8,
        "warmup_steps": AUTO,
    }
    if name == "reward":
        return replace(_of_recipe(RewardConfig, name, folder), **pairs)
    return replace(_of_recipe(DPOConfig, name, folder), **pairs)


def _of_recipe(cls: type[C], name: str, folder: RoundsFolder) -> C:
    recipe = recipe_of(folder)
    if recipe is None:
        found = None
    else:
        found = recipe.stages.get(name)
    if found is None and recipe is not None and recipe.name in recipe_names():
        # a run of the other way through preferences has left this one out
        for way in recipe_ways(name):
            found = load_recipe(recipe.name, preference=way).stages.get(name)
    settings = found if isinstance(found, cls) else cls()
    return settings


def recipe_ways(stage: str) -> list[str]:
    """The ways through preferences that have this stage."""
    return [way for way, stages in WAYS.items() if stage in stages]


def _filled(cfg: StageConfig, given: Mapping[str, Any]) -> StageConfig:
    known = {name: value for name, value in given.items() if hasattr(cfg, name)}
    return replace(cfg, **known)


def main(words: list[str]) -> int:
    """The exit code: 0 trained (or another process trains it), 130 stopped with the work saved, 2
    refused, whose reason is kept beside the version."""
    folder = RoundsFolder(words[0])
    version = folder.version(int(words[1]))
    with ExitStack() as held:
        try:
            held.enter_context(version.trainer.locked())
        except UserError as error:
            if version.trainer.holder() is None:
                return _refused(version, error)
            to_stderr(str(error))
            return 0
        try:
            train(folder, version)
        except Interrupted as stopped:
            to_stderr(str(stopped))
            return 130
        except UserError as error:
            return _refused(version, error)
    return 0


def _refused(version: Version, error: UserError) -> int:
    to_stderr(str(error))
    if not read_json(version.failed):
        write_file(version.failed, json.dumps({"why": str(error)}) + "\n")
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
