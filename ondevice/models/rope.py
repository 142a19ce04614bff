"""Rotary tables, made once in numpy (Su 2021, RoFormer), stretched as transformers does it: linear,
Llama 3's, dynamic (bloc97 2023), YaRN (Peng 2023), LongRoPE (Ding 2024)."""

from __future__ import annotations

import json
import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ondevice.common.errors import UserError
from ondevice.common.json_files import parse_json
from ondevice.models.decoder_config import DecoderConfig
from ondevice.models.rope_scaling import KINDS

Table = NDArray[np.float32]


def frequencies(head_dim: int, theta: float, scaling: dict[str, Any] | None) -> NDArray[np.float64]:
    """(head_dim / 2,) angular frequencies, of longrope those of texts within the original context.
    Raises UserError for a kind of scaling that we do not know."""
    base = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if scaling is None:
        return base
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind == "linear":
        return base / float(scaling["factor"])
    if kind == "llama3":
        return _llama3(base, scaling)
    if kind == "dynamic":
        # it changes what lies beyond max_position_embeddings alone, and no text here does
        return base
    if kind == "yarn":
        return _yarn(base, theta, scaling)
    if kind == "longrope":
        short: NDArray[np.float64] = base / np.array(scaling["short_factor"], np.float64)
        return short
    raise UserError(
        f"unknown rope scaling {kind!r}", where="rope_scaling", hint=f"known: {', '.join(KINDS)}"
    )


def _yarn(base: NDArray[np.float64], theta: float, s: dict[str, Any]) -> NDArray[np.float64]:
    """Frequencies that turn often within the original context are kept, those that do not turn once
    are divided by the factor, those between are blended."""
    dim = 2 * len(base)
    original = float(s["original_max_position_embeddings"])

    def place(turns: float) -> float:
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = place(float(s.get("beta_fast") or 32))
    high = place(float(s.get("beta_slow") or 1))
    if s.get("truncate", True):
        low = math.floor(low)
        high = math.ceil(high)
    low = max(low, 0)
    high = min(high, dim - 1)
    blend = np.clip((np.arange(len(base)) - low) / ((high - low) or 0.001), 0, 1)
    made: NDArray[np.float64] = base / float(s["factor"]) * blend + base * (1 - blend)
    return made


def attention_factor(scaling: dict[str, Any] | None) -> float:
    """By what cos and sin are multiplied: more than 1 sharpens the attention of a stretched
    context.
    """
    kind = (scaling or {}).get("rope_type")
    if scaling is None or kind not in ("yarn", "longrope"):
        return 1.0
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])
    factor = float(scaling["factor"])
    if kind == "longrope":
        original = float(scaling["original_max_position_embeddings"])
        if factor > 1:
            return math.sqrt(1 + math.log(factor) / math.log(original))
        return 1.0

    def grown(by: float) -> float:
        if factor > 1:
            return 0.1 * by * math.log(factor) + 1
        return 1.0

    one = scaling.get("mscale")
    every = scaling.get("mscale_all_dim")
    if one and every:
        return grown(float(one)) / grown(float(every))
    return grown(1)


def _llama3(base: NDArray[np.float64], s: dict[str, Any]) -> NDArray[np.float64]:
    """Long wavelengths are divided by the factor, short ones kept, those between interpolated."""
    factor = float(s["factor"])
    old = float(s["original_max_position_embeddings"])
    low = float(s["low_freq_factor"])
    high = float(s["high_freq_factor"])
    wave = 2 * math.pi / base
    smooth = (old / wave - low) / (high - low)
    between = (1 - smooth) * base / factor + smooth * base
    longer = np.where(wave > old / low, base / factor, between)
    return np.where(wave < old / high, base, longer)


@lru_cache(maxsize=32)
def _tables(positions: int, head_dim: int, theta: float, scaling: str) -> tuple[Table, Table]:
    said = parse_json(scaling)
    angles = np.outer(np.arange(positions), frequencies(head_dim, theta, said).astype(np.float32))
    factor = np.float32(attention_factor(said))
    cos = np.cos(angles).astype(np.float32) * factor
    sin = np.sin(angles).astype(np.float32) * factor
    return cos, sin


def tables(cfg: DecoderConfig, positions: int, theta: float) -> tuple[Table, Table]:
    """cos and sin, each (positions, head_dim / 2), for positions 0 … positions - 1; the same arrays
    each time. Scaling is of the config's own theta only: Gemma's local layers have another, and
    none."""
    scaling = _scaling_of(cfg, theta)
    return _tables(positions, cfg.head_dim, theta, json.dumps(scaling, sort_keys=True))


def long_tables(cfg: DecoderConfig, positions: int, theta: float) -> tuple[Table, Table] | None:
    """The tables of texts beyond the original context, where they are others than those within it:
    under longrope.
    """
    scaling = _scaling_of(cfg, theta)
    if scaling is None or scaling.get("rope_type") != "longrope":
        return None
    longer = {**scaling, "short_factor": scaling["long_factor"]}
    return _tables(positions, cfg.head_dim, theta, json.dumps(longer, sort_keys=True))


def original_context(cfg: DecoderConfig) -> int:
    """The longest text that `tables` are for where `long_tables` gives others."""
    assert cfg.rope_scaling is not None
    return int(cfg.rope_scaling["original_max_position_embeddings"])


def _scaling_of(cfg: DecoderConfig, theta: float) -> dict[str, Any] | None:
    if theta == cfg.rope_theta:
        return cfg.rope_scaling
    return None


def plain_tables(positions: int, head_dim: int, theta: float) -> tuple[Table, Table]:
    """The same of a base alone, without scaling."""
    return _tables(positions, head_dim, theta, "null")
