"""A run that is to go on for longer: with more steps where the schedule allows it, and from a
finished stage.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import ondevice as od
import small_stages
from ondevice.common.errors import UserError
from ondevice.config.stages import PretrainConfig
from ondevice.runs.events import read
from ondevice.seam.select import load_backend
from ondevice.training.lr_schedule import learning_rate, same_so_far


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_stages.make(
        tmp_path_factory.mktemp("longer"), load_backend("torch", "cpu", "float32")
    )


def sft(files: Path, out: Path, **changes: Any) -> None:
    od.sft(
        **{
            **small_stages.LOOP,
            "model": str(files / "policy"),
            "data": str(files / "chats.jsonl"),
            "out": str(out),
            "backend": "torch",
            "batch_size": 4,
            "sequence_length": 32,
            "packing": False,
            **changes,
        }
    )


def undone(out: Path) -> None:
    """As if the process had been killed before it wrote the result."""
    (out / "sft" / "done.json").unlink()
    shutil.rmtree(out / "sft" / "model")


def curve(out: Path) -> list[tuple[int, float, float]]:
    return [
        (e["step"], e["loss"], e["lr"])
        for e in read(out / "sft" / "events.jsonl")
        if e["event"] == "step"
    ]


def test_which_rates_would_have_been_the_same() -> None:
    """By the rates themselves: constant always, wsd until its decay, every schedule in its warm-up."""

    def cfg(schedule: Any) -> PretrainConfig:
        return PretrainConfig(
            steps=80, warmup_steps=4, learning_rate=1e-3, schedule=schedule, decay_fraction=0.25
        )

    assert same_so_far(cfg("constant"), 40, 40) and same_so_far(cfg("constant"), 400, 40)
    assert same_so_far(cfg("wsd"), 40, 32) and not same_so_far(cfg("wsd"), 40, 40)
    shorter = replace(cfg("wsd"), steps=40)
    assert learning_rate(31, cfg("wsd")) == learning_rate(31, shorter)
    for schedule in ("cosine", "linear"):
        assert same_so_far(cfg(schedule), 40, 4) and not same_so_far(cfg(schedule), 40, 6)


@pytest.mark.parametrize("schedule", ["constant", "wsd"])
def test_more_steps_give_the_run_that_had_them_from_its_beginning(
    schedule: str, files: Path, tmp_path: Path
) -> None:
    fields: dict[str, Any] = {"schedule": schedule, "save_every": 4}
    sft(files, tmp_path / "whole", steps=12, **fields)
    sft(files, tmp_path / "longer", steps=6, **fields)
    undone(tmp_path / "longer")
    if (
        schedule == "wsd"
    ):  # the decay of six steps has begun at the last of them: back to the one before
        shutil.rmtree(tmp_path / "longer" / "sft" / "checkpoints" / "step-00000006")
    sft(files, tmp_path / "longer", steps=12, resume=True, **fields)
    assert curve(tmp_path / "longer") == curve(tmp_path / "whole")
    one, other = (
        load_file(tmp_path / name / "sft" / "model" / "model.safetensors")
        for name in ("longer", "whole")
    )
    assert all(np.array_equal(one[name], other[name]) for name in other)
    said = [
        e["message"]
        for e in read(tmp_path / "longer" / "sft" / "events.jsonl")
        if e["event"] == "warning"
    ]
    assert "steps is 12 from here on; it was 6" in said


def test_a_finished_stage_goes_on_with_its_optimizer_and_its_data(
    files: Path, tmp_path: Path
) -> None:
    """Eight steps and four more are twelve, to the last bit, where the rate is constant; without
    the optimizer's state they are not."""
    fields: dict[str, Any] = {"save_every": 4, "warmup_steps": 0}
    sft(files, tmp_path / "whole", steps=12, **fields)
    sft(files, tmp_path / "first", steps=8, **fields)
    sft(files, tmp_path / "on", steps=4, model="", continue_from=str(tmp_path / "first"), **fields)
    assert [loss for _, loss, _ in curve(tmp_path / "first") + curve(tmp_path / "on")] == [
        loss for _, loss, _ in curve(tmp_path / "whole")
    ]
    one, other = (
        load_file(tmp_path / name / "sft" / "model" / "model.safetensors")
        for name in ("on", "whole")
    )
    assert all(np.array_equal(one[name], other[name]) for name in other)
    assert [step for step, _, _ in curve(tmp_path / "on")] == [1, 2, 3, 4]
    undone(tmp_path / "on")  # resumed, it goes on from its own checkpoint
    shutil.rmtree(tmp_path / "on" / "sft" / "checkpoints" / "step-00000004")
    sft(
        files,
        tmp_path / "on",
        steps=4,
        model="",
        continue_from=str(tmp_path / "first" / "sft"),
        resume=True,
        **{**fields, "save_every": 2},
    )
    again = load_file(tmp_path / "on" / "sft" / "model" / "model.safetensors")
    assert all(np.array_equal(again[name], other[name]) for name in other)


def test_an_adapter_goes_on_from_what_it_began_with(files: Path, tmp_path: Path) -> None:
    """It is no adapter on top of the first one: the same one, and its optimizer's state."""
    fields: dict[str, Any] = {"save_every": 4, "warmup_steps": 0, "adapter": "lora", "lora_rank": 2}
    sft(files, tmp_path / "whole", steps=12, **fields)
    sft(files, tmp_path / "first", steps=8, **fields)
    on: dict[str, Any] = {"model": "", "continue_from": str(tmp_path / "first"), "steps": 4}
    sft(files, tmp_path / "on", **{**fields, **on})
    assert [loss for _, loss, _ in curve(tmp_path / "first") + curve(tmp_path / "on")] == [
        loss for _, loss, _ in curve(tmp_path / "whole")
    ]
    one, other = (
        load_file(tmp_path / name / "sft" / "model" / "adapter_model.safetensors")
        for name in ("on", "whole")
    )
    assert sorted(one) == sorted(other)
    assert all(np.array_equal(one[name], other[name]) for name in other)
    for wrong, reason in (
        ({"lora_rank": 4}, "lora_rank: the finished stage has 2, and its optimizer's state"),
        ({"adapter": "none", "lora_rank": 16}, "adapter: the finished stage has lora"),
        (
            {"model": str(tmp_path / "first" / "sft" / "model")},
            "is not the model of .* its adapter",
        ),
    ):
        with pytest.raises(UserError, match=reason):
            sft(files, tmp_path / "other", **{**fields, **on, **wrong})


def test_what_cannot_go_on_is_refused(files: Path, tmp_path: Path) -> None:
    sft(files, tmp_path / "r", steps=2, warmup_steps=0)

    def refused(**changes: Any) -> str:
        with pytest.raises(UserError) as error:
            sft(
                files,
                tmp_path / "on",
                **{
                    "steps": 2,
                    "warmup_steps": 0,
                    "model": "",
                    "continue_from": str(tmp_path / "r"),
                    **changes,
                },
            )
        return str(error.value)

    assert "has no stage sft" in refused(continue_from=str(tmp_path / "nowhere"))
    assert "optimizer: the finished stage has adamw" in refused(optimizer="muon")
    assert "adapter: the finished stage has none" in refused(adapter="lora")
    assert "whose optimizer is to go on (leave it out)" in refused(model=str(files / "policy"))
    with pytest.raises(UserError, match="is complete, with steps 2, not 1") as error:
        sft(files, tmp_path / "r", steps=1, warmup_steps=0, resume=True)
    assert f"ondevice sft --continue {tmp_path / 'r' / 'sft'}" in error.value.hint
    shutil.rmtree(tmp_path / "r" / "sft" / "checkpoints" / "step-00000002")
    assert "the checkpoint of its result cannot be read" in refused()
    (tmp_path / "r" / "sft" / "done.json").unlink()
    assert "is not finished (--resume goes on with it" in refused()
    with pytest.raises(
        UserError, match="continue_from: has no effect: the reference is a stage's start"
    ):
        od.dpo(str(files / "policy"), str(files / "pairs.jsonl"), continue_from="x")


def test_what_the_schedule_does_not_allow_is_refused_with_the_reason(
    files: Path, tmp_path: Path
) -> None:
    sft(files, tmp_path / "r", steps=6, schedule="cosine", save_every=4)
    undone(tmp_path / "r")
    with pytest.raises(
        UserError, match="the 6 steps so far had the rates of a cosine schedule over 6 steps"
    ) as error:
        sft(files, tmp_path / "r", steps=12, schedule="cosine", save_every=4, resume=True)
    assert error.value.where == "steps" and "constant, or wsd" in error.value.hint
    with pytest.raises(UserError, match="6 steps are done already"):
        sft(files, tmp_path / "r", steps=5, schedule="cosine", save_every=4, resume=True)
    sft(files, tmp_path / "r", steps=6, schedule="cosine", save_every=4, resume=True)
    with pytest.raises(
        UserError, match="is complete, with steps 6, not 12, and its cosine schedule has ended"
    ) as error:
        sft(files, tmp_path / "r", steps=12, schedule="cosine", save_every=4, resume=True)
    assert "--continue" in error.value.hint


def test_a_finished_stage_of_a_constant_rate_goes_on_for_longer(
    files: Path, tmp_path: Path
) -> None:
    fields: dict[str, Any] = {"schedule": "constant", "save_every": 4}
    sft(files, tmp_path / "whole", steps=9, **fields)
    sft(files, tmp_path / "longer", steps=6, **fields)
    with pytest.raises(UserError, match="is complete, with seed 0, not 1"):
        sft(files, tmp_path / "longer", steps=9, seed=1, resume=True, **fields)
    sft(files, tmp_path / "longer", steps=9, resume=True, **fields)
    assert curve(tmp_path / "longer") == curve(tmp_path / "whole")
    one, other = (
        load_file(tmp_path / name / "sft" / "model" / "model.safetensors")
        for name in ("longer", "whole")
    )
    assert all(np.array_equal(one[name], other[name]) for name in other)
