"""What the votes are worth: counts, agreement, biases, and how strong each source of responses is.

Votes on one prompt go together, so that intervals of shares are as wide as the prompts' own spread
makes them (a design effect).
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from ondevice.common.intervals import clustered, wilson
from ondevice.preferences.agreement import cohen_kappa, fleiss_kappa, krippendorff_alpha
from ondevice.preferences.database import Ratings
from ondevice.preferences.pairs import better, labels
from ondevice.preferences.project import read_project
from ondevice.preferences.rubric import MOST, by_scale, every_score, live_scores
from ondevice.preferences.strengths import Comparison, bradley_terry, comparisons, win_rates
from ondevice.preferences.votes import Item, Vote, is_settled, is_simulated

FEW = 20  # below this many, an agreement says nothing
HASTY_MS = 1000  # a vote that was faster than this was hardly read
POINTS = 400 / math.log(10)  # Elo's points for a log-odds of 1


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
    every = ratings.live_votes(batch, raters=raters, simulated=simulated)
    votes = [vote for vote in every if not is_settled(vote.rater)]  # a decision is no opinion
    given = [vote for vote in votes if vote.action == "vote"]
    compared = comparisons(items, votes)
    strengths = bradley_terry(compared, bootstraps=bootstraps, seed=seed)
    by_rater: dict[str, list[Vote]] = {}
    told: dict[tuple[str, int], Vote] = {}
    if read_project(ratings).feedback:
        told = first_on_gold(items, ratings.votes(batch))
    for vote in votes:
        by_rater.setdefault(vote.rater, []).append(vote)
    return {
        "items": dict(Counter(item.kind for item in items.values())),
        "votes": len(given),
        "simulated_votes": sum(is_simulated(vote.rater) for vote in given),
        "settled": len(every) - len(votes),
        "outcomes": {**Counter(vote.outcome for vote in given), "skip": len(votes) - len(given)},
        "raters": {rater: _of_rater(items, by_rater[rater], told) for rater in sorted(by_rater)},
        "agreement": _between(items, given),
        **_biases(compared),
        "win_rate": {source: asdict(rate) for source, rate in win_rates(compared).items()},
        "rubric": by_scale(
            items, live_scores(every_score(ratings, batch, raters=raters, simulated=simulated))
        ),
        "strengths": None if strengths is None else asdict(strengths),
    }


def _biases(compared: Iterable[Comparison]) -> dict[str, Any]:
    """How often the response shown first is preferred, and how often the longer one."""
    first: list[tuple[Hashable, float]] = []
    longer: list[tuple[Hashable, float]] = []
    for c in compared:
        if not c.decided:
            continue
        first.append((c.prompt_sha, c.score))
        if c.longer:
            longer.append((c.prompt_sha, float(c.score == (c.longer > 0))))
    return {"first_shown": asdict(clustered(first)), "longer": asdict(clustered(longer))}


def judged(
    items: Mapping[int, Item],
    votes: Iterable[Vote],
    scores: Mapping[int, Sequence[float]],
    learned: Iterable[int],
) -> dict[str, dict[str, Any]]:
    """Of each rater: how often a reward model's scores (by item and slot) order a pair as they did,
    on pairs of items that it has not learned from (`new`) and on those that it has (`learned`)."""
    known = set(learned)
    right: dict[str, dict[str, list[bool]]] = {}
    for vote in votes:
        item = items[vote.item]
        if vote.outcome != "ranked" or item.kind != "normal" or item.id not in scores:
            continue
        for one, other in itertools.combinations(range(len(item.responses)), 2):
            best = better(vote, one, other)
            apart = scores[item.id][one] - scores[item.id][other]
            if best is None or not apart:
                continue
            of_rater = right.setdefault(vote.rater, {"new": [], "learned": []})
            part = "learned" if item.id in known else "new"
            of_rater[part].append((apart > 0) == (best == one))
    shares: dict[str, dict[str, Any]] = {}
    for rater in sorted(right):
        shares[rater] = {}
        for part, hits in right[rater].items():
            shares[rater][part] = asdict(wilson(sum(hits), len(hits)))
    return shares


def first_on_gold(items: Mapping[int, Item], rows: Iterable[Vote]) -> dict[tuple[str, int], Vote]:
    """Each rater's first vote on a pair whose better answer is known, undone or not, by (rater,
    item). Where that answer is told after the vote, it alone measures: any later one knows."""
    found: dict[tuple[str, int], Vote] = {}
    for vote in rows:
        if vote.action == "vote" and vote.item in items and items[vote.item].kind == "gold":
            found.setdefault((vote.rater, vote.item), vote)
    return found


def _of_rater(
    items: Mapping[int, Item], votes: Sequence[Vote], told: Mapping[tuple[str, int], Vote]
) -> dict[str, Any]:
    """One rater's counts, pace, hits on gold items, and agreement with themselves on repeats.
    `told`: the votes that measure on gold items in place of those that count now."""
    given = {vote.item: vote for vote in votes if vote.action == "vote"}
    dwell = [vote.dwell_ms for vote in given.values() if vote.dwell_ms is not None]
    hits = []
    for number, vote in given.items():
        if items[number].kind == "gold":
            vote = told.get((vote.rater, number), vote)
            hits.append(vote.ranking[:1] == (items[number].gold,))
    return {
        "simulated": is_simulated(votes[0].rater),
        "votes": len(given),
        "skips": len(votes) - len(given),
        "outcomes": dict(Counter(vote.outcome for vote in given.values())),
        "median_dwell_ms": median(dwell) if dwell else None,
        "hasty": sum(ms < HASTY_MS for ms in dwell),
        "gold": asdict(wilson(sum(hits), len(hits))),
        "repeats": asdict(cohen_kappa(_said_twice(items, given))),
    }


def _said_twice(
    items: Mapping[int, Item], given: Mapping[int, Vote]
) -> list[tuple[Hashable, Hashable]]:
    """What one rater said of pairs on a repeat, and on the item that it repeats."""
    twice = []
    for number, vote in given.items():
        first = items[number].repeat_of
        if first is None or first not in given:
            continue
        once = labels(given[first])
        for pair, said in labels(vote).items():
            if pair in once:
                twice.append((said, once[pair]))
    return twice


def _between(items: Mapping[int, Item], given: Sequence[Vote]) -> dict[str, Any]:
    """Agreement of different raters on the same pairs, repeats left out: of every two of them, and
    of all.
    """
    said: dict[tuple[int, tuple[int, int]], dict[str, Hashable]] = {}
    for vote in given:
        if items[vote.item].kind != "repeat":
            for pair, label in labels(vote).items():
                said.setdefault((vote.item, pair), {})[vote.rater] = label
    units = [list(unit.values()) for unit in said.values() if len(unit) >= 2]
    names = sorted({vote.rater for vote in given})
    two = []
    for one, other in itertools.combinations(names, 2):
        both = []
        for unit in said.values():
            if one in unit and other in unit:
                both.append((unit[one], unit[other]))
        if both:
            two.append({"raters": [one, other], **asdict(cohen_kappa(both))})
    found: dict[str, Any] = {
        "pairs_of_raters": two,
        "krippendorff": asdict(krippendorff_alpha(units)),
        "fleiss": None,
    }
    if len(set(map(len, units))) == 1:
        found["fleiss"] = asdict(fleiss_kappa(units))
    return found


# In words


def text(found: Mapping[str, Any]) -> str:
    """`statistics` as lines for people. Names are as they were given: make it inert before showing
    it.
    """
    lines = [_votes(found), _items(found)]
    for name, rater in found["raters"].items():
        lines += _rater(name, rater)
    lines += _raters_together(found["agreement"])
    lines.append(f"first shown {share_text(found['first_shown'])} of decided pairs went to it")
    lines.append(f"longer      {share_text(found['longer'])} of decided pairs went to it")
    lines += _scales(found["rubric"])
    lines += _ladder(found)
    return "\n".join(lines)


def _votes(found: Mapping[str, Any]) -> str:
    line = f"votes       {found['votes']}, {found['simulated_votes']} of them simulated"
    for word, count in found["outcomes"].items():
        if count:
            line += f", {count} {word}"
    if found["settled"]:
        line += f"; {found['settled']} settled"
    return line


def _items(found: Mapping[str, Any]) -> str:
    kinds = [f"{count} {kind}" for kind, count in found["items"].items()]
    return f"items       {', '.join(kinds) or 'none'}"


def _rater(name: str, rater: Mapping[str, Any]) -> list[str]:
    plural = "" if rater["votes"] == 1 else "s"
    lines = [f"rater       {name}: {rater['votes']} vote{plural}{_pace(rater)}"]
    if rater["gold"]["of"]:
        lines.append(f"            gold right: {share_text(rater['gold'])}")
    if rater["repeats"]["n"]:
        lines.append(f"            agrees with own repeats: {_agreement(rater['repeats'])}")
    return lines


def _raters_together(agreement: Mapping[str, Any]) -> list[str]:
    lines = []
    for two in agreement["pairs_of_raters"]:
        lines.append(f"agreement   {' and '.join(two['raters'])}: {_agreement(two)}")
    if len(lines) > 1:
        lines.append(f"agreement   of all: {_agreement(agreement['krippendorff'], 'alpha')}")
        if agreement["fleiss"]:
            lines.append(f"            {_agreement(agreement['fleiss'], 'Fleiss kappa')}")
    return lines


def _scales(rubric: Mapping[str, Any]) -> list[str]:
    lines = []
    for scale, found in rubric.items():
        lines.append(f"scale       {scale}: {scale_text(found)}")
        for name, of in found["sources"].items():
            lines.append(f"            {of['mean']:.2f}  {name} ({of['scores']})")
    return lines


def scale_text(found: Mapping[str, Any]) -> str:
    """`mean 3.41 of 5 (34 scores); raters: alpha 0.61, 70% the same (n 12, too few to say much)`."""
    told = f"mean {found['mean']:.2f} of {MOST} ({found['scores']} score{'s' * (found['scores'] != 1)})"
    agreement = found["agreement"]
    if agreement["n"]:
        told += f"; raters: {_agreement({**agreement, 'kappa': agreement['alpha']}, 'alpha')}"
    return told


def _ladder(found: Mapping[str, Any]) -> list[str]:
    strengths = found["strengths"]
    if strengths is None:
        return []
    lines = [
        f"sources     by {strengths['comparisons']} comparisons over {strengths['prompts']} prompts "
        "(Bradley–Terry, points as Elo's)"
    ]
    for k, source in enumerate(strengths["sources"]):
        points, low, high = _points(
            strengths["strength"][k], strengths["low"][k], strengths["high"][k]
        )
        line = f"  {points:+5.0f} [{low:+.0f}, {high:+.0f}]  {source}  won {share_text(found['win_rate'][source])}"
        if k < len(strengths["beats"]):
            p, low, high = strengths["beats"][k]
            line += f"  beats the next {p:.2f} [{low:.2f}, {high:.2f}]"
            if low < 0.5 < high:
                line += " not resolved"
        lines.append(line)
    left, low, high = _points(strengths["left"], strengths["left_low"], strengths["left_high"])
    lines.append(f"  standing first is worth {left:+.0f} [{low:+.0f}, {high:+.0f}] points")
    return lines


def _points(middle: float, low: float, high: float) -> tuple[float, float, float]:
    """A log-odds and its interval in Elo's points."""
    return POINTS * middle, POINTS * low, POINTS * high


def share_text(share: Mapping[str, Any]) -> str:
    if not share["of"]:
        return "– (0 of 0)"
    interval = f"[{share['low']:.2f}, {share['high']:.2f}]"
    return f"{share['share']:.2f} {interval} ({share['count']:g} of {share['of']})"


def _agreement(found: Mapping[str, Any], word: str = "kappa") -> str:
    kappa = "–"
    if found["kappa"] is not None:
        kappa = f"{found['kappa']:.2f}"
    few = ""
    if found["n"] < FEW:
        few = ", too few to say much"
    return f"{word} {kappa}, {found['raw']:.0%} the same (n {found['n']}{few})"


def _pace(rater: Mapping[str, Any]) -> str:
    words = ""
    if rater["skips"]:
        words = f", {rater['skips']} skipped"
    if rater["median_dwell_ms"] is not None:
        words += f", {rater['median_dwell_ms'] / 1000:.1f} s each in the middle"
    if rater["hasty"]:
        words += f", {rater['hasty']} under {HASTY_MS / 1000:g} s"
    return words
