"""What is known of a model without its weights: config, shapes, tokenizer, how its file packs them.

Of a folder its headers are read; of a model that an earlier stage of a recipe is to make, what
follows from that stage's settings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ondevice.common.errors import UserError
from ondevice.common.json_files import read_object
from ondevice.data.tokenizer import Tokenizer
from ondevice.hub import snapshot
from ondevice.models import peft
from ondevice.models.external_config import LibraryConfig
from ondevice.models.load import tokenizer_of
from ondevice.models.model import Model
from ondevice.models.model_folder import base_folder, is_adapter_folder, weight_files
from ondevice.models.registry import ModelConfig, load_config
from ondevice.models.shapes import Shapes, shapes
from ondevice.models.tensor_files import shapes_in
from ondevice.models.tensor_names import in_block, is_embedding
from ondevice.seam.head import Head

WHOLE = 32.0


@dataclass(frozen=True)
class ModelFacts:
    """`model` has no weights. `bits`: of a number of the blocks' matrices, where they are quantised;
    None: they are not. `inherited`: numbers of the adapters of earlier stages. `answer`: tokens that
    its answers have on average, where that is known.
    """

    model: Model
    bits: float | None = None
    inherited: int = 0
    answer: float | None = None

    @property
    def cfg(self) -> ModelConfig:
        return self.model.cfg

    @property
    def parameters(self) -> int:
        """Numbers of the model, without adapters."""
        return sum(math.prod(shape) for shape in shapes(self.cfg).values())

    def with_head(self, labels: int) -> ModelFacts:
        """Under a head of so many scores in place of one that writes; 0: one that writes."""
        if isinstance(self.cfg, LibraryConfig):
            return self
        return replace(self, model=replace(self.model, cfg=replace(self.cfg, num_labels=labels)))

    def bytes_of(self, dtype: str) -> int:
        """Of all weights as they stand in memory, floating ones in `dtype`."""
        size = 2 if dtype == "bfloat16" else 4
        if self.bits is None:
            return size * self.parameters
        packed = 0
        for name, shape in shapes(self.cfg).items():
            if len(shape) >= 2 and (in_block(name) or is_embedding(name)):
                packed += math.prod(shape)
        return int(packed * self.bits / 8) + size * (self.parameters - packed)


def facts_of(name: str | Path) -> ModelFacts:
    """Of a model's folder, an adapter's, or a name on the Hub. Raises UserError for a folder that is
    no checkpoint."""
    folder = snapshot.resolve(name, wanted=snapshot.WITHOUT_WEIGHTS)
    if not folder.is_dir():
        raise UserError(
            "there is no such folder", where=str(folder), hint="give a Hugging Face model folder"
        )
    if is_adapter_folder(folder):
        return _adapted(folder)
    cfg = load_config(folder)
    if isinstance(cfg, LibraryConfig):
        cfg = replace(cfg, lib=_HeaderLibrary(_header_shapes(folder)))
    model = Model(cfg, {}, tokenizer_of(folder, cfg), folder)
    return ModelFacts(model, _bits(folder))


def _adapted(folder: Path) -> ModelFacts:
    """Of an adapter's folder: its base, and how large the adapter is."""
    base = facts_of(base_folder(folder))
    if peft.is_score_adapter(folder):
        base = base.with_head(1)
    own = 0
    for shape in shapes_in(folder / peft.WEIGHTS).values():
        own += math.prod(shape)
    tokenizer = base.model.tokenizer
    if (folder / "tokenizer.json").is_file():
        tokenizer = Tokenizer.load(folder)
    model = replace(base.model, tokenizer=tokenizer, folder=folder)
    return replace(base, model=model, inherited=base.inherited + own)


def _bits(folder: Path) -> float | None:
    """Of a packed number with its part of scales and biases, which have 16 bits each; None: the
    weights are whole."""
    raw = read_object(folder / "config.json")
    packed = raw.get("quantization") or raw.get("quantization_config")
    if not isinstance(packed, Mapping) or "bits" not in packed:
        return None
    return float(packed["bits"]) + 32 / float(packed.get("group_size", 64))


def _header_shapes(folder: Path) -> Shapes:
    """Of all tensors in the files of a folder, the table of tokens first."""
    found: Shapes = {}
    for file in weight_files(folder):
        found |= shapes_in(file)
    tables = [name for name in found if is_embedding(name)]
    return {name: found[name] for name in (*tables, *found)}


class _HeaderLibrary:
    """Shapes of an architecture that its library knows, by the headers of its files."""

    head = Head("lm_head.weight")

    def __init__(self, found: Shapes) -> None:
        self.shapes: Mapping[str, tuple[int, ...]] = found
        self.linears: Mapping[str, tuple[int, int]] = {
            name.removesuffix(".weight"): (shape[0], shape[1])
            for name, shape in found.items()
            if len(shape) == 2 and in_block(name) and name.endswith(".weight")
        }

    def _unknown(self, *args: Any, **named: Any) -> Any:
        raise AssertionError("a planned model has no weights")

    states = reading = save = _unknown
