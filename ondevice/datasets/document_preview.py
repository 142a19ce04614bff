"""What is read of documents, before there is a model: how many and how long, in which languages, what
was left out and why, and the first lines of a few.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from ondevice.common.distribution import install_hint
from ondevice.common.errors import UserError
from ondevice.common.progress import with_progress
from ondevice.common.sanitize import sanitize
from ondevice.config.data import DataConfig
from ondevice.data.extraction.survey import Document, survey
from ondevice.data.folders import DOCUMENTS, kind_of, listing
from ondevice.data.mixture import is_by_name, ordered
from ondevice.data.plain_text import decoded

LOOKED_AT = 2_000
"""Characters of a document by which its language is told."""
FIRST = 400
"""Characters that are shown of one."""
SHOWN_LEFT_OUT = 12
_OF_MODELS = ("action", "data", "examples", "limit", "color")
"""Settings that are not about what a model sees."""


def files_of(data: str) -> list[Path]:
    """The documents that a name stands for; none where it is something else."""
    prefix, source = ordered(data)
    path = Path(os.path.expanduser(source))
    if prefix or is_by_name(data) or not path.exists():
        return []
    if path.is_dir():
        files = listing(path).files
    else:
        files = [path]
    if kind_of(files[0]) in DOCUMENTS:
        return files
    return []


def beside_rows(data: str) -> int:
    """How many documents a folder holds that are not read, because rows are."""
    path = Path(os.path.expanduser(ordered(data)[1]))
    if is_by_name(data) or not path.is_dir():
        return 0
    return sum(kind_of(file) in DOCUMENTS for file in listing(path).ignored)


def show(cfg: DataConfig, files: list[Path]) -> dict[str, Any]:
    """{"data", "documents", "characters", "kinds", "languages", "pages", "left_out": [{"where",
    "reason", "like"}], "notes", "examples": [{"where", "text"}]}: raw text of files, make it inert
    before showing it. Raises UserError for a setting that is about what a model sees."""
    for field in dataclasses.fields(cfg):
        if field.name not in _OF_MODELS and getattr(cfg, field.name) != field.default:
            raise UserError(
                "has no effect: without a model documents are shown as they are read",
                where=field.name,
                hint="give --model MODEL, or leave it out",
            )
    found = survey(files)
    kept = found.kept
    path = Path(os.path.expanduser(cfg.data))
    if path.is_dir():
        ignored = listing(path).notes
    else:
        ignored = []
    shown: dict[str, Any] = {
        "data": cfg.data,
        "files": len(files),
        "documents": len(kept),
        "characters": sum(one.characters for one in kept),
        "pages": sum(one.pages for one in kept),
        "kinds": dict(Counter(kind_of(one.file) for one in kept).most_common()),
        "languages": _languages(kept[: cfg.limit or None]),
        "left_out": [
            {"where": str(one.file), "reason": one.reason, "like": one.like}
            for one in found.left_out
        ],
        "notes": [*found.notes(path if path.is_dir() else None), *ignored],
        "examples": [],
    }
    step = max(1, len(kept) // max(1, cfg.examples))
    for one in kept[::step][: cfg.examples]:
        shown["examples"].append({"where": str(one.file), "text": _first(one, FIRST)})
    return shown


def _first(one: Document, characters: int) -> str:
    text = ""
    for piece in decoded(one.text, one.encoding):
        text += piece
        if len(text) >= characters:
            break
    return text[:characters]


def _languages(documents: list[Document]) -> dict[str, int]:
    """Language (ISO 639-1) → documents, most first; empty where the package that tells is missing."""
    if PathFinder.find_spec("py3langid") is None:
        return {}
    return dict(Counter(_told(documents)).most_common())


def _told(documents: list[Document]) -> Iterator[str]:
    import py3langid  # 0.7 s for the first text

    for one in with_progress(documents, "languages told", len(documents)):
        yield str(py3langid.classify(_first(one, LOOKED_AT))[0])


def _some(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def render(shown: Mapping[str, Any]) -> str:
    """What `show` found, safe for a terminal."""
    lines: list[str] = []
    for number, example in enumerate(shown["examples"], 1):
        lines += [
            f"── {number} ── {sanitize(example['where'], newlines=False)}",
            sanitize(example["text"]).rstrip() + " …",
            "",
        ]
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in shown["kinds"].items())
    lines.append(
        f"{sanitize(shown['data'], newlines=False)}: {_some(shown['documents'], 'document')} of "
        f"{_some(shown['files'], 'file')} ({kinds or 'none is read'})"
    )
    pages = f", {shown['pages']:,} pages" if shown["pages"] else ""
    lines.append(f"{shown['characters']:,} characters{pages}")
    if shown["languages"]:
        said = ", ".join(f"{name} {count:,}" for name, count in shown["languages"].items())
        lines.append(f"languages: {said}")
    elif shown["documents"]:
        lines.append(f"languages: not told without py3langid ({install_hint('documents')})")
    lines.append(f"{_some(len(shown['left_out']), 'file')} left out")
    for one in shown["left_out"][:SHOWN_LEFT_OUT]:
        like = f" ({one['like']})" if one["like"] else ""
        said = f"  {one['where']}: {one['reason']}{like}"
        lines.append(sanitize(said, newlines=False))
    if len(shown["left_out"]) > SHOWN_LEFT_OUT:
        lines.append(f"  and {len(shown['left_out']) - SHOWN_LEFT_OUT:,} more (--json has all)")
    for note in shown["notes"]:
        if "left out: " not in note:
            lines.append(sanitize(note, newlines=False))
    return "\n".join(lines)
