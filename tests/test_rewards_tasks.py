"""Problems for the reasoning stage: the corpus's, a person's, and reasoning-gym's with their own
scorers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import ondevice as od
import small_stages
from ondevice.common.distribution import install_hint
from ondevice.common.errors import UserError
from ondevice.config.corpus import CorpusConfig
from ondevice.data.builtin.corpus import build
from ondevice.data.rows import Rows
from ondevice.rewards.problems import Problem, file_problems, problems
from ondevice.rewards.scorer import Rewards
from ondevice.seam.select import load_backend

CORPUS = CorpusConfig(problem_count=60, held_problem_count=20, max_operand=49)


def rows(tmp_path: Path, found: list[Any], name: str = "sums.jsonl") -> str:
    file = tmp_path / name
    file.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return str(file)


def columns_of(found: Sequence[Problem]) -> dict[str, list[Any]]:
    """The columns of these problems as rewards take them, None where one has none."""
    names = dict.fromkeys(name for problem in found for name in problem.columns)
    columns: dict[str, list[Any]] = {
        name: [problem.columns.get(name) for problem in found] for name in names
    }
    return columns | {
        "answer": [problem.answer for problem in found],
        "kind": [problem.kind for problem in found],
    }


def test_the_corpus() -> None:
    found = problems("builtin", "train", 0, 0, CORPUS)
    assert [{"prompt": p.prompt, "answer": p.answer, "kind": p.kind} for p in found] == list(
        build(CORPUS).problems("train")
    )
    assert problems("builtin", "train", 7, 0, CORPUS) == found[:7]
    assert len(problems("builtin:tiny", "heldout", 5, 0, CORPUS)) == 5
    assert len(problems("builtin", "all", 0, 0, CORPUS)) == len(
        {
            p.prompt
            for part in ("train", "validation", "heldout")
            for p in problems("builtin", part, 0, 0, CORPUS)
        }
    )


def test_the_corpus_is_scored_by_its_own_rule() -> None:
    found = problems("builtin", "train", 4, 0, CORPUS)
    said = [
        found[0].answer,
        f"so {found[1].answer}.",
        f"{found[2].answer} or so",
        found[3].answer + "0",
    ]
    with Rewards(("correct",)) as rewards:
        rewards.check(columns_of(found))
        assert list(rewards.score([p.prompt for p in found], said, columns_of(found)).total) == [
            1,
            1,
            0,
            0,
        ]


def test_a_persons_file(tmp_path: Path) -> None:
    spec = rows(
        tmp_path,
        [
            {"prompt": "1+1", "answer": 2, "depth": 3},
            {"question": "Tom has 3.", "answer": "He gets 2.\n3+2=5\n#### 5", "kind": "gsm"},
            {"prompt": [{"role": "user", "content": "Hi?"}], "answer": "yes", "solution": "mine"},
            {"prompt": "1+1", "answer": "3"},
            *({"prompt": f"{n}+0", "answer": str(n)} for n in range(5, 22)),
        ],
    )
    found = problems(spec, "all", 0, 0, CORPUS)
    assert found[:3] == [
        Problem("1+1", "2", "sums", {"depth": 3}),
        Problem("Tom has 3.", "5", "gsm", {"solution": "He gets 2.\n3+2=5\n#### 5"}),
        Problem("Hi?", "yes", "sums", {"solution": "mine"}),
    ]
    # the same question is another problem
    assert len(found) == 21 and found[3] == Problem("1+1", "3", "sums")
    train, held = (problems(spec, part, 0, 0, CORPUS) for part in ("train", "heldout"))
    assert train + held == found and len(held) == 2
    some = problems(spec, "all", 5, 1, CORPUS)
    assert len(some) == 5 and some == problems(spec, "all", 5, 1, CORPUS) != found[:5]
    columns = columns_of(found[:3])
    assert columns == {
        "depth": [3, None, None],
        "solution": [None, "He gets 2.\n3+2=5\n#### 5", "mine"],
        "answer": ["2", "5", "yes"],
        "kind": ["sums", "gsm", "sums"],
    }


def test_problems_with_a_system_prompt(tmp_path: Path) -> None:
    asked = [
        {"role": "system", "content": "Answer with a number."},
        {"role": "user", "content": "0 and 2?"},
    ]
    spec = rows(
        tmp_path,
        [{"prompt": asked, "answer": "2"}, {"system": "s", "question": "1 and 2?", "answer": "3"}],
    )
    one, other = problems(spec, "all", 0, 0, CORPUS)
    assert one.prompt == "0 and 2?" and one.chat == asked and one.answer == "2"
    assert other.chat == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "1 and 2?"},
    ]


def test_a_problem_without_an_answer_where_no_reward_needs_one(tmp_path: Path) -> None:
    spec = rows(tmp_path, [{"prompt": f"{n}?"} for n in range(3)])
    assert [p.answer for p in file_problems(spec, Rows.check, answered=False)] == [""] * 3
    with pytest.raises(UserError, match="a problem needs prompt .* and answer"):
        list(file_problems(spec, Rows.check))
    with Rewards(("correct",)) as needing, Rewards(("truncated", "format")) as free:
        assert needing.needed() == {"answer"} == needing.uses() and not free.needed()


def test_repeated_and_disputed_problems_are_told_of(tmp_path: Path) -> None:
    """A question is another problem with another answer or context, and the same one under another
    id.
    """
    spec = rows(
        tmp_path,
        [
            {"question": "x?", "answer": "1", "id": 1},
            {"question": "x?", "answer": "1", "id": 2},
            {"question": "x?", "answer": "2", "id": 3},
            {"question": "x?", "answer": "1", "passage": "p", "id": 4},
            *({"question": f"{n}?", "answer": "1"} for n in range(3)),
        ],
    )
    kept: list[Rows] = []
    found = list(file_problems(spec, kept.append, uses=("answer",)))
    assert [(p.prompt, p.answer, p.columns.get("passage")) for p in found[:3]] == [
        ("x?", "1", None),
        ("x?", "2", None),
        ("x?", "1", "p"),
    ]
    assert len(found) == 6
    assert kept[0].telling() == (
        f"not used: passage (1 row, first {spec}:4); 1 rows repeat a problem, which is asked "
        f"once; questions with several answers: 1 (first: {spec}:1 and {spec}:3)"
    )


@pytest.mark.parametrize(("row", "said"), [
    ({"prompt": "1+1"}, "a problem needs prompt"),
    ({"answer": "2"}, "a problem needs prompt"),
    ({"prompt": "", "answer": "2"}, "prompt is empty"),
    ({"prompt": "1+1", "answer": None}, "a problem needs prompt"),
    ({"prompt": "1+1", "answer": ["2"]}, "answer is not a text but list"),
    ({"prompt": "1+1", "answer": float("nan")}, "answer is not a text but float"),
    ({"prompt": "1+1", "answer": "\ud800"}, "answer holds a lone surrogate"),
    ({"prompt": [{"role": "system", "content": "x"}], "answer": "2"}, "holds nothing that a user says"),
    ({"prompt": "1+1", "answer": "2", "completions": "x"}, "a column may not be called completions"),
])  # fmt: skip
def test_rows_that_cannot_be_used(row: dict[str, Any], said: str, tmp_path: Path) -> None:
    good = [{"prompt": f"{n}+0", "answer": str(n)} for n in range(100)]
    with pytest.raises(UserError, match=f"sums.jsonl:2: {said}"):
        problems(rows(tmp_path, [good[0], row]), "train", 0, 0, CORPUS)
    kept: list[Rows] = []
    found = problems(rows(tmp_path, [*good, row]), "all", 0, 0, CORPUS, settle=kept.append)
    assert len(found) == 100 and said in kept[0].rejected[0].reason


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        problems(str(tmp_path / "none.jsonl"), "train", 0, 0, CORPUS)
    with pytest.raises(UserError, match="holds one problem only"):
        problems(rows(tmp_path, [{"prompt": "1", "answer": "1"}]), "train", 0, 0, CORPUS)


@pytest.mark.slow
class TestGym:
    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("reasoning_gym", reason="the extra rewards has it, and so has dev")

    @pytest.mark.parametrize(
        ("task", "wrong"), [("chain_sum?max_terms=3", "so"), ("countdown?max_numbers=4", "1+1")]
    )
    def test_end_to_end(self, task: str, wrong: str) -> None:
        """Questions, their split, and the task's own scorer as `correct`."""
        train, held = (
            problems(f"gym:{task}", part, 12, 3, CORPUS) for part in ("train", "heldout")
        )
        assert len(train) == len(held) == 12 and train == problems(
            f"gym:{task}", "train", 12, 3, CORPUS
        )
        assert not {p.prompt for p in train} & {p.prompt for p in held}
        assert {p.kind for p in train} == {task.partition("?")[0]}
        some = train[:4]
        said = [f"<answer>{p.answer}</answer>" for p in some]
        said[1], said[2] = f"<answer>{wrong}</answer>", some[2].answer
        with Rewards(("correct", "format"), form="tag") as rewards:
            rewards.check(columns_of(some))
            scores = rewards.score([p.prompt for p in some], said, columns_of(some))
        assert scores.warnings == [] and list(scores.by_name["format"]) == [1, 1, 0, 1]
        right, rejected, unmarked, last = scores.by_name["correct"]
        # countdown gives 0.05 to a sum of other numbers
        assert right == last == 1 and unmarked == 0 and rejected < 0.1

    def test_beside_other_problems(self) -> None:
        """Rows without a scorer of their own are judged by the form."""
        found = [
            *problems("builtin", "train", 1, 0, CORPUS),
            *problems("gym:gcd", "train", 2, 0, CORPUS),
        ]
        with Rewards(("correct",)) as rewards:
            said = [found[0].answer, found[1].answer, "0"]
            assert list(
                rewards.score([p.prompt for p in found], said, columns_of(found)).total
            ) == [1, 1, 0]

    @pytest.mark.parametrize(("spec", "said"), [
        ("gym:chainsum", "there is no task 'chainsum'.*did you mean 'chain_sum'"),
        ("gym:", "there is no task ''"),
        ("gym:chain_sum?terms=3", "chain_sum has no setting 'terms'.*min_terms"),
        ("gym:chain_sum?seed=3", "seed is not given here"),
        ("gym:chain_sum?min_terms=9&max_terms=3", "cannot be made"),
        ("gym:chain_sum?min_terms=x", "cannot be made"),
    ])  # fmt: skip
    def test_what_a_person_gets_wrong(self, spec: str, said: str) -> None:
        with pytest.raises(UserError, match=said):
            problems(spec, "train", 3, 0, CORPUS)

    def test_a_small_world_ends(self) -> None:
        """So few questions that new ones no longer turn up: fewer are given, in both parts, and
        none twice.
        """
        spec = "gym:chain_sum?min_terms=2&max_terms=2&min_digits=1&max_digits=1"
        train, held = (problems(spec, part, 10_000, 0, CORPUS) for part in ("train", "heldout"))
        assert 0 < len(held) < len(train) < 10_000
        asked = [p.prompt for p in train + held]
        assert len(asked) == len(set(asked))

    def test_a_stage_learns_from_it(self, tmp_path: Path) -> None:
        """As a person asks for it: by its name, in the place of a file."""
        model = small_stages.write(
            tmp_path / "policy",
            load_backend("torch", "cpu"),
            replace(small_stages.config(), max_position_embeddings=400),
        )
        out = od.grpo(
            str(model),
            "gym:gcd?max_value=20",
            out=str(tmp_path / "run"),
            steps=1,
            prompts=2,
            group_size=2,
            max_new_tokens=4,
            micro_batch=4,
            eval_every=0,
            answer="last_number",
            backend="torch",
        )
        lines = (tmp_path / "run" / "grpo" / "groups.jsonl").read_text().splitlines()
        rollout = next(record for record in map(json.loads, lines) if not record.get("held_out"))
        asked = [group["prompt"] for group in rollout["groups"]]
        assert (
            out.is_dir()
            and len(asked) == 2
            and all("Greatest Common Divisor" in prompt for prompt in asked)
        )


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "reasoning_gym", None)
    hint = re.escape(install_hint("rewards"))
    with pytest.raises(UserError, match=rf"gym:gcd: needs the library reasoning-gym \({hint}\)"):
        problems("gym:gcd", "train", 3, 0, CORPUS)
