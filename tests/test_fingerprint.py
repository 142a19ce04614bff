"""What a stage's result follows from, and what may change when an unfinished one goes on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import small_stages
from ondevice.common.errors import UserError
from ondevice.config.corpus import CorpusConfig
from ondevice.config.load import from_mapping
from ondevice.config.recipe import STAGES
from ondevice.runs.folder import RunFolder
from ondevice.seam.select import load_backend
from ondevice.stages.fingerprint import check_start, compare, fingerprint_of


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_stages.make(
        tmp_path_factory.mktemp("fingerprint"), load_backend("torch", "cpu", "float32")
    )


def of(files: Path, stage: str, out: Path, **changes: Any) -> dict[str, Any]:
    cfg = from_mapping(STAGES[stage], small_stages.settings(files, stage, out, "torch", **changes))
    return fingerprint_of(cfg, CorpusConfig(), RunFolder(out).stage(stage), False)


def refused(before: dict[str, Any], now: dict[str, Any], out: Path, stage: str = "grpo") -> str:
    """What is said where an unfinished stage is to go on with other settings; empty where it may."""
    try:
        compare(before, now, RunFolder(out).stage(stage), "has a checkpoint", "give another --out")
    except UserError as error:
        return error.message
    return ""


def test_an_edited_reward_file_is_another_run(files: Path, tmp_path: Path) -> None:
    file = tmp_path / "reward.py"
    file.write_text("def one(completions, **columns): return [1.0] * len(completions)\n")
    first = of(files, "grpo", tmp_path, reward_file=str(file))
    assert first == of(files, "grpo", tmp_path, reward_file=str(file))
    named = of(files, "grpo", tmp_path, reward_file=f"{file}:one")
    file.write_text("def one(completions, **columns): return [2.0] * len(completions)\n")
    edited = of(files, "grpo", tmp_path, reward_file=str(file))
    said = "has a checkpoint, with other contents of reward_file than now"
    assert refused(first, edited, tmp_path) == refused(first, named, tmp_path) == said
    moved = tmp_path / "elsewhere.py"
    moved.write_bytes(file.read_bytes())
    assert not refused(edited, of(files, "grpo", tmp_path, reward_file=str(moved)), tmp_path)


def test_a_start_that_has_changed_is_not_gone_back_to(files: Path, tmp_path: Path) -> None:
    """Another process may write to the folder while the stage trains."""
    model = tmp_path / "model"
    shutil.copytree(files / "policy", model)
    fields = small_stages.settings(files, "dpo", tmp_path, "torch", model=str(model))
    cfg = from_mapping(STAGES["dpo"], fields)
    before = fingerprint_of(cfg, CorpusConfig(), RunFolder(tmp_path).stage("dpo"), False)
    check_start(cfg, before)
    with (model / "model.safetensors").open("ab") as weights:
        weights.write(b"more")
    with pytest.raises(UserError, match="has changed since the stage began") as caught:
        check_start(cfg, before)
    assert caught.value.where == str(model)


@pytest.mark.parametrize("decides", [{"patience": 2}, {"take_best": True}])
def test_what_is_measured_counts_where_a_measurement_decides(
    files: Path, tmp_path: Path, decides: dict[str, Any]
) -> None:
    """Where measurements end the stage or pick its weights, what they read is a part of its
    settings; a save measures nothing.
    """
    decides = {**decides, "eval_every": 1}
    one, other = (of(files, "dpo", tmp_path, **decides, eval_batches=n) for n in (2, 3))
    assert refused(one, other, tmp_path, "dpo") == "has a checkpoint, with eval_batches 2, not 3"
    older = {name: value for name, value in one.items() if name != "eval_batches"}
    assert not refused(older, other, tmp_path, "dpo")
    assert of(files, "dpo", tmp_path, eval_batches=2) == of(files, "dpo", tmp_path, eval_batches=3)
    saved = [of(files, "dpo", tmp_path, **decides, save_every=n) for n in (2, 3)]
    assert saved[0] == saved[1]


@pytest.mark.parametrize(
    "machine", [{"checkpointing": True}, {"micro_batch": 2}, {"save_every": 7}]
)
def test_what_is_the_machines_is_in_no_fingerprint(
    files: Path, tmp_path: Path, machine: dict[str, Any]
) -> None:
    plain = of(files, "dpo", tmp_path)
    assert of(files, "dpo", tmp_path, **machine) == plain and not set(machine) & set(plain)
