"""How several processes run the stages of one run: the first one as if it were alone, and each of
the others beside it, stage after stage, as the first one says (`follow`).

The others compute, and nothing else: what they would write goes into a folder of their own that is
gone with them, what they would say to a person the first one says. Their models and their data lie
where the first one's do, also on another machine; that they are the same is checked before a stage
begins. What a run has made itself is sent to the machines that do not have it.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ondevice.common import atomic
from ondevice.common.distribution import own_version
from ondevice.common.errors import UserError
from ondevice.common.power import kept_awake
from ondevice.config.corpus import CorpusConfig
from ondevice.config.load import from_mapping, to_mapping
from ondevice.config.preference import GRPOConfig
from ondevice.config.recipe import STAGES
from ondevice.config.stages import StageConfig
from ondevice.datasets.chats_beside import sft_before
from ondevice.datasets.pairs_beside import kept_pairs
from ondevice.datasets.preference_pairs import COPY as PAIRS
from ondevice.models.digest import model_digest
from ondevice.preferences.sqlite_store import FILE as RATINGS
from ondevice.runs.context import Context, RunSettings, StageStart
from ondevice.runs.events import ForwardedEvents
from ondevice.runs.folder import RunFolder, StageFolder, StopRequest
from ondevice.seam.group import CHUNK, Group, StageAgain
from ondevice.seam.select import available, load_backend
from ondevice.stages.fingerprint import check_start, fingerprint_of
from ondevice.training.together import as_told, to_tell

ALONE = ("init", "rate")
"""Stages that the first process does alone, while the others wait."""
_MACHINES_OWN = ("threads", "machine", "processes")


def refuse_differences(group: Group, own: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises UserError, in all processes, where one has other values than the first one."""
    first, *others = group.gather(own)
    for rank, other in enumerate(others, 1):
        for part, values in first.items():
            for name in values.keys() | other[part].keys():
                before, now = values.get(name), other[part].get(name)
                if before == now:
                    continue
                what = f"has {name} {_short(now)}, and the first process {_short(before)}"
                if part == "contents" and name in ("data", "model", "reward_model", "other"):
                    what = f"has other contents of {name} than the first process"
                raise UserError(
                    what,
                    where=group.title(rank),
                    hint="all processes need the same recipe, versions, data and models",
                )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def versions() -> dict[str, Any]:
    """What has to be the same everywhere, before a backend is loaded."""
    return {"ondevice": own_version(), **available()}


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
    return cfg if kept is None else replace(cfg, pair_data=kept.data)


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
    sizes: dict[str, int] = group.tell({name: file.stat().st_size for name, file in files.items()})
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
        contents["sft"] = model_digest(before.model) if before and before.has_model else ""
    own = {
        "contents": contents,
        "versions": {n: v for n, v in ctx.versions().items() if n not in _MACHINES_OWN},
    }
    refuse_differences(ctx.group, own)


# ---- the others ----------------------------------------------------------------------------------


def follow(group: Group) -> Path:
    """Computes beside the first process until that is done; returns what it returns. Raises
    UserError and Interrupted as it does."""
    with (
        TemporaryDirectory(prefix="ondevice-process-") as scratch,
        _quiet(),
        StopRequest(silent=True) as stop,
    ):
        while True:
            try:
                order = group.tell()
                if "end" in order:
                    return Path(order["end"])
                _follow_stage(group, order, Path(scratch), stop)
            except StageAgain:
                continue


@contextmanager
def _quiet() -> Iterator[None]:
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        redirect_stderr(nowhere),
        redirect_stdout(nowhere),
    ):
        yield


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
        shared=RunSettings(stop, corpus=corpus, say=lambda text: None),
        start=start,
    )
    _compare(ctx, cfg)
    first_here = group.hosts.index(group.hosts[group.rank]) == group.rank
    with kept_awake(ctx.tell) if cfg.keep_awake and first_here else nullcontext():
        importlib.import_module(f"ondevice.stages.{name}").run(cfg, ctx)
