"""The simulated rater that goes by rewards: what it prefers, what it is called, what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import ondevice as od
from ondevice.common.errors import UserError
from ondevice.config.preference import RaterConfig
from ondevice.preferences.database import Ratings
from ondevice.preferences.votes import Response, is_simulated
from ondevice.rewards.rater import RewardRater

ON = {"backend": "torch", "device": "cpu"}
ASKED = "Write a story that uses the words dog and kite."
GOOD = "The dog chased a kite over the hill."


def ratings_of(path: Path, *rows: tuple[dict[str, Any], list[tuple[str, bool]]]) -> Path:
    """A database with one item for each row: its columns, and responses with whether they stopped."""
    with Ratings.open(path, create=True) as ratings:
        for meta, said in rows:
            responses = [Response(text, "m", {"stopped": stopped}) for text, stopped in said]
            ratings.add("a", ASKED, responses, meta=meta, seed=0)
    return path / "ratings.db"


def recipe(path: Path, **rate: Any) -> str:
    import yaml

    file = path / "rate.yaml"
    file.write_text(yaml.safe_dump({"stages": {"rate": {"rater": "simulated", **rate}}}))
    return str(file)


WORDS = {"words": ["dog", "kite"]}


def test_it_votes_by_the_rewards_and_says_which_one_decided(tmp_path: Path) -> None:
    file = ratings_of(
        tmp_path,
        (WORDS, [("A dog ran.", True), (GOOD, True)]),
        (WORDS, [(GOOD, True), (GOOD, False)]),
        (WORDS, [(GOOD, True), (f" {GOOD}", True)]),
        ({}, [("No end", True), ("An end.", True)]),
    )
    name = recipe(
        tmp_path, ratings=str(file), rewards=["words", "finished"], reward_weights=[2.0, 0.5]
    )
    out = od.run(name, out=str(tmp_path / "run"), **ON)
    with Ratings.open(file) as ratings:
        votes = ratings.live_votes()
    assert [(vote.outcome, vote.ranking[:1], vote.reason) for vote in votes] == [
        ("ranked", (1,), "words"),
        ("ranked", (0,), "finished"),
        ("tie", (), None),
        ("ranked", (1,), "finished"),
    ]
    assert {vote.rater for vote in votes} == {"simulated:words=2,finished=0.5"}
    assert all(is_simulated(vote.rater) for vote in votes)
    assert (Path(out) / "rate" / "done.json").is_file()


def test_a_right_answer_may_end_its_steps(tmp_path: Path) -> None:
    steps = {"answer": "They have 12+34 = <<12+34=46>>46 apples.\n#### 46"}
    file = ratings_of(tmp_path, (steps, [("They have 45.\n#### 45", True), ("#### 46", True)]))
    with Ratings.open(file) as ratings, RewardRater(("correct",), (), "hash") as rule:
        [item] = ratings.items()
        judged = rule.judge(item, str(file))
    assert judged.points == [0, 1] and judged.reasons(1) == "correct"


def test_an_item_without_the_columns_is_refused(tmp_path: Path) -> None:
    file = ratings_of(tmp_path, ({"kind": "order"}, [("a.", True), ("b.", True)]))
    name = recipe(tmp_path, ratings=str(file), rewards=["words"])
    with pytest.raises(UserError, match="none of the rewards words × 1 can judge its responses"):
        od.run(name, out=str(tmp_path / "run"), **ON)


@pytest.mark.parametrize("name", ["length", "overlong"])
def test_what_needs_tokens_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="needs the tokens of a response"):
        RewardRater((name,), (), "number")


def test_weights_fit_the_rewards_and_right_says_nothing_beside_them() -> None:
    with pytest.raises(UserError, match="2 weights for 1 rewards"):
        RaterConfig(rewards=("finished",), reward_weights=(1.0, 2.0)).check()
    with pytest.raises(UserError, match="has no effect: a person rates, or rewards do"):
        RaterConfig(rewards=("finished",), courtesy=2.0).check()
