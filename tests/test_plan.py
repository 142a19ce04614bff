"""Plans: what stages take by headers and samples alone, what is refused, what is believed."""

from __future__ import annotations

import json
import shutil
import struct
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ondevice as od
import small_stages
from device import DEVICE
from ondevice import cli
from ondevice.common import processes, user_cache
from ondevice.common.errors import Interrupted, UserError
from ondevice.common.physical_memory import process_memory
from ondevice.config.recipe import Recipe, load_recipe, recipe_names
from ondevice.config.sizes import parse_memory
from ondevice.config.stages import PretrainConfig, StageConfig
from ondevice.data import hub_datasets
from ondevice.data.rows import AS_IS
from ondevice.models.shapes import shapes
from ondevice.planning import calibration, data_facts, stage_facts, start
from ondevice.planning.calibration import Calibration, Rates, Speeds, Terms
from ondevice.planning.data_facts import pair_facts
from ondevice.planning.dimensions import Block, Dimensions
from ondevice.planning.machine import Machine, machine_of, shared_by
from ondevice.planning.measure import fitted
from ondevice.planning.memory import decode_bytes, learn_bytes, moment_bytes
from ondevice.planning.model_facts import facts_of
from ondevice.planning.report import render
from ondevice.planning.row_sample import MOST_BYTES, sample_rows
from ondevice.planning.trained import Trained, trained_by
from ondevice.planning.work import Decode, Pass, pass_of
from ondevice.preferences.database import Ratings
from ondevice.preferences.votes import Response
from ondevice.runs.contents import planned_seconds, recipe_stages
from ondevice.runs.events import read
from ondevice.runs.folder import RunFolder
from ondevice.seam.group import Group
from ondevice.seam.protocols import Backend
from ondevice.seam.select import available, costs_of
from ondevice.stages import pipeline

RATES = Rates(1.2, 1e-10, 1e-4)
SPEEDS = Speeds(((64.0, 1e10), (512.0, 4e10)), 5e9, 1e6, RATES, RATES, RATES)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(user_cache.FOLDER, str(tmp_path / "cache"))
    return tmp_path / "cache"


def calibrate(backend: str = "torch", speeds: Speeds = SPEEDS) -> Path:
    """As if this machine had been measured."""
    key = calibration.key_of(backend, "cpu", "float32")
    return calibration.save(Calibration(key, "cpu", "float32", 16 << 30, 200 << 20, speeds))


def header_only(folder: Path) -> None:
    """Takes all weights away, and leaves the header of their file."""
    file = folder / "model.safetensors"
    octets = file.read_bytes()
    length = struct.unpack("<Q", octets[:8])[0]
    file.write_bytes(octets[: 8 + length])


def plan_of(stage: str, model: Path, data: Path | str, **fields: Any) -> dict[str, Any]:
    given = {"backend": "torch", "device": "cpu", "dtype": "float32", **fields}
    report = od.plan(stage, model, str(data), measure=False, **given)
    json.dumps(report)
    return report


# ---- estimates ------------------------------------------------------------------------------------


ON_THE_HUB = ("stories", "smol")


@pytest.mark.parametrize(
    "recipe",
    [
        # the stages of these are those of tiny-encoder and tiny-seq2seq
        pytest.param(name, marks=pytest.mark.slow) if name.startswith("minute-") else name
        for name in recipe_names()
        if name not in ON_THE_HUB
    ],
)
def test_every_recipe_of_the_program_is_planned(recipe: str, cache: Path) -> None:
    report = od.plan(recipe, measure=False, backend="torch", device="cpu")
    assert report["seconds"] is None and report["fits"] in ("yes", "tight", "no")
    for row in report["stages"]:
        assert row["memory"] > 0 or row["stage"] == "rate"
        if row["stage"] not in ("init", "rate"):
            assert row["rows"] and row["trained"] + row["frozen"] > 0
    trained = [row for row in report["stages"] if row["stage"] not in ("init", "rate", "sample")]
    assert all(row["times"] > 0 and row["disk"] > 0 for row in trained)
    assert not any(row["uncounted"] for row in report["stages"])


def test_stories_is_planned_without_a_network(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_datasets, "hub_rows", None)  # nothing of the Hub is read
    calibrate()
    machine = {"backend": "torch", "device": "cpu", "dtype": "float32", "memory": "8GB"}
    report = od.plan("stories", measure=False, **machine)
    rows = {row["stage"]: row for row in report["stages"]}
    assert report["fits"] == "yes" and report["seconds"] > 0
    assert 9.7e6 < rows["pretrain"]["trained"] < 9.9e6
    assert rows["pretrain"]["uncounted"] == ["hub:roneneldan/TinyStories"]
    assert not rows["dpo"]["uncounted"] and rows["grpo"]["written"]
    [line] = [line for line in render(report).splitlines() if line.startswith("not counted: ")]
    assert "roneneldan/TinyStories (of init, pretrain, sft, sample, grpo)" in line
    assert all(row["stage"] in render(report) for row in report["stages"])


def test_headers_are_enough(tmp_path: Path, backend: Backend, cache: Path) -> None:
    """A file that has a header and no weights is planned as the whole one is."""
    files = small_stages.make(tmp_path / "files", backend)
    before = plan_of("sft", files / "policy", files / "chats.jsonl", steps=3)
    header_only(files / "policy")
    after = plan_of("sft", files / "policy", files / "chats.jsonl", steps=3)
    assert after["stages"] == before["stages"]
    (row,) = after["stages"]
    cfg = facts_of(files / "policy").cfg
    assert row["trained"] == sum(int(np.prod(shape)) for shape in shapes(cfg).values())
    assert (row["rows"], row["exact"], row["data"]) == (27.0, True, "27 chats")
    assert row["seconds"] is None, "nobody has measured this machine"


@pytest.mark.parametrize("stage", ["reward", "dpo", "ppo", "grpo", "sft", "pretrain", "sample"])
def test_every_stage_of_a_persons_own_data(
    stage: str, tmp_path: Path, backend: Backend, cache: Path
) -> None:
    files = small_stages.make(tmp_path / "files", backend)
    calibrate()
    (files / "text.txt").write_text("red green pears " * 400)
    data = {
        "sft": "chats.jsonl",
        "pretrain": "text.txt",
        "reward": "pairs.jsonl",
        "dpo": "pairs.jsonl",
    }
    fields: dict[str, Any] = {"sequence_length": 32} if stage in ("sft", "pretrain") else {}
    if stage in small_stages.STAGES:
        fields = {**small_stages.STAGES[stage]}
    if stage != "sample":
        fields["steps"] = 5
    if stage == "ppo":
        fields |= {"reward_model": str(files / "judge"), "sft_coef": 0.0}
        fields = {k: v for k, v in fields.items() if k not in ("sft_batch", "sft_data")}
    report = plan_of(stage, files / "policy", files / data.get(stage, "prompts.jsonl"), **fields)
    (row,) = report["stages"]
    assert row["rows"] and row["tokens"] and row["seconds"] > 0
    assert 0 < row["grown"] < row["memory"] < 2e9 and row["fits"] == "yes"
    longer = plan_of(
        stage,
        files / "policy",
        files / data.get(stage, "prompts.jsonl"),
        **{**fields, **({} if stage == "sample" else {"steps": 500})},
    )
    assert stage == "sample" or longer["stages"][0]["seconds"] > row["seconds"]


def test_what_is_trained_decides_the_bytes(tmp_path: Path, backend: Backend) -> None:
    files = small_stages.make(tmp_path / "files", backend)
    facts = facts_of(files / "policy")
    cfg = od_config("sft")
    whole = trained_by(cfg, facts, "float32")
    low = trained_by(replace(cfg, adapter="lora", lora_rank=2), facts, "float32")
    assert whole.numbers == facts.parameters and whole.frozen == 0
    assert 0 < low.numbers < facts.parameters / 2 and low.frozen == facts.parameters
    assert whole.weight_bytes == 4 * facts.parameters
    assert low.weight_bytes == 4 * (facts.parameters + low.numbers)
    half = trained_by(replace(cfg, adapter="lora", lora_rank=2), facts, "bfloat16")
    assert half.weight_bytes == 2 * facts.parameters + 4 * low.numbers
    numbers = Trained(1000, 0, 600, False, 4000.0)
    plain = PretrainConfig(model="x")
    assert moment_bytes(plain, numbers) == 8000
    assert moment_bytes(replace(plain, optimizer="muon"), numbers) == 4 * 600 + 8 * 400
    assert 2000 < moment_bytes(replace(plain, optimizer="adamw8bit"), numbers) < 2100


def od_config(stage: str) -> Any:
    from ondevice.config.recipe import STAGES

    return STAGES[stage](model="x", data="y")


def test_packing_and_rows_at_once_change_the_memory(
    tmp_path: Path, backend: Backend, cache: Path
) -> None:
    files = small_stages.make(tmp_path / "files", backend)

    def learning(**fields: Any) -> float:
        given = {"batch_size": 16, "sequence_length": 48, **fields}
        report = plan_of("sft", files / "policy", files / "chats.jsonl", **given)
        return float(report["stages"][0]["bytes"]["learning"])

    assert learning(micro_batch=1) < learning(micro_batch=16)
    assert learning(packing=False) < learning(), "a chat a row is narrower here than a packed row"
    report = plan_of("sft", files / "policy", files / "chats.jsonl", batch_size=16)
    gradients = report["stages"][0]["bytes"]["gradients"]
    # torch's heap has no room for gradients between what is kept for the backward pass
    assert learning() - learning(adapter="lora", lora_rank=1) > 0.9 * gradients


def test_answers_of_unknown_length_are_planned_as_long_as_they_may_be(
    tmp_path: Path, backend: Backend
) -> None:
    files = small_stages.make(tmp_path / "files", backend)
    given = {"prompts": 2, "group_size": 4, "max_new_tokens": 9, "rewards": ("length",)}
    report = plan_of("grpo", files / "policy", files / "prompts.jsonl", **given)
    assert report["stages"][0]["tokens_per_step"] == 2 * 4 * 9


@pytest.mark.parametrize("name", ["torch", "mlx"])
def test_scores_that_no_kernel_computes_again_are_counted(name: str) -> None:
    """8 tokens that attend to 100 each in 2 heads, in a block that 30 numbers go through."""
    costs = replace(costs_of(name), logits=0.0)
    block = Block(((10, 20, 1.0),))
    plain = Dimensions((block,), hidden=8, vocabulary=1, heads=2, head_width=4, labels=0)
    one = Pass(8.0, 100.0, 0.0, rows=1)

    def bytes_of(batch: Pass, dims: Dimensions, kept: float, scores: float) -> None:
        expected = 8 * 4 * (kept * 30 + scores * 2 * 100 + costs.passing * 30)
        assert learn_bytes(batch, dims, costs, 4, False) == pytest.approx(expected)

    bytes_of(one, plain, costs.kept, costs.scores)
    bytes_of(replace(one, shared=True), plain, costs.kept, costs.shared)
    bytes_of(one, replace(plain, biased=True), costs.kept, costs.biased)
    bytes_of(one, replace(plain, encoder=True), costs.kept + costs.exact, costs.scores)
    assert costs.biased > costs.scores and costs.shared > 0
    deep = replace(plain, blocks=(block,) * 8)
    whole, again = (learn_bytes(one, deep, costs, 4, redo) for redo in (False, True))
    assert again < 0.7 * whole, "some blocks are there at once, and the stream before each"
    # what one block's backward pass computes with stands there once, however many blocks there are
    once = costs.passing * 8 * 4 * 30
    assert whole - once == pytest.approx(8 * (learn_bytes(one, plain, costs, 4, False) - once))


@pytest.mark.parametrize("name, beside", [("torch", 64), ("mlx", 0)])
def test_the_cache_of_answers_is_as_large_as_the_generator_makes_it(name: str, beside: int) -> None:
    dims = Dimensions((), hidden=8, vocabulary=1, heads=1, head_width=8, labels=0)
    costs = replace(costs_of(name), logits=0.0)
    short = Decode(rows=8, written=20, at_once=8, prompts=8, prompt=10, longest=30)
    assert decode_bytes(short, dims, costs, 10) == 8 * 64 * 10
    longer = replace(short, written=90, longest=100)
    assert decode_bytes(longer, dims, costs, 10) == 8 * (128 + beside) * 10
    whole = replace(short, written=700, longest=710)
    assert decode_bytes(whole, dims, costs, 10) == 8 * (768 + 8 * beside) * 10


# ---- the data -------------------------------------------------------------------------------------


def test_a_small_file_is_counted_and_of_a_large_one_a_part_is_read(tmp_path: Path) -> None:
    small, large = tmp_path / "small.jsonl", tmp_path / "large.jsonl"
    rows = [json.dumps({"text": "word " * (n % 40)}) for n in range(100_000)]
    small.write_text("\n".join(rows[:500]))
    large.write_text("\n".join(rows) + "\n")
    found = sample_rows(str(small), AS_IS)
    assert (found.count, found.exact) == (500, True)
    assert large.stat().st_size > 2 * MOST_BYTES
    found = sample_rows(str(large), AS_IS)
    assert not found.exact and found.count == pytest.approx(100_000, rel=0.05)
    assert 50 < len(found.rows) <= 300


def test_an_estimate_says_that_it_is_one(tmp_path: Path, backend: Backend, cache: Path) -> None:
    files = small_stages.make(tmp_path / "files", backend)
    row = {"messages": [{"role": "user", "content": "red"}, {"role": "assistant", "content": "12"}]}
    (files / "many.jsonl").write_text((json.dumps(row) + "\n") * 40_000)
    report = plan_of("sft", files / "policy", files / "many.jsonl", steps=10)
    assert report["stages"][0]["data"].startswith("≈ ")
    assert report["stages"][0]["rows"] == pytest.approx(39_500, rel=0.02)


def test_what_cannot_be_counted_is_not_made_up(
    tmp_path: Path, backend: Backend, cache: Path
) -> None:
    files = small_stages.make(tmp_path / "files", backend)
    report = plan_of("sft", files / "policy", "hub:some/chats", steps=10, sequence_length=32)
    (row,) = report["stages"]
    assert row["rows"] is None and row["times"] is None and row["data"] == ""
    assert row["memory"] > 0


# ---- the command ----------------------------------------------------------------------------------


def test_the_command_prints_a_table_and_json(
    tmp_path: Path, backend: Backend, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = small_stages.make(tmp_path / "files", backend)
    words = ["sft", str(files / "policy"), str(files / "chats.jsonl"), "--steps", "7"]
    words += ["--backend", "torch", "--device", "cpu", "--no-time"]
    assert cli.main(["plan", *words]) == 0
    table = capsys.readouterr().out
    assert "27 chats" in table and "no times" in table and table.splitlines()[1].endswith("yes")
    assert cli.main(["plan", *words, "--json"]) == 0
    [row] = json.loads(capsys.readouterr().out)["stages"]
    assert row["steps"] == 7 and 27 < row["tokens"] < 1e4
    assert table.splitlines()[1].split()[3:6] == ["27", "chats", str(round(row["tokens"]))]
    assert cli.main(["plan", *words, "--json", "--processes", "4", "--shard", "state"]) == 0
    [each] = json.loads(capsys.readouterr().out)["stages"]
    assert each["processes"] == 4
    assert each["sent"] == 2 * 3 / 4 * 4 * each["trained"]  # by a ring, of each float
    assert each["bytes"]["moments"] == 2 * 4 * each["trained"] / 4
    assert cli.main(["plan", *words, "--processes", "2"]) == 0
    assert "2 processes: memory and time of each" in capsys.readouterr().out
    if available()["mlx"]:
        assert cli.main(["plan", *words, "--backend", "mlx", "--shard", "state"]) == 2
        assert "mlx keeps the optimizer's state whole" in capsys.readouterr().err
    assert cli.main(["plan", *words, "--processes", "many"]) == 2
    assert "'many' is not a number" in capsys.readouterr().err
    assert cli.main(["plan", "minute", "--no-time"]) == 0
    assert "grpo" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, said",
    [
        (["nowhere"], "unknown recipe 'nowhere'"),
        (["rate"], "neither memory nor time"),
        (["sft", "--memory", "much"], "'much' is not a size of memory"),
        (["sft"], "no model was named"),
        (["sft", "/no/such/model", "x.jsonl"], "/no/such/model"),
    ],
)
def test_what_cannot_be_planned_is_said(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], cache: Path
) -> None:
    assert cli.main(["plan", *words, "--no-time"]) == 2
    assert said in capsys.readouterr().err


def test_sizes_of_memory() -> None:
    assert parse_memory("8GB") == 8 * 10**9 and parse_memory(" 512 mb ") == 512 * 10**6
    assert parse_memory("2GiB") == 2 << 30 and parse_memory("") is None
    assert parse_memory("1.5 GB") == 1_500_000_000
    for text in ("0GB", "GB", "-1GB", "8 GX", "eight"):
        with pytest.raises(UserError, match="not a size of memory"):
            parse_memory(text)


# ---- refusal --------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_with_the_remedy(
    tmp_path: Path, backend: Backend, cache: Path
) -> None:
    files = small_stages.make(tmp_path / "files", backend)
    fields = {
        "model": str(files / "policy"),
        "data": str(files / "chats.jsonl"),
        "backend": backend.name,
        "device": DEVICE,
        "steps": 1,
        "sequence_length": 32,
        "eval_every": 0,
    }
    out = tmp_path / "run"
    with pytest.raises(UserError, match="sft does not fit.*--memory allows 1.0 MB") as error:
        od.sft(**fields, memory="1MB", out=str(out))
    assert "--anyway starts it all the same" in str(error.value)
    assert not (out / "sft" / "events.jsonl").exists(), "nothing has begun"
    od.sft(**fields, memory="1MB", anyway=True, out=str(out))
    assert (out / "sft" / "done.json").is_file()


def test_the_remedy_fits(tmp_path: Path, backend: Backend, cache: Path) -> None:
    files = small_stages.make(tmp_path / "files", backend)
    data, fields = files / "chats.jsonl", {"sequence_length": 60, "batch_size": 64}
    row = plan_of("sft", files / "policy", data, micro_batch=64, **fields)["stages"][0]
    allowed = f"{(row['memory'] - row['bytes']['learning'] / 2) / 1e6:.3f}MB"
    refused = plan_of("sft", files / "policy", data, micro_batch=64, memory=allowed, **fields)
    (found,) = refused["stages"]
    assert refused["fits"] == "no" and found["change"].startswith("--micro-batch ")
    rows = int(found["change"].rpartition(" ")[2])
    mended = plan_of("sft", files / "policy", data, micro_batch=rows, memory=allowed, **fields)
    assert mended["fits"] == "tight"


def test_a_remedy_is_found_without_reading_anything_again(
    tmp_path: Path, backend: Backend, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = small_stages.make(tmp_path / "files", backend)
    read_models, read_data = [], []

    def facts(name: str | Path) -> Any:
        read_models.append(name)
        return facts_of(name)

    def pairs(*given: Any) -> Any:
        read_data.append(given)
        return pair_facts(*given)

    monkeypatch.setattr(stage_facts, "facts_of", facts)
    monkeypatch.setattr(data_facts, "pair_facts", pairs)
    report = plan_of("dpo", files / "policy", files / "pairs.jsonl", memory="1MB")
    assert report["fits"] == "no" and "take a smaller model" in render(report)
    assert len(read_models) == len(read_data) == 1, "though more than ten changes were tried"


def test_the_pairs_of_a_few_votes_are_counted(
    tmp_path: Path, backend: Backend, cache: Path
) -> None:
    """Fewer than are looked at of many: the form said 8 of 48, and 40 times through them."""
    files = small_stages.make(tmp_path / "files", backend)
    with Ratings.open(tmp_path / "ratings.db", create=True) as ratings:
        for n in range(20):
            answers = [Response("a few words"), Response("other words")]
            item = ratings.add("b", f"question {n}", answers, seed=0)
            ratings.vote(item, "Ada", "s", ranking=[0])
    report = plan_of("dpo", files / "policy", tmp_path / "ratings.db", held_share=0.5, steps=20)
    assert " 10 pairs" in render(report) and "≈ 10 pairs" not in render(report)


def test_a_budget_that_is_named_is_of_the_whole_process(backend: Backend) -> None:
    assert machine_of(backend).process == 0, "what is available is so beside this process"
    if backend.device != "cuda":
        assert machine_of(backend, "8GB").process == pytest.approx(process_memory(), rel=0.1)


def test_a_recipe_is_planned_at_its_start_for_all_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = Group()
    group.hosts, group.size = ["a", "b", "c"], 3
    planned = []

    def plan(recipe: Recipe, folder: Path, machine: Machine) -> dict[str, Any]:
        planned.append(machine.processes)
        return {"stages": []}

    monkeypatch.setattr(start, "plan_recipe", plan)
    start.plan_recipe_at_start(load_recipe("minute"), tmp_path, group)
    assert planned == [3]


def test_processes_of_one_machine_share_its_memory(backend: Backend) -> None:
    """But for a GPU's own, and for what a person names; each plans as one of all."""
    group = Group()
    group.hosts, group.size = ["a", "b", "a"], 3
    whole = replace(machine_of(backend), budget=900, device="cpu")
    assert (shared_by(whole, group).budget, shared_by(whole, group).processes) == (450, 3)
    assert shared_by(replace(whole, device="cuda"), group).budget == 900
    assert shared_by(replace(whole, limited=True), group).budget == 900
    group.rank = 1
    assert shared_by(whole, group).budget == 900


@pytest.mark.slow
def test_a_recipe_is_refused_before_its_first_stage(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(UserError, match="pretrain does not fit|init does not fit"):
        od.run("minute", memory="2MB", out=str(tmp_path / "run"), backend="torch", device="cpu")
    assert not list((tmp_path / "run").glob("*/events.jsonl"))


@pytest.mark.slow
def test_a_run_keeps_what_its_stages_are_to_take(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the time that is left of it, where this machine was measured; what goes on has it still."""

    def stage(name: str, cfg: StageConfig, folder: RunFolder, **known: Any) -> Path:
        folder.create()
        known["caller"].on_ready()
        raise Interrupted("enough")

    monkeypatch.setattr(pipeline, "run_stage", stage)
    machine = {"backend": "torch", "device": "cpu", "dtype": "float32"}
    for name in ("unmeasured", "measured"):
        run = RunFolder(tmp_path / name)
        if name == "measured":
            calibrate()
        for resume in (False, True):
            with pytest.raises(Interrupted):
                od.run("minute", out=str(run.path), resume=resume, **machine)
            seconds = planned_seconds(run)
            assert list(seconds) == ([] if name == "unmeasured" else recipe_stages(run))
    assert seconds["pretrain"] > 1 and seconds["rate"] == 0


def test_a_full_disk_is_refused(
    tmp_path: Path, backend: Backend, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = small_stages.make(tmp_path / "files", backend)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    report = plan_of("sft", files / "policy", files / "chats.jsonl")
    (row,) = report["stages"]
    assert row["fits"] == "no" and "of the disk, of which 1.0 kB are free" in row["why"]
    assert "make room" in row["change"]


def test_a_stage_says_its_plan_and_keeps_it(
    tmp_path: Path, backend: Backend, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = small_stages.make(tmp_path / "files", backend)
    settings = small_stages.settings(files, "dpo", tmp_path / "run", backend.name, steps=2)
    od.dpo(**settings)
    said = capsys.readouterr().err
    assert "dpo: ≈ " in said and "times through" in said and "pairs" in said
    first = next(read(tmp_path / "run" / "dpo" / "events.jsonl"))
    assert first["event"] == "start" and first["plan"]["memory"] > 0


# ---- calibration ----------------------------------------------------------------------------------


def test_a_calibration_is_kept_and_checked(cache: Path) -> None:
    file = calibrate()
    found = calibration.load("torch", "cpu", "float32")
    assert found is not None and found.speeds == SPEEDS
    assert calibration.load("torch", "cpu", "bfloat16") is None, "of another type"
    good = json.loads(file.read_text())
    told: list[str] = []
    for broken in (
        "{",
        "[]",
        json.dumps({**good, "format": 0}),
        json.dumps({**good, "key": {**good["key"], "processor": "another"}}),
        json.dumps({**good, "speeds": {**good["speeds"], "tokenizer": "fast"}}),
        json.dumps({**good, "speeds": {**good["speeds"], "tokenizer": -1.0}}),
        json.dumps({**good, "speeds": {**good["speeds"], "reading": {"products": 1.0}}}),
        json.dumps({**good, "speeds": {**good["speeds"], "products": []}}),
        json.dumps({**good, "speeds": {**good["speeds"], "products": [[64, 1], [64, 2]]}}),
        json.dumps({name: value for name, value in good.items() if name != "speeds"}),
    ):
        file.write_text(broken)
        assert calibration.load("torch", "cpu", "float32", told.append) is None
    assert len(told) == 10 and all("measures this machine anew" in line for line in told)


def test_between_two_widths_a_product_is_between_their_speeds() -> None:
    assert SPEEDS.product(8) == 1e10 and SPEEDS.product(4096) == 4e10
    assert 1e10 < SPEEDS.product(128) < SPEEDS.product(256) < 4e10


def test_rates_are_found_again_from_what_they_give() -> None:
    rates = Rates(1.3, 2e-10, 4e-4)
    terms = [Terms(0.1, 1e8, 6), Terms(0.02, 4e8, 6), Terms(0.5, 1e9, 12), Terms(0.001, 1e6, 4)]
    found = fitted([(one, rates.of(one)) for one in terms])
    assert asdict(found) == pytest.approx(asdict(rates))
    # what a least square would have below 0 is 0
    odd = fitted([(one, 2 * one.products - 1e-11 * one.moved + 1e-2) for one in terms])
    assert min(asdict(odd).values()) >= 0
    # a product in a step is not quicker than by itself, whatever few small steps seem to say
    quick = Rates(0.6, 3e-10, 4e-3)
    bound = fitted([(one, quick.of(one)) for one in terms], least=1.0)
    assert bound.products == 1.0 and min(asdict(bound).values()) >= 0
    slow = fitted([(one, rates.of(one)) for one in terms], least=1.0)
    assert asdict(slow) == pytest.approx(asdict(rates))


def test_another_power_state_is_another_calibration(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrate()
    monkeypatch.setattr(calibration, "power_state", lambda: "battery low-power")
    assert calibration.load("torch", "cpu", "float32") is None


@pytest.mark.slow
def test_a_machine_is_measured_once(
    cache: Path, backend_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By fewer and smaller steps than a user's machine is."""
    module, command = "ondevice.planning.measure", processes.command
    small = [sys.executable, str(Path(__file__).parent / "small_measure.py")]
    monkeypatch.setattr(
        processes,
        "command",
        lambda name, *words: [*small, *words] if name == module else command(name, *words),
    )
    told: list[str] = []
    found = calibration.calibrated(backend_name, "cpu", "float32", told.append)
    assert len(told) == 1 and "measuring how fast" in told[0]
    assert found.process > 10 << 20 and found.speeds.bytes_per_second > 1e7
    [used] = cache.glob("use-type-*.json")
    assert min(json.loads(used.read_text())["seconds"].values()) > 0
    assert calibration.calibrated(backend_name, "cpu", "float32", told.append) == found
    assert len(told) == 1
    report = od.plan("minute", backend=backend_name, device="cpu", dtype="float32")
    assert report["machine"]["calibrated"] and report["seconds"] > 1


def test_rows_without_padding_attend_within_themselves() -> None:
    batch = {"ids": np.zeros((1, 10)), "places": np.zeros((3, 4)), "targets": np.zeros(5)}
    one = pass_of(batch)
    assert (one.places, one.attended) == (10, 3 * 4 * 4 / 10)
    after = pass_of({**batch, "prompt_places": np.zeros((2, 6))})
    assert after.attended == (3 * 4 * (4 + 6) + 2 * 6 * 6) / 10
