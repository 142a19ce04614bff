"""Statistics of votes: numbers worked by hand, and a recovery of what synthetic raters were made
of.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ondevice.common.intervals import clustered, wilson
from ondevice.common.rng import generator
from ondevice.preferences.agreement import cohen_kappa, fleiss_kappa, krippendorff_alpha
from ondevice.preferences.database import Ratings
from ondevice.preferences.strengths import Comparison, bradley_terry, win_rates
from ondevice.preferences.vote_statistics import judged, statistics, text
from ondevice.preferences.votes import Response


def test_wilson_by_hand() -> None:
    """5 of 10 at z = 2: middle ½, half = 2·√(.25/10 + 4/400)/(1 + .4) = .267261; and the notes' 228
    of 431.
    """
    found = wilson(5, 10, z=2.0)
    assert found.low == pytest.approx(0.5 - 0.2672612) and found.high == pytest.approx(
        0.5 + 0.2672612
    )
    known = wilson(228, 431)
    assert (round(known.low or 0, 2), round(known.share or 0, 2), round(known.high or 0, 2)) == (
        0.48,
        0.53,
        0.58,
    )
    assert wilson(0, 4).low == 0.0 and wilson(4, 4).high == 1.0 and wilson(0, 0).share is None


def test_cohen_by_hand() -> None:
    """Cohen's example: 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: raw .7, chance .5·.6 + .5·.4 =
    .5, kappa .4.
    """
    judged = [("y", "y")] * 20 + [("y", "n")] * 5 + [("n", "y")] * 10 + [("n", "n")] * 15
    found = cohen_kappa(judged)
    assert (found.n, found.raw) == (50, 0.7) and found.kappa == pytest.approx(0.4)
    assert cohen_kappa([("y", "y")] * 3).kappa is None and cohen_kappa([]).n == 0
    assert cohen_kappa([("y", "n"), ("n", "y")]).kappa == -1


def test_fleiss_by_hand() -> None:
    """Three raters, units aaa, aab, abb, bbb: raw (1 + ⅓ + ⅓ + 1)/4 = ⅔, chance ½, kappa ⅓."""
    found = fleiss_kappa(["aaa", "aab", "abb", "bbb"])
    assert (
        found.n == 4 and found.raw == pytest.approx(2 / 3) and found.kappa == pytest.approx(1 / 3)
    )


def test_fleiss_of_the_textbook() -> None:
    """The worked table of Fleiss 1971 as Wikipedia has it: 14 raters, 10 units, 5 labels, kappa
    .210.
    """
    table = [
        (0, 0, 0, 0, 14),
        (0, 2, 6, 4, 2),
        (0, 0, 3, 5, 6),
        (0, 3, 9, 2, 0),
        (2, 2, 8, 1, 1),
        (7, 7, 0, 0, 0),
        (3, 2, 6, 3, 0),
        (2, 5, 3, 2, 2),
        (6, 5, 2, 1, 0),
        (0, 2, 2, 3, 7),
    ]
    units = [[label for label, count in enumerate(row) for _ in range(count)] for row in table]
    assert fleiss_kappa(units).kappa == pytest.approx(0.210, abs=5e-4)


def test_krippendorff_of_the_textbook() -> None:
    """Krippendorff 2011, example C: four observers, twelve units, missing data, nominal: alpha =
    .743.
    """
    units = [
        [1, 1, 1],
        [2, 2, 3, 2],
        [3, 3, 3, 3],
        [3, 3, 3, 3],
        [2, 2, 2, 2],
        [1, 2, 3, 4],
        [4, 4, 4, 4],
        [1, 1, 2, 1],
        [2, 2, 2, 2],
        [5, 5, 5],
        [1, 1],
        [3],
    ]
    found = krippendorff_alpha(units)
    assert found.n == 11 and found.kappa == pytest.approx(0.743, abs=5e-4)
    assert (
        krippendorff_alpha([[1], []]).kappa is None and krippendorff_alpha([[1, 1]]).kappa is None
    )


def compare(left: str, right: str, score: float, prompt: str = "p") -> Comparison:
    return Comparison(left, right, score, prompt, score != 0.5, 0)


def test_bradley_terry_of_two_is_the_log_odds() -> None:
    """75 % of the votes, on either side: strengths ±½·ln 3, nothing for the side. The ridge takes a
    little.
    """
    said = [compare("a", "b", s, str(n)) for n, s in enumerate([1, 1, 1, 0] * 100)]
    said += [compare("b", "a", s, str(n)) for n, s in enumerate([0, 0, 0, 1] * 100)]
    found = bradley_terry(said, bootstraps=20)
    assert found is not None and found.sources == ["a", "b"]
    assert found.strength == pytest.approx([0.5 * math.log(3), -0.5 * math.log(3)], abs=1e-3)
    assert found.left == pytest.approx(0, abs=1e-9) and found.beats[0][0] == pytest.approx(
        0.75, abs=1e-3
    )
    assert found.beats[0][1] < 0.75 < found.beats[0][2] and (found.comparisons, found.prompts) == (
        800,
        400,
    )


def test_bradley_terry_counts_a_tie_as_half_and_keeps_a_winner_finite() -> None:
    ties = bradley_terry([compare("a", "b", 0.5), compare("b", "a", 0.5)])
    assert ties is not None and ties.strength == pytest.approx([0, 0])
    always = bradley_terry([compare("a", "b", 1), compare("b", "a", 0)] * 50)
    assert always is not None and 3 < always.strength[0] < 20
    assert bradley_terry([compare("a", "a", 1), compare("", "", 0)]) is None


def test_win_rates_by_hand() -> None:
    found = win_rates(
        [compare("a", "b", 1), compare("b", "a", 0.5), compare("c", "a", 1), compare("a", "a", 1)]
    )
    assert {source: (rate.count, rate.of) for source, rate in found.items()} == {
        "a": (1.5, 3),
        "b": (0.5, 2),
        "c": (1, 1),
    }


@pytest.mark.slow
def test_strengths_and_side_are_recovered() -> None:
    """Votes drawn from known strengths and a known advantage of the left: the mean of ten estimates
    is near, and the 95 % intervals hold the truth about as often as they should."""
    true, side = {"a": 0.9, "b": 0.1, "c": -1.0}, 0.35
    estimates, held = [], 0
    for seed in range(10):
        draw, said = generator(seed, "test"), []
        for n in range(900):
            left, right = (list(true)[k] for k in draw.permutation(3)[:2])
            p = 1 / (1 + np.exp(-(true[left] - true[right] + side)))
            said.append(compare(left, right, float(draw.random() < p), str(n % 300)))
        found = bradley_terry(said, bootstraps=50)
        assert found is not None and found.sources == ["a", "b", "c"]
        estimates.append([*found.strength, found.left])
        held += sum(
            low < value < high
            for low, high, value in zip(
                [*found.low, found.left_low],
                [*found.high, found.left_high],
                [*true.values(), side],
                strict=True,
            )
        )
    assert np.mean(estimates, axis=0) == pytest.approx([*true.values(), side], abs=0.08)
    assert held >= 33  # of 40
    assert bradley_terry(said, bootstraps=50) == found  # the same seed, the same numbers


@pytest.fixture
def rated(tmp_path: Path) -> Ratings:
    """Four items by two raters and a program, one repeat, one gold item; worked out in the test
    below.
    """
    ratings = Ratings.open(tmp_path / "ratings.db", create=True)
    ids = [
        ratings.add(
            "b", f"q{n}", [Response("long answer", "new"), Response("short", "old")], seed=0
        )
        for n in range(4)
    ]
    gold = ratings.add("b", "gold", [Response("x"), Response("y")], kind="gold", gold=1, seed=0)
    for item, ann, bob in zip(ids, (0, 0, 1, None), (0, 1, 1, None), strict=True):
        for rater, slot, dwell in (("ann", ann, 3000), ("bob", bob, 500)):
            if slot is None:
                ratings.vote(item, rater, "s", "tie", dwell_ms=dwell)
            else:
                ratings.vote(item, rater, "s", ranking=[slot], dwell_ms=dwell)
    ratings.vote(ids[0], "simulated:x", "s", "all_bad")
    ratings.vote(gold, "ann", "s", ranking=[1])
    ratings.vote(gold, "bob", "s", ranking=[0])
    ratings.vote(ratings.repeat(ids[0], "ann"), "ann", "s", ranking=[0], dwell_ms=9000)
    ratings.skip(ratings.repeat(ids[0], "bob"), "bob", "s")
    return ratings


def test_statistics_by_hand(rated: Ratings) -> None:
    found: dict[str, Any] = statistics(rated, bootstraps=10)
    assert found["items"] == {"normal": 4, "gold": 1, "repeat": 2}
    assert (found["votes"], found["simulated_votes"]) == (12, 1)
    assert found["outcomes"] == {"ranked": 9, "tie": 2, "all_bad": 1, "skip": 1}
    ann, bob = found["raters"]["ann"], found["raters"]["bob"]
    assert (ann["votes"], ann["median_dwell_ms"], ann["hasty"], ann["gold"]["count"]) == (
        6,
        3000,
        0,
        1,
    )
    assert (bob["votes"], bob["skips"], bob["hasty"], bob["gold"]["count"]) == (5, 1, 4, 0)
    assert ann["repeats"]["n"] == 1 and ann["repeats"]["raw"] == 1 and bob["repeats"]["n"] == 0
    assert found["raters"]["simulated:x"]["simulated"] is True
    both = next(
        two for two in found["agreement"]["pairs_of_raters"] if two["raters"] == ["ann", "bob"]
    )
    # five items: 0/0, 0/1, 1/1, tie/tie, gold 1/0; chance (2·2 + 2·2 + 1·1)/25
    assert (
        both["n"] == 5
        and both["raw"] == 0.6
        and both["kappa"] == pytest.approx((0.6 - 0.36) / 0.64)
    )
    # 3 times the long one of new, 3 times the short one of old
    assert (found["longer"]["count"], found["longer"]["of"]) == (3, 6)
    assert found["first_shown"]["of"] == 6
    firsts = [rated.item(n).shown[0] for n in (1, 2, 3)]
    chosen = [(0, 0), (0, 1), (1, 1)]
    assert found["first_shown"]["count"] == sum(
        slot == first for first, slots in zip(firsts, chosen, strict=True) for slot in slots
    )
    # ties and all bad are ½
    assert (found["win_rate"]["new"]["count"], found["win_rate"]["new"]["of"]) == (4.5, 9)
    assert found["strengths"]["strength"] == pytest.approx([0, 0], abs=0.2)
    assert statistics(rated, raters=["ann"], bootstraps=0)["votes"] == 6
    assert statistics(rated, simulated=False, bootstraps=0)["simulated_votes"] == 0


def test_statistics_in_words(rated: Ratings, tmp_path: Path) -> None:
    said = text(statistics(rated, bootstraps=10))
    for part in (
        "votes       12, 1 of them simulated",
        "rater       bob: 5 votes, 1 skipped, 0.5 s each in the middle, 4 under 1 s",
        "gold right: 1.00",
        "ann and bob: kappa 0.38, 60% the same (n 5, too few to say much)",
        "first shown",
        "longer      0.50",
        "not resolved",
    ):
        assert part in said
    with Ratings.open(tmp_path / "empty.db", create=True) as empty:
        assert text(statistics(empty)).splitlines()[0] == "votes       0, 0 of them simulated"


def test_a_reward_model_beside_the_raters(tmp_path: Path) -> None:
    """ann says 0, 0, 1 and a tie; the scores say 0, 1, 1: she is met once among the new and once
    among the learned.
    """
    with Ratings.open(tmp_path / "r.db", create=True) as ratings:
        ids = [
            ratings.add("b", f"q{n}", [Response("x", "one"), Response("y", "two")], seed=0)
            for n in range(5)
        ]
        for item, best in zip(ids, (0, 0, 1), strict=False):
            ratings.vote(item, "ann", "s", ranking=[best])
        ratings.vote(ids[3], "ann", "s", "tie")
        ratings.vote(ids[4], "bob", "s", ranking=[1])
        items = {item.id: item for item in ratings.items()}
        scores = {
            ids[0]: [1.0, 0.0],
            ids[1]: [0.0, 1.0],
            ids[2]: [0.0, 2.0],
            ids[3]: [1.0, 0.0],
            ids[4]: [1.0, 1.0],
        }
        found = judged(items, ratings.live_votes(), scores, [ids[2]])
    assert list(found) == ["ann"]  # equal scores order nothing: bob is not met
    assert (found["ann"]["new"]["count"], found["ann"]["new"]["of"]) == (1, 2)
    assert (found["ann"]["learned"]["count"], found["ann"]["learned"]["of"]) == (1, 1)


def test_what_was_not_rated_blind_says_nothing_of_strength(tmp_path: Path) -> None:
    with Ratings.open(tmp_path / "r.db", create=True) as ratings:
        for blind in (True, False):
            item = ratings.add(
                "b",
                "q",
                [Response("x", "one"), Response("y", "two")],
                meta={"blind": blind},
                seed=0,
            )
            ratings.vote(item, "ann", "s", ranking=[0])
        found = statistics(ratings, bootstraps=2)
    assert found["votes"] == 2 and found["win_rate"]["one"]["of"] == 1


def test_comparisons_of_one_ranking_go_together() -> None:
    """15 rankings of four give 90 comparisons; their interval is not that of 90 independent ones."""
    alone = clustered([(n, float(n % 3 == 0)) for n in range(30)])
    assert alone == wilson(10, 30), "one a prompt: as ever"
    together = clustered([(n, float(n % 3 == 0)) for n in range(15) for _ in range(6)])
    assert (together.count, together.of, together.share) == (30, 90, pytest.approx(1 / 3))
    # six that are all alike are worth one, but for the 14/15 of so few clusters
    expected = wilson(5, 15)
    assert [together.low, together.high] == pytest.approx([expected.low, expected.high], abs=0.01)
    # no cluster leans: as if independent
    split = clustered([(n, float(k)) for n in range(15) for k in (0, 1)])
    assert split == wilson(15, 30)
    same = clustered([(n, 1.0) for n in range(5) for _ in range(6)])
    assert (same.low, same.high) == (wilson(5, 5).low, 1.0)
    assert clustered([]) == wilson(0, 0)
