"""Losses: pure functions of (B, T) or (N,) arrays. A loss is a sum divided by `batch["denominator"]`, which the
source fills for the whole accumulation window; the trainer only adds gradients."""

from __future__ import annotations

from collections.abc import Mapping

from ondevice.backend import Array, Metrics, Ops, Params
from ondevice.logprobs import token_logprobs
from ondevice.models.decoder import Decoder


def causal_lm_loss(ops: Ops, params: Params, batch: Mapping[str, Array], *, model: Decoder,
                   checkpoint: bool = False) -> tuple[Array, Metrics]:
    """Mean over target tokens of -log p(target); for pre-training and for instruction tuning alike.

    `batch`: ids, positions (B, T), segments (B, T) or absent, targets, index, weights (N,), denominator ().
    """
    hidden = model.hidden(ops, params, batch, checkpoint=checkpoint)
    logp, _ = token_logprobs(ops, params, model.head, hidden, batch["targets"], batch["index"])
    weights = batch["weights"]
    total = -ops.sum(logp * weights)
    count = ops.sum(weights)
    return total / batch["denominator"], {"loss": (total, count)}
