"""Judges code by unit tests: the code runs in an isolator (isolate.py), one for each completion with
all of its row's tests, and the verdict is made here from what it gave.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ondevice.data.messages import BadRow
from ondevice.rewards.answers import last_code
from ondevice.rewards.isolate import Isolated, Limits, Wrong
from ondevice.rewards.isolated import TOOK_TOO_LONG
from ondevice.rewards.line_process import CallFailed
from ondevice.rewards.unit_tests import BESIDE, COLUMNS, Assert, UnitTests, of_row

LONGEST = 100_000  # characters of code that are run


@dataclass(frozen=True)
class Verdict:
    """`passed` of `tests` tests hold; `why` says what the first that does not came to."""

    passed: int
    tests: int
    why: str = ""

    @property
    def all_passed(self) -> bool:
        return self.passed == self.tests


def judge_code(
    prompts: Sequence[str],
    completions: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
    limits: Limits,
) -> list[Verdict | CallFailed | None]:
    """(N) verdicts; None where a row has no tests, or none that can be judged, and what went wrong
    where an isolator did. Several isolators run at once; what is there twice is judged once."""
    names = [name for name in (*COLUMNS, *BESIDE) if name in columns]
    rows: list[UnitTests | None] = []
    known: dict[str, UnitTests | None] = {}
    for n, prompt in enumerate(prompts):
        row = {name: columns[name][n] for name in names}
        key = repr((prompt, row))
        if key not in known:
            try:
                known[key] = of_row(row, prompt)
            except BadRow:
                known[key] = None  # told when the data was read
        rows.append(known[key])
    codes = [last_code(completion) for completion in completions]
    asked: dict[tuple[int, str | None], UnitTests] = {}
    for tests, code in zip(rows, codes, strict=True):
        if tests is not None:
            asked.setdefault((id(tests), code), tests)
    with ThreadPoolExecutor(os.cpu_count() or 1, "code") as pool:
        judged = {key: pool.submit(_judged, key[1], tests, limits) for key, tests in asked.items()}
        return [
            None if tests is None else judged[id(tests), code].result()
            for tests, code in zip(rows, codes, strict=True)
        ]


def _judged(code: str | None, tests: UnitTests, limits: Limits) -> Verdict | CallFailed:
    try:
        return judge_one(code, tests, limits)
    except CallFailed as error:
        return error


def judge_one(code: str | None, tests: UnitTests, limits: Limits) -> Verdict:
    """The verdict on one code. The first test that takes too long ends it: those after it count as
    failed. Raises CallFailed where the isolator itself is gone, which code cannot bring about, and
    UserError where there is none."""
    count = len(tests.tests)
    if code is None:
        return Verdict(0, count, "no code")
    if len(code) > LONGEST:
        return Verdict(0, count, f"more than {LONGEST:,} characters of code")
    passed, why = 0, ""
    with Isolated(code, tests.setup, limits) as inside:
        for n, test in enumerate(tests.tests):
            try:
                held = _holds(test, inside)
                said = "" if held else "gave another value"
            except Wrong as error:
                held, said = False, str(error)
            passed += held
            if not held and not why:
                why = f"test {n + 1}: {said}"
            if said == TOOK_TOO_LONG:
                break
    return Verdict(passed, count, why)


def _holds(test: Any, inside: Isolated) -> bool:
    if isinstance(test, Assert):
        inside.begin()
        return test.holds(inside.call)
    return bool(test.holds(inside.program(test.given)))
