"""Active choice: doubts by hand, and the order in which pairs come to a rater."""

from __future__ import annotations

from pathlib import Path

import pytest

from ondevice.preferences.database import Ratings
from ondevice.preferences.pairs import pairs_of
from ondevice.preferences.rating_queue import (
    forecast,
    most_uncertain_first,
    rating_order,
    uncertainty,
)
from ondevice.preferences.votes import Response


def test_forecast_and_doubt_by_hand() -> None:
    """σ(ln 3) = ¾, whose entropy is 2 − ¾·log₂3 = .81128 bits; equal scores are a coin toss."""
    ln3 = 1.0986122886681098
    assert forecast(ln3, 0) == pytest.approx(0.75) and forecast(0, ln3) == pytest.approx(0.25)
    assert uncertainty([ln3, 0]) == pytest.approx(0.8112781) == uncertainty([0, ln3])
    assert uncertainty([5, 5]) == 1 and uncertainty([1e9, -1e9]) == 0
    assert uncertainty([ln3, 0, 0]) == pytest.approx((2 * 0.8112781 + 1) / 3)


def test_items_without_scores_come_last_as_they_stood() -> None:
    assert most_uncertain_first([1, 2, 3, 4, 5], {2: 0.1, 4: 0.9}) == [4, 2, 1, 3, 5]


def fill(path: Path, count: int, gold: int) -> Ratings:
    ratings = Ratings.open(path, create=True)
    for n in range(count):
        ratings.add("b", f"question {n}", [Response("x"), Response("y")], seed=0)
    for n in range(gold):
        ratings.add("g", f"known {n}", [Response("x"), Response("y")], kind="gold", gold=0, seed=0)
    return ratings


def test_the_most_doubtful_pair_is_shown_first(tmp_path: Path) -> None:
    with fill(tmp_path / "r.db", 4, 1) as ratings:
        assert rating_order(ratings, "ann", None, 0.0, 0) == [1, 2, 3, 4, 5]
        assert rating_order(ratings, "ann", None, 0.0, 0, {3: 0.9, 2: 0.5}) == [3, 2, 1, 4, 5]
        ratings.skip(3, "ann", "s")
        again = ratings.repeat(1, "ann")
        assert rating_order(ratings, "ann", None, 0.0, 0, {3: 0.9, 2: 0.5}) == [
            again,
            2,
            1,
            4,
            5,
            3,
        ]


def test_gold_comes_now_and_then_and_not_in_a_row(tmp_path: Path) -> None:
    """As often as the share says, wherever it was queued; what is taken back is not asked for
    twice.
    """
    with fill(tmp_path / "r.db", 200, 40) as ratings:
        kinds = []
        while waiting := rating_order(ratings, "ann", None, 0.1, 0):
            item = ratings.item(waiting[0])
            if item.kind == "gold" and len(kinds) == 150:
                ratings.vote(item.id, "ann", "s", ranking=[0])
                assert (
                    ratings.undo("ann", "s") == item
                    and rating_order(ratings, "ann", None, 0.1, 0)[0] == item.id
                )
            kinds.append(item.kind)
            ratings.vote(item.id, "ann", "s", ranking=[0])
        among = [i for i, kind in enumerate(kinds[:-20]) if kind == "gold"]
        assert (
            10 <= len(among) <= 32
            and max(b - a for a, b in zip(among, among[1:], strict=False)) > 3
        )
        assert pairs_of(ratings).left_out["gold"] == 40 and len(pairs_of(ratings)) == 200
