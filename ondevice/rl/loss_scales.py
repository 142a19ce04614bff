"""By what GRPO's loss of each completion is multiplied and divided: the five `loss_type`s."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ondevice.config.preference import GRPOConfig
from ondevice.rl.micro_batches import Floats
from ondevice.rl.rollout import Sampled


def loss_scales(
    cfg: GRPOConfig, sampled: Sequence[Sampled], learned: Floats
) -> tuple[Floats, float]:
    """(N,) by what the loss of a completion's tokens is multiplied, and what the sum of all is
    divided by: TRL's `loss_type` (Yu 2025, DAPO; Liu 2025, Dr. GRPO). Both follow from all
    completions, also from those that are not computed. Completions of which nothing is learned
    (`learned` (N,) 0) count as rows, not as tokens."""
    completions = len(sampled)
    tokens = np.array([len(one.ids) for one in sampled]) * learned
    if cfg.loss_type in ("grpo", "gspo"):
        return learned / np.maximum(tokens, 1.0), float(completions)
    if cfg.loss_type == "bnpo":
        return _mean_over_parts(sampled, learned, tokens, cfg.partition)
    if cfg.loss_type == "dr_grpo":
        return learned, float(completions * cfg.max_new_tokens)
    return learned, max(float(tokens.sum()), 1.0)


def _mean_over_parts(
    sampled: Sequence[Sampled], learned: Floats, tokens: Floats, partition: int
) -> tuple[Floats, float]:
    """`bnpo`: the mean over the tokens of each `partition` completions, and over these parts. The
    completions are parted by their lengths: like lengths together.
    """
    order = np.argsort([one.row.length for one in sampled], kind="stable")
    parts = np.arange(len(sampled)) // partition
    each = np.maximum(np.bincount(parts, weights=tokens[order]), 1.0)
    scale = np.zeros(len(sampled))
    scale[order] = learned[order] / each[parts]
    return scale, float(len(each))
