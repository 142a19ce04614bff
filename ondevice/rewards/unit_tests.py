"""The unit tests of a row, in the forms in which data sets have them:

    tests            a list of asserts, or of {"input", "output"}, or {"inputs": […], "outputs": […]}; or JSON of these
    test_list        asserts (MBPP), with test_imports and test_setup_code
    test             `def check(candidate):` of asserts, with entry_point (HumanEval)
    input_output     {"inputs", "outputs"} as JSON, with fn_name where these are calls' (APPS)
    public_tests, private_tests, generated_tests   {"input", "output"} (CodeContests)

An assert is taken apart into calls of the code under test, which the isolator answers, and the
rest, which is worked out here (expressions.py): so expected values are never where the code is. A
row with a test that cannot be taken apart is refused by name.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ondevice.common.json_files import parse_json
from ondevice.data.messages import BadRow
from ondevice.rewards.expressions import (
    FAILS,
    PURE,
    WORK,
    Call,
    Unsupported,
    Work,
    called,
    check,
    check_constants,
    value,
)

COLUMNS = ("tests", "test_list", "test", "input_output", "public_tests")
"""Columns of which a row with tests has one at least."""
BESIDE = (
    "test_setup_code",
    "test_imports",
    "entry_point",
    "private_tests",
    "generated_tests",
)
"""Columns that are read beside them."""


_NOT_PLAIN = frozenset(
    ("Fraction", "Decimal", "Counter", "OrderedDict", "defaultdict", "deque", "namedtuple")
).union(("date", "datetime", "timedelta", "ListNode", "TreeNode"))
"""Kinds of the standard library and of puzzles that tests write their values in, and no code under
test gives through a pipe."""


@dataclass(frozen=True)
class Assert:
    """`expression` is to be true; `under_test` names the functions of the code."""

    expression: ast.expr
    under_test: frozenset[str]

    def holds(self, call: Call) -> bool:
        """Whether it does, with `call` to ask the code. Raises what `call` does."""
        try:
            return bool(value(self.expression, self.under_test, call))
        except FAILS:
            return False  # of what the code gave, for the test's own part is right


@dataclass(frozen=True)
class Program:
    """What the code reads on stdin and should write."""

    given: str
    expected: str

    def holds(self, output: str) -> bool:
        """Whether that was written, give or take spaces at the end of lines and empty last lines."""
        return _lines(output) == _lines(self.expected)


@dataclass(frozen=True)
class UnitTests:
    """A row's tests: all asserts, or all programs. `setup` is run before the code."""

    tests: Sequence[Assert | Program]
    setup: str = ""


def has_tests(row: Mapping[str, Any]) -> bool:
    """Whether a row says anything of unit tests."""
    return any(row.get(name) for name in COLUMNS)


def of_row(row: Mapping[str, Any], prompt: str = "") -> UnitTests | None:
    """None where the row has no tests. `prompt` is what is asked: where it is Python, as
    HumanEval's, what it imports is there for the code.

    Raises BadRow for tests that are not of these forms, or that only a person or the code's own
    process could judge; it names the first.
    """
    name = next((name for name in COLUMNS if row.get(name)), None)
    if name is None:
        return None
    given = _read(row[name], name)
    if name == "test":
        tests = _checks(given, row.get("entry_point"))
    elif name == "public_tests":
        tests = []
        for column in (name, "private_tests", "generated_tests"):
            if row.get(column):
                tests += _pairs(_read(row[column], column), column)
    elif isinstance(given, list) and all(isinstance(one, str) for one in given):
        tests = _asserts(given, name)
    else:
        tests = _pairs(given, name)
    if not tests:
        raise BadRow(f"{name} holds no test")
    if len({type(test) for test in tests}) > 1:
        raise BadRow(f"{name} holds asserts and programs both")
    setup = _setup(row, prompt)
    _apart_from(setup, tests, name)
    return UnitTests(tests, setup)


def _apart_from(setup: str, tests: Sequence[Assert | Program], name: str) -> None:
    """Raises BadRow where a test calls what the setup defines: it would run where the code is, which
    may define it anew, and be right."""
    defined: set[str] = set()
    try:
        statements = ast.parse(setup)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise BadRow(f"what is run before the code is not Python: {error}") from error
    for node in ast.walk(statements):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            defined.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            defined.add(node.id)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            defined.update(one.asname or one.name.partition(".")[0] for one in node.names)
    for test in tests:
        if not isinstance(test, Assert):
            continue
        names = called(test.expression)
        if found := sorted(names & defined):
            raise BadRow(
                f"{name}: a test calls {found[0]}, which is defined before the code: code could "
                "define it anew"
            )
        if "*" in defined and len(names - PURE.keys()) > 1:
            raise BadRow(
                f"{name}: a test calls {' and '.join(sorted(names))}, and an import * may "
                "define one of them before the code: code could define it anew"
            )


def _read(given: Any, name: str) -> Any:
    """A column as it is, or out of JSON; a text that is no JSON is one test."""
    if not isinstance(given, str) or name == "test":
        return given
    try:
        return parse_json(given)
    except ValueError:
        if name == "tests":
            return [given]
        raise BadRow(f"{name} is not JSON") from None


def _asserts(texts: Iterable[str], name: str) -> list[Assert | Program]:
    found: list[ast.expr] = []
    for text in texts:
        for statement in _parsed(text, name):
            if not isinstance(statement, ast.Assert):
                raise BadRow(f"{name}: {_short(statement)} is not an assert")
            found.append(statement.test)
    return _checked(found, name, frozenset())


def _checks(text: Any, entry_point: Any) -> list[Assert | Program]:
    """The asserts of HumanEval's `check`."""
    if not isinstance(text, str) or not isinstance(entry_point, str):
        raise BadRow("test needs entry_point, and both are texts")
    checks = [one for one in _parsed(text, "test") if isinstance(one, ast.FunctionDef)]
    if len(checks) != 1 or len(checks[0].args.args) != 1:
        raise BadRow("test is not one function of the candidate")
    candidate = checks[0].args.args[0].arg
    found = []
    for statement in checks[0].body:
        if isinstance(statement, ast.Assert):
            found.append(_Renamed(candidate, entry_point).visit(statement).test)
        elif not isinstance(statement, (ast.Pass, ast.Expr)):
            raise BadRow(f"test: {_short(statement)} is not an assert")
    return _checked(found, "test", frozenset((entry_point,)))


class _Renamed(ast.NodeTransformer):
    def __init__(self, old: str, new: str) -> None:
        self.old, self.new = old, new

    def visit_Name(self, node: ast.Name) -> ast.Name:
        if node.id == self.old:
            node.id = self.new
        return node


def _checked(
    expressions: Sequence[ast.expr], name: str, under_test: frozenset[str]
) -> list[Assert | Program]:
    """Tests that ask the code something, and can be worked out."""
    if not under_test:
        under_test = frozenset[str]().union(*map(called, expressions)) - PURE.keys()
    if not under_test:  # the function has the name of one of Python's own, as MBPP's `sum`
        under_test = frozenset(filter(None, map(_outermost, expressions)))
    if (kinds := sorted(under_test & _NOT_PLAIN)) and len(under_test) > 1:
        raise BadRow(f"{name}: a test makes a {kinds[0]}, which is not a plain value")
    found: list[Assert | Program] = []
    work = Work(2 * WORK)  # of all tests of the row
    for expression in expressions:
        try:
            check(expression, under_test)
            check_constants(expression, under_test, work)
        except (Unsupported, RecursionError) as error:
            raise BadRow(f"{name}: a test cannot be judged outside of the code: {error}") from error
        except FAILS as error:
            raise BadRow(f"{name}: a test cannot be worked out: {str(error)[:100]}") from error
        if not called(expression) & under_test:
            continue  # `assert True, "as HumanEval has it"`
        found.append(Assert(expression, under_test))
    return found


def _outermost(expression: ast.expr) -> str:
    """The function of Python's own that a test calls first."""
    for node in ast.walk(expression):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in PURE:
            return node.func.id
    return ""


def _pairs(given: Any, name: str) -> list[Assert | Program]:
    """Inputs and outputs, a dict of two lists or a list of dicts."""
    if isinstance(given, list):
        pairs = [_pair(one, name) for one in given]
        function = None
    elif isinstance(given, dict):
        inputs, outputs = _pair(given, name)
        if not (isinstance(inputs, list) and isinstance(outputs, list)):
            raise BadRow(f"{name} does not hold lists of inputs and outputs")
        if len(inputs) != len(outputs):
            raise BadRow(f"{name} has {len(inputs)} inputs and {len(outputs)} outputs")
        pairs = list(zip(inputs, outputs, strict=True))
        function = given.get("fn_name")
    else:
        raise BadRow(f"{name} is neither asserts nor inputs and outputs")
    if isinstance(function, str):
        return [_called(function, one, other, name) for one, other in pairs]
    return [Program(_text(one, name), _text(other, name)) for one, other in pairs]


def _pair(one: Any, name: str) -> tuple[Any, Any]:
    if isinstance(one, dict):
        for given, expected in (("input", "output"), ("inputs", "outputs")):
            if given in one and expected in one:
                return one[given], one[expected]
    raise BadRow(f"{name} is neither asserts nor inputs and outputs")


def _text(given: Any, name: str) -> str:
    if isinstance(given, list) and all(isinstance(line, str) for line in given):
        given = "\n".join(given)
    if not isinstance(given, str):
        raise BadRow(f"{name}: a program's input or output is not a text")
    if any("\ud800" <= letter <= "\udfff" for letter in given):
        raise BadRow(f"{name} holds a lone surrogate")
    return given


def _called(function: str, arguments: Any, expected: Any, name: str) -> Assert | Program:
    """APPS' calls: JSON knows lists alone, and some of its results stand in a list of one."""
    if not function.isidentifier() or not isinstance(arguments, list):
        raise BadRow(f"{name}: fn_name is not a function with lists of arguments")
    words = ", ".join(repr(argument) for argument in arguments)
    one = f"as_lists({function}({words}))"
    wanted = [expected]
    if isinstance(expected, list) and len(expected) == 1:
        wanted.append(expected[0])
    text = f"{one} in {wanted!r}"
    [statement] = _parsed(f"assert {text}", name)
    assert isinstance(statement, ast.Assert)
    [test] = _checked([statement.test], name, frozenset((function,)))
    return test


def _parsed(text: str, name: str) -> list[ast.stmt]:
    try:
        return ast.parse(text.strip()).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise BadRow(f"{name}: a test is not Python: {type(error).__name__}") from error


def _short(statement: ast.stmt) -> str:
    return ast.unparse(statement).partition("\n")[0][:60]


def _setup(row: Mapping[str, Any], prompt: str) -> str:
    """What is run before the code: imports, and what MBPP has for it."""
    parts = []
    for name in ("test_imports", "test_setup_code"):
        given = row.get(name)
        if isinstance(given, list):
            given = "\n".join(map(str, given))
        if given:
            parts.append(str(given))
    try:
        if row.get("entry_point"):
            statements = ast.parse(prompt).body
        else:
            statements = []
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        statements = []  # words, and no Python
    for statement in statements:
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            parts.append(ast.unparse(statement))
    return "\n".join(parts)


def _lines(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines
