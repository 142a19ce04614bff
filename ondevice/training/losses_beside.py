"""What a stage learns beside its own loss, so that it takes nothing away: chats, and pairs.

    loss(params, batch) + sft_coef · causal_lm_loss(params, chats) + pair_coef · dpo(params, pairs)

The chats lie in the batch under `sft.…`, the pairs under `pair.…`, each with the denominator of all
that the update learns of them (Ouyang 2022, PPO-ptx, which has the chats).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ondevice.models.network import Network
from ondevice.seam.ops import Array, Metrics, Ops, Params, sub
from ondevice.training.losses import Batch, causal_lm_loss
from ondevice.training.preference_losses import preference_loss

CHATS = "sft."
PAIRS = "pair."


def with_losses_beside(
    loss: Callable[..., tuple[Array, Metrics]],
    *,
    model: Network,
    sft_coef: float = 0.0,
    pair_coef: float = 0.0,
    pair_beta: float = 0.1,
    checkpoint: bool = False,
) -> Callable[..., tuple[Array, Metrics]]:
    """`loss` with what is learned beside it; the very same function where both weights are 0."""
    if not (sft_coef or pair_coef):
        return loss

    def both(ops: Ops, params: Params, batch: Batch, **more: Any) -> tuple[Array, Metrics]:
        recompute = bool(more.get("checkpoint", checkpoint))
        total, metrics = loss(ops, params, batch, **more)
        if sft_coef:
            chats, told = causal_lm_loss(
                ops, params, sub(batch, CHATS), model=model, checkpoint=recompute
            )
            total = total + sft_coef * chats
            metrics = {**metrics, "sft_loss": told["loss"]}
        if pair_coef:
            pairs, told = preference_loss(
                ops,
                params,
                sub(batch, PAIRS),
                model=model,
                kind="sigmoid",
                beta=pair_beta,
                checkpoint=recompute,
            )
            total = total + pair_coef * pairs
            metrics = {**metrics, "pair_loss": told["loss"], "pair_accuracy": told["accuracy"]}
        return total, metrics

    return both
