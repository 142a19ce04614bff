"""Losses of preferences: of pairs, of single completions by their label (KTO), of a reward model.

As in `training/losses.py`: sums divided by `batch["denominator"]`. One objective of two sums of
log-probabilities serves the whole family (`PAIR_LOSSES`), so that a further loss is one function of
their difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from ondevice.models.network import Network
from ondevice.models.score_head import scalar_head
from ondevice.seam.ops import Array, Metrics, Ops, Params
from ondevice.training.logprobs import token_logprobs
from ondevice.training.losses import Batch, row_sums


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
    if per_token:
        said = (c / lengths[:p], r / lengths[p : 2 * p])
    else:
        said = (c, r)
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


def log_sigmoid(ops: Ops, x: Array) -> Array:
    """log σ(x), finite with a finite slope far out on both sides."""
    return -ops.logsumexp(ops.stack([x * 0, -x]), 0)


def _log1m_exp(ops: Ops, x: Array) -> Array:
    """log(1 − eˣ) for x < 0; a probability of 1 within rounding is taken for the largest one below
    it.
    """
    return ops.log(1 - ops.exp(ops.minimum(x, -1e-6)))
