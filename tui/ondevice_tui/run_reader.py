"""The folder of runs, read for a screen that asks every second: what has not changed is not read
again, and a run in which nothing goes on is looked at every ten seconds only."""

from __future__ import annotations

import os
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ondevice.common.clock import ticks
from ondevice.runs.contents import Votes, planned_seconds, recipe_stages, votes_of_people
from ondevice.runs.folder import RunFolder, StageFolder
from ondevice.runs.listing import is_run, run_paths, run_record, space, stage_state, unreadable
from ondevice.runs.logs import unstarted_stages
from ondevice_tui.trouble import write_trouble

T = TypeVar("T")
SPACE_S = 60.0  # between two looks at the space that a run takes
SPACE_LOOK_S = 0.05  # that one look at the runs may take for that, beyond the first run
FIRST_S = 0.5  # that one look may take for runs that were never read: they come bit by bit
REST_S = 10.0  # between two looks at a run that is not chosen and in which nothing trains
WHOLE_S = 60.0  # between two whole looks at one of whose files none has changed
IN_STAGE = ("lock", "events.jsonl", "done.json")  # what a look at a stage goes by


class Look(NamedTuple):
    """One look at a run: when (in ticks), the folder's stamp before it, and what was found; when
    all of it was last read, and what its files were like before that."""

    at: float
    stamp: Any
    run: dict[str, Any] | None
    whole: float
    files: Any


class RunsReader:
    """`listing.list_runs` for a screen that asks every second: a stage that has not changed is not
    read again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[tuple[str, Path], tuple[Any, Any]] = {}
        self._wrong: dict[Path, str] = {}  # what was told of runs that cannot be read
        self._looks: dict[Path, Look] = {}  # of each run the newest
        self._space: dict[Path, tuple[float, int | None]] = {}  # (when in ticks, bytes)
        self.unread = 0  # runs that are there and that no look has come to yet

    def read(self, chosen: Path | None = None) -> list[dict[str, Any]]:
        """[{"run", "path", "began", "recipe": [stages of its recipe], "planned": {stage:
        seconds}, "votes": people's, "pending":
        pairs on which nobody has voted, "ratings": whether it has any, "ratings_trouble": why they
        cannot be read, "unstarted": {stage: the last line of a process that ended, or was lost,
        before it had begun it}, "bytes": that it takes of the disk, None: not read yet, or not
        readable, "stages": [state …]}], the newest first.

        The chosen run, those in which something trains and those whose folder has changed are
        looked at each time, of the others some, so that each has its turn within REST_S. What was
        never read comes in several looks, the newest first; `unread` counts what is left. A run that
        cannot be read has no stages, says why under "wrong", and hides no other. Raises UserError
        where the folder of runs itself cannot be read.
        """
        paths = run_paths(self.folder)
        there = set(paths)
        self._looks = {path: look for path, look in self._looks.items() if path in there}
        began = ticks()
        fresh = 0
        for path in self._due(paths, chosen):
            if path not in self._looks:
                if fresh and ticks() - began > FIRST_S:
                    break  # they come last
                fresh += 1
            # before the look: what changes meanwhile is looked at again
            now, stamp, files = ticks(), _stamp(path), _files(path)
            look = self._looks.get(path)
            if look is not None and path != chosen and _is_as_it_was(look, files, now):
                self._looks[path] = look._replace(at=now, stamp=stamp)
                continue
            run = self._same(path, self._run(path))
            self._looks[path] = Look(ticks(), stamp, run, now, files)
        self.unread = len(paths) - len(self._looks)
        if not self.unread:
            self._look_at_space()
        found = [look.run for look in self._looks.values() if look.run is not None]
        return sorted(found, key=itemgetter("began", "run"), reverse=True)

    def _same(self, path: Path, run: dict[str, Any] | None) -> dict[str, Any] | None:
        """The record of the look before, where nothing has changed: who has drawn it need not draw
        it again."""
        before = self._looks.get(path)
        if run is None or before is None or before.run is None:
            return run
        known = {**run, "bytes": before.run.get("bytes")}
        return before.run if known == before.run else known

    def _look_at_space(self) -> None:
        """Of the runs whose space was not looked at for long, or never, as many as there is time
        for."""
        self._space = {path: known for path, known in self._space.items() if path in self._looks}
        began = ticks()
        never = -SPACE_S
        oldest_first = sorted(self._looks, key=lambda path: self._space.get(path, (never,))[0])
        for path in oldest_first:
            if path in self._space and began - self._space[path][0] < SPACE_S:
                break
            if self._looks[path].run is not None:
                self._space[path] = (ticks(), space(path))
            if ticks() - began > SPACE_LOOK_S:
                break
        for path, look in self._looks.items():
            known = self._space.get(path, (never, None))[1]
            if look.run is not None and look.run.get("bytes") != known:
                # another record: who has drawn the one before sees that
                self._looks[path] = look._replace(run={**look.run, "bytes": known})

    def _due(self, paths: list[Path], chosen: Path | None) -> list[Path]:
        """The runs to be looked at now: those in which something may have changed, those that have
        rested for REST_S, and a few of the others ahead of time, so that they do not all come in
        one second."""
        now = ticks()
        rested: dict[Path, float] = {}  # seconds since the look, of those that rest
        for path in paths:
            if path != chosen and self._rests(path):
                rested[path] = now - self._looks[path].at
        longest_first = sorted(rested, key=rested.__getitem__, reverse=True)
        ahead = set(longest_first[: len(rested) // int(REST_S) + 1])
        due = []
        for path in paths:
            seconds = rested.get(path, REST_S)
            if seconds >= REST_S or (path in ahead and seconds >= REST_S / 2):
                due.append(path)
        never = [path for path in due if path not in self._looks]
        if len(never) > 1:
            never.sort(key=_newest_change, reverse=True)
            due = [path for path in due if path in self._looks] + never
        return due

    def _rests(self, path: Path) -> bool:
        """Whether nothing went on in this run when it was looked at, and nothing was added to its
        folder since.
        """
        look = self._looks.get(path)
        if look is None or look.stamp != _stamp(path):
            return False
        if look.run is None:
            return True
        return all(stage["state"] != "training" for stage in look.run["stages"])

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
                **run_record(run, stages),
                "recipe": recipe,
                "planned": self._planned(run),
                "votes": votes.given,
                "pending": votes.pending,
                "ratings_trouble": votes.trouble,
                "unstarted": unstarted,
                "bytes": None,
            }
        except Exception as problem:  # whatever it is, the other runs are read, and it is told
            wrong = unreadable(path, problem)
            if self._wrong.get(path) != wrong["wrong"]:  # once, not every second
                self._wrong[path] = wrong["wrong"]
                write_trouble(f"reading the run {path}", problem)
            return {
                **wrong,
                "recipe": [],
                "planned": {},
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
            known = (stamp, make())
            self._known[what, path] = known
        found: T = known[1]
        return found

    def _state(self, stage: StageFolder) -> dict[str, Any]:
        # a process that waits for room says so in its lock
        holder = (stage.holder() is not None, _stamp(stage.lock))
        stamp = (_stamp(stage.events), _stamp(stage.done), holder)
        return self._once("stage", stage.path, stamp, lambda: stage_state(stage))

    def _recipe(self, run: RunFolder) -> list[str]:
        # parsing YAML takes longer than all the rest
        return self._once("recipe", run.path, _stamp(run.recipe), lambda: recipe_stages(run))

    def _planned(self, run: RunFolder) -> dict[str, float]:
        return self._once("plan", run.path, _stamp(run.plan), lambda: planned_seconds(run))

    def _votes(self, run: Path) -> Votes:
        # here, in a thread: the first screen waits for no database
        from ondevice.preferences.sqlite_store import FILE

        stamp = (_stamp(run / FILE), _stamp(run / f"{FILE}-wal"))
        if stamp[0]:
            return self._once("votes", run, stamp, lambda: votes_of_people(run))
        return Votes(0, 0, "")


def _files(path: Path) -> Any:
    """What a look at a run goes by, of all its files: a look itself takes ten times as long. None
    where they cannot be read."""
    found: list[Any] = []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                found.append((entry.name, _stamp(entry)))
                if entry.is_dir():
                    found += [_stamp(f"{entry.path}/{name}") for name in IN_STAGE]
    except OSError:
        return None
    return found


def _is_as_it_was(look: Look, files: Any, now: float) -> bool:
    """Whether a look at this run would find what the one before has found."""
    if files is None or files != look.files or now - look.whole >= WHOLE_S:
        return False
    run = look.run
    if run is None or run.get("wrong") or run["unstarted"] or run["ratings_trouble"]:
        return False  # the clock, or another program, may have changed that
    return all(stage["state"] != "training" for stage in run["stages"])


def _newest_change(path: Path) -> float:
    """When something was last added to a run's folder or to one of its stages'."""
    try:
        newest = path.stat().st_mtime
        for one in os.scandir(path):
            newest = max(newest, one.stat(follow_symlinks=False).st_mtime)
    except OSError:
        return 0.0
    return newest


def _stamp(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
