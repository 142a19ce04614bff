"""The recipe `minute` of an encoder, whole, and that of an encoder-decoder, shortened, on the
backend that the machine takes by itself: that both compute the same is held stage by stage
(test_encoder, test_classify, test_corruption)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import ondevice as od
from ondevice.common.errors import UserError
from ondevice.config.recipe import load_recipe, recipe_for
from ondevice.runs import events

ARCHITECTURES = ("encoder", "seq2seq")


def marks(run: Path) -> dict[str, Any]:
    return {
        stage.parent.name: json.loads(stage.read_text())["marks"]
        for stage in run.glob("*/done.json")
    }


@pytest.mark.parametrize("size", ["minute", "tiny"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_recipes_load(size: str, arch: str) -> None:
    found = load_recipe(recipe_for(size, arch))
    assert next(iter(found.stages)) == "init" and "pretrain" in found.stages


def test_a_recipe_that_an_architecture_has_not_is_named() -> None:
    assert recipe_for("own.yaml", "decoder") == "own.yaml"
    with pytest.raises(UserError, match="own.yaml has no recipe for an encoder"):
        recipe_for("own.yaml", "encoder")


@pytest.mark.parametrize(
    ("recipe", "family", "said"),
    [
        ("minute", "t5", "no reward"),
        ("minute", "modernbert", "no sft"),
        ("minute-encoder", "bart", "no classify"),
        ("minute-seq2seq", "bert", "no sft"),
    ],
)
def test_a_family_that_a_recipe_is_not_for_is_named_before_it_begins(
    recipe: str, family: str, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        load_recipe(recipe, sets=[f"stages.init.family={family}"])
    assert load_recipe("minute-seq2seq", sets=["stages.init.family=t5"]).stages


@pytest.mark.slow
def test_an_encoders_ladder_climbs(tmp_path: Path) -> None:
    run = od.run("minute", arch="encoder", out=tmp_path / "r", device="cpu")
    found = marks(run)
    assert found["init"]["masked_accuracy"] < 0.1
    assert found["pretrain"]["masked_accuracy"] > 0.5
    assert (
        found["classify"]["classes"]["accuracy"]
        > 0.95
        > found["classify"]["classes"]["most_frequent"]
    )
    assert found["reward"]["interval"][0] > 0.5
    ladder = (run / "report.md").read_text()
    assert f"{found['pretrain']['masked_accuracy']:.1%}" in ladder and "masked tokens" in ladder


@pytest.mark.slow
def test_an_encoder_decoder_walks_the_whole_road(tmp_path: Path) -> None:
    """Shortened: what the recipe reaches is told in docs/results/architectures.md."""
    sets = [
        "pretrain.steps=60",
        "pretrain.eval_every=20",
        "sft.steps=90",
        "sft.eval_every=30",
        "sample.prompts=120",
        "dpo.steps=6",
        "dpo.learning_rate=4.0e-4",
        "dpo.warmup_steps=1",
        "dpo.eval_every=3",
        "grpo.steps=2",
        "grpo.eval_every=1",
    ]
    run = od.run(
        "minute",
        arch="seq2seq",
        out=tmp_path / "r",
        device="cpu",
        sets=[f"stages.{one}" for one in sets] + ["exam.problems=20", "exam.duels=20"],
    )
    found = marks(run)
    for stage, below in (
        ("pretrain", 5.0),
        ("sft", 2.0),
    ):  # a vocabulary of 544: 6.3 nats by guessing
        losses = [
            e["loss"] for e in events.read(run / stage / "events.jsonl") if e["event"] == "eval"
        ]
        assert losses == sorted(losses, reverse=True) and losses[-1] < below
    learned = [
        e["margin"] for e in events.read(run / "dpo" / "events.jsonl") if e["event"] == "step"
    ]
    # so few pairs are held out that they say nothing
    assert found["rate"]["votes"] > 0 and abs(learned[0]) < 1e-5 and learned[-1] > 0.2
    ladder = (run / "report.md").read_text()
    assert all(
        f"| {stage} |" in ladder
        for stage in ("init", "pretrain", "sft", "sample", "rate", "dpo", "grpo")
    )
