"""What a push is going to send, as a value: looked at by a person before anything leaves this
machine, kept on disk while it is under way.

A file is sent because it is on a list, never because it lies in a folder. What is written for the
push alone (the card, the curves, exported ratings) is part of the plan, so that a push that goes on
sends the very same bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ondevice.common.errors import UserError
from ondevice.common.files import sha256 as sha256_of
from ondevice.common.files import write_file
from ondevice.common.json_files import load_json
from ondevice.common.sanitize import sanitize
from ondevice.config.hub import PLANNED, PushConfig
from ondevice.hub.client import Kind
from ondevice.models.model_folder import weight_files
from ondevice.preferences.sqlite_store import FILE, ratings_file
from ondevice.publishing.dataset_card import data_files
from ondevice.publishing.model_card import Card, folder_card, run_card
from ondevice.publishing.public_names import own_name
from ondevice.publishing.push_files import OPTIMIZER, plain_settings, real_file
from ondevice.publishing.target import Target, find_target, stages_with_models
from ondevice.publishing.usage import base_may_be_told
from ondevice.runs import checkpoint
from ondevice.runs.folder import RunFolder

PENDING = "pending-push.json"
FORMAT = 1
CARD = "README.md"
TEXTS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "adapter_config.json",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "NOTICE",
)
"""What is sent beside the weights, where it is there. The card is written anew."""
ADAPTERS = ("adapter_model.safetensors", "adapters.safetensors")
REPLACED = re.compile(
    r"(model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json|adapters\.safetensors|"
    r"adapter_model\.safetensors|adapter_config\.json|optimizer\.safetensors|trainer\.json)"
)
"""Names whose files of an earlier push must not stay beside a new push's: together they would be
neither model.
"""


@dataclass(frozen=True)
class PlannedFile:
    """A file to send: `source` on disk, or `text`. `sha256` is empty until `hashed`."""

    path: str
    size: int
    source: str = ""
    text: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class Plan:
    """A push. `folder` is where `pending-push.json` lies, `parent` the commit that it goes on top
    of once it was looked up, `removed` the files of an earlier push that it replaces, `settings`
    what of `PLANNED` was asked for."""

    repo: str
    kind: Kind
    public: bool
    folder: str
    message: str
    files: tuple[PlannedFile, ...]
    tag: str = ""
    parent: str = ""
    removed: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def mark(self) -> str:
        """What finds this push's commit again: the same for the same files on top of the same
        commit.
        """
        files = [[file.path, file.sha256] for file in self.files]
        parts = [self.repo, self.kind, self.parent, files, list(self.removed)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]

    @property
    def pending(self) -> Path:
        return Path(self.folder) / PENDING

    def hashed(self) -> Plan:
        """With every file's hash. Raises UserError for a file that has gone, changed since it was
        hashed, or leads out of the folder."""
        home = Path(self.folder)
        return dataclasses.replace(self, files=tuple(_hashed(file, home) for file in self.files))

    def told(self) -> dict[str, Any]:
        """For people and programs: what goes where."""
        return {
            "repo": self.repo,
            "kind": self.kind,
            "private": not self.public,
            "tag": self.tag,
            "bytes": self.size,
            "files": [{"path": file.path, "bytes": file.size} for file in self.files],
        }

    def keep(self) -> None:
        """Writes `pending-push.json`, whole or not at all."""
        write_file(self.pending, json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n")


def pending(folder: Path) -> Plan:
    """The push that was interrupted here. Raises UserError where there is none, or its record is
    damaged.
    """
    file = folder / PENDING
    try:
        record = load_json(file)
        if record.pop("format") != FORMAT:
            raise ValueError("another format")
        record["files"] = tuple(PlannedFile(**file) for file in record["files"])
        record["removed"] = tuple(record["removed"])
        record["folder"] = str(folder)
        return Plan(**record)
    except FileNotFoundError:
        raise UserError(
            "no push was interrupted here", where=str(folder), hint="push without --resume"
        ) from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(
            "cannot be read", where=str(file), hint="remove it, and push without --resume"
        ) from None


def check_planned(cfg: PushConfig, plan: Plan) -> None:
    """Raises UserError for a setting that is given and is another one in the push that was
    interrupted; one that is the same may stand there."""
    known = {
        "public": plan.public,
        "tag": plan.tag,
        "dataset": plan.kind == "dataset",
        **plan.settings,
    }
    usual = {setting.name: setting.default for setting in dataclasses.fields(PushConfig)}
    for name in PLANNED:
        given = getattr(cfg, name)
        if given == usual[name]:
            continue
        was = "does not say what it had"
        if name in known:
            if given == known[name]:
                continue
            was = f"had {known[name] or 'none'!r}"
        raise UserError(
            f"the push that was interrupted goes on as it was planned, and {was}",
            where=name,
            hint="leave it out, or push without --resume",
        )


def plan_push(cfg: PushConfig) -> Plan:
    """The plan of a push that begins. Nothing is asked of the network. Raises UserError for what
    cannot be sent.
    """
    cfg.check()
    if cfg.dataset:
        return _dataset(cfg)
    target = find_target(cfg.model, cfg.stage)
    if cfg.all_stages:
        return _every_stage(cfg, target)
    if target.model is None:
        raise UserError(
            "holds no model", where=cfg.model, hint="give the folder of a model or of a run"
        )
    files = model_files(target.model, target.home)
    if cfg.with_optimizer:
        files += _optimizer(target)
    if target.run and target.stage:
        cfg = dataclasses.replace(cfg, stage=target.stage.name)  # the record says which one it was
        run = _records_inside(target.run)
        card = run_card(run, target.stage.name, cfg.repo_id, license=cfg.license)
        what = f"{own_name(run.path.resolve())}: {target.stage.name}"
    else:
        real_file(target.model / CARD, target.home)
        card = folder_card(target.model, cfg.repo_id, license=cfg.license)
        what = own_name(target.model.resolve())
    return _plan(cfg, target.home, f"Push {what}", files, card)


def model_files(folder: Path, home: Path, under: str = "") -> list[PlannedFile]:
    """The listed files of a model's or an adapter's folder, placed `under` a folder of the
    repository; `home` is the folder that was named. Raises UserError where weights are missing, or
    are pickled, where a file leads out of `home`, or where an adapter's base is a folder of this
    machine: nobody else would have it."""
    names = _files_in(folder, TEXTS)
    weights = [folder / name for name in _files_in(folder, ADAPTERS)]
    if weights and not base_may_be_told(folder):
        raise UserError(
            "is an adapter whose base is a folder of this machine",
            where=str(folder),
            hint="name one of the Hub in adapter_config.json, or make whole weights of it: ondevice.merge",
        )
    if not weights:
        weights = weight_files(folder)
        index = folder / "model.safetensors.index.json"
        if index.is_file() and weights[0].name != "model.safetensors":
            names.append(index.name)
    paths = [folder / name for name in names] + weights
    found = []
    for path in paths:
        real_file(path, home)
        found.append(_planned(f"{under}{path.name}", path, home))
    return found


def _files_in(folder: Path, names: Iterable[str]) -> list[str]:
    """Those of the names that are files there."""
    return [name for name in names if (folder / name).is_file()]


def _planned(name: str, path: Path, home: Path) -> PlannedFile:
    """A file to send as `name`: as it is on the disk or, where that is a file of settings that must
    be changed, as text.
    """
    text = plain_settings(path, home)
    if text is None:
        return _on_disk(name, path, home)
    return _written(name, text)


def _records_inside(run: RunFolder) -> RunFolder:
    """The run, whose records are its own. Raises UserError for one that leads out of its folder."""
    for stage in run.stages():
        for record in (stage.done, stage.events):
            real_file(record, run.path)
    return run


def _every_stage(cfg: PushConfig, target: Target) -> Plan:
    """The last model at the top, where every program looks for it, and each stage's in a folder of
    its name.
    """
    run = target.run
    stages = []
    if run:
        stages = stages_with_models(run)
    if run is None or target.stage is None or not stages:
        raise UserError(
            "is not a run with finished stages", where=cfg.model, hint="leave --all-stages out"
        )
    _records_inside(run)
    files = []
    if target.model:
        files = model_files(target.stage.model, target.home)
    for stage in stages:
        files += model_files(stage.model, target.home, f"{stage.name}/")
        own = run_card(run, stage.name, cfg.repo_id, under=stage.name, license=cfg.license)
        files.append(_written(f"{stage.name}/{CARD}", own.text))
    folders = [stage.name for stage in stages]
    card = run_card(run, target.stage.name, cfg.repo_id, license=cfg.license, folders=folders)
    return _plan(cfg, target.home, f"Push {own_name(run.path.resolve())}: every stage", files, card)


def _dataset(cfg: PushConfig) -> Plan:
    given = Path(os.path.expanduser(cfg.model))
    if given.is_dir():
        real_file(given / FILE, given)
    file = ratings_file(given)
    texts = data_files(file, cfg.repo_id, with_raters=cfg.with_raters, license=cfg.license)
    files = tuple(_written(path, text) for path, text in texts.items())
    message = f"Push ratings of {own_name(file.resolve().parent)}"
    return Plan(
        cfg.repo_id,
        "dataset",
        cfg.public,
        str(file.parent),
        message,
        files,
        cfg.tag,
        settings=_settings(cfg),
    )


def _plan(
    cfg: PushConfig, home: Path, message: str, files: Sequence[PlannedFile], card: Card
) -> Plan:
    made = [*files, _written(CARD, card.text)]
    for path, text in card.pictures.items():
        made.append(_written(path, text))
    message = sanitize(message, newlines=False, limit=200)
    return Plan(
        cfg.repo_id,
        "model",
        cfg.public,
        str(home),
        message,
        tuple(made),
        cfg.tag,
        settings=_settings(cfg),
    )


def _settings(cfg: PushConfig) -> dict[str, Any]:
    return {name: getattr(cfg, name) for name in PLANNED}


def _optimizer(target: Target) -> list[PlannedFile]:
    """The optimizer's state of the checkpoint that holds these very weights."""
    folder = _checkpoint_of(target)
    if folder is None:
        raise UserError(
            "no checkpoint with these weights is on disk, so that there is no optimizer's state",
            where=str(target.model),
            hint="leave --with-optimizer out",
        )
    return [_planned(name, folder / name, target.home) for name in OPTIMIZER]


def _checkpoint_of(target: Target) -> Path | None:
    """The folder of the checkpoint whose weights are the target's; None: there is none."""
    model = target.model
    if model is None:
        return None
    if (model.parent / "optimizer.safetensors").is_file():
        return model.parent  # the model is a checkpoint's own
    if target.stage is None:
        return None
    wanted = ""
    if (model / "model.safetensors").is_file():
        wanted = sha256_of(model / "model.safetensors")
    for path in reversed(checkpoint.steps(target.stage.checkpoints)):
        weights = path / "model" / "model.safetensors"
        if not weights.is_file() or wanted != sha256_of(weights):
            continue
        if checkpoint.find_damage(path) is None:
            return path
    return None


def _on_disk(path: str, source: Path, home: Path) -> PlannedFile:
    real = real_file(source, home)
    return PlannedFile(path, real.stat().st_size, source=str(real))


def _written(path: str, text: str) -> PlannedFile:
    return PlannedFile(path, len(text.encode()), text=text)


def _hashed(file: PlannedFile, home: Path) -> PlannedFile:
    if not file.source:
        digest = hashlib.sha256(file.text.encode()).hexdigest()
    else:
        source = real_file(Path(file.source), home)
        if not source.is_file():
            raise UserError(
                "is not there any more", where=file.source, hint="push without --resume"
            )
        if source.stat().st_size != file.size:
            raise _changed(file)
        digest = sha256_of(source)
    if file.sha256 and digest != file.sha256:
        raise _changed(file)
    return dataclasses.replace(file, sha256=digest)


def _changed(file: PlannedFile) -> UserError:
    return UserError(
        "has changed since the push began",
        where=file.source or file.path,
        hint="push without --resume",
    )


def replaced(present: Iterable[str], files: Iterable[PlannedFile]) -> tuple[str, ...]:
    """Of the paths that are in the repository: the weights that an earlier push left in a folder to
    which this one writes."""
    mine = {file.path for file in files}
    folders = {path.rpartition("/")[0] for path in mine}
    found = []
    for path in present:
        folder, _, name = path.rpartition("/")
        if path not in mine and folder in folders and REPLACED.fullmatch(name):
            found.append(path)
    return tuple(sorted(found))


def plan_text(told: Mapping[str, Any], size: Callable[[float], str]) -> str:
    """`Plan.told` as lines: where to, who can see it, every file with its size."""
    kind = "model"
    if told["kind"] == "dataset":
        kind = "data set"
    seen = "PUBLIC: everyone can see it"
    if told["private"]:
        seen = "private"
    tag = ""
    if told["tag"]:
        tag = f", tag {told['tag']}"
    files = told["files"]
    sizes = [size(file["bytes"]) for file in files]
    width = max(map(len, sizes), default=0)
    lines = [f"{told['repo']}  ({kind}, {seen}{tag})"]
    for file, amount in zip(files, sizes, strict=True):
        lines.append(f"  {amount:>{width}}  {file['path']}")
    lines.append(f"  {len(files)} files, {size(told['bytes'])}")
    return "\n".join(lines)
