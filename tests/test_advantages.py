"""Advantages and returns by hand, and PPO's numbers against those recorded in TRL 1.12
(golden/ppo_trl_1_12.json).
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest

from gradients import graded, on_device
from ondevice.rl.advantages import explained_variance, gae, group_advantages, whiten, without_spread
from ondevice.seam.protocols import Backend
from ondevice.stages.ppo import assemble
from ondevice.training.policy_losses import ppo_objective
from test_golden_ppo import CASES, GOLDEN, TOLERANCE, arrays

NAN = float("nan")
close = np.testing.assert_allclose


# ---- over a group ---------------------------------------------------------------------------------------------------


def test_group_advantages_by_hand() -> None:
    """Mean 1 and standard deviation 2 (4 = (4 + 4) / 2); a group whose are all alike; the variance
    of all is 32/5.
    """
    rewards = np.array([[3.0, -1.0, 1.0], [5.0, 5.0, 5.0]])
    close(group_advantages(rewards), [[2 / 2.0001, -2 / 2.0001, 0], [0, 0, 0]])
    close(group_advantages(rewards, "none"), [[2, -2, 0], [0, 0, 0]])
    close(
        group_advantages(rewards, "batch"),
        [[2 / (6.4**0.5 + 1e-4), -2 / (6.4**0.5 + 1e-4), 0], [0, 0, 0]],
    )
    assert without_spread(rewards).tolist() == [False, True]


def test_rewards_that_are_missing_count_nowhere() -> None:
    """The others' mean and deviation are as if the missing ones had not been written."""
    rewards = np.array(
        [
            [3.0, NAN, -1.0, 1.0],
            [NAN, NAN, NAN, NAN],
            [NAN, 2.0, NAN, NAN],
            [1.0, 0.0, math.inf, NAN],
        ]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for scale in ("group", "batch", "none"):
            got = group_advantages(rewards, scale)  # type: ignore[arg-type]
            assert np.isfinite(got).all()
            assert not got[~np.isfinite(rewards)].any() and not got[1].any() and not got[2].any()
        close(group_advantages(rewards)[0], [2 / 2.0001, 0, -2 / 2.0001, 0])
        close(
            group_advantages(rewards)[3], [0.5 / (0.5**0.5 + 1e-4), -0.5 / (0.5**0.5 + 1e-4), 0, 0]
        )
        assert without_spread(rewards).tolist() == [False, True, True, False]
        assert not group_advantages(np.full((2, 3), NAN), "batch").any()


# ---- over a row -----------------------------------------------------------------------------------------------------


def test_gae_by_hand() -> None:
    """Two tokens, gamma 1/2, lambda 1/2: the last one's advantage is 4 − 2, the first one's 1 + 2/2
    − 3 + (4 − 2)/4.
    """
    (advantages,), (returns,) = gae([np.array([1.0, 4.0])], [np.array([3.0, 2.0])], 0.5, 0.5)
    close(advantages, [-0.5, 2.0])
    close(returns, [2.5, 4.0])


def test_gae_at_its_ends() -> None:
    """λ 1: what is still to come less the value; λ 0: one step's surprise. Rows do not see each
    other.
    """
    rng = np.random.default_rng(0)
    rows = [(rng.normal(size=n), rng.normal(size=n)) for n in (5, 1, 3)]
    rewards, values = [r for r, _ in rows], [v for _, v in rows]
    for r, v, a, found in zip(rewards, values, *gae(rewards, values, 1.0, 1.0), strict=True):
        close(a, np.cumsum(r[::-1])[::-1] - v)
        close(found, np.cumsum(r[::-1])[::-1])
    for r, v, a in zip(rewards, values, gae(rewards, values, 0.9, 0.0)[0], strict=True):
        close(a, r + 0.9 * np.append(v[1:], 0) - v)
    alone = [gae([r], [v], 0.9, 0.8)[0][0] for r, v in rows]
    for one, other in zip(alone, gae(rewards, values, 0.9, 0.8)[0], strict=True):
        close(one, other)


def test_whiten_by_hand() -> None:
    """Over all tokens of all rows: 1, 2, 3 have mean 2 and variance 1."""
    one, two = whiten([np.array([1.0, 2.0]), np.array([3.0])])
    close(one, [-1, 0], atol=1e-7)
    close(two, [1])
    assert whiten([np.array([5.0])])[0].tolist() == [0.0] and whiten([]) == []
    assert not np.concatenate(whiten([np.full(3, 2.0)])).any()


def test_explained_variance_by_hand() -> None:
    returns = np.array([1.0, 2.0, 3.0, 4.0])
    assert explained_variance(returns, returns + 7) == 1
    assert explained_variance(returns, np.full(4, 9.0)) == 0
    assert explained_variance(returns, -returns) == pytest.approx(-3)
    assert math.isnan(explained_variance(np.ones(3), returns[:3]))


# ---- PPO as TRL 1.12 did it -----------------------------------------------------------------------------------------
# TRL gives a row that ends early one place more than its tokens: the score is a reward of that place, and its value is
# learned too. Ours end at the last token. What is fed here has TRL's places, so that the numbers are TRL's.


def lengths_of(case: dict[str, Any], mask: str) -> list[int]:
    return [int(sum(row)) for row in case["inputs"][mask]]


def cut(values: np.ndarray, lengths: list[int]) -> list[np.ndarray]:
    return [row[:n] for row, n in zip(values, lengths, strict=True)]


@pytest.mark.parametrize("name", CASES)
def test_returns_and_advantages_are_trls(name: str) -> None:
    case = GOLDEN["cases"][name]
    cfg, given, expected = case["settings"], arrays(case["inputs"]), arrays(case["expected"])
    places, tokens = lengths_of(case, "value_mask"), lengths_of(case, "mask")
    advantages, returns = gae(
        cut(expected["rewards"], places), cut(given["values"], places), cfg["gamma"], cfg["lam"]
    )
    for mine, row, n in zip(advantages, expected["raw_advantages"], places, strict=True):
        close(mine, row[:n], **TOLERANCE)
    for mine, row, n in zip(returns, expected["returns"], places, strict=True):
        close(mine, row[:n], **TOLERANCE)
    for mine, row, n in zip(
        whiten([a[:n] for a, n in zip(advantages, tokens, strict=True)]),
        expected["advantages"],
        tokens,
        strict=True,
    ):
        close(mine, row[:n], **TOLERANCE)


def test_a_rollout_is_assembled_as_trl_does_it() -> None:
    """The case that has our price (k1, no whitened rewards); TRL's further place has the same
    log-probability on both sides, so that nothing is taken from its reward."""
    case = GOLDEN["cases"]["k1"]
    cfg, given, expected = case["settings"], arrays(case["inputs"]), arrays(case["expected"])
    places = lengths_of(case, "value_mask")
    found = assemble(
        cut(given["logprobs"], places),
        cut(given["ref_logprobs"], places),
        cut(given["values"], places),
        expected["scores"].astype(np.float32),
        cfg["kl_coef"],
        cfg["gamma"],
        cfg["lam"],
    )
    for mine, row, n in zip(found.tokens["returns"], expected["returns"], places, strict=True):
        close(mine, row[:n], **TOLERANCE)
    assert found.numbers["kl"] == pytest.approx(float(expected["mean_kl_of_rows"]), rel=1e-5)
    assert found.numbers["reward"] == pytest.approx(expected["scores"].mean(), rel=1e-5)
    assert found.numbers["return"] == pytest.approx(expected["rewards"].sum(1).mean(), rel=1e-5)
    assert np.concatenate(found.tokens["advantages"]).mean() == pytest.approx(0, abs=1e-6)


def test_a_rollout_by_hand() -> None:
    """A price of 1/2 a nat, a score of 2 at the last token: rewards −1/2 and 2 + 1/2; γ = λ = 1 and
    values 0.
    """
    found = assemble(
        [np.array([-1.0, -3.0])],
        [np.array([-2.0, -2.0])],
        [np.zeros(2)],
        np.array([2.0], np.float32),
        0.5,
        1.0,
        1.0,
    )
    close(found.tokens["returns"][0], [2.0, 2.5])
    assert found.numbers["kl"] == 0 and found.numbers["return"] == pytest.approx(2)
    close(found.tokens["advantages"][0], [-(0.5**0.5), 0.5**0.5], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "update"), [(n, u) for n in CASES for u in range(len(GOLDEN["cases"][n]["updates"]))]
)
def test_ppo_of_every_update_is_trls(backend: Backend, name: str, update: int) -> None:
    """Policy and value loss, their sum, and the slopes in the new log-probabilities and values.
    TRL's value loss is a mean over its further places too, so the two parts are asked for one at a
    time, each with its own mask."""
    case = GOLDEN["cases"][name]
    cfg, given, expected = case["settings"], arrays(case["inputs"]), arrays(case["expected"])
    seen = arrays(case["updates"][update])
    rows = seen["rows"]
    flat = {
        "advantages": expected["advantages"],
        "returns": expected["returns"],
        "old_logps": given["logprobs"],
        "old_values": given["values"],
    }
    shared = {key: value[rows].reshape(-1) for key, value in flat.items()}

    def part(mask: str, silent: str) -> dict[str, Any]:
        weights = given[mask][rows].reshape(-1)
        return on_device(
            backend,
            {
                key: value.astype(np.float32)
                for key, value in {
                    **shared,
                    silent: np.zeros(len(weights)),
                    "weights": weights,
                    "denominator": weights.sum(),
                }.items()
            },
        )

    policy, value = part("mask", "old_values"), part("value_mask", "advantages")
    settings = {"clip": cfg["cliprange"], "value_clip": cfg["cliprange_value"]}

    def policy_loss(logp: Any, values: Any) -> Any:
        return ppo_objective(backend.ops, logp, values, policy, value_coef=0.0, **settings)[0]

    def value_loss(logp: Any, values: Any) -> Any:
        return ppo_objective(backend.ops, logp, values, value, value_coef=1.0, **settings)[0]

    logp, values = seen["new_logprobs"].reshape(-1), seen["new_values"].reshape(-1)
    first, _ = graded(backend, policy_loss, logp, values)
    second, _ = graded(backend, value_loss, logp, values)
    loss, (by_logp, by_value) = graded(
        backend, lambda x, v: policy_loss(x, v) + cfg["vf_coef"] * value_loss(x, v), logp, values
    )
    tolerance = {"rtol": 1e-4, "atol": 2e-6}
    close(first, seen["pg_loss"], **tolerance)
    close(second, seen["vf_loss"], **tolerance)
    close(loss, seen["loss"], **tolerance)
    close(by_logp, seen["grad_new_logprobs"].reshape(-1), **tolerance)
    close(by_value, seen["grad_new_values"].reshape(-1), **tolerance)


@pytest.mark.parametrize("name", CASES)
def test_both_parts_of_ppo_in_one_call(backend: Backend, name: str) -> None:
    """Of the rows that have no further place in TRL: the sum of both formulas, over one number of
    tokens.
    """
    case = GOLDEN["cases"][name]
    cfg, given, expected = case["settings"], arrays(case["inputs"]), arrays(case["expected"])
    full = [
        i
        for i, (m, v) in enumerate(zip(given["mask"], given["value_mask"], strict=True))
        if (m == v).all()
    ]
    assert len(full) >= 2
    seen = arrays(next(u for u in reversed(case["updates"]) if set(u["rows"]) & set(full)))
    mine = [n for n, i in enumerate(seen["rows"]) if i in full]
    rows = seen["rows"][mine]
    logp, values = seen["new_logprobs"][mine].reshape(-1), seen["new_values"][mine].reshape(-1)
    old_values, returns, advantages = (
        x[rows].reshape(-1) for x in (given["values"], expected["returns"], expected["advantages"])
    )
    batch = {
        "advantages": advantages,
        "returns": returns,
        "old_values": old_values,
        "old_logps": given["logprobs"][rows].reshape(-1),
        "weights": np.ones(len(logp)),
        "denominator": len(logp),
    }
    arrays_ = on_device(backend, {k: np.asarray(v, np.float32) for k, v in batch.items()})
    loss, _ = graded(
        backend,
        lambda x, v: ppo_objective(
            backend.ops,
            x,
            v,
            arrays_,
            clip=cfg["cliprange"],
            value_clip=cfg["cliprange_value"],
            value_coef=cfg["vf_coef"],
        )[0],
        logp,
        values,
    )
    ratio = np.exp(logp - batch["old_logps"])
    policy = np.maximum(
        -advantages * ratio,
        -advantages * np.clip(ratio, 1 - cfg["cliprange"], 1 + cfg["cliprange"]),
    )
    near = np.clip(values, old_values - cfg["cliprange_value"], old_values + cfg["cliprange_value"])
    value = 0.5 * np.maximum((values - returns) ** 2, (near - returns) ** 2)
    close(loss, policy.mean() + cfg["vf_coef"] * value.mean(), rtol=1e-4)
