"""TRL's oracles give what their papers' formulas give, written out here by hand: masks and
denominators are as said.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("trl")

import trl_oracles as oracle  # noqa: E402

pytestmark = pytest.mark.slow
Array = np.ndarray
EXACT = {"rtol": 1e-6, "atol": 1e-6}
LENGTH, SHORTER = 7, 5


def logsigmoid(x: Array) -> Array:
    return -np.logaddexp(0, -x)


def sigmoid(x: Array) -> Array:
    return np.exp(logsigmoid(x))


def log_odds(logp: Array) -> Array:
    return logp - np.log1p(-np.exp(logp))


def prefix(lengths: list[int], width: int) -> Array:
    """A (B, width) mask of the first tokens of each row."""
    return (np.arange(width) < np.array(lengths)[:, None]).astype(np.int64)


def numeric(function: Callable[[Array], float], at: Array, step: float = 1e-5) -> Array:
    """The gradient by central differences."""
    slope = np.zeros_like(at)
    for place in np.ndindex(at.shape):
        high, low = at.copy(), at.copy()
        high[place] += step
        low[place] -= step
        slope[place] = (function(high) - function(low)) / (2 * step)
    return slope


def agrees(loss: float, gradients: list[Array], formula: Callable[..., float], *at: Array) -> None:
    """`loss` and its gradients are the formula's and its slopes at the given arrays."""
    np.testing.assert_allclose(loss, formula(*at), **EXACT)
    for i, gradient in enumerate(gradients):

        def along(x: Array, i: int = i) -> float:
            return formula(*at[:i], x, *at[i + 1 :])

        np.testing.assert_allclose(gradient, numeric(along, at[i]), rtol=1e-5, atol=1e-7)


GROUP = oracle.samples(4, LENGTH)
CHOSEN, REJECTED = oracle.samples(4, LENGTH, seed=1), oracle.samples(4, SHORTER, seed=2)
CHOSEN_MASK, REJECTED_MASK = prefix([7, 3, 5, 1], LENGTH), prefix([2, 5, 4, 3], SHORTER)


def grpo_by_hand(
    logps: Array,
    *,
    loss_type: str,
    level: str,
    beta: float,
    corrected: bool,
    longest: int,
    items: float,
) -> float:
    """Shao 2024 (grpo, k3), Liu 2025 (dr_grpo), Yu 2025 (dapo, upper bound of its own), Zheng 2025
    (gspo).
    """
    mask, advantages = GROUP["mask"], GROUP["advantages"][:, None]
    lengths = np.maximum(mask.sum(1), 1)
    change = logps - GROUP["old"]
    if level == "sequence":
        change = np.broadcast_to(((change * mask).sum(1) / lengths)[:, None], logps.shape)
    ratio = np.exp(change)
    losses = -np.minimum(ratio * advantages, np.clip(ratio, 0.8, 1.28) * advantages)
    gap = GROUP["ref"] - logps
    losses = (losses + beta * (np.exp(gap) - gap - 1) * (ratio if corrected else 1)) * mask
    return {
        "grpo": (losses.sum(1) / lengths).mean(),
        "bnpo": losses.sum() / mask.sum(),
        "dr_grpo": losses.sum() / (len(mask) * longest),
        "dapo": losses.sum() / items,
    }[loss_type]


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo"])
@pytest.mark.parametrize(("beta", "corrected"), [(0.0, False), (0.3, False), (0.3, True)])
def test_grpo(loss_type: str, level: str, beta: float, corrected: bool) -> None:
    """One row is empty: it counts among grpo's and dr_grpo's rows."""
    assert GROUP["mask"].sum(1).min() == 0
    loss, gradient = oracle.grpo(
        GROUP["logps"],
        GROUP["old"],
        GROUP["ref"],
        GROUP["advantages"],
        GROUP["mask"],
        loss_type=loss_type,
        level=level,
        beta=beta,
        epsilon=0.2,
        epsilon_high=0.28,
        max_completion_length=11,
        num_items=31,
        bias_correction_kl=corrected,
    )
    agrees(
        loss,
        [gradient],
        lambda x: grpo_by_hand(
            x,
            loss_type=loss_type,
            level=level,
            beta=beta,
            corrected=corrected,
            longest=11,
            items=31,
        ),
        GROUP["logps"],
    )
    assert not gradient[GROUP["mask"] == 0].any()


def test_grpo_defaults() -> None:
    """Without old log-probabilities the ratio is 1 but its slope is not 0; accumulation divides;
    items are counted.
    """
    s = GROUP
    loss, gradient = oracle.grpo(s["logps"], None, None, s["advantages"], s["mask"])
    tokens = s["mask"].sum()
    np.testing.assert_allclose(
        loss, -(s["advantages"][:, None] * s["mask"]).sum() / tokens, **EXACT
    )
    np.testing.assert_allclose(gradient, -s["advantages"][:, None] * s["mask"] / tokens, **EXACT)
    for kind in ("grpo", "bnpo", "dr_grpo"):
        whole = oracle.grpo(s["logps"], s["old"], None, s["advantages"], s["mask"], loss_type=kind)
        half = oracle.grpo(
            s["logps"],
            s["old"],
            None,
            s["advantages"],
            s["mask"],
            loss_type=kind,
            accumulation_steps=2,
        )
        np.testing.assert_allclose(half[0], whole[0] / 2, **EXACT)
        np.testing.assert_allclose(half[1], whole[1] / 2, **EXACT)
    # dapo's denominator spans the generation batch already: its micro-batches just add up.
    parts = [
        oracle.grpo(
            s["logps"][rows],
            s["old"][rows],
            None,
            s["advantages"][rows],
            s["mask"][rows],
            num_items=tokens,
            accumulation_steps=2,
        )
        for rows in (slice(0, 2), slice(2, 4))
    ]
    whole = oracle.grpo(s["logps"], s["old"], None, s["advantages"], s["mask"])
    np.testing.assert_allclose(parts[0][0] + parts[1][0], whole[0], **EXACT)
    np.testing.assert_allclose(np.concatenate([p[1] for p in parts]), whole[1], **EXACT)


def dpo_by_hand(
    chosen: Array, rejected: Array, *, loss_type: str, beta: float, smoothing: float
) -> float:
    """Rafailov 2023, Zhao 2023 (hinge), Azar 2023 (ipo, averaged over tokens), Chowdhury 2024
    (robust).
    """
    sides = (chosen - CHOSEN["ref"]) * CHOSEN_MASK, (rejected - REJECTED["ref"]) * REJECTED_MASK
    better, worse = (side.sum(1) for side in sides)
    if loss_type in ("ipo", "sigmoid_norm"):
        better, worse = better / CHOSEN_MASK.sum(1), worse / REJECTED_MASK.sum(1)
    margin = better - worse
    losses = {
        "sigmoid": -logsigmoid(beta * margin),
        "sigmoid_norm": -logsigmoid(beta * margin),
        "hinge": np.maximum(0, 1 - beta * margin),
        "ipo": (margin - 1 / (2 * beta)) ** 2,
        "robust": (
            -(1 - smoothing) * logsigmoid(beta * margin) + smoothing * logsigmoid(-beta * margin)
        )
        / (1 - 2 * smoothing),
    }[loss_type]
    return float(losses.mean())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("loss_type", ["sigmoid", "hinge", "ipo", "robust", "sigmoid_norm"])
def test_dpo(loss_type: str, smoothing: float) -> None:
    """With chosen and rejected of different widths; only robust knows label smoothing."""
    loss, *gradients = oracle.dpo(
        CHOSEN["logps"],
        REJECTED["logps"],
        CHOSEN["ref"],
        REJECTED["ref"],
        CHOSEN_MASK,
        REJECTED_MASK,
        loss_type=loss_type,
        beta=0.3,
        label_smoothing=smoothing,
    )
    agrees(
        loss,
        gradients,
        lambda c, r: dpo_by_hand(c, r, loss_type=loss_type, beta=0.3, smoothing=smoothing),
        CHOSEN["logps"],
        REJECTED["logps"],
    )


LABELS = np.array([True, False, True, True])


def kto_by_hand(logps: Array, *, loss_type: str, kl: float) -> float:
    """Ethayarajh 2024, equation 7; D'Oosterlinck 2024 (apo_zero, unpaired)."""
    ratio = ((logps - CHOSEN["ref"]) * CHOSEN_MASK).sum(1)
    kl = 0.0 if loss_type == "apo_zero_unpaired" else kl
    good, bad = 1 - sigmoid(0.3 * (ratio - kl)), 1 - sigmoid(0.3 * (kl - ratio))
    return float(np.where(LABELS, 1.1 * good, 0.7 * bad).mean())


@pytest.mark.parametrize("loss_type", ["kto", "apo_zero_unpaired"])
@pytest.mark.parametrize("shift", [0.4, -0.4])
def test_kto(loss_type: str, shift: float) -> None:
    """The KL term is the mean of mismatched answers' summed log-ratios, cut at 0, and has no slope."""
    policy = REJECTED["ref"] + shift
    loss, gradient, kl = oracle.kto(
        CHOSEN["logps"],
        CHOSEN["ref"],
        CHOSEN_MASK,
        LABELS,
        policy,
        REJECTED["ref"],
        REJECTED_MASK,
        loss_type=loss_type,
        beta=0.3,
        desirable_weight=1.1,
        undesirable_weight=0.7,
    )
    expected = max(0.0, shift * REJECTED_MASK.sum() / len(LABELS)) if loss_type == "kto" else 0.0
    np.testing.assert_allclose(kl, expected, **EXACT)
    agrees(
        loss,
        [gradient],
        lambda x: kto_by_hand(x, loss_type=loss_type, kl=expected),
        CHOSEN["logps"],
    )


@pytest.mark.parametrize("prompt", [False, True])
def test_orpo(prompt: bool) -> None:
    """Hong 2024: odds of averaged log-probabilities; the likelihood is of the prompt's tokens too,
    where there are.
    """
    mask = CHOSEN_MASK.copy()
    if prompt:  # a prompt of a token a row, so the answer starts at the second
        mask[:, 0] = 0
        mask[3, 1] = 1
    seen = np.maximum(CHOSEN_MASK, mask)

    def formula(chosen: Array, rejected: Array) -> float:
        better, worse = (
            (chosen * mask).sum(1) / mask.sum(1),
            (rejected * REJECTED_MASK).sum(1) / REJECTED_MASK.sum(1),
        )
        odds = logsigmoid(log_odds(better) - log_odds(worse))
        return float(-(chosen * seen).sum() / seen.sum() - 0.3 * odds.mean())

    loss, *gradients = oracle.orpo(
        CHOSEN["logps"],
        REJECTED["logps"],
        mask,
        REJECTED_MASK,
        beta=0.3,
        chosen_attention=seen if prompt else None,
    )
    # TRL computes the odds in float32.
    np.testing.assert_allclose(loss, formula(CHOSEN["logps"], REJECTED["logps"]), **EXACT)
    for i, gradient in enumerate(gradients):
        slope = numeric(
            lambda x, i=i: formula(*((x, REJECTED["logps"]) if i == 0 else (CHOSEN["logps"], x))),
            (CHOSEN, REJECTED)[i]["logps"],
        )
        np.testing.assert_allclose(gradient, slope, **EXACT)


@pytest.mark.parametrize(("smoothing", "alpha"), [(0.0, 0.0), (0.1, 0.0), (0.1, 0.5)])
def test_simpo(smoothing: float, alpha: float) -> None:
    """Meng 2024: averaged log-probabilities and a margin; `cpo_alpha` adds the chosen answers'
    likelihood.
    """

    def formula(chosen: Array, rejected: Array) -> float:
        better, worse = (
            (chosen * CHOSEN_MASK).sum(1) / CHOSEN_MASK.sum(1),
            (rejected * REJECTED_MASK).sum(1) / REJECTED_MASK.sum(1),
        )
        margin = 2.0 * (better - worse) - 0.5
        losses = -(1 - smoothing) * logsigmoid(margin) - smoothing * logsigmoid(-margin)
        return float(losses.mean() - alpha * (chosen * CHOSEN_MASK).sum() / CHOSEN_MASK.sum())

    loss, *gradients = oracle.simpo(
        CHOSEN["logps"],
        REJECTED["logps"],
        CHOSEN_MASK,
        REJECTED_MASK,
        beta=2.0,
        gamma=0.5,
        label_smoothing=smoothing,
        cpo_alpha=alpha,
    )
    agrees(loss, gradients, formula, CHOSEN["logps"], REJECTED["logps"])


@pytest.mark.parametrize("margin", [None, np.array([0.1, 0.2, 0.3, 0.4])])
@pytest.mark.parametrize("centre", [None, 0.05])
def test_reward(margin: Array | None, centre: float | None) -> None:
    """Bradley-Terry; the centring term is of the sum of both scores."""

    def formula(chosen: Array, rejected: Array) -> float:
        gap = chosen - rejected - (0 if margin is None else margin)
        return float(-logsigmoid(gap).mean() + (centre or 0) * ((chosen + rejected) ** 2).mean())

    chosen, rejected = np.array([0.5, -0.2, 1.5, 0.1]), np.array([0.7, -1.0, 0.2, 0.1])
    loss, *gradients = oracle.reward(chosen, rejected, margin, centre)
    agrees(loss, gradients, formula, chosen, rejected)


def test_what_stands_under_a_mask_is_ignored() -> None:
    """Padding may hold anything finite."""

    def spoilt(x: Array, mask: Array) -> Array:
        return np.where(mask == 1, x, 3.0)

    pairs = [(CHOSEN, CHOSEN_MASK), (REJECTED, REJECTED_MASK)]
    clean, dirty = (
        [[f(s[name], m) for s, m in pairs] for name in ("logps", "ref")]
        for f in (lambda x, m: x, spoilt)
    )
    masks = CHOSEN_MASK, REJECTED_MASK
    for first, second in (
        (oracle.dpo(*clean[0], *clean[1], *masks), oracle.dpo(*dirty[0], *dirty[1], *masks)),
        (oracle.orpo(*clean[0], *masks), oracle.orpo(*dirty[0], *masks)),
        (oracle.simpo(*clean[0], *masks), oracle.simpo(*dirty[0], *masks)),
    ):
        for a, b in zip(first, second, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12)
    s, old = GROUP, spoilt(GROUP["old"], GROUP["mask"])
    for kind in ("grpo", "dapo"):
        a = oracle.grpo(
            s["logps"], s["old"], s["ref"], s["advantages"], s["mask"], loss_type=kind, beta=0.1
        )
        b = oracle.grpo(
            s["logps"], old, s["ref"], s["advantages"], s["mask"], loss_type=kind, beta=0.1
        )
        np.testing.assert_allclose(a[0], b[0], rtol=1e-12)


def test_log_probabilities_and_entropy() -> None:
    logits = np.random.default_rng(0).normal(size=(2, 3, 11))
    index = np.random.default_rng(1).integers(0, 11, (2, 3))
    for temperature in (1.0, 0.7):
        scaled = logits / temperature
        logp = scaled - np.log(np.exp(scaled).sum(-1, keepdims=True))
        np.testing.assert_allclose(
            oracle.selective_log_softmax(logits, index, temperature),
            np.take_along_axis(logp, index[..., None], -1)[..., 0],
            **EXACT,
        )
        np.testing.assert_allclose(
            oracle.entropy_from_logits(scaled), -(np.exp(logp) * logp).sum(-1), **EXACT
        )
