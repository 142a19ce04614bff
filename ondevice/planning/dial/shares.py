"""A time divided among stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """A stage's claim: `share` of the time for steps, each of which takes `per_step` seconds;
    between `least` and `most` of them (inf: no limit), beside `fixed` seconds that it takes in any
    case."""

    stage: str
    share: float
    per_step: float
    least: int
    most: float
    fixed: float = 0.0


def needed(parts: Sequence[Part]) -> float:
    """Seconds without which not all stages have their least steps."""
    return sum(part.fixed + part.least * part.per_step for part in parts)


def divided(seconds: float, parts: Sequence[Part]) -> dict[str, int]:
    """Steps of each stage. What one of them cannot use goes to the others, by their shares; where
    the time does not suffice, all have their least."""
    steps: dict[str, int] = {}
    left = seconds - sum(part.fixed for part in parts)
    open_parts = list(parts)
    while open_parts:
        total = sum(part.share for part in open_parts)
        wanted = {
            part.stage: max(left, 0.0) * part.share / total / part.per_step for part in open_parts
        }
        # first those that take more than their share, for these leave the others less
        bound = [part for part in open_parts if wanted[part.stage] < part.least]
        if not bound:
            bound = [part for part in open_parts if wanted[part.stage] > part.most]
        if not bound:
            return steps | {name: max(1, round(count)) for name, count in wanted.items()}
        for part in bound:
            if wanted[part.stage] < part.least:
                count = part.least
            else:
                count = int(part.most)
            steps[part.stage] = count
            left -= count * part.per_step
            open_parts.remove(part)
    return steps


def taken(parts: Sequence[Part], steps: dict[str, int]) -> float:
    """Seconds of all stages with these steps."""
    return sum(part.fixed + part.per_step * steps[part.stage] for part in parts)
