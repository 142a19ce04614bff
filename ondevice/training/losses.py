"""Losses: pure functions of (ops, params, batch). A loss is a sum divided by `batch["denominator"]`,
which the source fills for the whole step; the trainer only adds gradients.

R rows, K targets (padded; `weights` (K,) is 0 where padded), `member` (R, K) is 1 where a target is
of a row. What is meant for a whole row (a completion's log-probability) is a sum over its members,
so a row may stand anywhere.

Why a denominator from outside: a mean per micro-batch weighs a token by how many others are in its
micro-batch, so that the same batch gives another gradient when it is split (transformers had this
fault until 4.46). With one denominator for a step, `micro_batch` changes memory and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from ondevice.models.network import Network
from ondevice.models.score_head import class_scores, scalar_head
from ondevice.seam.ops import Array, Metrics, Ops, Params, sub
from ondevice.training.logprobs import is_top1, token_logprobs

Batch = Mapping[str, Array]


def causal_lm_loss(
    ops: Ops,
    params: Params,
    batch: Batch,
    *,
    model: Network,
    accuracy: bool = False,
    checkpoint: bool = False,
) -> tuple[Array, Metrics]:
    """Mean over target tokens of -log p(target), whether the target follows what is read or is
    masked in it; for pre-training and for instruction tuning alike. `accuracy`: tell also how often
    the target is the likeliest token.

    `batch`: ids, positions (B, T), segments (B, T) or absent, targets, index, weights (N,),
    denominator (). Without index every place is a target, and N = B·T: nothing is gathered.
    """
    at = batch.get("index")
    hidden = model.hidden(ops, params, batch, at=at, checkpoint=checkpoint)
    if at is None:
        hidden = hidden.reshape(-1, hidden.shape[-1])
    logp, _ = token_logprobs(ops, params, model.head, hidden, batch["targets"])
    weights = batch["weights"]
    total = -ops.sum(logp * weights)
    count = ops.sum(weights)
    metrics = {"loss": (total, count)}
    if accuracy:
        metrics["accuracy"] = (
            ops.sum(is_top1(ops, params, model.head, hidden, batch["targets"]) * weights),
            count,
        )
    return total / batch["denominator"], metrics


def classification_loss(
    ops: Ops, params: Params, batch: Batch, *, model: Network, checkpoint: bool = False
) -> tuple[Array, Metrics]:
    """Cross-entropy of each text's class.

    `batch`: ids, positions (R, T), segments where the first token is read; read (R,) flat places of
    the tokens at which the rows are read; targets (R,) classes; weights (R,) 0 where a row is
    padding; denominator, the number of texts.
    """
    hidden = model.hidden(ops, params, batch, at=batch["read"], checkpoint=checkpoint)
    scores = class_scores(ops, params, model, hidden)
    weights, targets = batch["weights"], batch["targets"]
    total, count = -ops.sum(ops.log_likelihood(scores, targets) * weights), ops.sum(weights)
    off = ops.argmax(scores, -1) - targets
    right = ops.sum(ops.cast(off * off < 1, "float32") * weights)
    return total / batch["denominator"], {"loss": (total, count), "accuracy": (right, count)}


# ---- preference -----------------------------------------------------------------------------------------------------


def reward_loss(
    ops: Ops,
    params: Params,
    batch: Batch,
    *,
    model: Network,
    center: float = 0.0,
    checkpoint: bool = False,
) -> tuple[Array, Metrics]:
    """Bradley–Terry (Ouyang 2022, eq. 1): -log σ(r_chosen − r_rejected − margin), and `center`·(r_c
    + r_r)² (Eisenstein 2023), which keeps rewards around 0.

    `batch`: ids, positions (2P, T) with the chosen rows first; read (2P,) flat places of the tokens
    at which the rows are read; margin, pairs (P,), `pairs` 0 where a pair was added to fill the
    batch; denominator, the number of pairs.
    """
    hidden = model.hidden(ops, params, batch, at=batch["read"], checkpoint=checkpoint)
    scores = scalar_head(ops, params, model, hidden)
    return reward_objective(ops, scores, batch, center=center)


def reward_objective(
    ops: Ops, scores: Array, batch: Batch, *, center: float = 0.0
) -> tuple[Array, Metrics]:
    """`reward_loss` from the scores (2P,), chosen first."""
    real = batch["pairs"]
    p = real.shape[0]
    chosen, rejected = scores[:p], scores[p : 2 * p]
    apart = chosen - rejected
    each = -log_sigmoid(ops, apart - batch["margin"])
    if center:
        each = each + center * (chosen + rejected) * (chosen + rejected)
    total, count = ops.sum(each * real), ops.sum(real)
    right = ops.sum(ops.cast(apart > 0, "float32") * real)
    return total / batch["denominator"], {
        "loss": (total, count),
        "accuracy": (right, count),
        "margin": (ops.sum(apart * real), count),
    }


class PairLoss(Protocol):
    """What each kind of preference loss makes of a batch: (P,) or, for KTO, (2P,) losses.

    c, r (P,): the policy's log-probability over the reference's, of chosen and of rejected
    completions (without a reference: the policy's alone); n_c, n_r their numbers of tokens.
    """

    def __call__(
        self,
        ops: Ops,
        c: Array,
        r: Array,
        n_c: Array,
        n_r: Array,
        *,
        beta: float,
        smoothing: float,
        gamma: float,
    ) -> Array: ...


def _sigmoid(
    ops: Ops,
    c: Array,
    r: Array,
    n_c: Array,
    n_r: Array,
    *,
    beta: float,
    smoothing: float,
    gamma: float,
) -> Array:
    """Rafailov 2023; label smoothing as in cDPO (Mitchell 2023)."""
    h = beta * (c - r)
    return -(1 - smoothing) * log_sigmoid(ops, h) - smoothing * log_sigmoid(ops, -h)


def _robust(
    ops: Ops,
    c: Array,
    r: Array,
    n_c: Array,
    n_r: Array,
    *,
    beta: float,
    smoothing: float,
    gamma: float,
) -> Array:
    """Chowdhury 2024: unbiased where a share `smoothing` of the labels is flipped."""
    h = beta * (c - r)
    return ((smoothing - 1) * log_sigmoid(ops, h) + smoothing * log_sigmoid(ops, -h)) / (
        1 - 2 * smoothing
    )


def _hinge(
    ops: Ops,
    c: Array,
    r: Array,
    n_c: Array,
    n_r: Array,
    *,
    beta: float,
    smoothing: float,
    gamma: float,
) -> Array:
    """Zhao 2023, SLiC."""
    return ops.maximum(1 - beta * (c - r), 0.0)


def _ipo(
    ops: Ops,
    c: Array,
    r: Array,
    n_c: Array,
    n_r: Array,
    *,
    beta: float,
    smoothing: float,
    gamma: float,
) -> Array:
    """Azar 2023, with log-ratios averaged per token."""
    off = c / n_c - r / n_r - 1 / (2 * beta)
    return off * off


def _simpo(
    ops: Ops,
    c: Array,
    r: Array,
    n_c: Array,
    n_r: Array,
    *,
    beta: float,
    smoothing: float,
    gamma: float,
) -> Array:
    """Meng 2024: no reference, log-probabilities per token, a margin of `gamma`."""
    h = beta * (c / n_c - r / n_r) - gamma
    return -(1 - smoothing) * log_sigmoid(ops, h) - smoothing * log_sigmoid(ops, -h)


def _orpo(
    ops: Ops,
    c: Array,
    r: Array,
    n_c: Array,
    n_r: Array,
    *,
    beta: float,
    smoothing: float,
    gamma: float,
) -> Array:
    """Hong 2024: no reference; the chosen completion's own loss, and the odds of the two apart."""
    a, b = c / n_c, r / n_r
    odds = (a - b) - (_log1m_exp(ops, a) - _log1m_exp(ops, b))
    return -a - beta * log_sigmoid(ops, odds)


PAIR_LOSSES: Mapping[str, PairLoss] = {
    "sigmoid": _sigmoid,
    "robust": _robust,
    "hinge": _hinge,
    "ipo": _ipo,
    "simpo": _simpo,
    "orpo": _orpo,
}
"""Losses of pairs. `kto` is of single completions and stands beside them in `preference_loss`."""
WITHOUT_REFERENCE = frozenset(("orpo", "simpo"))


def preference_loss(
    ops: Ops,
    params: Params,
    batch: Batch,
    *,
    model: Network,
    kind: str,
    beta: float,
    smoothing: float = 0.0,
    gamma: float = 0.0,
    desirable: float = 1.0,
    undesirable: float = 1.0,
    checkpoint: bool = False,
) -> tuple[Array, Metrics]:
    """DPO and its family over the summed log-probabilities of completions.

    `batch`: ids, positions; targets, index, weights (K,); member (R, K) with R = 2P rows, chosen
    first; ref_logps (R,) except for ORPO and SimPO; pairs (P,); denominator, the number of pairs (of
    completions for `kto`); drift (), for `kto`, how far the policy has moved from the reference.
    With label (P,), 1 good and -1 bad, for `kto` alone, the rows are P single completions.
    `desirable` and `undesirable` weigh the loss of good and of bad completions,
    for `kto` alone.
    """
    hidden = model.hidden(ops, params, batch, at=batch["index"], checkpoint=checkpoint)
    logp, _ = token_logprobs(ops, params, model.head, hidden, batch["targets"])
    return preference_objective(
        ops,
        logp,
        batch,
        kind=kind,
        beta=beta,
        smoothing=smoothing,
        gamma=gamma,
        desirable=desirable,
        undesirable=undesirable,
    )


def preference_objective(
    ops: Ops,
    logp: Array,
    batch: Batch,
    *,
    kind: str,
    beta: float,
    smoothing: float = 0.0,
    gamma: float = 0.0,
    desirable: float = 1.0,
    undesirable: float = 1.0,
) -> tuple[Array, Metrics]:
    """`preference_loss` from the log-probabilities (K,) of the targets."""
    sums = row_sums(ops, batch, logp)
    ratios = sums if kind in WITHOUT_REFERENCE else sums - batch["ref_logps"]
    lengths = ops.maximum(row_sums(ops, batch, batch["weights"]), 1.0)
    real = batch["pairs"]
    p = real.shape[0]
    if "label" in batch:
        each, apart = _kto_judged(
            ops, ratios[:p], batch["drift"], batch["label"], beta, desirable, undesirable
        )
        total, count = ops.sum(each * real), ops.sum(real)
        return total / batch["denominator"], {
            "loss": (total, count),
            "accuracy": (ops.sum(ops.cast(apart > 0, "float32") * real), count),
            "margin": (ops.sum(apart * real), count),
        }
    c, r = ratios[:p], ratios[p : 2 * p]
    if kind == "kto":
        each = _kto(ops, c, r, batch["drift"], beta, desirable, undesirable)
    else:
        each = PAIR_LOSSES[kind](
            ops, c, r, lengths[:p], lengths[p : 2 * p], beta=beta, smoothing=smoothing, gamma=gamma
        )
    total, count = ops.sum(each * real), ops.sum(real)
    per_token = kind in WITHOUT_REFERENCE
    said = (c / lengths[:p], r / lengths[p : 2 * p]) if per_token else (c, r)
    apart = beta * (said[0] - said[1])
    return total / batch["denominator"], {
        "loss": (total, count * 2 if kind == "kto" else count),
        "accuracy": (ops.sum(ops.cast(apart > 0, "float32") * real), count),
        "margin": (ops.sum(apart * real), count),
        "chosen_logps": (ops.sum(sums[:p] * real), count),
        "rejected_logps": (ops.sum(sums[p : 2 * p] * real), count),
    }


def _kto(
    ops: Ops,
    c: Array,
    r: Array,
    drift: Array,
    beta: float,
    desirable: float,
    undesirable: float,
) -> Array:
    """Ethayarajh 2024: each completion against the policy's drift from the reference, which
    mismatched completions estimate (never below 0, no gradient). The two losses of a pair, each by
    its weight, added."""
    good = ops.exp(log_sigmoid(ops, beta * (c - drift)))
    bad = ops.exp(log_sigmoid(ops, beta * (drift - r)))
    return (desirable + undesirable) - desirable * good - undesirable * bad


def _kto_judged(
    ops: Ops,
    said: Array,
    drift: Array,
    label: Array,
    beta: float,
    desirable: float,
    undesirable: float,
) -> tuple[Array, Array]:
    """(loss of each single completion by its label's weight, how far it lies on its label's side of
    the drift); see `_kto`."""
    apart = beta * label * (said - drift)
    weight = undesirable + (desirable - undesirable) * 0.5 * (label + 1)
    return weight * (1 - ops.exp(log_sigmoid(ops, apart))), apart


# ---- rollouts -------------------------------------------------------------------------------------------------------


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
    sft_coef: float = 0.0,
    temperature: float = 1.0,
    checkpoint: bool = False,
) -> tuple[Array, Metrics]:
    """Clipped policy gradient, clipped value loss with its ½ (Schulman 2017; Huang 2024), both
    means over the tokens of the update, and `sft_coef` times the loss on chats (Ouyang 2022,
    PPO-ptx).

    The value model's tensors are `value.…`; it has the policy's shape. `batch`: ids, positions,
    targets, index, weights, member, advantages, returns, old_logps, old_values (K,), denominator;
    `sft.…` a batch of chats.
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
    if sft_coef:
        chats, chat_metrics = causal_lm_loss(
            ops, params, sub(batch, "sft."), model=model, checkpoint=checkpoint
        )
        loss = loss + sft_coef * chats
        metrics["sft_loss"] = chat_metrics["loss"]
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
    """`ppo_loss` without the chats, from the log-probabilities (K,) of the targets and the values
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
    old = batch["old_logps"] if "old_logps" in batch else ops.stop_gradient(logp)
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


def row_sums(ops: Ops, batch: Batch, x: Array) -> Array:
    """(R,) sums of x (K,) over the targets of each row. No matrix product: that would be rounded to
    TF32 on a GPU.
    """
    return ops.sum(batch["member"] * (x * batch["weights"]).reshape(1, -1), 1)


def log_sigmoid(ops: Ops, x: Array) -> Array:
    """log σ(x), finite with a finite slope far out on both sides."""
    return -ops.logsumexp(ops.stack([x * 0, -x]), 0)


def _log1m_exp(ops: Ops, x: Array) -> Array:
    """log(1 − eˣ) for x < 0; a probability of 1 within rounding is taken for the largest one below
    it.
    """
    return ops.log(1 - ops.exp(ops.minimum(x, -1e-6)))


def _of_tokens(ops: Ops, weights: Array, **each: Array) -> Metrics:
    """Means over tokens, as (sum, count)."""
    count = ops.sum(weights)
    return {name: (ops.sum(x * weights), count) for name, x in each.items()}
