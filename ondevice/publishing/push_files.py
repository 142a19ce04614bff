"""The files of a push: only what lies in the folder that was named, without this machine's paths in
its settings.

A folder from elsewhere may hold `LICENSE -> ~/.ssh/id_ed25519`. Whatever a path leads to is looked
at, when a push is planned and again before it is sent: inside the folder it is sent, outside it is
refused. The Hub client's cache is the exception: its snapshots are links to `blobs/` beside them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ondevice.common.errors import UserError
from ondevice.common.json_files import load_json
from ondevice.publishing.public_names import own_name, plain_values
from ondevice.publishing.usage import with_hub_base

OPTIMIZER = ("optimizer.safetensors", "trainer.json")
SETTINGS = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "adapter_config.json",
    "trainer.json",
)
"""JSON in which programs write down where they found what."""
_NAMES = (
    "_name_or_path",
    "name_or_path",
    "base_model_name_or_path",
    "tokenizer_file",
    "vocab_file",
    "merges_file",
)
_OF_TOKENIZER = "tokenizer_config.json"
_LABELS = ("id2label", "label2id")


def real_file(path: Path, home: Path) -> Path:
    """The file that `path` is, all links followed. Raises UserError where that is not inside
    `home`, the folder that was named; of a checkpoint the optimizer's state lies beside its model.
    """
    real, inside = Path(os.path.realpath(path)), Path(os.path.realpath(home))
    beside = (
        path.name in OPTIMIZER and real.name == path.name and real.is_relative_to(inside.parent)
    )
    if not (real.is_relative_to(inside) or beside or real.parent == _blobs(inside)):
        raise UserError(
            "leads out of the folder that is pushed, and is not sent",
            where=str(path),
            hint=f"put the file itself there, or name the folder in which it lies ({real.parent})",
        )
    return real


def _blobs(snapshot: Path) -> Path | None:
    """Where the Hub client keeps what a snapshot in its cache links to."""
    for folder in (snapshot, *snapshot.parents):
        repo = folder.parent.parent
        if folder.parent.name == "snapshots" and repo.name.startswith(("models--", "datasets--")):
            return repo / "blobs"
    return None


def plain_settings(file: Path, folder: Path) -> str | None:
    """The text of one of SETTINGS in which no path of this machine stands, and an adapter names its
    base as the Hub does. None: it may be sent as it is, or is not JSON. Raises UserError where it
    cannot be read."""
    if file.name not in SETTINGS:
        return None
    try:
        given = load_json(real_file(file, folder))
    except (ValueError, RecursionError):
        return None
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(file)) from error
    if not isinstance(given, Mapping):
        return None
    settings: Mapping[str, Any] = given
    if file.name == "adapter_config.json":
        settings = with_hub_base(folder, given)
    plain = _without_paths(settings, of_tokenizer=file.name == _OF_TOKENIZER)
    if plain != given:
        return json.dumps(plain, indent=2, ensure_ascii=False) + "\n"
    return None


def _without_paths(settings: Mapping[str, Any], *, of_tokenizer: bool) -> dict[str, Any]:
    plain = {}
    for key, value in settings.items():
        # a tokenizer's other strings are tokens and templates, and a class may be called
        # /business/finance
        if not of_tokenizer and key not in _LABELS:
            value = plain_values(value)
        if key in _NAMES and isinstance(value, str):
            value = _named(value)
        plain[key] = value
    return plain


def _named(value: str) -> str:
    """A name of the Hub as it is, a folder by its own name."""
    local = (
        value.startswith(("/", "~", "."))
        or "\\" in value
        or value.count("/") > 1
        or Path(value).is_dir()
    )
    if local:
        return own_name(value)
    return value


def content(source: str, home: Path, sha256: str) -> bytes:
    """A small file's bytes, which are those that were planned. Raises UserError where they are not."""
    path = Path(source)
    try:
        descriptor = os.open(real_file(path, home), os.O_RDONLY | os.O_NOFOLLOW)
        with open(descriptor, "rb") as file:
            data = file.read()
    except OSError as error:
        raise UserError(
            f"cannot be read: {error.strerror}", where=source, hint="push without --resume"
        ) from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise UserError(
            "has changed since the push began", where=source, hint="push without --resume"
        )
    return data
