"""GRPO from one's own rewards: which weights are the best, and what a run says of rewards that teach nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ondevice as od
import small_stages
from data_samples import small_tokenizer
from ondevice.backend import load_backend
from ondevice.data.chat import prompt_ids
from ondevice.events import read
from ondevice.rewards.rewards import Rewards, Scores
from ondevice.rollout import Sampled
from ondevice.stages.asked import Asked, opening
from ondevice.stages.groups import told
from ondevice.stages.grpo import GRPOFeed, accuracy


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_stages.make(tmp_path_factory.mktemp("grpo"), load_backend("torch", "cpu", "float32"))


def grpo(files: Path, out: Path, **changes: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The events of a small run, and its done.json."""
    od.grpo(**{**small_stages.settings(files, "grpo", out, "torch"), "steps": 2, "updates": 1, "beta": 0.0, **changes})
    return list(read(out / "grpo" / "events.jsonl")), json.loads((out / "grpo" / "done.json").read_text())


def test_accuracy_is_of_the_reward_that_says_what_is_right_alone() -> None:
    total, right = np.array([1.0, 1.0, 0.3, 0.0]), np.array([1.0, np.nan, 0.0, 0.5])
    assert accuracy(Scores(total, {"length": total}, [None] * 4, [])) == {}
    assert accuracy(Scores(total, {"length": total, "correct": right}, [None] * 4, [])) == {"accuracy": 1 / 3}
    nothing = accuracy(Scores(total, {"correct": np.full(4, np.nan)}, [None] * 4, []))
    assert np.isnan(nothing["accuracy"])


def test_without_correct_the_best_is_best_by_reward(files: Path, tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """Held-out rewards of 0.1, 0.2, 0.3 …, which never come to 1: the last is the best, and patience ends nothing."""
    given = iter(np.arange(1, 100) / 10)
    monkeypatch.setattr(GRPOFeed, "watch", lambda self, params: {"reward": float(next(given))})
    events, done = grpo(files, tmp_path / "r", steps=4, eval_every=1, take_best=True, patience=1)
    assert not any("accuracy" in event for event in events)
    assert done["outcome"]["figure"] == "reward" and done["outcome"]["measured"] == 4


# ---- a generation prompt that opens the thought ---------------------------------------------------------------------

def opens(text: str) -> str:
    """A template whose generation prompt ends in `text`."""
    return ("{%- for m in messages -%}{{ '<u>' + m['content'] }}{%- endfor -%}"
            "{%- if add_generation_prompt -%}{{ '<a>" + text + "' }}{%- endif -%}")


OPENS = opens("<think>\\n")
ASKED = [{"role": "user", "content": "What does <think> open?"}]


@pytest.mark.parametrize(("template", "opened"), [
    (OPENS, "<think>\n"), (opens("<think>"), "<think>"), (opens("<think>\\n\\n</think>\\n\\n"), ""), (opens(""), "")])
def test_what_the_prompt_opens(template: str, opened: str) -> None:
    tokenizer = small_tokenizer().with_template(template)
    assert opening(prompt_ids(ASKED, tokenizer), tokenizer) == opened


def test_a_turn_is_judged_with_what_the_prompt_has_opened_of_it() -> None:
    """A finished thought earns `think`; a number in an unfinished one is no answer, and no other form finds one."""
    said = ["2 + 2 is 4\n</think>\n4", "so 4", "</think>\n4", "a</think>so 5"]
    columns = {"answer": ["4"] * 4, "truncated": [False] * 4, "completion_ids": [[1]] * 4, "max_new_tokens": 9}
    with Rewards(("think", "correct", "format", "exact")) as rewards:
        scores = rewards.score(["?"] * 4, said, columns, ["<think>\n"] * 4)
        alone = rewards.score(["?"] * 4, ["<think>\n" + text for text in said], columns)
        plain = rewards.score(["?"] * 4, said, columns)
    np.testing.assert_equal(scores.by_name["think"], [1, 0, 0, 1])
    np.testing.assert_equal(scores.by_name["correct"], [1, 0, 1, 0])
    np.testing.assert_equal(scores.by_name["format"], [1, 0, 1, 1])
    assert scores.parsed == alone.parsed == ["4", None, "4", "5"]
    for name in ("think", "correct", "format"):
        np.testing.assert_equal(scores.by_name[name], alone.by_name[name])
    np.testing.assert_equal(scores.by_name["exact"], plain.by_name["exact"])   # of what the model wrote


def test_places_of_answers_are_those_in_what_was_written() -> None:
    tokenizer = small_tokenizer().with_template(OPENS)
    ids = prompt_ids(ASKED, tokenizer)
    text = "well\n</think>\nso 42"
    [group] = told([Asked(ASKED, ids)], [Sampled(ids, [1], True, text)], {}, [1.0], [0.0], "number", tokenizer)
    [one] = group["completions"]
    assert one["parsed"] == "42" and text[slice(*one["span"])] == "42"


@pytest.mark.slow
def test_accuracy_is_told_with_correct_alone(files: Path, tmp_path: Path) -> None:
    without, done = grpo(files, tmp_path / "without", rewards=("length",))
    assert not any("accuracy" in event for event in without) and "accuracy" not in done["marks"]["held_out"]
    told, done = grpo(files, tmp_path / "with", rewards=("length", "correct"))
    assert all("accuracy" in event for event in told if event["event"] in ("step", "eval"))
    assert done["outcome"]["figure"] == "accuracy"
