"""What a model is asked through training: prompts of one's own, else the first that are held out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import ondevice as od
import small_stages
from ondevice.common.errors import UserError
from ondevice.config.finetuning import SFTConfig
from ondevice.config.load import from_mapping
from ondevice.inference.fixed_prompts import given_prompts
from ondevice.runs.events import read, read_at
from ondevice.runs.folder import StageFolder
from ondevice.seam.select import load_backend


def test_prompts_are_given_in_one_setting_or_in_a_file(tmp_path: Path) -> None:
    assert given_prompts("") == ()
    assert given_prompts("One, two? | Once upon a time… |") == ("One, two?", "Once upon a time…")
    assert given_prompts('["a | b, c", "d"]') == ("a | b, c", "d")
    assert given_prompts("[1, 2] and then") == ("[1, 2] and then",)
    assert given_prompts("[1, 2]") == ("[1, 2]",)
    file = tmp_path / "asked.txt"
    file.write_text("Who | what?\n\nWhere?\n")
    assert given_prompts(str(file)) == ("Who | what?", "Where?")
    file.write_text("many\n" * 100)
    assert len(given_prompts(str(file))) == 20
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="cannot be read"):
        given_prompts(str(file))
    with pytest.raises(UserError, match="has no prompt"):
        given_prompts(" | ")


def test_prompts_are_given_as_a_list(tmp_path: Path) -> None:
    listed = from_mapping(SFTConfig, {"model": "m", "sample_prompts": ["a | b", "c"]})
    assert given_prompts(listed.sample_prompts) == ("a | b", "c")
    assert from_mapping(SFTConfig, {"model": "m", "sample_prompts": []}).sample_prompts == ""
    for odd, words in (('["a", 1]', "1 is not a prompt"), ('["a",', "is not a JSON list")):
        with pytest.raises(UserError, match=words) as caught:
            from_mapping(SFTConfig, {"model": "m", "sample_prompts": odd})
        assert caught.value.where == "sample_prompts"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_stages.make(
        tmp_path_factory.mktemp("asked"), load_backend("torch", "cpu", "float32")
    )


def answered(stage: StageFolder) -> tuple[list[list[Any]], list[Any]]:
    """(the answers through training, those at the end)."""
    through = [
        read_at(stage.samples, event["offset"])["answers"]
        for event in read(stage.events)
        if event["event"] == "sample"
    ]
    return through, json.loads(stage.done.read_text())["answers"]


def run_sft(files: Path, out: Path, **changes: Any) -> tuple[list[list[Any]], list[Any]]:
    data = files / "few chats.jsonl"
    rows = []
    for n in range(30):
        turns = [
            ("user", f"{n} pears?"),
            ("assistant", "red"),
            ("user", "Rome?"),
            ("assistant", "12"),
        ]
        rows.append({"messages": [{"role": role, "content": text} for role, text in turns]})
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    od.sft(
        str(files / "policy"), str(data), out=str(out), steps=2, batch_size=4, warmup_steps=0,
        device="cpu", backend="torch", sample_every=1, **changes,
    )  # fmt: skip
    return answered(StageFolder(out / "sft"))


def test_a_stage_alone_asks_the_first_chats_that_are_held_out(files: Path, tmp_path: Path) -> None:
    through, end = run_sft(files, tmp_path / "r")
    prompts = [one["prompt"] for one in end]
    assert len(prompts) == 3 and len(through) == 2
    assert all(prompt.endswith("pears?") for prompt in prompts), prompts
    assert [[one["prompt"] for one in answers] for answers in through] == [prompts] * 2


def test_prompts_of_ones_own_come_first(files: Path, tmp_path: Path) -> None:
    _, end = run_sft(files, tmp_path / "r", sample_prompts="Rome? | Anna has…")
    assert [one["prompt"] for one in end] == ["Rome?", "Anna has…"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["dpo", "grpo", "ppo"])
def test_other_stages_too(stage: str, files: Path, tmp_path: Path) -> None:
    settings = small_stages.settings(files, stage, tmp_path / "r", "torch", steps=1, warmup_steps=0)
    getattr(od, stage)(**settings)
    _, end = answered(StageFolder(tmp_path / "r" / stage))
    assert 0 < len(end) <= 3 and all(one["prompt"] for one in end)
