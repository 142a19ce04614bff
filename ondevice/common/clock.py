"""The two clocks: the time of day that is written down, and the one that durations are taken of."""

from __future__ import annotations

import time


def clock() -> float:
    """Seconds since 1970: what events are stamped with. May jump; never subtract two of them to
    measure speed.
    """
    return time.time()


def ticks() -> float:
    """Seconds that only ever grow, from an arbitrary start: for durations and rates."""
    return time.perf_counter()
