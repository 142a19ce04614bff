"""Which tokens stand where in a row. Plain numpy: no tokenizer, no files, no random numbers.

Shapes: N examples or tokens, R rows (bins), B rows of a micro-batch, T tokens of a row, K targets.

Chosen: best-fit decreasing over all examples (TRL's `bfd`), which leaves little of a row empty and
cuts no example; filling rows in the order of the file, as torchtune does, leaves more of them empty.
The plan follows from the lengths alone: a new epoch exchanges examples of equal length
(`reshuffle`), so that nothing is packed again and every epoch has the same number of rows.
Examples in a row do not see each other: their segments are numbered, and positions begin anew.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.integer[Any]]
Batch = dict[str, np.ndarray[Any, Any]]


class Plan(NamedTuple):
    """Where examples go: `order` (N,) are examples sorted by row, those of row r are
    order[starts[r]:starts[r+1]]; `column` (N,) is the place of each in its row, in the order of
    `order`."""

    order: NDArray[np.int64]
    starts: NDArray[np.int64]
    column: NDArray[np.int64]

    @property
    def rows(self) -> int:
        return len(self.starts) - 1


def bucket(n: int, least: int = 16, finer: int = 1) -> int:
    """The smallest size not below `n` of the form m·2^k with 2^finer steps an octave: few shapes,
    little padding.
    """
    if n <= least:
        return least
    unit = 1 << max((n - 1).bit_length() - 1 - finer, 0)
    return -(-n // unit) * unit


def eighths(n: int, whole: int) -> int:
    """`n`, at least 1, rounded up to a multiple of an eighth of `whole`: at most eight sizes, in
    practice three.
    """
    unit = max(1, whole // 8)
    return max(1, -(-n // unit)) * unit


def ranges(lengths: Ints) -> NDArray[np.int64]:
    """0 … n-1 for every n of `lengths`, one after another."""
    lengths = np.asarray(lengths, np.int64)
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)


def one_per_row(n: int) -> Plan:
    """Every example in a row of its own."""
    return Plan(np.arange(n), np.arange(n + 1), np.zeros(n, np.int64))


def best_fit(lengths: Ints, capacity: int) -> Plan:
    """Best-fit decreasing: the longest example first, each into the fullest row that still holds
    it.

    Lengths are 1 … capacity; nothing is left out. Equal lengths are placed in the order in which
    they come, so the multiset of lengths alone decides how many rows there are.
    """
    lengths = np.asarray(lengths, np.int64)
    assert len(lengths) == 0 or (lengths.min() >= 1 and lengths.max() <= capacity)
    longest_first = np.argsort(-lengths, kind="stable")
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # rows by what is left in them
    free = 0  # bit n is set where with_room[n] has a row
    row_of, column = np.zeros(len(lengths), np.int64), np.zeros(len(lengths), np.int64)
    rows = 0
    for place, length in enumerate(lengths[longest_first].tolist()):
        fitting = free >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                free ^= 1 << room
        else:
            room, row = capacity, rows
            rows += 1
        row_of[place], column[place] = row, capacity - room
        left = room - length
        if left:
            with_room[left].append(row)
            free |= 1 << left
    by_row = np.argsort(row_of, kind="stable")
    starts = np.zeros(rows + 1, np.int64)
    np.cumsum(np.bincount(row_of, minlength=rows), out=starts[1:])
    return Plan(longest_first[by_row], starts, column[by_row])


def reshuffle(plan: Plan, lengths: Ints, shuffled: Ints) -> Plan:
    """`plan` with examples of equal length exchanged as `shuffled`, a permutation of them, says.

    This is what best-fit decreasing gives for the shuffled examples, without packing again.
    """
    lengths = np.asarray(lengths)
    canonical = np.argsort(-lengths, kind="stable")
    exchanged = np.asarray(shuffled)[np.argsort(-lengths[shuffled], kind="stable")]
    takes = np.empty(len(lengths), np.int64)
    takes[canonical] = exchanged
    return plan._replace(order=takes[plan.order])


def lay_out(
    starts: Ints, lengths: Ints, row: Ints, column: Ints, width: int
) -> tuple[NDArray[np.int64], ...]:
    """Where every input token comes from and goes: (source, destination, position in its example),
    each (tokens,).

    Examples begin at `starts` of a flat array and go to `row`, `column` of rows of `width`.
    """
    position = ranges(lengths)
    source = np.repeat(np.asarray(starts, np.int64), lengths) + position
    destination = np.repeat(np.asarray(row, np.int64) * width + column, lengths) + position
    return source, destination, position


def pad_targets(targets: Ints, index: Ints, size: int) -> Batch:
    """targets, index and weights of `size` ≥ K entries; those added have weight 0 and point at
    place 0.
    """
    count = len(targets)
    assert count <= size
    batch: Batch = {
        "targets": np.zeros(size, np.int32),
        "index": np.zeros(size, np.int32),
        "weights": np.zeros(size, np.float32),
    }
    batch["targets"][:count], batch["index"][:count], batch["weights"][:count] = targets, index, 1.0
    return batch


def set_denominator(batches: list[Batch]) -> list[Batch]:
    """Gives all micro-batches of a step the number of their targets together, at least 1."""
    total = np.float32(max(1.0, sum(float(batch["weights"].sum()) for batch in batches)))
    for batch in batches:
        batch["denominator"] = np.asarray(total, np.float32)
    return batches
