"""Regular expressions for modules' names that an adapter's folder brings: only those that end soon.

Python's `re` tries every way to match; a repetition within a repetition has more ways than there is
time. What adapters have written (PEFT's own, Unsloth's) repeats five times at most, and nothing
twice.
"""

from __future__ import annotations

import re

from ondevice.common.errors import UserError

LONGEST, MOST_REPEATS = 5000, 5
_LITERAL = re.compile(r"\\.|\[\^?\]?[^\]]*\]", re.DOTALL)
_REPEAT = re.compile(r"[*+]|\{[0-9]*,?[0-9]*\}")


def check_pattern(pattern: str, where: str) -> None:
    """Raises UserError for what is not a regular expression, and for one that could try for ever."""
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise UserError(
            f"{pattern[:80]!r} is not a regular expression: {error}", where=where
        ) from error
    plain = _LITERAL.sub("x", pattern)
    if len(pattern) > LONGEST or len(_REPEAT.findall(plain)) > MOST_REPEATS or _nests(plain):
        raise UserError(
            f"the pattern {pattern[:80]!r} could take for ever to match: it repeats more than "
            f"{MOST_REPEATS} times, or a repetition",
            where=where,
            hint="write the modules' names as a list",
        )


def _nests(plain: str) -> bool:
    """Whether a group that holds a repetition is repeated."""
    open_groups = [False]  # of each group that is open: whether something repeats in it
    place = 0
    while place < len(plain):
        if plain[place] == "(":
            open_groups.append(False)
        elif plain[place] == ")" and len(open_groups) > 1:
            inside = open_groups.pop()
            repeated = _REPEAT.match(plain, place + 1) is not None
            if inside and repeated:
                return True
            open_groups[-1] |= inside or repeated
        elif _REPEAT.match(plain, place):
            open_groups[-1] = True
        place += 1
    return False
