"""What a stage says of its result: figures before the first step and after the last, over what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import ondevice as od
import small_stages
from ondevice.reports.achieved import achieved, worse
from ondevice.reports.report import ladder
from ondevice.runs.events import read
from ondevice.runs.folder import RunFolder
from ondevice.seam.select import load_backend


def test_in_words() -> None:
    pairs = {
        "before": {"loss": 0.6931, "accuracy": 0.5, "margin": 0.0},
        "measured": 30,
        "held": 5,
        "unit": "pairs",
        "after": {"loss": 0.52, "accuracy": 0.8, "margin": 0.43},
        "figure": "loss",
    }
    assert achieved(pairs) == (
        "accuracy 50.0% → 80.0%, margin 0.000 → 0.430, loss 0.6931 → 0.5200 at step 30, on 5 pairs"
    )
    assert achieved({**pairs, "held": 1}).endswith("on 1 pair")
    assert not worse(pairs, higher=False) and worse(
        {**pairs, "before": {"loss": 0.5}}, higher=False
    )
    assert worse({**pairs, "figure": "accuracy", "before": {"accuracy": 0.9}}, higher=True)
    old = {"after": {"loss": 2.0}, "measured": 3, "before": None, "figure": "loss"}
    assert achieved(old) == "loss 2.0000 at step 3" and not worse(old, higher=False)
    assert achieved({"after": {"loss": float("nan"), "reward": None}}) == achieved({}) == ""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_stages.make(
        tmp_path_factory.mktemp("achieved"), load_backend("torch", "cpu", "float32")
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "figures", "unit"),
    [
        ("reward", ["accuracy", "loss"], "pairs"),
        ("dpo", ["accuracy", "margin", "loss"], "pairs"),
        ("ppo", ["score", "kl"], "prompts"),
        ("grpo", ["reward"], "problems"),
    ],
)
def test_the_end_of_a_stage(
    stage: str,
    figures: list[str],
    unit: str,
    files: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In the terminal, in done.json and in the report; the figures are those of the weights that it
    gives.
    """
    getattr(od, stage)(
        **small_stages.settings(files, stage, tmp_path / "r", "torch", steps=3, warmup_steps=0)
    )
    [line] = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("  held out ")
    ]
    done: dict[str, Any] = json.loads((tmp_path / "r" / stage / "done.json").read_text())["outcome"]
    assert achieved(done) in line and "tokens" not in line
    held = 3  # a tenth of thirty prompts; of pairs by their hash
    assert done["unit"] == unit and (
        done["held"] == held or unit == "pairs" and 0 < done["held"] < 10
    )
    for name in figures:
        assert (
            f"{name} " in line
            and done["before"][name] is not None
            and done["after"][name] is not None
        )
    assert line.count("→") >= len(figures)
    if stage == "ppo":
        steps = [e for e in read(tmp_path / "r" / "ppo" / "events.jsonl") if e["event"] == "step"]
        parts = [f"{part}_seconds" for part in ("sampling", "scoring", "rewards", "update")]
        assert all(0 <= sum(step[part] for part in parts) <= step["seconds"] for step in steps)
    if stage == "dpo":  # a policy that is its reference tells no pair apart
        # up to rounding: the reference was scored in batches of another size
        assert done["before"]["margin"] == pytest.approx(0, abs=1e-5)
        assert done["before"]["loss"] == pytest.approx(0.6931, abs=1e-4)
    assert f"{stage}: held out: {achieved(done)}" in " ".join(
        ladder(RunFolder(tmp_path / "r")).split()
    )
