"""An exam on prompts of one's own: what is asked, what is said, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import small_stages
from ondevice.common.errors import UserError
from ondevice.config.load import from_mapping
from ondevice.config.recipe import ExamConfig
from ondevice.evaluation.ordered import OrderedExam
from ondevice.models.load import load_model
from ondevice.reports.results import _rewards
from ondevice.seam.select import load_backend


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    rows = [{"prompt": f"Anna {n}", "words": ["a"]} for n in range(6)]
    rows += [{"prompt": "Ben " * 80, "words": ["a"]}, {"prompt": "Rome", "ends": "a."}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "p.jsonl")


def exam(data: str, **changes: Any) -> OrderedExam:
    settings = {"data": data, "rewards": ["words", "finished"], "max_new_tokens": 8, **changes}
    return OrderedExam(from_mapping(ExamConfig, settings))


def test_prompts_that_fit_are_answered_and_judged(prompts: str, tmp_path: Path) -> None:
    backend = load_backend("torch", "cpu")
    small_stages.write(tmp_path / "m", backend, small_stages.config())
    model = load_model(tmp_path / "m", backend)
    found = exam(prompts, duels=8)(model, backend, tmp_path)
    assert len(found["points"]) == 7  # one of eight leaves no room for an answer
    assert set(found["rewards"]) == {"words", "finished"}
    assert sum(found["points"]) / 7 == pytest.approx(
        (6 * found["rewards"]["words"] + 0.5 * 7 * found["rewards"]["finished"]) / 7
    )
    assert exam(prompts, duels=8)(model, backend, tmp_path) == found
    assert len(exam(prompts, duels=2)(model, backend, tmp_path)["points"]) == 2
    table = _rewards([("sft", {"marks": found}), ("rate", {})]).table
    assert table[0] == ["reward", "sft"] and [row[0] for row in table[1:]] == ["words", "finished"]


def test_half_an_exam_is_refused_before_the_run(prompts: str) -> None:
    for changes in ({"data": ""}, {"rewards": []}, {"duels": 0}, {"max_new_tokens": 0}):
        with pytest.raises(UserError, match=r"judged by rewards|as duels says"):
            exam(**{"data": prompts, **changes})
    with pytest.raises(UserError, match="there is no reward 'wrods'"):
        exam(prompts, rewards=["wrods"])
