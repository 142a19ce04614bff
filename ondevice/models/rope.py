"""Rotary tables, made once in numpy (Su 2021, RoFormer; Llama 3's and linear scaling as in transformers)."""

from __future__ import annotations

import json
import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ondevice.errors import UserError
from ondevice.models.config import DecoderConfig

Table = NDArray[np.float32]


def frequencies(head_dim: int, theta: float, scaling: dict[str, Any] | None) -> NDArray[np.float64]:
    """(head_dim / 2,) angular frequencies. Raises UserError for a kind of scaling that we do not know."""
    base = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if scaling is None:
        return base
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind == "linear":
        return base / float(scaling["factor"])
    if kind == "llama3":
        return _llama3(base, scaling)
    raise UserError(f"unknown rope scaling {kind!r}", where="rope_scaling", hint="known: linear, llama3")


def _llama3(base: NDArray[np.float64], s: dict[str, Any]) -> NDArray[np.float64]:
    """Long wavelengths are divided by the factor, short ones kept, those between interpolated."""
    factor, old = float(s["factor"]), float(s["original_max_position_embeddings"])
    low, high = float(s["low_freq_factor"]), float(s["high_freq_factor"])
    wave = 2 * math.pi / base
    smooth = (old / wave - low) / (high - low)
    between = (1 - smooth) * base / factor + smooth * base
    return np.where(wave < old / high, base, np.where(wave > old / low, base / factor, between))


@lru_cache(maxsize=8)
def _tables(positions: int, head_dim: int, theta: float, scaling: str) -> tuple[Table, Table]:
    angles = np.outer(np.arange(positions), frequencies(head_dim, theta, json.loads(scaling)).astype(np.float32))
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def tables(cfg: DecoderConfig, positions: int, theta: float) -> tuple[Table, Table]:
    """cos and sin, each (positions, head_dim / 2), for positions 0 … positions - 1; the same arrays each time. Scaling
    is of the config's own theta only: Gemma's local layers have another, and none."""
    scaling = cfg.rope_scaling if theta == cfg.rope_theta else None
    return _tables(positions, cfg.head_dim, theta, json.dumps(scaling, sort_keys=True))


def plain_tables(positions: int, head_dim: int, theta: float) -> tuple[Table, Table]:
    """The same of a base alone, without scaling."""
    return _tables(positions, head_dim, theta, "null")
