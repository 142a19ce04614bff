"""What all who rate in one database have agreed on: guidelines, reasons for votes, how many are
asked each pair, and what a rater is told after a vote. It is kept in the database itself, so that
every rater, in the app or the terminal, has the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from ondevice.common.errors import UserError
from ondevice.common.json_files import parse_json
from ondevice.preferences.sqlite_store import Store

REASONS = ("wrong", "unhelpful", "style", "unsafe", "too long")
MOST_REASONS = 9  # a digit each
MOST_SCALES = 6  # rows of a small card
LONGEST_REASON = 40
LONGEST_SCALE = 24
LONGEST_GUIDELINES = 20_000
MOST_RATERS = 99


@dataclass(frozen=True)
class Project:
    """`overlap`: how many people are asked each pair (0: everybody, all of them); `feedback`: a
    rater is told after a pair whose better answer is known whether they hit it; `reveal`: after
    each vote, who wrote the answers; `rubric`: scales from 1 to 5 on which each answer may be scored
    beside the vote (`rubric.py`)."""

    guidelines: str = ""
    reasons: tuple[str, ...] = REASONS
    overlap: int = 0
    feedback: bool = False
    reveal: bool = False
    rubric: tuple[str, ...] = ()

    def check(self) -> None:
        """Raises UserError naming the first setting that is out of range."""
        if len(self.guidelines) > LONGEST_GUIDELINES:
            raise UserError(
                f"has {len(self.guidelines):,} characters",
                where="guidelines",
                hint=f"at most {LONGEST_GUIDELINES:,}",
            )
        _check_names(self.reasons, "reason", "reasons", (1, MOST_REASONS), LONGEST_REASON)
        _check_names(self.rubric, "scale", "rubric", (0, MOST_SCALES), LONGEST_SCALE)
        if not 0 <= self.overlap <= MOST_RATERS:
            raise UserError(
                f"{self.overlap} is out of range", where="overlap", hint=f"0 to {MOST_RATERS}"
            )


def _check_names(
    names: Sequence[str], word: str, where: str, count: tuple[int, int], longest: int
) -> None:
    """Raises UserError for names that are too few, too many, odd, too long or twice the same."""
    least, most = count
    if not least <= len(names) <= most:
        raise UserError(f"{len(names)} {word}s", where=where, hint=f"{least} to {most}")
    for name in names:
        if not name or name != name.strip() or "," in name or "\n" in name:
            raise UserError(f"{name!r} is not a {word}", where=where, hint="some words")
        if len(name) > longest:
            raise UserError(
                f"{name[:20]!r}… is too long", where=where, hint=f"at most {longest} characters"
            )
    if len(set(names)) < len(names):
        raise UserError(f"the same {word} twice", where=where)


def read_project(ratings: Store) -> Project:
    """What is agreed on; the defaults for what is not. A value that no version of ours has written
    is left out. Raises UserError as every look at the database does."""
    rows = ratings.rows("SELECT name, value FROM project")
    return project_of({row["name"]: row["value"] for row in rows})


def project_of(values: Mapping[str, str]) -> Project:
    """Settings out of JSON by name, one by one: one that is odd keeps its default."""
    project = Project()
    known = {field.name for field in fields(Project)}
    for name in known & values.keys():
        text = values[name]
        try:
            value = _as_setting(name, parse_json(text))
            changed = Project(**{**asdict(project), name: value})
            changed.check()
        except (UserError, ValueError, TypeError, RecursionError):
            continue
        project = changed
    return project


def change_project(ratings: Store, **changes: Any) -> Project:
    """Stores what is changed, for all raters. Raises UserError naming what is out of range."""
    with ratings.transaction():
        project = Project(**{**asdict(read_project(ratings)), **changes})
        project.check()
        for name in changes:
            ratings.rows(
                "INSERT INTO project(name, value) VALUES (?, ?) "
                "ON CONFLICT(name) DO UPDATE SET value = excluded.value",
                (name, json.dumps(getattr(project, name))),
            )
    return project


def _as_setting(name: str, value: Any) -> Any:
    """Raises TypeError for a value of another kind than this setting's."""
    if name in ("reasons", "rubric"):
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise TypeError(name)
        return tuple(value)
    if type(value) is not type(getattr(Project(), name)):
        raise TypeError(name)
    return value
