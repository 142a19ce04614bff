"""How several processes run the stages of one run: the first one as if it were alone, and each of
the others beside it, stage after stage, as the first one says (`follow`).

The others compute, and nothing else: what they would write goes into a folder of their own that is
gone with them, what they would say to a person the first one says. Their models and their data lie
where the first one's do, also on another machine; that they are the same is checked before a stage
begins. What a run has made itself is sent to the machines that do not have it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from ondevice.common import atomic
from ondevice.common.launcher import quiet
from ondevice.common.power import kept_awake
from ondevice.config.corpus import CorpusConfig
from ondevice.config.load import from_mapping, to_mapping
from ondevice.config.preference import GRPOConfig
from ondevice.config.recipe import STAGES
from ondevice.config.stages import StageConfig
from ondevice.datasets.chats_beside import sft_before
from ondevice.datasets.pairs_beside import kept_pairs
from ondevice.datasets.preference_pairs import COPY as PAIRS
from ondevice.evaluation.ordered import OrderedExam
from ondevice.evaluation.stage_exam import exam_of
from ondevice.models.compute_type import cast_once
from ondevice.models.digest import model_digest
from ondevice.models.model import Model
from ondevice.preferences.sqlite_store import FILE as RATINGS
from ondevice.runs.context import Context, RunSettings, StageResult, StageStart
from ondevice.runs.events import ForwardedEvents
from ondevice.runs.folder import RunFolder, StageFolder, StopRequest
from ondevice.seam.differences import refuse_differences
from ondevice.seam.group import CHUNK, Group, StageAgain
from ondevice.seam.select import load_backend
from ondevice.stages.fingerprint import check_start, fingerprint_of
from ondevice.stages.tuning import result
from ondevice.training.together import as_told, to_tell

ALONE = ("init", "rate")
"""Stages that the first process does alone, while the others wait."""
_MACHINES_OWN = ("threads", "machine", "processes")


# ---- the first process ---------------------------------------------------------------------------


def begin(ctx: Context, cfg: StageConfig) -> None:
    """Has the other processes begin the stage that the first one begins. Raises UserError where one
    of them has other data, models or versions."""
    group = ctx.group
    if not group.several:
        return
    ctx.hear_others()
    folder = ctx.folder
    files = [file for file in (folder.path / PAIRS, folder.settings) if file.is_file()]
    group.tell(
        {
            "stage": ctx.name,
            "config": to_mapping(_with_pairs(cfg, folder.path.parent)),
            "corpus": to_mapping(ctx.shared.corpus),
            "resume": ctx.start.resume,
            "continued": to_tell(ctx.start.continued),
            "run": str(folder.path.parent),
            "exam": None if ctx.shared.exam is None else ctx.shared.exam.to_mapping(),
        }
    )
    _send_files(group, _made_before(folder), None)
    _send_files(group, {file.name: file for file in files}, None)
    _compare(ctx, cfg)


def _with_pairs(cfg: StageConfig, run: Path) -> StageConfig:
    """`cfg` with the name of the run's own pairs, which the others have no run to find in."""
    if not isinstance(cfg, GRPOConfig):
        return cfg
    kept = kept_pairs(cfg, run)
    if kept is None:
        return cfg
    return replace(cfg, pair_data=kept.data)


def examined(ctx: Context, model: Model, group: Group) -> Mapping[str, Any]:
    """What the stage's exam says of its model, which all processes of `group` take together."""
    exam = ctx.shared.exam
    if exam is None:
        return {}
    alone, ctx.backend.group = ctx.backend.group, group
    try:
        group.call("exam")
        return exam(model, ctx.backend, ctx.data.cache)
    finally:
        ctx.backend.group = alone


def end(group: Group, path: Path) -> None:
    """Lets the other processes go: `path` is what they return."""
    if group.several:
        group.tell({"end": str(path)})


def _made_before(stage: StageFolder) -> dict[str, Path]:
    """What the run has made that a stage reads: models, ratings, and what earlier stages say of
    themselves. It is sent to the machines that do not have it."""
    run = stage.path.parent
    files = [run / "recipe.yaml", run / RATINGS]
    for other in RunFolder(run).stages():
        if other.name != stage.name:
            files += [other.events, other.settings, other.done, *sorted(other.model.rglob("*"))]
    return {str(file): file for file in files if file.is_file()}


def _send_files(group: Group, files: Mapping[str, Path], target: Path | None) -> None:
    """Files of the first process to the others that have none of that name and size in their folder
    `target`; None: the first process's own call."""
    own_sizes = {name: file.stat().st_size for name, file in files.items()}
    sizes: dict[str, int] = group.tell(own_sizes)
    lacking = []
    if not group.leader:
        assert target is not None
        for name, size in sizes.items():
            file = target / name
            if not file.is_file() or file.stat().st_size != size:
                lacking.append(name)
    wanted = sorted({name for names in group.gather(lacking) for name in names})
    for name in wanted:
        if group.leader:
            with files[name].open("rb") as source:
                for start in range(0, sizes[name], CHUNK):
                    data = source.read(CHUNK)
                    group.send_bytes(data, min(CHUNK, sizes[name] - start))
        else:
            _receive(group, sizes[name], target / name if name in lacking and target else None)


def _receive(group: Group, size: int, file: Path | None) -> None:
    """A file of `size` bytes; None: this process has it already."""
    parts = (group.send_bytes(b"", min(CHUNK, size - n)) for n in range(0, size, CHUNK))
    if file is None:
        for _ in parts:
            pass
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic.aside(file) as new:
        with new.open("wb") as out:
            for part in parts:
                out.write(part)
        atomic.replace(new, file)


def _compare(ctx: Context, cfg: StageConfig) -> None:
    contents = dict(ctx.start.fingerprint)
    if isinstance(cfg, GRPOConfig) and cfg.pair_coef:  # the reference of pairs beside
        before = sft_before(cfg.model)
        if before and before.has_model:
            contents["sft"] = model_digest(before.model)
        else:
            contents["sft"] = ""
    own = {
        "contents": contents,
        "versions": {n: v for n, v in ctx.versions().items() if n not in _MACHINES_OWN},
    }
    if isinstance(ctx.shared.exam, OrderedExam):
        contents["exam"] = ctx.shared.exam.digest()
    refuse_differences(ctx.group, own)


# ---- the others ----------------------------------------------------------------------------------


def follow(group: Group) -> Path:
    """Computes beside the first process until that is done; returns what it returns. Raises
    UserError and Interrupted as it does."""
    with (
        atomic.aside(Path(gettempdir()) / "ondevice-process") as scratch,
        quiet(),
        StopRequest(silent=True) as stop,
    ):
        while True:
            try:
                order = group.tell()
                if "end" in order:
                    return Path(order["end"])
                _follow_stage(group, order, scratch, stop)
            except StageAgain:
                continue


def _follow_stage(group: Group, order: Mapping[str, Any], scratch: Path, stop: StopRequest) -> None:
    """One stage, as the first process does it, in a folder of this process's own."""
    name = order["stage"]
    cfg = from_mapping(STAGES[name], order["config"], name)
    corpus = from_mapping(CorpusConfig, order["corpus"], name)
    run = RunFolder(scratch / "run")
    folder = run.stage(name).create()
    _send_files(group, {}, Path())
    _send_files(group, {}, folder.path)
    resume = bool(order["resume"])
    fingerprint = fingerprint_of(cfg, corpus, folder, resume)
    start = StageStart(
        resume,
        fingerprint,
        as_told(order["continued"]),
        lambda: check_start(cfg, fingerprint),
    )
    ctx = Context(
        folder,
        load_backend(cfg.backend, cfg.device, cfg.dtype),
        # a file that is named is the run's: this one's own folder is gone when a person looks
        ForwardedEvents(lambda text: group.post(text.replace(str(run.path), order["run"]))),
        shared=RunSettings(stop, corpus=corpus, say=lambda text: None, exam=exam_of(order["exam"])),
        start=start,
    )
    _compare(ctx, cfg)
    first_here = group.hosts.index(group.hosts[group.rank]) == group.rank
    with kept_awake(ctx.tell) if cfg.keep_awake and first_here else nullcontext():
        made = importlib.import_module(f"ondevice.stages.{name}").run(cfg, ctx)
        group.follow(exam=partial(_take_exam, ctx, cfg, made))


def _take_exam(ctx: Context, cfg: StageConfig, made: StageResult | Model) -> None:
    model = made if isinstance(made, Model) else made.model
    assert model is not None and ctx.shared.exam is not None
    model = result(model, ctx.settled or cfg, ctx)
    used = model.with_params(cast_once(model, model.params, ctx.backend))
    ctx.shared.exam(used, ctx.backend, ctx.data.cache)
