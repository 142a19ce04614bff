"""What the votes are worth: agreement, biases, and how strong each source of responses is.

A response's source is the checkpoint that wrote it. Every vote on an item of more than two
responses counts as one on each pair that it orders. Votes on one prompt go together, so that
intervals of shares are as wide as the prompts' own spread makes them (a design effect), those of
strengths come from bootstraps over prompts.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ondevice.common.intervals import Share, wilson
from ondevice.common.rng import generator
from ondevice.preferences.database import Item, Ratings, Vote, is_simulated
from ondevice.preferences.pairs import better

Floats = NDArray[np.float64]
FEW = 20  # below this many, an agreement says nothing
HASTY_MS = 1000  # a vote that was faster than this was hardly read
POINTS = 400 / math.log(10)  # Elo's points for a log-odds of 1


@dataclass(frozen=True)
class Agreement:
    """`raw`: share of pairs of judgements that agree; `kappa`: the same beyond chance (1 all, 0 as
    by chance; None where chance alone agrees always). `n`: units judged more than once."""

    n: int
    raw: float | None
    kappa: float | None


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


def clustered(scores: Sequence[tuple[Hashable, float]]) -> Share:
    """The share of (cluster, score of 0 to 1), with Wilson's interval for as many independent ones
    as they are worth: their number by the design effect, the variance between clusters over that of
    independent ones (Kish 1965). Where all are alike nothing shows how they go together: each
    cluster counts as one."""
    of, count = len(scores), sum(score for _, score in scores)
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


def cohen_kappa(judged: Sequence[tuple[Hashable, Hashable]]) -> Agreement:
    """Two raters' labels of the same units (Cohen 1960)."""
    n = len(judged)
    if not n:
        return Agreement(0, None, None)
    raw = sum(one == other for one, other in judged) / n
    first, second = (Counter(labels) for labels in zip(*judged, strict=True))
    chance = sum(first[label] * second[label] for label in first) / n**2
    return Agreement(n, raw, _beyond(raw, chance))


def fleiss_kappa(units: Sequence[Sequence[Hashable]]) -> Agreement:
    """Labels of units that all have the same number of raters, two or more (Fleiss 1971)."""
    if not units:
        return Agreement(0, None, None)
    raters = len(units[0])
    assert raters >= 2 and all(len(unit) == raters for unit in units)
    counts = [Counter(unit) for unit in units]
    raw = sum(sum(c * (c - 1) for c in unit.values()) for unit in counts) / (
        len(units) * raters * (raters - 1)
    )
    total = sum(counts, Counter[Hashable]())
    chance = sum((c / total.total()) ** 2 for c in total.values())
    return Agreement(len(units), raw, _beyond(raw, chance))


def krippendorff_alpha(units: Iterable[Sequence[Hashable]]) -> Agreement:
    """Nominal labels of units with any number of raters each; those with fewer than two say nothing
    (Krippendorff 2011, "Computing Krippendorff's alpha-reliability")."""
    judged = [Counter(unit) for unit in units if len(unit) >= 2]
    if not judged:
        return Agreement(0, None, None)
    total = sum(judged, Counter[Hashable]())
    n = total.total()
    agree = sum(sum(c * (c - 1) for c in unit.values()) / (unit.total() - 1) for unit in judged) / n
    chance = sum(c * (c - 1) for c in total.values()) / (n * (n - 1))
    return Agreement(len(judged), agree, _beyond(agree, chance))


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
            if vote.outcome == "ranked" and best is None:
                continue
            left, right = item.responses[one], item.responses[other]
            longer = (len(left.text) > len(right.text)) - (len(left.text) < len(right.text))
            score = 0.5 if best is None else float(best == one)
            found.append(
                Comparison(
                    left.source, right.source, score, item.prompt_sha, best is not None, longer
                )
            )
    return found


def bradley_terry(
    compared: Sequence[Comparison], *, bootstraps: int = 200, seed: int = 0
) -> Strengths | None:
    """log-odds that left is preferred = strength[left] − strength[right] + side, by Newton's method
    with a small ridge (it decides nothing but keeps a source that never lost finite). Sources
    without a name, and a source beside itself, say nothing; None where nothing is left."""
    said = [c for c in compared if c.left and c.right and c.left != c.right]
    if not said:
        return None
    sources = sorted({c.left for c in said} | {c.right for c in said})
    prompts = {sha: n for n, sha in enumerate(sorted({c.prompt_sha for c in said}))}
    design = np.zeros((len(said), len(sources) + 1))
    for row, c in enumerate(said):
        design[row, sources.index(c.left)], design[row, sources.index(c.right)], design[row, -1] = (
            1,
            -1,
            1,
        )
    score = np.array([c.score for c in said])
    prompt = np.array([prompts[c.prompt_sha] for c in said])
    fitted = _fit(design, score, np.ones(len(said)))
    again = []
    for number in range(bootstraps):
        drawn = generator(seed, "bootstrap", number).integers(0, len(prompts), len(prompts))
        weight = np.bincount(drawn, minlength=len(prompts))[prompt].astype(float)
        again.append(_fit(design, score, weight))
    return _strengths(sources, fitted, np.array(again or [fitted]), len(said), len(prompts))


def statistics(
    ratings: Ratings,
    batch: str | None = None,
    *,
    raters: Iterable[str] = (),
    simulated: bool = True,
    bootstraps: int = 200,
    seed: int = 0,
) -> dict[str, Any]:
    """Everything about the live votes as plain values, ready for JSON."""
    items = {item.id: item for item in ratings.items(batch)}
    votes = ratings.live_votes(batch, raters=raters, simulated=simulated)
    given = [vote for vote in votes if vote.action == "vote"]
    compared = comparisons(items, votes)
    decided = [c for c in compared if c.decided]
    unequal = [c for c in decided if c.longer]
    strengths = bradley_terry(compared, bootstraps=bootstraps, seed=seed)
    return {
        "items": dict(Counter(item.kind for item in items.values())),
        "votes": len(given),
        "simulated_votes": sum(is_simulated(vote.rater) for vote in given),
        "outcomes": {**Counter(vote.outcome for vote in given), "skip": len(votes) - len(given)},
        "raters": {
            rater: _of_rater(items, [vote for vote in votes if vote.rater == rater])
            for rater in sorted({vote.rater for vote in votes})
        },
        "agreement": _between(items, given),
        "first_shown": asdict(clustered([(c.prompt_sha, c.score) for c in decided])),
        "longer": asdict(
            clustered([(c.prompt_sha, float(c.score == (c.longer > 0))) for c in unequal])
        ),
        "win_rate": {source: asdict(rate) for source, rate in win_rates(compared).items()},
        "strengths": None if strengths is None else asdict(strengths),
    }


def judged(
    items: Mapping[int, Item],
    votes: Iterable[Vote],
    scores: Mapping[int, Sequence[float]],
    learned: Iterable[int],
) -> dict[str, dict[str, Any]]:
    """Of each rater: how often a reward model's scores (by item and slot) order a pair as they did,
    on pairs of items that it has not learned from (`new`) and on those that it has (`learned`)."""
    known = set(learned)
    right: dict[tuple[str, str], list[bool]] = {}
    for vote in votes:
        item = items[vote.item]
        if vote.outcome != "ranked" or item.kind != "normal" or item.id not in scores:
            continue
        for one, other in itertools.combinations(range(len(item.responses)), 2):
            best, apart = better(vote, one, other), scores[item.id][one] - scores[item.id][other]
            if best is not None and apart:
                said = "learned" if item.id in known else "new"
                right.setdefault((vote.rater, said), []).append((apart > 0) == (best == one))
    return {
        rater: {
            said: asdict(wilson(sum(found), len(found)))
            for said in ("new", "learned")
            for found in [right.get((rater, said), [])]
        }
        for rater in sorted({rater for rater, _ in right})
    }


def win_rates(compared: Sequence[Comparison]) -> dict[str, Share]:
    """Of each named source: how often it was preferred to another one, ties as ½."""
    scores: dict[str, list[tuple[Hashable, float]]] = {}
    for c in compared:
        if c.left and c.right and c.left != c.right:
            for source, score in ((c.left, c.score), (c.right, 1 - c.score)):
                scores.setdefault(source, []).append((c.prompt_sha, score))
    return {source: clustered(scores[source]) for source in sorted(scores)}


def labels(item: Item, vote: Vote) -> dict[tuple[int, int], Hashable]:
    """What a vote says of each pair of slots: the better slot, or the outcome."""
    found: dict[tuple[int, int], Hashable] = {}
    for one, other in itertools.combinations(range(len(item.responses)), 2):
        said = better(vote, one, other) if vote.outcome == "ranked" else vote.outcome
        if said is not None:
            found[one, other] = said
    return found


def _beyond(raw: float, chance: float) -> float | None:
    if chance >= 1:
        return None
    return (raw - chance) / (1 - chance)


def _fit(design: Floats, score: Floats, weight: Floats, ridge: float = 1e-2) -> Floats:
    """The maximum of the penalised likelihood; the sources' strengths sum to 0 by the ridge."""
    found = np.zeros(design.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(design @ found, -30, 30)))
        slope = design.T @ (weight * (score - p)) - ridge * found
        curve = (design * (weight * p * (1 - p))[:, None]).T @ design + ridge * np.eye(len(found))
        step = np.linalg.solve(curve, slope)
        found += step * min(1.0, 4.0 / max(float(np.abs(step).max()), 1e-12))
        if np.abs(step).max() < 1e-10:
            break
    return found


def _strengths(
    sources: list[str], fitted: Floats, again: Floats, compared: int, prompts: int
) -> Strengths:
    low, high = np.percentile(again, [2.5, 97.5], axis=0)
    order = sorted(range(len(sources)), key=lambda k: (-fitted[k], sources[k]))
    beats = []
    for one, other in itertools.pairwise(order):
        gap, gaps = fitted[one] - fitted[other], again[:, one] - again[:, other]
        edges = np.percentile(gaps, [2.5, 97.5])
        beats.append((_sigmoid(gap), _sigmoid(edges[0]), _sigmoid(edges[1])))
    return Strengths(
        [sources[k] for k in order],
        [float(fitted[k]) for k in order],
        [float(low[k]) for k in order],
        [float(high[k]) for k in order],
        beats,
        float(fitted[-1]),
        float(low[-1]),
        float(high[-1]),
        compared,
        prompts,
    )


def _sigmoid(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))


def _of_rater(items: Mapping[int, Item], votes: Sequence[Vote]) -> dict[str, Any]:
    """One rater's counts, pace, hits on gold items, and agreement with themselves on repeats."""
    given = {vote.item: vote for vote in votes if vote.action == "vote"}
    dwell = [vote.dwell_ms for vote in given.values() if vote.dwell_ms is not None]
    gold = [(items[i], vote) for i, vote in given.items() if items[i].kind == "gold"]
    twice = [
        (said, once[pair])
        for i, vote in given.items()
        if (first := items[i].repeat_of) in given
        for once in [labels(items[i], given[first])]
        for pair, said in labels(items[i], vote).items()
        if pair in once
    ]
    return {
        "simulated": is_simulated(votes[0].rater),
        "votes": len(given),
        "skips": len(votes) - len(given),
        "outcomes": dict(Counter(vote.outcome for vote in given.values())),
        "median_dwell_ms": median(dwell) if dwell else None,
        "hasty": sum(ms < HASTY_MS for ms in dwell),
        "gold": asdict(
            wilson(sum(vote.ranking[:1] == (item.gold,) for item, vote in gold), len(gold))
        ),
        "repeats": asdict(cohen_kappa(twice)),
    }


def _between(items: Mapping[int, Item], given: Sequence[Vote]) -> dict[str, Any]:
    """Agreement of different raters on the same pairs, repeats left out: of every two of them, and
    of all.
    """
    said: dict[tuple[int, tuple[int, int]], dict[str, Hashable]] = {}
    for vote in given:
        if items[vote.item].kind != "repeat":
            for pair, label in labels(items[vote.item], vote).items():
                said.setdefault((vote.item, pair), {})[vote.rater] = label
    units = [list(unit.values()) for unit in said.values() if len(unit) >= 2]
    names = sorted({vote.rater for vote in given})
    two = []
    for one, other in itertools.combinations(names, 2):
        both = [(unit[one], unit[other]) for unit in said.values() if one in unit and other in unit]
        if both:
            two.append({"raters": [one, other], **asdict(cohen_kappa(both))})
    even = bool(units) and all(len(unit) == len(units[0]) for unit in units)
    return {
        "pairs_of_raters": two,
        "krippendorff": asdict(krippendorff_alpha(units)),
        "fleiss": asdict(fleiss_kappa(units)) if even else None,
    }


def text(found: Mapping[str, Any]) -> str:
    """`statistics` as lines for people. Names are as they were given: make it inert before showing
    it.
    """
    lines = [
        f"votes       {found['votes']}, {found['simulated_votes']} of them simulated"
        + "".join(f", {count} {word}" for word, count in found["outcomes"].items() if count),
        "items       "
        + (", ".join(f"{count} {kind}" for kind, count in found["items"].items()) or "none"),
    ]
    for name, rater in found["raters"].items():
        lines.append(
            f"rater       {name}: {rater['votes']} vote{'' if rater['votes'] == 1 else 's'}{_pace(rater)}"
        )
        if rater["gold"]["of"]:
            lines.append(f"            gold right: {share_text(rater['gold'])}")
        if rater["repeats"]["n"]:
            lines.append(f"            agrees with own repeats: {_agreement(rater['repeats'])}")
    for two in found["agreement"]["pairs_of_raters"]:
        lines.append(f"agreement   {' and '.join(two['raters'])}: {_agreement(two)}")
    if len(found["agreement"]["pairs_of_raters"]) > 1:
        lines.append(
            f"agreement   of all: {_agreement(found['agreement']['krippendorff'], 'alpha')}"
        )
        if found["agreement"]["fleiss"]:
            lines.append(f"            {_agreement(found['agreement']['fleiss'], 'Fleiss kappa')}")
    lines.append(f"first shown {share_text(found['first_shown'])} of decided pairs went to it")
    lines.append(f"longer      {share_text(found['longer'])} of decided pairs went to it")
    return "\n".join(lines + _ladder(found))


def _ladder(found: Mapping[str, Any]) -> list[str]:
    strengths = found["strengths"]
    if strengths is None:
        return []
    lines = [
        f"sources     by {strengths['comparisons']} comparisons over {strengths['prompts']} prompts "
        "(Bradley–Terry, points as Elo's)"
    ]
    for k, source in enumerate(strengths["sources"]):
        points, low, high = (POINTS * strengths[key][k] for key in ("strength", "low", "high"))
        line = f"  {points:+5.0f} [{low:+.0f}, {high:+.0f}]  {source}  won {share_text(found['win_rate'][source])}"
        if k < len(strengths["beats"]):
            p, low, high = strengths["beats"][k]
            line += f"  beats the next {p:.2f} [{low:.2f}, {high:.2f}]" + (
                " not resolved" if low < 0.5 < high else ""
            )
        lines.append(line)
    left = [POINTS * strengths[key] for key in ("left", "left_low", "left_high")]
    return [
        *lines,
        f"  standing first is worth {left[0]:+.0f} [{left[1]:+.0f}, {left[2]:+.0f}] points",
    ]


def share_text(share: Mapping[str, Any]) -> str:
    """`0.53 [0.48, 0.58] (228 of 431)`: a share, its interval, what it was counted from."""
    if not share["of"]:
        return "– (0 of 0)"
    return f"{share['share']:.2f} [{share['low']:.2f}, {share['high']:.2f}] ({share['count']:g} of {share['of']})"


def _agreement(found: Mapping[str, Any], word: str = "kappa") -> str:
    kappa = "–" if found["kappa"] is None else f"{found['kappa']:.2f}"
    few = ", too few to say much" if found["n"] < FEW else ""
    return f"{word} {kappa}, {found['raw']:.0%} the same (n {found['n']}{few})"


def _pace(rater: Mapping[str, Any]) -> str:
    words = f", {rater['skips']} skipped" if rater["skips"] else ""
    if rater["median_dwell_ms"] is not None:
        words += f", {rater['median_dwell_ms'] / 1000:.1f} s each in the middle"
    return words + (f", {rater['hasty']} under {HASTY_MS / 1000:g} s" if rater["hasty"] else "")
