"""`ondevice ratings project` and `ratings disagreements`: what the raters of a database share, shown and
changed, and of which pairs they say different things."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ondevice.common.bounded import read_text
from ondevice.common.errors import UserError
from ondevice.config.ratings import NO_SCALES, RatingsConfig
from ondevice.preferences.database import Ratings
from ondevice.preferences.history import disagreements
from ondevice.preferences.project import change_project, read_project
from ondevice.preferences.votes import is_settled, said


def agree(found: Ratings, cfg: RatingsConfig) -> dict[str, Any]:
    """Changes what is given of the project; returns all of it. Raises UserError for what is out of
    range, and for guidelines that cannot be read."""
    changes: dict[str, Any] = {}
    if cfg.file:
        changes["guidelines"] = _guidelines(cfg.file)
    if cfg.reasons:
        changes["reasons"] = tuple(reason.strip() for reason in cfg.reasons)
    if cfg.rubric:
        scales = tuple(scale.strip() for scale in cfg.rubric)
        if scales == (NO_SCALES,):
            changes["rubric"] = ()
        else:
            changes["rubric"] = scales
    if cfg.overlap != -1:
        changes["overlap"] = cfg.overlap
    for name in ("feedback", "reveal"):
        if getattr(cfg, name):
            changes[name] = getattr(cfg, name) == "yes"
    if changes:
        project = change_project(found, **changes)
    else:
        project = read_project(found)
    return {"ratings": str(found.path), **asdict(project)}


def _guidelines(file: str) -> str:
    path = Path(os.path.expanduser(file))
    try:
        return read_text(path).strip()
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=file) from error
    except ValueError as error:
        raise UserError(f"is not text: {error}", where=file) from error


def disputed(found: Ratings) -> Iterator[dict[str, Any]]:
    """Each item of which people say different things: who said what, and what settles it."""
    live = [vote for vote in found.live_votes(simulated=False) if vote.action == "vote"]
    for number in disagreements(found, settled=True):
        votes = [vote for vote in live if vote.item == number]
        settled = [vote for vote in votes if is_settled(vote.rater)]
        yield {
            "item": number,
            "prompt": found.item(number).messages,
            "said": {vote.rater: said(vote) for vote in votes if not is_settled(vote.rater)},
            "settled": said(settled[-1]) if settled else None,
        }


def disputed_text(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "people agree on everything that several of them have rated"
    lines = []
    for row in rows:
        votes = ", ".join(f"{rater}: {words}" for rater, words in row["said"].items())
        last = (row["prompt"] or [{}])[-1]
        question = str(last.get("content", ""))[:60].replace("\n", " ")
        lines.append(f"{row['item']:>6}  {question}")
        lines.append(f"        {votes}; settled: {row['settled'] or 'no'}")
    if any(row["settled"] is None for row in rows):
        lines.append("ondevice rate RUN --settle asks what is not settled")
    return "\n".join(lines)


def project_text(project: Mapping[str, Any]) -> str:
    asked = "everybody is asked every pair"
    if project["overlap"]:
        asked = f"each pair is asked of {project['overlap']}"
    return "\n".join(
        [
            f"guidelines: {project['guidelines'] or 'none yet (ondevice ratings project RUN FILE)'}",
            f"reasons: {', '.join(project['reasons'])}",
            f"rubric: {', '.join(project['rubric']) or 'no scales'}",
            f"overlap: {project['overlap']} ({asked})",
            f"feedback: {'yes' if project['feedback'] else 'no'}",
            f"reveal: {'yes' if project['reveal'] else 'no'}",
        ]
    )
