"""What each stage of a run gained and cost, by 1,000 held-out questions a skill, paired before and
after.

    python scripts/kept_skills.py RUN [RUN …]          of runs of a built-in recipe, from sft on
    python scripts/kept_skills.py RUN --questions 200  fewer questions

The questions are the built-in corpus's, more of the held-out split than the exam asks: a question's
split follows from what it is, so that none of them was learned. Skills are the kinds of instruction,
and the problems of the reasoning stage; wins are the rule's points for an answer at temperature 1
against those of the stage sft, ties lost. The interval of a change is of the difference of paired
shares (Wald's, with the questions that changed either way). docs/results/kept.md is written from what
was measured, which is kept in docs/results/kept.json.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ondevice.common.intervals import wilson
from ondevice.config.corpus import ChatShares, CorpusConfig
from ondevice.config.preference import RaterConfig
from ondevice.config.recipe import load_recipe
from ondevice.data.builtin.corpus import build
from ondevice.data.builtin.scoring import score
from ondevice.evaluation.held_out import EvalSuite, answers, longest_answer
from ondevice.models.load import load_generative
from ondevice.preferences.simulated_rater import SimulatedRater
from ondevice.runs.folder import RunFolder
from ondevice.seam.select import load_backend

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
MOST = 0.03
"""A skill may lose so much, by an interval that lies wholly above."""
STAGES = ("sft", "ppo", "dpo", "grpo")


def main() -> None:
    options = _options()
    file = options.results / "kept.json"
    known: dict[str, Any] = {"runs": []}
    if file.is_file():
        known = json.loads(file.read_text(encoding="utf-8"))
    for run in options.runs:
        name = options.name or run.name
        known["runs"] = [one for one in known["runs"] if one["name"] != name]
        known["runs"].append({"name": name, **measured(run, options)})
        file.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    (options.results / "kept.md").write_text(document(known), encoding="utf-8")
    print(options.results / "kept.md")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--name", default="", help="what the run is called in the table")
    parser.add_argument("--questions", type=int, default=1000, help="of each skill")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args()


def suite_of(corpus: CorpusConfig, rule: SimulatedRater, questions: int) -> EvalSuite:
    """So many held-out questions of each kind, problems and prompts; fewer of a kind where there are
    no more that differ."""
    kinds = [name for name, share in corpus.chats.shares().items() if share]
    same = {field.name: float(field.name in kinds) for field in fields(ChatShares)}
    wider = replace(
        corpus,
        chats=ChatShares(**same),
        chat_count=math.ceil(questions * len(kinds) / corpus.heldout_share),
        held_problem_count=questions,
    )
    built = build(wider)
    prompts = build(replace(corpus, held_prompt_count=questions)).prompts("heldout")
    return EvalSuite(
        [],
        list(built.chats("heldout")),
        score,
        problems=list(built.problems("heldout")),
        duels=list(prompts),
        points=rule.points,
    )


def measured(run: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Stage → what each question was worth after it."""
    recipe = load_recipe(str(run / "recipe.yaml"))
    rate = recipe.stages.get("rate")
    rule = SimulatedRater(rate.right, rate.courtesy) if isinstance(rate, RaterConfig) else None
    suite = suite_of(recipe.corpus, rule or SimulatedRater(1.0, 1.5), options.questions)
    backend = load_backend(options.backend, "auto", "auto")
    folder = RunFolder(run)
    found: dict[str, Any] = {}
    for name in STAGES:
        stage = folder.stage(name)
        if not stage.has_model:
            continue
        model = load_generative(stage.model, backend)
        longest = longest_answer(suite, model)
        rows = [{**q, "prompt": q["messages"][0]["content"]} for q in suite.questions]
        right: dict[str, list[int]] = {}
        for row, (text,) in zip(rows, answers(model, backend, rows, longest, 0.0, 1), strict=True):
            right.setdefault(row["kind"], []).append(int(score(row["kind"], text, row["answer"])))
        solved = answers(model, backend, suite.problems, longest, 0.0, 1)
        right["reasoning"] = [
            int(score(one["kind"], text, one["answer"]))
            for one, (text,) in zip(suite.problems, solved, strict=True)
        ]
        said = answers(model, backend, suite.duels, longest, 1.0, 1)
        assert suite.points is not None
        points = [
            suite.points(one["kind"], text, one["answer"])
            for one, (text,) in zip(suite.duels, said, strict=True)
        ]
        found[name] = {"right": right, "points": points}
        print(name, {kind: round(sum(x) / len(x), 3) for kind, x in right.items()}, flush=True)
    settings = {}
    for name in ("ppo", "dpo", "grpo"):
        cfg = recipe.stages.get(name)
        for coef in ("sft_coef", "pair_coef"):
            if hasattr(cfg, coef):
                settings[f"{name}.{coef}"] = getattr(cfg, coef)
    return {"recipe": recipe.name, "seed": recipe.seed, "settings": settings, **_table(found)}


def _table(found: Mapping[str, Any]) -> dict[str, Any]:
    """Each stage beside the one before: a row a skill, and the wins."""
    rows = []
    wins = []
    names = list(found)
    for before, now in zip(names, names[1:], strict=False):
        for kind, new in found[now]["right"].items():
            rows.append({"stage": now, "skill": kind, **paired(found[before]["right"][kind], new)})
    for name in names[1:]:
        start, own = found["sft"]["points"], found[name]["points"]
        won = sum(a > b for a, b in zip(own, start, strict=True))
        share = wilson(won, len(own))
        wins.append(
            {
                "stage": name,
                "of": share.of,
                "share": share.share,
                "low": share.low,
                "high": share.high,
            }
        )
    return {"rows": rows, "wins": wins}


def paired(before: Sequence[int], now: Sequence[int]) -> dict[str, float]:
    """The change of a share of the same questions, with its 95 % interval."""
    of = len(now)
    gained = sum(b > a for a, b in zip(before, now, strict=True))
    lost = sum(b < a for a, b in zip(before, now, strict=True))
    change = (gained - lost) / of
    half = 1.959964 * math.sqrt(gained + lost - (gained - lost) ** 2 / of) / of
    return {
        "of": of,
        "before": sum(before) / of,
        "now": sum(now) / of,
        "change": change,
        "low": change - half,
        "high": change + half,
    }


def document(known: Mapping[str, Any]) -> str:
    lines = [
        "# What each stage gained and cost",
        "",
        "Written by `scripts/kept_skills.py`: held-out questions, up to 1,000 a skill, answered greedily",
        "before and after each stage. A skill is kept where the interval of its change lies wholly above",
        f"−{100 * MOST:.0f} points, and lost where it lies wholly below. Wins: an answer at temperature 1 has more",
        "of the recipe's points than that of `sft`, ties lost.",
    ]
    for run in known["runs"]:
        settings = ", ".join(f"`{name}` {value:g}" for name, value in run["settings"].items())
        lines += [
            "",
            f"## {run['name']}: recipe `{run['recipe']}`, seed {run['seed']}",
            "",
            f"{settings}." if settings else "",
            "",
            "| stage | skill | questions | before | after | change (95 %) | |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for row in run["rows"]:
            lines.append(
                f"| {row['stage']} | {row['skill']} | {row['of']:,} | {row['before']:.1%} | {row['now']:.1%} | "
                f"{_points(row['change'])} ({_points(row['low'])} to {_points(row['high'])}) | {_verdict(row)} |"
            )
        lines += ["", "| stage | wins over `sft` (95 %) | prompts |", "| --- | --- | --- |"]
        for row in run["wins"]:
            share = f"{row['share']:.1%} ({row['low']:.1%} to {row['high']:.1%})"
            lines.append(f"| {row['stage']} | {share} | {row['of']:,} |")
    return "\n".join(lines) + "\n"


def _points(change: float) -> str:
    return f"{100 * change:+.1f}".replace("-", "−")


def _verdict(row: Mapping[str, float]) -> str:
    if row["low"] > -MOST:
        return "kept"
    return "lost" if row["high"] < -MOST else "not known"


if __name__ == "__main__":
    main()
