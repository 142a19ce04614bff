"""Folders that are whole or not there: written aside, synced, listed with checksums, then renamed into
place.

    checkpoints/.tmp-…/.new  →  files, synced  →  MANIFEST.json, synced  →  rename to step-00000100  →  parent synced

A resume takes the newest folder whose manifest verifies and goes back one by one, saying what it
left out and why.

Chosen: a folder that others read as it is (a Hugging Face model and the optimizer's state beside
it), not one file of our own. A rename is the one step that a kill cannot cut in two; checksums find
what a disk has lost after it. The newest, the best and the last sound one are kept, so that a
longer run takes no more room. transformers' Trainer writes in place: a kill leaves a folder that
looks like a checkpoint.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ondevice.common import atomic, bounded, disk
from ondevice.common.files import FORMAT, MANIFEST, sha256, whole_folder
from ondevice.common.json_files import load_json, to_json
from ondevice.common.sanitize import to_stderr
from ondevice.runs.place import has_no_links

RECORD = "trainer.json"
_STEP = re.compile(r"step-\d{8,}")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Checkpoint:
    """A `step-…` folder and the record beside its weights. `whole`: it was read back and is as it
    was written.
    """

    path: Path
    step: int
    record: dict[str, Any]
    whole: bool = True

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def optimizer(self) -> Path:
        return self.path / "optimizer.safetensors"


def save(
    checkpoints: Path,
    step: int,
    write: Callable[[Path], None],
    record: Mapping[str, Any],
    *,
    keep: int,
    best: int | None,
    say: Say = to_stderr,
) -> Checkpoint:
    """`write(folder)` puts `model/` and `optimizer.safetensors` there; then `prune` decides which
    ones remain.

    `best` None: no better one is on disk than the one that was called the best so far, which then
    stays. `say` is told of what stood in the way. Raises DiskFull where nobody waits for room.
    """
    target = path_at(checkpoints, step)

    def write_all() -> None:
        with whole_folder(target, {"step": step}) as folder:
            write(folder)
            (folder / RECORD).write_text(to_json(record, indent=1) + "\n")

    # the one before it says how much room one takes
    before = steps(checkpoints)[-1:]
    disk.until_written(target, write_all, disk.space_of(before[0]) if before else 0)
    reason = find_damage(target)
    if reason is None:  # older ones go only after the new one is known to be readable
        prune(checkpoints, step, keep=keep, best=best, say=say)
    else:
        say(f"{target.name} cannot be read back ({reason}): the ones before it stay")
    return Checkpoint(target, step, dict(record), whole=reason is None)


def prune(
    checkpoints: Path, step: int, *, keep: int, best: int | None, say: Say = to_stderr
) -> None:
    """Points `best` to the best one and removes what is not to be kept of the checkpoints up to
    `step`: there remain the newest `keep`, the best, and the newest that is sound with the one that
    was the best then: a way back, where the newest are not."""
    if best is not None and path_at(checkpoints, best).is_dir():
        _point(checkpoints / "best", path_at(checkpoints, best), say)
    saved = [path for path in steps(checkpoints) if _number(path) <= step]
    kept = {_best(checkpoints), *(path.name for path in saved[-keep:])}
    for path in reversed(saved):
        record = record_of(path)
        if is_sound(record):
            kept |= {path.name, f"step-{record.get('best_saved_step') or 0:08d}"}
            break
    for old in saved:
        if old.name not in kept:
            atomic.remove(old, say)


def is_sound(record: Mapping[str, Any]) -> bool:
    """Whether a stage can go back to the checkpoint of this record: its gradient and its figure are
    finite, or it is the stage's start, written when the stage went back to that."""
    # earlier versions did not write it down: what they saved is measured when it is gone back to
    return bool(record.get("sound", not record.get("skipped_in_a_row"))) or record.get("step") == 0


def drop_after(checkpoints: Path, step: int, say: Say = to_stderr) -> None:
    """Removes the checkpoints of later steps, the newest first: a process that is killed on the way
    goes on from what it would have gone on from before."""
    for path in reversed(steps(checkpoints)):
        if _number(path) > step:
            atomic.remove(path, say)


def steps(checkpoints: Path) -> list[Path]:
    """The `step-…` folders, oldest first."""
    return sorted(p for p in checkpoints.glob("step-*") if _STEP.fullmatch(p.name) and p.is_dir())


def clear(checkpoints: Path, say: Say = to_stderr) -> None:
    """Removes all checkpoints. What else lies there stays, and a link to a folder elsewhere stays
    one. Raises OSError where one cannot be removed."""
    if checkpoints.is_dir():
        atomic.sweep(checkpoints, say)
        if _best(checkpoints):
            atomic.remove(checkpoints / "best", say)
        for path in steps(checkpoints):
            atomic.remove(path, say)


def newest(checkpoints: Path, say: Say) -> Checkpoint | None:
    """The newest whole checkpoint; `say` is told of each that was left out."""
    if checkpoints.is_dir():
        # one that was being replaced when a process was killed is put back
        atomic.sweep(checkpoints, say)
    for path in reversed(steps(checkpoints)):
        reason = find_damage(path)
        if reason is None:
            return load(path)
        say(f"{path.name} is damaged ({reason}); going back one")
    return None


def load(path: Path) -> Checkpoint:
    record = load_json(path / RECORD)
    return Checkpoint(path, int(record["step"]), record)


def record_of(path: Path) -> dict[str, Any]:
    """A checkpoint's record; empty where it cannot be read."""
    try:
        record = load_json(path / RECORD)
    except (OSError, ValueError, RecursionError):
        return {}
    if isinstance(record, dict):
        return record
    return {}


def path_at(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint of a step is, whole or not."""
    return checkpoints / f"step-{step:08d}"


def _best(checkpoints: Path) -> str:
    """The name of the best checkpoint, to which a link points, or which a file names where the disk
    has no links; empty where neither says it."""
    best = checkpoints / "best"
    if best.is_symlink():
        return Path(os.readlink(best)).name
    try:
        name = bounded.read_text(best, 100).strip()
    except (OSError, ValueError):
        return ""
    return name if _STEP.fullmatch(name) else ""


def _number(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def find_damage(path: Path) -> str | None:
    """Why a checkpoint cannot be trusted; None: every file has the size and the hash that its
    manifest says.
    """
    try:
        manifest = load_json(path / MANIFEST)
        files = {
            name: (listed["size"], listed["sha256"]) for name, listed in manifest["files"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "no manifest"
    if manifest.get("format") != FORMAT:
        return f"format {manifest.get('format')}"
    for name, (size, listed) in files.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has another size"
        if sha256(file) != listed:
            return f"{name} has another hash"
    return None


def _point(link: Path, target: Path, say: Say) -> None:
    """Makes `link` point to its neighbour `target`. A folder at its place is moved aside, and that
    is said.
    """
    if link.is_dir() and not link.is_symlink():
        number = next(
            n
            for n in itertools.count(1)
            if not os.path.lexists(link.with_name(f"{link.name}-copy-{n}"))
        )
        copy = link.with_name(f"{link.name}-copy-{number}")
        os.rename(link, copy)
        say(
            f"{link.name} was a folder, not a link, as a copy that follows links makes one: it is {copy.name} now, and "
            "nothing needs it"
        )

    def write() -> None:
        with atomic.aside(link) as new:
            try:
                new.symlink_to(target.name)
            except OSError as error:
                if not has_no_links(error):
                    raise
                new.write_text(target.name + "\n")
            os.replace(new, link)
            atomic.sync(link.parent)

    disk.until_written(link, write)
