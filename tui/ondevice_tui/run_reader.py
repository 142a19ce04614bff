"""The folder of runs, read for a screen that asks every second: what has not changed is not read
again, and a run in which nothing goes on is looked at every ten seconds only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ondevice.common.clock import clock, ticks
from ondevice.common.errors import UserError
from ondevice.config.load import read_yaml
from ondevice.config.recipe import STAGES
from ondevice.runs.folder import RunFolder, StageFolder
from ondevice.runs.listing import began_at, has_ratings, is_run, run_paths, stage_state, unreadable
from ondevice_tui.event_reader import log_tail
from ondevice_tui.trouble import write_trouble

T = TypeVar("T")
LOOK_PATIENCE_S = 0.2  # how long a look at the votes waits for another program that holds them
REST_S = 10.0  # between two looks at a run that is not chosen and in which nothing trains
SILENT_S = 60.0  # a process that has begun no stage and said nothing for so long is taken for dead


class Votes(NamedTuple):
    """What a run's ratings hold. `given`: votes of people; `pending`: pairs on which no person has
    voted; repeats count in neither. `trouble`: why they cannot be read."""

    given: int
    pending: int
    trouble: str


class RunsReader:
    """`listing.list_runs` for a screen that asks every second: a stage that has not changed is not
    read again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[tuple[str, Path], tuple[Any, Any]] = {}
        self._wrong: dict[Path, str] = {}  # what was told of runs that cannot be read
        self._looked: dict[
            Path, tuple[float, Any, dict[str, Any] | None]
        ] = {}  # run → (when, stamp, what was found)

    def read(self, chosen: Path | None = None) -> list[dict[str, Any]]:
        """[{"run", "path", "began", "recipe": [stages of its recipe], "votes": people's, "pending":
        pairs on which nobody has voted, "ratings": whether it has any, "ratings_trouble": why they
        cannot be read, "unstarted": {stage: the last line of a process that ended, or was lost,
        before it had begun it}, "stages": [state …]}], the newest first.

        The chosen run, those in which something trains and those whose folder has changed are
        looked at each time, of the others some, so that each has its turn within REST_S. A run that
        cannot be read has no stages, says why under "wrong", and hides no other. Raises UserError
        where the folder of runs itself cannot be read.
        """
        paths = run_paths(self.folder)
        there = set(paths)
        self._looked = {path: known for path, known in self._looked.items() if path in there}
        resting = {
            path: ticks() - self._looked[path][0]
            for path in paths
            if path != chosen and self._rests(path)
        }
        few = sorted(resting, key=resting.__getitem__, reverse=True)[
            : len(resting) // int(REST_S) + 1
        ]
        for path in paths:
            rested = resting.get(path, REST_S)
            if rested >= REST_S or (
                path in few and rested >= REST_S / 2
            ):  # some ahead: not all in one second
                stamp = _stamp(path)  # before the look: what changes meanwhile is looked at again
                self._looked[path] = ticks(), stamp, self._run(path)
        found = [run for path in paths if (run := self._looked[path][2]) is not None]
        return sorted(found, key=lambda run: (run["began"], run["run"]), reverse=True)

    def _rests(self, path: Path) -> bool:
        """Whether nothing went on in this run when it was looked at, and nothing was added to its
        folder since.
        """
        known = self._looked.get(path)
        if known is None or known[1] != _stamp(path):
            return False
        return known[2] is None or all(stage["state"] != "training" for stage in known[2]["stages"])

    def _run(self, path: Path) -> dict[str, Any] | None:
        try:
            if not path.is_dir():
                return None
            run = RunFolder(path)
            stages = [self._state(stage) for stage in run.stages()]
            recipe = self._recipe(run)
            unstarted = unstarted_stages(run, [stage["stage"] for stage in stages], recipe)
            if not stages and not unstarted and not is_run(run):
                return None
            votes = self._votes(path)
            read = {
                "run": path.name,
                "path": str(path),
                "began": began_at(run, stages),
                "stages": stages,
                "recipe": recipe,
                "ratings": has_ratings(run),
                "votes": votes.given,
                "pending": votes.pending,
                "ratings_trouble": votes.trouble,
                "unstarted": unstarted,
            }
        except Exception as problem:  # whatever it is, the other runs are read, and it is told
            wrong = unreadable(path, problem)
            if self._wrong.get(path) != wrong["wrong"]:  # once, not every second
                self._wrong[path] = wrong["wrong"]
                write_trouble(f"reading the run {path}", problem)
            return {
                **wrong,
                "recipe": [],
                "votes": 0,
                "pending": 0,
                "ratings_trouble": "",
                "unstarted": {},
            }
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

    def _votes(self, run: Path) -> Votes:
        # here, in a thread: the first screen waits for no database
        from ondevice.preferences.sqlite_store import FILE

        stamp = (_stamp(run / FILE), _stamp(run / f"{FILE}-wal"))
        if stamp[0]:
            return self._once("votes", run, stamp, lambda: votes_of_people(run))
        return Votes(0, 0, "")


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def votes_of_people(run: Path) -> Votes:
    """Raises nothing: what cannot be read is looked at again once the database has changed."""
    from ondevice.preferences.database import Ratings

    try:
        with Ratings.open(run, patience_s=LOOK_PATIENCE_S) as ratings:
            # "" votes on nothing
            pairs = {waiting.item for waiting in ratings.waiting("") if waiting.kind != "repeat"}
            voted = [
                vote.item
                for vote in ratings.live_votes(simulated=False)
                if vote.outcome is not None and vote.item in pairs
            ]
            return Votes(len(voted), len(pairs.difference(voted)), "")
    except UserError as problem:
        return Votes(0, 0, problem.message)


def unstarted_stages(run: RunFolder, begun: list[str], recipe: list[str]) -> dict[str, str]:
    """Stages whose process has left a log and nothing else, with its last line. A recipe's log
    counts for its first stage."""
    first = next((name for name in recipe if name in STAGES), "init")
    found: dict[str, str] = {}
    for stage, log in [
        *((name, run.path / f"{name}.log") for name in STAGES),
        (first, run.path / "run.log"),
    ]:
        stamp = _stamp(log)
        if stamp is None or stage in begun or (log.name == "run.log" and begun):
            continue
        if stamp[0]:
            found[stage] = log_tail(log, 1).strip() or "it said nothing"
        elif clock() - stamp[1] / 1e9 > SILENT_S:
            found[stage] = "it said nothing"
    return found


def recipe_stages(run: RunFolder) -> list[str]:
    """The stages that the run's recipe names; none where it has no recipe or a damaged one."""
    if not run.recipe.is_file():
        return []
    try:
        stages = read_yaml(run.recipe).get("stages")
    except UserError:
        return []
    if isinstance(stages, Mapping):
        return [str(name) for name in stages]
    return []
