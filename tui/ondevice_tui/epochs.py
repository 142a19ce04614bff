"""How often a stage goes through its data: so many steps, so many rows a step, so many rows there
are.

Known for rows that can be counted without a tokenizer: pairs and prompts. Chats that are packed and
running text are counted in tokens, and nothing is said of them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ondevice.common.errors import UserError
from ondevice.config.preference import PairsConfig, RolloutConfig
from ondevice.preferences.pairs import pairs_of
from ondevice.runs.folder import RunFolder
from ondevice.runs.listing import has_ratings

MOST_BYTES = 1 << 28  # of a file whose lines are counted


def rows_a_step(cls: type, values: Mapping[str, Any]) -> int | None:
    """Rows that one optimizer step, or one rollout, takes; None where that depends on more than the
    settings.
    """
    if issubclass(cls, PairsConfig):
        return int(values["batch_size"])
    if issubclass(cls, RolloutConfig):
        return int(values["prompts"])
    return None


def source_of(values: Mapping[str, Any]) -> tuple[Path, int] | None:
    """The one file of rows on this disk that the settings name, and when it was last changed; None
    for anything else."""
    from ondevice.preferences.sqlite_store import FILE

    data = str(values.get("data", ""))
    try:
        place = Path(os.path.expanduser(data)) if data else Path(str(values["out"]))
        if place.is_dir() and has_ratings(RunFolder(place)):
            place = place / FILE
        fits = place.is_file() and place.suffix in (".db", ".jsonl")
        if fits:
            return (place, place.stat().st_mtime_ns)
        return None
    except (
        OSError,
        ValueError,
        RuntimeError,
    ):  # a list of names too long for a path, a home that is not known
        return None


def count(source: Path) -> int | None:
    """Rows of a file: pairs of a database of votes, lines of a JSONL file. Takes its time; None
    where it cannot be read, which the stage itself says better."""
    try:
        if source.suffix == ".db":
            from ondevice.preferences.database import Ratings

            with Ratings.open(source) as ratings:
                return len(pairs_of(ratings))
        if source.stat().st_size > MOST_BYTES:
            return None
        with open(source, "rb") as file:
            return sum(1 for line in file if line.strip())
    except (UserError, OSError):
        return None


def told(steps: int, a_step: int, rows: int) -> str:
    """ "≈ 262 times through 61 rows"."""
    times = steps * a_step / rows
    shown = f"{times:,.0f}" if times >= 10 else f"{times:.1f}" if times >= 0.1 else f"{times:.2f}"
    return f"≈ {shown} times through {rows:,} row{'' if rows == 1 else 's'}"
