"""Keeping or dropping rows that a model wrote, in the plain terminal: one key each."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Mapping
from typing import Any

from ondevice.common.errors import Interrupted, UserError
from ondevice.common.sanitize import sanitize
from ondevice.config.asking import ReviewConfig
from ondevice.preferences.review import Review, Row, Verdict
from ondevice.preferences.terminal_keys import LEFT, RIGHT, Keys

VERDICTS: dict[str, Verdict] = {"k": "keep", "d": "drop"}
_ARROWS = {RIGHT: "k", LEFT: "d"}  # as in the app
_HELP = "k → keep · d ← drop · u undo · s later · q quit, all is saved"


def review(cfg: ReviewConfig) -> dict[str, Any]:
    """Asks until each row has a verdict or the person leaves: {"rows", "kept", "dropped", "left",
    "out"}. Raises UserError as `Review` does, Interrupted on Ctrl-C."""
    cfg.check()
    with Review(cfg.data) as rows, Keys() as keys:
        try:
            _ask(rows, keys)
        except KeyboardInterrupt:
            raise Interrupted("interrupted; every verdict is saved") from None
        return {**rows.counts, "out": str(rows.kept_file)}


def _ask(rows: Review, keys: Keys) -> None:
    row = rows.next()
    while row is not None:
        _show(rows, row)
        row = _answered(rows, row, keys)
    if not rows.counts["left"]:
        _say("nothing is left to review")


def _answered(rows: Review, row: Row, keys: Keys) -> Row | None:
    """The row to show then; None where the person leaves or nothing is left."""
    while True:
        _say(f"{_HELP} > ", end="")
        if keys.interactive:
            typed = keys.key()
            typed = _ARROWS.get(typed or "", typed)
        else:
            typed = keys.line()
        said = (typed or "q").strip()[:1].lower()
        _say(sanitize(said, newlines=False) if keys.interactive else "")
        try:
            if said in VERDICTS:
                rows.give(row.number, VERDICTS[said])
                return rows.next(row.number)
            if said == "s":
                return rows.next(row.number)
            if said == "u":
                back = rows.undo()
                if back is None:
                    _say("nothing to undo")
                return back or row
        except UserError as problem:  # a full disk: what is not stored is asked again
            _say(f"not saved: {problem}")
            continue
        if said == "q":
            return None


def _show(rows: Review, row: Row) -> None:
    width = min(100, shutil.get_terminal_size((80, 24)).columns)
    counts = rows.counts
    _say(
        f"\n── {row.number + 1} of {counts['rows']} ── {counts['kept']} kept, {counts['dropped']} dropped"
    )
    if row.passage:
        _say(_wrapped(row.passage, width, "  │ "))
        if row.source:
            _say(f"  └ {sanitize(row.source, newlines=False)}")
    _say(_wrapped(row.question, width, "? "))
    _say(_wrapped(row.answer, width, "  "))


def _wrapped(text: str, width: int, mark: str) -> str:
    lines = []
    for line in sanitize(text).splitlines():
        lines += textwrap.wrap(line, width - len(mark)) or [""]
    return "\n".join(mark + line for line in lines)


def _say(text: str, end: str = "\n") -> None:
    print(text, end=end, file=sys.stderr, flush=True)


def render(found: Mapping[str, Any]) -> str:
    """How far a review is."""
    out = sanitize(found["out"], newlines=False)
    return (
        f"{found['rows']:,} rows: {found['kept']:,} kept, {found['dropped']:,} dropped, "
        f"{found['left']:,} left\n{out} holds what was kept: sft learns from it"
    )
