"""Ten steps of every stage that trains give the losses that they gave before.

A change that is not about numbers keeps them: `scripts/same_results.py` shows it to the bit on one
machine. Here the losses stand in a file and are compared within a thousandth, since other
processors round otherwise. A change that means to move them writes the file anew and says why:

    UPDATE_TEN_STEPS=1 python -m pytest tests/test_ten_steps.py -n 0
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

import ondevice as od
import small_stages
from device import backend_of
from ondevice.runs.events import read

FILE = Path(__file__).parent / "ten_steps.json"
# Learning-rate schedules and what is small in `small_stages` stay as they are there.
STEPS = {"steps": 10}
TRAINING = {"pretrain": od.pretrain, "sft": od.sft, "reward": od.reward, "dpo": od.dpo}
ROLLOUTS = {"ppo": od.ppo, "grpo": od.grpo}


# Where a stage samples, one rounding at the edge between two tokens gives another text from there
# on: the two backends themselves part after three steps.
COMPARED = {"ppo": 3, "grpo": 3}


def losses(stage: Path) -> list[float]:
    """The loss of each step."""
    return [e["loss"] for e in read(stage / "events.jsonl") if e["event"] == "step"]


@pytest.mark.slow
def test_ten_steps_of_each_stage(tmp_path: Path, backend_name: str) -> None:
    files = small_stages.make(tmp_path / "files", backend_of(backend_name))
    (files / "text.txt").write_text("Anna eats pears in Rome. Ben has 12 green apples. " * 60)
    found = {}
    for stage, function in {**TRAINING, **ROLLOUTS}.items():
        if stage in small_stages.STAGES:
            fields = small_stages.settings(files, stage, tmp_path / stage, backend_name, **STEPS)
            if stage != "ppo":  # whose losses stand there with chats beside
                fields = small_stages.alone(fields)
        else:
            data = files / ("text.txt" if stage == "pretrain" else "chats.jsonl")
            fields = {
                **small_stages.LOOP,
                "model": files / "policy",
                "data": data,
                "out": tmp_path / stage,
                "backend": backend_name,
                "dtype": "float32",
                "batch_size": 4,
                "sequence_length": 32,
                **STEPS,
            }
        function(**fields)
        found[stage] = losses(tmp_path / stage / stage)
    known = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}
    if os.environ.get("UPDATE_TEN_STEPS"):
        known[backend_name] = {
            stage: [float(f"{loss:.7g}") for loss in each] for stage, each in found.items()
        }
        lines = json.dumps(known).replace("{", "{\n").replace("], ", "],\n").replace("}", "\n}")
        FILE.write_text(lines + "\n", encoding="utf-8")
    assert set(found) == set(known[backend_name])
    for stage, each in found.items():
        assert len(each) == 10 and all(map(math.isfinite, each)), stage
        first = COMPARED.get(stage, 10)
        before = known[backend_name][stage][:first]
        assert each[:first] == pytest.approx(before, rel=1e-3, abs=1e-4), stage
