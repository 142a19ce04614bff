"""Whole-or-nothing files and folders, with a manifest of what is in them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from ondevice.common import atomic, disk

MANIFEST = "MANIFEST.json"
FORMAT = 1


def there(path: Path) -> bool:
    """Whether something is there; no where no file system has such a name, as for one that is too
    long, which a file of somebody else's may say."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


@contextmanager
def whole_folder(
    target: Path, manifest: dict[str, Any] | None = None, *, replacing: bool = True
) -> Iterator[Path]:
    """Yields an empty folder to fill; at the end it stands at `target`, or, after an error, nothing
    does.

    A folder that already stands there is replaced only once the new one is complete; without
    `replacing` only an empty one is. With `replacing` one process at a time writes to a target: the
    caller holds a lock. Raises DiskFull, and UserError where the folder was deleted while it was
    filled and, without `replacing`, where another process was quicker.
    """
    with disk.naming(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    with atomic.aside(target) as folder:
        folder.mkdir()
        yield folder
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        for file in files:
            atomic.sync(file)
        if manifest is not None:
            listed = {
                str(p.relative_to(folder)): {"size": p.stat().st_size, "sha256": sha256(p)}
                for p in files
            }
            (folder / MANIFEST).write_text(
                json.dumps({"format": FORMAT, **manifest, "files": listed}, indent=1) + "\n"
            )
            atomic.sync(folder / MANIFEST)
        for inner in [p for p in folder.rglob("*") if p.is_dir()]:
            atomic.sync(inner)
        atomic.sync(folder)
        (atomic.replace if replacing else atomic.place)(folder, target)


def write_file(path: Path, text: str) -> None:
    """A small file, whole or not there. Raises DiskFull."""

    def write() -> None:
        with atomic.aside(path) as new:
            new.write_text(text, encoding="utf-8")
            atomic.sync(new)
            os.replace(new, path)
            atomic.sync(path.parent)

    disk.until_written(path, write)


def sha256(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def digest(value: Any) -> str:
    """A short hash of anything JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def digest_path(path: Path) -> str:
    """A hash of a file's bytes, or of all files of a folder; hidden files are left out."""
    if path.is_file():
        files = [path]
    else:
        files = sorted(p for p in path.rglob("*") if p.is_file() and p.name[0] != ".")
    return digest([(p.name, sha256_once(p)) for p in files])


def sha256_once(file: Path) -> str:
    """`sha256`, read once in a process while the file is as it was."""
    status = file.stat()
    return _sha256(file, status.st_mtime_ns, status.st_size, status.st_ino)


@lru_cache(maxsize=1 << 14)  # a folder of 10,000 documents is looked at several times
def _sha256(path: Path, changed: int, size: int, number: int) -> str:
    return sha256(path)
