"""How far raters agree on the same units, beyond what chance would give: Cohen's and Fleiss' kappa,
Krippendorff's alpha, of names and of numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Agreement:
    """`raw`: share of pairs of judgements that agree; `kappa`: the same beyond chance (1 all, 0 as
    by chance; None where chance alone agrees always). `n`: units judged more than once."""

    n: int
    raw: float | None
    kappa: float | None


def cohen_kappa(judged: Sequence[tuple[Hashable, Hashable]]) -> Agreement:
    """Two raters' labels of the same units (Cohen 1960)."""
    n = len(judged)
    if not n:
        return Agreement(0, None, None)
    raw = sum(one == other for one, other in judged) / n
    first = Counter(one for one, _ in judged)
    second = Counter(other for _, other in judged)
    chance = sum(first[label] * second[label] for label in first) / n**2
    return Agreement(n, raw, _beyond(raw, chance))


def fleiss_kappa(units: Sequence[Sequence[Hashable]]) -> Agreement:
    """Labels of units that all have the same number of raters, two or more (Fleiss 1971)."""
    if not units:
        return Agreement(0, None, None)
    raters = len(units[0])
    assert raters >= 2
    assert all(len(unit) == raters for unit in units)
    counts = [Counter(unit) for unit in units]
    pairs = len(units) * raters * (raters - 1)
    raw = sum(map(_agreeing, counts)) / pairs
    total = sum(counts, Counter[Hashable]())
    chance = sum((count / total.total()) ** 2 for count in total.values())
    return Agreement(len(units), raw, _beyond(raw, chance))


def krippendorff_alpha(units: Iterable[Sequence[Hashable]]) -> Agreement:
    """Nominal labels of units with any number of raters each; those with fewer than two say nothing
    (Krippendorff 2011, "Computing Krippendorff's alpha-reliability")."""
    judged = [Counter(unit) for unit in units if len(unit) >= 2]
    if not judged:
        return Agreement(0, None, None)
    total = sum(judged, Counter[Hashable]())
    n = total.total()
    agree = sum(_agreeing(unit) / (unit.total() - 1) for unit in judged) / n
    chance = _agreeing(total) / (n * (n - 1))
    return Agreement(len(judged), agree, _beyond(agree, chance))


def interval_alpha(units: Iterable[Sequence[float]]) -> Agreement:
    """Krippendorff's alpha of numbers on a scale: by the squares of their differences, so that 4 for
    a 5 is nearly the same. `raw`: how often two are equal. (Source: as above.)"""
    judged = [unit for unit in units if len(unit) >= 2]
    if not judged:
        return Agreement(0, None, None)
    every = [value for unit in judged for value in unit]
    n = len(every)
    equal = sum(_agreeing(Counter(unit)) / (len(unit) - 1) for unit in judged) / n
    apart = sum(_squares(unit) / (len(unit) - 1) for unit in judged) / n
    by_chance = _squares(every) / (n * (n - 1))
    return Agreement(len(judged), equal, 1 - apart / by_chance if by_chance else None)


def _squares(values: Sequence[float]) -> float:
    """Squared differences of ordered pairs of different judgements."""
    return 2 * (len(values) * sum(value**2 for value in values) - sum(values) ** 2)


def _agreeing(labels: Counter[Hashable]) -> int:
    """Ordered pairs of different judgements that give the same label."""
    return sum(count * (count - 1) for count in labels.values())


def _beyond(raw: float, chance: float) -> float | None:
    if chance >= 1:
        return None
    return (raw - chance) / (1 - chance)
