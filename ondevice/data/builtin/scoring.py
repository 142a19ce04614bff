"""Whether a completion is the right answer. Strict: a person would have to agree at a glance."""

from __future__ import annotations

import re

SUMS = frozenset(("sum", "quick"))
COURTESIES = ("Happy to help.", "You are welcome.", "Have a nice day.")
"""Lines with which an answer may end. They are manners, not part of the answer: preference learning changes them."""
_NUMBER = re.compile(r"(?:.*\bso )?(\d+)\.?", re.DOTALL)


def score(kind: str, completion: str, answer: str) -> bool:
    """True when the whole completion is `answer`, give or take spaces around lines, one full stop at the end, and one
    line of courtesy after it.

    Sums (`kind` "sum" or "quick"): the completion is a number alone, or ends in "so <number>"; the number counts,
    written without leading zeros.
    """
    said = without_courtesy(completion)
    if kind in SUMS:
        found = _NUMBER.fullmatch(said.strip())
        return found is not None and found[1] == answer.strip()
    return _plain(said) == _plain(answer)


def courteous(completion: str) -> bool:
    """Whether something is said and followed by one line of courtesy."""
    return without_courtesy(completion).strip() not in ("", completion.strip())


def without_courtesy(completion: str) -> str:
    """The completion without the line of courtesy at its end, where it has one."""
    said, _, last = completion.strip().rpartition("\n")
    return said if last in COURTESIES else completion


def _plain(text: str) -> str:
    lines = [" ".join(line.split()) for line in text.strip().splitlines()]
    return "\n".join(lines).removesuffix(".")
