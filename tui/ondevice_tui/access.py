"""Which of the processes that the app starts may speak to the Hub, and so see its token: those that
push or pull.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ondevice.common.errors import UserError
from ondevice.common.json_files import load_json
from ondevice.common.processes import Access
from ondevice.config.load import read_yaml
from ondevice.data.orders import PREFIX as ORDERS
from ondevice.hub.snapshot import is_name

_RECIPES = ("run", "runs")  # commands whose settings stand in a file


def of_model(path: str) -> Access:
    """Of the worker of a model: the model, or an adapter's base, is named on the Hub and so may
    have to be fetched.
    """
    remote = (
        not Path(path).is_dir()
        or is_name(base := base_of(path))
        and not (Path(path) / base).is_dir()
    )
    if remote:
        return Access.HUB
    return Access.OWN


def of_command(words: Sequence[str], run: Path) -> Access:
    """Of a command line: it pushes or pulls, or one of its values, or its recipe's, names something
    on the Hub.
    """
    if words[0] in ("push", "pull"):
        return Access.HUB
    values = []
    for word in words[1:]:
        flag, _, joined = word.partition("=")
        values.append((flag.lstrip("-").replace("-", "_"), joined or word))
    if words[0] in _RECIPES:
        files = [Path(value) for _, value in values if value.endswith((".yaml", ".yml"))]
        if not files:
            files = [run / "recipe.yaml"]
        for file in files:
            values += _settings(file)
    if any(_remote(name, value) for name, value in values):
        return Access.HUB
    return Access.OWN


def base_of(folder: str) -> str:
    """The base that an adapter's folder names; empty where it is none."""
    try:
        config = load_json(Path(folder) / "adapter_config.json")
        return str(config["base_model_name_or_path"])
    except (OSError, ValueError, LookupError, TypeError):
        return ""


def _settings(file: Path) -> list[tuple[str, str]]:
    """Every setting of a recipe; none of one that cannot be read, which the command will say
    itself.
    """
    if not file.is_file():
        return []
    try:
        return list(_flat(read_yaml(file)))
    except UserError:
        return []


def _flat(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value)
        else:
            yield str(name), str(value)


def _remote(name: str, value: str) -> bool:
    if name in ("push_every", "push_to"):
        return value not in ("", "0")
    parts = [part.removeprefix(ORDERS) for part in re.split(r"[,\s]", value)]
    return any(part.startswith("hub:") or _is_elsewhere(part) for part in parts)


def _is_elsewhere(part: str) -> bool:
    if Path(part).is_dir():
        return bool(base_of(part)) and of_model(part) is Access.HUB
    return is_name(part) and not Path(part).exists()
