"""The rewards of a run: built-in ones and a person's own, weighed and added. What goes wrong with
one is said once and its rows are missing; it stops the run only where it goes on."""

from __future__ import annotations

import importlib.util
import math
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ondevice.common.distribution import install_hint
from ondevice.common.errors import UserError, nearest
from ondevice.common.line_process import CallFailed
from ondevice.rewards import isolate
from ondevice.rewards.answers import check_form, final_answer
from ondevice.rewards.builtin import BUILTIN, TURNS
from ondevice.rewards.code_judge import Verdict, judge_code
from ondevice.rewards.golds import Unreadable, unreadable
from ondevice.rewards.isolate import Limits
from ondevice.rewards.process import START_S, Function, Host

FAILURES = 5
"""Failures in a row of one function of a person's that a run survives."""
STAGE_GIVES = frozenset(
    ("prompts", "completions", "completion_ids", "truncated", "max_new_tokens", "form")
)
_JUDGES = Path(__file__).with_name("judges.py")
_JUDGES_ROW_S, _JUDGES_FAILURES = 5.0, 3

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """N completions judged. `total` (N,) is the weighted sum of what answered, NaN where nothing
    did (take advantage 0); `by_name` has (N,) a reward, NaN where it gave nothing; `parsed` the
    answers found, None where there is none; `warnings` one line for each cause that is new;
    `tests` what unit tests said of code, None where none were asked."""

    total: Array
    by_name: dict[str, Array]
    parsed: list[str | None]
    warnings: list[str]
    tests: list[Verdict | None] = field(default_factory=list)


class Rewards:
    """Rewards by name with their weights; a context manager, for it may hold processes.

    `names`: built-in rewards and functions of `user_file`; a person's functions that are not named
    count too, with weight 1. `weights`: one a name, or none for each one's own. `form`: how answers
    are written (answers.py). `user_file`: `reward.py`, or `reward.py:name,name` for some of its
    functions. `timeout`: seconds a function may take for a batch. `log`: a file to which what a
    person's functions print is appended. `limits`: of each unit test of code; `partial`: the share
    of unit tests that pass is the reward, not all or nothing.

    Raises UserError for an unknown name or form, weights that do not fit, a file that yields no
    functions, for `correct` with the form `boxed` where math-verify is not installed, for
    `json` where jsonschema is not, and for `code` where nothing isolates it.
    """

    def __init__(
        self,
        names: Sequence[str] = ("correct", "format", "truncated"),
        weights: Sequence[float] = (),
        form: str = "number",
        user_file: str = "",
        timeout: float = 30.0,
        log: Path | None = None,
        limits: Limits | None = None,
        partial: bool = False,
    ) -> None:
        check_form(form)
        if not 0 < timeout < math.inf:
            raise UserError(
                f"{timeout:g} is out of range", where="timeout", hint="seconds, more than 0"
            )
        self.form = form
        self.limits = limits or Limits()
        self.partial = partial
        self._tests: list[Verdict | None] = []
        self.missing: Counter[str] = Counter()
        """What went wrong → how often (values, or calls that failed)."""
        self._judges = Host(_JUDGES, ("prepare", "latex", "regex", "json", "gym"), timeout=timeout)
        self._user: Host | None = None
        if user_file:
            self._user = Host(*named_file(user_file), timeout=timeout, log=log)
        self._failed: Counter[str] = Counter()  # failures in a row of each function
        self._warnings: list[str] = []
        try:
            self._functions: dict[str, Function] = {}
            if self._user is not None:
                for function in self._user.start():
                    self._functions[function.name] = function
            self.weights = self._weigh(tuple(names), tuple(weights))
            _need_all(self.weights, form)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Rewards:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def read_in(self, form: str) -> None:
        """From here on answers are read in this form. Raises UserError as `Rewards` does."""
        check_form(form)
        _need_all(self.weights, form)
        self.form = form

    @property
    def unused(self) -> tuple[str, ...]:
        """Public functions of a person's file that are no rewards."""
        if self._user is not None:
            return self._user.unused
        return ()

    def told(self) -> str:
        """Every reward with its weight, in one line."""
        return ", ".join(f"{name} × {weight:g}" for name, weight in self.weights.items())

    def close(self) -> None:
        """Ends the processes; the next `score` would start them again."""
        self._judges.close()
        if self._user is not None:
            self._user.close()

    def needed(self) -> set[str]:
        """Columns without which a reward cannot judge."""
        columns: set[str] = set()
        for name in self.weights:
            columns.update(self._needs(name))
        return columns

    @property
    def runs_tests(self) -> bool:
        """Whether rows bring unit tests."""
        return "code" in self.weights

    def _needs(self, name: str) -> tuple[str, ...]:
        """What a reward must be given."""
        if name in self._functions:
            return self._functions[name].needs
        return BUILTIN[name].needs

    def uses(self) -> set[str] | None:
        """Columns of the data that a reward reads; None: all may be read, by a person's own
        functions.
        """
        if self._functions:
            return None
        columns = self.needed()
        for name in self.weights:
            columns.update(BUILTIN[name].one_of, BUILTIN[name].reads)
        return columns

    def check(self, columns: Iterable[str]) -> None:
        """Raises UserError where a reward needs a column that the data does not have: before a run,
        not in it.
        """
        there = STAGE_GIVES | set(columns)
        for name in self.weights:
            missing = [repr(need) for need in self._needs(name) if need not in there]
            one_of: tuple[str, ...] = ()
            if name not in self._functions:
                one_of = BUILTIN[name].one_of
            if one_of and not there & set(one_of):
                missing.append(" or ".join(map(repr, one_of)))
            if missing:
                columns_there = ", ".join(sorted(there - STAGE_GIVES))
                raise UserError(
                    f"the data has no column {missing[0]}, which this reward needs",
                    where=f"reward {name}",
                    hint=f"it has {columns_there or 'none'}",
                )

    def check_answers(self, rows: Iterable[Mapping[str, Any]]) -> list[Unreadable]:
        """Right answers that no completion can give, for each reward that reads them. Raises
        UserError where a reward can read none: it could only ever say no."""
        found = unreadable(self.weights, rows, self.form)
        for one in found:
            if one.bad == one.asked:
                raise UserError(
                    f"no completion in the form {self.form!r} can be any of the {one.asked} right answers, "
                    f"the first of which is {one.example[:60]!r}",
                    where=f"reward {one.reward}",
                    hint="--answer says how completions give theirs: hash, boxed, tag, last_number, whole",
                )
        return found

    def score(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        columns: Mapping[str, Any],
        openings: Sequence[str] = (),
    ) -> Scores:
        """Judges N completions. `columns`: lists of N by name, `max_new_tokens` an int. `openings`:
        what the prompts have opened of a thought (`datasets.prompts.thought_opening`), one a completion, or
        none at all.

        Raises UserError where a person's function has failed more than FAILURES times in a row.
        """
        count = len(completions)
        assert len(prompts) == count
        for name, column in columns.items():
            assert name == "max_new_tokens" or len(column) == count, name
        self._warnings = []
        self._tests = [None] * count
        given = {
            # of rows that do not all have a column, some may have it nowhere
            **{name: [None] * count for name in self.needed()},
            **columns,
            "prompts": list(prompts),
            "completions": list(completions),
            "form": self.form,
        }
        if openings:
            turns = list(map("".join, zip(openings, completions, strict=True)))
        else:
            turns = list(completions)
        with_openings = {**given, "completions": turns}
        by_name = {}
        for name in self.weights:
            if name in self._functions:
                by_name[name] = self._ask_user(name, given, count)
                continue
            arguments = with_openings if name in TURNS else given
            values = BUILTIN[name].function(**arguments, apart=self._apart)
            by_name[name] = self._clean(name, values, count)
        parsed = [final_answer(turn, self.form) for turn in turns]
        return Scores(
            _total(by_name, self.weights, count), by_name, parsed, self._warnings, self._tests
        )

    def _weigh(self, names: tuple[str, ...], weights: tuple[float, ...]) -> dict[str, float]:
        """Name → weight, in the order in which they were named."""
        for name in self._functions:
            if name in BUILTIN:
                raise UserError(
                    f"{name!r} is the name of a built-in reward",
                    where=str(self._user and self._user.file),
                    hint="call the function something else",
                )
        known = {name: reward.weight for name, reward in BUILTIN.items()}
        known |= dict.fromkeys(self._functions, 1.0)
        for name in names:
            if name not in known:
                raise UserError(
                    f"there is no reward {name!r}", where="rewards", hint=nearest(name, known)
                )
            if names.count(name) > 1:
                raise UserError(
                    f"{name!r} is named twice", where="rewards", hint="give it the weight instead"
                )
        if weights and len(weights) != len(names):
            raise UserError(
                f"{len(weights)} weights for {len(names)} rewards",
                where="weights",
                hint="one a reward",
            )
        for weight in weights:
            if not math.isfinite(weight):
                raise UserError(f"{weight} is not a weight", where="weights", hint="give a number")
        if not weights:
            weights = tuple(known[name] for name in names)
        chosen = dict(zip(names, weights, strict=True))
        for name in self._functions:
            chosen.setdefault(name, 1.0)
        if not chosen:
            raise UserError("no reward was named", where="rewards", hint=nearest("", BUILTIN))
        return chosen

    def _ask_user(self, name: str, given: Mapping[str, Any], count: int) -> Array:
        assert self._user is not None
        if not count:  # of several processes one may have no prompt
            return np.zeros(0)
        arguments = {key: value for key, value in given.items() if key != "gym"}
        try:
            values = self._user.call(name, arguments)
            if len(values) != count:
                raise CallFailed(
                    f"gave {len(values)} values for {count} completions", "wrong length"
                )
        except CallFailed as error:
            self._failed[name] += 1
            self._warn(
                f"{name} {error.cause}", f"reward {name}: {error}; its rows have no such reward"
            )
            if self._failed[name] > FAILURES:
                raise UserError(
                    f"{name}: {error}; {self._failed[name]} failures in a row",
                    where=str(self._user.file),
                    hint="mend the file, and begin anew with it",
                ) from error
            return np.full(count, np.nan)
        self._failed[name] = 0
        return self._clean(name, values, count)

    def _clean(self, name: str, values: Sequence[Any], count: int) -> Array:
        """The numbers among the values (N,), NaN for all else; what is neither a finite number nor
        None is told.
        """
        assert len(values) == count
        cleaned = np.full(count, np.nan)
        bad: Counter[str] = Counter()
        for n, value in enumerate(values):
            if isinstance(value, Mapping):
                bad[f"not a number but {value['type']}"] += 1
            elif value is not None and not math.isfinite(value):
                kind = "NaN" if math.isnan(value) else "infinite"
                bad[kind] += 1
            elif value is not None:
                cleaned[n] = value
        for kind, times in bad.items():
            text = f"reward {name}: {times} of {count} values were {kind}; they are left out"
            self._warn(f"{name} {kind}", text, times)
        return cleaned

    def _warn(self, cause: str, text: str, times: int = 1) -> None:
        """Says it the first time, counts it every time."""
        if cause not in self.missing:
            self._warnings.append(text)
        self.missing[cause] += times

    def _apart(self, judge: str, arguments: Mapping[str, Sequence[Any]]) -> list[float | None]:
        """The judge's values. Where a row brings its process down, the rows are asked one by one:
        only the bad ones are missing."""
        if judge == "code":
            return self._run_tests(arguments)
        count = len(arguments["completions"])
        try:
            values = []
            if count:
                values = self._judge(judge, arguments, None)
        except CallFailed as error:
            self._warn(
                f"judge {judge}",
                f"judging answers by {judge}: {error}; such rows have no such reward",
            )
            return self._one_by_one(judge, arguments, count)
        if bad := sum(value is None for value in values):
            self._warn(
                f"judge {judge} rows",
                f"{bad} of {count} answers could not be judged by {judge}",
                bad,
            )
        return values

    def _run_tests(self, arguments: Mapping[str, Sequence[Any]]) -> list[float | None]:
        """All or nothing, or the share of tests that pass."""
        values: list[float | None] = []
        given = dict(arguments)
        prompts, completions = given.pop("prompts"), given.pop("completions")
        verdicts = judge_code(prompts, completions, given, self.limits, every=self.partial)
        for n, verdict in enumerate(verdicts):
            value: float | None = None
            if isinstance(verdict, CallFailed):
                self._warn(
                    f"code {verdict.cause}",
                    f"running code: {verdict}; such rows have no such reward",
                )
            elif verdict is not None:
                self._tests[n] = verdict
                value = float(verdict.all_passed)
                if self.partial:
                    value = verdict.passed / verdict.tests
            values.append(value)
        return values

    def _one_by_one(
        self, judge: str, arguments: Mapping[str, Sequence[Any]], count: int
    ) -> list[float | None]:
        values: list[float | None] = []
        failures = 0
        for n in range(count):
            row = {name: [column[n]] for name, column in arguments.items()}
            try:
                if failures < _JUDGES_FAILURES:
                    values += self._judge(judge, row, _JUDGES_ROW_S)
                else:
                    values.append(None)
            except CallFailed:
                failures += 1
                values.append(None)
        return values

    def _judge(
        self, judge: str, arguments: Mapping[str, Sequence[Any]], timeout: float | None
    ) -> list[float | None]:
        self._judges.call("prepare", {"judge": judge}, START_S)
        return self._judges.call(judge, arguments, timeout)


def refuse_what_cannot_judge(
    names: Sequence[str], weights: Sequence[float], form: str, user_file: str = ""
) -> None:
    """Raises UserError as `Rewards` does, before anything is made for a run; what is wrong with a
    person's file is found when its process starts, which happens once."""
    if user_file:
        _need_all(names, form)
    else:
        Rewards(names, weights, form).close()


def _need_all(names: Collection[str], form: str) -> None:
    """Raises UserError where this machine lacks what a reward judges with."""
    if form == "boxed" and "correct" in names:
        _need("math_verify", "boxed answers are compared by the library math-verify", "form")
    if "json" in names:
        _need("jsonschema", "is judged by the library jsonschema", "reward json")
    if "code" in names:
        isolate.require()


def _need(module: str, why: str, where: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise UserError(why, where=where, hint=install_hint("rewards"))


def _total(by_name: Mapping[str, Array], weights: Mapping[str, float], count: int) -> Array:
    total, answered = np.zeros(count), np.zeros(count, np.bool_)
    for name, values in by_name.items():
        there = ~np.isnan(values)
        total[there] += weights[name] * values[there]
        answered |= there
    return np.where(answered & np.isfinite(total), total, np.nan)


def named_file(user_file: str) -> tuple[Path, list[str]]:
    """`reward.py`, or `reward.py:name,name`, as the file and the names."""
    file, _, names = user_file.rpartition(":")
    if file.endswith(".py") and all(map(str.isidentifier, names.split(","))):
        return Path(os.path.expanduser(file)), names.split(",")
    return Path(os.path.expanduser(user_file)), []
