"""A model's shapes as work: which matrices a token goes through, block by block."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ondevice.models.encoder_config import EncoderConfig
from ondevice.models.external_config import LibraryConfig
from ondevice.models.registry import ModelConfig
from ondevice.models.seq2seq_config import Seq2SeqConfig
from ondevice.models.shapes import embedding_name, shapes
from ondevice.models.tensor_names import in_block
from ondevice.runs.device_batch import block_of

Matrix = tuple[int, int, float]
"""Outputs, inputs, and the share of the tokens that go through it (below 1: of an expert)."""
_SOURCE = ("encoder.", "model.encoder.")


@dataclass(frozen=True)
class Block:
    """`source`: it reads what an encoder-decoder's encoder reads."""

    matrices: tuple[Matrix, ...]
    source: bool = False

    @property
    def inside(self) -> float:
        """Numbers that go into and come out of its matrices, for each token."""
        return sum((out + into) * share for out, into, share in self.matrices)


@dataclass(frozen=True)
class Dimensions:
    """`heads` × `head_width` numbers are compared in attention; `labels`: of a head of scores in
    place of the vocabulary's, 0 for none. `biased`: whether a learned bias is added to the scores of
    attention; `encoder`: whether each token sees all others."""

    blocks: tuple[Block, ...]
    hidden: int
    vocabulary: int
    heads: int
    head_width: int
    labels: int
    biased: bool = False
    encoder: bool = False

    @property
    def matrix_numbers(self) -> float:
        """Of the blocks' matrices, that a token goes through."""
        total = 0.0
        for block in self.blocks:
            total += sum(out * into * share for out, into, share in block.matrices)
        return total


def dimensions(cfg: ModelConfig) -> Dimensions:
    """Of an architecture, by the shapes of its tensors."""
    found: dict[str, list[Matrix]] = {}
    for name, shape in shapes(cfg).items():
        if len(shape) >= 2 and in_block(name) and name.endswith("weight"):
            share = _share(name, shape, cfg.raw)
            out, into = shape[-2], shape[-1]
            found.setdefault(block_of(name), []).append((out, into, share))
    blocks = []
    for name, matrices in found.items():
        source = isinstance(cfg, Seq2SeqConfig) and name.startswith(_SOURCE)
        blocks.append(Block(tuple(matrices), source))
    vocabulary, hidden = shapes(cfg)[embedding_name(cfg)]
    heads, width = _heads(cfg, hidden)
    return Dimensions(
        tuple(blocks),
        hidden,
        vocabulary,
        heads,
        width,
        cfg.num_labels,
        isinstance(cfg, Seq2SeqConfig) and cfg.relative,
        isinstance(cfg, EncoderConfig),
    )


def _heads(cfg: ModelConfig, hidden: int) -> tuple[int, int]:
    if isinstance(cfg, LibraryConfig):
        heads = int(cfg.raw.get("num_attention_heads") or 1)
        return heads, int(cfg.raw.get("head_dim") or max(1, hidden // heads))
    return cfg.num_attention_heads, cfg.head_dim


def _share(name: str, shape: tuple[int, ...], raw: Mapping[str, Any]) -> float:
    """Of the tokens, that go through a matrix: all, but for one of several experts."""
    if ".experts." not in name and len(shape) == 2:
        return 1.0
    experts = raw.get("num_experts") or raw.get("num_local_experts") or 1
    chosen = raw.get("num_experts_per_tok") or raw.get("experts_per_token") or 1
    together = math.prod(shape[:-2])
    return float(together) * min(1.0, chosen / experts)
