"""The reward `code`: which tests of a data set can be judged, which text is code, and that stages
learn from it and measure by it. What isolates the code is in test_isolate.py."""

from __future__ import annotations

import ast
import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import ondevice as od
import small_stages
from data_samples import small_tokenizer
from ondevice.common.errors import UserError
from ondevice.common.line_process import CallFailed
from ondevice.config.evaluation import EvalConfig
from ondevice.data.messages import BadRow
from ondevice.data.rows import Reading
from ondevice.datasets.prompts import Prompt
from ondevice.evaluation import problems as solving
from ondevice.rewards import code_judge
from ondevice.rewards.answers import last_code
from ondevice.rewards.code_judge import Verdict
from ondevice.rewards.expressions import TooMuch, value
from ondevice.rewards.isolated import decode, encode
from ondevice.rewards.problems import file_problems
from ondevice.rewards.scorer import Rewards
from ondevice.rewards.unit_tests import Assert, of_row
from ondevice.rl.rollout import Sampled
from ondevice.rl.rollout_log import to_records
from ondevice.runs.events import LineFile, read
from ondevice.seam.select import load_backend
from ondevice_tui.rollout_groups import groups_at
from test_isolate import pytestmark as isolates

SMALL = random.Random(7)


def problem(n: int) -> dict[str, Any]:
    """A tiny problem of code: x plus or times a number."""
    sign, number = "+*"[n % 2], n // 2 + 2
    at = SMALL.sample(range(20), 3)
    return {
        "prompt": f"Write a function f that returns x {sign} {number}.",
        "tests": [f"assert f({x}) == {eval(f'{x} {sign} {number}')}" for x in at],
        "solution": f"```python\ndef f(x):\n    return x {sign} {number}\n```",
    }


# ---------------------------------------------------------------- tests of data sets


MBPP = {
    "test_list": ["assert is_odd(3) == True", "assert set(both((3, 4), (4, 5))) == {4}"],
    "test_imports": ["import math"],
    "test_setup_code": "",
}
HUMANEVAL = {
    "entry_point": "area",
    "test": (
        "METADATA = {'author': 'x'}\n\ndef check(candidate):\n    assert candidate(1, 2) == 2\n"
        "    assert abs(candidate(0.5, b=3.0) - 1.5) < 1e-6, 'near'\n    assert True, 'told'\n"
    ),
}
APPS = {"input_output": json.dumps({"inputs": ["1\n2\n"], "outputs": ["3\n"]})}
APPS_CALL = {
    "input_output": json.dumps({"fn_name": "f", "inputs": [[1, [2]]], "outputs": [[[1, 2]]]})
}
CONTEST = {
    "public_tests": {"input": ["1"], "output": ["2"]},
    "private_tests": {"input": ["3"], "output": ["4"]},
}


@pytest.mark.parametrize(
    ("row", "count", "names"),
    [
        (MBPP, 2, {"is_odd", "both"}),
        (HUMANEVAL, 2, {"area"}),
        (APPS, 1, None),
        (APPS_CALL, 1, {"f"}),
        (CONTEST, 2, None),
        ({"tests": '["assert f(1) == 2"]'}, 1, {"f"}),
        ({"tests": "assert f(1) == 2"}, 1, {"f"}),
        ({"test_list": ["assert sum(10, 15) == 6"]}, 1, {"sum"}),
        ({"tests": [{"input": "1", "output": "2"}]}, 1, None),
        ({"tests": {"inputs": ["1", "2"], "outputs": ["2", "3"]}}, 2, None),
    ],
)
def test_forms_of_tests_are_read(row: dict[str, Any], count: int, names: set[str] | None) -> None:
    tests = of_row(row)
    assert tests is not None and len(tests.tests) == count
    if names is not None:
        assert all(isinstance(test, Assert) and test.under_test == names for test in tests.tests)


def test_what_the_prompt_imports_is_there_for_the_code() -> None:
    prompt = 'from typing import List\n\ndef area(a: int, b: int) -> int:\n    """The area."""\n'
    tests = of_row(HUMANEVAL, prompt)
    assert tests is not None and tests.setup == "from typing import List"
    words = of_row(HUMANEVAL, "Write it, please")
    assert words is not None and words.setup == ""


def slow(row: dict[str, Any], said: str) -> Any:
    return pytest.param(row, said, marks=pytest.mark.slow)


def reversed_lists() -> str:
    """Iterators, whose items are not seen before they are written out."""
    return ", ".join(["[reversed([[0] * 1000] * 900)]"] * 3)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"tests": ["assert f(open('x'))"]}, None),
        ({"tests": ["assert all(f(i) for i in range(9))"]}, "GeneratorExp"),
        ({"tests": ["assert f(1).real == 1"]}, "the name f"),
        ({"tests": ["assert (lambda: f(1))()"]}, "the call"),
        ({"tests": ["assert f(os.getcwd())"]}, "the call os.getcwd"),
        ({"tests": ["assert f(x) == 1"]}, "the name x"),
        ({"tests": ["assert f(1) << 9"]}, "LShift"),
        ({"tests": ["assert f(*[1]) == 1"]}, "Starred"),
        ({"tests": ["for i in range(3): assert f(i)"]}, "is not an assert"),
        ({"tests": ["assert f("]}, "not Python"),
        ({"tests": ["assert 1 == 1"]}, "no test"),
        ({"tests": 3}, "neither"),
        ({"tests": [{"input": "1"}]}, "neither"),
        ({"tests": [{"input": 1, "output": "2"}]}, "not a text"),
        ({"tests": {"inputs": ["1"], "outputs": []}}, "1 inputs and 0 outputs"),
        ({"input_output": "{"}, "not JSON"),
        ({"test": "def check(c):\n    x = 1", "entry_point": "f"}, "is not an assert"),
        ({"test": "def check(c):\n    assert c(1)"}, "entry_point"),
        ({"test": "x = 1", "entry_point": "f"}, "not one function"),
        ({"tests": ["assert f([[0]*10**6]*10**6) == 1"]}, "too large"),
        ({"tests": ["assert f(1) == str([[0]*10**6]*10**6)"]}, "too large"),
        ({"tests": ["assert as_lists(([0]*1000,)*1001) == f(1)"]}, "too large"),
        slow({"tests": ["assert f(1) == {" + "(" * 40 + "0" + ",)*9" * 40 + "}"]}, "too large"),
        slow({"tests": [f"assert f({reversed_lists()})"]}, "too large"),
        ({"tests": ["assert f(1) == sum([[0]] * 400000, [])"]}, "not numbers"),
        ({"tests": ["assert f(1) == round(5, -10**9)"]}, "rounded"),
        ({"tests": ["assert f(1) ==" + " 3 ** 400000 // 3 ** 200000 +" * 9 + " 1"]}, "too long"),
        slow({"tests": ["assert f(1) == 3 ** 400000 // 3 ** 200000"] * 9}, "too long"),
        (
            {"tests": [f"assert f(1) == set({[(2**61 - 1) * k for k in range(9000)]})"]},
            "many items",
        ),
        ({"tests": ["assert f(int)"]}, "not a plain value"),
        ({"tests": ["assert f(1) == Fraction(1, 2)"]}, "a Fraction, which is not a plain"),
        (MBPP | {"test_setup_code": "def both(a, b): return a"}, "calls both, which is defined"),
        (MBPP | {"test_imports": ["from m import x as is_odd"]}, "calls is_odd, which is defined"),
        (MBPP | {"test_setup_code": "if 1:\n    both = is_even"}, "calls both, which is defined"),
        (MBPP | {"test_setup_code": "def ("}, "not Python"),
        (
            {"test_list": ["assert f(4) == sqrt(4)"], "test_imports": ["from math import *"]},
            r"an import \*",
        ),
        ({"tests": ["assert f(1) == [1, 2][5]"]}, "out of range"),
    ],
)
def test_what_cannot_be_judged_is_refused_by_name(row: dict[str, Any], said: str | None) -> None:
    if said is None:  # any name that is called is the code's own
        assert of_row(row) is not None
        return
    with pytest.raises(BadRow, match=said):
        of_row(row)


def holds(text: str, given: Any) -> bool:
    """Whether an assert holds where the code gives this."""
    tests = of_row({"tests": [f"assert {text}"]})
    assert tests is not None
    [test] = tests.tests
    assert isinstance(test, Assert)
    return test.holds(lambda name, arguments, keywords: given)


@pytest.mark.parametrize(
    ("text", "given", "right"),
    [
        ("f() == (1, 2)", (1, 2), True),
        ("f() == (1, 2)", [1, 2], False),
        ("f() is None", None, True),
        ("not f()", 0, True),
        ("1 < f() <= 3", 3, True),
        ("f()[0] == 'a' and f()[-1:] == 'c'", "abc", True),
        ("sorted(f()) == [1, 2]", {2, 1}, True),
        ("list(f()) == [1, 2]", iter([1, 2]), True),
        ("f() == [1, 2]", iter([1, 2]), False),
        ("math.isclose(f(), math.pi, rel_tol=1e-9)", 3.141592653589793, True),
        ("abs(f() - 0.5) < 1e-6", "x", False),
        ("f() == {'a': [1], 2: None}", {"a": [1], 2: None}, True),
        ("isinstance(f(), int) and f() in (3, 4)", 3, True),
        ("f().lower() == 'abc'", "ABC", True),
        ("f().lower() == 'abc'", 3, False),
        ("(f() if f() else 7) == 7", [], True),
        ("f() ** 2 == 9", 3, True),
        ("f() ** f() == 0", 10**9, False),
        ("len(f() * 10 ** 9) == 0", "x" * 1000, False),
        ("f() % 'x' == 'x'", "%s", False),
        ("10 ** 400 * f() == 0", 0.5, False),
        ("set(f()) == {0, 1}", [(2**61 - 1) * k for k in range(40_000)], False),
        ("set(f()) == {0, 1}", iter([(2**61 - 1) * k for k in range(40_000)]), False),
        ("{1}.union(f()) == {0, 1}", [(2**61 - 1) * k for k in range(40_000)], False),
        ("len(set(f())) == 40000", list(range(40_000)), True),
        ("f() == [2 ** 20000]", [2**20000], True),
        ("len([f()] * 10 ** 6) == 10 ** 6", "xx", False),
    ],
)
def test_an_assert_is_worked_out_here(text: str, given: Any, right: bool) -> None:
    assert holds(text, given) is right


def test_calls_within_calls_are_asked_one_after_the_other() -> None:
    tests = of_row({"tests": ["assert decode(encode('ab', n=2)) == 'ab'"]})
    assert tests is not None
    asked: list[Any] = []

    def call(name: str, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        asked.append((name, arguments, keywords))
        return "ab" if name == "decode" else "xy"

    [test] = tests.tests
    assert isinstance(test, Assert) and test.holds(call)
    assert asked == [("encode", ["ab"], {"n": 2}), ("decode", ["xy"], {})]


@pytest.mark.parametrize(
    "given",
    [
        None,
        True,
        -(10**40),
        [2**20000, -(2**20000)],
        set(range(20_000)),
        0.1,
        float("inf"),
        float("-inf"),
        1 + 2j,
        "é\ud800",
        b"\x00\xff",
        [(1, 2), {3}, frozenset((4,)), {5: {"x": (6,)}, (7,): []}],
    ],
)
def test_plain_values_go_through_and_back(given: Any) -> None:
    back = decode(json.loads(json.dumps(encode(given))))
    assert back == given and type(back) is type(given)


@pytest.mark.parametrize(
    "given",
    [
        {"a": 1, "b": 2},
        {"set": 3},
        {"set": [[1]]},
        {"dict": [[1]]},
        {"float": "1e999"},
        {"bytes": "x"},
        {"complex": [1]},
        {"eval": ["1"]},
        {"set": [(2**61 - 1) * number for number in range(5_000)]},
        {"dict": [[(2**61 - 1) * number, 0] for number in range(5_000)]},
        {"int": "zz"},
    ],
)
def test_what_encode_did_not_write_is_refused(given: Any) -> None:
    with pytest.raises(ValueError):
        decode(given)


# ---------------------------------------------------------------- the code of an answer


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("def f(): pass", "def f(): pass"),
        ("First:\n```python\na\n```\nThen:\n```python\nb\n```\nDone.", "b\n"),
        ("```py\na\n```\nIt prints\n```\n3\n```", "a\n"),
        ("```py\na\n```\nIt prints\n```text\n3\n```", "a\n"),
        ("```\na\n```", "a\n"),
        ("~~~python\na\n~~~", "a\n"),
        ("````python\n```\na\n````", "```\na\n"),
        ("```python\na\n```\nand\n```python\nb", None),
        ("```text\na\n```", None),
        ("```python\n\n```", None),
        ("<think>```python\na\n```</think>```python\nb\n```", "b\n"),
        ("<think>```python\na\n```", None),
        ("", None),
    ],
)
def test_the_last_block_of_python_is_the_code(text: str, code: str | None) -> None:
    assert last_code(text) == code


# ---------------------------------------------------------------- the reward


@isolates
def test_the_reward_is_all_or_the_share() -> None:
    rows = {"tests": [["assert f(1) == 4", "assert f(2) == 5"]] * 4 + [None]}
    texts = [
        "```python\ndef f(x): return x + 3\n```",
        "```python\ndef f(x): return 4\n```",
        "```python\ndef f(x: return 4\n```",
        "I do not know.",
        "```python\ndef f(x): return 4\n```",
    ]
    for partial, values in ((False, [1, 0, 0, 0]), (True, [1, 0.5, 0, 0])):
        with Rewards(("code",), partial=partial) as rewards:
            scores = rewards.score(["p"] * 5, texts, rows)
        assert scores.by_name["code"][:4].tolist() == values
        assert np.isnan(scores.by_name["code"][4])
        assert scores.tests[:2] == [
            Verdict(2, 2),
            Verdict(1, 2, "test 2: gave another value"),
        ]
        assert scores.tests[2] is not None and "SyntaxError" in scores.tests[2].why
        assert scores.tests[4] is None


@isolates
def test_an_isolator_that_is_gone_is_told_and_is_no_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: Any) -> Any:
        raise CallFailed("its process was ended by a signal (Killed)")

    with Rewards(("code",)) as rewards:
        monkeypatch.setattr(code_judge, "judge_one", fails)
        scores = rewards.score(["p"], ["x"], {"tests": [["assert f(1) == 4"]]})
    assert np.isnan(scores.total[0])
    assert scores.warnings == [
        "running code: its process was ended by a signal (Killed); such rows have no such reward"
    ]


@isolates
def test_data_without_tests_is_refused_before_the_run() -> None:
    with Rewards(("code",)) as rewards, pytest.raises(UserError, match="'tests' or 'test_list'"):
        rewards.check({"answer"})


def test_rows_that_cannot_be_judged_are_set_aside_and_counted(tmp_path: Path) -> None:
    rows = [problem(n) for n in range(20)]
    rows += [{"prompt": "a", "tests": ["assert all(f(i) for i in [1])"]}, {"prompt": "b"}]
    file = tmp_path / "code.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    found: list[Any] = []
    kept = list(
        file_problems(
            str(file), found.append, answered=False, reading=Reading(bad=0.2), tested=True
        )
    )
    assert len(kept) == 20
    [told] = found
    reasons = [bad.reason for bad in told.rejected]
    assert "a test cannot be judged outside of the code: GeneratorExp" in reasons[0]
    assert "it has no unit tests" in reasons[1]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = small_stages.make(
        tmp_path_factory.mktemp("code"), load_backend("torch", "cpu", "float32")
    )
    rows = [problem(n) for n in range(30)]
    (folder / "code.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.mark.slow
@isolates
def test_grpo_learns_from_it(files: Path, tmp_path: Path) -> None:
    settings = small_stages.settings(files, "grpo", tmp_path, "torch")
    settings |= {"data": str(files / "code.jsonl"), "rewards": ("code", "length"), "steps": 3}
    settings |= {"eval_every": 2, "code_reward": "share", "code_seconds": 1}
    settings |= {"prompts": 2, "group_size": 2, "validation": ""}
    od.grpo(**settings)
    events = list(read(tmp_path / "grpo" / "events.jsonl"))
    steps = [event for event in events if event["event"] == "step"]
    assert [step["reward/code"] for step in steps] == [0, 0, 0]
    assert all(step["reward/length"] > 0 for step in steps)
    assert [event["accuracy"] for event in events if event["event"] == "eval"][0] == 0
    groups = (tmp_path / "grpo" / "groups.jsonl").read_text().splitlines()
    completion = json.loads(groups[0])["groups"][0]["completions"][0]
    assert completion["tests"]["of"] == 3 and completion["tests"]["passed"] == 0
    assert completion["tests"]["why"]


@isolates
def test_problems_of_code_are_solved(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [problem(n) for n in range(4)]
    (tmp_path / "code.jsonl").write_text("\n".join(map(json.dumps, rows)))
    texts = [rows[0]["solution"], rows[1]["solution"], rows[1]["solution"], "```python\nno end"]

    class Writes:
        """In the place of a model that can code."""

        backend = load_backend("torch", "cpu", "float32")

        def run(self, params: Any, prompts: Any, **how: Any) -> list[Any]:
            ids = [small_tokenizer().encode(text) for text in texts]
            return [SimpleNamespace(ids=one, stopped=True) for one in ids]

    monkeypatch.setattr(solving, "generator_of", lambda *given: Writes())
    found = od.evaluate(
        model=str(files / "policy"),
        data=str(tmp_path / "code.jsonl"),
        tasks=("problems",),
        answer="code",
        max_new_tokens=4,
        device="cpu",
        backend="torch",
    )
    assert (found["problems"], found["accuracy"], found["answered"]) == (4, 0.5, 0.75)


def test_problems_of_code_have_no_examples() -> None:
    with pytest.raises(UserError, match="without examples"):
        EvalConfig(model="m", tasks=("problems",), answer="code", shots=2).check()


def test_large_values_are_not_made() -> None:
    node = ast.parse("10 ** 10 ** 10", mode="eval").body
    with pytest.raises(TooMuch):
        value(node, frozenset(), lambda *given: None)


def test_records_say_how_many_tests_passed(tmp_path: Path) -> None:
    asked = Prompt([{"role": "user", "content": "q"}], [1], {})
    sampled = [Sampled([1], [2], True, "x")] * 3
    told = [Verdict(1, 2, "test 2: ZeroDivisionError"), Verdict(2, 2), None]
    rewards = {"code": np.array([0.5, 1.0, np.nan])}
    groups = to_records([asked], sampled, rewards, rewards["code"], np.zeros(3), tests=told)
    with LineFile(tmp_path / "groups.jsonl") as file:
        place = file.append({"step": 1, "groups": groups})
    [group] = groups_at(tmp_path / "groups.jsonl", 1, place)
    assert [answer.tests for answer in group.answers] == [
        "1 of 2 tests: test 2: ZeroDivisionError",
        "2 of 2 tests",
        "",
    ]
    assert [answer.right for answer in group.answers[:2]] == [False, True]
