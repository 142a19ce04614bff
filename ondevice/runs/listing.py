"""What the runs in a folder have done, read from what they left there; a run that trains is not
disturbed.
"""

from __future__ import annotations

import contextlib
import os
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from operator import itemgetter
from pathlib import Path
from typing import Any

from ondevice.common.disk import space_of
from ondevice.common.errors import UserError, nearest
from ondevice.common.numbers import number_or_none
from ondevice.common.progress import numbers_line, size
from ondevice.runs import events
from ondevice.runs.folder import RunFolder, StageFolder
from ondevice.runs.labels import labels_or_trouble
from ondevice.runs.run_time import run_time_of

TAIL = 1 << 18  # bytes of an event file that are read: the newest hundreds of steps
# of a finished stage, also one that does not train
_MARKS = ("bits_per_byte", "exact_match", "queued", "votes")
_HEADLINE = ("loss", "heldout_loss", "bits_per_byte", "exact_match", "accuracy", "reward")


def list_runs(folder: str | Path, *, sizes: bool = False) -> list[dict[str, Any]]:
    """Every run in `folder`, the oldest first: {"run", "path", "began", "ratings": has some,
    "stages": [{"stage", "state", "step", "steps", …}], "note", "tags"}, and with `sizes` "bytes"
    that it takes of the disk (see `space`).

    A run that cannot be read has no stages and says why under "wrong"; it hides no other. Raises
    UserError where `folder` itself cannot be read.
    """
    runs = []
    for path in run_paths(folder):
        run = _run(path)
        if run is not None:
            runs.append(run)
    for run in runs if sizes else ():
        run["bytes"] = space(Path(run["path"]))
    return sorted(runs, key=itemgetter("began", "run"))


def space(path: Path) -> int | None:
    """Bytes that a run takes of the disk, a file under several names once and links not followed;
    None where it cannot be read."""
    try:
        return space_of(path)
    except OSError:
        return None


def run_paths(folder: str | Path) -> list[Path]:
    """What stands in a folder of runs, by name, without the older names of renamed runs
    (`older_names`); a missing folder has nothing. Raises UserError where it cannot be read."""
    try:
        root = Path(folder)
        if not root.is_dir():
            return []
        with os.scandir(root) as found:
            names = [one.name for one in found if not is_older_name(one)]
        return [root / name for name in sorted(names)]
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", where=str(folder)) from error


def is_older_name(entry: os.DirEntry[str] | Path) -> bool:
    """Whether this is what a rename has left in a run's old place: a link to another name in the
    same folder."""
    if not entry.is_symlink():
        return False
    try:
        target = os.readlink(entry)
    except OSError:
        return False
    return bool(target) and os.path.basename(target) == target and target not in (".", "..")


def older_names(folder: str | Path) -> dict[Path, str]:
    """The older names of renamed runs in a folder of runs → the name that each leads to."""
    root = Path(folder)
    if not root.is_dir():
        return {}
    with os.scandir(root) as found:
        links = [root / one.name for one in found if is_older_name(one)]
    return {link: os.readlink(link) for link in sorted(links)}


def by_newest_name(path: Path) -> Path:
    """The run's folder where `path` is an older name of it; else `path`."""
    for _ in range(100):  # a circle of names is left to whoever opens it
        if not is_older_name(path):
            break
        path = path.with_name(os.readlink(path))
    return path


def _run(path: Path) -> dict[str, Any] | None:
    try:
        if path.name.startswith(".") or not path.is_dir():  # the trash, or another program's
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
    labels, trouble = labels_or_trouble(run.path)
    return {
        "run": run.path.name,
        "path": str(run.path),
        "began": began_at(run, stages),
        "stages": stages,
        "ratings": has_ratings(run),
        "note": labels.note,
        "tags": list(labels.tags),
        "labels_trouble": trouble,
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
        wrong = str(problem)
    elif isinstance(problem, OSError):
        wrong = f"{problem.strerror or problem}: {problem.filename or path}"
    else:
        wrong = f"{type(problem).__name__}: {problem}"
    try:
        began = path.lstat().st_mtime
    except OSError:
        began = 0.0
    return {
        "run": path.name,
        "path": str(path),
        "began": began,
        "stages": [],
        "note": "",
        "tags": [],
        "labels_trouble": "",
        "wrong": wrong,
    }


def stage_state(stage: StageFolder) -> dict[str, Any]:
    """A stage's state, its newest step and headline numbers.

    The state is done, training, stopped (a person asked for it), failed (its `message` says
    why) or died (its process is gone and left no word). `holder` names the process that trains,
    `last` is the time of the newest event. `since` (time, step): where it began or went on
    last, or the first step in the part of the file that is read; `paused`: seconds between a
    stop and its resume, of those resumes that are in that part; `idle`: seconds after `since`
    in which nothing was done (the disk was full, the machine slept, the process was suspended);
    `sick` {"t", "step", "message"}: what was last said of a training that is not well, None
    where nothing was. `waiting`: why the process that trains it does nothing now, as on a full
    disk; empty where it works. `planned`: seconds that its plan said, where it had a time.
    `time`: how much of the run's time was used as it began (fields of `RunTime`), where the run
    has one.
    """
    first = events.first_event(stage.events)
    seen = _Events()
    for event in events.read(stage.events, tail=TAIL):
        seen.add(event)
    holder = stage.holder()
    done = stage.done_record()
    if seen.last.get("event") == "failed":
        ended = seen.last
    else:
        ended = {}
    if not ended and holder is None and done is None and (stopped := stage.stopped_in_pause()):
        ended = {"event": "failed", "reason": "stopped", "message": stopped}
    record = done or {}
    marks = record.get("marks")
    began = number_or_none(first.get("t"))
    # how many there are to be may be settled only after the first event, and raised at a resume
    steps = stage.settings_record().get("settings", first).get("steps")
    return {
        "stage": stage.name,
        "state": _state(done is not None, holder is not None, ended),
        "step": seen.step,
        "steps": steps if isinstance(steps, int) else None,
        "began": began if began is not None else stage.path.stat().st_mtime,
        "numbers": _headline(seen.newest, record),
        "marks": _numbers_of(marks if isinstance(marks, Mapping) else {}, _MARKS),
        "last": seen.newest_time(),
        "since": seen.since,
        "paused": seen.paused,
        "idle": seen.idle,
        "sick": seen.sick,
        "holder": holder,
        "waiting": str((holder or {}).get("paused") or ""),
        "message": str(ended.get("message", "")),
        "seconds": number_or_none(record.get("seconds")),
        "planned": _planned(first),
        "time": _time(first),
    }


def _time(first: Mapping[str, Any]) -> dict[str, Any] | None:
    found = run_time_of(first)
    return None if found is None else asdict(found)


def _planned(first: Mapping[str, Any]) -> float | None:
    """The seconds of a stage's plan, which its first event tells."""
    plan = first.get("plan")
    if isinstance(plan, Mapping):
        return number_or_none(plan.get("seconds"))
    return None


_USUAL = 64  # steps by which one is unusual
FAR = 2.0  # nats per token: the policy writes what its reference would not
_FAR_STEPS = 3
_NOTICED_S = 30.0  # in which nothing is done: less may be a checkpoint, or a busy machine


class _Events:
    """What the part of an event file that is read says: the newest event, also of each kind, the
    newest step, and `since` and `paused` as in `stage_state`.
    """

    def __init__(self) -> None:
        self.last: Mapping[str, Any] = {}
        self.newest: dict[str, Mapping[str, Any]] = {}
        self.step: int | None = None
        self.since: tuple[float, int] | None = None
        self.paused = 0.0
        self.idle = 0.0  # since `since`
        self.sick: dict[str, Any] | None = None
        self._far = 0  # steps in a row that are FAR from the reference
        self._step_seconds: deque[float] = deque(maxlen=_USUAL)

    def add(self, event: Mapping[str, Any]) -> None:
        """Takes in the event after the one that was added last."""
        at = number_or_none(event.get("t"))
        before = number_or_none(self.last.get("t"))
        resumed = event.get("event") == "resume"
        if event.get("event") == "paused":
            waited = max(number_or_none(event.get("seconds")) or 0.0, 0.0)
            self.paused += waited
            self.idle += waited
        elif event.get("event") == "step" and at is not None and before is not None:
            self.idle += self._idle_before(event, at - before)
        self.last = event
        self.newest[str(event.get("event", ""))] = event
        if isinstance(event.get("step"), int):
            self.step = event["step"]
        self._look_for_sickness(event)
        if at is None:
            return
        if resumed and before is not None:
            self.paused += max(at - before, 0.0)
        if self.step is not None and (resumed or self.since is None):
            self.since = (at, self.step)
            self.idle = 0.0

    def _look_for_sickness(self, event: Mapping[str, Any]) -> None:
        if event.get("sick") is True:
            message = str(event.get("message", ""))
        else:
            message = ""
        if event.get("event") == "step" and "kl_coef" not in event:  # PPO looks to it by itself
            kl = number_or_none(event.get("kl"))
            if kl is not None and kl > FAR:
                self._far = self._far + 1
            else:
                self._far = 0
            if self._far == _FAR_STEPS:
                message = f"the policy is {kl:.1f} nats per token away from its reference"
        if message:
            self.sick = {"t": number_or_none(event.get("t")), "step": self.step, "message": message}

    def _idle_before(self, step: Mapping[str, Any], gap: float) -> float:
        """Seconds of the `gap` before a step's event in which nothing was done: what is beyond the
        step's own seconds by far (a clock that stands still in a sleep), or beyond those that are
        usual (a process that was suspended)."""
        seconds = number_or_none(step.get("seconds"))
        if seconds is None or seconds < 0:
            return 0.0
        if self._step_seconds:
            usual = statistics.median(self._step_seconds)
        else:
            usual = seconds
        self._step_seconds.append(seconds)
        work = seconds
        if len(self._step_seconds) > _USUAL // 8 and seconds > 10 * usual:
            work = usual
        idle = max(gap, seconds) - work
        return idle if idle > _NOTICED_S + 3 * work else 0.0

    def newest_time(self) -> float | None:
        """The time of the newest event."""
        times = []
        for event in self.newest.values():
            time = number_or_none(event.get("t"))
            if time is not None:
                times.append(time)
        return max(times, default=None)


def _state(done: bool, locked: bool, ended: Mapping[str, Any]) -> str:
    """A stage's state in a word; `ended` is the event of its end, where that is the last one."""
    if done:
        return "done"
    if locked:
        return "training"
    if not ended:
        return "died"
    # what a person stopped has its last event from the same place as what went wrong
    return "stopped" if ended.get("reason") == "stopped" else "failed"


def _headline(
    newest: Mapping[str, Mapping[str, Any]], record: Mapping[str, Any]
) -> dict[str, float]:
    """The numbers of the newest events that say how good the stage's model is. A figure of the
    weights that a finished stage gives is in its record, and replaces the newest one.
    """
    numbers: dict[str, float] = {}
    for kind in ("step", "eval", "done"):
        figures = _numbers_of(newest.get(kind, {}), _HEADLINE)
        if kind == "eval" and "loss" in figures:
            figures["heldout_loss"] = figures.pop("loss")
        numbers.update(figures)
    outcome = record.get("outcome")
    if isinstance(outcome, Mapping) and isinstance(outcome.get("value"), (int, float)):
        name = str(outcome.get("figure"))
        if name == "loss":
            name = "heldout_loss"
        if name in _HEADLINE:
            numbers[name] = outcome["value"]
    return numbers


def _numbers_of(record: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Those of the values under `names` that are numbers."""
    return {name: record[name] for name in names if number_or_none(record.get(name)) is not None}


def runs_text(runs: Sequence[Mapping[str, Any]]) -> str:
    """`list_runs` as lines for people: a run, and under it a line for each stage."""
    lines = []
    for run in runs:
        if run["stages"]:
            lines.append(run["path"] + _size(run))
        elif run.get("wrong"):
            lines.append(f"{run['path']}  (cannot be read: {run['wrong']})")
        elif run.get("ratings"):
            lines.append(f"{run['path']}  (pairs to rate){_size(run)}")
        else:
            lines.append(f"{run['path']}  (nothing begun){_size(run)}")
        if told := _labels(run):
            lines.append(f"  {told}")
        lines += map(_stage_line, run["stages"])
    return "\n".join(lines)


def _labels(run: Mapping[str, Any]) -> str:
    """Its tags and its note in one line, or why they cannot be read."""
    note = " ".join(str(run.get("note", "")).split())
    tags = [f"#{tag}" for tag in run.get("tags", ())]
    return " ".join([*tags, *filter(None, [note, run.get("labels_trouble", "")])])


def _size(run: Mapping[str, Any]) -> str:
    """What it takes of the disk, where that was asked for and could be read."""
    if run.get("bytes") is None:
        return ""
    return f"  {size(run['bytes'])}"


def _stage_line(stage: Mapping[str, Any]) -> str:
    step = ""
    if stage["step"] is not None:
        step = f"step {stage['step']}"
        if stage["steps"]:
            step += f"/{stage['steps']}"
    if stage.get("waiting"):
        state = "paused"
    else:
        state = stage["state"]
    line = f"  {stage['stage']:<12}{state:<10}{step:<18}{numbers_line(stage['numbers'])}".rstrip()
    if stage.get("waiting"):
        line += f"\n  {'':<12}{stage['waiting']}: it goes on once there is room"
    return line


def find_run(name: str, folder: str | Path) -> RunFolder:
    """The run of this name in `folder`, or at this path. Raises UserError naming the nearest."""
    for path in (Path(folder) / name, Path(name)):
        if path.is_dir():
            return RunFolder(by_newest_name(path))
    known = [run["run"] for run in list_runs(folder)]
    if known:
        hint = nearest(name, known)
    else:
        hint = f"{folder} has no runs"
    raise UserError("no such run", where=name, hint=hint)
