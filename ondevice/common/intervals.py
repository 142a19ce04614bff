"""Shares of a count, with the interval that they are certain to."""

from __future__ import annotations

import math
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
    # at the ends the interval reaches them, but for rounding
    return Share(
        count, of, share, 0.0 if not count else middle - half, 1.0 if count == of else middle + half
    )
