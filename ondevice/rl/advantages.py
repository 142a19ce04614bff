"""Advantages and returns, on the host in numpy. P prompts, G completions of each, N rows, T tokens
of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
EPSILON = 1e-4


def group_advantages(rewards: Floats, scale: Literal["group", "batch", "none"] = "group") -> Floats:
    """(P, G) rewards → (P, G) advantages: (r − mean of its group) / (std + 1e-4), unbiased std
    (Shao 2024, eq. 4).

    `scale` says whose std divides: the group's, the whole batch's, or nothing (Liu 2025, Dr. GRPO).
    A reward that is not there (NaN) counts nowhere and gets the advantage 0; so does a row that is
    alone in its group.
    """
    there = np.isfinite(rewards)
    count = there.sum(1, keepdims=True)
    mean = np.where(there, rewards, 0.0).sum(1, keepdims=True) / np.maximum(count, 1)
    off = np.where(there, rewards - mean, 0.0)
    spread: Floats
    if scale == "none":
        return np.asarray(off)
    if scale == "group":
        spread = np.sqrt((off**2).sum(1, keepdims=True) / np.maximum(count - 1, 1))
    else:
        known = rewards[there]
        spread = np.asarray(0.0)
        if len(known) > 1:
            spread = np.asarray(known.std(ddof=1))
    return np.asarray(off / (spread + EPSILON))


def without_spread(rewards: Floats) -> NDArray[np.bool_]:
    """(P,) whether a group's rewards are all the same, so that nothing can be learned from it."""
    there = np.isfinite(rewards)
    high = np.where(there, rewards, -np.inf).max(1)
    low = np.where(there, rewards, np.inf).min(1)
    result: NDArray[np.bool_] = ~(high > low)
    return result


def gae(
    rewards: Sequence[Floats], values: Sequence[Floats], gamma: float, lam: float
) -> tuple[list[Floats], list[Floats]]:
    """(advantages, returns) of every row from its per-token rewards and values (Schulman 2016);
    nothing follows a row's last token."""
    advantages: list[Floats] = []
    returns: list[Floats] = []
    for reward, value in zip(rewards, values, strict=True):
        after = np.append(value[1:], 0.0)
        delta = reward + gamma * after - value
        out = np.zeros(len(delta), np.float64)
        advantage = 0.0
        for t in range(len(delta) - 1, -1, -1):
            advantage = delta[t] + gamma * lam * advantage
            out[t] = advantage
        advantages.append(out)
        returns.append(out + value)
    return advantages, returns


def whiten(rows: Sequence[Floats]) -> list[Floats]:
    """All tokens of a batch shifted and scaled to mean 0 and variance 1 (unbiased variance, as
    TRL's masked_whiten).
    """
    if rows:
        flat = np.concatenate(rows)
    else:
        flat = np.zeros(0)
    if len(flat) < 2:
        return [np.zeros_like(row) for row in rows]
    mean = flat.mean()
    scale = 1.0 / np.sqrt(flat.var(ddof=1) + 1e-8)
    return [(row - mean) * scale for row in rows]


def explained_variance(returns: Floats, values: Floats) -> float:
    """1 − Var(returns − values) / Var(returns): 1 where the value model foresees all, 0 where it
    says a constant.
    """
    total = float(np.var(returns))
    if total == 0:
        return float("nan")
    return 1.0 - float(np.var(returns - values)) / total
