"""Scores of single answers on a project's scales: kept, replaced, moved, repaired, counted."""

from __future__ import annotations

import io
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ondevice as od
from ondevice.common.errors import UserError
from ondevice.preferences import rubric, terminal_text
from ondevice.preferences.agreement import interval_alpha
from ondevice.preferences.database import Ratings
from ondevice.preferences.project import change_project, read_project
from ondevice.preferences.repair import repair_if_damaged
from ondevice.preferences.rubric_terminal import ask_scores
from ondevice.preferences.terminal_keys import Keys
from ondevice.preferences.vote_statistics import statistics, text
from ondevice.preferences.votes import Response
from ondevice_tui.screens.vote_statistics import told_of


@pytest.fixture
def ratings(tmp_path: Path) -> Iterator[Ratings]:
    with Ratings.open(tmp_path / "r.db", create=True) as opened:
        for n in range(2):
            opened.add("b", f"{n}?", [Response("yes", "one"), Response("no", "two")], seed=0)
        change_project(opened, rubric=("helpful", "correct"))
        yield opened


def fill(ratings: Ratings) -> None:
    first = {(0, "helpful"): 4, (1, "helpful"): 2, (0, "correct"): 5}
    assert rubric.give(ratings, 1, "Ada", "s", first) == 3
    assert rubric.give(ratings, 1, "Bob", "s", {(0, "helpful"): 5, (1, "helpful"): 2}) == 2
    assert rubric.give(ratings, 2, "Ada", "s", {(0, "helpful"): 3}) == 1


def live(ratings: Ratings) -> list[tuple[int, int, str, str, int]]:
    scores = rubric.live_scores(rubric.every_score(ratings))
    return sorted((s.item, s.slot, s.rater, s.scale, s.score) for s in scores)


def test_a_later_score_replaces_an_earlier_one_and_nothing_is_deleted(ratings: Ratings) -> None:
    fill(ratings)
    changed = {(0, "helpful"): 1, (1, "helpful"): 2, (0, "correct"): rubric.TAKEN_BACK}
    assert rubric.give(ratings, 1, "Ada", "s", changed) == 2, "what is the same is not written"
    assert rubric.scores_of(ratings, 1, "Ada") == {(0, "helpful"): 1, (1, "helpful"): 2}
    assert rubric.scores_of(ratings, 1, "Bob") == {(0, "helpful"): 5, (1, "helpful"): 2}
    assert len(rubric.every_score(ratings)) == 8 and len(live(ratings)) == 5
    for statement in ("UPDATE score SET score = 5", "DELETE FROM score"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            ratings.connection.execute(statement)
    for slot, score in ((0, 6), (0, -1), (2, 3)):
        with pytest.raises(UserError, match="of 2"):
            rubric.give(ratings, 1, "Ada", "s", {(1, "helpful"): 5, (slot, "correct"): score})
    assert rubric.scores_of(ratings, 1, "Ada")[1, "helpful"] == 2, "all or none"


def test_a_file_without_scores_gets_them_and_a_repair_keeps_them(ratings: Ratings) -> None:
    file = ratings.path
    ratings.vote(1, "Ada", "s", ranking=[0])
    ratings.close()
    with sqlite3.connect(file) as raw:
        raw.executescript("DROP TABLE score; PRAGMA user_version = 2")
    with Ratings.open(file) as opened:
        fill(opened)
        before = rubric.every_score(opened)
        opened.connection.execute("DROP VIEW live")
    assert repair_if_damaged(file) is not None
    with Ratings.open(file) as opened:
        assert rubric.every_score(opened) == before and len(opened.votes()) == 1
    with sqlite3.connect(file) as raw:  # a damaged file of the version before
        raw.executescript("DROP TABLE score; DROP VIEW live; PRAGMA user_version = 2")
    assert repair_if_damaged(file) is not None
    with Ratings.open(file) as opened:
        assert live(opened) == [] and len(opened.votes()) == 1


def test_exported_votes_take_scores_along(ratings: Ratings, tmp_path: Path) -> None:
    fill(ratings)
    file, two = tmp_path / "votes.jsonl", tmp_path / "two.db"
    od.manage_ratings(action="export", ratings=str(ratings.path), file=str(file), form="votes")
    told = od.manage_ratings(action="import", ratings=str(two), file=str(file))
    assert told["scores"] == 6
    again = od.manage_ratings(action="import", ratings=str(two), file=str(file))
    assert "scores" not in again and again["already_there"] == 8
    with Ratings.open(two) as opened:
        assert live(opened) == live(ratings) and read_project(opened).rubric[0] == "helpful"
    rows = [json.loads(row) for row in file.read_text().splitlines()]
    odd = tmp_path / "odd.jsonl"
    for name, value in (("score", 6), ("slot", 2), ("item", 9), ("scale", None), ("at", "now")):
        odd.write_text(
            "\n".join(json.dumps(row) for row in [*rows[:-1], {**rows[-1], name: value}])
        )
        with pytest.raises(UserError):
            od.manage_ratings(action="import", ratings=str(two), file=str(odd))


def test_scores_are_rows_of_their_own_in_an_export(ratings: Ratings) -> None:
    fill(ratings)
    given: dict[str, Any] = {"action": "export", "ratings": str(ratings.path), "form": "scores"}
    rows = od.manage_ratings(**given, with_raters=True)["data"]
    assert [(row["item"], row["source"], row["score"]) for row in rows] == [
        (1, "one", 4.75),
        (1, "two", 2.0),
        (2, "one", 3.0),
    ]
    assert rows[0]["scores"] == {"correct": 5.0, "helpful": 4.5}
    assert rows[0]["raters"]["helpful"] == {"Ada": 4, "Bob": 5}
    assert rows[0]["completion"] == [{"role": "assistant", "content": "yes"}]
    [only] = od.manage_ratings(**given, raters=("Bob",))["data"][:1]
    assert only == {
        "prompt": [{"role": "user", "content": "0?"}],
        "completion": [{"role": "assistant", "content": "yes"}],
        "scores": {"helpful": 5.0},
        "score": 5.0,
    }


def test_what_scores_are_worth(ratings: Ratings) -> None:
    fill(ratings)
    found = statistics(ratings)
    helpful = found["rubric"]["helpful"]
    assert helpful["scores"] == 5 and helpful["mean"] == 3.2
    assert helpful["sources"] == {
        "one": {"scores": 3, "mean": 4.0},
        "two": {"scores": 2, "mean": 2.0},
    }
    assert helpful["agreement"]["n"] == 2 and helpful["agreement"]["raw"] == 0.5
    assert helpful["agreement"]["alpha"] > 0.8
    words = "helpful: mean 3.20 of 5 (5 scores); raters: alpha 0.89"
    assert words in text(found)
    assert words.removeprefix("helpful: ") in told_of(found, {}).plain
    assert "4.00  one (3)" in told_of(found, {}).plain


def test_alpha_of_numbers_is_the_textbook_s() -> None:
    """Krippendorff 2011, example C: 0.849 for intervals."""
    raters = ("123321412...", "1233224125.3", ".3332342251.", "12332441251.")
    units = [[int(row[unit]) for row in raters if row[unit] != "."] for unit in range(12)]
    assert interval_alpha(units).kappa == pytest.approx(0.849, abs=5e-4)
    assert interval_alpha([[1], []]).kappa is None and interval_alpha([[2, 2]]).kappa is None


def test_scores_in_the_plain_terminal(
    ratings: Ratings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    item = ratings.item(1)

    def ask(typed: str) -> str:
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        with Keys() as keys:
            ask_scores(ratings, keys, item, "Ada", "s")
        return capsys.readouterr().out

    assert "scored: helpful 4 2 · correct 5 –" in ask("42\n5\n")
    left, right = item.shown
    assert rubric.scores_of(ratings, 1, "Ada")[right, "helpful"] == 2
    told = ask("\n0 1\n")
    assert "so far: helpful 4 2 · correct 5 –" in told
    assert "scored: helpful 4 2 · correct – 1" in told
    assert (left, "correct") not in rubric.scores_of(ratings, 1, "Ada")
    for wrong in ("7\n", "123\n", "a\n", "٣\n"):
        assert "nothing is stored" in ask(wrong)
    assert "no new score" in ask("\n\n")
    change_project(ratings, rubric=())
    assert "has no scales" in ask("")
    assert "*" in terminal_text.HELP


def test_scales_are_named_and_taken_away_by_the_command(ratings: Ratings) -> None:
    given = {"action": "project", "ratings": str(ratings.path)}
    assert od.manage_ratings(**given, rubric=("tone",))["rubric"] == ("tone",)
    assert od.manage_ratings(**given)["rubric"] == ("tone",)
    assert od.manage_ratings(**given, rubric=("none",))["rubric"] == ()
