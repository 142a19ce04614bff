"""Compares plans with what stages take: memory that grows above the process before the model is read,
and CPU seconds of a step.

    python scripts/plan_accuracy.py                     every case on every backend; hours on two cores
    python scripts/plan_accuracy.py --sizes 1M 10M      some sizes
    python scripts/plan_accuracy.py --only dpo --again  the case of this name, measured anew
    python scripts/plan_accuracy.py --document          what is measured already, by the plans of now

Each case runs in fresh processes on one thread, a few steps each, the median of `--repeats`. What was
measured is kept in docs/results/plan.json; docs/results/plan.md is written from it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from plan_cases import (
    SAMPLED,
    SIZES,
    Case,
    cases,
    is_seen,
    kinds_of,
    model_of,
    write_material,
    write_models,
)
from plan_measure import MARK

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
HERE = Path(__file__).parent
PLACE = Path("plan-cases")
"""Stands for `--work` in what is kept."""
STEPS = 4
MEMORY_AIM, TIME_AIM = 0.15, 0.25


def main() -> None:
    options = _options()
    os.environ["OMP_NUM_THREADS"] = "1"  # read by array libraries as they are loaded
    file = options.results / "plan.json"
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"cases": []}
    if not options.document:
        for backend in options.backends:
            for size in options.sizes:
                _measure_size(size, backend, options, known, file)
    _predict(known, options)
    file.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    (options.results / "plan.md").write_text(document(known), encoding="utf-8")
    print(options.results / "plan.md")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = [size for size in SIZES if size != "tiny"]
    parser.add_argument("--sizes", nargs="+", default=sizes, choices=SIZES)
    parser.add_argument("--backends", nargs="+", default=["torch", "mlx"])
    parser.add_argument("--only", nargs="+", default=[], help="the cases of these names")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--again", action="store_true", help="measure what is measured already")
    parser.add_argument("--document", action="store_true", help="measure nothing")
    parser.add_argument("--no-time", action="store_true", help="plan memory alone, uncalibrated")
    parser.add_argument("--work", type=Path, default=PLACE, help="for models and data")
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args()


def _measure_size(
    size: str, backend: str, options: argparse.Namespace, known: dict[str, Any], file: Path
) -> None:
    for case in cases(size, PLACE):
        key = f"{backend} {size} {case.name}"
        there = any(row["key"] == key for row in known["cases"])
        if (options.only and case.name not in options.only) or (there and not options.again):
            continue
        _material(options.work, case)
        job = _job(case, backend, options.steps)
        runs = [_run(_placed(job, options.work)) for _ in range(options.repeats)]
        row = {
            "key": key,
            "backend": backend,
            "size": size,
            "name": case.name,
            "fitted": is_seen(key),
            "job": job,
            "grown": statistics.median(run["grown"] for run in runs),
            "cpu": statistics.median(run["cpu_per_step"] for run in runs),
            "process": statistics.median(run["process"] for run in runs),
            "micro_batch": runs[0]["micro_batch"],
        }
        known["cases"] = [one for one in known["cases"] if one["key"] != key] + [row]
        file.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        print(
            f"{key}: {row['grown'] / 1e6:,.0f} MB, {row['cpu']:.3f} s", file=sys.stderr, flush=True
        )


def _material(folder: Path, case: Case) -> None:
    from ondevice.seam.select import load_backend

    if not (folder / "texts.jsonl").is_file():
        write_material(folder)
    write_models(folder, case.size, kinds_of(case), load_backend("auto", "cpu", "float32"))


def _job(case: Case, backend: str, steps: int) -> dict[str, Any]:
    """What is to run, with paths below `PLACE`."""
    fields: dict[str, Any] = {"steps": steps, "model": str(model_of(case, PLACE))}
    if case.stage not in ("ppo", "grpo", "sample"):
        fields["eval_batches"] = 1
    return {"stage": case.stage, "backend": backend, "fields": {**fields, **case.fields}}


def _placed(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The job with the paths of this machine."""
    fields = dict(job["fields"])
    for name, value in fields.items():
        if isinstance(value, str) and PLACE in Path(value).parents:
            fields[name] = str(folder.resolve() / Path(value).relative_to(PLACE))
    return {**job, "fields": fields}


def _run(job: dict[str, Any]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(HERE / "plan_measure.py"), json.dumps(job)],
        capture_output=True,
        text=True,
    )
    found = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not found:
        sys.exit(f"{job} failed\n{done.stdout[-1000:]}\n{done.stderr[-4000:]}")
    result: dict[str, Any] = json.loads(found[-1].removeprefix(MARK))
    return result


def _predict(known: dict[str, Any], options: argparse.Namespace) -> None:
    """Plans every measured case with the code and the calibration of now."""
    from ondevice.config.load import from_mapping
    from ondevice.config.recipe import STAGES
    from ondevice.planning.command import plan

    for row in known["cases"]:
        job = _placed(row["job"], options.work)
        known_here = row["backend"] in options.backends
        if not known_here or not Path(job["fields"]["model"]).is_dir():
            continue  # measured elsewhere or otherwise: the plan of then stays
        names = STAGES[job["stage"]].__dataclass_fields__
        given = {"device": "cpu", "dtype": "float32", "eval_every": 0, "save_every": 0}
        fields = {k: v for k, v in {**given, **job["fields"]}.items() if k in names}
        cfg = from_mapping(STAGES[job["stage"]], {**fields, "backend": row["backend"]})
        (stage,) = plan(job["stage"], cfg, measure=not options.no_time)["stages"]
        row["fitted"] = is_seen(row["key"])
        row["planned_grown"] = stage["grown"]
        seconds = stage["seconds_per_step"]
        if seconds is not None and job["stage"] == "sample":
            seconds *= SAMPLED / job["fields"]["prompts"]
        if seconds is not None or "planned_cpu" not in row:
            row["planned_cpu"] = seconds  # without a calibration that of an earlier plan stays
        row["planned_bytes"] = stage["bytes"]


# ---- the document ---------------------------------------------------------------------------------


def document(known: dict[str, Any]) -> str:
    """Markdown: planned beside measured."""
    rows = [row for row in known["cases"] if "planned_grown" in row]
    lines = [
        "# Plans beside measurements",
        "",
        "Written by `scripts/plan_accuracy.py`; do not edit. Memory: what the process grows above what "
        "it held before the model was read, at its peak. Time: CPU seconds of a step on one thread, the "
        "median of a run's steps and of the runs; models of random weights, which write until their limit. "
        "Other programs shared the machine: they do not change the memory, and some of what differs in the "
        "CPU seconds is theirs.",
        "",
        "The cases marked · were at hand when the formulas and the constants of memory (`costs.py`) were "
        "chosen: of these the table says how well a plan can follow, not how well it foretells. All others "
        "were left out: of some stages and kinds of model no case was at hand, of some sizes not one. Times "
        "follow from the calibration alone, except for what an adapter moves and what GRPO's and PPO's "
        "entropy costs. The calibration's two models are none of them.",
        "",
    ]
    for title, some in (
        ("All", rows),
        ("Held out", [row for row in rows if not row["fitted"]]),
    ):
        lines += [f"**{title}** ({len(some)} cases): {_share(some)}", ""]
    for backend in sorted({row["backend"] for row in rows}):
        lines += _table(backend, [row for row in rows if row["backend"] == backend])
    return "\n".join(lines).rstrip() + "\n"


def _share(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "none"
    memory = [abs(row["planned_grown"] / row["grown"] - 1) for row in rows]
    times = [abs(row["planned_cpu"] / row["cpu"] - 1) for row in rows if row["planned_cpu"]]
    close = sum(one <= MEMORY_AIM for one in memory)
    near = sum(one <= TIME_AIM for one in times)
    told = (
        f"memory within 15 % in {close} of {len(rows)} (median {statistics.median(memory):.0%}, at most "
        f"{max(memory):.0%})"
    )
    if not times:
        return told
    return (
        f"{told}; time within 25 % in {near} of {len(times)} (median {statistics.median(times):.0%}, at "
        f"most {max(times):.0%})"
    )


def _table(backend: str, rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        f"## {backend}",
        "",
        "| case | memory planned, MB | measured | off | seconds a step planned | measured | off |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        mark = " ·" if row["fitted"] else ""
        memory = row["planned_grown"] / row["grown"] - 1
        time = ("–", "–")
        if row["planned_cpu"]:
            time = (f"{row['planned_cpu']:.3f}", f"{row['planned_cpu'] / row['cpu'] - 1:+.0%}")
        lines.append(
            f"| {row['size']} {row['name']}{mark} | {row['planned_grown'] / 1e6:,.0f} "
            f"| {row['grown'] / 1e6:,.0f} | {memory:+.0%} | {time[0]} "
            f"| {row['cpu']:.3f} | {time[1]} |"
        )
    return [*lines, ""]


if __name__ == "__main__":
    main()
