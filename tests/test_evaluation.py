"""What a model is worth: problems solved, pairs ranked and duels won."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ondevice as od
import small_stages
from ondevice import cli, evaluating
from ondevice.backend import load_backend
from ondevice.stages.pairs import to_pair, to_tokens

ON: dict[str, Any] = {"backend": "torch", "device": "cpu"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = small_stages.make(tmp_path_factory.mktemp("small"), load_backend("torch", "cpu"))
    sums = [{"question": f"What is {n} and 1?", "answer": f"{n}+1={n + 1}\n#### {n + 1}"} for n in range(6)]
    (folder / "gsm.jsonl").write_text("\n".join(map(json.dumps, sums)))
    return folder


@pytest.mark.parametrize(("samples", "right", "k", "value"), [
    (4, 0, 1, 0), (4, 1, 2, 0.5), (4, 3, 2, 1), (8, 2, 1, 0.25)])
def test_pass_at_k(samples: int, right: int, k: int, value: float) -> None:
    assert evaluating.pass_at(k, samples, right) == pytest.approx(value)


@pytest.mark.parametrize(("text", "right"), [
    ("#### 132", True), (r"It is $\boxed{132}$.", True), ("<answer>132</answer>", True), ("It is 132.", True),
    ("131\n#### 132", True), ("132\n#### 131", False), ("131 or 132", False), ("", False), ("#### ١٣٢", False),
])  # fmt: skip
def test_any_form(text: str, right: bool) -> None:
    found = evaluating.any_answer(text)
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
            return float(every[len(side.prompt) - 1:].sum())
        return np.array([logp(pair.chosen) - logp(pair.rejected) for pair in pairs])
    policy, start = apart("policy"), apart("start")
    assert ((policy > 0) != (policy > start)).any()  # else the reference would not show
    for fields, wanted in (({}, policy), ({"reference": str(files / "start")}, policy - start)):
        found = od.evaluate(model=str(files / "policy"), data=str(files / "few.jsonl"), tasks=("preference",), **ON,
                            **fields)
        assert (found["accuracy"], found["pairs"]) == ((wanted > 0).mean(), len(pairs))


@pytest.mark.slow
def test_a_duel_with_oneself_is_a_draw_and_sides_change_places(files: Path) -> None:
    backend = load_backend("torch", "cpu")
    small_stages.write(files / "rival", backend, small_stages.config(), seed=3)
    def duel(one: str, other: str) -> dict[str, Any]:
        return od.evaluate(model=str(files / one), data=str(files / "prompts.jsonl"), tasks=("win",), max_new_tokens=6,
                           against=str(files / other), judge=str(files / "judge"), **ON)
    same = duel("policy", "policy")
    assert (same["win_rate"], same["ties"], same["prompts"]) == (0.5, 30, 30)
    there, back = duel("policy", "rival"), duel("rival", "policy")
    assert there["wins"] == back["losses"] > 0 and there["win_rate"] == pytest.approx(1 - back["win_rate"])
    assert there["score"] == back["other_score"]


@pytest.mark.parametrize(("arguments", "said"), [
    ("--tasks win", "against: a win rate needs another model and a judge"),
    ("--tasks win --against POLICY --judge POLICY", "is no reward model"),
    ("--tasks win,text", "win are measured by themselves"),
    ("--tasks preference --reference POLICY", "no pairs|none of 0 pairs"),
    ("--tasks win --against POLICY --judge JUDGE --data nowhere.jsonl", "nowhere.jsonl: no such file"),
])  # fmt: skip
def test_what_a_person_gets_wrong(arguments: str, said: str, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = arguments.replace("POLICY", str(files / "policy")).replace("JUDGE", str(files / "judge")).split()
    data = [] if "--data" in words else ["--data", str(files / "gsm.jsonl")]
    assert cli.main(["eval", str(files / "policy"), *data, *words, "--backend", "torch", "--device", "cpu"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and any(part in told for part in said.split("|")), told
