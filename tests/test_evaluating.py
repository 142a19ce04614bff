"""`eval` on a person's own problems and pairs: figures known in advance, and what is said of bad
input.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import models
import ondevice as od
import small_stages
from data_samples import small_tokenizer
from ondevice.common.errors import UserError
from ondevice.data.preference_batches import to_tokens
from ondevice.data.preference_formats import to_pair
from ondevice.evaluation import problems
from ondevice.models.save import write_model
from ondevice.seam.select import load_backend

FEW: dict[str, Any] = {"max_new_tokens": 8, "device": "cpu", "answer": "whole"}
QUESTIONS = ["Anna 12", "Rome 34", "red 46", "Oslo", "pears green", "Ben"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, backend, cfg = (
        tmp_path_factory.mktemp("evaluating"),
        load_backend("torch", "cpu"),
        small_stages.config(),
    )
    small_stages.make(folder, backend)
    # a policy that hardly ever stops
    weights = {n: backend.array(w) for n, w in models.weights(cfg, 3).items()}
    write_model(folder / "policy", backend, cfg, weights, small_tokenizer())
    return folder


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


@pytest.fixture(scope="module")
def said(files: Path) -> list[str]:
    """What the policy answers to each question, greedily."""
    return [
        od.generate(
            model=files / "policy",
            prompt=question,
            chat=True,
            temperature=0.0,
            max_new_tokens=8,
            backend="torch",
            device="cpu",
        )[0].strip()
        for question in QUESTIONS
    ]


def test_problems_are_counted_as_solved(
    files: Path, said: list[str], tmp_path: Path, backend_name: str
) -> None:
    rows = [
        {"question": q, "answer": text if n % 3 else f"not {text}"}
        for n, (q, text) in enumerate(zip(QUESTIONS, said, strict=True))
    ]
    found = od.evaluate(
        model=files / "policy",
        data=write(tmp_path / "own.jsonl", rows),
        tasks=("problems",),
        tries=3,
        backend=backend_name,
        **FEW,
    )
    assert (found["problems"], found["accuracy"], found["tries"]) == (6, pytest.approx(4 / 6), 3)
    low, high = found["interval"]
    assert (
        0 < low < found["accuracy"] < high < 1
        and 0 <= found["pass_at"] <= 1
        and 0 <= found["truncated"] <= 1
    )
    less = od.evaluate(
        model=files / "policy",
        data=tmp_path / "own.jsonl",
        tasks=("problems",),
        limit=2,
        backend=backend_name,
        **FEW,
    )
    assert less["problems"] == 2 and "pass_at" not in less


def test_examples_stand_before_each_problem_and_are_not_asked(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    ids = problems.chat_ids
    monkeypatch.setattr(
        problems, "chat_ids", lambda messages, model: seen.append(messages) or ids(messages, model)
    )
    rows = [{"question": "Anna", "answer": "12\n#### 12"}, {"question": "Ben", "answer": "34"}]
    found = od.evaluate(
        model=files / "policy",
        data=write(tmp_path / "own.jsonl", rows),
        tasks=("problems",),
        shots=1,
        system="red",
        backend="torch",
        **FEW,
    )
    assert found["problems"] == 1
    assert [(m["role"], m["content"]) for m in seen[0]] == [
        ("system", "red"),
        ("user", "Anna"),
        ("assistant", "12\n#### 12"),
        ("user", "Ben"),
    ]


def test_a_reward_model_is_right_as_often_as_it_is_wrong_on_the_same_pairs_turned(
    files: Path, tmp_path: Path, backend_name: str
) -> None:
    pairs = [json.loads(line) for line in (files / "pairs.jsonl").read_text().splitlines()]
    pairs = [pair for pair in pairs if pair["chosen"] != pair["rejected"]]
    turned = [{**pair, "chosen": pair["rejected"], "rejected": pair["chosen"]} for pair in pairs]
    one, other = (
        od.evaluate(
            model=files / "judge",
            data=write(tmp_path / f"{name}.jsonl", rows),
            tasks=("preference",),
            backend=backend_name,
            device="cpu",
        )
        for name, rows in (("one", pairs), ("other", turned))
    )
    assert one["pairs"] == other["pairs"] == len(pairs) and 0 < one["accuracy"] < 1
    assert one["accuracy"] + other["accuracy"] == pytest.approx(1)
    assert one["margin"] == pytest.approx(-other["margin"], rel=1e-4)


def test_a_model_prefers_what_it_would_write(
    files: Path, said: list[str], tmp_path: Path, backend_name: str
) -> None:
    rows = [
        {"prompt": q, "chosen": text, "rejected": "Carla apples Oslo 12 " * 4}
        for q, text in zip(QUESTIONS, said, strict=True)
    ]
    found = od.evaluate(
        model=files / "policy",
        data=write(tmp_path / "pairs.jsonl", rows),
        tasks=("preference",),
        backend=backend_name,
        device="cpu",
    )
    assert (found["pairs"], found["accuracy"], found["accuracy_per_token"]) == (6, 1.0, 1.0)


@pytest.mark.parametrize(
    ("samples", "right", "k", "value"),
    [(4, 0, 1, 0), (4, 1, 2, 0.5), (4, 3, 2, 1), (8, 2, 1, 0.25)],
)
def test_pass_at_k(samples: int, right: int, k: int, value: float) -> None:
    assert problems.pass_at(k, samples, right) == pytest.approx(value)


@pytest.mark.parametrize(("text", "right"), [
    ("#### 132", True), (r"It is $\boxed{132}$.", True), ("<answer>132</answer>", True), ("It is 132.", True),
    ("131\n#### 132", True), ("132\n#### 131", False), ("131 or 132", False), ("", False), ("#### ١٣٢", False),
])  # fmt: skip
def test_any_form(text: str, right: bool) -> None:
    found = problems.any_answer(text)
    assert (found == "132") is right


@pytest.mark.slow
def test_pairs_by_dpos_implicit_reward(files: Path) -> None:
    """Against the sums of log-probabilities that transformers gives."""
    import torch
    import transformers

    lines = (files / "pairs.jsonl").read_text().splitlines()[:8]
    (files / "few.jsonl").write_text("\n".join(lines))
    pairs = [to_tokens(to_pair(json.loads(line)), small_stages.small_tokenizer()) for line in lines]
    small_stages.write(files / "start", load_backend("torch", "cpu"), small_stages.config(), seed=9)

    def apart(name: str) -> Any:
        model = transformers.AutoModelForCausalLM.from_pretrained(files / name)

        def logp(side: Any) -> float:
            ids = torch.tensor([[*side.prompt, *side.completion]])
            with torch.no_grad():
                every = model(ids).logits.log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None])
            return float(every[len(side.prompt) - 1 :].sum())

        return np.array([logp(pair.chosen) - logp(pair.rejected) for pair in pairs])

    policy, start = apart("policy"), apart("start")
    assert ((policy > 0) != (policy > start)).any()  # else the reference would not show
    for fields, wanted in (({}, policy), ({"reference": str(files / "start")}, policy - start)):
        found = od.evaluate(
            model=str(files / "policy"),
            data=str(files / "few.jsonl"),
            tasks=("preference",),
            backend="torch",
            device="cpu",
            **fields,
        )
        assert (found["accuracy"], found["pairs"]) == ((wanted > 0).mean(), len(pairs))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tasks": ("problems",), "data": "none.jsonl"}, r"none\.jsonl"),
        ({"tasks": ("problems",), "data": "pairs.jsonl"}, r"pairs\.jsonl"),
        ({"tasks": ("problems",), "shots": 60}, "shots: .*shown as examples"),
        ({"tasks": ("problems",), "answer": "nowhere"}, "nowhere"),
        ({"tasks": ("problems",), "model": "judge"}, "reward model"),
        ({"tasks": ("preference",)}, r"prompts\.jsonl"),
        (
            {"tasks": ("preference",), "reference": "policy"},
            r"prompts\.jsonl:1: .*chosen and rejected",
        ),
        (
            {
                "tasks": ("preference",),
                "model": "judge",
                "data": "pairs.jsonl",
                "reference": "policy",
            },
            "reference: .*none",
        ),
        ({"tasks": ("problems", "text")}, "tasks: .*by themselves"),
    ],
)
def test_bad_input_is_one_line(
    files: Path, changes: dict[str, Any], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    few = FEW if "problems" in changes["tasks"] else {"device": "cpu"}
    with pytest.raises(UserError, match=told) as error:
        od.evaluate(
            **{"model": "policy", "data": "prompts.jsonl", "backend": "torch", **few, **changes}
        )
    assert "\n" not in str(error.value)
