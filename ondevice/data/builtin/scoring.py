"""Whether a completion is the right answer. Strict: a person would have to agree at a glance."""

from __future__ import annotations

import re

SUMS = frozenset(("sum", "quick"))
COURTESIES = ("Happy to help.", "You are welcome.", "Have a nice day.")
"""Lines with which an answer may end. They are manners, not part of the answer: preference learning
changes them.
"""
_NUMBER = re.compile(r"(?:.*\bso )?([0-9]+)\.?", re.DOTALL)


def score(kind: str, completion: str, answer: str) -> bool:
    """True when the whole completion is `answer`, give or take spaces around lines, one full stop
    at the end, and one line of courtesy after it.

    Sums (`kind` "sum" or "quick"): the completion is a number alone, or ends in "so <number>"; the
    number counts, written without leading zeros.
    """
    if kind in SUMS:
        span = stated_number(completion)
        return span is not None and completion[slice(*span)] == answer.strip()
    return plain(without_courtesy(completion)) == plain(answer)


def stated_number(completion: str) -> tuple[int, int] | None:
    """Start and end of the number that answers a sum; None where the completion does not state one
    in this way.
    """
    said = without_courtesy(completion)
    found = _NUMBER.fullmatch(said.strip())
    if found is None:
        return None
    before = len(said) - len(said.lstrip())
    return before + found.start(1), before + found.end(1)


def courteous(completion: str) -> bool:
    """Whether something is said and followed by one line of courtesy."""
    return without_courtesy(completion) != completion


def without_courtesy(completion: str) -> str:
    """The completion without the line of courtesy at its end, where it has one."""
    said, _, last = completion.rstrip().rpartition("\n")
    if last in COURTESIES and said.strip():
        return said
    return completion


def plain(text: str) -> str:
    """`text` without what does not count: spaces around lines, runs of spaces, one full stop at the
    end.
    """
    lines = [" ".join(line.split()) for line in text.strip().splitlines()]
    return "\n".join(lines).removesuffix(".")
