"""What people write on a run: a note and tags, in `<run>/labels.json`. They stay with the run,
wherever it is moved or copied, and no stage reads them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ondevice.common.errors import UserError
from ondevice.common.files import write_file
from ondevice.common.json_files import load_json

FILE = "labels.json"
LONGEST_NOTE = 4000  # characters
LONGEST_TAG = 40
MOST_TAGS = 50
_LARGEST = 1 << 20  # bytes that are read of a file that somebody else may have written


@dataclass(frozen=True)
class Labels:
    """A person's note on a run, and its tags in alphabetical order."""

    note: str = ""
    tags: tuple[str, ...] = ()


def read_labels(run: Path) -> Labels:
    """What is written on this run; nothing where no file is there. Raises UserError for a file that
    is damaged or cannot be read."""
    file = run / FILE
    if not os.path.lexists(file):
        return Labels()
    try:
        if file.is_file():
            value = load_json(file, _LARGEST)
        else:
            value = None
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", where=str(file)) from error
    except (ValueError, RecursionError) as error:
        raise _damaged(file) from error
    if isinstance(value, dict):
        note = value.get("note", "")
        tags = value.get("tags", [])
    else:
        note = None
        tags = None
    if not isinstance(note, str) or not isinstance(tags, list):
        raise _damaged(file)
    if not all(isinstance(tag, str) for tag in tags):
        raise _damaged(file)
    return Labels(note[:LONGEST_NOTE], tuple(sorted(set(tags[:MOST_TAGS]))))


def labels_or_trouble(run: Path) -> tuple[Labels, str]:
    """`read_labels` for lists: a damaged file hides no run. (labels, why they cannot be read)."""
    try:
        return read_labels(run), ""
    except UserError as error:
        return Labels(), str(error)


def set_note(run: Path, note: str) -> Labels:
    """Writes a note in place of the one before; an empty one takes it away. Raises UserError for one
    that is too long, or cannot be written."""
    text = "\n".join(line.strip() for line in note.strip().splitlines())
    if len(text) > LONGEST_NOTE:
        raise UserError(
            f"{len(text):,} characters are too many", where="note", hint=f"at most {LONGEST_NOTE:,}"
        )
    return _write(run, replace(read_labels(run), note=text))


def add_tags(run: Path, tags: Iterable[str]) -> Labels:
    """Adds tags. Raises UserError for one that cannot be a tag, or where there are too many."""
    before = read_labels(run)
    together = tuple(sorted({*before.tags, *map(checked_tag, tags)}))
    if len(together) > MOST_TAGS:
        raise UserError(
            f"{len(together)} tags are too many", where=str(run), hint=f"at most {MOST_TAGS}"
        )
    return _write(run, replace(before, tags=together))


def remove_tags(run: Path, tags: Sequence[str]) -> Labels:
    """Takes tags away. Raises UserError for one that the run does not have."""
    before = read_labels(run)
    for tag in tags:
        if tag not in before.tags:
            known = ", ".join(before.tags) or "it has none"
            raise UserError(f"has no tag {tag!r}", where=str(run), hint=known)
    return _write(run, replace(before, tags=tuple(t for t in before.tags if t not in tags)))


def set_tags(run: Path, tags: Iterable[str]) -> Labels:
    """Gives a run these tags and no others. Raises UserError as `add_tags`."""
    wanted = tuple(sorted(set(map(checked_tag, tags))))
    if len(wanted) > MOST_TAGS:
        raise UserError(
            f"{len(wanted)} tags are too many", where=str(run), hint=f"at most {MOST_TAGS}"
        )
    return _write(run, replace(read_labels(run), tags=wanted))


def checked_tag(tag: str) -> str:
    """The tag without spaces around it. Raises UserError for one that a search could not name."""
    name = tag.strip()
    if not name or len(name) > LONGEST_TAG or any(c.isspace() or c == "," for c in name):
        raise UserError(
            f"{tag!r} cannot be a tag", hint=f"one word of at most {LONGEST_TAG} characters"
        )
    if not name.isprintable():
        raise UserError(f"{tag!r} cannot be a tag", hint="letters, digits, - and _")
    return name


def _write(run: Path, labels: Labels) -> Labels:
    record: dict[str, Any] = asdict(labels)
    try:
        if labels == Labels():
            (run / FILE).unlink(missing_ok=True)
        else:
            write_file(run / FILE, json.dumps(record, ensure_ascii=False, indent=1) + "\n")
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise UserError(f"cannot be written ({why})", where=str(run / FILE)) from error
    except UnicodeEncodeError as error:  # half of a character
        raise UserError("holds half of a character", where="note") from error
    return labels


def _damaged(file: Path) -> UserError:
    return UserError(
        "is damaged",
        where=str(file),
        hint='it holds {"note": "…", "tags": ["…"]}: mend or delete it',
    )
