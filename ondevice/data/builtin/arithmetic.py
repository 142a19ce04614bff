"""Sums written out digit by digit, and the ways to ask for them.

`47+85: 7+5+0=12; 4+8+1=13; so 132.` reads: ones first, each column adds two digits and the carry;
the last column's total stands in front. Sums of two one-digit numbers are the columns of all
others, so they are taught (train only) and never count as a problem of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from random import Random

from ondevice.data.builtin.splits import Split, place

POOLS: Mapping[str, float] = {
    "train": 0.62,
    "validation": 0.04,
    "heldout": 0.08,
    "problem-train": 0.14,
    "problem-validation": 0.04,
    "problem-heldout": 0.08,
}
"""Which part of all sums each split's text may use, and which part is left to the reasoning stage.
"""

LEADS = (
    "Sums, step by step.",
    "Let us add, digit by digit.",
    "Some sums with all their steps.",
    "Add the ones first, then the tens.",
    "Here is how to add.",
    "We add from the right to the left.",
    "{name} likes sums and writes down every step.",
    "At school {name} had to add these numbers.",
)
STORIES = (
    "{name} has {a} {items} and gets {b} more. {steps} Now {name} has {total} {items}.",
    "There are {a} {items} in one box and {b} in another. {steps} Together there are {total} {items}.",
    "{name} sold {a} {items} on one day and {b} on the next. {steps} That makes {total} {items}.",
    "First {name} counted {a} {items}, then {b} more. {steps} So there were {total} {items}.",
    "{name} needs {a} {items} for one room and {b} for the other. {steps} {name} needs {total} {items}.",
)
SLOW = (
    "Add {a} and {b} step by step.",
    "Work out {a}+{b} step by step.",
    "Show the steps: {a}+{b}",
    "Calculate {a}+{b} and show how.",
    "Explain how to add {a} and {b}.",
    "{a}+{b}, with all steps please.",
    "Slowly, digit by digit: {a}+{b}",
    "Write out the sum {a}+{b}.",
    "Add {a} to {b} and write down every step.",
    "Take your time: what is {a}+{b}?",
    "Add digit by digit: {a} and {b}.",
    "I want to see the steps of {a}+{b}.",
)
QUICK = (
    "What is {a}+{b}?",
    "{a}+{b}=",
    "How much is {a}+{b}?",
    "Quick: {a}+{b}",
    "Only the result: {a}+{b}",
    "What do {a} and {b} make?",
    "Give me the sum of {a} and {b}.",
    "Add {a} and {b}.",
    "{a} plus {b} is how much?",
    "What is the sum of {a} and {b}?",
    "Tell me {a}+{b}.",
    "How many are {a} and {b}?",
)


def steps(a: int, b: int) -> str:
    """The written-out sum, with its full stop."""
    left, right, carry, columns, digits = a, b, 0, [], ""
    while True:
        total = left % 10 + right % 10 + carry
        columns.append(f"{left % 10}+{right % 10}+{carry}={total}")
        left, right = left // 10, right // 10
        if not (left or right):
            return f"{a}+{b}: {'; '.join(columns)}; so {total}{digits}."
        carry, digits = total // 10, f"{total % 10}{digits}"


class Sums:
    """All sums with operands up to `largest`, shared out among the splits; a+b and b+a are one sum."""

    def __init__(self, seed: int, largest: int) -> None:
        self.seed, self.largest = seed, largest

    @cached_property
    def _pools(self) -> dict[str, list[tuple[int, int]]]:
        pools: dict[str, list[tuple[int, int]]] = {name: [] for name in POOLS}
        for b in range(10, self.largest + 1):
            for a in range(b + 1):
                pools[place(self.seed, "sum", f"{a}+{b}", POOLS)].append((a, b))
        return pools

    def pool(
        self, split: Split, *, problems: bool = False, largest: int | None = None
    ) -> list[tuple[int, int]]:
        """The pairs (a, b), a ≤ b, of a split's text or of its problems, with operands up to
        `largest`.
        """
        pairs = self._pools[f"problem-{split}" if problems else split]
        if largest is None:
            return pairs
        return [pair for pair in pairs if pair[1] <= largest]


def turned(random: Random, pair: tuple[int, int]) -> tuple[int, int]:
    """The pair in one order or the other."""
    if random.random() < 0.5:
        return pair
    return (pair[1], pair[0])


def document(
    random: Random, pairs: list[tuple[int, int]], split: Split, name: str, items: str
) -> str:
    """Some sums in one document."""
    style = random.random()
    if style < 0.2:
        a, b = turned(random, random.choice(pairs))
        frame = random.choice(STORIES)
        return frame.format(name=name, a=a, b=b, steps=steps(a, b), total=a + b, items=items)
    lines = [random.choice(LEADS).format(name=name)]
    for _ in range(random.randint(2, 5)):
        if split == "train" and random.random() < 0.06:
            a, b = random.randint(0, 9), random.randint(0, 9)
        else:
            a, b = turned(random, random.choice(pairs))
        lines.append(steps(a, b))
    return ("\n" if style < 0.6 else " ").join(lines)
