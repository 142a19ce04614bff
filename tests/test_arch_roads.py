"""The recipe `minute` of an encoder and of an encoder-decoder, whole, on both backends: each ladder climbs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import ondevice as od
from ondevice.config.recipe import load_recipe, recipe_for
from ondevice.errors import UserError

ARCHITECTURES = ("encoder", "seq2seq")


def marks(run: Path) -> dict[str, Any]:
    return {stage.parent.name: json.loads(stage.read_text())["marks"] for stage in run.glob("*/done.json")}


@pytest.mark.parametrize("size", ["minute", "tiny"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_recipes_load(size: str, arch: str) -> None:
    found = load_recipe(recipe_for(size, arch))
    assert next(iter(found.stages)) == "init" and "pretrain" in found.stages


def test_a_recipe_that_an_architecture_has_not_is_named() -> None:
    assert recipe_for("own.yaml", "decoder") == "own.yaml"
    with pytest.raises(UserError, match="own.yaml has no recipe for an encoder"):
        recipe_for("own.yaml", "encoder")


@pytest.mark.slow
def test_an_encoders_ladder_climbs(tmp_path: Path, backend_name: str) -> None:
    run = od.run("minute", arch="encoder", out=tmp_path / "r", backend=backend_name, device="cpu")
    found = marks(run)
    assert found["init"]["masked_accuracy"] < 0.1
    assert found["pretrain"]["masked_accuracy"] > 0.5
    assert found["classify"]["classes"]["accuracy"] > 0.95 > found["classify"]["classes"]["most_frequent"]
    assert found["reward"]["interval"][0] > 0.5
    ladder = (run / "report.md").read_text()
    assert f"{found['pretrain']['masked_accuracy']:.1%}" in ladder and "masked tokens" in ladder


@pytest.mark.slow
def test_an_encoder_decoders_ladder_climbs(tmp_path: Path, backend_name: str) -> None:
    run = od.run("minute", arch="seq2seq", out=tmp_path / "r", backend=backend_name, device="cpu")
    found = marks(run)
    assert found["init"]["exact_match"] < 0.05 and found["sft"]["exact_match"] > found["init"]["exact_match"] + 0.1
    assert found["grpo"]["reasoning"]["accuracy"] >= found["sft"]["reasoning"]["accuracy"]
