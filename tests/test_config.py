from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from ondevice.common.errors import UserError
from ondevice.config.evaluation import EvalConfig
from ondevice.config.finetuning import SFTConfig
from ondevice.config.load import (
    apply_set,
    dump_yaml,
    from_mapping,
    parse_yaml,
    read_yaml,
    to_mapping,
)
from ondevice.config.recipe import STAGES, load_recipe, recipe_names, stage_defaults
from ondevice.config.runs import RunConfig
from ondevice.config.use import ChatConfig, GenerateConfig


@dataclass(frozen=True)
class Inner:
    rate: float = 1.0


@dataclass(frozen=True)
class Outer:
    name: str
    on: bool = False
    count: int | None = None
    kind: Literal["a", "bee"] = "a"
    words: tuple[str, ...] = ()
    shares: dict[str, float] = field(default_factory=dict)
    inner: Inner = Inner()
    path: Path = Path()


def test_a_mapping_becomes_a_config_and_back() -> None:
    mapping = {
        "name": "n",
        "on": True,
        "count": 3,
        "kind": "bee",
        "words": ["x", "y"],
        "shares": {"p": 0.5},
        "inner": {"rate": 2.0},
        "path": "q",
    }
    made = from_mapping(Outer, mapping)
    assert made == Outer("n", True, 3, "bee", ("x", "y"), {"p": 0.5}, Inner(2.0), Path("q"))
    assert to_mapping(made) == mapping
    assert parse_yaml(dump_yaml(mapping), "") == mapping


@pytest.mark.parametrize(
    ("text", "value"), [("3e-4", 3e-4), ("3.0e-4", 3e-4), ("5", 5.0), ("1_000", 1000.0)]
)
def test_every_spelling_of_a_number_is_one(text: str, value: float) -> None:
    assert from_mapping(Inner, parse_yaml(f"rate: {text}", "")).rate == value


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        ({}, "f.yaml: name: is missing"),
        ({"name": "n", "onn": 1}, "f.yaml: unknown key 'onn' (did you mean 'on'?)"),
        ({"name": 3}, "f.yaml: name: expected text (put it in quotes), got 3"),
        ({"name": "n", "on": "yes"}, "f.yaml: on: expected true or false, got 'yes'"),
        ({"name": "n", "on": 1}, "f.yaml: on: expected true or false, got 1"),
        ({"name": "n", "count": True}, "f.yaml: count: expected a whole number, got True"),
        ({"name": "n", "count": 2.5}, "f.yaml: count: expected a whole number, got 2.5"),
        ({"name": "n", "count": "inf"}, "f.yaml: count: expected a whole number, got 'inf'"),
        (
            {"name": "n", "kind": "be"},
            "f.yaml: kind: 'be' is none of its values (did you mean 'bee'? known: a, bee)",
        ),
        ({"name": "n", "kind": []}, "f.yaml: kind: [] is none of its values (known: a, bee)"),
        ({"name": "n", "words": "x"}, "f.yaml: words: expected a list, got 'x'"),
        (
            {"name": "n", "words": ["x", 3]},
            "f.yaml: words[1]: expected text (put it in quotes), got 3",
        ),
        ({"name": "n", "shares": {"p": "much"}}, "f.yaml: shares.p: expected a number, got 'much'"),
        (
            {"name": "n", "shares": {"p": float("nan")}},
            "f.yaml: shares.p: expected a number, got nan",
        ),
        (
            {"name": "n", "inner": {"rat": 1}},
            "f.yaml: inner: unknown key 'rat' (did you mean 'rate'?)",
        ),
        ({"name": "n", "inner": 3}, "f.yaml: inner: expected keys and values, got 3"),
    ],
)
def test_what_is_wrong_is_named(mapping: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        from_mapping(Outer, mapping, "f.yaml")
    assert str(caught.value) == said


def test_a_value_out_of_range_is_named_with_its_place() -> None:
    with pytest.raises(UserError, match=r"^f\.yaml: stages\.sft\.steps: 0 is too small"):
        from_mapping(SFTConfig, {"steps": 0}, "f.yaml: stages.sft")


def test_set_reaches_any_depth_and_reads_values_as_yaml() -> None:
    mapping: dict[str, Any] = {"a": {"b": 1}, "x": 1}
    for assignment in ("a.b=2", "a.new.deep=true", "a-b=[1, two]", "t=", "u=a: b: c", "v=x=y"):
        apply_set(mapping, assignment)
    assert mapping == {
        "a": {"b": 2, "new": {"deep": True}},
        "x": 1,
        "a_b": [1, "two"],
        "t": "",
        "u": "a: b: c",
        "v": "x=y",
    }
    for wrong, said in (
        ("a", "not KEY=VALUE"),
        ("=3", "not KEY=VALUE"),
        ("a..b=3", "not KEY=VALUE"),
        ("x.y=3", "x has no keys inside"),
    ):
        with pytest.raises(UserError, match=said):
            apply_set(mapping, wrong)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\na: 2\n", "f.yaml:2: is not valid YAML: the key 'a' stands twice"),
        ("a: [1\n", "f.yaml:2: is not valid YAML"),
        ("- 1\n", "f.yaml: expected keys and values"),
        ("a: !!python/object/apply:os.getcwd []\n", "f.yaml:1: is not valid YAML"),
    ],
)
def test_yaml_that_cannot_be_used(text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_yaml(text, "f.yaml")
    assert str(caught.value).startswith(said)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    for path, said in (
        (tmp_path / "no.yaml", "no such file"),
        (tmp_path / "b.yaml", "not UTF-8"),
        (tmp_path, "cannot be read"),
    ):
        with pytest.raises(UserError, match=said):
            read_yaml(path)


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_load_and_a_run_folder_s_recipe_is_the_same(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert list(recipe.stages) == [stage for stage in STAGES if stage in recipe.stages]
    assert recipe.describe and recipe.prompts
    written = {**recipe.mapping(), "versions": {"numpy": "2"}, "machine": "m"}
    (tmp_path / "recipe.yaml").write_text(dump_yaml(written), encoding="utf-8")
    assert load_recipe(str(tmp_path / "recipe.yaml")) == recipe
    assert load_recipe(str(tmp_path)) == recipe


def test_sets_and_shared_settings() -> None:
    sets = [
        "sft.steps=5",
        "stages.pretrain.learning_rate=1e-5",
        "corpus.people=9",
        "dtype=float32",
        "sft.seed=4",
    ]
    recipe = load_recipe("tiny", sets, backend="torch")
    sft, pretrain = recipe.stages["sft"], recipe.stages["pretrain"]
    assert isinstance(sft, SFTConfig)
    assert (sft.steps, sft.dtype, sft.seed, sft.backend) == (5, "float32", 4, "torch")
    assert to_mapping(pretrain)["learning_rate"] == 1e-5 and recipe.corpus.people == 9
    again = load_recipe("tiny", ["sft.seed=4"], seed=7, backend="auto")
    assert again.seed == 7 and {cfg.seed for cfg in again.stages.values()} == {7}


@pytest.mark.parametrize(
    ("name", "sets", "said"),
    [
        ("tinny", [], "unknown recipe 'tinny' (did you mean 'tiny'? Or give a .yaml file)"),
        ("no.yaml", [], "no.yaml: no such file"),
        ("tiny", ["stf.steps=3"], "tiny.yaml: unknown key 'stf' (did you mean 'sft'?)"),
        (
            "tiny",
            ["sft.stepz=3"],
            "tiny.yaml: stages.sft: unknown key 'stepz' (did you mean 'steps'?)",
        ),
        (
            "tiny",
            ["stages.stf.steps=3"],
            "tiny.yaml: stages: unknown stage 'stf' (did you mean 'sft'?)",
        ),
        (
            "tiny",
            ["sft.steps=abc"],
            "tiny.yaml: stages.sft.steps: expected auto or a whole number, got 'abc'",
        ),
        (
            "tiny",
            ["corpus.peple=3"],
            "tiny.yaml: corpus: unknown key 'peple' (did you mean 'people'?)",
        ),
        (
            "tiny",
            ["stages=3"],
            "tiny.yaml: stages: names no stage (known: init, pretrain, classify, sft, sample, "
            "rate, reward, ppo, dpo, grpo)",
        ),
        ("tiny", ["prompts=hello"], "tiny.yaml: prompts: expected a list, got 'hello'"),
        ("tiny", ["seed=-1"], "tiny.yaml: seed: -1 is too small (give 0 or more)"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_named(name: str, sets: list[str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(name, sets)
    assert str(caught.value).startswith(said)


def test_a_stage_s_own_command_can_begin_with_a_recipe() -> None:
    found = stage_defaults("sft", "tiny")
    assert isinstance(found, SFTConfig) and found.data == "builtin:tiny"
    assert found == dataclasses.replace(
        load_recipe("tiny").stages["sft"], data="builtin:tiny", replay="builtin:tiny"
    )  # type: ignore[call-arg]
    assert stage_defaults("dpo", "tiny") == load_recipe("tiny", preference="dpo").stages["dpo"]
    with pytest.raises(UserError, match="has no stage 'initt' .did you mean 'init'"):
        stage_defaults("initt", "tiny")


def test_one_way_through_preference_fine_tuning_is_taken() -> None:
    ppo, dpo = load_recipe("tiny"), load_recipe("tiny", preference="dpo")
    assert {"reward", "ppo"} <= set(ppo.stages) and "dpo" not in ppo.stages
    assert "dpo" in dpo.stages and not {"reward", "ppo"} & set(dpo.stages)
    with pytest.raises(UserError, match="preference: 'both' is none of its values"):
        load_recipe("tiny", ["preference=both"])


@pytest.mark.parametrize(
    ("cls", "values", "said"),
    [
        (GenerateConfig, {"model": ""}, "model: no model was named"),
        (
            GenerateConfig,
            {"model": "m", "samples": 0},
            "samples: 0 is out of range (give 1 or more)",
        ),
        (ChatConfig, {"model": "m", "top_p": 1.5}, "top_p: 1.5 is out of range (give 0 to 1)"),
        (ChatConfig, {"model": "m", "temperature": -1}, "temperature: -1"),
        (EvalConfig, {"model": "m", "limit": -1}, "limit: -1"),
        (
            EvalConfig,
            {"model": "m", "tasks": ["txt"]},
            "tasks[0]: 'txt' is none of its values (did you mean 'text'?",
        ),
        (RunConfig, {"redo": ["sft"]}, "redo: needs the run folder"),
    ],
)
def test_settings_of_uses_are_checked(cls: type, values: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        from_mapping(cls, values)
    assert str(caught.value).startswith(said)
