"""What a form's command would take, asked of `ondevice plan … --json` in a process of its own: this
process never waits for it, and reads no model and no data.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ondevice_tui import access, stage_processes


async def ask(words: Sequence[str], run: Path, *, measure: bool = False) -> dict[str, Any]:
    """The plan of a command of `words` (`sft MODEL DATA …`, `run RECIPE …`), or {"wrong": why} where
    it has none. `measure`: this machine, where it was not before, which takes some seconds. Whoever
    waits no longer ends the process."""
    if words[0] == "run":
        planned = list(words[1:])
    else:
        planned = list(words)
    if not measure:
        planned.append("--no-time")
    try:
        return await stage_processes.json_of(
            ["plan", *planned, "--json"], access.of_command(words, run)
        )
    except stage_processes.NoAnswer as error:
        return {"wrong": str(error) or "the plan's process said nothing"}


def told(plan: dict[str, Any]) -> str:
    """The plan in one line; why there is none."""
    return str(plan.get("wrong") or plan.get("line") or "")


def is_calibrated(plan: dict[str, Any]) -> bool:
    """Whether it has times, or can have none."""
    return "wrong" in plan or bool(plan["machine"]["calibrated"])


def settings(plan: dict[str, Any]) -> dict[str, Any]:
    """Of a stage's plan the settings that a rule may decide, with their numbers; empty for a recipe's,
    and where there is no plan."""
    stages = plan.get("stages") or ()
    if len(stages) != 1:
        return {}
    return dict(stages[0].get("settings") or {})


def figure(value: Any) -> str:
    """A setting's number, as a person reads it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}"
