"""Whether a completion is the right answer. Strict: a person would have to agree at a glance."""

from __future__ import annotations

import re

SUMS = frozenset(("sum", "quick"))
_NUMBER = re.compile(r"(?:.*\bso )?(\d+)\.?", re.DOTALL)


def score(kind: str, completion: str, answer: str) -> bool:
    """True when the whole completion is `answer`, give or take spaces around lines and one full stop at the end.

    Sums (`kind` "sum" or "quick"): the completion is a number alone, or ends in "so <number>"; the number counts,
    written without leading zeros.
    """
    if kind in SUMS:
        found = _NUMBER.fullmatch(completion.strip())
        return found is not None and found[1] == answer.strip()
    return _plain(completion) == _plain(answer)


def _plain(text: str) -> str:
    lines = [" ".join(line.split()) for line in text.strip().splitlines()]
    return "\n".join(lines).removesuffix(".")
