"""Packing: everything is placed once, nothing overlaps, few shapes."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ondevice.data.packing import (
    best_fit,
    bucket,
    eighths,
    one_per_row,
    pad_targets,
    ranges,
    reshuffle,
    set_denominator,
)

LENGTHS = st.lists(st.integers(1, 20), min_size=0, max_size=60)


@given(LENGTHS)
def test_best_fit_places_all_and_overlaps_none(lengths: list[int]) -> None:
    plan = best_fit(np.array(lengths, np.int64), 20)
    assert sorted(plan.order.tolist()) == list(range(len(lengths)))
    for row in range(plan.rows):
        part = slice(plan.starts[row], plan.starts[row + 1])
        ends = 0
        for example, column in zip(plan.order[part], plan.column[part], strict=True):
            assert column == ends
            ends += lengths[example]
        assert 0 < ends <= 20
    # Two rows that are half empty would have shared one.
    filled = [
        sum(lengths[e] for e in plan.order[a:b])
        for a, b in zip(plan.starts, plan.starts[1:], strict=False)
    ]
    assert sum(total <= 10 for total in filled) <= 1


def naive_rows(lengths: list[int], capacity: int) -> list[list[int]]:
    rows: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row in rows if capacity - sum(row) >= length]
        if fitting:
            max(fitting, key=sum).append(length)
        else:
            rows.append([length])
    return rows


@given(LENGTHS)
def test_best_fit_is_as_tight_as_the_plain_method(lengths: list[int]) -> None:
    plan = best_fit(np.array(lengths, np.int64), 20)
    ours = [
        sum(lengths[e] for e in plan.order[a:b])
        for a, b in zip(plan.starts, plan.starts[1:], strict=False)
    ]
    # between rows as full, either may be taken
    assert sorted(ours) == sorted(map(sum, naive_rows(lengths, 20)))


@given(LENGTHS, st.randoms(use_true_random=False))
def test_reshuffling_keeps_the_lengths_of_every_row(lengths: list[int], chance: object) -> None:
    order = list(range(len(lengths)))
    chance.shuffle(order)  # type: ignore[attr-defined]
    sizes, plan = np.array(lengths, np.int64), best_fit(np.array(lengths, np.int64), 20)
    again = reshuffle(plan, sizes, np.array(order, np.int64))
    assert sorted(again.order.tolist()) == sorted(order)
    assert sizes[again.order].tolist() == sizes[plan.order].tolist()


def test_rows_of_their_own() -> None:
    plan = one_per_row(3)
    assert plan.rows == 3 and plan.order.tolist() == [0, 1, 2] and plan.column.tolist() == [0, 0, 0]


@given(st.integers(0, 5000), st.sampled_from([1, 2, 3]))
def test_buckets_are_few_and_near(n: int, finer: int) -> None:
    size = bucket(n, finer=finer)
    assert size >= max(n, 16) and bucket(size, finer=finer) == size
    assert n <= 16 or size - n < n / 2**finer + 1


def test_few_shapes() -> None:
    assert len({bucket(n) for n in range(512, 1025)}) == 3
    assert [bucket(n) for n in (0, 16, 17, 24, 25, 33, 513, 769)] == [
        16,
        16,
        24,
        24,
        32,
        48,
        768,
        1024,
    ]
    assert [eighths(n, 1536) for n in (0, 1, 192, 193, 1536)] == [192, 192, 192, 384, 1536]
    assert [eighths(n, 3) for n in (0, 1, 3)] == [1, 1, 3]


def test_ranges() -> None:
    assert ranges(np.array([2, 0, 3])).tolist() == [0, 1, 0, 1, 2]
    assert ranges(np.array([], np.int64)).tolist() == []


def test_a_batch_without_targets_divides_by_one() -> None:
    batches = [pad_targets(np.array([], np.int32), np.array([], np.int64), 16) for _ in range(2)]
    for batch in set_denominator(batches):
        assert batch["denominator"] == 1 and batch["denominator"].shape == ()
        assert batch["weights"].tolist() == [0] * 16 and batch["index"].tolist() == [0] * 16
