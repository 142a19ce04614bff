"""Which runs cannot do without another one: what would be lost if that were taken away."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ondevice.common.json_files import load_json
from ondevice.runs import events
from ondevice.runs.folder import RunFolder, StageFolder

_MODELS = ("model", "value_model")
_BEGINS_WITH = ("model", "other", "reward_model", "continue_from", "tokenizer")
"""Settings that name a model, or a stage."""
_READS = ("data", "validation", "replay", "sft_data", "pair_data", "ratings")
"""Settings that name files, of which a stage reads again when it goes on."""


def needed_by(other: RunFolder, run: Path) -> str:
    """Why the run `other` needs `run`, in words: an adapter has its base there, or a stage that is
    not complete begins with something of it. Empty where it does not."""
    root = os.path.realpath(run)
    for stage in other.stages():
        for model in _models(stage):
            base = _base_of(model)
            if base and _inside(base, root):
                return f"the base of {_short(model, other)} is {_short(Path(base), run.parent)}"
        if stage.done_record() is not None:
            continue
        for name, value in _named(stage):
            if _inside(value, root):
                return f"{stage.name}, which is not complete, has {name} {value}"
    return ""


def _models(stage: StageFolder) -> Iterator[Path]:
    """The folders of a stage that may be adapters: results, and the newest checkpoints'."""
    for name in _MODELS:
        yield stage.path / name
    for path in sorted(stage.checkpoints.glob("step-*"))[-1:]:
        yield path / "model"


def _base_of(model: Path) -> str:
    try:
        config = load_json(model / "adapter_config.json")
    except (OSError, ValueError, RecursionError):
        return ""
    if isinstance(config, dict):
        base = config.get("base_model_name_or_path")
    else:
        base = None
    return base if isinstance(base, str) else ""


def _named(stage: StageFolder) -> Iterator[tuple[str, str]]:
    """(setting, path) of what a stage was begun with."""
    try:
        config: Any = events.first_event(stage.events).get("config")
    except OSError:
        return
    if not isinstance(config, dict):
        return
    for name in (*_BEGINS_WITH, *_READS):
        value = config.get(name)
        if not isinstance(value, str):
            continue
        # data may be several, each with a share: a.jsonl:3,b.jsonl
        for part in value.split(",") if name in _READS else [value]:
            if part:
                yield name, part.partition(":")[0] if name in _READS else part


def _inside(path: str, root: str) -> bool:
    try:
        real = os.path.realpath(os.path.expanduser(path))
    except ValueError:  # a null byte, or half of a character: no file has such a name
        return False
    return real == root or real.startswith(root + os.sep)


def _short(path: Path, folder: RunFolder | Path) -> str:
    if isinstance(folder, RunFolder):
        start = folder.path.parent
    else:
        start = folder
    return os.path.relpath(path, start)
