"""Several raters on one database: who is asked what, what they have agreed on, what was said so far,
and how disagreements are settled."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ondevice as od
from ondevice.common.errors import UserError
from ondevice.preferences import assignment, history
from ondevice.preferences.database import Ratings
from ondevice.preferences.pairs import pairs_of
from ondevice.preferences.project import (
    REASONS,
    Project,
    change_project,
    project_of,
    read_project,
)
from ondevice.preferences.rating_queue import Asking, Wanted, choices, next_turn
from ondevice.preferences.repair import repair_if_damaged
from ondevice.preferences.schema import VERSION
from ondevice.preferences.vote_statistics import statistics
from ondevice.preferences.votes import Response
from ondevice.publishing.dataset_card import _raters_in_words


def queue(ratings: Ratings, count: int, **given: Any) -> list[int]:
    return [
        ratings.add(
            "b",
            f"Question {n}?",
            [Response("yes", "one"), Response("no" * (n + 1), "two" if n % 2 else "three")],
            seed=0,
            meta={"kind": "sum" if n % 3 else "fact"},
            **given,
        )
        for n in range(count)
    ]


@pytest.fixture
def ratings(tmp_path: Path) -> Iterator[Ratings]:
    with Ratings.open(tmp_path / "r.db", create=True) as opened:
        yield opened


def turn(ratings: Ratings, rater: str, session: str = "", **given: Any) -> int | None:
    found = next_turn(ratings, Asking(rater, session or rater, share=0.0, **given)).item
    return None if found is None else found.id


# the file


def test_a_file_of_the_first_version_is_brought_up_to_date_without_loss(tmp_path: Path) -> None:
    file = tmp_path / "r.db"
    with Ratings.open(file, create=True) as ratings:
        queue(ratings, 3)
        ratings.vote(1, "Ada", "s", ranking=[0], reason="style")
        before = (ratings.items(), ratings.votes())
    with sqlite3.connect(file) as raw:
        raw.executescript(
            "DROP TABLE project; DROP TABLE claim; DROP TABLE score; PRAGMA user_version = 1"
        )
    with Ratings.open(file) as ratings:
        assert (ratings.items(), ratings.votes()) == before
        assert read_project(ratings) == Project()
        assert turn(ratings, "Ada") == 2
        assert ratings.rows("PRAGMA user_version")[0][0] == VERSION == 3
    with Ratings.open(file) as again:
        assert again.votes() == before[1]


def test_a_repair_keeps_what_was_agreed_on(tmp_path: Path) -> None:
    with Ratings.open(tmp_path / "r.db", create=True) as ratings:
        queue(ratings, 2)
        change_project(ratings, guidelines="Short ones.", overlap=2)
        ratings.connection.execute("DROP VIEW live")
    assert repair_if_damaged(tmp_path / "r.db") is not None
    with Ratings.open(tmp_path / "r.db") as ratings:
        assert read_project(ratings) == Project(guidelines="Short ones.", overlap=2)


# what was agreed on


def test_a_project_is_shared_and_checked(ratings: Ratings) -> None:
    changed = change_project(ratings, reasons=("false", "rude"), feedback=True)
    with Ratings.open(ratings.path) as other:
        assert read_project(other) == changed == Project(reasons=("false", "rude"), feedback=True)
    for wrong, where in (
        ({"reasons": ()}, "reasons"),
        ({"reasons": ("a", "a")}, "reasons"),
        ({"reasons": ("x" * 41,)}, "reasons"),
        ({"rubric": ("a", "a")}, "rubric"),
        ({"rubric": tuple("abcdefg")}, "rubric"),
        ({"rubric": ("x" * 25,)}, "rubric"),
        ({"overlap": 100}, "overlap"),
        ({"guidelines": "x" * 20_001}, "guidelines"),
    ):
        with pytest.raises(UserError) as caught:
            change_project(ratings, **wrong)
        assert caught.value.where == where
    assert read_project(ratings) == changed


def test_an_export_takes_it_along(tmp_path: Path) -> None:
    with Ratings.open(tmp_path / "one.db", create=True) as ratings:
        queue(ratings, 2)
        ratings.vote(1, "Ada", "s", ranking=[0])
        project = change_project(ratings, reasons=("false",), overlap=2, guidelines="a\nb")
    file = str(tmp_path / "votes.jsonl")
    two = str(tmp_path / "two.db")
    od.manage_ratings(action="export", ratings=str(tmp_path / "one.db"), file=file, form="votes")
    od.manage_ratings(action="import", ratings=two, file=file)
    with Ratings.open(two) as ratings:
        assert read_project(ratings) == project
        change_project(ratings, overlap=3)
    od.manage_ratings(
        action="import", ratings=two, file=file
    )  # what was agreed on here since stays
    with Ratings.open(two) as ratings:
        assert read_project(ratings).overlap == 3
    odd = tmp_path / "odd.jsonl"
    for row in ('"overlap": 1000', '"overlap": NaN', '"reasons": ["\\ud800", {}]', '"other": 1'):
        odd.write_text(f'{{"record": "project", {row}}}\n')
        with pytest.raises(UserError, match="is not what raters can agree on|cannot be read|JSON"):
            od.manage_ratings(action="import", ratings=two, file=str(odd))


def test_odd_settings_keep_their_defaults() -> None:
    odd = {"reasons": "[1]", "overlap": '"two"', "feedback": "1", "guidelines": "nan", "x": "1"}
    assert project_of(odd) == Project() == Project(reasons=REASONS)
    assert project_of({**odd, "overlap": "3"}) == Project(overlap=3)


# who is asked what


def test_without_an_overlap_everybody_is_asked_everything(ratings: Ratings) -> None:
    queue(ratings, 2)
    assert turn(ratings, "Ada") == turn(ratings, "Bob") == 1
    ratings.vote(1, "Ada", "s", ranking=[0])
    assert (turn(ratings, "Ada"), turn(ratings, "Bob")) == (2, 1)


@pytest.mark.parametrize("overlap", [1, 2])
def test_nobody_gets_what_enough_others_rate(tmp_path: Path, overlap: int) -> None:
    """Three people at once, each with a connection of their own, until nothing is left."""
    file = tmp_path / "r.db"
    with Ratings.open(file, create=True) as ratings:
        queue(ratings, 12)
        change_project(ratings, overlap=overlap)
    raters = {name: Ratings.open(file) for name in ("Ada", "Bob", "Eve")}
    asked: dict[str, list[int]] = {name: [] for name in raters}
    left = set(raters)
    while left:
        shown = {name: turn(raters[name], name) for name in sorted(left)}
        for name, item in shown.items():
            if item is None:
                left.discard(name)
                continue
            others = [each for each in shown.values() if each == item]
            assert len(others) <= overlap
            asked[name].append(item)
            raters[name].vote(item, name, name, ranking=[0])
    for ratings in raters.values():
        ratings.close()
    every = [item for items in asked.values() for item in items]
    assert sorted(every) == sorted(list(range(1, 13)) * overlap)
    assert all(len(set(items)) == len(items) for items in asked.values())


def test_programs_and_settlements_are_nobody(ratings: Ratings) -> None:
    queue(ratings, 1)
    change_project(ratings, overlap=1)
    ratings.vote(1, "simulated:rule", "s", ranking=[0])
    ratings.vote(1, history.settler("Eve"), "s", ranking=[0])
    assert turn(ratings, "Ada") == 1


def test_gold_is_for_everybody(ratings: Ratings) -> None:
    queue(ratings, 1, kind="gold", gold=0)
    change_project(ratings, overlap=1)
    ratings.vote(1, "Bob", "s", ranking=[0])
    assert turn(ratings, "Ada") == 1


def test_a_second_window_of_the_same_person_is_asked_something_else(ratings: Ratings) -> None:
    queue(ratings, 2)
    assert (turn(ratings, "Ada", "first"), turn(ratings, "Ada", "second")) == (1, 2)
    ratings.vote(2, "Ada", "second", ranking=[0])
    assert turn(ratings, "Ada", "second") == 1  # nothing else is left


def test_a_claim_ends_where_the_rater_leaves_and_by_itself(
    ratings: Ratings, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue(ratings, 2)
    change_project(ratings, overlap=1)
    assert (turn(ratings, "Ada"), turn(ratings, "Bob")) == (1, 2)
    assert turn(ratings, "Eve") is None
    assignment.release(ratings, "Ada")
    assert turn(ratings, "Eve") == 1
    later = assignment.clock() + assignment.LEASE_S + 1
    monkeypatch.setattr(assignment, "clock", lambda: later)
    assert turn(ratings, "Ada") == 1


def test_only_what_is_wanted(ratings: Ratings) -> None:
    queue(ratings, 6)
    assert choices(ratings) == (["one", "three", "two"], ["fact", "sum"])

    def waiting(**wanted: Any) -> list[int]:
        return next_turn(ratings, Asking("Ada", "s", share=0.0, wanted=Wanted(**wanted))).waiting

    assert waiting(source="two") == [2, 4, 6] and waiting(kind="fact") == [1, 4]
    assert waiting(longest=4) == [1, 2] and waiting(source="two", kind="fact") == [4]
    assert waiting(batch="other") == [] and waiting() == [1, 2, 3, 4, 5, 6]


def test_another_order_takes_the_place_of_the_usual_one(ratings: Ratings) -> None:
    queue(ratings, 3)
    found = next_turn(ratings, Asking("Ada", "s"), lambda opened, asking: opened.queue("Ada")[::-1])
    assert found.item is not None and found.item.id == 3 and found.waiting == [3, 2, 1]


# what was said


def test_history_filters_and_flags(ratings: Ratings) -> None:
    queue(ratings, 5)
    ratings.vote(1, "Ada", "s", ranking=[0])
    ratings.vote(1, "Bob", "s", ranking=[0])
    ratings.vote(2, "Ada", "s", "tie")
    ratings.vote(3, "Bob", "s", ranking=[0])
    ratings.vote(3, "Ada", "s", ranking=[1])
    ratings.vote(4, "simulated:x", "s", ranking=[1])
    assert history.flag(ratings, 2, "Ada", "s") and history.flag(ratings, 5, "Bob", "s")
    assert history.flag(ratings, 5, "Ada", "s"), "each rater's own: it takes nobody's back"
    [five] = [one for one in history.history(ratings, "Ada", "flagged") if one.item == 5]
    assert five.flagged_by == ("Bob", "Ada")
    assert not history.flag(ratings, 5, "Ada", "s") and not history.flag(ratings, 5, "Bob", "s")
    assert history.clear_flags(ratings, 5, "Eve", "s") == (), "there is none to take back"
    assert history.flag(ratings, 5, "Ada", "s") and history.flag(ratings, 5, "Bob", "s")
    assert history.clear_flags(ratings, 5, "Eve", "s") == ("Ada", "Bob")
    assert history.flag(ratings, 5, "Ada", "s"), "flagged again, not taken back again"
    assert history.flagged_by(ratings, 5) == ("Ada",)
    assert history.clear_flags(ratings, 5, "Ada", "s") == ("Ada",)
    ratings.note(1, "Bob", "s", "odd")

    def ids(wanted: history.Filter, rater: str = "Ada") -> list[int]:
        return [entry.item for entry in history.history(ratings, rater, wanted)]

    assert ids("all") == [1, 2, 3] and ids("mine") == [1, 2, 3] and ids("mine", "Bob") == [1, 3]
    assert (ids("flagged"), ids("noted"), ids("ties"), ids("disagreements")) == ([2], [1], [2], [3])
    found = history.marks(ratings, history.Marks(0, 0, 0))
    assert (found.flagged, found.noted, found.open, found.pairs) == (1, 1, 1, -1)
    assert history.marks(ratings, found) is found
    assert history.marks(ratings, found, pairs=True).pairs == 2
    [entry] = history.history(ratings, "Ada", "disagreements")
    assert entry.question == "Question 2?" and entry.vote is not None
    assert entry.vote.rater == "Ada" and [vote.rater for vote in entry.others] == ["Bob"]
    assert [vote.rater for vote in entry.told_to("Eve", "disagreements")] == ["Ada", "Bob"]
    assert entry.told_to("Eve", "all") == [] and entry.told_to("Ada", "all") == [entry.vote]


def test_a_settlement_decides_and_is_no_opinion(ratings: Ratings) -> None:
    queue(ratings, 2)
    for item in (1, 2):
        ratings.vote(item, "Ada", "s", ranking=[0])
        ratings.vote(item, "Bob", "s", ranking=[1])
    assert pairs_of(ratings).left_out == {"disagreement": 2}
    assert history.disagreements(ratings) == [1, 2]
    ratings.vote(1, history.settler("Eve"), "s", ranking=[1])
    assert history.disagreements(ratings) == [2]
    assert history.disagreements(ratings, settled=True) == [1, 2]
    [pair] = pairs_of(ratings)
    assert pair.chosen == "no" and pair.raters == ("settled:Eve",)
    found = statistics(ratings, bootstraps=1)
    assert (
        found["settled"] == 1 and found["votes"] == 4 and sorted(found["raters"]) == ["Ada", "Bob"]
    )
    assert _raters_in_words(pairs_of(ratings)) == "1 person, 0 programs"
    newest = history.newest_of(ratings, "Eve")
    assert newest is not None and newest.rater == "settled:Eve"
    ratings.undo(newest.rater, "s")
    assert history.disagreements(ratings) == [1, 2]


def test_a_rater_cannot_take_a_name_that_means_something_else() -> None:
    assert history.check_name(" Ada ") == "Ada"
    for name in ("", "  ", "settled:Ada"):
        with pytest.raises(UserError, match="is not a rater's name"):
            history.check_name(name)


def test_a_gold_pair_tells_whether_it_was_hit(ratings: Ratings) -> None:
    gold, normal = *queue(ratings, 1, kind="gold", gold=1), *queue(ratings, 1)
    for ranking, hit in (([1], True), ([0], False)):
        vote = ratings.vote(gold, "Ada", "s", ranking=ranking)
        assert history.gold_hit(ratings.item(gold), vote) is hit
    assert history.gold_hit(ratings.item(normal), vote) is None


def test_who_was_told_a_known_answer_is_measured_by_the_first_vote(ratings: Ratings) -> None:
    [gold] = queue(ratings, 1, kind="gold", gold=1)
    ratings.vote(gold, "Ada", "s", ranking=[0])
    ratings.undo("Ada", "s")
    assert history.gold_score(ratings, "Ada") == (0, 0), "it comes again"
    ratings.vote(gold, "Ada", "s", ranking=[1])
    assert statistics(ratings, bootstraps=1)["raters"]["Ada"]["gold"]["count"] == 1
    change_project(ratings, feedback=True)
    assert history.gold_score(ratings, "Ada") == (0, 1)
    assert statistics(ratings, bootstraps=1)["raters"]["Ada"]["gold"]["count"] == 0
