"""Runs that are moved away, and come back: `ondevice runs rm`, `restore` and `empty-trash`.

    runs/.trash/NAME-20261130-121500/     the run, as it was
    runs/.trash-NAME-20261130-121500/     likewise, where a full disk had no room for the folder

Moving is one rename on one disk: a kill leaves the run in the one place or the other, whole. A run
that is a link is moved as it is, and leads to the same place once it is back. A run that somebody
trains, rates or pushes is refused, and so is one that another run needs.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shlex
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from ondevice.common import atomic, disk
from ondevice.common.clock import clock
from ondevice.common.errors import UserError, nearest
from ondevice.common.file_lock import try_lock
from ondevice.common.progress import size
from ondevice.common.sanitize import to_stderr
from ondevice.config.recipe import STAGES
from ondevice.runs import labels, listing
from ondevice.runs.dependents import needed_by
from ondevice.runs.folder import RunFolder
from ondevice.runs.order import recipe_stages

TRASH = ".trash"
_ENTRY = re.compile(r"(.+)-(\d{8}-\d{6})(-\d+)?", re.DOTALL)
_BESIDE = f"{TRASH}-"
NO_ROOM = "make room first: ondevice runs empty-trash, or delete a run by hand (rm -r)"
GONE = "ondevice runs tells what is there, runs restore RUN brings back what is in the trash"
_RATES, _PUSHES = ".ratings.db.lock", ".push.lock"


def remove_runs(
    names: Sequence[str], folder: str | Path = "runs", *, anyway: bool = False
) -> list[dict[str, Any]]:
    """Moves runs to the trash beside them: [{"run", "path", "trash", "bytes"}]. All are looked at
    before the first is moved. Raises UserError for one that is not there or is at work, and,
    without `anyway`, for one that another run needs."""
    runs: list[Path] = []
    for name in names:
        found = _as_spelt(listing.find_run(name, folder).path.absolute())
        if found not in runs:
            runs.append(found)
    for run in runs:
        if not is_run(run):
            raise UserError(
                "is not a run (no stage, recipe or ratings of ours), and stays",
                where=str(run),
                hint="delete it by hand where you mean it",
            )
    if not anyway:
        _refuse_needed(runs)
    moved = []
    for run in runs:
        taken = listing.space(run)
        with nobody_at_work(run):
            place = _to_trash(run)
        moved.append({"run": run.name, "path": str(run), "trash": str(place), "bytes": taken})
    return moved


def restore_run(name: str, folder: str | Path = "runs") -> Path:
    """Brings a run back from the trash to where it was, and returns its folder: by the run's name
    the one that was moved last, or by its name in the trash; or by the path of either. Raises
    UserError where there is none, or another run stands in its place."""
    one = _in_trash_by(name, Path(folder))
    target = Path(one["path"]).parent / str(one["run"])
    if target.parent.name == TRASH:
        target = target.parent.parent / target.name
    if os.path.lexists(target):
        first, then = (as_word(str(one[key])) for key in ("run", "entry"))
        raise UserError(
            "stands there already",
            where=str(target),
            hint=f"move that one first: ondevice runs rm {first}, then restore {then}",
        )
    _move(Path(one["path"]), target)
    return target


def as_word(name: str) -> str:
    """A run's name as it is typed in a shell after `runs restore` or `runs rm`."""
    return shlex.quote(f"./{name}" if name.startswith("-") else name)


def _in_trash_by(name: str, folder: Path) -> dict[str, Any]:
    """The entry of the trash that is meant by a name in `folder`, or by a path."""
    for path in (folder / name, Path(name)):
        if path.parent.name == TRASH:
            place = path.parent.parent
        else:
            place = path.parent
        chosen = [one for one in entries(place) if path.name in (one["entry"], one["run"])]
        if chosen:
            return chosen[-1]
    known = [one["run"] for one in entries(folder)]
    hint = nearest(name, known) if known else f"{folder / TRASH} has none"
    raise UserError("is not in the trash", where=name, hint=hint)


def entries(folder: str | Path = "runs") -> list[dict[str, Any]]:
    """What lies in the trash of a folder of runs, the first that was moved first: [{"entry", "run",
    "path", "bytes"}]. Raises UserError where it cannot be read."""
    found = []
    for path in _in_trash(Path(folder)):
        match = _ENTRY.fullmatch(path.name.removeprefix(_BESIDE))
        # of a link nothing but itself is deleted, and what it leads to may be gone by now
        if match and (path.is_symlink() or is_run(path)):
            found.append((match[2], int((match[3] or "-0")[1:]), match[1], path))
    return [
        {"entry": path.name, "run": run, "path": str(path), "bytes": listing.space(path)}
        for _, _, run, path in sorted(found)
    ]


def empty_trash(
    folder: str | Path = "runs", *, agreed: Callable[[str], bool] | None = None
) -> dict[str, Any]:
    """Deletes what lies in the trash: {"removed": [names], "bytes"}. `agreed` is asked, with what
    would be deleted, before anything is; None: nobody is. What no run was moved to is left, and
    told of; what another command brings back meanwhile is not counted. Raises UserError where the
    answer is no."""
    found = entries(folder)
    if found and agreed is not None:
        total = sum(one["bytes"] or 0 for one in found)
        names = ", ".join(one["entry"] for one in found)
        if not agreed(f"{len(found)} runs, {size(total)}: {names}"):
            raise UserError("nothing was deleted", where=str(Path(folder) / TRASH))
    removed, freed = [], 0
    for one in found:
        path = Path(one["path"])
        with nullcontext() if path.is_symlink() else nobody_at_work(path):
            if not atomic.remove(path):
                continue
        removed.append(one["entry"])
        freed += one["bytes"] or 0
    _drop_lost_names(Path(folder))
    left = [path.name for path in _in_trash(Path(folder))]
    if left:
        to_stderr(f"{Path(folder) / TRASH}: {', '.join(left)} was not put there by rm, and stays")
    return {"removed": removed, "bytes": freed}


def _drop_lost_names(folder: Path) -> None:
    """Removes the older names of runs that are deleted: they lead nowhere, and keep a new run from
    having such a name. Those of a run that still lies in the trash stay."""
    names = listing.older_names(folder)
    kept = {str(one["run"]) for one in entries(folder)}
    for link in names:
        last = listing.by_newest_name(link)
        if not os.path.lexists(last) and last.name not in kept:
            link.unlink(missing_ok=True)


def _in_trash(folder: Path) -> list[Path]:
    """What lies in the trash of a folder of runs, also what is none of ours."""
    beside = [path for path in listing.run_paths(folder) if path.name.startswith(_BESIDE)]
    return listing.run_paths(folder / TRASH) + beside


def _as_spelt(path: Path) -> Path:
    """The path by the name that its folder has for it, where the disk does not tell small letters
    from capitals, or two ways to write an accent."""

    def plain(name: str) -> str:
        return unicodedata.normalize("NFC", name).casefold()

    names = os.listdir(path.parent)
    if path.name in names:
        return path
    return next((path.with_name(n) for n in names if plain(n) == plain(path.name)), path)


def is_run(path: Path) -> bool:
    """Whether a folder is proved to be a run: by a stage, a recipe of ours, ratings; or where it
    holds the logs of stages that never began, and nothing else."""
    if not path.is_dir():
        return False
    run = RunFolder(path)
    if any(stage.begun for stage in run.stages()) or listing.has_ratings(run):
        return True
    if set(recipe_stages(run.recipe)) & set(STAGES):
        return True
    held = set(os.listdir(path)) - {labels.FILE}
    return bool(held) and held <= {f"{name}.log" for name in ("run", *STAGES)}


def _refuse_needed(runs: Sequence[Path]) -> None:
    for run in runs:
        for other in listing.run_paths(run.parent):
            if other.absolute() in runs or other.name.startswith(".") or not other.is_dir():
                continue
            if why := needed_by(RunFolder(other), run):
                raise UserError(
                    f"{other.name} needs it: {why}",
                    where=str(run),
                    hint="--anyway moves it all the same; restore brings it back",
                )


@contextmanager
def nobody_at_work(run: Path) -> Iterator[None]:
    """Inside, nobody begins to train, rate or push here. Raises UserError where somebody does."""
    with ExitStack() as held:
        for stage in RunFolder(run).stages():
            _hold(held, stage.lock, f"{stage.name} is being trained", "stop it first")
        _hold(held, run / _RATES, "it is being rated", "close what rates it")
        _hold(held, run / _PUSHES, "it is being pushed", "wait for that")
        yield


def _hold(held: ExitStack, lock: Path, said: str, hint: str) -> None:
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return  # there is none: nobody can hold it
    held.callback(os.close, descriptor)
    try:
        free = try_lock(descriptor)
    except OSError:
        return  # a file system without locks
    if not free:
        raise UserError(said, where=str(lock.parent), hint=hint)
    held.callback(fcntl.flock, descriptor, fcntl.LOCK_UN)


def _to_trash(run: Path) -> Path:
    """Moves a run to the trash, and returns where it is. On a full disk there may be no room for
    the trash's folder, or for another name in it: then beside it, which takes a name's few bytes of
    a folder that has just lost one."""
    moment = time.strftime("%Y%m%d-%H%M%S", time.localtime(clock()))
    name = f"{run.name}-{moment}"
    place = _free(run.parent / TRASH / name)
    try:
        _move(run, place)
    except disk.DiskFull:
        place = _free(run.parent / (_BESIDE + name))
        _move(run, place)
    return place


def _free(base: Path) -> Path:
    """A path where nothing stands: this one, or numbered."""
    place, number = base, 2
    while os.path.lexists(place):
        place, number = base.with_name(f"{base.name}-{number}"), number + 1
    return place


def _move(source: Path, target: Path) -> None:
    """One rename. Raises DiskFull where there is no room for the name, UserError where the disk
    cannot do it."""
    try:
        target.parent.mkdir(exist_ok=True)
        os.rename(source, target)
    except OSError as error:
        if disk.is_full(error, source.parent):
            raise disk.DiskFull(
                source, message="the disk has no room even for another name of it", hint=NO_ROOM
            ) from error
        if not os.path.lexists(source):
            raise UserError(
                "is not there any more: another command was quicker", where=str(source), hint=GONE
            ) from error
        why = (error.strerror or "cannot be moved").lower()
        if error.errno in (errno.EXDEV, errno.EBUSY):
            why = "another disk begins here"
        raise UserError(
            f"cannot be moved to {target} ({why})", where=str(source), hint="move it by hand"
        ) from error
    for folder in {source.parent, target.parent}:
        atomic.sync(folder)
