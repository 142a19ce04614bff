"""Settings without effect: each field of each stage is read by its stage, or says when it has an
effect and is refused where it has none, from flags, YAML, `--set`, the Python API and the app's
form alike."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import ondevice as od
import small_stages
from data_samples import small_tokenizer
from ondevice import cli
from ondevice.common.errors import UserError
from ondevice.config.command_line import make_config, take_apart
from ondevice.config.effects import effects, idle
from ondevice.config.finetuning import SFTConfig
from ondevice.config.load import from_mapping, to_mapping
from ondevice.config.preference import DPOConfig, GRPOConfig
from ondevice.config.recipe import STAGES, load_recipe, recipe_names, stage_defaults
from ondevice.config.verbs import VERBS
from ondevice.seam.select import load_backend

LORA: dict[str, Any] = {"adapter": "lora"}
# Field, or stage-field, → (a value that is not its default, settings beside which it has an
# effect). One that has none in a stage whatever stands beside it has no settings here.
EFFECTS: dict[str, tuple[Any, dict[str, Any] | None]] = {
    "muon_learning_rate": (0.5, {"optimizer": "muon"}),
    "decay_fraction": (0.5, {"schedule": "wsd"}),
    "final_lr_fraction": (0.5, {}),
    "push_to": ("me/x", {"push_every": 5}),
    "patience": (3, {}),
    "take_best": (True, {}),
    "warmup_steps": (5000, {"steps": 6000}),
    "steps": (7, {}),
    "ppo-steps": (7, {}),
    "epochs": (3.0, {}),
    "prompt_epochs": (3.0, {}),
    "lora_rank": (4, LORA),
    "lora_alpha": (4.0, LORA),
    "lora_rslora": (True, LORA),
    "lora_targets": (("q_proj",), LORA),
    "lora_whole": (("lm_head",), LORA),
    "merge": (True, LORA),
    "replay_share": (0.5, {"replay": "builtin"}),
    "vocab_size": (500, {}),
    "data": ("x.txt", {}),
    "limit": (5, {}),
    "embedding_std": (0.1, {}),
    "right": (2.0, {}),
    "courtesy": (2.0, {}),
    "rewards": (("finished",), {}),
    "reward_weights": ((2.0,), {"rewards": ("finished",)}),
    "answer": ("hash", {"rewards": ("format",)}),
    "needed": (5, {"rater": "person"}),
    "held_share": (0.2, {}),
    "gamma": (0.9, {"loss_type": "simpo"}),
    "desirable_weight": (2.0, {"loss_type": "kto"}),
    "undesirable_weight": (2.0, {"loss_type": "kto"}),
    "label_smoothing": (0.1, {}),
    "target_kl": (0.5, {}),
    "value_clip": (0.5, {}),
    "sft_data": ("x", {"sft_coef": 1.0}),
    "pair_data": ("x", {"pair_coef": 1.0}),
    "pair_batch": (4, {"pair_coef": 1.0}),
    "pair_beta": (0.2, {"pair_coef": 1.0}),
    "scale_rewards": ("batch", {}),
    "ppo-clip": (0.3, {}),
    "clip": (0.3, {"updates": 2}),
    "clip_high": (0.3, {"updates": 2}),
    "reward_timeout": (5.0, {"reward_file": "reward.py"}),
    "code_reward": ("share", {"rewards": ("code",)}),
    "code_seconds": (2.0, {"rewards": ("code",)}),
    "code_memory": (256, {"rewards": ("code",)}),
    "sample_every": (5, None),
    "sample_prompts": ("Who?", None),
    "batch_size": (2, None),
    "partition": (32, {"loss_type": "bnpo"}),
    "sft_batch": (8, {"sft_coef": 1.0}),
    "eval_batches": (3, None),
    "continue_from": ("runs/x", None),
    "columns": (("prompt=ask",), {"data": "x.jsonl"}),
    "bad_share": (0.5, {"data": "x.jsonl"}),
}
# Settings beside which a field that mostly has an effect has none.
NONE: dict[str, dict[str, Any]] = {
    "final_lr_fraction": {"schedule": "constant"},
    "patience": {"eval_every": 0},
    "take_best": {"eval_every": 0},
    "steps": {"epochs": 2.0},
    "epochs": {"steps": 5},
    "ppo-steps": {"prompt_epochs": 2.0},
    "prompt_epochs": {"steps": 5},
    "warmup_steps": {"steps": 5},
    "vocab_size": {"tokenizer": "t"},
    "data": {"tokenizer": "t"},
    "limit": {"tokenizer": "t"},
    "embedding_std": {"tie_word_embeddings": True},
    "right": {"rater": "person"},
    "courtesy": {"rater": "person"},
    "rewards": {"rater": "person"},
    "held_share": {"validation": "v.jsonl"},
    "label_smoothing": {"loss_type": "hinge"},
    "columns": {"data": "builtin"},
    "bad_share": {"data": "builtin"},
    "target_kl": {"kl_coef": 0},
    "value_clip": {"value_coef": 0},
    "ppo-clip": {"epochs": 1},
    "scale_rewards": {"loss_type": "dr_grpo"},
}
CASES = [(stage, name) for stage, cls in STAGES.items() for name in effects(cls)]


@pytest.mark.parametrize(("stage", "name"), CASES, ids=[f"{stage}-{name}" for stage, name in CASES])
def test_what_has_no_effect_is_refused_by_name(stage: str, name: str) -> None:
    key = f"{stage}-{name}" if f"{stage}-{name}" in EFFECTS else name
    (value, beside), none = EFFECTS[key], NONE.get(key, {})
    with pytest.raises(UserError) as refused:
        from_mapping(STAGES[stage], {name: value, **none})
    # of two that say the same thing either is named
    assert refused.value.where in (name, *({"steps"} & set(none)))
    assert "has no effect" in refused.value.message
    if name not in STAGES[stage].without_effect:
        assert beside is not None
        assert getattr(from_mapping(STAGES[stage], {name: value, **beside}), name) == value
    plain = STAGES[stage]()  # a default is nobody's wish
    assert not list(idle(dataclasses.replace(plain, **none)))


@pytest.mark.parametrize(
    ("stage", "settings", "where"),
    [
        ("ppo", {"epochs": 1, "value_clip": 0.3}, "value_clip"),
        ("sft", {"replay": "x", "replay_share": 0}, "replay"),
        (
            "sft",
            {"schedule": "wsd", "decay_fraction": 0, "final_lr_fraction": 0.5},
            "final_lr_fraction",
        ),
        ("grpo", {"rewards": ["length", "format"], "reward_weights": [0, 0]}, "reward_weights"),
    ],
)
def test_what_stands_beside_a_setting_may_take_its_effect(
    stage: str, settings: dict[str, Any], where: str
) -> None:
    with pytest.raises(UserError) as refused:
        from_mapping(STAGES[stage], settings)
    assert refused.value.where == where


def test_refused_from_every_door(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sft", "m", "--lora-rank", "4"]) == 2
    assert (
        "--lora-rank: has no effect: there is no adapter (give --adapter lora too)"
        in capsys.readouterr().err
    )
    assert cli.main(["grpo", "m", "--set", "batch_size=2"]) == 2
    assert "--batch-size: has no effect" in capsys.readouterr().err
    with pytest.raises(UserError, match="gamma: has no effect"):
        od.dpo("m", "p.jsonl", gamma=1.0)
    with pytest.raises(UserError, match="gamma: has no effect"):
        od.dpo(cfg=DPOConfig(model="m", gamma=1.0))
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump({"stages": {"sft": {"model": "m", "lora_rank": 4}}}))
    with pytest.raises(UserError, match=r"r\.yaml: stages\.sft\.lora_rank: has no effect"):
        load_recipe(str(recipe))
    recipe.write_text(yaml.safe_dump({"stages": {"sft": {"model": "m"}}}))
    with pytest.raises(UserError, match=r"stages\.sft\.lora_rank: has no effect"):
        load_recipe(str(recipe), ["sft.lora_rank=4"])


@pytest.mark.parametrize(("field", "value"), [("out", "x"), ("resume", True)])
def test_what_is_a_whole_runs_is_refused_in_a_stage_of_its_recipe(
    field: str, value: Any, tmp_path: Path
) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump({"stages": {"sft": {"model": "m", field: value}}}))
    with pytest.raises(UserError, match=rf"stages\.sft\.{field}: has no effect in a recipe"):
        load_recipe(str(recipe))
    with pytest.raises(UserError, match=rf"stages\.sft\.{field}: has no effect in a recipe"):
        load_recipe("tiny", [f"sft.{field}={value}"])


def test_what_a_recipe_has_filled_in_is_nobodys_wish() -> None:
    """tiny's rate of Muon is left out where a person takes AdamW, and refused where they give it
    themselves.
    """
    verb = VERBS["sft"]
    filled = stage_defaults("sft", "tiny")
    assert (
        filled.optimizer == "muon" and filled.muon_learning_rate != SFTConfig().muon_learning_rate
    )

    def made(*words: str) -> Any:
        return make_config(
            verb, SFTConfig, take_apart(verb, SFTConfig, ["m", "--recipe", "tiny", *words])
        )

    assert made("--optimizer", "adamw").muon_learning_rate == SFTConfig().muon_learning_rate
    with pytest.raises(UserError, match="muon.learning.rate: has no effect"):
        made("--optimizer", "adamw", "--muon-learning-rate", "0.01")
    sft = load_recipe("tiny", ["sft.optimizer=adamw", "sft.steps=5"]).stages["sft"]
    assert isinstance(sft, SFTConfig) and (sft.optimizer, sft.warmup_steps) == ("adamw", "auto")
    with pytest.raises(UserError, match="warmup_steps: has no effect"):
        load_recipe("tiny", ["sft.steps=5", "sft.warmup_steps=9"])


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_have_no_idle_settings(name: str) -> None:
    for cfg in load_recipe(name).stages.values():
        assert list(idle(cfg)) == []
        # what a run folder's recipe.yaml gives back
        assert from_mapping(type(cfg), to_mapping(cfg)) == cfg


# ---- what a stage reads ---------------------------------------------------------------------------------------------

ELSEWHERE = {
    "out": "the run folder is found before the stage begins",
    "backend": "likewise",
    "device": "likewise",
    "dtype": "likewise",
    "resume": "likewise",
}


def recording(cls: type, read: set[str], **values: Any) -> Any:
    """A config that writes down which of its fields are read, but by itself, by copies and by what
    writes all down.
    """
    names = {f.name for f in dataclasses.fields(cls)}

    def get(self: Any, name: str) -> Any:
        if name in names:
            code = sys._getframe(1).f_code
            # what a stage asks of it
            itself = "/ondevice/config/" in code.co_filename and code.co_name != "judges"
            if not itself and "dataclasses" not in code.co_filename:
                read.add(name)
        return object.__getattribute__(self, name)

    return type(cls.__name__, (cls,), {"__getattribute__": get})(
        **from_mapping(cls, values).__dict__
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = small_stages.make(
        tmp_path_factory.mktemp("effects"), load_backend("torch", "cpu", "float32")
    )
    (made / "text.txt").write_text(
        "\n\n".join(f"Anna has {n} red pears in Rome." for n in range(60))
    )
    (made / "classes.jsonl").write_text(
        "\n".join(
            json.dumps({"text": f"Anna {n}", "label": "even" if n % 2 else "odd"})
            for n in range(30)
        )
    )
    small_tokenizer().save(made / "tokenizer") if not (made / "tokenizer").exists() else None
    return made


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage", ["init", "pretrain", "classify", "sft", "sample", "reward", "dpo", "ppo", "grpo"]
)
def test_every_field_is_read_by_its_stage(stage: str, files: Path, tmp_path: Path) -> None:
    """Fields that always have an effect are read in a plain run; a field that nothing reads does
    nothing.
    """
    read: set[str] = set()
    common = {"out": str(tmp_path / "r"), "backend": "torch", "device": "cpu"}
    loop = {
        "steps": 3,
        "eval_every": 1,
        "save_every": 2,
        "batch_size": 4,
        "model": str(files / "policy"),
    }
    fields: dict[str, Any] = {
        "init": {"data": str(files / "text.txt"), "vocab_size": 300},
        "pretrain": {**loop, "data": str(files / "text.txt"), "sequence_length": 16},
        "classify": {**loop, "data": str(files / "classes.jsonl"), "sequence_length": 16},
        "sft": {
            **loop,
            "data": str(files / "chats.jsonl"),
            "sequence_length": 32,
            "replay": str(files / "text.txt"),
        },
        "sample": {
            "model": str(files / "policy"),
            "data": str(files / "prompts.jsonl"),
            "max_new_tokens": 8,
            "temperature": 3.0,
        },
    }.get(stage) or {**small_stages.settings(files, stage, tmp_path / "r", "torch"), "steps": 3}
    cls = STAGES[stage]
    getattr(od, stage)(cfg=recording(cls, read, **{**fields, **common}))
    always = {f.name for f in dataclasses.fields(cls)} - set(effects(cls)) - set(ELSEWHERE)
    assert always - read == set()


def test_grpo_keeps_what_is_dapos() -> None:
    assert from_mapping(GRPOConfig, {"updates": 2, "clip_high": 0.28}).clip_high == 0.28
