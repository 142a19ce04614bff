"""Which files of a folder are read: rows or else texts, of the split that is wanted, and what is
left out and why.

Files called train, valid (validation, dev, val) or test (eval, …), or in folders of these names,
are splits, as mlx-lm and datasets read them: nobody learns from what is there to test on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ondevice.common.errors import UserError

ROWS = {".jsonl", ".ndjson", ".json", ".csv", ".parquet"}
TEXTS = {".txt", ".md", ".text"}
PACKED = ".gz"
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_WORDS = {
    split: re.compile(rf"(?:^|[-._ 0-9])(?:{'|'.join(words)})(?:[-._ 0-9]|$)", re.IGNORECASE)
    for split, words in SPLITS.items()
}
_ABOUT = re.compile(r"(?:readme|licen[cs]e|dataset_infos?|dataset_dict)(?:\..*)?$", re.IGNORECASE)
"""Files that tell people or libraries about a data set and hold none of it."""


class Listing(NamedTuple):
    """`files` are read; `ignored` are not, of which `notes` say why."""

    files: list[Path]
    ignored: list[Path]
    notes: list[str]


def kind_of(file: Path) -> str:
    """A file's ending in small letters, without that of a packed file."""
    name = file.name.lower()
    return Path(name.removesuffix(PACKED)).suffix


def listing(folder: Path, split: str = "train", also: str = "") -> Listing:
    """The files of `split` in a folder that has splits; `test` is `validation` where there is none,
    and all files where it has neither. Raises UserError for a folder without data, or without any
    to learn from."""
    inside = sorted(
        f
        for f in folder.rglob("*")
        if f.is_file() and not any(part.startswith(".") for part in f.relative_to(folder).parts)
    )
    data = {f for f in inside if kind_of(f) in ROWS and not _ABOUT.match(f.name)}
    data = data or {f for f in inside if kind_of(f) in TEXTS}
    if not data:
        raise UserError(
            "no data in this folder", where=str(folder), hint=f"known: {known()}{_kinds(inside)}"
        )
    parts = _parts(folder, [f for f in inside if f in data])
    other = {
        "train": "train",
        "validation": "validation",
        "test": "test" if parts["test"] else "validation",
    }[split]
    files = parts[other] or parts["train"]
    if not files:
        raise UserError(
            "holds no file to learn from, only what is held out",
            where=str(folder),
            hint="call one train.jsonl, or give a file",
        )
    if len(files) < len(data):
        beside = [
            f"{len(found)} of the split {name} ({_few(folder, found)})"
            for name, found in parts.items()
            if found and found is not files and name and name != also
        ]
    else:
        beside = []
    if parts[""] and parts[""] is not files:
        beside.append(f"{len(parts[''])} of no split ({_few(folder, parts[''])})")
    kinds: dict[str, list[Path]] = {}
    for file in inside:
        if file not in data and not _ABOUT.match(file.name):
            kinds.setdefault(kind_of(file) or "no ending", []).append(file)
    beside += [f"{len(found)} of {kind} ({_few(folder, found)})" for kind, found in kinds.items()]
    kept = set(files)
    notes = ["files not read: " + ", ".join(beside)] if beside else []
    return Listing(files, [f for f in inside if f not in kept], notes)


def holds_split(data: str, split: str) -> bool:
    """Whether `data` is a folder in which files of this split stand beside others."""
    folder = Path(os.path.expanduser(data))
    if not folder.is_dir():
        return False
    files = sorted(
        f
        for f in folder.rglob("*")
        if f.is_file()
        and kind_of(f) in ROWS | TEXTS
        and not any(part.startswith(".") for part in f.relative_to(folder).parts)
    )
    rows = [f for f in files if kind_of(f) in ROWS and not _ABOUT.match(f.name)]
    return bool(_parts(folder, rows or [f for f in files if kind_of(f) in TEXTS])[split])


def split_of(name: Path) -> str:
    """train, validation or test by the names of folders, else of the file; empty for any other."""
    for part in (*name.parts[:-1], name.name):
        for split, word in _WORDS.items():
            if word.search(part):
                return split
    return ""


def known() -> str:
    return " ".join(sorted(ROWS | TEXTS)) + f", each also packed as {PACKED}"


def _parts(folder: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    """The files by split. Without any for training the files of no split are those; of texts, whose
    names may be words like any other, none is then of a split. Files that all are of one split are
    what somebody wants of this folder."""
    found: dict[str, list[Path]] = {"train": [], "validation": [], "test": [], "": []}
    for file in files:
        found[split_of(file.relative_to(folder))].append(file)
    texts = bool(files) and kind_of(files[0]) in TEXTS
    if sum(map(bool, found.values())) == 1 or (texts and not found["train"]):
        return {"train": list(files), "validation": [], "test": [], "": []}
    if not found["train"]:
        found["train"], found[""] = found[""], []
    return found


def _few(folder: Path, files: Sequence[Path]) -> str:
    return ", ".join(str(file.relative_to(folder)) for file in files[:3]) + ", …" * (len(files) > 3)


def _kinds(files: Sequence[Path]) -> str:
    kinds = sorted({kind_of(file) or "no ending" for file in files})
    if kinds:
        return f"; it holds {' '.join(kinds[:8])}"
    return ""
