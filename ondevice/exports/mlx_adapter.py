"""An adapter as mlx-lm has it: adapters.safetensors and adapter_config.json, both ways.

mlx-lm knows one rank and one scale an adapter, and adapts the same matrices in each block: ranks
are filled up with zeros, scales are put into B, and a matrix that was not adapted gets zeros.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ondevice.common.errors import UserError
from ondevice.common.json_files import load_json
from ondevice.common.numbers import is_number
from ondevice.models.external_config import LibraryConfig
from ondevice.models.load import load_model
from ondevice.models.lora import INHERITED, Pair, concat_all_lora, lora_tensors
from ondevice.models.model import Adapter, Model
from ondevice.models.shapes import matrices
from ondevice.models.tensor_files import read_tensors
from ondevice.seam.ops import Params
from ondevice.seam.protocols import Backend

CONFIG, WEIGHTS = "adapter_config.json", "adapters.safetensors"
_BLOCK = re.compile(r"model\.layers\.(\d+)\.(.+)")


def is_folder(folder: Path) -> bool:
    return (
        (folder / WEIGHTS).is_file()
        and (folder / CONFIG).is_file()
        and not (folder / "config.json").is_file()
    )


def read(folder: Path, backend: Backend) -> Model:
    """The base with the adapter beside it. Raises UserError for an adapter of another kind, or
    without its base.
    """
    file = folder / CONFIG
    try:
        config = load_json(file)
        kind, scale = config.get("fine_tune_type", "lora"), config["lora_parameters"]["scale"]
        base = config.get("model")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"is not an adapter of mlx-lm's: {error}",
            where=str(file),
            hint="is the download whole?",
        ) from error
    if kind != "lora" or not is_number(scale):
        raise UserError(
            f"is an adapter of kind {kind!r}", where=str(file), hint="known: lora, with a scale"
        )
    if not isinstance(base, str) or not base:
        raise UserError("names no base model", where=str(file), hint='set "model" there')
    model = load_model(base, backend, merge=False)
    if model.adapter is not None:
        raise UserError(
            f"its base {base} is an adapter itself",
            where=str(file),
            hint="ondevice.merge makes it whole",
        )
    halves: dict[str, dict[str, Any]] = {}
    for name, value in read_tensors(folder / WEIGHTS, backend).items():
        module, _, part = name.rpartition(".")
        if part not in ("lora_a", "lora_b"):
            raise UserError(f"holds {name}, which is not known here", where=str(folder / WEIGHTS))
        halves.setdefault(module, {})[part] = backend.numpy(value).T
    known, params = matrices(model.cfg), dict(model.params)
    for module, parts in halves.items():
        if module not in known or len(parts) != 2:
            raise UserError(
                f"{module} is not an adapted matrix of {base}", where=str(folder / WEIGHTS)
            )
        pair = Pair(parts["lora_a"], parts["lora_b"], float(scale))
        outputs, inputs = pair.b.shape[0], pair.a.shape[1]
        ranks_differ = pair.a.shape[0] != pair.b.shape[1]
        if (outputs, inputs) != known[module] or ranks_differ:
            raise UserError(
                f"{module}: shapes {pair.a.shape} and {pair.b.shape} do not fit {base}",
                where=str(folder),
            )
        params |= lora_tensors(module, pair, INHERITED, backend)
    return replace(model, params=params, folder=folder, adapter=Adapter(base))


def write(folder: Path, backend: Backend, model: Model) -> None:
    """Fills an existing folder. Raises UserError for what mlx-lm's form cannot hold."""
    if model.adapter is None:
        raise UserError(
            "is not an adapter", where=str(model.folder), hint="--to mlx writes whole models"
        )
    if model.adapter.whole:
        raise UserError(
            f"trains {sorted(model.adapter.whole)[0]} whole, which mlx-lm's adapters cannot hold",
            where=str(model.folder),
            hint="ondevice.merge makes a whole model, --to mlx writes it",
        )
    assert not isinstance(model.cfg, LibraryConfig)
    pairs, known = concat_all_lora(model.params, backend), matrices(model.cfg)
    keys = _adapted_matrices(pairs, str(model.folder))
    rank, scale = max(p.rank for p in pairs.values()), next(iter(pairs.values())).scale
    config = {
        "fine_tune_type": "lora",
        "model": model.adapter.base,
        "num_layers": model.cfg.num_hidden_layers,
        "lora_parameters": {"rank": rank, "scale": scale, "dropout": 0.0, "keys": keys},
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tensors: Params = {}
    for module, (outputs, inputs) in known.items():
        place = _BLOCK.fullmatch(module)
        if place is None or place[2] not in keys:
            continue
        empty = Pair(np.zeros((0, inputs)), np.zeros((outputs, 0)), scale)
        pair = pairs.get(module, empty)
        a = np.zeros((inputs, rank), np.float32)
        b = np.zeros((rank, outputs), np.float32)
        a[:, : pair.rank] = pair.a.T
        b[: pair.rank] = pair.b.T * np.float32(pair.scale / scale)
        tensors[f"{module}.lora_a"] = backend.array(a)
        tensors[f"{module}.lora_b"] = backend.array(b)
    backend.save(folder / WEIGHTS, tensors, {})


def _adapted_matrices(pairs: Iterable[str], where: str) -> list[str]:
    """What the adapted matrices are called within their blocks. Raises UserError for one outside."""
    names = set()
    for module in pairs:
        place = _BLOCK.fullmatch(module)
        if place is None:
            raise UserError(f"adapts {module}, which mlx-lm names otherwise", where=where)
        names.add(place[2])
    return sorted(names)
