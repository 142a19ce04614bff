"""How strong each source of responses is: win rates, and Bradley-Terry strengths.

A response's source is the checkpoint that wrote it. Every vote on an item of more than two
responses counts as one on each pair that it orders. Intervals of strengths come from bootstraps
over prompts.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ondevice.common.intervals import Share, clustered
from ondevice.common.rng import generator
from ondevice.preferences.pairs import better
from ondevice.preferences.votes import Item, Vote

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """Two responses side by side in one vote. `score`: 1 the left one is better, 0 the right one, ½
    neither.
    """

    left: str
    right: str
    score: float
    prompt_sha: str
    decided: bool
    longer: int  # 1 the left text is longer, -1 the right one, 0 neither


@dataclass(frozen=True)
class Strengths:
    """Bradley–Terry: log-odds of each source (their mean is 0), the best first, and of standing
    left.

    Intervals are the middle 95 % of bootstraps over prompts. `beats[k]`: the probability that
    source k is preferred to source k+1, with its interval; overlapping intervals of two strengths
    are no test of their difference.
    """

    sources: list[str]
    strength: list[float]
    low: list[float]
    high: list[float]
    beats: list[tuple[float, float, float]]
    left: float
    left_low: float
    left_high: float
    comparisons: int
    prompts: int


def comparisons(items: Mapping[int, Item], votes: Iterable[Vote]) -> list[Comparison]:
    """Every pair that a vote on a normal item judges, left and right as the rater saw them. A tie
    and all bad are ½. Answers whose authors the rater knew (meta `blind` false) say nothing of how
    strong those are."""
    found = []
    for vote in votes:
        item = items[vote.item]
        if vote.action != "vote" or item.kind != "normal" or item.meta.get("blind") is False:
            continue
        for one, other in itertools.combinations(vote.shown, 2):
            best = better(vote, one, other)
            if vote.outcome != "ranked" or best is not None:
                found.append(_comparison(item, one, other, best))
    return found


def _comparison(item: Item, one: int, other: int, best: int | None) -> Comparison:
    """Two slots of an item, of which `best` is the better one, or None neither."""
    left = item.responses[one]
    right = item.responses[other]
    longer = (len(left.text) > len(right.text)) - (len(left.text) < len(right.text))
    score = 0.5
    if best is not None:
        score = float(best == one)
    return Comparison(left.source, right.source, score, item.prompt_sha, best is not None, longer)


def _between_sources(compared: Iterable[Comparison]) -> list[Comparison]:
    """Comparisons of two sources that have names, and different ones."""
    return [c for c in compared if c.left and c.right and c.left != c.right]


def win_rates(compared: Sequence[Comparison]) -> dict[str, Share]:
    """Of each named source: how often it was preferred to another one, ties as ½."""
    scores: dict[str, list[tuple[Hashable, float]]] = {}
    for c in _between_sources(compared):
        scores.setdefault(c.left, []).append((c.prompt_sha, c.score))
        scores.setdefault(c.right, []).append((c.prompt_sha, 1 - c.score))
    return {source: clustered(scores[source]) for source in sorted(scores)}


def _fits(
    said: Sequence[Comparison], sources: Sequence[str], bootstraps: int, seed: int
) -> tuple[Floats, list[Floats], int]:
    """(the fit, those of bootstraps over prompts, the number of prompts)."""
    design = _design(said, sources)
    score = np.array([c.score for c in said])
    _, prompt = np.unique([c.prompt_sha for c in said], return_inverse=True)
    prompts = int(prompt.max()) + 1
    fitted = _fit(design, score, np.ones(len(said)))
    again = []
    for number in range(bootstraps):
        drawn = generator(seed, "bootstrap", number).integers(0, prompts, prompts)
        weight = np.bincount(drawn, minlength=prompts)[prompt].astype(float)
        again.append(_fit(design, score, weight))
    return fitted, again, prompts


def bradley_terry(
    compared: Sequence[Comparison], *, bootstraps: int = 200, seed: int = 0
) -> Strengths | None:
    """log-odds that left is preferred = strength[left] − strength[right] + side, by Newton's method
    with a small ridge (it decides nothing but keeps a source that never lost finite). Sources
    without a name, and a source beside itself, say nothing; None where nothing is left."""
    said = _between_sources(compared)
    if not said:
        return None
    sources = sorted({c.left for c in said} | {c.right for c in said})
    fitted, again, prompts = _fits(said, sources, bootstraps, seed)
    return _strengths(sources, fitted, np.array(again or [fitted]), len(said), prompts)


@dataclass(frozen=True)
class Preferred:
    """The probability that a source is preferred to another one, by Bradley–Terry over all that was
    compared, with the middle 95 % of bootstraps over prompts."""

    source: str
    share: float
    low: float
    high: float


def preferred_to(
    compared: Sequence[Comparison], base: str, *, bootstraps: int = 200, seed: int = 0
) -> list[Preferred]:
    """Every other source against `base`, in the order of their names; none where it was never
    compared. As in `bradley_terry`, where a source stands left counts for itself."""
    said = _between_sources(compared)
    sources = sorted({c.left for c in said} | {c.right for c in said})
    if base not in sources:
        return []
    fitted, again, _ = _fits(said, sources, bootstraps, seed)
    draws = np.array(again or [fitted])
    at = sources.index(base)
    found = []
    for k, source in enumerate(sources):
        if k != at:
            low, high = np.percentile(draws[:, k] - draws[:, at], [2.5, 97.5])
            found.append(
                Preferred(source, _sigmoid(fitted[k] - fitted[at]), _sigmoid(low), _sigmoid(high))
            )
    return found


def _design(said: Sequence[Comparison], sources: Sequence[str]) -> Floats:
    """(comparisons, sources + 1): 1 for the left source, -1 for the right one, and 1 for the
    side."""
    design = np.zeros((len(said), len(sources) + 1))
    for row, c in enumerate(said):
        design[row, sources.index(c.left)] = 1
        design[row, sources.index(c.right)] = -1
        design[row, -1] = 1
    return design


def _fit(design: Floats, score: Floats, weight: Floats, ridge: float = 1e-2) -> Floats:
    """The maximum of the penalised likelihood; the sources' strengths sum to 0 by the ridge."""
    found = np.zeros(design.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(design @ found, -30, 30)))
        slope = design.T @ (weight * (score - p)) - ridge * found
        spread = weight * p * (1 - p)
        curve = (design * spread[:, None]).T @ design + ridge * np.eye(len(found))
        step = np.linalg.solve(curve, slope)
        largest = float(np.abs(step).max())
        found += step * min(1.0, 4.0 / max(largest, 1e-12))
        if largest < 1e-10:
            break
    return found


def _strengths(
    sources: list[str], fitted: Floats, again: Floats, compared: int, prompts: int
) -> Strengths:
    """From the fit and those of the bootstraps, (N, sources + 1)."""
    low, high = np.percentile(again, [2.5, 97.5], axis=0)
    order = sorted(range(len(sources)), key=lambda k: (-fitted[k], sources[k]))
    beats = []
    for one, other in itertools.pairwise(order):
        gap = fitted[one] - fitted[other]
        edges = np.percentile(again[:, one] - again[:, other], [2.5, 97.5])
        beats.append((_sigmoid(gap), _sigmoid(edges[0]), _sigmoid(edges[1])))
    return Strengths(
        sources=[sources[k] for k in order],
        strength=fitted[order].tolist(),
        low=low[order].tolist(),
        high=high[order].tolist(),
        beats=beats,
        left=float(fitted[-1]),
        left_low=float(low[-1]),
        left_high=float(high[-1]),
        comparisons=compared,
        prompts=prompts,
    )


def _sigmoid(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))
