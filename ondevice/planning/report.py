"""`ondevice plan`: a row per stage of a recipe, or of one stage, as JSON values and as a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ondevice.common.disk import free_bytes
from ondevice.common.progress import duration, number, size
from ondevice.config.corpus import CorpusConfig
from ondevice.config.preference import RaterConfig
from ondevice.config.recipe import ExamConfig, Recipe
from ondevice.config.stages import StageConfig
from ondevice.data.hub_datasets import PREFIX, HubSpec
from ondevice.data.mixture import ordered, sources
from ondevice.planning import calibration
from ondevice.planning.machine import Machine, planned_machine
from ondevice.planning.plan import StagePlan, corpus_in, plan_stage, seconds_of_all
from ondevice.planning.stage_facts import Surroundings
from ondevice.planning.verdict import Verdict, verdict

Tell = Callable[[str], None]


def plan_recipe(recipe: Recipe, folder: Path, machine: Machine) -> dict[str, Any]:
    """What all stages of a recipe take; `folder`: where the run will be. Raises UserError where a
    stage could not begin."""
    exam = recipe.exam if recipe.exam.data or _reads_builtin(recipe) else None
    around = Surroundings(machine, recipe.corpus, folder, exam)
    return _report(list(recipe.stages.items()), around)


def plan_one(name: str, cfg: StageConfig, folder: Path, machine: Machine) -> dict[str, Any]:
    """What one stage takes. Raises UserError where it could not begin."""
    return _report([(name, cfg)], surroundings_of(cfg, folder, machine))


def surroundings_of(cfg: StageConfig, folder: Path, machine: Machine) -> Surroundings:
    """Of a stage by itself: on the built-in corpus it takes that corpus's exam."""
    corpus = corpus_in(cfg)
    exam = ExamConfig() if corpus is not None and cfg.gives == "policy" else None
    return Surroundings(machine, corpus or CorpusConfig(), folder, exam)


def machine_for(cfg: Any, tell: Tell, *, measure: bool) -> Machine:
    """The machine that the settings name, with what was measured of it; `measure`: now, where it was
    not before. Raises UserError for a backend that is not here."""
    get = calibration.calibrated if measure else calibration.load
    found = get(cfg.backend, cfg.device, cfg.dtype, tell)
    return planned_machine(cfg.backend, cfg.device, cfg.dtype, cfg.memory, found)


def _reads_builtin(recipe: Recipe) -> bool:
    return any(
        str(getattr(cfg, "data", "")).startswith("builtin") for cfg in recipe.stages.values()
    )


def _report(stages: Sequence[tuple[str, StageConfig]], around: Surroundings) -> dict[str, Any]:
    free = free_bytes(around.run)
    rows, plans = [], []
    needed = 0.0
    for name, cfg in stages:
        plan, after = plan_stage(name, cfg, around)
        left = None if free is None else int(free - needed)
        found = verdict(plan, cfg, around, left)
        needed += plan.disk
        plans.append(plan)
        rows.append(
            {
                **plan.mapping(),
                "uncounted": _uncounted(cfg),
                "fits": found.fits,
                "why": found.why,
                "change": found.change,
                "on_disk": bool(found.disk),
                "line": line(plan, found),
            }
        )
        around = after
    machine = around.machine
    return {
        "machine": {
            "backend": machine.backend,
            "device": machine.device,
            "dtype": machine.dtype,
            "memory": machine.memory_total,
            "budget": machine.budget,
            "calibrated": machine.speeds is not None,
            "disk": free,
            "processes": machine.processes,
        },
        "stages": rows,
        "seconds": seconds_of_all(plans),
        "disk": sum(plan.disk for plan in plans),
        "fits": worst(row["fits"] for row in rows),
        "line": _line_of_all(rows, seconds_of_all(plans)),
    }


def _uncounted(cfg: StageConfig) -> list[str]:
    """The sources of a stage that are on the Hub, which a plan does not fetch."""
    named = sources(str(getattr(cfg, "data", "")))
    return [one.data for one in named if ordered(one.data)[1].startswith(PREFIX)]


def _line_of_all(rows: Sequence[dict[str, Any]], seconds: float | None) -> str:
    """One line of a whole plan: a stage's own, or what a recipe takes in all."""
    if len(rows) == 1:
        return str(rows[0]["line"])
    words = [f"{len(rows)} stages"]
    if seconds is not None:
        words.append(f"≈ {duration(seconds)}")
    words.append(f"≈ {size(max(row['memory'] for row in rows))}")
    told = ", ".join(words)
    for row in rows:
        if row["fits"] != "yes":
            return f"{told}; {_fit_of(row)}"
    return told


def worst(found: Any) -> str:
    """no before tight before yes."""
    order = ("yes", "tight", "no")
    return order[max((order.index(one) for one in found), default=0)]


def line(plan: StagePlan, found: Verdict | None = None) -> str:
    """One line of a plan: "≈ 3.0 times through 61 pairs, 0:20, 0.6 GB"."""
    words = [_through(plan)]
    if plan.micro_batch is not None:
        again = ", recomputed" if plan.checkpointing else ""
        words.append(f"{plan.micro_batch} rows at once{again}")
    if plan.seconds is not None:
        most = "at most " if plan.written else ""
        words.append(f"{most}≈ {duration(plan.seconds)}")
    if plan.memory:
        words.append(f"≈ {size(plan.memory)}")
    told = ", ".join(filter(None, words))
    if found is not None and found.fits == "tight":
        told += f" (tight: {found.why})"
    elif found is not None and found.fits == "no":
        told += f" (does not fit: {found.why}; {found.remedy})"
    return told


def _through(plan: StagePlan) -> str:
    """How often the data is gone through."""
    if not plan.data:
        return ""
    if plan.times is None or not plan.steps:
        return plan.data
    return f"≈ {times(plan.times)} times through {plan.data.removeprefix('≈ ')}"


def times(count: float) -> str:
    """262, 3.0, 0.25."""
    if count >= 10:
        return f"{count:,.0f}"
    return f"{count:.1f}" if count >= 0.1 else f"{count:.2f}"


_HEAD = tuple(
    [
        "stage",
        "trained",
        "frozen",
        "data",
        "tokens",
        "times",
        "tokens/step",
        "rows",
        "memory",
        "time",
        "disk",
        "fits",
    ]
)


def render(report: dict[str, Any]) -> str:
    """The table, and what is to be said of it."""
    table: list[tuple[str, ...]] = [_HEAD]
    for row in report["stages"]:
        table.append(_cells(row))
    widths = [max(len(cells[n]) for cells in table) for n in range(len(_HEAD))]
    lines = []
    for cells in table:
        parts = [
            cell.ljust(width) if n in (0, 3) else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        lines.append("  ".join(parts).rstrip())
    lines += ["", *_told(report)]
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    recomputed = " again" if row["checkpointing"] else ""
    at_once = f"{row['micro_batch']}{recomputed}" if row["micro_batch"] else "–"
    memory = size(row["memory"]) if row["memory"] else "–"
    time = duration(row["seconds"]) if row["seconds"] is not None else "?"
    return (
        row["stage"],
        _count(row["trained"]),
        _count(row["frozen"]),
        row["data"] or "–",
        _tokens(row),
        times(row["times"]) if row["times"] is not None else "–",
        f"{row['tokens_per_step']:,.0f}" if row["tokens_per_step"] else "–",
        at_once,
        memory,
        f"≤ {time}" if row["written"] and row["seconds"] else time,
        size(row["disk"]) if row["disk"] else "–",
        row["fits"],
    )


def _tokens(row: dict[str, Any]) -> str:
    """Of the data, where their number is known and the data is not counted in them already."""
    if not row["tokens"] or row["unit"] == "tokens":
        return "–"
    return number(round(row["tokens"])) if row["exact"] else f"≈ {number(round(row['tokens']))}"


def _count(numbers: int) -> str:
    return number(numbers) if numbers else "–"


def _told(report: dict[str, Any]) -> list[str]:
    machine = report["machine"]
    found = f"{machine['backend']} on {machine['device']} in {machine['dtype']}"
    budget = machine["budget"]
    room = f", {size(budget)} of memory for it" if budget is not None else ""
    lines = [f"{found}{room}, {size(machine['disk'] or 0)} of disk free"]
    if machine.get("processes", 1) > 1:
        most = max((row["sent"] for row in report["stages"]), default=0.0)
        lines.append(
            f"{machine['processes']} processes: memory and time of each; of a step each sends up to "
            f"{size(most)}, whose time is not counted"
        )
    if report["seconds"] is not None and len(report["stages"]) > 1:
        lines.append(f"all of it: ≈ {duration(report['seconds'])}, {size(report['disk'])} of disk")
    if not machine["calibrated"]:
        lines.append("no times: this machine is not measured yet (ondevice plan without --no-time)")
    unread = {row["stage"]: row["uncounted"] for row in report["stages"] if row["uncounted"]}
    if unread:
        names = sorted({ordered(name)[1] for found in unread.values() for name in found})
        repos = dict.fromkeys(HubSpec.parse(name).repo for name in names)
        lines.append(
            f"not counted: {', '.join(repos)} (of {', '.join(unread)}): a plan reads nothing from the "
            "Hub, so rows are taken to be full and answers as long as they may be"
        )
    if report.get("time"):
        lines.append(f"chosen for {duration(report['time'])} in all")
    lines += report.get("left_out_lines", [])
    lines += [_fit_of(row) for row in report["stages"] if row["fits"] != "yes"]
    return lines


def _fit_of(row: dict[str, Any]) -> str:
    """Of a stage that is tight or does not fit: why, and what to do."""
    if row["fits"] == "tight":
        return f"{row['stage']} is tight: {row['why']}"
    remedy = Verdict("no", change=row["change"]).remedy
    return f"{row['stage']} does not fit: {row['why']}; {remedy}"


def is_planned(cfg: StageConfig) -> bool:
    """Whether a stage takes anything worth a line."""
    return not isinstance(cfg, RaterConfig)
