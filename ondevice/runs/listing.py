"""What the runs in a folder have done, read from what they left there; a run that trains is not
disturbed.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ondevice.common.errors import UserError, nearest
from ondevice.common.progress import numbers_line
from ondevice.runs import events
from ondevice.runs.folder import RunFolder, StageFolder, first_event

TAIL = 1 << 18  # bytes of an event file that are read: the newest hundreds of steps
# of a finished stage, also one that does not train
_MARKS = ("bits_per_byte", "exact_match", "queued", "votes")
_HEADLINE = ("loss", "heldout_loss", "bits_per_byte", "exact_match", "accuracy", "reward")


def list_runs(folder: str | Path) -> list[dict[str, Any]]:
    """Every run in `folder`, the oldest first: {"run", "path", "began", "ratings": has some,
    "stages": [{"stage", "state", "step", "steps", …}]}.

    A run that cannot be read has no stages and says why under "wrong"; it hides no other. Raises
    UserError where `folder` itself cannot be read.
    """
    found = [run for path in run_paths(folder) if (run := _run(path)) is not None]
    return sorted(found, key=lambda run: (run["began"], run["run"]))


def run_paths(folder: str | Path) -> list[Path]:
    """What stands in a folder of runs, by name; a missing folder has nothing. Raises UserError
    where it cannot be read."""
    try:
        root = Path(folder)
        if root.is_dir():
            return sorted(root.iterdir())
        return []
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", where=str(folder)) from error


def _run(path: Path) -> dict[str, Any] | None:
    try:
        if not path.is_dir():
            return None
        run = RunFolder(path)
        stages = [stage_state(stage) for stage in run.stages()]
        if not stages and not is_run(run):
            return None
        return run_record(run, stages)
    except Exception as problem:  # whatever it is, the other runs are listed, and it is told
        return unreadable(path, problem)


def run_record(run: RunFolder, stages: list[dict[str, Any]]) -> dict[str, Any]:
    """A run that could be read, with the states of its stages."""
    return {
        "run": run.path.name,
        "path": str(run.path),
        "began": began_at(run, stages),
        "stages": stages,
        "ratings": has_ratings(run),
    }


def is_run(run: RunFolder) -> bool:
    """Whether a folder without stages is a run all the same: it has a recipe, or ratings."""
    return run.recipe.is_file() or has_ratings(run)


def has_ratings(run: RunFolder) -> bool:
    """Whether a run has pairs that people rate."""
    # here: it loads SQLite, and most runs are known without
    from ondevice.preferences.sqlite_store import FILE

    return (run.path / FILE).is_file()


def began_at(run: RunFolder, stages: Sequence[Mapping[str, Any]]) -> float:
    """When its first stage began; of a run without stages, the time of its oldest file. (The
    folder's own time changes with every look at its ratings: SQLite makes files beside them and
    removes them.)"""
    if stages:
        return min(float(stage["began"]) for stage in stages)
    oldest = run.path.stat().st_mtime
    for file in run.path.iterdir():
        with contextlib.suppress(FileNotFoundError):  # SQLite's own come and go
            oldest = min(oldest, file.lstat().st_mtime)
    return oldest


def unreadable(path: Path, problem: Exception) -> dict[str, Any]:
    """The record of a run that cannot be read. What is not a matter of files and their contents is
    told by its type: it is a mistake of ours."""
    if isinstance(problem, UserError):
        told = str(problem)
    elif isinstance(problem, OSError):
        told = f"{problem.strerror or problem}: {problem.filename or path}"
    else:
        told = f"{type(problem).__name__}: {problem}"
    try:
        began = path.lstat().st_mtime
    except OSError:
        began = 0.0
    return {"run": path.name, "path": str(path), "began": began, "stages": [], "wrong": told}


def stage_state(stage: StageFolder) -> dict[str, Any]:
    """A stage's state, its newest step and headline numbers.

    The state is done, training, stopped (a person asked for it), failed (its `message` says why) or
    died (its process is gone and left no word). `holder` names the process that trains, `last` is
    the time of the newest event. `since` (time, step): where it began or went on last, or the first
    step in the part of the file that is read; `paused`: seconds between a stop and its resume, of
    those resumes that are in that part.
    """
    first = first_event(stage.events)
    newest: dict[str, dict[str, Any]] = {}
    step = None
    last: Mapping[str, Any] = {}
    since: tuple[float, int] | None = None
    paused = 0.0
    for event in events.read(stage.events, tail=TAIL):
        at, before = _number(event.get("t")), _number(last.get("t"))
        last = newest[str(event.get("event", ""))] = event
        step = event["step"] if isinstance(event.get("step"), int) else step
        if event.get("event") == "resume" and at is not None and before is not None:
            paused += max(at - before, 0.0)
        if (
            at is not None
            and step is not None
            and (since is None or event.get("event") == "resume")
        ):
            since = at, step
    holder, done = stage.holder(), stage.done_record()
    ended = last if last.get("event") == "failed" else {}
    if done is not None:
        state = "done"
    elif holder is not None:
        state = "training"
    elif ended:
        # what a person stopped has its last event from the same place as what went wrong
        state = "stopped" if ended.get("reason") == "stopped" else "failed"
    else:
        state = "died"
    numbers = {}
    for kind in ("step", "eval", "done"):
        event = newest.get(kind, {})
        found = {key: event[key] for key in _HEADLINE if _number(event.get(key)) is not None}
        if kind == "eval" and "loss" in found:
            found["heldout_loss"] = found.pop("loss")
        numbers.update(found)
    given = (done or {}).get("outcome")
    if isinstance(given, Mapping) and isinstance(
        given.get("value"), (int, float)
    ):  # of the weights that it gives
        name = {"loss": "heldout_loss"}.get(str(given.get("figure")), str(given.get("figure")))
        numbers.update({name: given["value"]} if name in _HEADLINE else {})
    held = (done or {}).get("marks")
    marks = held if isinstance(held, Mapping) else {}
    began, steps = _number(first.get("t")), first.get("steps")
    times = [t for event in newest.values() if (t := _number(event.get("t"))) is not None]
    return {
        "stage": stage.name,
        "state": state,
        "step": step,
        "steps": steps if isinstance(steps, int) else None,
        "began": began if began is not None else stage.path.stat().st_mtime,
        "numbers": numbers,
        "marks": {key: marks[key] for key in _MARKS if _number(marks.get(key)) is not None},
        "last": max(times, default=None),
        "since": since,
        "paused": paused,
        "holder": holder,
        "message": str(ended.get("message", "")),
        "seconds": _number((done or {}).get("seconds")),
    }


def _number(value: Any) -> float | None:
    """A number that can be counted with; None for whatever else somebody has written in its place."""
    try:
        if isinstance(value, (int, float)) and math.isfinite(value):
            return value
        return None
    except OverflowError:  # a whole number beyond every float
        return None


def runs_text(runs: Sequence[Mapping[str, Any]]) -> str:
    """`list_runs` as lines for people: a run, and under it a line for each stage."""
    lines = []
    for run in runs:
        empty = "pairs to rate" if run.get("ratings") else "nothing begun"
        if run.get("wrong"):
            empty = f"cannot be read: {run['wrong']}"
        lines.append(run["path"] if run["stages"] else f"{run['path']}  ({empty})")
        for stage in run["stages"]:
            step = "" if stage["step"] is None else f"step {stage['step']}"
            if step and stage["steps"]:
                step += f"/{stage['steps']}"
            line = f"  {stage['stage']:<12}{stage['state']:<10}{step:<18}{numbers_line(stage['numbers'])}"
            lines.append(line.rstrip())
    return "\n".join(lines)


def find_run(name: str, folder: str | Path) -> RunFolder:
    """The run of this name in `folder`, or at this path. Raises UserError naming the nearest."""
    for path in (Path(folder) / name, Path(name)):
        if path.is_dir():
            return RunFolder(path)
    known = [run["run"] for run in list_runs(folder)]
    raise UserError(
        "no such run", where=name, hint=nearest(name, known) if known else f"{folder} has no runs"
    )
