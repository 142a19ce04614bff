"""Whether a completion is the right answer. Strict: a person would have to agree at a glance."""

from __future__ import annotations

import re

SUMS = frozenset(("sum", "quick"))
_NUMBER = re.compile(r"(?:.*\bso )?([0-9]+)\.?", re.DOTALL)


def score(kind: str, completion: str, answer: str) -> bool:
    """True when the whole completion is `answer`, give or take spaces around lines and one full stop at the end.

    Sums (`kind` "sum" or "quick"): the completion is a number alone, or ends in "so <number>"; the number counts,
    written without leading zeros.
    """
    if kind in SUMS:
        span = stated_number(completion)
        return span is not None and completion[slice(*span)] == answer.strip()
    return plain(completion) == plain(answer)


def stated_number(completion: str) -> tuple[int, int] | None:
    """Start and end of the number that answers a sum; None where the completion does not state one in this way."""
    found = _NUMBER.fullmatch(completion.strip())
    if found is None:
        return None
    before = len(completion) - len(completion.lstrip())
    return before + found.start(1), before + found.end(1)


def plain(text: str) -> str:
    """`text` without what does not count: spaces around lines, runs of spaces, one full stop at the end."""
    lines = [" ".join(line.split()) for line in text.strip().splitlines()]
    return "\n".join(lines).removesuffix(".")
