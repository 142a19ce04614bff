"""What the votes so far say of answers, as a reward model that is fitted anew in milliseconds: a
linear one over what the start's own network makes of an answer.

A version is trained after dozens of votes, and by then its forecast is too flat to choose by: the
implicit reward of DPO, β·log(π/π_start) with β 0.1, is near 0 everywhere after so short a training,
so that every pair looks like a coin toss (0.98 to 1 bit). This one knows the vote before.

Bayesian logistic regression of the votes on differences of features (Bradley–Terry), by Laplace's
approximation in its dual form (Rasmussen and Williams 2006, algorithm 3.1 and 3.2), in which the
size of a model does not matter. What a vote would teach is the information that it gives of the
weights (BALD; Houlsby 2011), which is more than doubt: of two equally good answers nothing is to be
learned, however sure nobody can be of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
PRIOR = 20.0
"""Variance of what is not known yet, of differences of usual size: a difference of 4 to 5 logits."""
ROUNDS = 30
_C2 = math.pi * math.log(2) / 2
_PROBIT = math.pi / 8


class Taste:
    """`one`, `other` (N, H): features of the answers that were voted on; `wins` (N,): 1 where the
    first one is preferred, 0 where the other one is, ½ for a tie, which says that there is little
    between them. `usual` (M, H): features of answers as they are, by which all are brought to one
    scale."""

    def __init__(self, one: Floats, other: Floats, wins: Floats, usual: Floats) -> None:
        self._scale = 1.0 / ((usual.std(0) + 1e-6) * math.sqrt(usual.shape[1]))
        self._votes = (one - other) * self._scale
        kernel = PRIOR * self._votes @ self._votes.T
        f = np.zeros(len(kernel))
        for _ in range(ROUNDS):
            p = _sigmoid(f)
            weight = p * (1 - p)
            root = np.sqrt(weight)
            self._inner = np.eye(len(f)) + root[:, None] * kernel * root
            b = weight * f + (wins - p)
            a = b - root * np.linalg.solve(self._inner, root * (kernel @ b))
            f, before = kernel @ a, f
            if np.abs(f - before).max(initial=0.0) < 1e-6:
                break
        p = _sigmoid(f)
        self._slope, self._root = wins - p, np.sqrt(p * (1 - p))
        self._inner = np.eye(len(f)) + self._root[:, None] * kernel * self._root

    def forecast(self, one: Floats, other: Floats) -> Forecast:
        """By how much the answers `one` (P, H) are preferred to `other`."""
        apart = (one - other) * self._scale
        cross = PRIOR * apart @ self._votes.T
        known = self._root[:, None] * cross.T
        covariance = PRIOR * apart @ apart.T - known.T @ np.linalg.solve(self._inner, known)
        return Forecast(cross @ self._slope, covariance)


@dataclass(frozen=True)
class Forecast:
    """Of pairs of answers: mean (P,) and covariance (P, P) of by how many logits the first one is
    preferred."""

    mean: Floats
    covariance: Floats

    def bits(self) -> Floats:
        """(P,) that a vote on each would tell of the weights: by how much less is known of the vote
        than would be if the weights were known."""
        mean = self.mean * math.sqrt(_PROBIT)
        variance = np.maximum(np.diag(self.covariance), 0.0) * _PROBIT
        unsure = _entropy(mean / np.sqrt(1 + variance))
        wide = variance + _C2
        noise = math.sqrt(_C2) * np.exp(-(mean**2) / (2 * wide)) / np.sqrt(wide)
        return np.maximum(unsure - noise, 0.0)

    def after(self, pair: int) -> Forecast:
        """Once a vote on this pair is there, whichever it is."""
        p = float(_sigmoid(self.mean[pair]))
        weight = p * (1 - p)
        column = self.covariance[:, pair]
        known = np.outer(column, column) * weight / (1 + weight * column[pair])
        return Forecast(self.mean, self.covariance - known)


def _sigmoid(x: Any) -> Floats:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))


def _entropy(z: Floats) -> Floats:
    """Bits of a coin that shows heads with probability Φ(z)."""
    heads = [0.5 * math.erfc(-x / math.sqrt(2)) for x in z]
    p = np.clip(heads, 1e-12, 1 - 1e-12)
    return np.asarray(-(p * np.log2(p) + (1 - p) * np.log2(1 - p)))
