"""Folders that are whole or not there: written aside, synced, listed with checksums, then renamed into place.

    checkpoints/.tmp-…  →  files, each synced  →  MANIFEST.json, synced  →  rename to step-00000100  →  parent synced

A resume takes the newest folder whose manifest verifies and goes back one by one, saying what it left out and why.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ondevice.errors import UserError

MANIFEST = "MANIFEST.json"
FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """A verified `step-…` folder and the record beside its weights."""

    path: Path
    step: int
    record: dict[str, Any]

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def optimizer(self) -> Path:
        return self.path / "optimizer.safetensors"


@contextmanager
def whole_folder(target: Path, manifest: dict[str, Any] | None = None) -> Iterator[Path]:
    """Yields an empty folder to fill; at the end it stands at `target`, or, after an error, nothing does.

    A folder that already stands there is replaced only once the new one is complete. One process at a time writes to a
    target: the caller holds a lock. Raises UserError on a full disk.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _tidy(target.parent, f"{target.name}-")
    aside = target.parent / f".tmp-{target.name}-{os.getpid()}"
    aside.mkdir()
    try:
        yield aside
        files = sorted(p for p in aside.rglob("*") if p.is_file())
        for file in files:
            _sync(file)
        if manifest is not None:
            listed = {str(p.relative_to(aside)): {"size": p.stat().st_size, "sha256": sha256(p)} for p in files}
            (aside / MANIFEST).write_text(json.dumps({"format": FORMAT, **manifest, "files": listed}, indent=1) + "\n")
            _sync(aside / MANIFEST)
        for folder in [p for p in aside.rglob("*") if p.is_dir()]:
            _sync(folder)
        _sync(aside)
        _move(aside, target)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError("the disk is full; the last complete checkpoint stands", where=str(target),
                            hint="free some space, then --resume") from error
        raise


def write_file(path: Path, text: str) -> None:
    """A small file, whole or not there."""
    aside = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    _sync(aside)
    os.replace(aside, path)
    _sync(path.parent)


def save(checkpoints: Path, step: int, write: Callable[[Path], None], record: dict[str, Any], *,
         keep: int, best: int | None) -> Checkpoint:
    """`write(folder)` puts `model/` and `optimizer.safetensors` there; then the newest `keep` and `best` remain.

    `best` None: no better one is on disk than the one that was called the best so far, which then stays.
    """
    target = checkpoints / f"step-{step:08d}"
    _tidy(checkpoints, "")
    with whole_folder(target, {"step": step}) as folder:
        write(folder)
        (folder / "trainer.json").write_text(json.dumps(record, indent=1) + "\n")
    if best is not None:
        _point(checkpoints / "best", checkpoints / f"step-{best:08d}")
    reason = damage(target)
    if reason is None:  # older ones go only after the new one is known to be readable
        kept = {target.name, (checkpoints / "best").resolve().name, *(p.name for p in steps(checkpoints)[-keep:])}
        for old in steps(checkpoints):
            if old.name not in kept:
                shutil.rmtree(old)
    return Checkpoint(target, step, record)


def steps(checkpoints: Path) -> list[Path]:
    """The `step-…` folders, oldest first."""
    return sorted(p for p in checkpoints.glob("step-*") if p.is_dir())


def newest(checkpoints: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest whole checkpoint; `say` is told of each that was left out."""
    for path in reversed(steps(checkpoints)):
        reason = damage(path)
        if reason is None:
            return load(path)
        say(f"{path.name} is damaged ({reason}); going back one")
    return None


def load(path: Path) -> Checkpoint:
    record = json.loads((path / "trainer.json").read_text())
    return Checkpoint(path, int(record["step"]), record)


def best(checkpoints: Path) -> Checkpoint | None:
    path = checkpoints / "best"
    return load(path.resolve()) if path.is_dir() and damage(path) is None else None


def damage(path: Path) -> str | None:
    """Why a checkpoint cannot be trusted; None: every file has the size and the hash that its manifest says."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        files = manifest["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return "no manifest"
    if manifest.get("format") != FORMAT:
        return f"format {manifest.get('format')}"
    for name, listed in files.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != listed["size"]:
            return f"{name} has another size"
        if sha256(file) != listed["sha256"]:
            return f"{name} has another hash"
    return None


def sha256(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _tidy(folder: Path, name: str) -> None:
    """Removes what a process that was killed while it wrote here has left aside."""
    for aside in (*folder.glob(f".tmp-{name}*"), *folder.glob(f".old-{name}*")):
        if aside.is_dir() and not aside.is_symlink():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.unlink(missing_ok=True)


def _move(aside: Path, target: Path) -> None:
    old = target.parent / f".old-{target.name}-{os.getpid()}"
    if target.exists():
        os.rename(target, old)
    os.rename(aside, target)
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _point(link: Path, target: Path) -> None:
    aside = link.with_name(f".tmp-{link.name}-{os.getpid()}")
    aside.unlink(missing_ok=True)
    aside.symlink_to(target.name)
    os.replace(aside, link)
    _sync(link.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if sys.platform == "darwin":  # fsync leaves the data in the drive's cache there
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
        else:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
