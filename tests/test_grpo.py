"""GRPO from one's own rewards: which weights are the best, and what a run says of rewards that teach nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ondevice as od
import small_stages
from ondevice.backend import load_backend
from ondevice.events import read
from ondevice.rewards.rewards import Scores
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


@pytest.mark.slow
def test_accuracy_is_told_with_correct_alone(files: Path, tmp_path: Path) -> None:
    without, done = grpo(files, tmp_path / "without", rewards=("length",))
    assert not any("accuracy" in event for event in without) and "accuracy" not in done["marks"]["held_out"]
    told, done = grpo(files, tmp_path / "with", rewards=("length", "correct"))
    assert all("accuracy" in event for event in told if event["event"] in ("step", "eval"))
    assert done["outcome"]["figure"] == "accuracy"
