"""Which stage came after which, and which model is the newest: by the recipe and by what a stage began
with, whatever a clock says."""

from __future__ import annotations

import ast
import json
import os
from pathlib import Path
from typing import Any

import pytest

import models
import source
from ondevice.runs.folder import RunFolder
from ondevice.runs.order import recipe_stages
from ondevice.runs.resolve import find_model

ROOT = Path(__file__).parent.parent
# Uses of a file's times, each with its reason. None decides which stage or model is the newer one.
CLOCKS = {
    "ondevice/common/files.py": "whether a file is as it was when it was read",
    "ondevice/inference/pair_sampling.py": "whether a judge is the one that is loaded",
    "ondevice/preferences/lock.py": "a name for a damaged file",
    "ondevice/preferences/backups.py": "which of three copies of one database is written over next",
    "ondevice/runs/listing.py": "a date that is shown, of runs, not of stages",
    "ondevice/runs/logs.py": "which log was written to last, and for how long one has been silent",
    "ondevice/runs/order.py": "whether a recipe is as it was when it was read",
    "tui/ondevice_tui/run_reader.py": "whether a folder is as it was when it was read",
    "tui/ondevice_tui/screens/review.py": "which rows to look through are proposed, not of stages",
    "tui/ondevice_tui/screens/ladder.py": "whether a stage is as it was when it was read",
}


def stage(run: Path, name: str, began: float, model: str = "", **config: Any) -> None:
    folder = run / name
    (folder / "model").mkdir(parents=True)
    config["model"] = str(run / model / "model") if model else ""
    event = {"t": began, "event": "start", "step": 0, "config": config}
    (folder / "events.jsonl").write_text(json.dumps(event) + "\n")
    (folder / "done.json").write_text("{}")
    (folder / "model" / "config.json").write_text(json.dumps(models.config("llama").to_json()))
    os.utime(folder / "done.json", (began, began))


def names(run: Path) -> list[str]:
    return [stage.name for stage in RunFolder(run).stages()]


@pytest.mark.parametrize("times", [(1, 2, 3), (3, 2, 1), (5, 5, 5), (9, 1, 5)])
def test_a_clock_that_was_set_back_changes_nothing(tmp_path: Path, times: tuple[int, ...]) -> None:
    for name, began, model in zip(
        ("pretrain", "sft", "grpo"), times, ("", "pretrain", "sft"), strict=True
    ):
        stage(tmp_path, name, began, model)
    assert names(tmp_path) == ["pretrain", "sft", "grpo"]
    assert find_model(str(tmp_path)) == tmp_path / "grpo" / "model"


def test_the_recipe_says_in_which_order_what_could_stand_in_either(tmp_path: Path) -> None:
    for name in ("pretrain", "dpo", "sft"):
        stage(tmp_path, name, 1)
    assert names(tmp_path) == ["pretrain", "sft", "dpo"]
    (tmp_path / "recipe.yaml").write_text("stages:\n  dpo: {}\n  pretrain: {}\n")
    assert names(tmp_path) == ["dpo", "pretrain", "sft"]


def test_what_a_stage_began_with_wins_over_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("stages:\n  sft: {}\n  grpo: {}\n")
    stage(tmp_path, "sft", 1, "grpo")
    stage(tmp_path, "grpo", 2)
    assert names(tmp_path) == ["grpo", "sft"]
    assert find_model(str(tmp_path)) == tmp_path / "sft" / "model"


def test_two_that_began_with_each_other_s_models_stand_as_the_recipe_has_them(
    tmp_path: Path,
) -> None:
    stage(tmp_path, "sft", 2, "grpo")
    stage(tmp_path, "grpo", 1, "sft")
    stage(tmp_path, "init", 9)
    assert names(tmp_path) == ["init", "sft", "grpo"]


@pytest.mark.parametrize("text", ["", "[", "stages: 5", "a: &a [*a]", "\0"])
def test_a_damaged_recipe_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    assert recipe_stages(tmp_path / "recipe.yaml") == []


@pytest.mark.parametrize("line", ["", "{", "[]", '{"config": 5}', '{"config": {"model": [1]}}'])
def test_damaged_events_say_nothing(tmp_path: Path, line: str) -> None:
    stage(tmp_path, "sft", 1)
    stage(tmp_path, "pretrain", 2)
    (tmp_path / "sft" / "events.jsonl").write_text(line + "\n")
    assert names(tmp_path) == ["pretrain", "sft"]


@pytest.mark.slow
def test_the_times_of_files_are_looked_at_for_nothing_else() -> None:
    """A new use is found by itself: it needs a reason here, and that is not which came first."""
    found = set()
    for file in source.files():
        for node in source.nodes(file):
            if isinstance(node, ast.Attribute) and node.attr.startswith(
                ("st_mtime", "st_ctime", "st_atime", "st_birthtime", "getmtime", "getctime")
            ):
                found.add(source.named(file))
    assert found == set(CLOCKS)
