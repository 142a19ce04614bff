"""Ratings to files and back: pairs as TRL reads them, and whole votes that can be read in again.

Read are our own whole votes; pairs `{"prompt", "chosen", "rejected"}`, whose vote is then cast; and
what is yet to be rated, `{"prompt", "a", "b"}` or `{"prompt", "responses": […]}`, with `"votes":
["a", "tie", …]`, one a rater, if there are any.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

from ondevice.common.errors import UserError
from ondevice.common.files import write_file
from ondevice.common.json_files import to_json
from ondevice.config.use import RatingsConfig
from ondevice.data.formats import before, nothing_lost, to_chat
from ondevice.data.messages import BadRow, content_alone
from ondevice.data.preference_formats import to_pair
from ondevice.data.row_keys import Record
from ondevice.data.rows import read
from ondevice.preferences.agreement import statistics, text
from ondevice.preferences.backups import is_ours
from ondevice.preferences.database import Item, Outcome, Ratings, Response, Vote
from ondevice.preferences.pairs import pairs_of, unpaired_of
from ondevice.preferences.repair import repair_if_damaged
from ondevice.preferences.sqlite_store import clean, ratings_file

Row = Mapping[str, Any]
IMPORTED = "imported"  # the rater of pairs that come without one
_LETTERS = "abcd"
_FORMS = "prompt, chosen and rejected; prompt, a and b; prompt and responses; or exported votes"
_OUTCOMES: dict[str, Outcome] = {"tie": "tie", "bad": "all_bad", "all_bad": "all_bad"}


def manage(cfg: RatingsConfig) -> dict[str, Any]:
    """Does what `cfg.action` says. An export without a file returns its rows under `data`."""
    cfg.check()
    if cfg.action == "import":
        return import_file(cfg)
    if cfg.action == "repair":
        made = repair_if_damaged(cfg.ratings)
        return {
            "ratings": str(ratings_file(cfg.ratings)),
            "repair": str(made or "nothing is wrong with it"),
        }
    with Ratings.open(cfg.ratings) as found:
        if cfg.action == "export":
            return export(found, cfg)
        return statistics(
            found, cfg.batch or None, raters=cfg.raters, simulated=cfg.simulated, seed=cfg.seed
        )


def render(result: Mapping[str, Any]) -> str:
    """A result for people; for an export to stdout, the lines themselves."""
    if "agreement" in result:
        return text(result)
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
    else:
        derive = pairs_of if cfg.form == "preference" else unpaired_of
        made = derive(found, batch, raters=cfg.raters, simulated=cfg.simulated)
        rows = [{**row.trl(), **(row.extras() if cfg.with_raters else {})} for row in made.rows]
        counts = {
            "left_out": made.left_out,
            "votes": made.votes,
            "simulated_votes": made.simulated_votes,
        }
    result = {"form": cfg.form, "rows": len(rows), **counts}
    if not cfg.file:
        return {**result, "data": rows}
    file = Path(os.path.expanduser(cfg.file))
    if file.is_dir() or not file.parent.is_dir():
        raise UserError(
            "is a folder" if file.is_dir() else "its folder does not exist", where=cfg.file
        )
    if file.exists() and is_ours(file) and file.stat().st_size:
        raise UserError(
            "holds ratings, which an export would replace", where=cfg.file, hint="give another file"
        )
    write_file(file, "".join(to_json(row) + "\n" for row in rows))
    return {**result, "file": str(file)}


def whole(
    found: Ratings, batch: str | None = None, *, raters: Iterable[str] = (), simulated: bool = True
) -> Iterator[dict[str, Any]]:
    """Every item, then every vote, undos, notes and flags included: rows that an import takes as
    they are.
    """
    for item in found.items(batch):
        yield {"record": "item", **asdict(item)}
    for vote in found.votes(batch, raters=raters, simulated=simulated):
        yield {"record": "vote", **asdict(vote)}


# In


@dataclass(frozen=True)
class _New:
    """Something to queue, and the votes (outcome, slot of the best) that came with it."""

    prompt: list[dict[str, Any]]
    responses: list[Response]
    votes: Sequence[tuple[Outcome, int]] = ()
    meta: Mapping[str, Any] | None = None
    strength: int | None = None
    raters: Sequence[str] = ()
    said: int = 0  # votes that the row tells of: that a pair is one is none


def import_file(cfg: RatingsConfig) -> dict[str, Any]:
    """Adds what a file holds. All of its rows are read before the first is written, and all are
    written together.

    Whole votes keep everything but their ids; what is there already, from the same file or a copy
    of this database, is not added twice. Gold are the rows whose votes all name the same answer;
    how many others were left out, and how many votes were not kept, is said. Raises UserError,
    naming the row, where more than 1 % cannot be read, and where no row can be gold.
    """
    rows, whole_rows = read(cfg.file), _Whole()
    new: list[_New] = []
    not_gold = Counter[str]()
    for row, where in rows:
        try:
            if "record" in row:
                if cfg.gold:
                    raise BadRow(
                        "a row of exported votes keeps its kind: gold is for pairs (leave --gold out)"
                    )
                whole_rows.take(row)
            else:
                entry = _parse(row, cfg.gold)
                nothing_lost(row)
                if cfg.gold and (why := _why_not_gold(entry)):
                    not_gold[why] += 1
                else:
                    new.append(entry)
        except BadRow as error:
            rows.reject(where, str(error), row)
    rows.check()
    if cfg.gold and not new:
        why_not = ", ".join(f"{count} {why}" for why, count in not_gold.items())
        raise UserError(
            f"no row says which answer is the better one ({why_not})",
            where=cfg.file,
            hint="give pairs of chosen and rejected, or votes that agree",
        )
    batch = cfg.batch or Path(cfg.file).stem
    with Ratings.open(cfg.ratings, create=True) as into, into.transaction():
        items, votes = whole_rows.write(into)
        for entry in new:
            if cfg.gold:
                into.add(
                    batch,
                    entry.prompt,
                    entry.responses,
                    kind="gold",
                    gold=entry.votes[0][1],
                    meta=entry.meta,
                    seed=cfg.seed,
                )
                items += 1
                continue
            item = into.add(batch, entry.prompt, entry.responses, meta=entry.meta, seed=cfg.seed)
            raters = _raters(cfg.raters or entry.raters, len(entry.votes))
            for rater, (outcome, best) in zip(raters, entry.votes, strict=True):
                into.vote(
                    item,
                    rater,
                    "import",
                    outcome,
                    [best] if outcome == "ranked" else [],
                    strength=entry.strength,
                )
            items, votes = items + 1, votes + len(entry.votes)
    if rows.rejected:
        bad = {"first_bad_row": f"{rows.rejected[0].where}: {rows.rejected[0].reason}"}
    else:
        bad = {}
    if cfg.gold:
        gold = {"left_out": dict(not_gold), "votes_not_kept": sum(entry.said for entry in new)}
    else:
        gold = {}
    told = {"not_used": rows.telling().removeprefix("not used: ")} if rows.telling() else {}
    return {
        "items": items,
        "votes": votes,
        "already_there": whole_rows.known,
        "bad_rows": len(rows.rejected),
        **bad,
        **gold,
        **told,
        "ratings": str(into.path),
    }


def _why_not_gold(entry: _New) -> str:
    """Why its votes do not say which answer is the better one; empty where they do."""
    if not entry.votes:
        return "without a vote"
    if any(outcome != "ranked" for outcome, _ in entry.votes):
        return "tie or all bad"
    if len(set(entry.votes)) > 1:
        return "with votes that differ"
    return ""


def _raters(given: Sequence[str], count: int) -> list[str]:
    """The raters of one row's votes: as named, then numbered."""
    names = list(given[:count])
    if not names and count == 1:
        return [IMPORTED]
    return names + [f"{IMPORTED}-{n + 1}" for n in range(len(names), count)]


def _parse(row: Record, gold: bool = False) -> _New:
    """`gold`: a vote's strength is not kept, and may be a mean. Raises BadRow."""
    if "chosen" in row and "rejected" in row:
        made = to_pair(row)
        row.asked.discard("margin")  # a vote has none, so that it is told of
        if (strength := made.get("strength", 1.0)) not in (1.0, 2.0) and not gold:
            raise BadRow(
                f"a vote's strength is 1 or 2, not {strength:g}, the mean of several (export --form votes)"
            )
        raters = made.get("raters") or []
        return _New(
            made["prompt"],
            [Response(made["chosen"]), Response(made["rejected"])],
            [("ranked", 0)] * max(1, len(raters)),
            strength=int(strength) if "strength" in row else None,
            raters=raters,
            said=len(raters),
        )
    if "completion" in row and isinstance(dict.get(row, "label"), bool):
        raise BadRow(
            "one completion that is good or bad is not a choice among several: dpo --loss-type kto learns "
            "from such a file as it is"
        )
    if "prompt" not in row:
        raise BadRow(f"none of the known forms: {_FORMS}")
    prompt = before(_prompt(row["prompt"]), row)
    if "responses" in row:
        given = row["responses"]
        if not isinstance(given, list) or not 2 <= len(given) <= len(_LETTERS):
            raise BadRow("responses must be a list of two to four")
        responses = [_response(value, prompt, f"response {n + 1}") for n, value in enumerate(given)]
    elif "a" in row and "b" in row:
        sources = _sources(row.get("models"))
        responses = [
            Response(_answer(row[name], prompt, name), source)
            for name, source in zip("ab", sources, strict=True)
        ]
    else:
        raise BadRow(f"none of the known forms: {_FORMS}")
    said = row.get("votes", [])
    if not isinstance(said, list):
        raise BadRow("votes must be a list, one of each rater")
    return _New(prompt, responses, [_cast(vote, len(responses)) for vote in said], said=len(said))


def _cast(vote: Any, width: int) -> tuple[Outcome, int]:
    if isinstance(vote, str):
        if vote in _OUTCOMES:
            return _OUTCOMES[vote], -1
        if len(vote) == 1 and vote in _LETTERS[:width]:
            return "ranked", _LETTERS.index(vote)
    raise BadRow(f"a vote is one of {', '.join(_LETTERS[:width])}, tie or bad, not {vote!r:.40}")


def _prompt(value: Any) -> list[dict[str, Any]]:
    messages = value if isinstance(value, list) else [{"role": "user", "content": value}]
    try:
        return list(to_chat({"messages": messages})["messages"])
    except BadRow as error:
        raise BadRow(f"prompt: {error}") from None


def _answer(value: Any, prompt: Sequence[Row], name: str) -> str:
    """A text, or messages of which the last is the answer and the others, if any, are the prompt's."""
    messages = value if isinstance(value, list) else [{"role": "assistant", "content": value}]
    try:
        said = to_chat({"messages": messages})["messages"]
    except BadRow as error:
        raise BadRow(f"{name}: {error}") from None
    if said[: len(prompt)] == list(prompt):
        said = said[len(prompt) :]
    if len(said) != 1 or said[0]["role"] != "assistant":
        raise BadRow(f"{name} is not one answer to the prompt")
    return str(content_alone(said[0], name))


def _response(value: Any, prompt: Sequence[Row], name: str) -> Response:
    if not isinstance(value, Mapping):
        return Response(_answer(value, prompt, name))
    source = value.get("source", "")
    if not isinstance(source, str):
        raise BadRow(f"{name}: source must be text")
    return Response(_answer(value.get("text"), prompt, name), source)


def _sources(models: Any) -> tuple[str, str]:
    """Two names: a list, or text with one underscore between them; nameless otherwise."""
    names = models.split("_") if isinstance(models, str) else models
    if isinstance(names, list) and len(names) == 2 and all(isinstance(name, str) for name in names):
        return names[0], names[1]
    return "", ""


class _Whole:
    """Rows of `whole`, checked one after the other, then written with new ids."""

    def __init__(self) -> None:
        self.items: dict[int, tuple[dict[str, Any], list[Response]]] = {}
        self.votes: dict[int, dict[str, Any]] = {}
        self.known = 0

    def take(self, row: Row) -> None:
        """Raises BadRow."""
        if row["record"] == "item":
            self._take_item(row)
        elif row["record"] == "vote":
            self._take_vote(row)
        else:
            raise BadRow("record must be item or vote")

    def write(self, into: Ratings) -> tuple[int, int]:
        """Adds what is not there yet; returns how many items and votes."""
        there = {
            _item_key(asdict(item), item.responses, item.repeat_of): item.id
            for item in into.items()
        }
        ids: dict[int | None, int | None] = {None: None}
        before = len(there)
        for old, (row, responses) in self.items.items():
            moved = {**row, "repeat_of": ids[row["repeat_of"]]}
            key = _item_key(moved, responses, moved["repeat_of"])
            if key not in there:
                there[key] = into.insert_item(moved, responses)
            ids[old] = there[key]
        items = len(there) - before
        cast = {_vote_key(asdict(vote)): vote.id for vote in into.votes()}
        before = len(cast)
        numbers: dict[int | None, int | None] = {None: None}
        for old, row in sorted(self.votes.items()):
            moved = {**row, "item": ids[row["item"]], "undoes": numbers[row["undoes"]]}
            key = _vote_key(moved)
            if key not in cast:
                cast[key] = into.insert_vote(
                    {**moved, "ranking": moved["ranking"] or None, "shown": moved["shown"] or None}
                )
            numbers[old] = cast[key]
        votes = len(cast) - before
        self.known = len(self.items) + len(self.votes) - items - votes
        return items, votes

    def _take_item(self, row: Row) -> None:
        found: dict[str, Any] = {f.name: row.get(f.name) for f in fields(Item)}
        number = _whole_number(found.pop("id"), "id")
        given = found.pop("responses")
        if number in self.items:
            raise BadRow(f"item {number} stands twice")
        if (
            not isinstance(given, list)
            or not 2 <= len(given) <= 4
            or not all(isinstance(r, Mapping) for r in given)
        ):
            raise BadRow("responses must be a list of two to four")
        for value in (*given, found):
            if not isinstance(value.get("meta"), Mapping):
                raise BadRow("meta must be an object")
            _strict(value["meta"])
        responses = [
            Response(
                _text(r.get("text"), "text"), _text(r.get("source"), "source"), dict(r["meta"])
            )
            for r in given
        ]
        for name in ("batch", "prompt"):
            found[name] = _text(found[name], name)
        found["shown"] = _slots(found["shown"], len(given), "shown")
        if len(found["shown"]) != len(given):
            raise BadRow("shown must name every slot")
        kind, gold, of = found["kind"], found["gold"], found["repeat_of"]
        if (
            kind not in ("normal", "gold", "repeat")
            or (kind == "gold") != (gold is not None)
            or (kind == "repeat") != (of is not None)
        ):
            raise BadRow("kind must be normal, gold (with gold) or repeat (with repeat_of)")
        if gold is not None and not 0 <= _whole_number(gold, "gold") < len(given):
            raise BadRow("gold must be a slot")
        if of is not None and of not in self.items:
            raise BadRow(f"repeats item {of!r:.20}, which is not before it")
        found["created"] = _seconds(found["created"], "created")
        if found["prompt_sha"] != sha256(found["prompt"].encode()).hexdigest():
            raise BadRow("prompt_sha is not the sha256 of the prompt")
        self.items[number] = (found, responses)

    def _take_vote(self, row: Row) -> None:
        found: dict[str, Any] = {f.name: row.get(f.name) for f in fields(Vote)}
        number = _whole_number(found.pop("id"), "id")
        if number in self.votes:
            raise BadRow(f"vote {number} stands twice")
        if not isinstance(found["item"], int) or found["item"] not in self.items:
            raise BadRow(f"votes on item {found['item']!r:.20}, which is not before it")
        width = len(self.items[found["item"]][1])
        for name in ("rater", "session", "app"):
            found[name] = _text(found[name], name)
        for name in ("reason", "note"):
            found[name] = None if found[name] is None else _text(found[name], name)
        found["ranking"], found["shown"] = (
            _slots(found[n] or [], width, n) for n in ("ranking", "shown")
        )
        action, outcome = found["action"], found["outcome"]
        if action not in ("vote", "skip", "undo", "note", "flag") or (action == "vote") != (
            outcome is not None
        ):
            raise BadRow("action must be vote (with an outcome), skip, undo, note or flag")
        if outcome not in (None, "ranked", "tie", "all_bad") or (outcome == "ranked") != bool(
            found["ranking"]
        ):
            raise BadRow("outcome must be ranked (with a ranking), tie or all_bad")
        if found["strength"] not in (None, 1, 2) or found["seen_end"] not in (None, True, False):
            raise BadRow("strength must be 1 or 2, seen_end true or false")
        if found["dwell_ms"] is not None:
            _whole_number(found["dwell_ms"], "dwell_ms")
        found["at"] = _seconds(found["at"], "at")
        self._check_undo(found)
        self.votes[number] = found

    def _check_undo(self, found: Row) -> None:
        undone = found["undoes"]
        if (found["action"] == "undo") != (undone is not None):
            raise BadRow("undo and undoes belong together")
        if undone is None:
            return
        vote = self.votes.get(undone) if isinstance(undone, int) else None
        if (
            vote is None
            or (vote["item"], vote["rater"]) != (found["item"], found["rater"])
            or (vote["action"] not in ("vote", "skip"))
            or any(v["undoes"] == undone for v in self.votes.values())
        ):
            raise BadRow(
                f"undoes {undone!r:.20}, which is no earlier vote of this rater on this item, or was undone"
            )


def _item_key(row: Row, responses: Sequence[Response], repeat_of: int | None) -> str:
    """Equal for the same item in two databases."""
    names = ("batch", "prompt", "shown", "kind", "gold", "meta", "created")
    return to_json([repeat_of, *(row[name] for name in names), *map(asdict, responses)])


def _vote_key(row: Row) -> str:
    return to_json([row[f.name] for f in fields(Vote) if f.name != "id"])


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise BadRow(f"{name} must be text")
    return clean(value)


def _whole_number(value: Any, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not -(2**63) <= value < 2**63:
        raise BadRow(f"{name} must be a whole number")
    return value


def _seconds(value: Any, name: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise BadRow(f"{name} must be a number of seconds")
    return float(value)


def _slots(value: Any, width: int, name: str) -> tuple[int, ...]:
    if (
        not isinstance(value, list)
        or not all(type(slot) is int and 0 <= slot < width for slot in value)
        or (len(set(value)) != len(value))
    ):
        raise BadRow(f"{name} must be a list of slots, none twice")
    return tuple(value)


def _strict(value: Any, depth: int = 0) -> None:
    """Raises BadRow for what SQLite's JSON does not take."""
    if depth > 100:
        raise BadRow("meta is nested too deep")
    if isinstance(value, float) and not math.isfinite(value):
        raise BadRow("meta holds a number that is not finite")
    for inner in (
        value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    ):
        _strict(inner, depth + 1)
