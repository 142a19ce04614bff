"""What stands in a run and what is sensible next: pure functions over `listing.stage_state`, for the home screen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ondevice.config.load import read_yaml
from ondevice.config.recipe import STAGES
from ondevice.errors import UserError
from ondevice.listing import began_at, has_ratings, is_run, run_paths, stage_state, unreadable
from ondevice.progress import duration, number, numbers_line
from ondevice.runfolder import RunFolder, StageFolder, clock
from ondevice_tui.trouble import write_trouble

MARKS = {"done": "✓", "training": "▶", "stopped": "‖", "failed": "✗", "died": "✗", "waits": "·", "skipped": "·",
         "next": "▸", "wrong": "✗"}
STYLES = {"done": "$success", "training": "$accent", "stopped": "$warning", "failed": "$error", "died": "$error",
          "waits": "$muted", "skipped": "$muted", "next": "$text", "wrong": "$error"}
OPEN = ("next", "skipped", "waits")  # states of what has not been begun
T = TypeVar("T")
LOOK_PATIENCE_S = 0.2  # how long a look at the votes waits for another program that holds them
STALE_S = 10.0  # without an event for so long, a person wants to be told


@dataclass(frozen=True)
class Row:
    """A stage of the road. `enter` is what Enter does with it: watch, start or "" (it cannot be begun yet)."""

    stage: str
    state: str
    share: float | None
    told: str
    seconds: float | None
    last: float | None
    enter: str
    why: str


class RunsReader:
    """`listing.list_runs` for a screen that asks every second: a stage that has not changed is not read again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[tuple[str, Path], tuple[Any, Any]] = {}
        self._wrong: dict[Path, str] = {}  # what was told of runs that cannot be read

    def read(self) -> list[dict[str, Any]]:
        """[{"run", "path", "began", "recipe": [stages of its recipe], "votes": a person's, "ratings": whether it has
        any, "ratings_trouble": why they cannot be read, "stages": [state …]}], the newest first.

        A run that cannot be read has no stages, says why under "wrong", and hides no other. Raises UserError where
        the folder of runs itself cannot be read.
        """
        found = [run for path in run_paths(self.folder) if (run := self._run(path)) is not None]
        return sorted(found, key=lambda run: (run["began"], run["run"]), reverse=True)

    def _run(self, path: Path) -> dict[str, Any] | None:
        try:
            if not path.is_dir():
                return None
            run = RunFolder(path)
            stages = [self._state(stage) for stage in run.stages()]
            if not stages and not is_run(run):
                return None
            votes, trouble = self._votes(path)
            read = {"run": path.name, "path": str(path), "began": began_at(run, stages), "stages": stages,
                    "recipe": self._recipe(run), "ratings": has_ratings(run), "votes": votes,
                    "ratings_trouble": trouble}
        except Exception as problem:  # whatever it is, the other runs are read, and it is told
            wrong = unreadable(path, problem)
            if self._wrong.get(path) != wrong["wrong"]:  # once, not every second
                self._wrong[path] = wrong["wrong"]
                write_trouble(f"reading the run {path}", problem)
            return {**wrong, "recipe": [], "votes": 0, "ratings_trouble": ""}
        self._wrong.pop(path, None)
        return read

    def _once(self, what: str, path: Path, stamp: Any, make: Callable[[], T]) -> T:
        """What `make` gave when the stamp last changed."""
        known = self._known.get((what, path))
        if known is None or known[0] != stamp:
            known = self._known[what, path] = stamp, make()
        found: T = known[1]
        return found

    def _state(self, stage: StageFolder) -> dict[str, Any]:
        stamp = (_stamp(stage.events), _stamp(stage.done), stage.holder() is not None)
        return self._once("stage", stage.path, stamp, lambda: stage_state(stage))

    def _recipe(self, run: RunFolder) -> list[str]:
        # parsing YAML takes longer than all the rest
        return self._once("recipe", run.path, _stamp(run.recipe), lambda: recipe_stages(run))

    def _votes(self, run: Path) -> tuple[int, str]:
        from ondevice.ratings_store import FILE  # here, in a thread: the first screen waits for no database

        stamp = (_stamp(run / FILE), _stamp(run / f"{FILE}-wal"))
        return self._once("votes", run, stamp, lambda: votes_of_people(run)) if stamp[0] else (0, "")


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def votes_of_people(run: Path) -> tuple[int, str]:
    """(how many there are, why they cannot be read): this is looked at again once the database has changed."""
    from ondevice.ratings import Ratings

    try:
        with Ratings.open(run, patience_s=LOOK_PATIENCE_S) as ratings:
            return sum(vote.outcome is not None for vote in ratings.live_votes(simulated=False)), ""
    except UserError as problem:
        return 0, problem.message


def recipe_stages(run: RunFolder) -> list[str]:
    """The stages that the run's recipe names; none where it has no recipe or a damaged one."""
    if not run.recipe.is_file():
        return []
    try:
        stages = read_yaml(run.recipe).get("stages")
    except UserError:
        return []
    return [str(name) for name in stages] if isinstance(stages, Mapping) else []


def rows(run: Mapping[str, Any] | None) -> list[Row]:
    """Every stage there is, in the order of the road; what a run has beside them comes last. A classifier is a side
    road, of encoders for the most part: it is shown where a run has one or its recipe makes one."""
    states = {stage["stage"]: stage for stage in run["stages"]} if run else {}
    busy = next((name for name, stage in states.items() if stage["state"] == "training"), "")
    recipe, order = list(run["recipe"]) if run else [], list(STAGES)
    names = [name for name in STAGES if gives(name) != "classifier" or name in states or name in recipe]
    names += [name for name in states if name not in STAGES]
    waits = bool(run and run.get("ratings")) and not states  # pairs came from a file: only a person is wanted
    made = [_to_rate(name) if waits and name in order[:order.index("rate") + 1] else _row(name, states, busy, recipe)
            for name in names]
    votes, trouble = (run.get("votes"), run.get("ratings_trouble")) if run else (0, "")
    told = f"its ratings: {trouble}" if trouble else f"{votes} rated by a person" if votes else ""
    return [replace(row, told=told) if told and row.enter == "rate" and row.state in OPEN else row for row in made]


def next_row(found: Sequence[Row]) -> int:
    """The row of the next sensible action: what trains, what stopped short, else the first that can be begun."""
    for wanted in (("training",), ("failed", "died", "stopped"), ("next",)):
        for i, row in enumerate(found):
            if row.state in wanted:
                return i
    return max((i for i, row in enumerate(found) if row.state == "done"), default=0)


def _row(name: str, states: Mapping[str, Mapping[str, Any]], busy: str, recipe: Sequence[str]) -> Row:
    stage = states.get(name)
    if stage is not None:
        by_person = not startable(name) and stage["state"] in ("stopped", "failed", "died")
        return Row(name, stage["state"], _share(stage), _told(stage), _seconds(stage), stage["last"],
                   "rate" if by_person else "watch", stage["message"])
    before = _before(name, states)
    enter = "start" if startable(name) else "rate"
    if busy:
        queued = name in recipe
        return Row(name, "waits", None, "comes by itself" if queued else f"waits for {busy}", None, None,
                   "" if queued else enter, "the run's recipe begins it" if queued else f"{busy} trains now")
    if _passed(name, states):
        told = f"left out; can start from {before}" if before and enter == "start" else "left out by this run"
        return Row(name, "skipped", None, told, None, None, enter, "")
    if name == "init" or before:
        told = f"can start from {before}" if before else "a tokenizer and random weights"
        if enter == "rate":
            told = "a person's choice among the sampled answers"
        return Row(name, "next", None, told, None, None, enter, "")
    needs = "needs a model: begin with init, or start it from any folder"
    return Row(name, "waits", None, "needs a model", None, None, "start", needs)


def _to_rate(name: str) -> Row:
    """The road up to a person's choice, in a run that has pairs and nothing else."""
    if name == "rate":
        return Row(name, "next", None, "a person's choice among the pairs that were imported", None, None, "rate", "")
    return Row(name, "skipped", None, "left out by this run", None, None, "start" if startable(name) else "rate", "")


def startable(name: str) -> bool:
    """Whether a command of this name runs the stage (`ondevice rate` is for people, the stage `rate` is a recipe's)."""
    from ondevice.cli import VERBS

    return name in VERBS and name in STAGES and VERBS[name].config.endswith(f":{STAGES[name].__name__}")


def gives(name: str) -> str:
    """What a stage leaves for the next ones: policy (a model that writes), reward or ratings."""
    return str(getattr(STAGES.get(name), "gives", "policy"))


def _before(name: str, states: Mapping[str, Mapping[str, Any]]) -> str:
    """The last finished stage before this one on the road that left a model which writes."""
    order = list(STAGES)
    earlier = order[:order.index(name)] if name in order else order
    done = (s for s in reversed(earlier) if states.get(s, {}).get("state") == "done" and gives(s) == "policy")
    return next(done, "")


def _passed(name: str, states: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the run has gone by this stage: a later one has been begun, or the one in whose place it would stand."""
    order = list(STAGES)
    if name == "dpo" and "ppo" in states:
        return True
    return name in order and any(later in states for later in order[order.index(name) + 1:])


def _share(stage: Mapping[str, Any]) -> float | None:
    step, total = stage["step"], stage["steps"]
    return step / total if isinstance(step, int) and isinstance(total, int) and total > 0 else None


def _seconds(stage: Mapping[str, Any]) -> float | None:
    if stage["state"] == "done" and isinstance(stage["seconds"], (int, float)):
        return float(stage["seconds"])
    return stage["last"] - stage["began"] if stage["last"] is not None else None


def _told(stage: Mapping[str, Any]) -> str:
    """The headline: numbers where it has some, else what went wrong."""
    if stage["message"] and (stage["state"] == "failed" or (stage["state"] == "stopped" and not stage["numbers"])):
        return str(stage["message"])
    if stage["state"] == "died":
        return "process gone" + (f" after step {stage['step']}" if stage["step"] is not None else "")
    numbers = stage["numbers"]
    order = ("reward", "accuracy", "heldout_loss", "loss")
    chosen = {name.replace("heldout_loss", "held-out"): numbers[name] for name in order if name in numbers}
    return numbers_line(dict(list((chosen or _marks(stage)).items())[:2]))


def _marks(stage: Mapping[str, Any]) -> dict[str, float]:
    """What a stage that does not train has come to."""
    words = {"queued": "pairs", "votes": "votes", "bits_per_byte": "bits/byte", "exact_match": "exact"}
    marks = stage.get("marks") or {}
    return {word: marks[name] for name, word in words.items() if name in marks}


def left(stage: Mapping[str, Any]) -> str:
    """Time left by the pace so far: "9:12 left"."""
    share, seconds = _share(stage), _seconds(stage)
    if not share or not seconds or share >= 1:
        return ""
    return f"{duration(seconds * (1 - share) / share)} left"


def ago(t: float | None) -> str:
    """How long ago, in two or three words."""
    if t is None:
        return ""
    seconds = max(clock() - t, 0)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{int(seconds // size)}{unit} ago"
    return f"{int(seconds)}s ago"


def steps_text(stage: Mapping[str, Any]) -> str:
    step, total = stage.get("step"), stage.get("steps")
    if step is None:
        return ""
    return f"step {number(step)}" + (f"/{number(total)}" if total else "")
