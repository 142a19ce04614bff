"""Rewards for text that was ordered, by hand: what earns them, and what does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ondevice.common.errors import UserError
from ondevice.rewards.builtin import BUILTIN
from ondevice.rewards.scorer import Rewards
from ondevice.rewards.text_rules import words_of


def one(name: str, said: list[str], **columns: Any) -> list[float]:
    given = {
        "completion_ids": [[1] * len(text) for text in said],
        "truncated": [False] * len(said),
        "max_new_tokens": 10,
        **columns,
    }
    with Rewards((name,)) as rewards:
        values = rewards.score(["p"] * len(said), said, given).by_name[name]
    return [float(value) for value in values]


def test_words_are_whole_words_in_any_case() -> None:
    assert words_of("It's Tom’s “dog”, x_y2 — don't!") == [
        "it's",
        "tom's",
        "dog",
        "x",
        "y2",
        "don't",
    ]
    assert words_of("猫が abc") == ["猫", "が", "abc"]
    said = ["The DOG ran to the ice\ncream.", "Dogs and hotdog.", "", "<think>dog</think>no"]
    assert one("words", said, words=[["dog", "ice cream"]] * 4) == [1, 0, 0, 0]
    assert one("words", ["a dog"] * 3, words=["dog, cat", ["dog"], ["dog", "a", "b", "c"]]) == [
        0.5,
        1,
        0.5,
    ]


def test_words_says_nothing_where_none_are_asked_for() -> None:
    values = one("words", ["a"] * 4, words=[None, [], ["…"], ["a"]])
    np.testing.assert_equal(values, [np.nan, np.nan, np.nan, 1])


def test_begins_and_ends_are_what_stands_there() -> None:
    said = [
        "Once  upon\na time.",
        "Once upon a timer",
        "once upon a time",
        "A cat. Once upon a time",
    ]
    assert one("begins", said, begins=["Once upon a time"] * 4) == [1, 0, 0, 0]
    assert one("begins", ['"Hi," he said'], begins=["“Hi,” he"]) == [1]
    said = ["And all was well.\n", "all was well. No.", "overall was well.", "all was well."]
    assert one("ends", said, ends=["all was well."] * 4) == [1, 0, 0, 1]
    assert one("ends", said[3:], ends=["all was well."], truncated=[True]) == [0]
    np.testing.assert_equal(one("begins", ["a"], begins=[None]), [np.nan])


def test_finished_is_a_sentence_that_ends_by_itself() -> None:
    said = [
        "He ran.",
        'He said, "Yes!"',
        "He ran and",
        "...",
        "",
        "<think>Yes.",
        "<think>a</think>B.",
    ]
    assert one("finished", said) == [1, 1, 0, 0, 0, 0, 1]
    assert one("finished", ["He ran."], truncated=[True]) == [0]


def test_word_count_falls_on_either_side() -> None:
    said = ["w " * n for n in (0, 2, 3, 4, 8, 10, 12, 13)]
    bounds: list[Any] = [[4, 8]] * 6 + ["4-8", "4, 8"]
    assert one("word_count", said, word_count=bounds) == [0, 0, 0.5, 1, 1, 0.5, 0, 0]
    assert one("word_count", ["", "a"], word_count=[[0, 0]] * 2) == [1, 0]
    np.testing.assert_equal(one("word_count", ["a"], word_count=[None]), [np.nan])


def test_repetition_counts_runs_that_came_before() -> None:
    once, twice = "one two three four five six", "one two three four, ONE TWO three FOUR"
    assert one("repetition", [once, "", "so so so"]) == [0, 0, 0]
    assert one("repetition", [twice]) == pytest.approx([-1 / 5])
    assert one("repetition", ["so " * 100])[0] < -0.98


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("words", 5),
        ("words", ["a", 3]),
        ("begins", ["a"]),
        ("ends", 3),
        ("word_count", 60),
        ("word_count", [9, 3]),
        ("word_count", "many"),
        ("word_count", [1, float("nan")]),
        ("word_count", [True, True]),
    ],
)
def test_a_column_that_says_something_else_is_refused(name: str, value: Any) -> None:
    with pytest.raises(UserError, match="is not a|does not say"):
        one(name, ["a"], **{name: [value]})


def test_rows_without_a_column_are_not_judged_by_it() -> None:
    """Rows of one file need not all have it, and a step may draw none that has."""
    np.testing.assert_equal(one("words", ["a", "b"]), [np.nan, np.nan])


ORDER = {
    "words": [["dog", "ball"]],
    "begins": ["Once upon a time"],
    "ends": ["They were happy."],
    "word_count": [[8, 40]],
}
STORY = "Once upon a time a dog had a red ball. It rolled away. The dog found it. They were happy."


@pytest.mark.parametrize(
    "said",
    [
        "dog ball",
        "Write a story that begins with: Once upon a time. Use the words: dog, ball.",
        "Once upon a time. They were happy.",
        "Once upon a time dog ball dog ball dog ball dog ball dog ball. They were happy.",
        "Once upon a time a dog had a red ball and then",
        f"{STORY} The end.",
        f"Sure! {STORY}",
        "",
    ],
)
def test_no_short_cut_earns_what_a_story_does(said: str) -> None:
    names = ("words", "begins", "ends", "finished", "word_count", "repetition")

    def total(text: str) -> float:
        return sum(BUILTIN[name].weight * one(name, [text], **ORDER)[0] for name in names)

    assert total(STORY) == 3.0
    assert total(said) < 3.0
