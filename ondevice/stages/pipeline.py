"""A recipe: stage after stage in one run folder, each resumable, and the ladder at the end."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ondevice.common.distribution import own_version
from ondevice.common.errors import Interrupted, UserError, nearest
from ondevice.common.files import write_file
from ondevice.config.corpus import CorpusConfig
from ondevice.config.load import dump_yaml
from ondevice.config.preference import RaterConfig
from ondevice.config.recipe import Recipe, load_recipe, recipe_for
from ondevice.config.stages import StageConfig
from ondevice.datasets.spec import builtin_in
from ondevice.evaluation.held_out import builtin_exam
from ondevice.preferences.simulated_rater import SimulatedRater
from ondevice.reports.report import write_report
from ondevice.runs.folder import RunFolder, StopRequest
from ondevice.runs.resolve import find_model, find_reward_model
from ondevice.seam.select import available
from ondevice.stages.continued import finished
from ondevice.stages.runner import RunSettings, run_stage, say


def run(
    recipe: str = "minute",
    *,
    out: str | Path = "",
    sets: Sequence[str] = (),
    backend: str = "auto",
    device: str = "auto",
    dtype: str = "auto",
    seed: int | None = None,
    resume: bool = False,
    redo: Sequence[str] = (),
    preference: str = "",
    arch: str = "decoder",
) -> Path:
    """All stages of a recipe, one after the other. Returns the run folder.

    `recipe` is a name or a YAML file, `sets` are changes such as "sft.steps=5", `preference` (ppo,
    dpo) the way through stage 3, `arch` the architecture (tiny for an encoder is the recipe
    tiny-encoder). With `resume`, complete stages are kept and the unfinished one goes on from its
    newest checkpoint. A stage named in `redo` is run again, and so is what follows from it. Raises
    UserError, or Interrupted once a stop has been saved.
    """
    recipe = recipe_for(recipe, arch)
    found = load_recipe(
        recipe, sets, preference, seed=seed, backend=backend, device=device, dtype=dtype
    )
    for name in redo:
        if name not in found.stages:
            raise UserError(
                f"the recipe has no stage {name!r}", where="redo", hint=nearest(name, found.stages)
            )
    head = next(iter(found.stages))
    start = getattr(found.stages[head], "model", None)
    if start == "":
        raise UserError(
            "no model was named",
            where=f"{recipe}: stages.{head}.model",
            hint="begin with the stage init, or name a model's folder",
        )
    folder = RunFolder(out) if out else RunFolder.new(found.name)
    begun = [stage.name for stage in folder.stages()]
    if begun and not (resume or redo):
        raise UserError(
            f"holds a run already ({', '.join(begun)})",
            where=str(folder.path),
            hint="--resume goes on with it; or give another --out",
        )
    own = not any(
        str(getattr(cfg, "data", "")).startswith("builtin")
        for cfg in found.stages.values()
        if not getattr(cfg, "tokenizer", "")
    )  # with a ready tokenizer init reads no data
    if own:
        exam = None
    else:
        exam = builtin_exam(found.corpus, _exam_length(found), found.exam, rule_of(found))
    around = RunSettings(found.corpus, found.prompts, exam)
    names, made, again = list(found.stages), {"policy": start} if start else {}, False
    say(f"{found.name}: {' → '.join(names)}, in {folder.path}")
    resume_hint = f"Go on: ondevice runs resume {folder.path}"

    def keep_recipe() -> (
        None
    ):  # not earlier: one that does not fit what stands there must not take its recipe's place
        write_file(folder.recipe, recipe_text(found))

    with StopRequest() as stop:
        for name in names:
            again = again or name in redo
            if stop.requested:
                raise Interrupted(f"stopped before {name}. {resume_hint}")
            cfg = _placed(found.stages[name], made, bool(resume or redo))
            made[cfg.gives] = str(
                run_stage(
                    name,
                    cfg,
                    folder,
                    around,
                    stop,
                    redo=again,
                    resume_hint=resume_hint,
                    on_ready=keep_recipe,
                    restart_hint=f"--redo {name} runs it again",
                )
            )
    write_report(folder)
    return folder.path


def run_one(name: str, cfg: StageConfig) -> Path:
    """One stage by its own command; returns its model folder. The run folder is `cfg.out`, or a new
    one.

    On the built-in corpus the stage takes the same exam as in a recipe. Raises UserError and
    Interrupted as `run` does.
    """
    cfg.check()
    model = getattr(cfg, "model", None)
    if model == "" and (before := finished(name, cfg)) is not None:
        cfg, model = _filled(cfg, {"model": str(before.model)}), str(before.model)
    if model == "":
        raise UserError("no model was named", where="model", hint=f"ondevice {name} MODEL [DATA]")
    if model:
        cfg = _filled(cfg, {"model": str(find_model(model))})
    if other := getattr(cfg, "other", ""):
        cfg = _filled(cfg, {"other": str(find_model(other))})
    if reward_model := getattr(cfg, "reward_model", ""):
        cfg = _filled(cfg, {"reward_model": str(find_reward_model(reward_model))})
    if cfg.resume and not cfg.out:
        raise UserError("needs the run folder", where="resume", hint="give --out FOLDER")
    folder = RunFolder(cfg.out) if cfg.out else RunFolder.new(name)
    corpus = builtin_in(getattr(cfg, "data", ""), CorpusConfig())
    if corpus and cfg.gives == "policy":
        exam = builtin_exam(corpus, getattr(cfg, "sequence_length", 128))
    else:
        exam = None
    around = RunSettings(
        corpus or CorpusConfig(), load_recipe("minute").prompts if corpus else (), exam
    )
    resume_hint = f"Go on: the same command with --out {folder.path} --resume"
    with StopRequest() as stop:
        return run_stage(name, cfg, folder, around, stop, resume_hint=resume_hint)


def recipe_text(recipe: Recipe) -> str:
    """The recipe with everything resolved, as YAML, and what it ran on."""
    machine: dict[str, Any] = {"system": platform.platform(), "python": platform.python_version()}
    versions = {
        "ondevice": own_version(),
        "tokenizers": version("tokenizers"),
        **{name: found for name, found in available().items() if found},
    }
    return dump_yaml({**recipe.mapping(), "versions": versions, "machine": machine})


def rule_of(recipe: Recipe) -> SimulatedRater | None:
    """The rule of the recipe's simulated rater."""
    cfg = recipe.stages.get("rate")
    if isinstance(cfg, RaterConfig) and cfg.rater == "simulated":
        return SimulatedRater(cfg.right, cfg.courtesy)
    return None


def _placed(cfg: StageConfig, made: Mapping[str, str], resume: bool) -> StageConfig:
    """`cfg` with what the stages before it have made, where it names nothing else."""
    changes: dict[str, Any] = {"resume": resume}
    for field, kind in (("model", "policy"), ("reward_model", "reward")):
        if getattr(cfg, field, None) == "" and kind in made:
            changes[field] = made[kind]
    return _filled(cfg, changes)


def _filled(cfg: StageConfig, changes: Mapping[str, Any]) -> StageConfig:
    return dataclasses.replace(cfg, **changes)


def _exam_length(recipe: Recipe) -> int:
    return int(getattr(recipe.stages.get("pretrain"), "sequence_length", 128))
