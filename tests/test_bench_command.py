"""`ondevice bench`: every stage's standard case runs on both backends, and the block names the machine."""

from __future__ import annotations

import json
from typing import Any

import pytest

import ondevice as od
from ondevice import cli
from ondevice.benchmark import cases
from ondevice.benchmark.standard import render
from ondevice.common.errors import UserError
from ondevice.common.processor import processor_name

TINY = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
STAGES = ["pretrain", "sft", "reward", "dpo", "ppo", "grpo", "generate", "generate"]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cases.SHAPES, "10M", TINY)
    monkeypatch.setattr(cases, "LENGTH", 24)
    monkeypatch.setattr(cases, "PROMPT", 8)
    monkeypatch.setattr(cases, "WRITTEN", 4)


@pytest.mark.slow
def test_every_stage_is_timed(backend_name: str) -> None:
    heard: list[str] = []
    result: dict[str, Any] = od.bench(
        sizes=("10M",), seconds=0.1, backend=backend_name, device="cpu", tell=heard.append
    )
    rows = result["sizes"]["10M"]
    assert [row["stage"] for row in rows] == STAGES and len(heard) == len(STAGES)
    for row in rows:
        low, high = row["spread"]
        assert 0 < low <= row["tokens_per_second"] <= high and row["runs"] >= 2
    assert result["machine"]["backend"] == backend_name and result["machine"]["processor"]
    block = render(result)
    assert processor_name() in block and block.count("\n|") == 2 + len(STAGES)
    json.dumps(result)


def test_the_command_prints_the_block_and_refuses_what_it_does_not_know(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["bench", "--sizes", "10M", "--seconds", "0.1", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert "| 10M | rows at once | tokens/s |" in out and "10M grpo" in err
    assert cli.main(["bench", "--sizes", "7B"]) == 2
    assert "known: 10M, 135M" in capsys.readouterr().err
    with pytest.raises(UserError, match="too small"):
        od.bench(seconds=0)
