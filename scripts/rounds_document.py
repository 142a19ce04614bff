"""docs/results/rounds.md and rounds.svg, of what scripts/rounds.py has measured."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

NAMES = {
    "consistent": "consistent",
    "noisy": "consistent, 15 % of the votes turned round",
    "short": "likes short answers",
}
WAYS = {"taught": "active", "words": "active, an earlier rule", "random": "drawn"}
COLOURS = {"taught": "#1f6fb4", "words": "#7fa8c9", "random": "#b4641f"}


def document(known: Mapping[str, Any], aim: float) -> str:
    runs = known["runs"]
    lines = [
        "# Rounds of rating and training",
        "",
        "Written by `scripts/rounds.py`. A simulated person votes on what `ondevice rounds` asks; the",
        "base is the recipe `minute` up to `sft`, and a version is trained by DPO after every 30 usable",
        "votes, with the settings that `ondevice rounds` has by itself (`sft_coef` 1, five epochs). The",
        "person's rule is not the exam's and is hidden from all that learns. Held-out prompts",
        "are answered by each version and by the start, once each, and judged by the rule without noise,",
        f"ties ½: votes are counted until that share is {100 * aim:.0f} %.",
        "",
        "The consistent person likes to be wished a nice day (about one answer of the start in eight does),",
        "dislikes other lines of courtesy, and likes a sum whose working is written out; whether an answer is",
        "right is nothing to them. The noisy one is the same and says the opposite in 15 % of the votes. The",
        "third likes short answers. All votes are counted, ties and pairs against the start too; the first two",
        "find about two pairs in five equally good.",
        "",
        f"## Votes until the model is preferred in {100 * aim:.0f} % of blind pairs",
        "",
        "| person | pairs | seeds | votes needed, each seed | median | share at the end |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for person in NAMES:
        for way in WAYS:
            lines += _row(
                [r for r in runs if (r["person"], r["choose"]) == (person, way)], person, way
            )
    lines += ["", _verdict(runs), *_missing(runs), "", "![share against votes](rounds.svg)", ""]
    lines += [
        "## What was learned, and what it cost",
        "",
        "Agreement: how often DPO's implicit reward orders two answers of the start as the rule does,",
        "on held-out prompts. Exact match and reasoning are the run's own exam (240 questions, 60",
        "problems), before and after.",
        "",
        "| person | pairs | seed | version | votes | preferred (95 %) | agreement | exact match | "
        "reasoning | bits/byte |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for run in runs:
        for point in run["points"]:
            lines.append(_point(run, point))
    lines += _choice(known.get("choice") or [])
    lines += _replays(known.get("replays") or [])
    return "\n".join(lines) + "\n"


def _row(runs: Sequence[Mapping[str, Any]], person: str, way: str) -> list[str]:
    if not runs:
        return []
    each = []
    for run in runs:
        each.append(f"more than {run['votes']}" if run["needed"] is None else str(run["needed"]))
    # the middle one is known where more than half of the seeds got there
    median = statistics.median_high(run["needed"] or float("inf") for run in runs)
    middle = f"{median:g}"
    if median == float("inf"):
        middle = "–"
    ends = [f"{100 * run['points'][-1]['share']:.0f} %" for run in runs if run["points"]]
    seeds = ", ".join(str(run["seed"]) for run in runs)
    return [
        f"| {NAMES[person]} | {WAYS[way]} | {seeds} | {', '.join(each)} | {middle} | {', '.join(ends)} |"
    ]


def _missing(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which seeds were measured of some people and not of others."""
    seeds = sorted({run["seed"] for run in runs})
    found = []
    for person, name in NAMES.items():
        for way, told in WAYS.items():
            if way == "words":
                continue
            had = {r["seed"] for r in runs if (r["person"], r["choose"]) == (person, way)}
            gone = [str(seed) for seed in seeds if seed not in had]
            if gone:
                found.append(f"{name}, {told}: seed {' and '.join(gone)}")
    return ["", f"Not measured: {'; '.join(found)}."] if found else []


def _verdict(runs: Sequence[Mapping[str, Any]]) -> str:
    """Active choice beside drawn pairs, of the seeds that have both."""
    fewer = more = same = 0
    by = {(r["person"], r["seed"], r["choose"]): r for r in runs}
    for (person, seed, way), run in by.items():
        other = by.get((person, seed, "random"))
        if way != "taught" or other is None:
            continue
        one = run["needed"] or run["votes"] + 1
        two = other["needed"] or other["votes"] + 1
        fewer += one < two
        more += one > two
        same += one == two
    return (
        f"Of {fewer + more + same} comparisons of one person and seed, active choice needed fewer votes in "
        f"{fewer}, more in {more}, as many in {same}. A version comes after every 30 usable votes, so that "
        "smaller differences do not show."
    )


def _point(run: Mapping[str, Any], point: Mapping[str, Any]) -> str:
    def change(name: str, scale: float, form: str) -> str:
        if name not in point["skills"] or name not in point["start"]:
            return "–"
        before, now = scale * point["start"][name], scale * point["skills"][name]
        return f"{before:{form}} → {now:{form}}"

    share = f"{100 * point['share']:.0f} % ({100 * point['low']:.0f} to {100 * point['high']:.0f})"
    return (
        f"| {run['person']} | {WAYS[run['choose']]} | {run['seed']} | {point['version']} | {point['votes']} | "
        f"{share} | {100 * point['agreement']:.0f} % of {point['agreement_of']} | "
        f"{change('exact_match', 100, '.1f')} | {change('reasoning', 100, '.1f')} | "
        f"{change('bits_per_byte', 1, '.3f')} |"
    )


def _choice(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if not rows:
        return []
    marks = sorted({row["votes"] for row in rows})
    lines = [
        "",
        "## What the choice itself is worth",
        "",
        "Votes of the rule on pairs of the start's answers, with nothing trained but the linear reward model",
        "that the choice goes by: how many held-out pairs it orders as the rule does (and how many of the",
        f"votes were no ties), in the mean of {rows[0]['trials']} trials over the seeds. An earlier rule went by the",
        "entropy of DPO's implicit reward. That was 0.98 to 1 bit for every pair, so that it chose by the",
        "words of the prompts alone.",
        "",
        f"| person | pairs | {' | '.join(f'{mark} votes' for mark in marks)} |",
        f"| --- | --- |{' --- |' * len(marks)}",
    ]
    by = {(row["person"], row["choose"], row["votes"]): row for row in rows}
    for person, name in NAMES.items():
        for way in ("taught", "random"):
            cells = []
            for mark in marks:
                row = by.get((person, way, mark))
                cells.append(f"{100 * row['right']:.1f} % ({row['usable']:.0f})" if row else "–")
            lines.append(f"| {name} | {WAYS[way]} | {' | '.join(cells)} |")
    early = min((mark for mark in marks if mark >= 64), default=marks[-1])
    known = [by[p, "random", early]["right"] for p in NAMES if (p, "random", early) in by]
    if known:
        lines += [
            "",
            f"There is little to gain: after {early} drawn votes {100 * min(known):.0f} to "
            f"{100 * max(known):.0f} % of the held-out pairs are",
            "ordered right already. What takes votes is how far a training of a minute moves a version beside the",
            "chats that hold its skills. Tried once, on drawn pairs of the consistent person: with twice the rate and",
            "ten epochs, 68 % after 162 votes on seed 0 and 63 % after 157 on seed 1 (by itself: 61 % after 177, 60 %",
            "after 159), at three points of exact match on seed 0 and none on seed 1; with five times the rate the",
            "versions were refused for what they had lost. Who votes can give `--learning_rate` and `--epochs`.",
        ]
    return lines


def _replays(replays: Sequence[Mapping[str, Any]]) -> list[str]:
    if not replays:
        return []
    first = replays[0]
    lines = [
        "",
        "## Votes of people, replayed",
        "",
        f"{first['votes']:,} recorded votes of three annotators on answers of other models, of which "
        f"{first['usable']} fit this model's context and have a majority. They are given in the order that",
        "the way of choosing asks for; a reward model of the same small model is trained on all so far, and",
        f"its agreement with the majority is measured on {first['held']} held-out pairs, on other prompts.",
        "",
        "| pairs | votes | agreement with people (95 %) |",
        "| --- | --- | --- |",
    ]
    for one in replays:
        share = f"{100 * one['share']:.0f} % ({100 * one['low']:.0f} to {100 * one['high']:.0f})"
        lines.append(f"| {WAYS[one['choose']]} | {one['given']} | {share} |")
    lines += ["", first["remark"]]
    return lines


def plot(known: Mapping[str, Any], aim: float) -> str:
    """Share of blind pairs against votes, a panel a person, a line a seed and way."""
    width, height, left, top = 300, 200, 44, 34
    people = [person for person in NAMES if any(r["person"] == person for r in known["runs"])]
    most = max([point["votes"] for r in known["runs"] for point in r["points"]], default=1)
    parts = []
    for n, person in enumerate(people):
        x0 = left + n * (width + 40)

        def at(votes: float, share: float, x0: int = x0) -> str:
            return f"{x0 + width * votes / most:.1f},{top + height * (1 - share):.1f}"

        parts.append(f'<text x="{x0}" y="{top - 12}" font-size="12">{NAMES[person]}</text>')
        for share in (0.0, 0.25, 0.5, 0.75, 1.0):
            y = top + height * (1 - share)
            parts.append(f'<path d="M{x0} {y:.1f}h{width}" stroke="#ddd"/>')
            parts.append(
                f'<text x="{x0 - 6}" y="{y + 4:.1f}" font-size="10" text-anchor="end">{100 * share:.0f}%</text>'
            )
        y = top + height * (1 - aim)
        parts.append(f'<path d="M{x0} {y:.1f}h{width}" stroke="#888" stroke-dasharray="4 3"/>')
        for run in known["runs"]:
            if run["person"] != person or not run["points"]:
                continue
            places = [at(0, 0.5), *(at(p["votes"], p["share"]) for p in run["points"])]
            colour = COLOURS[run["choose"]]
            parts.append(f'<polyline points="{" ".join(places)}" fill="none" stroke="{colour}"/>')
        parts.append(
            f'<text x="{x0 + width}" y="{top + height + 16}" font-size="10" text-anchor="end">{most} votes</text>'
        )
    end = top + height + 34
    for n, (way, name) in enumerate(WAYS.items()):
        parts.append(
            f'<text x="{left + 90 * n}" y="{end}" font-size="12" fill="{COLOURS[way]}">{name}</text>'
        )
    total = left + max(len(people), 1) * (width + 40)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {end + 10}" font-family="sans-serif">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
    )
