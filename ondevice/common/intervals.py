"""Shares of a count, with the interval that they are certain to."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """`count` of `of`, with Wilson's 95 % interval; all None where there is nothing to divide."""

    count: float
    of: int
    share: float | None
    low: float | None
    high: float | None


def wilson(count: float, of: int, z: float = 1.959964, *, independent: float = 0) -> Share:
    """Wilson's score interval of a share (Wilson 1927). `independent`: how many independent ones
    these are worth (0: all of them)."""
    if not of:
        return Share(count, of, None, None, None)
    worth = independent or of
    share, square = count / of, z * z / worth
    middle = (share + square / 2) / (1 + square)
    half = z * math.sqrt(share * (1 - share) / worth + square / (4 * worth)) / (1 + square)
    low = middle - half
    high = middle + half
    # at the ends the interval reaches them, except for rounding
    if not count:
        low = 0.0
    if count == of:
        high = 1.0
    return Share(count, of, share, low, high)


def clustered(scores: Sequence[tuple[Hashable, float]]) -> Share:
    """The share of (cluster, score of 0 to 1), with Wilson's interval for as many independent ones
    as they are worth: their number by the design effect, the variance between clusters over that of
    independent ones (Kish 1965). Where all are alike nothing shows how they go together: each
    cluster counts as one."""
    of = len(scores)
    count = sum(score for _, score in scores)
    sizes = Counter(cluster for cluster, _ in scores)
    if len(sizes) == of:
        return wilson(count, of)
    share = count / of
    apart: dict[Hashable, float] = {}
    for cluster, score in scores:
        apart[cluster] = apart.get(cluster, 0.0) + score - share
    if not 0 < share < 1 or len(sizes) == 1:
        return wilson(count, of, independent=len(sizes))
    between = sum(d * d for d in apart.values()) * len(sizes) / (len(sizes) - 1)
    effect = between / (of * share * (1 - share))
    return wilson(count, of, independent=of / max(effect, 1.0))
