"""Numbers that others wrote: no float holds some of them."""

from __future__ import annotations

import numpy as np
import pytest

from ondevice.common.errors import UserError
from ondevice.common.numbers import is_number, number_or_none
from ondevice.data.messages import BadRow
from ondevice.data.preference_formats import to_pair
from ondevice.rewards.golds import attainable
from ondevice.rewards.problems import to_problem
from ondevice.rewards.text_rules import word_count

BEYOND = 10**400


def test_a_number_can_be_counted_with() -> None:
    for value in (0, -3, 2.5, np.float32(1.5), np.int64(4), 10**300):
        assert is_number(value) and number_or_none(value) == float(value)
    for value in (True, None, "1", float("nan"), float("-inf"), BEYOND, -BEYOND, [1]):
        assert not is_number(value) and number_or_none(value) is None


def test_rows_with_a_number_beyond_every_float() -> None:
    assert to_problem({"prompt": "How many?", "answer": BEYOND}, "").answer == str(BEYOND)
    assert attainable(str(BEYOND), "number")
    pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
    with pytest.raises(BadRow, match="margin is not a number"):
        to_pair({**pair, "margin": BEYOND})
    with pytest.raises(UserError, match="does not say how many words"):
        word_count(["p"], ["a b"], word_count=[[1, BEYOND]])
