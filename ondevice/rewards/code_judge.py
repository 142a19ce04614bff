"""Judges code by unit tests: the code runs in an isolator (isolate.py), one for each completion with
all of its row's tests, and the verdict is made here from what it gave.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ondevice.common.clock import ticks
from ondevice.common.line_process import CallFailed
from ondevice.data.messages import BadRow
from ondevice.rewards.answers import last_code
from ondevice.rewards.isolate import Isolated, Limits, Wrong
from ondevice.rewards.isolated import TOOK_TOO_LONG
from ondevice.rewards.unit_tests import BESIDE, COLUMNS, Assert, UnitTests, of_row

LONGEST = 100_000  # characters of code that are run


@dataclass(frozen=True)
class Verdict:
    """`passed` of `tests` tests hold, of those that were run; `why` says what the first that does not came to."""

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
    every: bool = False,
) -> list[Verdict | CallFailed | None]:
    """(N) verdicts, each up to the first test that fails unless `every` test is to run; None where
    a row has no tests, or none that can be judged, and what went wrong where an isolator does not
    start. Several isolators run at once; what is there twice is judged once."""
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
        judged = {
            key: pool.submit(_judged, key[1], tests, limits, every) for key, tests in asked.items()
        }
        return [
            None if tests is None else judged[id(tests), code].result()
            for tests, code in zip(rows, codes, strict=True)
        ]


def _judged(
    code: str | None, tests: UnitTests, limits: Limits, every: bool
) -> Verdict | CallFailed:
    try:
        return judge_one(code, tests, limits, every)
    except CallFailed as error:
        return error


def judge_one(code: str | None, tests: UnitTests, limits: Limits, every: bool = False) -> Verdict:
    """The verdict on one code, up to the first test that fails, or of `every` test. A test that
    takes too long ends it, and so does `limits.answer`: the tests after that count as failed. Where
    the isolator ends while code is in it, the tests are run once more in another, and where that
    ends too the code has failed.

    Raises CallFailed where an isolator does not start, and UserError where there is none.
    """
    count = len(tests.tests)
    if code is None:
        return Verdict(0, count, "no code")
    if len(code) > LONGEST:
        return Verdict(0, count, f"more than {LONGEST:,} characters of code")
    until, said = ticks() + limits.answer, ""
    for _ in range(2):
        with Isolated(code, tests.setup, limits) as inside:
            inside.ready()
            try:
                return _verdict(tests, inside, until, every)
            except CallFailed as error:
                said = str(error)
    return Verdict(0, count, f"it ended its isolator: {said}")


def _verdict(tests: UnitTests, inside: Isolated, until: float, every: bool) -> Verdict:
    passed, why = 0, ""
    for n, test in enumerate(tests.tests):
        if ticks() >= until:
            why = why or f"test {n + 1}: the answer {TOOK_TOO_LONG}"
            break
        try:
            held = _holds(test, inside)
            said = "" if held else "gave another value"
        except Wrong as error:
            held, said = False, str(error)
        passed += held
        if not held and not why:
            why = f"test {n + 1}: {said}"
        if said == TOOK_TOO_LONG or not (held or every):
            break
    return Verdict(passed, len(tests.tests), why)


def _holds(test: Any, inside: Isolated) -> bool:
    if isinstance(test, Assert):
        inside.begin()
        return test.holds(inside.call)
    return bool(test.holds(inside.program(test.given)))
