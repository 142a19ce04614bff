"""Ratings to files and back: pairs as TRL reads them, and whole votes that can be read in again.

Our own whole votes are read (`exported_votes.py`), and what a person's file has (`import_rows.py`).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ondevice.common.errors import UserError
from ondevice.common.files import write_file
from ondevice.common.json_files import to_json
from ondevice.config.ratings import RatingsConfig
from ondevice.data.messages import BadRow
from ondevice.data.rows import Rows, read
from ondevice.preferences.backups import is_ours
from ondevice.preferences.database import Ratings
from ondevice.preferences.exported_votes import ExportedVotes
from ondevice.preferences.import_rows import NewItem, parse
from ondevice.preferences.pairs import pairs_of, unpaired_of
from ondevice.preferences.project import Project, read_project
from ondevice.preferences.project_command import agree, disputed, disputed_text, project_text
from ondevice.preferences.repair import repair_if_damaged
from ondevice.preferences.rubric import every_score, live_scores, scored_rows
from ondevice.preferences.sqlite_store import ratings_file
from ondevice.preferences.vote_statistics import statistics, text

IMPORTED = "imported"  # the rater of pairs that come without one


def manage(cfg: RatingsConfig) -> dict[str, Any]:
    """Does what `cfg.action` says. An export without a file returns its rows under `data`."""
    cfg.check()
    if cfg.action == "import":
        return import_file(cfg)
    if cfg.action == "repair":
        repair = repair_if_damaged(cfg.ratings)
        return {
            "ratings": str(ratings_file(cfg.ratings)),
            "repair": str(repair or "nothing is wrong with it"),
        }
    with Ratings.open(cfg.ratings) as found:
        if cfg.action == "project":
            return agree(found, cfg)
        if cfg.action == "disagreements":
            return {"disagreements": list(disputed(found))}
        if cfg.action == "export":
            return export(found, cfg)
        return statistics(
            found, cfg.batch or None, raters=cfg.raters, simulated=cfg.simulated, seed=cfg.seed
        )


def render(result: Mapping[str, Any]) -> str:
    """A result for people; for an export to stdout, the lines themselves."""
    if "agreement" in result:
        return text(result)
    if "disagreements" in result:
        return disputed_text(result["disagreements"])
    if "guidelines" in result:
        return project_text(result)
    if "data" in result:
        return "\n".join(map(to_json, result["data"]))
    lines = []
    for name, value in result.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{count} {word}" for word, count in value.items()) or "nothing"
        lines.append(f"{name.replace('_', ' ')}: {value}")
    return "\n".join(lines)


# Out


def export(found: Ratings, cfg: RatingsConfig) -> dict[str, Any]:
    """Writes JSON lines to `cfg.file`; returns how many, and what was left out and why."""
    batch = cfg.batch or None
    counts: dict[str, Any] = {}
    if cfg.form == "votes":
        rows = list(whole(found, batch, raters=cfg.raters, simulated=cfg.simulated))
    elif cfg.form == "scores":
        scores = live_scores(every_score(found, batch, raters=cfg.raters, simulated=cfg.simulated))
        rows = list(scored_rows(found.items(batch), scores, with_raters=cfg.with_raters))
    else:
        derive = pairs_of if cfg.form == "preference" else unpaired_of
        made = derive(found, batch, raters=cfg.raters, simulated=cfg.simulated)
        rows = []
        for pair in made.rows:
            row = pair.trl()
            if cfg.with_raters:
                row |= pair.extras()
            rows.append(row)
        counts = {
            "left_out": made.left_out,
            "votes": made.votes,
            "simulated_votes": made.simulated_votes,
        }
    result = {"form": cfg.form, "rows": len(rows), **counts}
    if not cfg.file:
        return {**result, "data": rows}
    file = Path(os.path.expanduser(cfg.file))
    if file.is_dir():
        raise UserError("is a folder", where=cfg.file)
    if not file.parent.is_dir():
        raise UserError("its folder does not exist", where=cfg.file)
    if file.exists() and is_ours(file) and file.stat().st_size:
        raise UserError(
            "holds ratings, which an export would replace", where=cfg.file, hint="give another file"
        )
    write_file(file, "".join(to_json(row) + "\n" for row in rows))
    return {**result, "file": str(file)}


def whole(
    found: Ratings, batch: str | None = None, *, raters: Iterable[str] = (), simulated: bool = True
) -> Iterator[dict[str, Any]]:
    """What the raters have agreed on, where they have; every item, every vote, undos, notes
    and flags included, and every score: rows that an import takes as they are.
    """
    project = read_project(found)
    if project != Project():
        yield {"record": "project", **asdict(project)}
    for item in found.items(batch):
        yield {"record": "item", **asdict(item)}
    for vote in found.votes(batch, raters=raters, simulated=simulated):
        yield {"record": "vote", **asdict(vote)}
    for score in every_score(found, batch, raters=raters, simulated=simulated):
        yield {"record": "score", **asdict(score)}


# In


def import_file(cfg: RatingsConfig) -> dict[str, Any]:
    """Adds what a file holds. All of its rows are read before the first is written, and all are
    written together.

    Whole votes keep everything but their ids; what is there already, from the same file or a copy
    of this database, is not added twice. Gold are the rows whose votes all name the same answer;
    how many others were left out, and how many votes were not kept, is said. Raises UserError,
    naming the row, where more than 1 % cannot be read, and where no row can be gold.
    """
    rows = read(cfg.file)
    found = _read_rows(rows, cfg)
    rows.check()
    if cfg.gold and not found.new:
        why_not = ", ".join(f"{count} {why}" for why, count in found.not_gold.items())
        raise UserError(
            f"no row says which answer is the better one ({why_not})",
            where=cfg.file,
            hint="give pairs of chosen and rejected, or votes that agree",
        )
    with Ratings.open(cfg.ratings, create=True) as into, into.transaction():
        items, votes = found.exported.write(into)
        for entry in found.new:
            items += 1
            votes += _queue(into, entry, cfg)
    told: dict[str, Any] = {
        "items": items,
        "votes": votes,
        "already_there": found.exported.known,
        "bad_rows": len(rows.rejected),
    }
    if found.exported.new_scores:
        told["scores"] = found.exported.new_scores
    if rows.rejected:
        told["first_bad_row"] = f"{rows.rejected[0].where}: {rows.rejected[0].reason}"
    if cfg.gold:
        told["left_out"] = dict(found.not_gold)
        told["votes_not_kept"] = sum(entry.said for entry in found.new)
    if rows.telling():
        told["not_used"] = rows.telling().removeprefix("not used: ")
    told["ratings"] = str(into.path)
    return told


@dataclass
class _FileRows:
    """A file's rows: items to queue, how many cannot be gold and why, and exported votes."""

    new: list[NewItem] = field(default_factory=list)
    not_gold: Counter[str] = field(default_factory=Counter)
    exported: ExportedVotes = field(default_factory=ExportedVotes)


def _read_rows(rows: Rows, cfg: RatingsConfig) -> _FileRows:
    """Bad rows are rejected."""
    found = _FileRows()
    for row, where in rows:
        try:
            if "record" in row:
                if cfg.gold:
                    raise BadRow(
                        "a row of exported votes keeps its kind: gold is for pairs (leave --gold out)"
                    )
                found.exported.take(row)
                continue
            entry = parse(row, cfg.gold)
        except BadRow as error:
            rows.reject(where, str(error), row)
            continue
        if cfg.gold and entry.why_not_gold:
            found.not_gold[entry.why_not_gold] += 1
        else:
            found.new.append(entry)
    return found


def _queue(into: Ratings, entry: NewItem, cfg: RatingsConfig) -> int:
    """Queues an item and casts its votes, or with `cfg.gold` queues it as gold; returns how many
    votes were cast."""
    batch = cfg.batch or Path(cfg.file).stem
    if cfg.gold:
        best = entry.votes[0][1]
        into.add(batch, entry.prompt, entry.responses, kind="gold", gold=best, seed=cfg.seed)
        return 0
    item = into.add(batch, entry.prompt, entry.responses, seed=cfg.seed)
    raters = _raters(cfg.raters or entry.raters, len(entry.votes))
    for rater, (outcome, best) in zip(raters, entry.votes, strict=True):
        ranking = []
        if outcome == "ranked":
            ranking.append(best)
        into.vote(item, rater, "import", outcome, ranking, strength=entry.strength)
    return len(entry.votes)


def _raters(given: Sequence[str], count: int) -> list[str]:
    """The raters of one row's votes: as named, then numbered."""
    names = list(given[:count])
    if not names and count == 1:
        return [IMPORTED]
    for number in range(len(names) + 1, count + 1):
        names.append(f"{IMPORTED}-{number}")
    return names
