"""Final answers: what each form takes for one, what it does not, and when two are the same."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ondevice.common.errors import UserError
from ondevice.data.builtin.scoring import score
from ondevice.rewards.answers import FORMS, final_answer, find_answer, marks, number, same_answer

LONG = "9" * 100_000

# form, completion, the answer that it gives; the right one is 132 throughout.
TABLE = [
    ("number", "132", "132"),
    ("number", " 132.\n", "132"),
    ("number", "47+85: 7+5+0=12; 4+8+1=13; so 132.", "132"),
    ("number", "so 131; so 132", "132"),
    ("number", "132 so", None),
    ("number", "131 132", None),
    ("number", "The answer is 132.", None),
    ("number", "What is 47+85?", None),
    ("number", "Add 47 and 85 step by step.", None),
    ("number", "", None),
    ("number", " \n\t", None),
    ("number", "١٣٢", None),
    ("number", "１３２", None),
    ("number", "1e3", None),
    ("number", "1,000", None),
    ("number", "-0", None),
    ("number", "1/2", None),
    ("number", "0132", "0132"),
    ("number", "132.0", None),
    ("number", "132..", None),
    ("number", "so 132 apples", None),
    ("number", "also 132", None),
    ("number", "so 132\0", None),
    ("number", "\x00132", None),
    ("number", "<think>so 132", None),
    ("number", "<think>so 131</think>so 132", "132"),
    ("number", "<think>\nso 131\n</think>\n\n132", "132"),
    ("whole", "<think>a</think>\nParis", "Paris"),
    ("whole", "<think>Paris", None),
    ("number", "x<think>132", None),
    ("hash", "47+85=132\n#### 132", "132"),
    ("hash", "#### 132\n\n", "132"),
    ("hash", "#### 1,000", "1,000"),
    ("hash", "#### -0", "-0"),
    ("hash", "132", None),
    ("hash", "#### 132\nor so", None),
    ("hash", "#### 131\n#### 132", None),
    ("hash", "#### 132\n#### 132", "132"),
    ("hash", "#### 131 #### 132", None),
    ("hash", "so #### 132", None),
    ("hash", "word#### 132", None),
    ("hash", "####132", None),
    ("hash", "##### 132", None),
    ("hash", "####", None),
    ("hash", "#### \n132", None),
    ("hash", "#### 132 apples", "132 apples"),
    ("hash", "What is 47+85? End with #### and the number.", None),
    ("hash", "", None),
    ("hash", " \n", None),
    ("hash", "#### 132\0", "132\0"),
    ("hash", f"#### {LONG}", None),
    ("hash", "<think>\n#### 132\n</think>\nIt is 131.", None),
    ("hash", "<think>\n#### 131\n</think>\n#### 132", "132"),
    ("hash", "<think>\n#### 132", None),
    ("boxed", r"It is $\boxed{132}$.", "132"),
    ("boxed", "\\[\n\\boxed{ 132 }\n\\]\n", "132"),
    ("boxed", r"\boxed{\frac{264}{2}}", r"\frac{264}{2}"),
    ("boxed", r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    ("boxed", r"\boxed{131} \boxed{132}", None),
    ("boxed", r"\boxed{132}, thus \boxed{132}", "132"),
    ("boxed", r"\boxed{\boxed{132}}", None),
    ("boxed", r"\boxed{132", None),
    ("boxed", r"\boxed{\frac{1}{2}", None),
    ("boxed", r"\boxed{132} or \boxed{", None),
    ("boxed", r"\boxed{}", None),
    ("boxed", r"\boxed{132} apples", None),
    ("boxed", r"\boxed{132} or 131", None),
    ("boxed", r"boxed{132}", None),
    ("boxed", r"132", None),
    ("boxed", r"Put it in \boxed{}.", None),
    ("boxed", "", None),
    ("boxed", " ", None),
    ("boxed", rf"\boxed{{{LONG}}}", None),
    ("boxed", r"\boxed{" * 50_000, None),
    ("boxed", r"<think>\boxed{132}</think> It is 131.", None),
    ("boxed", r"<think>\boxed{131}</think> $\boxed{132}$", "132"),
    ("tag", "so <answer>132</answer>", "132"),
    ("tag", "<answer>\n132\n</answer>\n", "132"),
    ("tag", "<answer>131</answer><answer>132</answer>", None),
    ("tag", "<answer>132</answer> <answer>132</answer>", "132"),
    ("tag", "<answer>132", None),
    ("tag", "132</answer>", None),
    ("tag", "<answer>132</answer", None),
    ("tag", "</answer>132<answer>", None),
    ("tag", "<answer>132</answer><answer>", None),
    ("tag", "<answer><answer>132</answer></answer>", None),
    ("tag", "<answer>131<answer>132</answer>", None),
    ("tag", "<answer>132</answer>.", None),
    ("tag", "<answer>132</answer> or 131", None),
    ("tag", "<answer> </answer>", None),
    ("tag", "<Answer>132</Answer>", None),
    ("tag", "Write <answer>your answer</answer>, please: 132", None),
    ("tag", "132", None),
    ("tag", "", None),
    ("tag", " ", None),
    ("tag", f"<answer>{LONG}</answer>", None),
    ("tag", "<answer>" * 50_000, None),
    ("tag", "<think><answer>132</answer></think>", None),
    ("last_number", "The answer is 132.", "132"),
    ("last_number", "132", "132"),
    ("last_number", "47+85=132.", "132"),
    ("last_number", "First 12, then 13. It is 132", "132"),
    ("last_number", "Answer:132", "132"),
    ("last_number", "It is -0.", "-0"),
    ("last_number", "It is 1,000.", "1,000"),
    ("last_number", "It is 1/2.", "1/2"),
    ("last_number", "It is 131 or 132.", None),
    ("last_number", "=131 or =132", None),
    ("last_number", "132 is the answer.", None),
    ("last_number", "It is 132 apples.", None),
    ("last_number", "It is 132!", None),
    ("last_number", "What is 47+85?", None),
    ("last_number", "Add 47 and 85.", None),
    ("last_number", "47+85=", None),
    ("last_number", "It is x132.", None),
    ("last_number", "It is 0132.", None),
    ("last_number", "It is 10,00.", None),
    ("last_number", "It is 1e3.", None),
    ("last_number", "It is ١٣٢.", None),
    ("last_number", "It is 132\0.", None),
    ("last_number", "", None),
    ("last_number", " ", None),
    ("last_number", f"It is {LONG}.", None),
    ("last_number", "<think>It is 132.", None),
    ("last_number", "<think>It is 131.</think>132", "132"),
    ("whole", "132", "132"),
    ("whole", " It is 132.\n", "It is 132."),
    ("whole", "", None),
    ("whole", " \n", None),
    ("whole", "\0", "\0"),
]


@pytest.mark.parametrize(
    ("form", "completion", "answer"), TABLE, ids=[f"{f}-{c[:25]!a}" for f, c, _ in TABLE]
)
def test_what_is_an_answer(form: str, completion: str, answer: str | None) -> None:
    found = find_answer(completion, form)
    assert final_answer(completion, form) == answer == (found.text if found else None)
    assert found is None or completion[found.start : found.end] == found.text


@pytest.mark.parametrize(("given", "right", "same"), [
    ("132", "132", True),
    ("132.", "132.0", True),
    ("132.000", "132", True),
    ("+132", "132", True),
    ("1/2", "0.5", True),
    ("2/4", "1/2", True),
    ("0.333", "1/3", False),
    ("1/0", "1/0", True),  # no number: the same text
    ("1/0", "0", False),
    ("-0", "0", True),
    ("-0.0", "0", True),
    ("-5", "5", False),
    ("−5", "-5", False),
    ("1,000", "1000", True),
    ("1,234,567.5", "1234567.5", True),
    ("10,00", "1000", False),
    ("1,0000", "10000", False),
    (",100", "100", False),
    ("0,100", "100", False),
    ("1e3", "1000", False),
    ("0x84", "132", False),
    ("0132", "132", False),
    ("00", "0", False),
    (".5", "0.5", False),
    ("١٣٢", "132", False),
    ("１３２", "132", False),
    ("1_000", "1000", False),
    ("nan", "nan", True),
    ("inf", "132", False),
    ("132 apples", "132", False),
    ("132\0", "132", False),
    ("1 32", "132", False),
    ("131 132", "132", False),
    ("", "", False),
    (" ", "", False),
    ("", "132", False),
    ("Arden.", "Arden", True),
    (" Arden  Hill", "Arden Hill", True),
    ("arden", "Arden", False),
    ("0.1", "0.1000000000000000000000000000000000001", False),
    (LONG, LONG, True),
    (LONG, LONG[:-1], False),
    (f"{LONG}.0", LONG, False),
    ("1/" + LONG, "0", False),
])  # fmt: skip
def test_what_is_the_same(given: str, right: str, same: bool) -> None:
    assert same_answer(given, right) is same


def test_marks_are_counted_after_the_thoughts() -> None:
    assert marks("#### 1\n#### 1", "hash") == 2
    assert marks(r"<think>\boxed{1}</think>\boxed{1}", "boxed") == 1
    assert marks("<answer>1</answer>", "tag") == 1
    assert marks("132", "number") == 1


def test_an_unknown_form_is_named() -> None:
    with pytest.raises(UserError, match="'box'.*did you mean 'boxed'"):
        final_answer("132", "box")


PIECES = st.sampled_from(
    [
        "so ",
        "132",
        "131",
        "####",
        "#### ",
        "\n",
        " ",
        "\\boxed{",
        "{",
        "}",
        "\\",
        "$",
        ".",
        "<answer>",
        "</answer>",
        "=",
        ":",
        "<think>",
        "</think>",
        ",000",
        "1/2",
        "-",
        "\0",
        "٣",
        "x",
    ]
)
COMPLETIONS = st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=12).map("".join))


@given(COMPLETIONS)
def test_never_raises_and_is_a_part_of_the_text(completion: str) -> None:
    for form in FORMS:
        found = find_answer(completion, form)
        if found is not None:
            assert completion[found.start : found.end] == found.text == found.text.strip() != ""
            assert find_answer(completion, form) == found


@given(COMPLETIONS, st.integers(0, 300))
def test_number_agrees_with_the_corpus(completion: str, right: int) -> None:
    completion = re.sub("</?think>", "", completion)  # the corpus knows no thoughts
    for text in (completion, f"{completion}{right}", f"{completion}so {right}."):
        if "think>" in text:
            continue
        found = final_answer(text, "number")
        assert (found is not None and same_answer(found, str(right))) == score(
            "sum", text, str(right)
        )


@given(st.integers(-(10**12), 10**12), st.integers(1, 10**6))
def test_numbers_are_exact(above: int, below: int) -> None:
    value = number(f"{above}/{below}")
    assert value is not None and value * below == above
    assert number(f"{above:,}") == above


@given(st.text(max_size=30), st.text(max_size=30))
def test_sameness_is_symmetric(one: str, other: str) -> None:
    assert same_answer(one, other) == same_answer(other, one)
