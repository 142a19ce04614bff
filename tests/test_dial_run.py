"""Runs in a time, for real and small: what is written, resumed, probed."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import ondevice as od
import small_stages
from ondevice import cli
from ondevice.common import user_cache
from ondevice.common.errors import UserError
from ondevice.config.load import from_mapping
from ondevice.config.preference import GRPOConfig
from ondevice.config.recipe import load_recipe
from ondevice.planning import calibration
from ondevice.planning.calibration import Calibration, Rates, Speeds
from ondevice.planning.dial import record
from ondevice.seam.select import load_backend
from ondevice.stages.pace import pace
from ondevice.stages.probe import probe

RATES = Rates(1.2, 1e-10, 1e-4)
SPEEDS = Speeds(((64.0, 1e10), (512.0, 4e10)), 5e9, 1e6, RATES, RATES, RATES)
CORPUS = {
    "people": 6,
    "places": 4,
    "animals": 4,
    "things": 4,
    "document_bytes": 40_000,
    "chat_count": 200,
    "prompt_count": 60,
    "problem_count": 60,
    "held_prompt_count": 20,
    "held_problem_count": 20,
}


@pytest.fixture(autouse=True)
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this machine had been measured."""
    monkeypatch.setenv(user_cache.FOLDER, str(tmp_path / "cache"))
    for device, dtype in (("auto", "auto"), ("cpu", "auto"), ("cpu", "float32")):
        key = calibration.key_of("torch", device, dtype)
        calibration.save(Calibration(key, "cpu", "float32", 16 << 30, 200 << 20, SPEEDS))


def _recipe(folder: Path) -> Path:
    """The road of `laptop`, of which no stage takes more than some steps."""
    raw = load_recipe("laptop").mapping()
    raw["corpus"] = CORPUS
    raw["exam"] = {"questions": 5, "problems": 4, "passes": 1, "duels": 2}
    raw["prompts"] = ["Leo lives in…"]
    for name, scale in raw["scale"]["stages"].items():
        scale |= {"least": 2, "most": 30 if name == "sample" else 4}
    stages = {n: c for n, c in raw["stages"].items() if n in ("init", "pretrain", "sft", "grpo")}
    raw["scale"]["stages"] = {n: raw["scale"]["stages"][n] for n in stages if n != "init"}
    raw["stages"] = stages
    del raw["preference"]  # of whose ways it has none
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump(raw, sort_keys=False))
    return file


def _digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.slow
def test_a_run_in_a_time_is_resumed_to_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    given: dict[str, Any] = {"backend": "torch", "device": "cpu", "dtype": "float32"}
    od.run(_recipe(tmp_path), time="60s", out=out, **given)
    said = capsys.readouterr().err
    assert "in 1:00" in said and "stage 2 of 4, 0:" in said and "of 1:00 used" in said
    # random weights answer nothing rightly
    assert "grpo is left out: none of 64 answers earned a reward" in said
    found = record.load(out)
    assert found is not None
    assert found.ended == ["init", "pretrain", "sft"] and "grpo" in found.left_out
    report = (out / "report.md").read_text()
    assert "## The time" in report and "- sft: 0:" in report and "grpo is left out" in report
    resolved = load_recipe(str(out / "recipe.yaml"))
    assert resolved.scale is None and list(resolved.stages) == ["init", "pretrain", "sft"]
    pretrain: Any = resolved.stages["pretrain"]
    assert pretrain.steps == found.decided["pretrain"]["steps"] == 4
    events = [json.loads(line) for line in (out / "sft" / "events.jsonl").read_text().splitlines()]
    start = next(event for event in events if event["event"] == "start")
    assert (start["time"]["stage"], start["time"]["seconds"]) == (3, 60.0)

    # the last stage is lost, and is run again as it was decided
    before = _digest(out / "sft" / "model")
    shutil.rmtree(out / "sft")
    found.ended.remove("sft")
    found.save(out)
    od.run(out / "recipe.yaml", out=out, resume=True, **given)
    assert _digest(out / "sft" / "model") == before
    # with the command's own words, and nothing left to do
    assert cli.main(["run", str(_recipe(tmp_path)), "--out", str(out), "--resume"]) == 0
    # as an ordinary recipe it gives the same
    other = od.run(out / "recipe.yaml", out=tmp_path / "other", **given)
    assert _digest(other / "sft" / "model") == before
    assert record.load(other) is None
    with pytest.raises(UserError, match="time: has no effect: this run was begun without it"):
        od.run(out / "recipe.yaml", out=other, resume=True, time="60s")


@pytest.mark.slow
def test_a_run_on_own_files_says_what_it_leaves_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, chats = tmp_path / "text.txt", tmp_path / "chats.jsonl"
    text.write_text("\n".join(f"The cat number {n} sat on the mat." for n in range(600)))
    rows = [
        {"prompt": f"Where is cat {n}?", "completion": f"On mat {n}, where it sat."}
        for n in range(60)
    ]
    chats.write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "run"
    words = ["--time", "60s", "--text", str(text), "--chats", str(chats), "--out", str(out)]
    code = cli.main(
        ["run", str(_recipe(tmp_path)), *words, "--backend", "torch", "--device", "cpu"]
    )
    said = capsys.readouterr().err
    assert code == 0, said
    assert "grpo is left out: there are no problems: give --problems FILE" in said
    found = record.load(out)
    assert found is not None and found.given == {"text": str(text), "chats": str(chats)}
    assert sorted(p.name for p in out.iterdir() if p.is_dir()) == ["init", "pretrain", "sft"]
    with pytest.raises(UserError, match="chats: this run was begun with .*chats.jsonl"):
        od.run(_recipe(tmp_path), out=out, resume=True, chats="others.jsonl")


def test_a_time_that_is_too_short_makes_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ondevice.planning.dial.fit.RESERVE", 0.99)
    words = ["run", str(_recipe(tmp_path)), "--time", "60s", "--out", str(tmp_path / "run")]
    assert cli.main([*words, "--backend", "torch"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "time: 1m is too short for 4 stages on this machine (" in said[0]
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    backend = load_backend("torch", "cpu", "float32")
    return small_stages.make(tmp_path_factory.mktemp("probe"), backend)


def test_a_probe_counts_the_answers_that_earn_a_reward(models: Path, tmp_path: Path) -> None:
    problems = tmp_path / "problems.jsonl"
    rows = [{"prompt": f"What is {n}+{n}?", "answer": str(2 * n)} for n in range(30)]
    problems.write_text("\n".join(map(json.dumps, rows)))
    values = {"model": str(models / "policy"), "data": str(problems), "max_new_tokens": 4}
    backend = load_backend("torch", "cpu", "float32")
    corpus = load_recipe("laptop").corpus
    cfg = from_mapping(GRPOConfig, {**values, "rewards": ["correct"]})
    found = probe(cfg, backend, corpus)
    assert (found.answers, found.rewarded) == (64, 0)
    assert 0 < found.tokens <= 64 * 4
    reward = tmp_path / "reward.py"
    reward.write_text(
        "def every_other(completions, **_):\n    return [n % 2 for n in range(len(completions))]\n"
    )
    cfg = from_mapping(GRPOConfig, {**values, "reward_file": str(reward)})
    assert probe(cfg, backend, corpus).rewarded == 32


def test_the_pace_is_a_part_of_what_was_calibrated(models: Path) -> None:
    from ondevice.config.stages import PretrainConfig
    from test_dial import MACHINE

    raw = {
        "steps": 5,
        "batch_size": 2,
        "sequence_length": 16,
        "learning_rate": 1e-3,
        "warmup_steps": 0,
        "eval_every": 0,
        "save_every": 0,
        "checkpointing": False,
    }
    cfg = from_mapping(PretrainConfig, raw)
    backend = load_backend("torch", "cpu", "float32")
    assert pace(cfg, models / "policy", backend, MACHINE, 0.0) > 0
