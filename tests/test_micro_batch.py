"""How many rows are computed at once belongs to the machine: it changes no result, is halved where
memory runs out, and is recorded, so that a resume is exact to the last bit.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import models
import ondevice as od
import small_stages
from data_samples import small_tokenizer
from ondevice.common.errors import UserError
from ondevice.common.files import whole_folder
from ondevice.config.earlier import upgraded
from ondevice.config.recipe import load_recipe
from ondevice.models.model import Model
from ondevice.runs import checkpoint, device_batch
from ondevice.runs.device_batch import choose_decode_batch, choose_micro_batch
from ondevice.runs.events import read
from ondevice.seam.protocols import Backend, Memory
from ondevice.seam.select import load_backend
from small_stages import settings

STEPS = 4
MEASURED = ("t", "seconds", "tokens_per_second", "memory_bytes", "groups")
TEXTS = [f"Anna has {n} apples and Ben has {n % 7} pears in Rome." for n in range(60)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = small_stages.make(
        tmp_path_factory.mktemp("files"), load_backend("torch", device="cpu", dtype="float32")
    )
    (folder / "texts.txt").write_text("\n".join(TEXTS))
    labelled = [{"text": text, "label": str(n % 3)} for n, text in enumerate(TEXTS)]
    (folder / "labelled.jsonl").write_text("\n".join(map(json.dumps, labelled)))
    judged = [
        {"prompt": f"Say {n}", "completion": "yes" if n % 2 else "no", "label": n % 2 == 1}
        for n in range(40)
    ]
    (folder / "judged.jsonl").write_text("\n".join(map(json.dumps, judged)))
    # other questions than those of chats and pairs, which are learned beside their rewards then
    lines = (folder / "prompts.jsonl").read_text().splitlines()
    asked = [{"prompt": "Name " + json.loads(line)["prompt"]} for line in lines]
    (folder / "asked.jsonl").write_text("\n".join(map(json.dumps, asked)))
    return folder


def run(files: Path, stage: str, out: Path, backend: str, **changes: Any) -> list[dict[str, Any]]:
    """Runs the stage and returns what its steps tell, except for what a clock measures."""
    plain: dict[str, Any] = {"steps": STEPS, "save_every": 0, **changes}
    if stage in small_stages.STAGES:
        getattr(od, stage)(**settings(files, stage, out, backend, **plain))
    else:
        own: dict[str, Any] = {
            "pretrain": {"data": str(files / "texts.txt"), "sequence_length": 24},
            "sft": {"data": str(files / "chats.jsonl"), "sequence_length": 40},
            "classify": {"data": str(files / "labelled.jsonl"), "sequence_length": 40},
        }[stage]
        fields = {
            "model": str(files / "policy"),
            "out": str(out),
            "backend": backend,
            **small_stages.LOOP,
            "batch_size": 7,
            **own,
            **plain,
        }
        getattr(od, stage)(**fields)
    return told(out, stage)


def told(out: Path, stage: str, kind: str = "step") -> list[dict[str, Any]]:
    found = []
    for event in read(out / stage / "events.jsonl"):
        if event["event"] == kind:
            found.append(
                {
                    name: v
                    for name, v in event.items()
                    if name not in MEASURED and not name.endswith("_seconds")
                }
            )
    return found


def slow(stage: str, changes: dict[str, Any]) -> Any:
    return pytest.param(stage, changes, marks=pytest.mark.slow)


KINDS = [
    ("pretrain", {}),
    slow("pretrain", {"isolate_documents": True}),
    ("sft", {}),
    slow("sft", {"packing": False}),
    slow("sft", {"adapter": "lora"}),
    slow("classify", {}),
    ("reward", {"batch_size": 7}),
    ("dpo", {"batch_size": 7}),
    *(
        slow("dpo", {"batch_size": 7, "loss_type": kind})
        for kind in ("robust", "hinge", "ipo", "kto", "orpo", "simpo")
    ),
    ("dpo", {"batch_size": 7, "loss_type": "kto", "data": "judged.jsonl"}),
    ("ppo", {}),
    ("grpo", {"loss_type": "dapo", "updates": 1, "data": "asked.jsonl"}),
    *(
        slow("grpo", {"loss_type": kind, "updates": 1, "data": "asked.jsonl"})
        for kind in ("grpo", "dr_grpo", "gspo")
    ),
    ("grpo", {"loss_type": "bnpo", "partition": 5, "updates": 1, "data": "asked.jsonl"}),
    slow("grpo", {"mask_truncated": True, "updates": 1, "data": "asked.jsonl"}),
]


@pytest.mark.parametrize(("stage", "changes"), KINDS)
def test_the_result_is_the_same_within_rounding(
    files: Path, tmp_path: Path, stage: str, changes: dict[str, Any]
) -> None:
    """Losses, norms of gradients and all other figures of the first step, with 1, 3 and all rows at
    once; of the second what is left of rounding after an update by AdamW.
    """
    changes = dict(changes)
    if "data" in changes:
        changes["data"] = str(files / changes["data"])
    whole = run(files, stage, tmp_path / "whole", "torch", **changes, steps=2, micro_batch=64)
    for size in (1, 3):
        parted = run(
            files, stage, tmp_path / str(size), "torch", **changes, steps=2, micro_batch=size
        )
        for one, other, within in zip(whole, parted, (2e-6, 1e-3), strict=True):
            assert one.keys() == other.keys()
            for name, value in one.items():
                # at the start both sides of a pair are as likely as the reference says
                if isinstance(value, int | float) and not name.endswith("accuracy"):
                    assert other[name] == pytest.approx(value, rel=within, abs=within), name


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "dpo", "ppo", "grpo"])
def test_the_result_is_the_same_on_mlx(files: Path, tmp_path: Path, stage: str) -> None:
    pytest.importorskip("mlx.core")
    # of two updates the event of a step tells both, the second after rounding has grown
    once: dict[str, Any] = {"updates": 1} if stage == "grpo" else {}
    whole = run(files, stage, tmp_path / "whole", "mlx", micro_batch=64, **once)
    parted = run(files, stage, tmp_path / "parted", "mlx", micro_batch=3, **once)
    # What is left of rounding grows from update to update; where a stage samples, it gives another
    # text in the end.
    steps = [1e-5, 1e-2, 1e-1, 1e-1]
    assert len(whole) == len(parted) == len(steps)
    compared = 3 if stage in ("ppo", "grpo") else 4
    for one, other, within in zip(whole, parted, steps[:compared], strict=False):
        assert other["loss"] == pytest.approx(one["loss"], rel=within, abs=within)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=within)


# ---- where memory runs out ------------------------------------------------------------------------------------------


class Small:
    """A device on which a gradient of more than `rows` rows does not fit, from the `first` one on
    that is asked for; `error` is what the library raises then. Asked for the gradient of number
    `killed`, the process ends.
    """

    def __init__(self, backend: Backend, rows: int, first: int = 0, killed: int | None = None):
        self.rows, self.first, self.killed, self.asked = rows, first, killed, 0
        trainer = type(backend.trainer(lambda *_: None, {}, {}, small_optim()))  # type: ignore[arg-type, return-value]
        self.trainer, self.whole = trainer, trainer.gradient

    def install(self, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
        small = self

        def gradient(trainer: Any, batches: Any) -> None:
            number = small.asked
            small.asked += 1
            if number == small.killed:
                raise KeyboardInterrupt
            widest = max(len(batch["ids"]) for batch in batches)
            if number >= small.first and widest > small.rows:
                small.whole(trainer, batches[:1])  # some of it is there already
                trainer._forget_gradient()
                raise error
            small.whole(trainer, batches)

        monkeypatch.setattr(self.trainer, "gradient", gradient)


def small_optim() -> Any:
    from ondevice.seam.protocols import OptimSettings

    return OptimSettings()


ERRORS = {
    "torch": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory"
    ),
    "mlx": RuntimeError("[malloc] Unable to allocate 8589934592 bytes."),
}


def halved(out: Path, stage: str) -> list[tuple[int, str, int]]:
    return [(e["step"], e["during"], e["micro_batch"]) for e in told(out, stage, "device_batch")]


def test_out_of_memory_halves_the_micro_batch_and_repeats_the_step(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: Backend
) -> None:
    plain = run(files, "sft", tmp_path / "plain", backend.name, batch_size=8, micro_batch=8)
    small = Small(backend, 2, first=2)
    small.install(monkeypatch, ERRORS[backend.name])
    got = run(files, "sft", tmp_path / "small", backend.name, batch_size=8, micro_batch=8)
    assert halved(tmp_path / "small", "sft") == [(2, "update 0", 4), (2, "update 0", 2)]
    assert got[:2] == plain[:2]
    for one, other in zip(plain, got, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
    [first, _] = told(tmp_path / "small", "sft", "warning")
    assert "step 3: memory ran out" in first["message"] and "micro_batch 4" in first["message"]


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "first", "killed"), [("sft", 4, 7), ("grpo", 9, 13)])
def test_killed_between_a_halving_and_the_next_save_the_curve_is_the_same_bits(
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    first: int,
    killed: int,
) -> None:
    """Going on, memory does not run out again: the halving is made at the same place all the same."""
    backend = load_backend("torch", device="cpu", dtype="float32")
    fields: dict[str, Any] = {"steps": 8, "save_every": 3, "micro_batch": 8}
    if stage == "sft":
        fields["batch_size"] = 8
    with monkeypatch.context() as patch:
        Small(backend, 3, first=first).install(patch, ERRORS["torch"])
        whole = run(files, stage, tmp_path / "whole", "torch", **fields)
    changes = halved(tmp_path / "whole", stage)
    assert [rows for _, _, rows in changes] == [4, 2]
    at = changes[0][0]
    with monkeypatch.context() as patch:
        Small(backend, 3, first=first, killed=killed).install(patch, ERRORS["torch"])
        with pytest.raises(KeyboardInterrupt):
            run(files, stage, tmp_path / "broken", "torch", **fields)
    newest = checkpoint.newest(tmp_path / "broken" / stage / "checkpoints", print)
    assert newest is not None and newest.step <= at  # the halving is in no checkpoint
    assert newest.record["device_batch"]["micro_batch"] == 8
    again = run(files, stage, tmp_path / "broken", "torch", **fields, resume=True)
    assert again[-len(whole) + newest.step :] == whole[newest.step :]
    assert same_weights(tmp_path / "broken" / stage, tmp_path / "whole" / stage)


def same_weights(one: Path, other: Path) -> bool:
    from safetensors.numpy import load_file

    first, second = (load_file(p / "model" / "model.safetensors") for p in (one, other))
    return first.keys() == second.keys() and all(
        np.array_equal(first[name], second[name]) for name in first
    )


def test_one_row_that_does_not_fit_ends_the_stage_in_one_line(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = load_backend("torch", device="cpu", dtype="float32")
    Small(backend, 0).install(monkeypatch, ERRORS["torch"])
    with pytest.raises(UserError, match="not enough memory even for one row at a time") as caught:
        run(files, "sft", tmp_path, "torch", micro_batch=2)
    assert "--resume" in caught.value.hint and "\n" not in str(caught.value)


def test_halving_counts_from_the_rows_there_are(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More rows than a step has are never computed at once: half of them would be no fewer."""
    backend = load_backend("torch", device="cpu", dtype="float32")
    Small(backend, 4).install(monkeypatch, ERRORS["torch"])
    run(files, "sft", tmp_path, "torch", batch_size=8, micro_batch=64)
    assert halved(tmp_path, "sft") == [(0, "update 0", 4)]


def test_out_of_memory_inside_the_update_ends_the_stage_and_keeps_its_checkpoint(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: Backend
) -> None:
    whole = run(files, "sft", tmp_path / "whole", backend.name, steps=4, save_every=2)
    trainer = type(backend.trainer(lambda *_: None, {}, {}, small_optim()))  # type: ignore[arg-type, return-value]
    update = trainer.update
    done: list[int] = []

    def failing(self: Any, lr: float) -> Any:
        done.append(1)
        if len(done) == 4:
            raise MemoryError
        return update(self, lr)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "update", failing)
        with pytest.raises(UserError, match="step 4: memory ran out while the optimizer") as caught:
            run(files, "sft", tmp_path / "run", backend.name, steps=4, save_every=2)
    assert "--resume" in caught.value.hint
    again = run(files, "sft", tmp_path / "run", backend.name, steps=4, save_every=2, resume=True)
    assert again[-2:] == whole[-2:]


# ---- choosing -------------------------------------------------------------------------------------------------------


class Device:
    """A backend of which only the memory is asked."""

    dtype = "float32"
    activation_factor = 1.7

    def __init__(self, total: int, device: str = "cpu") -> None:
        self.total, self.device = total, device

    def memory(self) -> Memory:
        return Memory(0, 0, self.total)


def model_of(**changes: Any) -> Model:
    cfg = models.config("llama", vocab_size=small_tokenizer().vocab_size, **changes)
    return Model(cfg, {}, small_tokenizer(), Path("."))


def test_the_micro_batch_follows_from_the_memory_and_the_shapes() -> None:
    small, large = (
        model_of(),
        model_of(hidden_size=512, intermediate_size=2048, num_hidden_layers=8),
    )

    def chosen(model: Model, total: int, device: str = "cpu", checkpointing: bool = False) -> int:
        return choose_micro_batch(
            model,
            Device(total, device),
            24,
            24 * 512,
            checkpointing=checkpointing,
        )

    assert chosen(small, 8 << 30) == 24  # the step of a small model is computed in one
    few = chosen(large, 16 << 30)
    assert 1 <= few < chosen(large, 64 << 30) < chosen(large, 64 << 30, "gpu") == 24
    assert few < chosen(large, 16 << 30, checkpointing=True)
    assert chosen(large, 0) == chosen(large, 8 << 30)  # a machine that does not say


def test_micro_batches_of_a_step_are_of_about_one_size() -> None:
    model = model_of(hidden_size=256, num_hidden_layers=4)
    rows = 10
    for tokens in (100, 300, 1000, 3000):
        size = choose_micro_batch(
            model,
            Device(8 << 30),
            rows,
            rows * tokens,
            checkpointing=False,
        )
        assert rows - size * (rows // size) == 0 or rows % size >= size - (rows // size + 1)


def test_what_is_written_at_once_has_room_for_its_cache() -> None:
    model = model_of(hidden_size=512, num_hidden_layers=8)
    short = choose_decode_batch(model, Device(8 << 30), 100)
    long = choose_decode_batch(model, Device(8 << 30), 100_000)
    assert short == 256 and 1 <= long < 32


def test_auto_is_chosen_once_told_and_kept_by_a_resume(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(device_batch, "choose_micro_batch", lambda *args, **kwargs: 3)
    run(files, "sft", tmp_path, "torch", steps=2)
    assert halved(tmp_path, "sft") == [(0, "start", 3)]
    assert "the gradient of 3 of 7 rows is computed at once" in capsys.readouterr().err
    record = checkpoint.load(checkpoint.path_at(tmp_path / "sft" / "checkpoints", 2)).record
    assert record["device_batch"]["micro_batch"] == 3
    shutil.rmtree(tmp_path / "sft" / "model")
    (tmp_path / "sft" / "done.json").unlink()
    monkeypatch.setattr(device_batch, "choose_micro_batch", lambda *args, **kwargs: 5)
    run(files, "sft", tmp_path, "torch", steps=4, resume=True)
    assert halved(tmp_path, "sft") == [(0, "start", 3)]  # no new choice


# ---- earlier versions -----------------------------------------------------------------------------------------------


def test_settings_of_earlier_versions_are_read_as_those_of_today() -> None:
    assert upgraded("sft", {"batch_size": 4, "accumulate": 3, "eval_batches": 20}) == {
        "batch_size": 12,
        "micro_batch": 4,
        "eval_batches": 7,
    }
    assert upgraded("dpo", {"accumulate": 1}) == {"batch_size": 16, "micro_batch": 16}
    assert upgraded("grpo", {"batch_size": 9, "rollout_batch": 5, "loss_type": "bnpo"}) == {
        "micro_batch": 9,
        "decode_batch": 5,
        "partition": 9,
        "loss_type": "bnpo",
    }
    assert upgraded("ppo", {"batch_size": 40, "accumulate": 1, "sft_coef": 0.1}) == {
        "micro_batch": 40,
        "sft_batch": 10,
        "sft_coef": 0.1,
    }
    assert upgraded("sample", {"batch_size": 8}) == {"decode_batch": 8}
    for stage in ("sft", "grpo", "ppo", "sample", "init"):
        now = {"batch_size": 16, "micro_batch": "auto", "decode_batch": "auto"}
        if stage != "sample":
            assert upgraded(stage, now) == now
    wrong = {"batch_size": "many", "accumulate": 2}
    assert upgraded("sft", wrong) == wrong  # the check of types says what is wrong


def test_a_recipe_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    recipe = tmp_path / "old.yaml"
    recipe.write_text(
        "stages:\n  pretrain: {model: m, batch_size: 4, accumulate: 2}\n"
        "  sample: {batch_size: 32}\n  grpo: {batch_size: 8, rollout_batch: 64, accumulate: 1}\n"
    )
    stages = load_recipe(str(recipe)).stages
    pretrain, sample, grpo = (stages[name] for name in ("pretrain", "sample", "grpo"))
    assert (pretrain.batch_size, pretrain.micro_batch) == (8, 4)  # type: ignore[attr-defined]
    assert sample.decode_batch == 32  # type: ignore[attr-defined]
    assert (grpo.micro_batch, grpo.decode_batch) == (8, 64)  # type: ignore[attr-defined]


def test_a_run_of_an_earlier_version_goes_on_to_the_same_bits(files: Path, tmp_path: Path) -> None:
    """Its checkpoint knows `accumulate` alone."""
    fields = {"steps": 6, "save_every": 2, "batch_size": 8, "micro_batch": 4}
    whole = run(files, "sft", tmp_path / "whole", "torch", **fields)
    run(files, "sft", tmp_path / "old", "torch", **{**fields, "steps": 2, "schedule": "constant"})
    make_older(tmp_path / "old" / "sft")
    del fields["micro_batch"]
    again = run(files, "sft", tmp_path / "old", "torch", **fields, resume=True)
    assert again[-4:] == whole[-4:]
    assert halved(tmp_path / "old", "sft") == []  # its own micro-batch, not a choice
    assert same_weights(tmp_path / "old" / "sft", tmp_path / "whole" / "sft")


def make_older(stage: Path) -> None:
    """Leaves a stopped stage as the version before this one has left it."""
    shutil.rmtree(stage / "model")
    (stage / "done.json").unlink()
    [*_, newest] = checkpoint.steps(stage / "checkpoints")
    record = json.loads((newest / "trainer.json").read_text())
    del record["device_batch"]
    record["fingerprint"] |= {"batch_size": 4, "accumulate": 2}
    kept = newest.with_name("kept")
    newest.rename(kept)
    with whole_folder(newest, {"step": record["step"]}) as folder:
        for file in kept.iterdir():
            if file.name not in ("MANIFEST.json", "trainer.json"):
                (shutil.copytree if file.is_dir() else shutil.copy)(file, folder / file.name)
        (folder / "trainer.json").write_text(json.dumps(record))
    shutil.rmtree(kept)


def test_what_is_gone_names_what_to_give(capsys: pytest.CaptureFixture[str]) -> None:
    from ondevice import cli

    assert cli.main(["sft", "m", "x.jsonl", "--accumulate", "4"]) == 2
    error = capsys.readouterr().err
    assert "--accumulate: is gone" in error and "--micro-batch" in error
    assert cli.main(["sft", "m", "x.jsonl", "--set", "accumulate=4"]) == 2
    assert "is gone" in capsys.readouterr().err
    assert cli.main(["sft", "m", "x.jsonl", "--micro-batch", "few"]) == 2
    assert "expected auto or a whole number, got 'few'" in capsys.readouterr().err
    assert cli.main(["sft", "m", "x.jsonl", "--micro-batch", "0"]) == 2
    assert "give auto, or 1 or more" in capsys.readouterr().err
    assert replace(od_config(), micro_batch=3).micro_batch == 3


def od_config() -> Any:
    from ondevice.config.finetuning import SFTConfig

    return SFTConfig()
