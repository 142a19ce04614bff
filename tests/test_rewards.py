"""Rewards: the built-in ones by hand and against TRL's, how they are weighed, and a person's own
that misbehave.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ondevice.common.distribution import install_hint
from ondevice.common.errors import UserError
from ondevice.rewards.builtin import BUILTIN
from ondevice.rewards.growth import grows
from ondevice.rewards.judges import latex as latex_judge
from ondevice.rewards.scorer import Rewards, Scores

WriteFile = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path) -> WriteFile:
    """Writes a reward.py and gives its path."""

    def write(code: str) -> str:
        file = tmp_path / "reward.py"
        file.write_text(code, encoding="utf-8")
        return str(file)

    return write


def stage(completions: list[str], **columns: Any) -> dict[str, Any]:
    """The columns that a stage gives beside the data's."""
    return {
        "completion_ids": [[1] * len(c) for c in completions],
        "truncated": [False] * len(completions),
        "max_new_tokens": 10,
        **columns,
    }


def judge(rewards: Rewards, completions: list[str], **columns: Any) -> Scores:
    return rewards.score(["p"] * len(completions), completions, stage(completions, **columns))


def one(name: str, completions: list[str], form: str = "number", **columns: Any) -> list[float]:
    with Rewards((name,), form=form) as rewards:
        return [float(v) for v in judge(rewards, completions, **columns).by_name[name]]


# Built-in rewards


def test_correct_and_format() -> None:
    said = ["132", "so 131.", "It is 132.", ""]
    assert one("correct", said, answer=["132"] * 4) == [1, 0, 0, 0]
    assert one("format", said) == [1, 1, 0, 0]
    tags = [
        "<answer>1</answer>",
        "<answer>1</answer><answer>1</answer>",
        "<answer>2</answer>.",
        "1",
    ]
    assert one("format", tags, form="tag") == [1, 0, 0, 0]
    assert one("correct", tags, form="tag", answer=["1"] * 4) == [1, 1, 0, 0]


def test_correct_says_nothing_where_the_answer_is_unknown() -> None:
    np.testing.assert_equal(one("correct", ["132", "132"], answer=["132", None]), [1, np.nan])


def test_choice_exact_and_think() -> None:
    assert one("choice", ["B", "(b)", "B.", "C", "Both", "", "B or C"], answer=["B"] * 7) == [
        1,
        1,
        1,
        0,
        0,
        0,
        0,
    ]
    assert one("choice", ["<answer>B</answer>", "B"], form="tag", answer=["(B)", "B"]) == [1, 0]
    assert one(
        "exact", ["Arden.", " Arden", "arden", "In Arden", ""], answer=["Arden"] * 4 + [""]
    ) == [1, 1, 0, 0, 0]
    said = [
        "<think>a</think>b",
        "<think>a</think>",
        "<think></think>b",
        "b<think>a</think>b",
        "<think>a",
        "<think>a</think><think>a</think>b",
        "b",
    ]
    assert one("think", said) == [1, 0, 0, 0, 0, 0, 0]


def test_lengths() -> None:
    cut = one("truncated", ["a", "b"], truncated=[True, False])
    assert cut == [-1, 0]
    assert one("length", ["", "12345", "0123456789"]) == [1, 0.5, 0]
    assert one("overlong", ["", "12345678", "123456789", "0123456789"]) == [0, 0, -0.5, -1]


@pytest.mark.slow
def test_overlong_and_think_are_trls() -> None:
    rewards = pytest.importorskip("trl.rewards", reason="TRL is the oracle: the extra dev has it")
    ids = [[0] * n for n in range(0, 61)]
    with Rewards(("overlong",)) as ours:
        found = ours.score(
            [""] * 61, [""] * 61, {"completion_ids": ids, "max_new_tokens": 50}
        ).by_name["overlong"]
    punish = rewards.get_soft_overlong_punishment(max_completion_len=50, soft_punish_cache=10)
    np.testing.assert_allclose(found, punish(completion_ids=ids))
    said = ["<think>a</think>b", "b", "<think>a", "x</think>", "<think>a</think><think>b</think>c"]
    theirs = rewards.think_format_reward(
        [[{"role": "assistant", "content": text}] for text in said]
    )
    assert one("think", said) == theirs


# reward, prompt, completion, value: what a policy would try that is paid for something else
ADVERSARIAL = [
    ("format", "p", "#### 132", 1),
    ("format", "p", "#### 132\n#### 132", 0),
    ("format", "p", "####", 0),
    ("format", "p", "End with #### and the number.", 0),
    ("format", "p", "#### 132\nor 131", 0),
    ("correct", "p", "132\n####", 0),
    ("correct", "p", "#### 131\n#### 132", 0),
    ("correct", "p", "#### 132.0", 1),
    ("correct", "p", "#### ١٣٢", 0),
    ("correct", "p", "#### 1.32e2", 0),
    ("correct", "p", "#### 264/2", 1),
    ("correct", "p", "#### $132", 0),
    ("correct", "p", "<think>#### 132</think>", 0),
    ("correct", "p", "", 0),
    ("exact", "p", "132 132", 0),
    ("exact", "p", "132\0", 0),
    ("exact", "p", "p 132", 0),
    ("exact", "p", "132..", 0),
    ("think", "p", "<think>\n</think>132", 0),
    ("think", "p", "<think>a</think> \n", 0),
    ("language", "What is it?", "It is 132.", 0),
    ("language", "What is it?", "Это 132", -1),
    ("language", "What is it?", "It Это", -0.6),
    ("language", "What is it?", "132 = 132", 0),
    ("language", "What is it?", "", 0),
    ("language", "1+1", "Это", 0),
    ("language", "これは何", "それは本", 0),
    ("language", "What is it?", "Іt іs", -0.5),  # its i's are Cyrillic
]


@pytest.mark.parametrize(
    ("name", "prompt", "completion", "value"),
    ADVERSARIAL,
    ids=[f"{name}-{text[:20]!a}" for name, _, text, _ in ADVERSARIAL],
)
def test_adversarial_completions(name: str, prompt: str, completion: str, value: float) -> None:
    with Rewards((name,), form="hash") as rewards:
        found = rewards.score([prompt], [completion], stage([completion], answer=["132"])).by_name[
            name
        ]
    np.testing.assert_allclose(found, [value])


SCHEMA = {
    "type": "object",
    "properties": {"sum": {"type": "integer"}, "why": {"type": "string", "pattern": "^(a+)+$"}},
    "required": ["sum"],
    "additionalProperties": False,
}


@pytest.mark.slow
def test_json_by_a_schema_of_each_row() -> None:
    pytest.importorskip("jsonschema", reason="the extra rewards has it, and so has dev")
    table = [
        ('{"sum": 132}', 1),
        (' {"sum": 132}\n', 1),
        ('<think>{}</think>{"sum": 1}', 1),
        ('{"sum": "132"}', 0),
        ('{"sum": 1.5}', 0),
        ('{"sum": NaN}', 0),
        ('{"sum": 131, "sum": 132}', 0),
        ('{"sum": 132} {"sum": 1}', 0),
        ('{"sum": 132, "x": 1}', 0),
        ('{"sum": 132', 0),
        ("132", 0),
        ("", 0),
        ('```json\n{"sum": 132}\n```', 0),
        ('<think>{"sum": 132}', 0),
        ("[" * 100_000, 0),
        ('{"sum": 1, "why": "' + "a" * 60 + 'b"}', None),
    ]
    said = [text for text, _ in table] + ["1", "1", "1"]
    schema = [SCHEMA] * len(table) + [
        '{"type": "number"}',
        None,
        {"$ref": "http://127.0.0.1:9/schema"},
    ]
    with Rewards(("json",)) as rewards:
        found = judge(rewards, said, schema=schema).by_name["json"]
    wanted = [np.nan if value is None else value for _, value in table]
    np.testing.assert_equal(found, [*wanted, 1, np.nan, np.nan])


@pytest.mark.slow
def test_regex_in_a_process_that_a_pattern_cannot_hang() -> None:
    with Rewards(("regex",)) as rewards:
        scores = judge(
            rewards, ["aa", "ab", "x", "a" * 60 + "b"], pattern=["a+", "a+", None, "(a+)+"]
        )
    np.testing.assert_equal(scores.by_name["regex"], [1, 0, np.nan, np.nan])
    assert scores.warnings == ["1 of 3 answers could not be judged by regex"]


def test_a_row_that_brings_its_judge_down_costs_its_own_row(
    write: WriteFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "ondevice.rewards.scorer._JUDGES",
        write("""
import os, time
def prepare(judge): return []
def latex(completions): ...
gym = json = latex
def regex(completions, pattern):
    if "crash" in completions: os._exit(9)
    if "hang" in completions: time.sleep(1000)
    return [1] * len(completions)
"""),
    )
    monkeypatch.setattr("ondevice.rewards.scorer._JUDGES_ROW_S", 0.5)
    with Rewards(("regex",)) as rewards:
        scores = judge(rewards, ["a", "crash", "b", "hang"], pattern=[""] * 4)
    np.testing.assert_equal(scores.total, [1, np.nan, 1, np.nan])
    assert scores.warnings == [
        "judging answers by regex: its process ended with exit code 9; "
        "such rows have no such reward"
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("given", "right", "value"), [
    (r"\frac{1}{2}", "0.5", 1), (r"0.5", r"\frac12", 1), (r"\dfrac{84}{2}", "42", 1), (r"\{2, 1\}", r"\{1, 2\}", 1),
    (r"1+x", "x+1", 1), ("3.14", r"\pi", 0), (r"41 \text{ or } 42", "42", 0), (r"41, 42", "42", 0), ("", "42", 0),
    (r"9^{9^{9^9}}", "42", 0), (r"9^{99999999999}", "42", 0), (r"(10^9)!", "42", 0), (r"\frac{", "42", 0),
    (r"\text{answer}", "42", 0), ("x" * 500, "42", 0), (r"x^2y^3", r"y^3x^2", 1),
    (r"2^{2024} - 1", r"-1 + 2^{2024}", 1), (r"\tfrac{n!}{2}", r"\frac{n!}{2}", 1), (r"a^2b^2", "(ab)^2", 1),
    (r"x^{y^z}", r"x^{(y^{z})}", 1),
    (r"100!", r"100 \cdot 99!", 1), (r"((3!)!)!", "720!", 1), (r"1234^{5678}", r"1234 \cdot 1234^{5677}", 1),
    (r"2^{2024}", r"2^{2023}", 0), ("1", r"9^{9^{9^9}}", np.nan), (r"9^{9^{9^{9}}}", r"9^{9^{9^9}}", np.nan),
])  # fmt: skip
def test_latex(given: str, right: str, value: float, latex: Rewards) -> None:
    np.testing.assert_equal(judge(latex, [rf"$\boxed{{{given}}}$"], answer=[right]).total, [value])


GROW = [
    r"9^{9^{9^9}}",
    r"9^{99999999999}",
    r"(10^9)!",
    r"((4!)!)!",
    r"(2x)^{10^9}",
    r"\{2^{10^{10}}, 3\}",
    r"[0, 2^{10^{10}}]",
    r"x = 2^{10^{10}}",
    r"\begin{pmatrix} 2^{10^{10}} \\ 0 \end{pmatrix}",
    r"2^{-2^{100}}",
    r"\binom{10^9}{10^8}",
    r"\Gamma(10^{10})",
    r"3.5^{10^{10}}",
]
DO_NOT_GROW = [
    r"x^2y^3",
    r"2^{2024} - 1",
    r"\tfrac{n!}{2}",
    r"2^{2^{10}}",
    r"x^{y^{z}}",
    r"2^{n!}",
    r"x^{10^9}",
    r"1000!",
    r"(-1)^{10^{20}}",
    r"\sqrt[1000000]{2}",
    r"10^{-20}",
    r"(1+\frac{1}{n})^{n}",
    r"\pi^{\pi}",
    r"1^{2^{100}}",
    r"\frac{2^{1000}}{3^{1000}}",
    r"\binom{100}{50}",
]


@pytest.mark.slow
def test_only_what_grows_is_refused() -> None:
    """And all else gets math-verify's own verdict, which for a formula and itself is that they are
    the same.
    """
    math_verify = pytest.importorskip(
        "math_verify", reason="the extra rewards has it, and so has dev"
    )

    def parsed(text: str) -> Any:
        return math_verify.parse(
            rf"\boxed{{{text}}}", [math_verify.LatexExtractionConfig()], parsing_timeout=None
        )

    assert [text for text in GROW if not any(map(grows, parsed(text)))] == []
    assert [text for text in DO_NOT_GROW if any(map(grows, parsed(text)))] == []


@pytest.mark.slow
def test_math_verify_and_we_agree() -> None:
    math_verify = pytest.importorskip(
        "math_verify", reason="the extra rewards has it, and so has dev"
    )
    pairs = [(one, other) for one in DO_NOT_GROW for other in (one, "42", DO_NOT_GROW[0])]
    theirs = [
        float(
            math_verify.verify(
                math_verify.parse(f"${right}$"), math_verify.parse(rf"\boxed{{{given}}}")
            )
        )
        for given, right in pairs
    ]
    assert latex_judge([given for given, _ in pairs], [right for _, right in pairs]) == theirs


@pytest.fixture(scope="module")
def latex() -> Iterator[Rewards]:
    pytest.importorskip("math_verify", reason="the extra rewards has it, and so has dev")
    with Rewards(("correct",), form="boxed") as rewards:
        yield rewards


def test_boxed_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    hint = re.escape(install_hint("rewards"))
    with pytest.raises(UserError, match=rf"math-verify \({hint}\)"):
        Rewards(("correct",), form="boxed")
    with pytest.raises(
        UserError, match=rf"reward json: is judged by the library jsonschema \({hint}"
    ):
        Rewards(("json",))
    Rewards(("format",), form="boxed").close()


def test_every_builtin_has_a_line_of_help() -> None:
    assert all(
        reward.help.endswith((".", "else 0")) and len(reward.help) < 120
        for reward in BUILTIN.values()
    )


# Weights and missing values


def test_totals_by_hand(write: WriteFile) -> None:
    file = write(
        "def mine(completions, **columns):\n    return [1, None, None]\n"
        "def other(completions, points, **columns):\n    return points\n"
    )
    with Rewards(("correct", "other", "mine"), (2.0, 0.5, -1.0), user_file=file) as rewards:
        scores = judge(rewards, ["7", "8", "9"], answer=["7", "7", None], points=[3.0, 4.0, None])
    np.testing.assert_equal(scores.by_name["correct"], [1, 0, np.nan])
    np.testing.assert_equal(scores.by_name["mine"], [1, np.nan, np.nan])
    # 2·1 + 0.5·3 - 1·1; 2·0 + 0.5·4; nothing
    np.testing.assert_equal(scores.total, [2.5, 2.0, np.nan])
    assert (
        scores.total.dtype == np.float64
        and scores.parsed == ["7", "8", "9"]
        and scores.warnings == []
    )


def test_weights_where_none_are_given(write: WriteFile) -> None:
    with Rewards(
        ("correct", "format"), user_file=write("def mine(completions):\n    return [1.0]\n")
    ) as rewards:
        assert rewards.weights == {"correct": 1.0, "format": 0.1, "mine": 1.0}
        assert list(judge(rewards, ["7"], answer=["7"]).total) == [2.1]


@pytest.mark.parametrize(("settings", "message"), [
    ({"names": ("corect",)}, "no reward 'corect'.*did you mean 'correct'"),
    ({"names": ("correct", "correct")}, "named twice"),
    ({"names": ()}, "no reward was named"),
    ({"weights": (1.0,)}, "1 weights for 3 rewards"),
    ({"weights": (1.0, 2.0, float("nan"))}, "nan is not a weight"),
    ({"form": "hashes"}, "did you mean 'hash'"),
    ({"timeout": 0.0}, "timeout"),
    ({"user_file": "nowhere/reward.py"}, "reward.py: there is no such file"),
])  # fmt: skip
def test_settings_that_do_not_fit(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Rewards(**settings)


def test_a_column_that_is_lacking_is_told_before_the_run(write: WriteFile) -> None:
    with Rewards(
        ("correct",), user_file=write("def mine(completions, depth):\n    return []\n")
    ) as rewards:
        with pytest.raises(UserError, match="reward correct: the data has no column 'answer'"):
            rewards.check(["depth"])
        with pytest.raises(
            UserError, match="reward mine: the data has no column 'depth'.*it has answer"
        ):
            rewards.check(["answer"])
        rewards.check(["answer", "depth"])


# A person's own file


def test_what_a_person_writes_gets_everything(write: WriteFile, tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("HALF = 0.5\n")
    file = write('''
import asyncio
from beside import HALF
print("imported")

def seen(prompts, completions, answer, completion_ids, truncated, max_new_tokens, form, **columns):
    """ünïcode"""
    print("noise on stdout", flush=True)
    assert sorted(columns) == ["kind"] and form == "number" and max_new_tokens == 10 and truncated == [False] * 2
    assert prompts == ["p", "p"] and completions == ["ü\\ud800\\0", "132"] and completion_ids == [[1] * 3, [1] * 3]
    assert input is not None and __import__("sys").stdin.read() == ""
    return [HALF if given == right else 0 for given, right in zip(completions, answer)]

async def later(completions, **columns):
    await asyncio.sleep(0)
    return (True for _ in completions)

def arrays(completions):
    import numpy
    return numpy.array([1.5, 2.5], numpy.float32)

def _helper(completions):
    return 1 / 0

def takes_nothing(x):
    return 1 / 0
''')
    log = tmp_path / "log"
    with Rewards((), user_file=file, log=log) as rewards:
        scores = judge(rewards, ["ü\ud800\0", "132"], answer=["1", "132"], kind=["a", "b"])
    assert {name: list(values) for name, values in scores.by_name.items()} == {
        "seen": [0, 0.5],
        "later": [1, 1],
        "arrays": [1.5, 2.5],
    }
    assert scores.warnings == [] and log.read_text().splitlines() == ["imported", "noise on stdout"]


def test_functions_by_name(write: WriteFile) -> None:
    file = write(
        "def a(completions):\n    return [1]\ndef b(completions):\n    return [2]\n"
        "def c(completions):\n    raise\n"
    )
    with Rewards((), user_file=f"{file}:b,a") as rewards:
        assert list(rewards.weights) == ["b", "a"] and list(judge(rewards, ["x"]).total) == [3]
    with pytest.raises(UserError, match="reward.py: there is no function 'd'"):
        Rewards((), user_file=f"{file}:d")


@pytest.mark.parametrize(("returned", "cause"), [
    ("float('nan')", "1 of 2 values were NaN"), ("float('inf')", "1 of 2 values were infinite"),
    ("'1'", "1 of 2 values were not a number but str"), ("10**400", "not a number but int"), ("[]", "but list"),
    ("1j", "but complex"),
])  # fmt: skip
def test_values_that_are_no_numbers(returned: str, cause: str, write: WriteFile) -> None:
    with Rewards(
        user_file=write(f"def mine(completions):\n    return [{returned}, 2]\n"), names=()
    ) as rewards:
        first, second = judge(rewards, ["a", "b"]), judge(rewards, ["a", "b"])
        np.testing.assert_equal(first.total, [np.nan, 2])
        assert len(first.warnings) == 1 and cause in first.warnings[0] and second.warnings == []
        assert sum(rewards.missing.values()) == 2


@pytest.mark.parametrize(("body", "said"), [
    ("raise ValueError('bad\\nluck')", r"ValueError: bad luck \(.*reward.py:3\)"),
    ("raise KeyError('x' * 9999)", "KeyError: 'xxx"),
    ("return [1]", "gave 1 values for 2 completions"),
    ("return [1, 2, 3]", "gave 3 values for 2 completions"),
    ("return None", "returned NoneType, not a list"),
    ("return 'ab'", "returned str, not a list"),
    ("return {0: 1, 1: 2}", "returned dict, not a list"),
    ("os._exit(3)", "its process ended with exit code 3"),
    ("sys.exit(3)", "SystemExit: 3"),
    ("os.kill(os.getpid(), 11)", "ended by a signal"),
    ("os.close(1); os.write(2, b'x'); raise OSError('\\x1b[2J')", r"OSError: ␛\[2J"),
    ("f = lambda: f()\n    return f()", "RecursionError"),
])  # fmt: skip
def test_a_failure_is_named_once_and_its_rows_are_missing(
    body: str, said: str, write: WriteFile
) -> None:
    file = write(
        f"import os, sys\ndef mine(completions):\n    {body}\ndef fine(completions):\n    return [1, 2]\n"
    )
    with Rewards((), user_file=file) as rewards:
        first, second = judge(rewards, ["a", "b"]), judge(rewards, ["a", "b"])
    for scores in (first, second):
        assert np.isnan(scores.by_name["mine"]).all() and list(scores.total) == [1, 2]
    assert len(first.warnings) == 1 and second.warnings == []
    assert re.search(f"^reward mine: .*{said}", first.warnings[0]), first.warnings
    assert "\n" not in first.warnings[0]


@pytest.mark.parametrize(
    "body", ["while True: pass", "time.sleep(1000)", "subprocess.run(['sleep', '1000'])"]
)
def test_what_hangs_is_ended(body: str, write: WriteFile, tmp_path: Path) -> None:
    file = write(f"""
import os, pathlib, subprocess, time
pathlib.Path(__file__).with_name("pid").write_text(str(os.getpid()))
def mine(completions):
    if completions == ["hang"]:
        {body}
    return [1]
""")
    with Rewards((), user_file=file, timeout=0.5) as rewards:
        scores = judge(rewards, ["hang"])
        assert np.isnan(scores.total).all()
        assert scores.warnings == [
            "reward mine: gave no answer within 0.5 seconds and was ended; "
            "its rows have no such reward"
        ]
        assert not is_alive(int((tmp_path / "pid").read_text()))
        assert rewards._user is not None
        rewards._user.timeout = 60
        assert list(judge(rewards, ["go"]).total) == [1]


@pytest.mark.slow
def test_a_process_that_is_gone_while_its_child_holds_the_pipe(write: WriteFile) -> None:
    file = write(
        "import os, time\ndef mine(completions):\n    if os.fork():\n        os._exit(4)\n"
        "    time.sleep(1000)\n"
    )
    with Rewards((), user_file=file, timeout=60) as rewards:
        assert "exit code 4" in judge(rewards, ["a"]).warnings[0]


def test_failures_in_a_row_stop_the_run(write: WriteFile) -> None:
    file = write("def mine(completions):\n    return [1 / len(completions[0])]\n")
    with Rewards((), user_file=file) as rewards:
        for text in ["", "", "", "", "", "a", "", "", "", "", ""]:
            judge(rewards, [text])
        with pytest.raises(
            UserError,
            match=r"reward.py: mine: ZeroDivisionError.*6 failures in a row \(mend the file",
        ):
            judge(rewards, [""])


@pytest.mark.parametrize(("code", "said"), [
    ("import nowhere_at_all\n", r"reward.py:1: ModuleNotFoundError: No module named 'nowhere_at_all'"),
    ("x = 1\ndef f(:\n", r"reward.py:2: SyntaxError: "),
    ("def f():\n    return 1 / 0\nf()\n", r"reward.py:2: ZeroDivisionError: division by zero"),
    ("import sys\nsys.exit('no')\n", r"reward.py:2: SystemExit: no"),
    ("import os\nos._exit(7)\n", "cannot be imported: its process ended with exit code 7"),
    ("x = 1\n", "reward.py: there is no reward function"),
    ("", "reward.py: there is no reward function"),
    ("from os.path import join as completions\ndef _f(completions): ...\n", "there is no reward function"),
    ("def correct(completions): ...\n", "'correct' is the name of a built-in reward"),
    ("\0", "reward.py.*: (SyntaxError|ValueError): source code"),
])  # fmt: skip
def test_a_file_that_cannot_be_used(code: str, said: str, write: WriteFile) -> None:
    with pytest.raises(UserError, match=said) as raised:
        Rewards((), user_file=write(code))
    assert "\n" not in str(raised.value)


def test_a_slow_import_is_waited_for(write: WriteFile) -> None:
    file = write("import time\ntime.sleep(0.8)\ndef mine(completions):\n    return [1]\n")
    with Rewards((), user_file=file, timeout=0.5) as rewards:
        assert rewards._user is not None
        rewards._user.timeout = 60
        assert list(judge(rewards, ["a"]).total) == [1]


@pytest.mark.slow
def test_large_batches_do_not_block(write: WriteFile) -> None:
    """More than the pipes hold, in both directions at once."""
    file = write("def mine(completions):\n    return [len(c) for c in completions]\n")
    with Rewards((), user_file=file) as rewards:
        assert list(judge(rewards, ["x" * 100] * 20_000).total) == [100] * 20_000


@contextmanager
def parent_of(file: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that holds rewards, and the process id of its helper."""
    code = (
        "import sys; from ondevice.rewards.scorer import Rewards; r = Rewards((), user_file=sys.argv[1])\n"
        "print(r._user._process.process.pid, flush=True); r.score(['p'], ['hang'], {})"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, file], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        yield parent, int(parent.stdout.readline())
    finally:
        parent.kill()
        parent.communicate()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    if sys.platform != "linux":
        return True
    try:  # one that nobody has waited for yet is dead all the same
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("body", ["return [1]", "while True: pass"], ids=["idle", "busy"])
def test_the_helper_dies_with_its_parent(body: str, write: WriteFile) -> None:
    with parent_of(write(f"def mine(completions):\n    {body}\n")) as (parent, helper):
        parent.kill()
        parent.wait()
        until = time.monotonic() + 60
        while is_alive(helper) and time.monotonic() < until:
            time.sleep(0.1)
        assert not is_alive(helper)
