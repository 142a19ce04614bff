"""Exported votes read back: rows of `import_export.whole`, whose items and votes get new ids."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from hashlib import sha256
from typing import Any

from ondevice.common.json_files import to_json
from ondevice.common.numbers import is_number
from ondevice.data.messages import BadRow
from ondevice.preferences.database import Ratings
from ondevice.preferences.project import Project, change_project, project_of, read_project
from ondevice.preferences.rubric import MOST, TAKEN_BACK, Score, every_score
from ondevice.preferences.sqlite_store import clean
from ondevice.preferences.votes import Item, Response, Vote

Row = Mapping[str, Any]


class ExportedVotes:
    """Items, votes and scores, checked one after the other, then written with new ids."""

    def __init__(self) -> None:
        self.items: dict[int, tuple[dict[str, Any], list[Response]]] = {}
        self.votes: dict[int, dict[str, Any]] = {}
        self.scores: dict[int, dict[str, Any]] = {}
        self.new_scores = 0
        self.known = 0
        self.project: Project | None = None

    def take(self, row: Row) -> None:
        """Raises BadRow for a row that no export has written."""
        if row["record"] == "item":
            self._take_item(row)
        elif row["record"] == "vote":
            self._take_vote(row)
        elif row["record"] == "score":
            self._take_score(row)
        elif row["record"] == "project":
            self.project = _project(row)
        else:
            raise BadRow("record must be item, vote, score or project")

    def write(self, into: Ratings) -> tuple[int, int]:
        """Adds what is not there yet; returns how many items and votes. What its raters have agreed
        on is taken over where those of `into` have agreed on nothing."""
        if self.project is not None and read_project(into) == Project():
            change_project(into, **asdict(self.project))
        ids: dict[int | None, int | None] = {None: None}
        items = self._write_items(into, ids)
        votes = self._write_votes(into, ids)
        self.new_scores = self._write_scores(into, ids)
        given = len(self.items) + len(self.votes) + len(self.scores)
        self.known = given - items - votes - self.new_scores
        return items, votes

    def _write_items(self, into: Ratings, ids: dict[int | None, int | None]) -> int:
        """How many items are new. `ids` gets the id of each in the database, by its exported id."""
        there: dict[str, int] = {}
        for item in into.items():
            there[_item_key(asdict(item), item.responses, item.repeat_of)] = item.id
        before = len(there)
        for old, (row, responses) in self.items.items():
            moved = {**row, "repeat_of": ids[row["repeat_of"]]}
            key = _item_key(moved, responses, moved["repeat_of"])
            if key not in there:
                there[key] = into.insert_item(moved, responses)
            ids[old] = there[key]
        return len(there) - before

    def _write_votes(self, into: Ratings, ids: Mapping[int | None, int | None]) -> int:
        """How many votes are new. `ids`: the items' ids in the database, by their exported ids."""
        there = {_vote_key(asdict(vote)): vote.id for vote in into.votes()}
        before = len(there)
        numbers: dict[int | None, int | None] = {None: None}
        for old, row in sorted(self.votes.items()):
            moved = {**row, "item": ids[row["item"]], "undoes": numbers[row["undoes"]]}
            key = _vote_key(moved)
            if key not in there:
                stored = {
                    **moved,
                    "ranking": moved["ranking"] or None,
                    "shown": moved["shown"] or None,
                }
                there[key] = into.insert_vote(stored)
            numbers[old] = there[key]
        return len(there) - before

    def _write_scores(self, into: Ratings, ids: Mapping[int | None, int | None]) -> int:
        """How many scores are new; `ids` as for votes."""
        there = {_score_key(asdict(score)) for score in every_score(into)}
        before = len(there)
        for _, row in sorted(self.scores.items()):
            moved = {**row, "item": ids[row["item"]]}
            if _score_key(moved) not in there:
                there.add(_score_key(moved))
                into.insert_score(moved)
        return len(there) - before

    def _take_item(self, row: Row) -> None:
        found: dict[str, Any] = {f.name: row.get(f.name) for f in fields(Item)}
        number = _whole_number(found.pop("id"), "id")
        given = found.pop("responses")
        if number in self.items:
            raise BadRow(f"item {number} stands twice")
        if not _are_responses(given):
            raise BadRow("responses must be a list of two to four")
        for value in (*given, found):
            if not isinstance(value.get("meta"), Mapping):
                raise BadRow("meta must be an object")
            _strict(value["meta"])
        responses = [_response(value) for value in given]
        for name in ("batch", "prompt"):
            found[name] = _text(found[name], name)
        found["shown"] = _slots(found["shown"], len(given), "shown")
        if len(found["shown"]) != len(given):
            raise BadRow("shown must name every slot")
        self._check_kind(found, len(given))
        found["created"] = _seconds(found["created"], "created")
        if found["prompt_sha"] != sha256(found["prompt"].encode()).hexdigest():
            raise BadRow("prompt_sha is not the sha256 of the prompt")
        self.items[number] = (found, responses)

    def _check_kind(self, found: Row, width: int) -> None:
        """Raises BadRow where a kind of item lacks what belongs to it, or has another kind's."""
        kind = found["kind"]
        gold = found["gold"]
        of = found["repeat_of"]
        has_gold = gold is not None
        repeats = of is not None
        known = kind in ("normal", "gold", "repeat")
        if not known or (kind == "gold") != has_gold or (kind == "repeat") != repeats:
            raise BadRow("kind must be normal, gold (with gold) or repeat (with repeat_of)")
        if has_gold and not 0 <= _whole_number(gold, "gold") < width:
            raise BadRow("gold must be a slot")
        if repeats and of not in self.items:
            raise BadRow(f"repeats item {of!r:.20}, which is not before it")

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
            if found[name] is not None:
                found[name] = _text(found[name], name)
        for name in ("ranking", "shown"):
            found[name] = _slots(found[name] or [], width, name)
        _check_outcome(found)
        if found["dwell_ms"] is not None:
            _whole_number(found["dwell_ms"], "dwell_ms")
        found["at"] = _seconds(found["at"], "at")
        self._check_undo(found)
        self.votes[number] = found

    def _take_score(self, row: Row) -> None:
        found: dict[str, Any] = {f.name: row.get(f.name) for f in fields(Score)}
        number = _whole_number(found.pop("id"), "id")
        if number in self.scores:
            raise BadRow(f"score {number} stands twice")
        if not isinstance(found["item"], int) or found["item"] not in self.items:
            raise BadRow(f"scores item {found['item']!r:.20}, which is not before it")
        width = len(self.items[found["item"]][1])
        if not 0 <= _whole_number(found["slot"], "slot") < width:
            raise BadRow("slot must be that of an answer")
        if not TAKEN_BACK <= _whole_number(found["score"], "score") <= MOST:
            raise BadRow(f"score must be {TAKEN_BACK} to {MOST}")
        for name in ("rater", "session", "scale", "app"):
            found[name] = _text(found[name], name)
        found["at"] = _seconds(found["at"], "at")
        self.scores[number] = found

    def _check_undo(self, found: Row) -> None:
        undone = found["undoes"]
        if (found["action"] == "undo") != (undone is not None):
            raise BadRow("undo and undoes belong together")
        if undone is not None and not self._can_undo(found):
            raise BadRow(
                f"undoes {undone!r:.20}, which is not an earlier vote of this rater on this item, or was undone"
            )

    def _can_undo(self, found: Row) -> bool:
        """Whether a vote undoes an earlier vote or skip of its rater on its item that still counts."""
        undone = found["undoes"]
        if not isinstance(undone, int):
            return False
        vote = self.votes.get(undone)
        if vote is None or vote["action"] not in ("vote", "skip"):
            return False
        if (vote["item"], vote["rater"]) != (found["item"], found["rater"]):
            return False
        return all(other["undoes"] != undone for other in self.votes.values())


def _project(row: Row) -> Project:
    """Raises BadRow for what is no setting of a project, or is out of range."""
    given = {name: value for name, value in row.items() if name != "record"}
    try:
        project = project_of({name: to_json(value) for name, value in given.items()})
        same = to_json(asdict(project)) == to_json({**asdict(Project()), **given})
    except ValueError:  # a number that is not finite
        same = False
    if not same:
        raise BadRow("is not what raters can agree on")
    return project


def _check_outcome(found: Row) -> None:
    """Raises BadRow for an action, outcome, strength or end that no version of ours writes."""
    action = found["action"]
    outcome = found["outcome"]
    known = action in ("vote", "skip", "undo", "note", "flag")
    if not known or (action == "vote") != (outcome is not None):
        raise BadRow("action must be vote (with an outcome), skip, undo, note or flag")
    known = outcome in (None, "ranked", "tie", "all_bad")
    if not known or (outcome == "ranked") != bool(found["ranking"]):
        raise BadRow("outcome must be ranked (with a ranking), tie or all_bad")
    if found["strength"] not in (None, 1, 2) or found["seen_end"] not in (None, True, False):
        raise BadRow("strength must be 1 or 2, seen_end true or false")


def _item_key(row: Row, responses: Sequence[Response], repeat_of: int | None) -> str:
    """Equal for the same item in two databases."""
    key: list[Any] = [repeat_of]
    for name in ("batch", "prompt", "shown", "kind", "gold", "meta", "created"):
        key.append(row[name])
    key += map(asdict, responses)
    return to_json(key)


def _vote_key(row: Row) -> str:
    return to_json([row[f.name] for f in fields(Vote) if f.name != "id"])


def _score_key(row: Row) -> str:
    return to_json([row[f.name] for f in fields(Score) if f.name != "id"])


def _are_responses(given: Any) -> bool:
    if not isinstance(given, list) or not 2 <= len(given) <= 4:
        return False
    return all(isinstance(value, Mapping) for value in given)


def _response(value: Row) -> Response:
    text = _text(value.get("text"), "text")
    source = _text(value.get("source"), "source")
    return Response(text, source, dict(value["meta"]))


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise BadRow(f"{name} must be text")
    return clean(value)


def _whole_number(value: Any, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not -(2**63) <= value < 2**63:
        raise BadRow(f"{name} must be a whole number")
    return value


def _seconds(value: Any, name: str) -> float:
    if not is_number(value):
        raise BadRow(f"{name} must be a number of seconds")
    return float(value)


def _slots(value: Any, width: int, name: str) -> tuple[int, ...]:
    if not _are_slots(value, width):
        raise BadRow(f"{name} must be a list of slots, none twice")
    return tuple(value)


def _are_slots(value: Any, width: int) -> bool:
    if not isinstance(value, list):
        return False
    for slot in value:
        if type(slot) is not int or not 0 <= slot < width:
            return False
    return len(set(value)) == len(value)


def _strict(value: Any, depth: int = 0) -> None:
    """Raises BadRow for what SQLite's JSON does not take."""
    if depth > 100:
        raise BadRow("meta is nested too deep")
    if isinstance(value, float) and not math.isfinite(value):
        raise BadRow("meta holds a number that is not finite")
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            _strict(inner, depth + 1)
