"""Losses of rollouts: the clipped policy gradient of GRPO and PPO.

As in `training/losses.py`: sums divided by `batch["denominator"]`, here by `scale` (K,) too, with
which GRPO says what divides whom.
"""

from __future__ import annotations

from ondevice.models.network import Network
from ondevice.models.score_head import scalar_head
from ondevice.seam.ops import Array, Metrics, Ops, Params, sub
from ondevice.training.logprobs import token_logprobs
from ondevice.training.losses import Batch, row_sums


def grpo_loss(
    ops: Ops,
    params: Params,
    batch: Batch,
    *,
    model: Network,
    clip_low: float,
    clip_high: float,
    beta: float = 0.0,
    sequence: bool = False,
    temperature: float = 1.0,
    checkpoint: bool = False,
) -> tuple[Array, Metrics]:
    """Clipped policy gradient over a group's advantages (Shao 2024, eq. 3), with k3 as distance to
    the reference.

    What divides whom (dapo, grpo, bnpo, dr_grpo) is in `scale` (K,) and `denominator`, which the
    source fills. `sequence`: one ratio a completion, the mean over its tokens (Zheng 2025, GSPO).
    `batch`: ids, positions, targets, index, weights, member, advantages (K,); old_logps (K,) where
    more than one update learns from a rollout; ref_logps (K,) where `beta` is not 0.
    """
    hidden = model.hidden(ops, params, batch, at=batch["index"], checkpoint=checkpoint)
    logp, entropy = token_logprobs(
        ops, params, model.head, hidden, batch["targets"], temperature, True
    )
    assert entropy is not None
    loss, metrics = grpo_objective(
        ops, logp, batch, clip_low=clip_low, clip_high=clip_high, beta=beta, sequence=sequence
    )
    return loss, metrics | _of_tokens(ops, batch["weights"], entropy=entropy)


def grpo_objective(
    ops: Ops,
    logp: Array,
    batch: Batch,
    *,
    clip_low: float,
    clip_high: float,
    beta: float = 0.0,
    sequence: bool = False,
) -> tuple[Array, Metrics]:
    """`grpo_loss` from the log-probabilities (K,) of the targets."""
    each, metrics = clipped_objective(ops, logp, batch, clip_low, clip_high, sequence)
    if beta:
        # padding may lie far apart
        distance = k3(ops, logp * batch["weights"], batch["ref_logps"] * batch["weights"])
        each = each + beta * distance
        metrics["kl"] = (ops.sum(distance * batch["weights"]), ops.sum(batch["weights"]))
    metrics |= _of_tokens(ops, batch["weights"], loss=each)
    return ops.sum(each * batch["scale"]) / batch["denominator"], metrics


def ppo_loss(
    ops: Ops,
    params: Params,
    batch: Batch,
    *,
    model: Network,
    clip: float,
    value_clip: float,
    value_coef: float,
    temperature: float = 1.0,
    checkpoint: bool = False,
) -> tuple[Array, Metrics]:
    """Clipped policy gradient, clipped value loss with its ½ (Schulman 2017; Huang 2024), both
    means over the tokens of the update.

    The value model's tensors are `value.…`; it has the policy's shape. `batch`: ids, positions,
    targets, index, weights, member, advantages, returns, old_logps, old_values (K,), denominator.
    """
    hidden = model.hidden(ops, params, batch, at=batch["index"], checkpoint=checkpoint)
    logp, entropy = token_logprobs(
        ops, params, model.head, hidden, batch["targets"], temperature, True
    )
    assert entropy is not None
    value = sub(params, "value.")
    values = scalar_head(
        ops, value, model, model.hidden(ops, value, batch, at=batch["index"], checkpoint=checkpoint)
    )
    loss, metrics = ppo_objective(
        ops, logp, values, batch, clip=clip, value_clip=value_clip, value_coef=value_coef
    )
    metrics |= _of_tokens(ops, batch["weights"], entropy=entropy)
    return loss, metrics


def ppo_objective(
    ops: Ops,
    logp: Array,
    values: Array,
    batch: Batch,
    *,
    clip: float,
    value_clip: float,
    value_coef: float,
) -> tuple[Array, Metrics]:
    """`ppo_loss` from the log-probabilities (K,) of the targets and the values
    (K,) before them.
    """
    each, metrics = clipped_objective(ops, logp, batch, clip, clip, False)
    near = batch["old_values"] + ops.minimum(
        ops.maximum(values - batch["old_values"], -value_clip), value_clip
    )
    off, off_near = values - batch["returns"], near - batch["returns"]
    squares = 0.5 * ops.maximum(off * off, off_near * off_near)
    weights = batch["weights"]
    both = each + value_coef * squares
    metrics |= _of_tokens(ops, weights, loss=both, policy_loss=each, value_loss=squares)
    return ops.sum(both * weights) / batch["denominator"], metrics


def clipped_objective(
    ops: Ops, logp: Array, batch: Batch, low: float, high: float, sequence: bool
) -> tuple[Array, Metrics]:
    """(K,) -min(ρA, clip(ρ, 1 − low, 1 + high)A) with ρ = exp(logp − old_logps), and what is told
    of ρ. Without old_logps they are `logp` itself: the first update's ratio is 1."""
    weights, gain = batch["weights"], batch["advantages"]
    if "old_logps" in batch:
        old = batch["old_logps"]
    else:
        old = ops.stop_gradient(logp)
    moved = (logp - old) * weights
    if sequence:
        lengths = ops.maximum(row_sums(ops, batch, weights), 1.0)
        moved = ops.sum(batch["member"] * (row_sums(ops, batch, moved) / lengths).reshape(-1, 1), 0)
    ratio = ops.exp(moved)
    free = ratio * gain
    clipped = ops.minimum(ops.maximum(ratio, 1 - low), 1 + high) * gain
    cut = ops.cast(clipped < free, "float32")
    return -ops.minimum(free, clipped), _of_tokens(
        ops, weights, clip_fraction=cut, approx_kl=0.5 * moved * moved
    )


def k3(ops: Ops, logp: Array, ref: Array) -> Array:
    """An unbiased estimate of KL(policy ‖ reference) that is never negative (Schulman 2020)."""
    off = ref - logp
    return ops.exp(off) - off - 1


def _of_tokens(ops: Ops, weights: Array, **each: Array) -> Metrics:
    """Means over tokens, as (sum, count)."""
    count = ops.sum(weights)
    return {name: (ops.sum(x * weights), count) for name, x in each.items()}
