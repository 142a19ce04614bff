"""A recipe in a time: the laws, the shares, what is left out, and what is decided anew."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import small_stages
from ondevice.common.errors import UserError
from ondevice.config.load import dump_yaml, from_mapping, to_mapping
from ondevice.config.recipe import Recipe, load_recipe
from ondevice.config.runs import RunConfig
from ondevice.config.scaling import ScaleConfig
from ondevice.config.times import parse_time, time_text
from ondevice.datasets.spec import data_digest
from ondevice.planning.calibration import Rates, Speeds
from ondevice.planning.dial import laws, record
from ondevice.planning.dial.costs import Factors, with_steps
from ondevice.planning.dial.fit import Fitted, TooShort, fitted, too_short
from ondevice.planning.dial.inputs import Inputs, with_inputs
from ondevice.planning.dial.record import DialRecord
from ondevice.planning.dial.road import exam_of, road, time_of
from ondevice.planning.dial.shapes import SHAPES
from ondevice.planning.dial.shares import Part, divided, needed, taken
from ondevice.planning.machine import Machine
from ondevice.planning.stage_facts import Read, Surroundings
from ondevice.runs.folder import RunFolder
from ondevice.seam.select import costs_of, load_backend
from ondevice.stages.timed import Timed

RATES = Rates(1.2, 1e-10, 1e-4)
SPEEDS = Speeds(((64.0, 1e10), (512.0, 4e10)), 5e9, 1e6, RATES, RATES, RATES)
MACHINE = Machine(
    "torch", "cpu", "float32", 16 << 30, 12 << 30, 250 << 20, costs_of("torch"), speeds=SPEEDS
)
SMALL = {
    "corpus.document_bytes=60_000",
    "corpus.chat_count=300",
    "corpus.prompt_count=80",
    "corpus.problem_count=60",
}


# ---- times ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"), [("2h", 7200), ("90m", 5400), ("1h30m", 5400), ("45s", 45), ("1m5s", 65)]
)
def test_a_time_is_read_and_written(text: str, seconds: int) -> None:
    assert parse_time(text) == seconds
    assert parse_time(time_text(seconds)) == seconds


@pytest.mark.parametrize(
    "text", ["2", "h", "1.5h", "-1h", "30m1h", "2 h", "1h 30m", "0s", "0h0m", "800h", "1d", "2H"]
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="time"):
        parse_time(text)


def test_less_than_a_minute_is_refused_at_once() -> None:
    with pytest.raises(UserError, match="45s is too short for any road"):
        from_mapping(RunConfig, {"time": "45s"})


# ---- the declaration ------------------------------------------------------------------------------


def test_a_recipe_says_how_it_scales_and_reads_back() -> None:
    recipe = load_recipe("laptop")
    assert recipe.scale is not None
    assert from_mapping(ScaleConfig, to_mapping(recipe.scale)) == recipe.scale
    assert set(recipe.scale.stages) >= {"pretrain", "sft", "grpo"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("scale.stages.pretrian.share=3", "unknown stage 'pretrian'"),
        ("scale.stages.rate.share=3", "rate: has no number of steps"),
        ("scale.stages.sft.share=0", "sft.share: 0.0 is not a share"),
        ("scale.stages.sft.most=1", "sft.most: 1 is less than least"),
        ("scale.time=soon", "scale.time: 'soon' is not a time"),
        ("scale.stages.sft.own_epochs=-1", "sft.own_epochs: -1.0 is too small"),
        ("scale.stages.sft.own_decay=1", "sft.own_decay: has no effect"),
    ],
)
def test_a_wrong_declaration_is_named(change: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_recipe("laptop", [change])


@pytest.mark.parametrize(
    ("name", "value"), [("time", "10m"), ("text", "a.txt"), ("model", "m"), ("chats", "c.jsonl")]
)
def test_a_recipe_that_does_not_scale_takes_no_time_and_no_files(name: str, value: str) -> None:
    with pytest.raises(UserError, match=f"{name}: has no effect: minute does not say how"):
        time_of(from_mapping(RunConfig, {name: value}), load_recipe("minute"))


# ---- laws -----------------------------------------------------------------------------------------


def test_weight_decay_rises_with_the_passes_through_a_text() -> None:
    decays = [laws.weight_decay(1.0, passes, 14) for passes in (0.5, 4, 7, 14, 30)]
    assert decays == [0.0013, 0.082, 0.25, 1.0, 1.0]


def test_the_best_model_reads_about_20_tokens_per_parameter() -> None:
    compute = 1e18
    sizes = [1e6 * 1.1**n for n in range(80)]
    best = min(sizes, key=lambda n: laws.loss(n, compute / 6 / n, 1e15))
    assert compute / 6 / best / best == pytest.approx(20, rel=0.25)  # Hoffmann 2022


def test_four_times_through_a_text_is_nearly_as_good_as_new_text() -> None:
    parameters, text = 1e8, 1e9
    once = laws.loss(parameters, text, text)
    repeated = laws.loss(parameters, 4 * text, text)
    new = laws.loss(parameters, 4 * text, 4 * text)
    assert (once - repeated) / (once - new) > 0.9  # Muennighoff 2023
    assert laws.loss(parameters, 400 * text, text) > laws.loss(parameters, 20 * text, 20 * text)


def test_the_vocabulary_grows_with_the_model_and_is_taught_by_the_text() -> None:
    sizes = [laws.vocabulary(n, 20 * n, round(n**0.4), 1e12) for n in (1e6, 1e7, 1e8, 1e9)]
    assert sizes == sorted(sizes)
    assert sizes[-1] > 4 * sizes[0]
    assert laws.vocabulary(1e9, 2e10, 1536, 1e5) == 512


# ---- shares ---------------------------------------------------------------------------------------


def test_what_a_stage_cannot_use_goes_to_the_others() -> None:
    parts = [
        Part("a", 50, 0.1, 1, float("inf"), 3),
        Part("b", 50, 0.1, 1, 20),
        Part("c", 1, 0.1, 30, float("inf")),
    ]
    steps = divided(100, parts)
    assert steps["b"] == 20
    assert steps["c"] == 30
    assert taken(parts, steps) == pytest.approx(100, abs=0.2)


def test_where_the_time_does_not_suffice_all_have_their_least() -> None:
    parts = [Part("a", 1, 2.0, 5, float("inf")), Part("b", 9, 1.0, 7, 9, 4)]
    assert needed(parts) == 21
    assert divided(10, parts) == {"a": 5, "b": 7}


# ---- files ----------------------------------------------------------------------------------------


def test_each_stage_learns_from_what_is_there(tmp_path: Path) -> None:
    text, chats = tmp_path / "book.txt", tmp_path / "chats.jsonl"
    text.write_text("words")
    chats.write_text("{}")
    found, left_out = with_inputs(load_recipe("laptop"), Inputs(text=str(text), chats=str(chats)))
    assert list(found.stages) == ["init", "pretrain", "sft"]
    cfg: Any = found.stages["sft"]
    assert (cfg.data, cfg.replay, cfg.sequence_length) == (str(chats), str(text), "auto")
    assert found.stages["init"].data == f"{text},{chats}"  # type: ignore[attr-defined]
    assert set(left_out) == {"sample", "rate", "reward", "ppo", "grpo"}
    assert "give --problems FILE" in left_out["grpo"]
    assert exam_of(found) is None


def test_files_of_ones_own_are_gone_through_so_often_at_most(tmp_path: Path) -> None:
    recipe = load_recipe("laptop", ["scale.stages.sft.epochs=4"])
    own, _ = with_inputs(recipe, Inputs(text="t", chats="c"))
    assert recipe.scale is not None and own.scale is not None
    before, after = recipe.scale.stages, own.scale.stages
    assert (before["pretrain"].epochs, before["pretrain"].decay) == (0, 0)
    assert (after["pretrain"].epochs, after["pretrain"].decay) == (14, 1)
    assert after["sft"].epochs == 4


@pytest.mark.parametrize(
    ("given", "stages", "why"),
    [
        ({"text": "t"}, ["init", "pretrain"], {"sft": "give --chats", "grpo": "no problems"}),
        ({"chats": "c"}, ["init", "sft"], {"pretrain": "give --text"}),
        ({"chats": "c", "problems": "p"}, ["init", "sft", "grpo"], {"ppo": "nobody has rated"}),
        ({"text": "t", "problems": "p"}, ["init", "pretrain"], {"grpo": "learned from chats"}),
        ({"model": "m"}, ["sft", "sample", "rate", "reward", "ppo", "grpo"], {"init": "is given"}),
        ({"model": "m", "problems": "p"}, ["grpo"], {"pretrain": "--text FILE gives it more"}),
    ],
)
def test_a_stage_without_data_is_left_out_and_says_why(
    given: dict[str, str], stages: list[str], why: Mapping[str, str]
) -> None:
    found, left_out = with_inputs(load_recipe("laptop"), Inputs(**given))
    assert list(found.stages) == stages
    assert set(found.stages) | set(left_out) == set(load_recipe("laptop").stages)
    for name, words in why.items():
        assert words in left_out[name]
    if "grpo" in found.stages and "problems" in given:
        grpo: Any = found.stages["grpo"]
        assert (grpo.data, grpo.max_new_tokens) == ("p", 256)
    if "model" in given:
        first: Any = next(iter(found.stages.values()))
        assert (first.model, first.learning_rate, first.optimizer) == ("m", "auto", "adamw")


def test_files_that_teach_no_stage_are_refused() -> None:
    with pytest.raises(UserError, match="problems: laptop has no stage that learns from this"):
        with_inputs(load_recipe("laptop"), Inputs(problems="p"))


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match="text: no such file or folder.*nowhere.txt"):
        Inputs(text="nowhere.txt").check()


# ---- sizes and steps ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fits() -> Callable[[float], Fitted]:
    recipe = load_recipe("laptop")
    read = Read()

    def fit(seconds: float) -> Fitted:
        around = Surroundings(MACHINE, recipe.corpus, Path("runs"), recipe.exam, read=read)
        assert recipe.scale is not None
        return fitted(recipe, recipe.scale, seconds, around, Factors())

    return fit


@pytest.mark.slow
def test_more_time_makes_a_larger_model_that_reads_more(fits: Callable[[float], Fitted]) -> None:
    read, sizes = [], []
    for seconds in (300, 1800, 7200):
        found = fits(seconds)
        assert found.total == pytest.approx(seconds, rel=0.05)
        cost = found.costs["pretrain"]
        pretrain: Any = found.recipe.stages["pretrain"]
        read.append(pretrain.steps * cost.plan.tokens_per_step)
        sizes.append(cost.plan.trained)
        for name in ("pretrain", "sft", "ppo", "grpo"):
            cfg: Any = found.recipe.stages[name]
            assert isinstance(cfg.steps, int)
            assert isinstance(cfg.learning_rate, float)
    assert read == sorted(read)
    assert sizes == sorted(sizes)
    assert sizes[-1] > sizes[0]


@pytest.mark.slow
def test_a_small_text_is_not_read_for_ever(
    tmp_path: Path,
) -> None:
    text = tmp_path / "book.txt"
    words = [f"{a}{b}{c}" for a in "bdfk" for b in "aeiou" for c in "lmnrst"]
    rng = np.random.default_rng(0)
    text.write_text("\n\n".join(" ".join(rng.choice(words, 60)) for _ in range(1000)))
    recipe, _ = with_inputs(load_recipe("laptop"), Inputs(text=str(text)))
    assert recipe.scale is not None
    passes, decays = [], []
    for seconds in (60, 600, 3600):
        around = Surroundings(MACHINE, recipe.corpus, Path("runs"), recipe.exam, read=Read())
        found = fitted(recipe, recipe.scale, seconds, around, Factors())
        pretrain: Any = found.recipe.stages["pretrain"]
        epoch = found.costs["pretrain"].epoch
        assert epoch is not None
        passes.append(pretrain.steps / epoch)
        decays.append(pretrain.weight_decay)
    assert passes[0] < 14 and passes[-1] == pytest.approx(14, rel=0.05)
    assert 0 < decays[0] < 1 and decays[-1] == pytest.approx(1, abs=0.1)


@pytest.mark.slow
def test_a_time_that_is_too_short_is_refused_with_one_that_is_not(
    fits: Callable[[float], Fitted],
) -> None:
    with pytest.raises(TooShort) as raised:
        fits(20)
    told = str(too_short(load_recipe("laptop"), 20, raised.value))
    assert told.startswith("time: 20s is too short for 8 stages on this machine (laptop takes ")
    enough = parse_time(told.removesuffix(" at least)").rpartition(" ")[2])
    assert enough is not None
    fits(enough)


def test_what_a_recipe_says_in_steps_is_scaled_with_them() -> None:
    cfg: Any = load_recipe("laptop").stages["pretrain"]
    scaled: Any = with_steps(cfg, 2 * cfg.steps)
    assert (scaled.eval_every, scaled.save_every) == (2 * cfg.eval_every, 2 * cfg.save_every)
    assert scaled.warmup_steps == "auto"
    sample: Any = with_steps(load_recipe("laptop").stages["sample"], 77)
    assert sample.prompts == 77


def test_the_shapes_grow() -> None:
    sizes = [shape.parameters(1024, tied=False) for shape in SHAPES]
    assert sizes == sorted(sizes)
    assert all(big < 2.3 * small for small, big in zip(sizes, sizes[1:], strict=False))
    assert all(shape.hidden % shape.settings["num_attention_heads"] == 0 for shape in SHAPES)


# ---- while it runs --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_stages.make(
        tmp_path_factory.mktemp("dial"), load_backend("torch", "cpu", "float32")
    )


class Run:
    """Stages that take so many times as long as is planned, on a clock of their own."""

    def __init__(self, folder: Path, policy: Path, seconds: float, slow: Mapping[str, float]):
        self.recipe, self.slow, self.policy = _recipe(), slow, str(policy)
        assert self.recipe.scale is not None
        self.folder = RunFolder(folder)
        self.clock = 0.0
        self.record = DialRecord("laptop", seconds, self.recipe.scale)
        self.record.factors = {"learning": 1.0}
        self.record.probe = {"answers": 64.0, "rewarded": 3.0}
        self.said: list[str] = []
        self.timed = self.start()
        self.steps: dict[str, int] = {}

    def start(self) -> Timed:
        return Timed(
            self.recipe,
            self.record,
            self.folder,
            MACHINE,
            None,
            self.said.append,
            now=lambda: self.clock,
        )

    def stage(self, name: str) -> None:
        given = {"policy": self.policy} if name != "init" else {}
        cfg: Any = self.timed.before(name, given)
        if cfg is None:
            return
        count = getattr(cfg, "steps", 0) or getattr(cfg, "prompts", 0)
        self.steps[name] = count
        cost = self.timed._cost
        assert cost is not None
        each = cost.planned_step * self.slow.get(name, 1.0)
        whole = cost.planned_fixed + each * count
        stage = self.folder.stage(name)
        stage.create()
        lines = [
            json.dumps({"t": 0, "event": "step", "step": n + 1, "seconds": each})
            for n in range(count)
        ]
        stage.events.write_text("\n".join(lines) + "\n")
        stage.done.write_text(json.dumps({"seconds": whole}))
        self.clock += whole
        self.timed.after(name)

    def all(self) -> float:
        for name in self.recipe.stages:
            self.stage(name)
        return self.timed.used


def _recipe() -> Recipe:
    """The built-in road, small, from a model that is there."""
    recipe = load_recipe("laptop", sorted(SMALL))
    stages = {n: c for n, c in recipe.stages.items() if n in ("pretrain", "sft", "grpo")}
    assert recipe.scale is not None
    scale = replace(recipe.scale, stages={n: recipe.scale.stages[n] for n in stages})
    return replace(recipe, stages=stages, scale=scale)


@pytest.mark.parametrize("slow", [0.5, 1.0, 1.6])
def test_the_stages_that_follow_make_good_what_one_took_too_long(
    models: Path, tmp_path: Path, slow: float
) -> None:
    run = Run(tmp_path, models / "policy", 200, {"pretrain": slow, "sft": slow, "grpo": slow})
    run.record.factors["writing"] = slow
    assert run.all() == pytest.approx(200, rel=0.1)
    assert run.record.ended == ["pretrain", "sft", "grpo"]


def test_a_resume_takes_what_was_decided(models: Path, tmp_path: Path) -> None:
    run = Run(tmp_path, models / "policy", 100, {"pretrain": 1.5})
    run.stage("pretrain")
    before = run.timed.before("sft", {"policy": run.policy})
    again = record.load(tmp_path)
    assert again == run.record
    assert again is not None
    run.record = again
    run.clock += 1000  # the machine stood still meanwhile
    resumed = run.start()
    assert resumed.used == pytest.approx(again.used)
    assert resumed.before("sft", {"policy": run.policy}) == before


def test_a_stage_that_is_not_scaled_keeps_its_settings(models: Path, tmp_path: Path) -> None:
    run = Run(tmp_path, models / "policy", 120, {})
    scale = run.record.scale
    run.record.scale = replace(scale, stages={"pretrain": scale.stages["pretrain"]})
    changes: dict[str, Any] = {"steps": "auto", "sequence_length": "auto", "batch_size": "auto"}
    run.recipe = replace(
        run.recipe,
        stages={**run.recipe.stages, "sft": replace(run.recipe.stages["sft"], **changes)},
    )
    run.timed = run.start()
    run.stage("pretrain")
    cfg: Any = run.timed.before("sft", {"policy": run.policy})
    assert (cfg.steps, cfg.batch_size) == ("auto", "auto")
    stage = run.folder.stage("sft")
    stage.create()
    stage.events.write_text(json.dumps({"t": 0, "event": "step", "step": 1, "seconds": 0.1}) + "\n")
    stage.done.write_text(json.dumps({"seconds": 1.0}))
    run.timed.after("sft")
    assert "sft" in run.record.ended


def test_progress_says_how_much_of_the_time_is_used(models: Path, tmp_path: Path) -> None:
    run = Run(tmp_path, models / "policy", 600, {})
    run.stage("pretrain")
    run.timed.before("sft", {"policy": run.policy})
    run.clock = 250.0
    assert run.timed.time().words() == "stage 2 of 3, 4:10 of 10:00"


ODD: tuple[Any, ...] = (None, True, -1, 1e300, float("nan"), "", "x", [], {}, [[]], {"a": None})


def test_any_odd_value_in_a_record_is_one_line_or_a_record(tmp_path: Path) -> None:
    scale = load_recipe("laptop").scale
    assert scale is not None
    DialRecord("laptop", 60.0, scale).save(tmp_path)
    file = tmp_path / record.FILE
    whole = json.loads(file.read_text())
    for name in whole:
        for odd in ODD:
            file.write_text(json.dumps({**whole, name: odd}))
            try:
                found = record.load(tmp_path)
            except UserError as error:
                assert "\n" not in str(error) and "dial.json" in str(error)
            else:
                assert found is not None
                found.save(tmp_path)


def test_a_corpus_written_out_and_read_again_is_one_corpus(tmp_path: Path) -> None:
    recipe = load_recipe("tiny")  # some of whose weights are those by default
    file = tmp_path / "recipe.yaml"
    file.write_text(dump_yaml(recipe.mapping()))
    again = load_recipe(str(file))
    assert data_digest("builtin", "", again.corpus) == data_digest("builtin", "", recipe.corpus)
    other = load_recipe("tiny", ["corpus.documents.stories=8"])
    assert data_digest("builtin", "", other.corpus) != data_digest("builtin", "", recipe.corpus)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 0},
        {"used": "much"},
        {"used": float("nan")},
        {"ended": 3},
        {"scale": {"stages": {}}},
        {"decided": {"sft": {"steps": [1]}}},
        {"seconds": -1},
    ],
)
def test_a_damaged_record_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    scale = load_recipe("laptop").scale
    assert scale is not None
    DialRecord("laptop", 60.0, scale).save(tmp_path)
    file = tmp_path / record.FILE
    assert record.load(tmp_path) is not None
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(UserError, match="dial.json"):
        record.load(tmp_path)
    file.write_text("{")
    with pytest.raises(UserError, match="dial.json"):
        record.load(tmp_path)


def test_files_without_a_time_leave_the_stages_as_they_stand(tmp_path: Path) -> None:
    recipe = load_recipe("laptop", ["scale.time="])
    text = tmp_path / "t.txt"
    text.write_text("some words")
    found = road(from_mapping(RunConfig, {"text": str(text)}), recipe, None, tmp_path)
    assert (found.fit, found.recipe.scale) == (None, None)
    pretrain: Any = found.recipe.stages["pretrain"]
    assert pretrain.steps == recipe.stages["pretrain"].steps  # type: ignore[attr-defined]
