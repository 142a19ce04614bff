"""Which files of a folder are read: rows or else documents, of the split that is wanted, and what is
left out and why.

Files called train, valid (validation, dev, val) or test (eval, …), or in folders of these names,
are splits, as mlx-lm and datasets read them: nobody learns from what is there to test on.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ondevice.common.errors import UserError
from ondevice.data.plain_text import PACKED, open_binary

ROWS = {".jsonl", ".ndjson", ".json", ".csv", ".parquet"}
_MADE_TO_LEARN = {".jsonl", ".ndjson", ".parquet"}
"""Rows that nobody has but to learn from; tables and JSON lie in any folder."""
_LEARNED = {
    "text", "messages", "conversation", "conversations", "prompt", "question", "query", "instruction",
    "completion", "completions", "chosen", "answer", "response",
}  # fmt: skip
"""Names by which a table, or a file of JSON, holds something that is learned from."""
_NAMES_WITHIN = 1 << 16
"""Bytes of a file in which the names of its first row stand."""
_COLUMN = re.compile(r"[,;\t]")
_JSON_NAME = re.compile(r'"(\w{1,20})"\s*:')
TEXTS = {".txt", ".md", ".text", ".rst"}
RICH = {".pdf", ".docx", ".html", ".htm", ".xhtml", ".epub", ".ipynb"}
"""Documents whose text has to be taken out of them."""
DOCUMENTS = TEXTS | RICH
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}


def _any_of(words: Sequence[str]) -> re.Pattern[str]:
    """One of these, as a word of a file's name."""
    return re.compile(rf"(?:^|[-._ 0-9])(?:{'|'.join(words)})(?:[-._ 0-9]|$)", re.IGNORECASE)


_WORDS = {split: _any_of(words) for split, words in SPLITS.items()}
_ABOUT = re.compile(r"(?:readme|licen[cs]e|dataset_infos?|dataset_dict)(?:\..*)?$", re.IGNORECASE)
"""Files that tell people or libraries about a data set and hold none of it."""


class Listing(NamedTuple):
    """`files` are read; `ignored` are not, of which `notes` say why."""

    files: list[Path]
    ignored: list[Path]
    notes: list[str]


_SPLIT_NAME = re.compile(
    rf"(?:{'|'.join(word for words in SPLITS.values() for word in words)})\.", re.IGNORECASE
)


def kind_of(file: Path) -> str:
    """A file's ending in small letters, without that of a packed file."""
    name = file.name.lower()
    return Path(name.removesuffix(PACKED)).suffix


def listing(folder: Path, split: str = "train", also: str = "") -> Listing:
    """The files of `split` in a folder that has splits; `test` is `validation` where there is none,
    and all files where it has neither. Raises UserError for a folder without data, or without any
    to learn from."""
    if not os.access(folder, os.R_OK | os.X_OK):
        raise UserError("may not be opened by you", where=str(folder), hint="chmod u+rx opens it")
    odd: list[Path] = []
    inside = _files_in(folder, odd)
    data = _data_among(inside)
    if not data:
        raise UserError(
            "no data in this folder", where=str(folder), hint=f"known: {known()}{_kinds(inside)}"
        )
    parts = _parts(folder, data)
    if split == "test" and not parts["test"]:
        split = "validation"
    files = parts[split] or parts["train"]
    if not files:
        raise UserError(
            "holds no file to learn from, only what is held out",
            where=str(folder),
            hint="call one train.jsonl, or give a file",
        )
    beside: list[str] = []
    if len(files) < len(data):
        for name, part in parts.items():
            if part and part is not files and name and name != also:
                beside.append(f"{len(part)} of the split {name} ({_few(folder, part)})")
    if parts[""] and parts[""] is not files:
        beside.append(f"{len(parts[''])} of no split ({_few(folder, parts[''])})")
    beside += _other_kinds(folder, inside, set(data))
    others = _not_chosen(inside, data)
    if odd:
        beside.append(
            f"{len(odd)} links to folders, closed folders, or no files ({_few(folder, odd)})"
        )
    notes = []
    if beside:
        notes.append("files not read: " + ", ".join(beside) + others)
    kept = set(files)
    return Listing(files, [file for file in inside if file not in kept], notes)


def _files_in(folder: Path, odd: list[Path] | None = None) -> list[Path]:
    """All files in a folder and in folders of it, in order, without hidden ones. `odd` gets what is
    neither: links to folders, which may go round in circles, links to nothing, pipes, and folders that
    may not be opened."""
    files: list[Path] = []
    others: list[Path] = []
    for path in folder.rglob("*"):
        is_file = path.is_file()
        if not is_file and _is_open(path):
            continue
        if not any(part.startswith(".") for part in path.relative_to(folder).parts):
            (files if is_file else others).append(path)
    if odd is not None:
        odd += sorted(others)
    return sorted(files)


def _is_open(path: Path) -> bool:
    """Whether it is a folder whose files are among those that were found."""
    return path.is_dir() and not path.is_symlink() and os.access(path, os.R_OK | os.X_OK)


def _data_among(files: Sequence[Path]) -> list[Path]:
    """Those of the files that hold rows to learn from, or else documents; other tables and JSON where
    there is neither."""
    rows = [file for file in files if kind_of(file) in ROWS and not _ABOUT.match(file.name)]
    documents = [file for file in files if kind_of(file) in DOCUMENTS]
    if not rows:
        return documents
    if not any(not _ABOUT.match(file.name) for file in documents):
        return rows
    return rows if any(map(_is_learned_from, rows)) else documents


def _is_learned_from(file: Path) -> bool:
    """Whether a file of rows is there to learn from, as its kind, its name or the names in it say."""
    kind = kind_of(file)
    if kind in _MADE_TO_LEARN or _SPLIT_NAME.match(file.name):
        return True
    try:
        with open_binary(file) as source:
            head = source.read(_NAMES_WITHIN).decode("utf-8-sig", "replace")
    except (OSError, EOFError, zlib.error, UserError):
        return False  # whoever reads it says so
    if kind == ".json":
        names = _JSON_NAME.findall(head)
    else:
        names = _COLUMN.split(head.partition("\n")[0])
    return any(name.strip(' "\r').casefold() in _LEARNED for name in names)


def _other_kinds(folder: Path, files: Sequence[Path], data: set[Path]) -> list[str]:
    """In words, by their endings: the files that hold no data, and are not about it."""
    kinds: dict[str, list[Path]] = {}
    for file in files:
        if file not in data and not _ABOUT.match(file.name):
            kinds.setdefault(kind_of(file) or "no ending", []).append(file)
    return [
        f"{len(of_kind)} of {kind} ({_few(folder, of_kind)})" for kind, of_kind in kinds.items()
    ]


def holds_split(data: str, split: str) -> bool:
    """Whether `data` is a folder in which files of this split stand beside others."""
    folder = Path(os.path.expanduser(data))
    if not folder.is_dir():
        return False
    parts = _parts(folder, _data_among(_files_in(folder)))
    return bool(parts[split])


def split_of(name: Path) -> str:
    """train, validation or test by the names of folders, else of the file; empty for any other."""
    for part in (*name.parts[:-1], name.name):
        for split, word in _WORDS.items():
            if word.search(part):
                return split
    return ""


def documents() -> str:
    return " ".join(sorted(DOCUMENTS))


def known() -> str:
    packed = " ".join(sorted(ROWS | TEXTS))
    return f"{packed}, each also packed as {PACKED}; {' '.join(sorted(RICH))}"


def _parts(folder: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    """The files by split. Without any for training the files of no split are those. Documents have
    names of words like any other ("training plan.pdf", "test results.docx"): none is of a split
    unless some are for training and others held out, and each is of one. Files that all are of one
    split are what somebody wants of this folder."""
    found: dict[str, list[Path]] = {"train": [], "validation": [], "test": [], "": []}
    for file in files:
        found[split_of(file.relative_to(folder))].append(file)
    if bool(files) and kind_of(files[0]) in DOCUMENTS:
        about = {file for file in found[""] if _ABOUT.match(file.name)}
        by_words = len(found[""]) > len(about) or not found["train"]
    else:
        by_words = False
    if sum(map(bool, found.values())) == 1 or by_words:
        return {"train": list(files), "validation": [], "test": [], "": []}
    if not found["train"]:
        found["train"], found[""] = found[""], []
    return found


def _few(folder: Path, files: Sequence[Path]) -> str:
    names = [str(file.relative_to(folder)) for file in files[:3]]
    if len(files) > 3:
        names.append("…")
    return ", ".join(names)


def _not_chosen(inside: Sequence[Path], data: Sequence[Path]) -> str:
    """How to read what a folder holds beside the data: it gives rows or documents, never both."""
    read_rows = kind_of(data[0]) in ROWS
    others = DOCUMENTS if read_rows else ROWS
    if not any(kind_of(file) in others and not _ABOUT.match(file.name) for file in inside):
        return ""
    if read_rows:
        return " (rows are read: documents want a folder of their own)"
    return " (documents are read: name a table by itself)"


def _kinds(files: Sequence[Path]) -> str:
    kinds = sorted({kind_of(file) or "no ending" for file in files})
    if kinds:
        return f"; it holds {' '.join(kinds[:8])}"
    return ""
