"""The golden numbers of PPO follow from their own inputs by the formulas that their conventions
state.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

GOLDEN = json.loads((Path(__file__).parent / "golden" / "ppo_trl_1_12.json").read_text())
CASES = sorted(GOLDEN["cases"])
close = np.testing.assert_allclose
TOLERANCE = {"rtol": 2e-5, "atol": 1e-6}  # float32 sums against float64 ones


def whiten(values: np.ndarray, mask: np.ndarray, keep_mean: bool = False) -> np.ndarray:
    """Mean 0 and unbiased variance 1 over the mask."""
    kept = values[mask == 1]
    scaled = (values - kept.mean()) / np.sqrt(kept.var(ddof=1) + 1e-8)
    return scaled + kept.mean() if keep_mean else scaled


def arrays(part: dict[str, Any]) -> dict[str, Any]:
    return {
        name: np.array(value) if isinstance(value, list) else value for name, value in part.items()
    }


def test_masked_functions() -> None:
    seen = arrays(GOLDEN["functions"])
    kept = seen["values"][seen["mask"] == 1]
    close(seen["masked_mean"], kept.mean(), **TOLERANCE)
    close(seen["masked_var"], kept.var(ddof=1), **TOLERANCE)
    close(seen["masked_whiten"], whiten(seen["values"], seen["mask"]), **TOLERANCE)
    close(
        seen["masked_whiten_keeping_the_mean"],
        whiten(seen["values"], seen["mask"], True),
        **TOLERANCE,
    )


@pytest.mark.parametrize("name", CASES)
def test_rewards_and_advantages(name: str) -> None:
    case = GOLDEN["cases"][name]
    cfg, given, expected = case["settings"], arrays(case["inputs"]), arrays(case["expected"])
    rows, length = given["mask"].shape
    lengths = given["mask"].sum(1)
    close(given["value_mask"], np.arange(length) < lengths[:, None] + 1)
    close(given["logprobs"][given["mask"] == 0], 1.0)
    close(given["values"][given["value_mask"] == 0], 0.0)

    penalty = 0.0 if cfg["missing_eos_penalty"] is None else cfg["missing_eos_penalty"]
    scores = given["scores_of_model"] - penalty * (1 - given["has_eos"])
    close(expected["scores"], scores, **TOLERANCE)
    ratio = given["ref_logprobs"] - given["logprobs"]
    kl = -ratio if cfg["kl_estimator"] == "k1" else np.exp(ratio) - 1 - ratio
    close(expected["kl"], kl, **TOLERANCE)
    close(expected["mean_kl_of_rows"], kl.sum(1).mean(), **TOLERANCE)
    place = np.where(lengths < length, lengths, lengths - 1)
    close(expected["score_position"], place)
    rewards = -cfg["kl_coef"] * kl
    rewards[np.arange(rows), place] += scores
    if cfg["whiten_rewards"]:
        close(expected["rewards_before_whitening"], rewards, **TOLERANCE)
        rewards = np.where(
            given["value_mask"] == 1, whiten(rewards, given["value_mask"], keep_mean=True), 0
        )
    close(expected["rewards"], rewards, **TOLERANCE)

    values = np.concatenate([given["values"], np.zeros((rows, 1))], 1)
    deltas = rewards + cfg["gamma"] * values[:, 1:] - values[:, :-1]
    decay = cfg["gamma"] * cfg["lam"]
    raw = np.stack(
        [sum(decay ** (u - t) * deltas[:, u] for u in range(t, length)) for t in range(length)], 1
    )
    close(expected["raw_advantages"], raw, **TOLERANCE)
    close(expected["returns"], raw + given["values"], **TOLERANCE)
    close(
        expected["advantages"],
        np.where(given["mask"] == 1, whiten(raw, given["mask"]), 0),
        **TOLERANCE,
    )


@pytest.mark.parametrize("name", CASES)
def test_losses(name: str) -> None:
    case = GOLDEN["cases"][name]
    cfg, given, expected = case["settings"], arrays(case["inputs"]), arrays(case["expected"])
    ratios = []
    for update in map(arrays, case["updates"]):
        rows = update["rows"]
        mask, value_mask, advantages, returns, old_values = (
            part[rows]
            for part in (
                given["mask"],
                given["value_mask"],
                expected["advantages"],
                expected["returns"],
                given["values"],
            )
        )
        change = update["new_logprobs"] - given["logprobs"][rows]
        ratio = np.exp(change)
        ratios.append(ratio)
        clipped = np.clip(ratio, 1 - cfg["cliprange"], 1 + cfg["cliprange"])
        policy, held = -advantages * ratio, -advantages * clipped
        new = update["new_values"]
        bounded = np.clip(
            new, old_values - cfg["cliprange_value"], old_values + cfg["cliprange_value"]
        )
        squares, bounded_squares = (new - returns) ** 2, (bounded - returns) ** 2
        pg_loss = (np.maximum(policy, held) * mask).sum() / mask.sum()
        vf_loss = 0.5 * (np.maximum(squares, bounded_squares) * value_mask).sum() / value_mask.sum()
        close(update["pg_loss"], pg_loss, **TOLERANCE)
        close(update["vf_loss"], vf_loss, **TOLERANCE)
        close(update["loss"], pg_loss + cfg["vf_coef"] * vf_loss, **TOLERANCE)
        close(update["approxkl"], 0.5 * (change**2).mean(), **TOLERANCE)
        close(update["ratio_mean"], ratio.mean(), **TOLERANCE)
        if (
            len(ratios) == 1
        ):  # where the ratio is 1 but for rounding, neither side is reliably the greater
            continue
        close(update["pg_clipfrac"], ((held > policy) * mask).sum() / mask.sum(), **TOLERANCE)
        close(
            update["vf_clipfrac"],
            ((bounded_squares > squares) * value_mask).sum() / value_mask.sum(),
            **TOLERANCE,
        )
        # d ratio / d log-probability is the ratio
        slope = np.where(policy >= held, policy, 0) * mask / mask.sum()
        close(update["grad_new_logprobs"], slope, **TOLERANCE)
        inside = np.abs(new - old_values) <= cfg["cliprange_value"]
        slope = (
            np.where((squares >= bounded_squares) | inside, new - returns, 0)
            * value_mask
            / value_mask.sum()
        )
        close(update["grad_new_values"], cfg["vf_coef"] * slope, **TOLERANCE)
    close(ratios[0], 1.0, atol=1e-5)
    assert all(np.abs(ratio - 1).max() > 2 * cfg["cliprange"] for ratio in ratios[1:])


def test_every_kind_of_row_occurs() -> None:
    """Ends early (with room for one value more or two), ends at the last place, has no end; updates
    that clip.
    """
    given = arrays(GOLDEN["cases"]["k1"]["inputs"])
    assert given["mask"].sum(1).tolist() == [5, 6, 7, 7] and given["has_eos"].tolist() == [
        1,
        1,
        1,
        0,
    ]
    assert all(
        0 < update[f"{part}_clipfrac"] < 1
        for name in CASES
        for part in ("pg", "vf")
        for update in GOLDEN["cases"][name]["updates"][1:]
    )
