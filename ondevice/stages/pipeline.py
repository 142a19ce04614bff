"""A recipe: stage after stage in one run folder, each resumable, and the ladder at the end."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ondevice.common.clock import ticks
from ondevice.common.distribution import own_version
from ondevice.common.errors import Interrupted, UserError, nearest
from ondevice.common.files import write_file
from ondevice.common.launcher import launched
from ondevice.common.sanitize import to_stderr
from ondevice.config.auto import AUTO
from ondevice.config.corpus import CorpusConfig
from ondevice.config.load import dump_yaml, to_mapping
from ondevice.config.preference import RaterConfig
from ondevice.config.recipe import ExamConfig, Recipe, load_recipe, recipe_for
from ondevice.config.runs import RunConfig
from ondevice.config.stages import StageConfig, TrainingConfig
from ondevice.datasets.spec import builtin_in
from ondevice.evaluation.held_out import EvalSuite
from ondevice.evaluation.ordered import OrderedExam
from ondevice.evaluation.stage_exam import BuiltinExam
from ondevice.planning.start import plan_recipe_at_start
from ondevice.preferences.simulated_rater import SimulatedRater
from ondevice.reports.report import write_report
from ondevice.runs.context import Exam, RunSettings
from ondevice.runs.disk_pause import DiskPause
from ondevice.runs.folder import RunFolder, StopRequest
from ondevice.runs.resolve import find_model, find_reward_model
from ondevice.seam.differences import refuse_differences, versions
from ondevice.seam.group import Group
from ondevice.seam.select import available, joined
from ondevice.stages import processes
from ondevice.stages.continued import finished, start_of
from ondevice.stages.runner import Caller, run_stage
from ondevice.stages.settled import as_recorded, with_rules_of
from ondevice.stages.timed import Timed
from ondevice.stages.timed_start import begun, going_on, loaded, timed_run
from ondevice.training.defaults import builtin_length


def run(cfg: RunConfig, sets: Sequence[str] = ()) -> Path:
    """All stages of a recipe, one after the other. Returns the run folder.

    `sets` are changes of the recipe such as "sft.steps=5". With `cfg.resume`, complete stages are
    kept and the unfinished one goes on from its newest checkpoint. A stage named in `cfg.redo` is
    run again, and so is what follows from it. Started by torchrun or mlx.launch, all processes
    train together and return the same. Raises UserError, or Interrupted once a stop has been saved.
    """
    began = ticks()
    cfg.check()
    with joined(cfg.backend, cfg.device) as group:
        if group.several:
            refuse_differences(group, _of_this_process(cfg, sets))
        if not group.leader:
            return processes.follow(group)
        if group.several:
            to_stderr(group.described())
        path = _run(cfg, sets, began, group)
        processes.end(group, path)
        return path


_NO_TIME = UserError(
    "a time is divided for one process, not for several",
    where="time",
    hint="leave it out, or start one process",
)


def _of_this_process(cfg: RunConfig, sets: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What all processes of a run have to have the same. Raises UserError for a recipe that several
    cannot run."""
    recipe = loaded(recipe_for(cfg.recipe, cfg.arch), cfg, sets)
    if cfg.time:
        raise _NO_TIME
    return {
        "versions": versions(),
        "command": to_mapping(cfg),
        "recipe": recipe.mapping(),
    }


def _run(cfg: RunConfig, sets: Sequence[str], began: float, group: Group) -> Path:
    name = recipe_for(cfg.recipe, cfg.arch)
    record = None
    if _goes_on(cfg):
        record = going_on(cfg, RunFolder(cfg.out))
    if record is not None and launched() is not None:
        raise _NO_TIME
    if record is not None:
        name = str(RunFolder(cfg.out).recipe)
    recipe = loaded(name, cfg, sets)
    _check_redo(recipe, cfg.redo)
    folder = _run_folder(recipe, cfg)
    if not folder.recipe.is_file():
        recipe, record = begun(cfg, recipe, folder)
    seconds: dict[str, float] = {}
    if not _goes_on(cfg):
        seconds = plan_recipe_at_start(recipe, folder.path, group)
    start = _start_model(recipe, name)
    timed = None
    if record is not None:
        timed = timed_run(recipe, record, folder, began)
    stop = StopRequest()
    pause = DiskPause(stop)
    shared = RunSettings(
        stop,
        corpus=recipe.corpus,
        prompts=recipe.prompts,
        exam=recipe_exam(recipe),
        exam_settings=recipe.exam,
        pause=pause,
        time=timed.time if timed is not None else lambda: None,
    )
    to_stderr(f"{recipe.name}: {' → '.join(recipe.stages)}, in {folder.path}")
    with stop, pause():
        _run_stages(cfg, recipe, folder, shared=shared, start=start, timed=timed, seconds=seconds)
        write_report(folder, timed.told() if timed is not None else ())
    if timed is not None:
        to_stderr(timed.ended())
    return folder.path


def _goes_on(cfg: RunConfig) -> bool:
    """Whether the command continues a run that stands in its folder."""
    return bool(cfg.resume or cfg.redo)


def _check_redo(recipe: Recipe, redo: Sequence[str]) -> None:
    """Raises UserError for a stage to be run again that the recipe does not have."""
    for name in redo:
        if name not in recipe.stages:
            raise UserError(
                f"the recipe has no stage {name!r}", where="redo", hint=nearest(name, recipe.stages)
            )


def _start_model(recipe: Recipe, name: str) -> str:
    """The model that the first stage begins from; empty where that stage makes one itself. Raises
    UserError where the recipe called `name` should name a model and does not.
    """
    first = next(iter(recipe.stages))
    start = getattr(recipe.stages[first], "model", None)
    if start == "":
        raise UserError(
            "no model was named",
            where=f"{name}: stages.{first}.model",
            hint="begin with the stage init, or name a model's folder",
        )
    return start or ""


def _run_folder(recipe: Recipe, cfg: RunConfig) -> RunFolder:
    """The folder `cfg.out`, or a new one. Raises UserError where it holds a run that the command
    does not continue.
    """
    if cfg.out:
        folder = RunFolder(cfg.out)
    else:
        folder = RunFolder.new(recipe.name)
    begun = [stage.name for stage in folder.stages()]
    if begun and not _goes_on(cfg):
        raise UserError(
            f"holds a run already ({', '.join(begun)})",
            where=str(folder.path),
            hint="--resume goes on with it; or give another --out",
        )
    return folder


def recipe_exam(recipe: Recipe) -> Exam | None:
    """The exam on data of its own, or that of the built-in corpus, where a stage reads it."""
    if recipe.exam.data:
        return OrderedExam(recipe.exam)
    if not _reads_builtin_corpus(recipe):
        return None
    return BuiltinExam(recipe.corpus, _exam_length(recipe), recipe.exam, rule_of(recipe))


def _reads_builtin_corpus(recipe: Recipe) -> bool:
    for cfg in recipe.stages.values():
        if getattr(cfg, "tokenizer", ""):
            continue  # with a ready tokenizer init reads no data
        if str(getattr(cfg, "data", "")).startswith("builtin"):
            return True
    return False


def _run_stages(
    run: RunConfig,
    recipe: Recipe,
    folder: RunFolder,
    *,
    shared: RunSettings,
    start: str,
    timed: Timed | None = None,
    seconds: Mapping[str, float],
) -> None:
    """Runs the recipe's stages, each from what the stages before it have made, the first from the
    model `start` where one is named. `timed` divides what is left of a time before each; `seconds`
    that the stages are to take, where that is known, are kept for whoever watches. Raises
    Interrupted between two stages where a stop was requested.
    """
    resume_hint = f"Go on: ondevice runs resume {folder.path}"
    if launched() is not None:
        resume_hint = f"Go on: the same command with --out {folder.path} --resume"
    given: dict[str, str] = {}
    if start:
        given["policy"] = start

    settled = _begun(run, recipe, folder)

    # Called once a stage can begin: a recipe that does not fit what stands in the folder must not
    # replace the recipe there.
    def keep_recipe() -> None:
        write_file(folder.recipe, recipe_text(dataclasses.replace(recipe, stages=settled)))
        if seconds:
            write_file(folder.plan, json.dumps({"seconds": dict(seconds)}, indent=1) + "\n")

    def keep_settled(name: str, cfg: StageConfig) -> None:
        settled[name] = with_rules_of(settled[name], cfg)
        keep_recipe()

    again = False
    for name, settings in recipe.stages.items():
        if name in run.redo and not again:
            again = True
            _ask_again(folder, recipe, name)
        if shared.stop.requested:
            raise Interrupted(f"stopped before {name}. {resume_hint}")
        if timed is not None:
            timed_settings = timed.before(name, given)
            settled = _settled_by(timed, settled, name, timed_settings)
            if timed_settings is None:
                keep_recipe()
                continue
            settings = timed_settings
        cfg = _placed(settings, given, _goes_on(run))
        caller = Caller(
            resume_hint,
            f"--redo {name} runs it again",
            keep_recipe,
            partial(keep_settled, name),
        )
        model = run_stage(name, cfg, folder, shared=shared, caller=caller, redo=again)
        given[cfg.gives] = str(model)
        if timed is not None:
            timed.after(name)


def _settled_by(
    timed: Timed, settled: Mapping[str, StageConfig], name: str, settings: StageConfig | None
) -> dict[str, StageConfig]:
    """The stages as they stand now: `name` with its settings (None: without it), those after it as
    they are foreseen."""
    names = list(settled)
    after = names[names.index(name) + 1 :]
    now = {**settled, **{one: timed.recipe.stages[one] for one in after}}
    if settings is None:
        del now[name]
    else:
        now[name] = settings
    return now


def _ask_again(folder: RunFolder, recipe: Recipe, first: str) -> None:
    """Has this stage and those after it run again, also where this process is stopped before it
    comes to them."""
    names = list(recipe.stages)
    for name in names[names.index(first) :]:
        stage = folder.stage(name)
        if stage.path.is_dir():
            stage.redo.touch()


def _begun(run: RunConfig, recipe: Recipe, folder: RunFolder) -> dict[str, StageConfig]:
    """The recipe's stages, those that the run goes on with as they were begun."""
    stages = dict(recipe.stages)
    if not _goes_on(run):
        return stages
    for name, cfg in stages.items():
        if name in run.redo:
            break
        stages[name] = as_recorded(cfg, folder.stage(name))
    return stages


def run_one(name: str, cfg: StageConfig) -> Path:
    """One stage by its own command; returns its model folder. The run folder is `cfg.out`, or a new
    one.

    On the built-in corpus the stage takes the same exam as in a recipe. Raises UserError and
    Interrupted as `run` does.
    """
    cfg.check()
    if cfg.resume and not cfg.out:
        raise UserError("needs the run folder", where="resume", hint="give --out FOLDER")
    with joined(cfg.backend, cfg.device) as group:
        if group.several:
            refuse_differences(group, {"versions": versions(), "command": to_mapping(cfg)})
        if not group.leader:
            return processes.follow(group)
        if group.several:
            to_stderr(group.described())
        path = _run_one(name, cfg)
        processes.end(group, path)
        return path


def _run_one(name: str, cfg: StageConfig) -> Path:
    cfg = with_models(name, cfg)
    if cfg.out:
        folder = RunFolder(cfg.out)
    else:
        folder = RunFolder.new(name)
    resume_hint = f"Go on: the same command with --out {folder.path} --resume"
    stop = StopRequest()
    pause = DiskPause(stop)
    shared = dataclasses.replace(_settings_of_one(cfg, stop), pause=pause)
    with stop, pause():
        return run_stage(name, cfg, folder, shared=shared, caller=Caller(resume_hint))


def with_models(name: str, cfg: StageConfig) -> StageConfig:
    """`cfg` with the folders of the models that it names. Raises UserError where the stage needs a
    model and none is named or known, and for a model that cannot be found.
    """
    model = getattr(cfg, "model", None)
    if model == "":
        before = finished(name, cfg)
        if before is not None:
            model = str(start_of(name, before))
            cfg = _filled(cfg, {"model": model})
    if model == "":
        raise UserError("no model was named", where="model", hint=f"ondevice {name} MODEL [DATA]")
    if model:
        cfg = _filled(cfg, {"model": str(find_model(model))})
    other = getattr(cfg, "other", "")
    if other:
        cfg = _filled(cfg, {"other": str(find_model(other))})
    reward_model = getattr(cfg, "reward_model", "")
    if reward_model:
        cfg = _filled(cfg, {"reward_model": str(find_reward_model(reward_model))})
    return cfg


def _settings_of_one(cfg: StageConfig, stop: StopRequest) -> RunSettings:
    """What a recipe says around its stages, for one stage alone: that of the built-in recipe where
    the stage reads the built-in corpus.
    """
    corpus = builtin_in(getattr(cfg, "data", ""), CorpusConfig())
    if not corpus:
        return RunSettings(stop)
    exam = None
    if cfg.gives == "policy":
        exam = BuiltinExam(corpus, _row_length(cfg))
    prompts = load_recipe("minute").prompts
    return RunSettings(stop, corpus=corpus, prompts=prompts, exam=exam, exam_settings=ExamConfig())


def recipe_text(recipe: Recipe) -> str:
    """The recipe with everything resolved, as YAML, and what it ran on."""
    machine: dict[str, Any] = {"system": platform.platform(), "python": platform.python_version()}
    used = {"ondevice": own_version(), "tokenizers": version("tokenizers")}
    for name, installed in available().items():
        if installed:
            used[name] = installed
    return dump_yaml({**recipe.mapping(), "versions": used, "machine": machine})


def rule_of(recipe: Recipe) -> SimulatedRater | None:
    """The rule of the recipe's simulated rater, where it goes by answers."""
    cfg = recipe.stages.get("rate")
    if isinstance(cfg, RaterConfig) and cfg.rater == "simulated" and not cfg.rewards:
        return SimulatedRater(cfg.right, cfg.courtesy)
    return None


def _placed(cfg: StageConfig, given: Mapping[str, str], resume: bool) -> StageConfig:
    """`cfg` with what the stages before it have made, where it names nothing else."""
    changes: dict[str, Any] = {"resume": resume}
    for field, kind in (("model", "policy"), ("reward_model", "reward")):
        if getattr(cfg, field, None) == "" and kind in given:
            changes[field] = given[kind]
    return _filled(cfg, changes)


def _filled(cfg: StageConfig, changes: Mapping[str, Any]) -> StageConfig:
    return dataclasses.replace(cfg, **changes)


def _exam_length(recipe: Recipe) -> int:
    pretrain = recipe.stages.get("pretrain")
    if pretrain is None:
        return EvalSuite.sequence_length
    return _row_length(pretrain)


def _row_length(cfg: StageConfig) -> int:
    """Tokens of a row of text in the exam of a stage on the built-in corpus."""
    length = getattr(cfg, "sequence_length", EvalSuite.sequence_length)
    if length == AUTO and isinstance(cfg, TrainingConfig):
        return builtin_length(cfg)
    return int(length)
