"""A model of any other architecture, run by the library that knows it: transformers on torch,
mlx-lm on MLX.

What a stage asks of it is what it asks of our own forwards: states (N, D) and a head. Tensors keep
the names that the library has for them, LoRA stands beside its linear layers as it does beside
ours, and the library reads and writes the folders. A row holds one text, padded at the right, where
causal layers cannot reach; rows are not packed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ondevice.common.errors import UserError
from ondevice.models.external_config import LibraryConfig
from ondevice.seam.external_library import Library
from ondevice.seam.head import Head
from ondevice.seam.ops import Array, HostArray, Ops, Params

SCALES = ("logit_scale", "lm_head_multiplier")
"""Fields of config.json by which logits are multiplied; `logits_scaling` divides them."""


@dataclass(frozen=True)
class LibraryNetwork:
    """The face of every architecture (`network.py`) over the library's model."""

    cfg: LibraryConfig
    score: str = field(default="", init=False)
    pooling: str = field(default="last", init=False)
    decoder_start_token_id: int | None = field(default=None, init=False)
    shares_prompts: bool = field(default=False, init=False)

    @property
    def lib(self) -> Library:
        found = self.cfg.lib
        assert found is not None, "a config becomes a network once its folder is loaded"
        return found

    @property
    def head(self) -> Head:
        return self.lib.head

    def hidden(
        self,
        ops: Ops,
        params: Params,
        batch: Mapping[str, Array],
        *,
        at: Array | None = None,
        checkpoint: bool = False,
    ) -> Array:
        """(N, D) states at the flat positions `at`; without `at` all of them, (B, T, D)."""
        assert "segments" not in batch, "a row holds one text"
        x = self.lib.states(params, batch["ids"])
        if at is None:
            return x
        return ops.take(x.reshape(-1, x.shape[-1]), at)

    def tables(self, length: int) -> dict[str, HostArray]:
        """None: the library makes its own."""
        return {}

    def prompt_width(self, width: int) -> int:
        return width


def scale_of(raw: Mapping[str, Any], product: float, told: float, where: str) -> float:
    """By what a state is multiplied before the head: 1, or what config.json names. `product` is the
    sum of squares of states times weights, `told` the sum of their products with the library's
    logits.

    Raises UserError where the library's logits are neither.
    """
    known = [1.0, *(float(raw[name]) for name in SCALES if isinstance(raw.get(name), int | float))]
    if isinstance(raw.get("logits_scaling"), int | float) and raw["logits_scaling"]:
        known.append(1.0 / raw["logits_scaling"])
    ratio = told / product if product else 0.0
    nearest = min(known, key=lambda scale: abs(scale - ratio))
    if abs(nearest - ratio) > 0.01 * abs(nearest):
        raise odd_head(raw, where)
    return nearest


def unknown(raw: Mapping[str, Any], library: str, folder: Path) -> UserError:
    return UserError(
        f"unknown architecture {raw['model_type']!r}: neither ours nor one of {library}'s",
        where=f"{folder / 'config.json'}: model_type",
        hint="code that a folder brings is not run",
    )


def odd_head(raw: Mapping[str, Any], where: str) -> UserError:
    return UserError(
        f"the logits of a {raw.get('model_type')} model are not a plain product of states and weights, which "
        "is all that is known here of other architectures",
        where=where,
    )
