"""Whatever interrupts a run, going on gives the run that was never interrupted: the same curve, the
same weights.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import ondevice as od
from ondevice.common.errors import Interrupted, UserError
from ondevice.runs import checkpoint
from ondevice.runs.context import _apart
from ondevice.runs.events import read
from ondevice.stages import pipeline
from warm_processes import Process, start

pytestmark = pytest.mark.slow

STEPS = 40
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 64,
}
LOOP: dict[str, Any] = {
    "steps": STEPS,
    "batch_size": 4,
    "micro_batch": 2,
    "sequence_length": 32,
    "optimizer": "muon",
    "learning_rate": 3e-3,
    "warmup_steps": 5,
    "eval_every": 8,
    "eval_batches": 2,
    "save_every": 4,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with text, chats and a model of random weights."""
    folder = tmp_path_factory.mktemp("files")
    rng = random.Random(0)
    words = [
        "the",
        "cat",
        "sat",
        "on",
        "a",
        "red",
        "mat",
        "and",
        "saw",
        "two",
        "dogs",
        "run",
        "home",
        "to",
        "eat",
    ]
    lines = [" ".join(rng.choices(words, k=12)) + "." for _ in range(400)]
    (folder / "text.txt").write_text("\n".join(lines))
    chats = [
        {
            "messages": [
                {"role": "user", "content": " ".join(rng.choices(words, k=rng.randint(2, 6)))},
                {"role": "assistant", "content": " ".join(rng.choices(words, k=rng.randint(1, 5)))},
            ]
        }
        for _ in range(120)
    ]
    (folder / "chats.jsonl").write_text("\n".join(map(json.dumps, chats)))
    od.init(str(folder / "text.txt"), out=str(folder / "run"), backend="torch", **SMALL)
    return folder


def settings(files: Path, stage: str, out: Path, backend: str, **changes: Any) -> dict[str, Any]:
    data = {"pretrain": "text.txt", "sft": "chats.jsonl"}[stage]
    return {
        "model": str(files / "run" / "init" / "model"),
        "data": str(files / data),
        "out": str(out),
        "backend": backend,
        "device": "cpu",
        **LOOP,
        **changes,
    }


def command(stage: str, fields: dict[str, Any], *more: str) -> list[str]:
    rest = {k: v for k, v in fields.items() if k not in ("model", "data")}
    flags = [part for name, value in rest.items() for part in (f"--{name}", str(value))]
    return ["-m", "ondevice", stage, fields["model"], fields["data"], *flags, *more]


def begin(stage: str, fields: dict[str, Any], *more: str) -> Process:
    return start(*command(stage, fields, *more), torch=fields["backend"] == "torch")


def wait_for_step(out: Path, stage: str, step: int, process: Process) -> None:
    """Until the checkpoint folder shows that `step` steps are done, or the process has ended."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        done = checkpoint.steps(out / stage / "checkpoints")
        if done and int(done[-1].name[5:]) >= step:
            return
        time.sleep(0.01)


def curve(out: Path, stage: str) -> list[tuple[int, float, float]]:
    return [
        (e["step"], e["loss"], e["grad_norm"])
        for e in read(out / stage / "events.jsonl")
        if e["event"] == "step"
    ]


def weights(out: Path, stage: str) -> dict[str, np.ndarray]:
    return load_file(out / stage / "model" / "model.safetensors")


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_killed_again_and_again_the_curve_is_that_of_one_run(
    files: Path, tmp_path: Path, backend_name: str, stage: str
) -> None:
    whole = settings(files, stage, tmp_path / "whole", backend_name)
    getattr(od, stage)(**whole)
    broken = settings(files, stage, tmp_path / "broken", backend_name)
    for attempt, step in enumerate((6, 21)):
        process = begin(stage, broken, *(["--resume"] if attempt else []))
        wait_for_step(tmp_path / "broken", stage, step, process)
        # somewhere between two checkpoints, or inside one
        time.sleep(random.Random(step).random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    process = begin(stage, broken, "--resume")
    _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert curve(tmp_path / "broken", stage) == curve(tmp_path / "whole", stage)
    assert len(curve(tmp_path / "whole", stage)) == STEPS
    assert same(weights(tmp_path / "broken", stage), weights(tmp_path / "whole", stage))
    assert any(e["event"] == "resume" for e in read(tmp_path / "broken" / stage / "events.jsonl"))


def test_ctrl_c_saves_says_how_to_go_on_and_loses_nothing(
    files: Path, tmp_path: Path, backend_name: str
) -> None:
    # more steps than are done before the signal comes
    longer = {"save_every": 0, "steps": 5 * STEPS}
    whole = settings(files, "pretrain", tmp_path / "whole", backend_name, **longer)
    od.pretrain(**whole)
    broken = settings(files, "pretrain", tmp_path / "broken", backend_name, **longer)
    process = begin("pretrain", broken)
    events = tmp_path / "broken" / "pretrain" / "events.jsonl"
    while process.poll() is None and not (events.exists() and '"start"' in events.read_text()):
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate()
    if process.returncode == 0:
        pytest.skip("the run was over before the signal came")
    assert process.returncode == 130
    assert "saved" in stderr and "--resume" in stderr and "Traceback" not in stderr
    od.pretrain(**{**broken, "resume": True})
    assert curve(tmp_path / "broken", "pretrain") == curve(tmp_path / "whole", "pretrain")
    assert same(weights(tmp_path / "broken", "pretrain"), weights(tmp_path / "whole", "pretrain"))


def test_a_stop_file_stops_as_ctrl_c_does(files: Path, tmp_path: Path) -> None:
    fields = settings(
        files, "pretrain", tmp_path / "r", "torch", save_every=0, steps=3000, eval_every=0
    )
    process = begin("pretrain", fields)
    folder = tmp_path / "r" / "pretrain"
    events = folder / "events.jsonl"
    # a stop file from before the start is an old one, and forgotten
    while process.poll() is None and not (events.exists() and '"start"' in events.read_text()):
        time.sleep(0.01)
    (folder / "stop").touch()
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 130, stderr
    assert len(checkpoint.steps(folder / "checkpoints")) == 1


def test_two_ctrl_c_leave_at_once(files: Path, tmp_path: Path) -> None:
    fields = settings(
        files, "pretrain", tmp_path / "r", "torch", save_every=0, steps=3000, eval_every=0
    )
    process = begin("pretrain", fields)
    events = tmp_path / "r" / "pretrain" / "events.jsonl"
    while process.poll() is None and not (events.exists() and '"step"' in events.read_text()):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "Traceback" not in stderr


def test_a_checkpoint_of_one_backend_goes_on_in_the_other(
    files: Path, tmp_path: Path, backend_name: str
) -> None:
    pytest.importorskip("mlx.core")
    pytest.importorskip("torch")
    other = {"torch": "mlx", "mlx": "torch"}[backend_name]
    whole = settings(files, "pretrain", tmp_path / "whole", other)
    od.pretrain(**whole)
    broken = settings(
        files, "pretrain", tmp_path / "broken", backend_name, steps=STEPS, save_every=8
    )
    process = begin("pretrain", broken)
    wait_for_step(tmp_path / "broken", "pretrain", 8, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    od.pretrain(**{**broken, "backend": other, "resume": True})
    for (step, loss, _), (at, expected, _) in zip(
        curve(tmp_path / "broken", "pretrain"), curve(tmp_path / "whole", "pretrain"), strict=True
    ):
        assert step == at and loss == pytest.approx(expected, abs=1e-4)
    ours, theirs = weights(tmp_path / "broken", "pretrain"), weights(tmp_path / "whole", "pretrain")
    assert max(float(np.abs(ours[n] - theirs[n]).max()) for n in ours) < 1e-3
    [told] = [
        e["message"]
        for e in read(tmp_path / "broken" / "pretrain" / "events.jsonl")
        if "not to the last digit" in e.get("message", "")
    ]
    assert f"with other backend ({backend_name}, now {other})" in told and "machine" not in told


def test_what_differs_of_a_checkpoint_is_said_alone() -> None:
    one = {"torch": "2", "machine": "x"}
    assert _apart({**one, "processes": "2"}, one) == "processes (2, now 1)"
    assert _apart({"torch": "1", "threads": "2"}, {"torch": "2"}) == (
        "torch (1, now 2), threads (2, now none)"
    )
    assert _apart(None, one) == "versions (it does not say which)"


def test_a_damaged_newest_checkpoint_is_passed_over(files: Path, tmp_path: Path) -> None:
    fields = settings(files, "pretrain", tmp_path / "r", "torch")
    od.pretrain(**fields)
    expected = curve(tmp_path / "r", "pretrain")
    folder = tmp_path / "r" / "pretrain"
    (folder / "done.json").unlink()
    newest = checkpoint.steps(folder / "checkpoints")[-1]
    weight = newest / "model" / "model.safetensors"
    weight.write_bytes(weight.read_bytes()[:-7])
    od.pretrain(**{**fields, "resume": True})
    assert curve(tmp_path / "r", "pretrain") == expected
    assert any(newest.name in e.get("message", "") for e in read(folder / "events.jsonl"))


def test_what_stands_there_is_never_overwritten_silently(files: Path, tmp_path: Path) -> None:
    fields = settings(files, "pretrain", tmp_path / "r", "torch")
    od.pretrain(**fields)
    with pytest.raises(UserError, match="complete already"):
        od.pretrain(**fields)
    assert od.pretrain(**{**fields, "resume": True}) == tmp_path / "r" / "pretrain" / "model"
    with pytest.raises(UserError, match="learning_rate"):
        od.pretrain(**{**fields, "resume": True, "learning_rate": 1e-3})
    (tmp_path / "r" / "pretrain" / "done.json").unlink()
    with pytest.raises(UserError, match="unfinished run"):
        od.pretrain(**fields)
    with pytest.raises(UserError, match="steps"):
        od.pretrain(**{**fields, "resume": True, "steps": STEPS + 1})


def test_a_stage_folder_in_which_another_process_trains(files: Path, tmp_path: Path) -> None:
    fields = settings(files, "pretrain", tmp_path / "r", "torch", steps=3000, eval_every=0)
    process = begin("pretrain", fields)
    try:
        while (
            process.poll() is None and not (tmp_path / "r" / "pretrain" / "events.jsonl").exists()
        ):
            time.sleep(0.01)
        second = begin("pretrain", fields)
        _, stderr = second.communicate()
        assert second.returncode == 2
        assert f"process {process.pid} trains here" in stderr
        assert stderr.count("\n") == 1
    finally:
        process.kill()
        process.communicate()


def test_redo_runs_a_stage_and_what_follows_from_it(files: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "own.yaml"
    small = {**LOOP, "steps": 4, "warmup_steps": 2, "save_every": 2, "eval_every": 0}
    recipe.write_text(
        json.dumps(
            {
                "stages": {
                    "init": {"data": str(files / "text.txt"), **SMALL},
                    "pretrain": {"data": str(files / "text.txt"), **small},
                    "sft": {"data": str(files / "chats.jsonl"), **small},
                }
            }
        )
    )
    out = tmp_path / "r"
    od.run(str(recipe), out=out, backend="torch")
    before = {s: (out / s / "done.json").stat().st_mtime_ns for s in ("init", "pretrain", "sft")}
    with pytest.raises(UserError, match="holds a run already"):
        od.run(str(recipe), out=out, backend="torch")
    with pytest.raises(UserError, match="learning_rate"):
        od.run(
            str(recipe), out=out, backend="torch", resume=True, sets=["pretrain.learning_rate=1e-3"]
        )
    od.run(
        str(recipe),
        out=out,
        backend="torch",
        redo=["pretrain"],
        sets=["pretrain.learning_rate=1e-3"],
    )
    after = {s: (out / s / "done.json").stat().st_mtime_ns for s in before}
    assert after["init"] == before["init"]
    assert after["pretrain"] > before["pretrain"] and after["sft"] > before["sft"]


def test_a_redo_that_was_stopped_goes_on_with_the_stages_after_it(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, out = tmp_path / "own.yaml", tmp_path / "r"
    small = {**LOOP, "steps": 2, "warmup_steps": 1, "save_every": 2, "eval_every": 0}
    stages = {
        "init": {"data": str(files / "text.txt"), **SMALL},
        "pretrain": {"data": str(files / "text.txt"), **small},
        "sft": {"data": str(files / "chats.jsonl"), **small},
    }
    recipe.write_text(json.dumps({"stages": stages}))
    od.run(str(recipe), out=out, backend="torch")
    before = weights_of(out / "sft" / "model")
    sets = ["pretrain.learning_rate=1e-3"]

    def stopped(name: str, *given: Any, **more: Any) -> Path:
        if name == "pretrain":
            raise Interrupted("stopped")
        return whole(name, *given, **more)

    whole = pipeline.run_stage
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr(pipeline, "run_stage", stopped)
        od.run(str(recipe), out=out, backend="torch", redo=["pretrain"], sets=sets)
    od.run(str(recipe), out=out, backend="torch", resume=True, sets=sets)
    assert weights_of(out / "sft" / "model") != before
    assert not list(out.glob("*/redo"))


def weights_of(model: Path) -> bytes:
    return (model / "model.safetensors").read_bytes()


def test_redo_trains_anew_where_the_checkpoints_are_a_link_to_another_disk(
    files: Path, tmp_path: Path
) -> None:
    fields = {
        **settings(files, "pretrain", tmp_path / "r", "torch"),
        "steps": 4,
        "warmup_steps": 2,
        "save_every": 2,
        "eval_every": 0,
    }
    fields.pop("out")
    recipe, out, disk = tmp_path / "own.yaml", tmp_path / "r", tmp_path / "disk"
    recipe.write_text(
        json.dumps(
            {
                "stages": {
                    "pretrain": {k: v for k, v in fields.items() if k not in ("backend", "device")}
                }
            }
        )
    )
    od.run(str(recipe), out=out, backend="torch")
    checkpoints = out / "pretrain" / "checkpoints"
    checkpoints.rename(disk)
    (disk / "step-notes").mkdir()  # a person's
    (out / "pretrain" / "model").rename(tmp_path / "model")
    (out / "pretrain" / "model").symlink_to(tmp_path / "model")
    checkpoints.symlink_to(disk)
    od.run(str(recipe), out=out, backend="torch", redo=["pretrain"], sets=["pretrain.steps=5"])
    events = [e["event"] for e in read(out / "pretrain" / "events.jsonl")]
    assert events.count("step") == 5 and "resume" not in events
    assert checkpoints.is_symlink() and [p.name for p in checkpoint.steps(disk)] == [
        "step-00000004",
        "step-00000005",
    ]
    assert (disk / "step-notes").is_dir()
    assert (tmp_path / "model" / "model.safetensors").is_file() and not (
        out / "pretrain" / "model"
    ).is_symlink()


def test_a_model_that_no_attempt_has_made_is_not_removed(files: Path, tmp_path: Path) -> None:
    """A folder of the stage's name that a person keeps a model in."""
    fields = {**settings(files, "pretrain", tmp_path / "r", "torch"), "steps": 2, "warmup_steps": 1}
    (tmp_path / "r" / "pretrain" / "model").mkdir(parents=True)
    (tmp_path / "r" / "pretrain" / "model" / "model.safetensors").write_text("mine")
    with pytest.raises(UserError, match="no attempt of this stage"):
        od.pretrain(**fields)
    assert (tmp_path / "r" / "pretrain" / "model" / "model.safetensors").read_text() == "mine"
