"""From what a person names to a folder that holds a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ondevice.hub import snapshot
from ondevice.models.load import labels
from ondevice.runs.folder import RunFolder, holds_model


def find_model(path: str) -> Path:
    """A model's or an adapter's folder, the newest model of a run folder or of a stage's folder, or
    the snapshot of a model on the Hub. Of a run folder's models one that writes, where there is
    one."""
    folder = snapshot.resolve(path)
    if holds_model(folder) or not folder.is_dir():
        return folder
    if holds_model(folder / "model"):
        return folder / "model"
    done = [stage.model for stage in RunFolder(folder).stages() if stage.has_model]
    writers = [model for model in done if not labels(model)]
    return [folder, *done, *writers][-1]


def find_reward_model(path: str) -> Path:
    """A reward model's folder, or the newest one of a run folder."""
    return _newest(path, lambda scores: scores == 1)


def find_classifier(path: str) -> Path:
    """A classifier's folder, or the newest one of a run folder."""
    return _newest(path, lambda scores: scores > 1)


def _newest(path: str, wanted: Callable[[int], bool]) -> Path:
    """A model's folder, or of a run folder's that whose number of scores is wanted."""
    folder = snapshot.resolve(path)
    if holds_model(folder) or not folder.is_dir():
        return folder
    models = []
    for stage in RunFolder(folder).stages():
        if stage.has_model and wanted(labels(stage.model)):
            models.append(stage.model)
    if models:
        return models[-1]
    return find_model(path)
