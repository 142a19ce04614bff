"""Settings that are left at `auto`: each rule, and that what a stage was begun with is what it goes
on with.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

import models
import ondevice as od
import small_stages
from data_samples import small_tokenizer
from ondevice import cli
from ondevice.common.errors import UserError
from ondevice.config.auto import AUTO, BY_RULE, EPOCHS, is_auto
from ondevice.config.finetuning import ClassifyConfig, SFTConfig
from ondevice.config.load import from_mapping, to_mapping
from ondevice.config.preference import DPOConfig, GRPOConfig, PPOConfig, RewardConfig
from ondevice.config.recipe import STAGES, load_recipe
from ondevice.config.stages import PretrainConfig, TrainingConfig
from ondevice.models.model import Model
from ondevice.runs.device_batch import needs_checkpointing
from ondevice.runs.events import read
from ondevice.runs.folder import RunFolder
from ondevice.seam.protocols import Backend
from ondevice.seam.select import load_backend
from ondevice.stages.settled import automatic, is_fresh
from ondevice.training.defaults import (
    DataFacts,
    ModelFacts,
    kaplan_rate,
    learning_rate_for,
    resolved,
    row_length,
)

SMALL = ModelFacts(parameters=135_000_000, context=2048)


def lengths(*parts: tuple[int, int]) -> np.ndarray[Any, Any]:
    """(rows, tokens of each), one after the other."""
    return np.concatenate([np.full(rows, tokens) for rows, tokens in parts])


def settled(cfg: TrainingConfig, data: Any, model: ModelFacts = SMALL, **facts: Any) -> Any:
    return resolved(cfg, model, DataFacts(np.asarray(data), **facts)).cfg


# ---- the rules ----------------------------------------------------------------------------------


def test_what_may_be_auto_is_so_by_default() -> None:
    for cls in STAGES.values():
        if issubclass(cls, TrainingConfig):
            cfg = cls()
            for name in (*BY_RULE, cfg.epochs_field):
                assert not hasattr(cfg, name) or is_auto(cfg, name), (cls, name)
            given = from_mapping(cls, {"learning_rate": "auto", "checkpointing": "auto"})
            assert given == cfg
    assert set(EPOCHS) == {
        cls.epochs_field for cls in STAGES.values() if hasattr(cls, "epochs_field")
    }


def test_a_row_holds_99_of_100_rows_of_the_data() -> None:
    data = lengths((98, 40), (1, 101), (1, 500))
    assert settled(SFTConfig(), data).sequence_length == 104  # the longest of 99, in eights
    assert settled(SFTConfig(), lengths((98, 40), (2, 500))).sequence_length == 504
    short = ModelFacts(parameters=1000, context=60)
    found = resolved(SFTConfig(), short, DataFacts(data, "chats"))
    assert found.cfg.sequence_length == 60
    assert found.why["sequence_length"] == (
        "holds 98.0% of 100 chats, all that the model's context allows; 2 are longer and are cut"
    )
    pairs = resolved(DPOConfig(), SMALL, DataFacts(data, "pairs"))
    assert pairs.why["sequence_length"].endswith("1 are longer and are left out")
    assert pairs.rows == 99  # of which an epoch consists
    text = settled(PretrainConfig(), [100_000])
    assert text.sequence_length == 1024  # a text has no length of its own
    assert row_length(np.array([3]), 2048) == 8 and row_length(np.array([9]), 5) == 5


def test_few_rows_go_in_small_steps() -> None:
    """About a hundred steps, where 4 to 16 rows allow them."""
    for rows, size, steps in ((50, 4, 13), (400, 4, 100), (1000, 8, 125), (9000, 16, 563)):
        cfg = settled(RewardConfig(), np.full(rows, 30))
        assert (cfg.batch_size, cfg.steps) == (size, steps)
    assert settled(RewardConfig(steps=5), np.full(50, 30)).batch_size == 16
    assert settled(RewardConfig(batch_size=3), np.full(50, 30)).steps == 17
    text = settled(PretrainConfig(), [3_000_000])
    assert text.batch_size * text.sequence_length == 16_384 and text.steps == 184
    little = settled(PretrainConfig(), [100_001])
    assert little.batch_size * little.sequence_length == 2_048 and little.steps == 49


def test_the_steps_go_through_the_data_as_often_as_epochs_says() -> None:
    data = np.full(100, 30)
    assert settled(DPOConfig(batch_size=8), data).steps == 13
    assert settled(DPOConfig(batch_size=8, epochs=3), data).steps == 38
    assert settled(DPOConfig(batch_size=8, epochs=0.5), data).steps == 7
    assert settled(GRPOConfig(prompts=16), data).steps == 7
    assert settled(GRPOConfig(prompts=16, epochs=2), data).steps == 13
    assert settled(PPOConfig(prompts=50, prompt_epochs=3), data).steps == 6
    assert settled(PPOConfig(prompts=50, prompt_epochs=3), data).epochs == 4  # of a rollout
    assert settled(DPOConfig(epochs=3), data).epochs == AUTO  # the steps say it from there on
    packed = settled(SFTConfig(batch_size=2, sequence_length=60), data)
    assert packed.steps == 25  # two chats a row
    apart = settled(SFTConfig(batch_size=2, sequence_length=60, packing=False), data)
    assert apart.steps == 50
    cannot = dataclasses.replace(SMALL, packs=False)
    assert settled(SFTConfig(batch_size=2, sequence_length=60), data, cannot).steps == 50
    replayed = SFTConfig(batch_size=2, sequence_length=60, replay="x", replay_share=0.5)
    assert settled(replayed, data).steps == 50
    builtin = settled(SFTConfig(), data, builtin=True)
    assert (builtin.steps, builtin.batch_size, builtin.sequence_length) == (1000, 16, 256)
    assert settled(SFTConfig(epochs=1), data, builtin=True).steps < 10
    assert settled(PPOConfig(), data, builtin=True).steps == 20
    assert settled(GRPOConfig(), data, builtin=True).steps == 60


@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_steps_and_epochs_together_are_refused(stage: str) -> None:
    cls: Any = STAGES[stage]
    with pytest.raises(UserError, match="steps: has no effect: how often the data is gone through"):
        from_mapping(cls, {"steps": 5, cls.epochs_field: 2})
    with pytest.raises(UserError, match=f"{cls.epochs_field}: 0.0 is too small"):
        from_mapping(cls, {cls.epochs_field: 0})
    if stage == "sft":  # a recipe's steps give way to a person's epochs, and the other way round
        assert load_recipe("tiny", ["sft.epochs=2"]).stages["sft"].steps == AUTO


RATES = [
    (PretrainConfig(), 7_000_000_000, 2e-5),
    (SFTConfig(), 7_000_000_000, 2e-5),
    (ClassifyConfig(), 110_000_000, 5e-5),
    (RewardConfig(), 7_000_000_000, 1e-5),
    (DPOConfig(), 7_000_000_000, 5e-7),
    (DPOConfig(loss_type="orpo"), 7_000_000_000, 8e-6),
    (PPOConfig(), 1_000_000_000, 3e-6),
    (GRPOConfig(), 7_000_000_000, 1e-6),
]


@pytest.mark.parametrize(("cfg", "size", "rate"), RATES, ids=lambda x: type(x).__name__)
def test_rates_are_the_published_ones_at_their_size(
    cfg: TrainingConfig, size: int, rate: float
) -> None:
    assert learning_rate_for(cfg, ModelFacts(size, 1024))[0] == rate
    if not isinstance(cfg, GRPOConfig):
        small = learning_rate_for(cfg, ModelFacts(size // 1000, 1024))[0]
        assert small == pytest.approx(10 * rate, rel=0.05)  # the cube root of 1,000
    if not isinstance(cfg, PretrainConfig | ClassifyConfig):
        adapter = dataclasses.replace(cfg, adapter="lora")  # type: ignore[call-arg]
        assert learning_rate_for(adapter, ModelFacts(size, 1024))[0] == pytest.approx(10 * rate)


def test_grpo_of_small_models_has_a_published_rate_of_its_own() -> None:
    rates = []
    for size in (60_000_000, 1_500_000_000, 3_240_000_000, 7_000_000_000, 56_000_000_000):
        rates.append(learning_rate_for(GRPOConfig(), ModelFacts(size, 1024))[0])
    # Open R1's at 1.5 B, half-way, DeepSeekMath's at 7 B, and half of that for 8 times as many
    assert rates == [1.5e-5, 5e-6, 2.2e-6, 1e-6, 5e-7]


def test_few_prompts_are_read_in_smaller_steps() -> None:
    def steps(cfg: TrainingConfig, rows: int, **facts: Any) -> tuple[int, int]:
        found = settled(cfg, lengths((rows, 9)), **facts)
        return found.prompts, found.steps

    assert steps(GRPOConfig(), 58) == (4, 15)
    assert steps(GRPOConfig(), 900) == (8, 113)
    assert steps(GRPOConfig(), 5000) == (16, 313)
    assert steps(GRPOConfig(epochs=10), 160) == (16, 100)
    assert steps(PPOConfig(), 200) == (16, 13) and steps(PPOConfig(), 9000) == (64, 141)
    assert steps(PPOConfig(minibatches=40), 200)[0] == 40
    # what a person says, and what has no end, leaves it as it is
    assert steps(GRPOConfig(steps=7), 58) == (16, 7)
    assert steps(GRPOConfig(prompts=5), 58) == (5, 12)
    assert steps(GRPOConfig(), 58, builtin=True) == (16, 60)
    assert steps(PPOConfig(), 58, builtin=True) == (64, 20)


def test_text_from_random_weights_has_a_rate_of_its_own() -> None:
    fresh = dataclasses.replace(SMALL, fresh=True)
    assert settled(PretrainConfig(), [9000], fresh).learning_rate == 6.3e-4
    assert settled(PretrainConfig(), [9000]).learning_rate < 1e-4
    assert kaplan_rate(1_000_000) == 1.3e-3 and kaplan_rate(10**13) == 1.2e-4
    muon = PretrainConfig(optimizer="muon")
    assert settled(muon, [9000], fresh).muon_learning_rate == 0.02
    tuned = settled(muon, [9000])
    assert tuned.muon_learning_rate == pytest.approx(0.02 * tuned.learning_rate / 6.3e-4, rel=0.05)
    assert settled(PretrainConfig(), [9000]).muon_learning_rate == AUTO  # it has no effect


def test_warm_up_measurements_and_saves_are_parts_of_the_steps() -> None:
    long, short = (settled(RewardConfig(steps=n), [30]) for n in (1000, 3))
    assert (long.warmup_steps, long.eval_every, long.save_every) == (100, 100, 200)
    assert (short.warmup_steps, short.eval_every, short.save_every) == (0, 1, 2)
    assert settled(SFTConfig(steps=1000), [30]).warmup_steps == 30
    once = settled(RewardConfig(steps=1000, eval_every=0), [30])
    assert (once.eval_every, once.save_every) == (0, 200)


@pytest.mark.parametrize(
    "stage", [name for name in STAGES if issubclass(STAGES[name], TrainingConfig)]
)
def test_what_is_given_stays_and_what_is_settled_is_settled_again_alike(stage: str) -> None:
    cls: Any = STAGES[stage]
    facts = DataFacts(np.arange(5, 900), answer=("whole", "the answers are texts"))
    first = resolved(cls(), SMALL, facts)
    left = [name for name in automatic(first.cfg) if is_auto(first.cfg, name)]
    assert left == ["checkpointing"]  # the machine's
    again = resolved(first.cfg, dataclasses.replace(SMALL, parameters=9), DataFacts(np.array([3])))
    assert again.cfg == first.cfg and not again.why
    first.cfg.check()
    assert from_mapping(cls, to_mapping(first.cfg)) == first.cfg


# ---- the machine's ------------------------------------------------------------------------------


def test_blocks_are_recomputed_where_one_row_would_not_fit() -> None:
    cfg = models.config("llama", vocab_size=512)
    model = Model(cfg, {}, small_tokenizer(), Path())

    def machine(size: int) -> Backend:
        memory = SimpleNamespace(total=size, peak=0)
        return cast(
            Backend,
            SimpleNamespace(memory=lambda: memory, dtype="float32", activation_factor=2.0),
        )

    assert not needs_checkpointing(model, machine(8 << 30), 512, whole=True)
    assert needs_checkpointing(model, machine(1 << 20), 512, whole=True)
    # the weights alone leave more room beside an adapter
    size = next(
        n
        for n in range(10)
        if not needs_checkpointing(model, machine(1 << (17 + n)), 8, whole=True)
    )
    assert not needs_checkpointing(model, machine(1 << (17 + size)), 8, whole=False)


def test_random_weights_are_known_by_their_norms(backend: Backend) -> None:
    for cfg in (models.config("llama"), models.encoder_config("bert"), models.seq2seq_config("t5")):
        params = {n: backend.array(w) for n, w in models.weights(cfg).items()}
        norms = [n for n, p in params.items() if len(p.shape) == 1 and "norm" in n.lower()]
        made = {n: p * 0 + 1 if n in norms else p for n, p in params.items()}
        assert is_fresh(Model(cfg, made, small_tokenizer(), Path()), backend)
        assert not is_fresh(Model(cfg, params, small_tokenizer(), Path()), backend)


# ---- a stage ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_stages.make(
        tmp_path_factory.mktemp("defaults"), load_backend("torch", "cpu", "float32")
    )


def train(files: Path, out: Path, stage: str = "sft", **changes: Any) -> None:
    own: dict[str, Any] = {"sft": {"data": files / "chats.jsonl"}}.get(stage, {})
    if not own:
        own = small_stages.settings(files, stage, out, "torch")
        names = ["data", "reward_model", *(["sft_data"] if stage == "ppo" else [])]
        own = {name: own[name] for name in names if name in own}
    given = {"model": files / "policy", "out": out, "backend": "torch", "device": "cpu", **own}
    fields = {name: str(value) for name, value in given.items()}
    getattr(od, stage)(**{**fields, **changes})


def recorded(out: Path, stage: str = "sft") -> dict[str, Any]:
    return RunFolder(out).stage(stage).settings_record()


def fingerprint(out: Path, stage: str = "sft") -> dict[str, Any]:
    return (RunFolder(out).stage(stage).done_record() or {})["fingerprint"]


def weights(out: Path, stage: str = "sft") -> dict[str, np.ndarray[Any, Any]]:
    return load_file(out / stage / "model" / "model.safetensors")


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return set(one) == set(other) and all(np.array_equal(one[n], other[n]) for n in one)


def undone(out: Path, stage: str = "sft", steps: int | None = None) -> None:
    """As if the process had been killed after `steps` steps, before it wrote the result."""
    (out / stage / "done.json").unlink()
    shutil.rmtree(out / stage / "model")
    for path in (out / stage / "checkpoints").glob("step-*"):
        if steps is not None and int(path.name[5:]) > steps:
            shutil.rmtree(path)


@pytest.mark.parametrize("backend_name", ["torch", "mlx"])
def test_a_stage_says_records_and_follows_from_what_the_rules_give(
    files: Path, tmp_path: Path, backend_name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train(files, tmp_path / "r", backend=backend_name)
    found = recorded(tmp_path / "r")
    values = found["settings"]
    assert values["batch_size"] == 4 and values["steps"] == -(-found["rows"] // 4) > 2
    assert values["eval_every"] == 1 and values["checkpointing"] is False
    said = capsys.readouterr().err
    for name in values:
        if name != "muon_learning_rate":
            assert f"sft: {name} " in said and found["why"][name] in said
    print_of = fingerprint(tmp_path / "r")
    for name in ("steps", "batch_size", "learning_rate", "warmup_steps", "sequence_length"):
        assert print_of[name] == values[name]
    assert not {"save_every", "checkpointing", "epochs"} & set(print_of)
    events = list(read(tmp_path / "r" / "sft" / "events.jsonl"))
    (told,) = [e for e in events if e["event"] == "settings"]
    assert told["steps"] == values["steps"] and told["settings"] == values
    for kind in ("step", "eval"):
        assert len([e for e in events if e["event"] == kind]) == values["steps"]
    explicit = {name: value for name, value in values.items() if name != "muon_learning_rate"}
    train(files, tmp_path / "explicit", backend=backend_name, **explicit)
    assert same(weights(tmp_path / "r"), weights(tmp_path / "explicit"))


def test_a_resume_goes_on_with_what_was_begun_whatever_the_data_is_by_then(
    files: Path, tmp_path: Path
) -> None:
    """Of a preference stage, which keeps its pairs; and of one that was killed before its first
    checkpoint.
    """
    data = tmp_path / "pairs.jsonl"
    shutil.copy(files / "pairs.jsonl", data)
    train(files, tmp_path / "r", "dpo", data=str(data))
    before, whole = recorded(tmp_path / "r", "dpo"), weights(tmp_path / "r", "dpo")
    long = {"prompt": "Anna 77", "chosen": "red " * 12, "rejected": "pears"}
    with data.open("a") as file:
        file.write("\n" + "\n".join(json.dumps({**long, "prompt": f"Ben {n}"}) for n in range(60)))
    undone(tmp_path / "r", "dpo", steps=2)
    train(files, tmp_path / "r", "dpo", data=str(data), resume=True)
    assert recorded(tmp_path / "r", "dpo") == before
    assert same(weights(tmp_path / "r", "dpo"), whole)

    chats = tmp_path / "chats.jsonl"
    shutil.copy(files / "chats.jsonl", chats)
    train(files, tmp_path / "s", data=str(chats))
    begun = recorded(tmp_path / "s")
    undone(tmp_path / "s", steps=0)
    with chats.open("a") as file:
        file.write("\n" + (files / "chats.jsonl").read_text().replace("Anna", "Carla"))
    train(files, tmp_path / "s", data=str(chats), resume=True)
    assert recorded(tmp_path / "s") == begun
    train(files, tmp_path / "t", data=str(chats))
    assert recorded(tmp_path / "t")["settings"]["steps"] > begun["settings"]["steps"]


@pytest.mark.parametrize("killed", [2, 0], ids=["after a checkpoint", "before one"])
def test_a_stage_of_an_earlier_version_goes_on_with_the_defaults_of_then(
    files: Path, tmp_path: Path, killed: int
) -> None:
    """It has no settings.json: its checkpoint, or what it said at its start, tells them."""
    then: dict[str, Any] = {
        "steps": 4,
        "batch_size": 16,
        "learning_rate": 3e-4,
        "warmup_steps": 0,
        "sequence_length": 59,
        "eval_every": 100,
        "save_every": 2,
        "checkpointing": False,
    }
    train(files, tmp_path / "r", **then)
    whole = weights(tmp_path / "r")
    undone(tmp_path / "r", steps=killed)
    (tmp_path / "r" / "sft" / "settings.json").unlink()
    train(files, tmp_path / "r", resume=True)
    assert same(weights(tmp_path / "r"), whole)
    assert recorded(tmp_path / "r")["settings"] == then


def test_grpo_reads_answers_as_the_problems_have_them_and_goes_on_so(
    files: Path, tmp_path: Path
) -> None:
    data = tmp_path / "sums.jsonl"
    rows = [{"question": f"Anna {n}", "answer": str(n)} for n in range(12)]
    data.write_text("\n".join(map(json.dumps, rows)))
    few = {"group_size": 2, "max_new_tokens": 4, "data": str(data), "steps": 2, "save_every": 1}
    train(files, tmp_path / "r", "grpo", **few)
    settings = recorded(tmp_path / "r", "grpo")["settings"]
    assert (settings["answer"], settings["prompts"]) == ("last_number", 16)
    assert fingerprint(tmp_path / "r", "grpo")["answer"] == "last_number"
    undone(tmp_path / "r", "grpo", steps=1)
    # whatever the rule would say of the data by then
    with pytest.raises(UserError, match="with other contents of data"):
        data.write_text("\n".join(json.dumps({**row, "answer": "Rome"}) for row in rows))
        train(files, tmp_path / "r", "grpo", resume=True, **few)
    data.write_text("\n".join(map(json.dumps, rows)))
    train(files, tmp_path / "r", "grpo", resume=True, **few)
    assert recorded(tmp_path / "r", "grpo")["settings"] == settings

    # of an earlier version, whose answers were numbers alone
    train(files, tmp_path / "then", "grpo", answer="number", prompts=3, **few)
    place = tmp_path / "then" / "grpo" / "settings.json"
    record = json.loads(place.read_text())
    del record["settings"]["answer"], record["settings"]["prompts"]
    place.write_text(json.dumps(record))
    undone(tmp_path / "then", "grpo", steps=1)
    train(files, tmp_path / "then", "grpo", resume=True, **few)
    kept = recorded(tmp_path / "then", "grpo")["settings"]
    assert (kept["answer"], kept["prompts"]) == ("number", 3)


def test_epochs_at_a_resume(files: Path, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"schedule": "constant", "warmup_steps": 0}
    train(files, tmp_path / "whole", epochs=3, **fields)
    train(files, tmp_path / "r", epochs=2, **fields)
    first = recorded(tmp_path / "r")
    assert first["epochs"] == 2 and first["settings"]["steps"] == -(-2 * first["rows"] // 4)
    undone(tmp_path / "r", steps=4)
    train(files, tmp_path / "r", epochs=2, resume=True, **fields)
    assert recorded(tmp_path / "r")["settings"] == first["settings"]
    # longer, as the rate is constant: finished as it is
    train(files, tmp_path / "r", epochs=3, resume=True, **fields)
    assert recorded(tmp_path / "r")["settings"]["steps"] == -(-3 * first["rows"] // 4)
    assert same(weights(tmp_path / "r"), weights(tmp_path / "whole"))


def test_a_recipe_keeps_what_was_settled(files: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    stages = {
        "sft": {"model": str(files / "policy"), "data": str(files / "chats.jsonl")},
        "dpo": {"data": str(files / "pairs.jsonl"), "adapter": "lora"},
    }
    whole = {"stages": stages, "backend": "torch", "device": "cpu"}
    recipe.write_text(yaml.safe_dump(whole, sort_keys=False))
    out = tmp_path / "r"
    od.run(str(recipe), out=str(out))
    kept = yaml.safe_load((out / "recipe.yaml").read_text())["stages"]
    for stage in stages:
        for name, value in recorded(out, stage)["settings"].items():
            assert kept[stage][name] == value, (stage, name)
    again = load_recipe(str(out))
    for stage, cfg in again.stages.items():
        assert [name for name in automatic(cfg) if is_auto(cfg, name)] == [], stage
    first = weights(out)
    undone(out)
    with pytest.raises(UserError, match="holds a run already"):
        od.run(str(recipe), out=str(out))
    od.run(str(recipe), out=str(out), resume=True)  # the stages that are done are settled as well
    assert yaml.safe_load((out / "recipe.yaml").read_text())["stages"] == kept
    assert same(weights(out), first)


def test_continue_takes_the_settings_of_the_finished_stage(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(files, tmp_path / "r", steps=3, batch_size=5, schedule="constant", learning_rate=1e-3)
    words = ["sft", "--continue", str(tmp_path / "r"), "--out", str(tmp_path / "on")]
    assert cli.main([*words, "--steps", "2", "--backend", "torch", "--device", "cpu"]) == 0
    print_of = fingerprint(tmp_path / "on")
    assert (print_of["batch_size"], print_of["learning_rate"]) == (5, 1e-3)
    assert (print_of["schedule"], print_of["steps"]) == ("constant", 2)
    other = tmp_path / "other.jsonl"
    shutil.copy(files / "chats.jsonl", other)
    words[-1] = str(tmp_path / "more")
    # the one word is the data, for the model is the finished stage's
    assert cli.main([*words[:1], str(other), *words[1:], "--epochs", "1", "--device", "cpu"]) == 0
    config = next(iter(read(tmp_path / "more" / "sft" / "events.jsonl")))["config"]
    assert config["data"] == str(other)
    assert config["model"] == str(tmp_path / "r" / "sft" / "model")
    assert cli.main(["sft", "--continue", str(tmp_path / "none")]) == 2
    assert "has no stage sft" in capsys.readouterr().err
