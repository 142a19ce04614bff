"""Judges that text can hang or crash (LaTeX, a pattern, a gym's own scorer): each runs in a process
of its own, as a person's `reward.py` does (host.py). A row that takes more than `ROW_S` seconds, or
breaks its judge, gets None."""

from __future__ import annotations

import base64
import functools
import json as json_text
import pickle
import re
import signal
from collections.abc import Callable, Iterable, Sequence
from types import FrameType
from typing import Any

ROW_S = 2.0
LONGEST = 300
"""Characters of LaTeX that are looked at; an answer that is longer, and twice as long as the right
one, is wrong.
"""


class _TooLong(BaseException):
    """A row took too long. No Exception: the libraries pass over those of their own computations."""


def prepare(judge: str) -> list[float]:
    """Imports what a judge needs, which takes seconds that are no row's."""
    if judge == "latex":
        import math_verify  # noqa: F401
    if judge == "gym":
        import reasoning_gym  # noqa: F401
    if judge == "json":
        import jsonschema  # noqa: F401
    return []


def latex(completions: Sequence[str | None], answer: Sequence[str]) -> list[float | None]:
    """1 where the given LaTeX equals the right answer as mathematics, else 0 (math-verify)."""
    return _limited_each(_same_latex, zip(completions, answer, strict=True))


def regex(completions: Sequence[str], pattern: Sequence[str]) -> list[float | None]:
    """1 where the whole text matches the row's pattern, else 0."""
    return _limited_each(_matches, zip(completions, pattern, strict=True))


def json(completions: Sequence[str | None], schema: Sequence[str]) -> list[float | None]:
    """1 where the text is JSON alone and fits the row's schema, else 0 (jsonschema)."""
    return _limited_each(_fits, zip(completions, schema, strict=True))


def gym(completions: Sequence[str | None], gym: Sequence[dict[str, str]]) -> list[float | None]:
    """What the task's own `score_answer` gives, held to 0 … 1 (reasoning-gym)."""
    values = []
    for given, row in zip(completions, gym, strict=True):
        task = _gym_task(row["task"])
        values.append(_limited(_gym_score, given, row["entry"], task))
    return values


def _limited_each(
    judge: Callable[..., float], rows: Iterable[tuple[Any, ...]]
) -> list[float | None]:
    return [_limited(judge, *row) for row in rows]


def _limited(judge: Callable[..., float], *arguments: Any) -> float | None:
    """The judge's value; None where it takes longer than ROW_S or where the row breaks it."""
    before = signal.signal(signal.SIGALRM, _too_long)
    signal.setitimer(signal.ITIMER_REAL, ROW_S)
    try:
        return judge(*arguments)
    except (Exception, _TooLong, RecursionError) as error:
        print(f"{judge.__name__}: {type(error).__name__}: {error}"[:500])
        return None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _too_long(number: int, frame: FrameType | None) -> None:
    raise _TooLong(f"more than {ROW_S:g} seconds")


def _same_latex(given: str | None, right: str) -> float:
    """math-verify's verdict, but for an answer whose numbers grow beyond all bounds when they are
    multiplied out: 0. Raises ValueError where the right answer's do, or where it cannot be read."""
    from math_verify import verify  # 300 ms

    wanted = _parsed(right)
    if wanted is None:
        raise ValueError("the right answer is not mathematics that can be compared")
    if given is None or len(given) > max(LONGEST, 2 * len(right)):
        return 0.0
    found = _parsed(given)
    # Its own limits raise the alarm that is ours.
    return float(bool(found) and verify(wanted, found, timeout_seconds=None))


def _parsed(text: str) -> list[Any] | None:
    """What math-verify reads in LaTeX; None where that is nothing, or holds a number that is too
    large to compute.
    """
    from math_verify import LatexExtractionConfig, parse  # 300 ms

    from ondevice.rewards.growth import grows

    found: list[Any] = parse(rf"\boxed{{{text}}}", [LatexExtractionConfig()], parsing_timeout=None)
    if found and not any(grows(one) for one in found):
        return found
    return None


def _matches(text: str, pattern: str) -> float:
    return float(re.fullmatch(pattern, text) is not None)


def _fits(text: str | None, schema: str) -> float:
    from jsonschema.validators import validator_for  # 80 ms
    from referencing import Registry

    wanted = json_text.loads(schema)
    kind = validator_for(wanted)
    kind.check_schema(wanted)
    try:
        value = json_text.loads(text or "", parse_constant=_no_json, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        return 0.0
    # a registry of its own: nothing is fetched
    return float(kind(wanted, registry=Registry()).is_valid(value))


def _no_json(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object in which no key stands twice: two values for one are a bet."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found


def _gym_score(given: str | None, pickled: str, task: Any) -> float:
    if given is None:
        return 0.0
    entry = pickle.loads(base64.b64decode(pickled))  # by gym.py, in the process that asks
    return min(max(float(task.score_answer(given, entry)), 0.0), 1.0)


@functools.lru_cache(maxsize=64)
def _gym_task(task: str) -> Any:
    from ondevice.rewards.gym import open_task

    return open_task(task, seed=0, size=1)
