"""The form of answers that GRPO rewards where a person names none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ondevice.config.preference import GRPOConfig
from ondevice.datasets.prompts import Prompt
from ondevice.rl.answer_form import answer_form, most_marked


def problem(text: str, answer: str | None, **known: object) -> Prompt:
    columns = known if answer is None else {"answer": answer, **known}
    return Prompt([{"role": "user", "content": text}], [1], columns)


def form(*problems: Prompt, data: str = "sums.jsonl", model: str = "elsewhere") -> str:
    found, why = answer_form(GRPOConfig(data=data, model=model), problems)
    assert why
    return found


def stage(run: Path, name: str, **config: object) -> str:
    """The model of a stage that has begun with these settings."""
    folder = run / name
    (folder / "model").mkdir(parents=True)
    begun = {"event": "start", "config": config}
    (folder / "events.jsonl").write_text(json.dumps(begun) + "\n")
    return str(folder / "model")


@pytest.mark.parametrize(
    ("text", "answer", "wanted"),
    [
        ("What is 3 + 4?", "7", "last_number"),
        ("What is 1000 + 4?", "1,004", "last_number"),
        ("Half of 3? Put it in \\boxed{}.", "3/2", "boxed"),
        ("Half of 3? <answer>…</answer>", "1.5", "tag"),
        ("Half of 3? End with #### and the number", "1.5", "hash"),
        ("Where is the Colosseum?", "Rome", "whole"),
        ("Which one? A) Oslo B) Rome", "B", "whole"),
        ("Write a story.", None, "number"),
    ],
)
def test_a_form_follows_from_questions_and_answers(
    text: str, answer: str | None, wanted: str
) -> None:
    assert form(*[problem(text, answer)] * 10) == wanted


def test_one_text_among_numbers_makes_them_texts_and_one_mark_asks_for_nothing() -> None:
    numbers = [problem("What is 3 + 4?", "7")] * 9
    assert form(*numbers, problem("Who?", "Anna")) == "whole"
    assert form(*numbers, problem("Who? \\boxed{}", "8")) == "last_number"
    # a gym's task judges its own answers
    assert form(*numbers, problem("Who?", "Anna", gym={"name": "x"})) == "last_number"


def test_generated_problems_keep_the_form_of_the_sums() -> None:
    for data in ("builtin", "gym:chain_sum", "builtin:tiny,gym:chain_sum"):
        assert form(problem("What is 3 + 4?", "7"), data=data) == "number"


def test_what_the_model_has_learned_here_is_kept(tmp_path: Path) -> None:
    sums = [problem("What is 3 + 4?", "7")] * 3
    taught = stage(tmp_path / "a", "sft", data="builtin")
    assert form(*sums, model=taught) == "number"
    # which no text can be
    assert form(problem("Who?", "Anna"), model=taught) == "whole"
    assert form(*sums, model=stage(tmp_path / "b", "grpo", model="x", answer="tag")) == "tag"

    chats = tmp_path / "chats.jsonl"
    rows = [{"prompt": f"{n} + 1?", "completion": f"{n} and 1.\n#### {n + 1}"} for n in range(9)]
    chats.write_text("\n".join(map(json.dumps, rows)))
    marked = stage(tmp_path / "c", "sft", data=str(chats))
    assert form(*sums, model=marked) == "hash"
    later = stage(tmp_path / "d", "dpo", model=marked)
    assert form(*sums, model=later) == "hash"
    chats.unlink()  # what is not there any more says nothing
    assert form(*sums, model=marked) == "last_number"


def test_most_answers_have_to_be_marked() -> None:
    assert most_marked(["#### 3", "so \\boxed{3}", "#### 4"]) == "hash"
    assert most_marked(["#### 3", "3"]) is None and most_marked([]) is None
