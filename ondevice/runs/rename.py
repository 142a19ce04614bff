"""Giving a run another name: `ondevice runs rename`.

    runs/NEW            the run
    runs/OLD -> NEW     its older name, a link

Whatever names the run by its old name goes on working through the link: adapters whose base it is,
stages that began with a model of it and are not complete, its own records, a person's scripts. No
file is rewritten. Lists of runs show it once, by its new name; `runs empty-trash` removes the links
of runs that are deleted. The link is made first, aside, and put into the run's place last: after a
kill between, the same command ends what was begun.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from ondevice.common import atomic, disk
from ondevice.common.errors import UserError
from ondevice.runs import listing
from ondevice.runs.dependents import needed_by
from ondevice.runs.folder import RunFolder
from ondevice.runs.trash import is_run, nobody_at_work

_ASIDE = ".renaming-"
LONGEST = 200  # bytes: a moved run's name in the trash has a date behind it


def rename_run(name: str, new: str, folder: str | Path = "runs") -> Path:
    """Renames a run and returns its folder. Raises UserError for a run that somebody trains, rates
    or pushes, or that another run trains with now, and for a name that is taken or cannot be one."""
    _end_killed(Path(folder))
    run = listing.find_run(name, folder).path.absolute()
    if not is_run(run):
        raise UserError(
            "is not a run (no stage, recipe or ratings of ours), and keeps its name",
            where=str(run),
        )
    target = run.with_name(_checked(new))
    if target == run:
        return run
    _refuse_taken(target, run)
    _refuse_used(run)
    with nobody_at_work(run):
        _move(run, target)
    return target


def _checked(new: str) -> str:
    """The name as it is. Raises UserError for one that no run can have."""
    if not new or new in (".", "..") or os.path.basename(new) != new or "\0" in new:
        raise UserError(f"{new!r} is not a name", where="rename", hint="a name without folders")
    if new.startswith((".", "-")):
        raise UserError(
            f"{new!r} begins with {new[0]!r}", where="rename", hint="begin with a letter or a digit"
        )
    if not new.isprintable() or new != new.strip():
        raise UserError(f"{new!r} is not a name", where="rename", hint="letters, digits, - and _")
    if len(os.fsencode(new)) > LONGEST:
        raise UserError(
            f"{len(os.fsencode(new))} bytes are too many for a name",
            where="rename",
            hint=f"at most {LONGEST}",
        )
    return new


def _refuse_taken(target: Path, run: Path) -> None:
    if not os.path.lexists(target):
        for link, leads in listing.older_names(target.parent).items():
            if leads == target.name:  # of a run in the trash: this one is not meant by it
                raise UserError(
                    f"{link.name} leads there, an older name of a run in the trash",
                    where=str(target),
                    hint="give another name, or ondevice runs empty-trash",
                )
        return
    if _same(target, run):
        return
    if listing.is_older_name(target):
        last = listing.by_newest_name(target)
        if last == run:
            return  # back to a name that it had
        raise UserError(
            f"is an older name of {last.name}, and what knows it by that name still finds it there",
            where=str(target),
            hint="give another name",
        )
    raise UserError("stands there already", where=str(target), hint="give another name")


def _same(target: Path, run: Path) -> bool:
    """Whether both are one folder: a disk that does not tell small letters from capitals."""
    try:
        return os.path.samefile(target, run) and not target.is_symlink()
    except OSError:
        return False


def _refuse_used(run: Path) -> None:
    """Raises UserError where another run trains now with something of this one: it may open files
    by their names at any moment."""
    for path in listing.run_paths(run.parent):
        if path.absolute() == run or path.name.startswith(".") or not path.is_dir():
            continue
        other = RunFolder(path)
        if not any(stage.holder() is not None for stage in other.stages()):
            continue
        if why := needed_by(other, run):
            raise UserError(
                f"{path.name} trains with it now: {why}", where=str(run), hint="wait, or stop that"
            )


def _move(run: Path, target: Path) -> None:
    aside = run.with_name(_ASIDE + run.name)
    try:
        os.symlink(target.name, aside)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise UserError(
                "this disk has no links, which lead from the old name to the new one",
                where=str(run),
                hint="rename the folder by hand where nothing refers to it",
            ) from error
        raise _cannot(run, target, error) from error
    try:
        if listing.is_older_name(target):
            target.unlink()
        os.rename(run, target)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise _cannot(run, target, error) from error
    _place(aside, run)
    atomic.sync(target.parent)


def _place(aside: Path, old: Path) -> None:
    """Puts the link where the run was; where something stands there (the same folder, on a disk that
    does not tell small letters from capitals), it is not needed."""
    if os.path.lexists(old):
        aside.unlink(missing_ok=True)
    else:
        os.rename(aside, old)


def _end_killed(folder: Path) -> None:
    """Ends the renames that a kill has stopped between two steps."""
    if not folder.is_dir():
        return
    for aside in folder.glob(f"{_ASIDE}*"):
        if not listing.is_older_name(aside):
            continue
        old = aside.with_name(aside.name.removeprefix(_ASIDE))
        if aside.is_dir():
            _place(aside, old)
        elif old.is_dir():  # the run has not been moved yet
            aside.unlink(missing_ok=True)


def _cannot(run: Path, target: Path, error: OSError) -> Exception:
    if disk.is_full(error, run.parent):
        return disk.DiskFull(run, message="the disk has no room even for another name of it")
    why = (error.strerror or "it cannot be renamed").lower()
    return UserError(f"cannot be renamed to {target.name} ({why})", where=str(run))
