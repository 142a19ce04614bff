"""Adapters in the stages: each on top of the last, resumed, merged, in bfloat16; and what of their
settings is refused.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import models
import ondevice as od
import small_stages
from ondevice.common.errors import UserError
from ondevice.common.files import sha256
from ondevice.data.completion_batches import Row
from ondevice.models import peft
from ondevice.models.convert import merge, quantize
from ondevice.models.load import load_model
from ondevice.models.lora import (
    INHERITED,
    TRAINED,
    adapted_modules,
    concat_all_lora,
    lora_tensors,
)
from ondevice.models.model import Adapter, merged
from ondevice.models.shapes import matrices
from ondevice.runs.events import read
from ondevice.seam.protocols import Backend
from ondevice.seam.select import load_backend
from ondevice.training.losses import causal_lm_loss
from ondevice.training.sequence_logprobs import Scorer
from small_stages import settings
from test_lora import drawn, written
from test_preference_resume import steps
from test_resume import same

LORA = {"adapter": "lora", "lora_rank": 4, "lora_alpha": 8.0}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_stages.make(
        tmp_path_factory.mktemp("files"), load_backend("torch", device="cpu", dtype="float32")
    )


def sft(files: Path, out: Path, backend: str, **fields: Any) -> Path:
    return od.sft(
        files / "policy",
        str(files / "chats.jsonl"),
        out=out,
        backend=backend,
        device="cpu",
        steps=4,
        batch_size=4,
        sequence_length=48,
        learning_rate=1e-2,
        eval_every=0,
        save_every=2,
        **fields,
    )


@pytest.mark.slow
def test_from_sft_to_dpo_to_grpo_each_on_top_of_the_last(
    files: Path, tmp_path: Path, backend: Backend
) -> None:
    """The base is never touched; each reference is the stage's start; the last folder alone, with
    the base, is all.
    """
    name = backend.name
    before = sha256(files / "policy" / "model.safetensors")
    one = sft(files, tmp_path / "run", name, **LORA)
    two = od.dpo(
        **settings(
            files, "dpo", tmp_path / "run", name, **LORA, model=one, steps=3, learning_rate=1e-2
        )
    )
    three = od.grpo(
        **settings(
            files,
            "grpo",
            tmp_path / "run",
            name,
            **LORA,
            model=two,
            steps=2,
            updates=1,
            learning_rate=1e-2,
        )
    )
    assert sha256(files / "policy" / "model.safetensors") == before
    ranks = [json.loads((m / peft.CONFIG).read_text())["r"] for m in (one, two, three)]
    assert ranks == [4, 8, 12]
    assert {
        json.loads((m / peft.CONFIG).read_text())["base_model_name_or_path"]
        for m in (one, two, three)
    } == {str(files / "policy")}
    first = next(e for e in read(two.parent / "events.jsonl") if e["event"] == "step")
    assert first["loss"] == pytest.approx(np.log(2), abs=1e-6) and abs(first["margin"]) < 1e-6
    first = next(e for e in read(three.parent / "events.jsonl") if e["event"] == "step")
    assert abs(first["kl"]) < 1e-6
    kept = concat_all_lora(load_model(two, backend, merge=False).params, backend)
    for module, pair in concat_all_lora(
        load_model(three, backend, merge=False).params, backend
    ).items():
        assert np.array_equal(pair.a[:8], kept[module].a) and np.array_equal(
            pair.b[:, :8], kept[module].b
        )
        assert np.abs(pair.b[:, 8:]).max() > 0


@pytest.mark.parametrize("start", ["whole", "adapter", "quantised with an adapter"])
def test_the_policy_is_the_reference_before_the_first_step(
    start: str, files: Path, tmp_path: Path, backend: Backend
) -> None:
    from ondevice.config.preference import DPOConfig
    from ondevice.stages.tuning import load_start, with_adapter

    ctx: Any = type("Ctx", (), {"backend": backend, "name": "dpo"})
    folder = files / "policy"
    if start.startswith("quantised"):
        folder = quantize(folder, tmp_path / "packed", 8, 32)
    if start != "whole":
        model = load_model(folder, backend)
        low: dict[str, Any] = {}
        for name, pair in drawn(
            model.cfg, [n for n in matrices(model.cfg) if n != "lm_head"]
        ).items():
            low |= lora_tensors(name, pair, TRAINED, backend)
        folder = written(
            replace(model, params={**model.params, **low}, adapter=Adapter(str(folder))),
            backend,
            tmp_path / "adapter",
        )
    cfg = DPOConfig(model=str(folder), **LORA)
    reference = load_start(cfg.model, cfg, backend)
    policy = with_adapter(reference, cfg, ctx)
    scorer = Scorer(policy, backend, batch_size=4)
    rows = [Row([5, 6, 7], [8, 9, 10, 11]), Row([5, 9], [30, 31])]
    now, then = scorer.logprobs(policy.params, rows), scorer.logprobs(reference.params, rows)
    assert all(np.array_equal(a, b) for a, b in zip(now, then, strict=True))
    assert adapted_modules(policy.params, TRAINED) and bool(
        adapted_modules(policy.params, INHERITED)
    ) == (start != "whole")
    plain = scorer.logprobs({n: p for n, p in policy.params.items() if ".lora_" not in n}, rows)
    same_as_base = all(np.allclose(a, b, atol=1e-6) for a, b in zip(now, plain, strict=True))
    assert same_as_base == (start == "whole")  # what was inherited is applied


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "ppo", "grpo"])
def test_going_on_gives_the_run_that_was_never_interrupted(
    stage: str, files: Path, tmp_path: Path, backend_name: str
) -> None:
    """From an inherited adapter; stopped at its checkpoint in the middle; to the bit."""
    start = sft(files, tmp_path / "start", backend_name, **LORA)

    def run(out: str, **fields: Any) -> Path:
        if stage == "sft":
            return sft(
                files,
                tmp_path / out,
                backend_name,
                **{**LORA, "lora_whole": ("lm_head",), **fields},
            )
        given = settings(
            files,
            stage,
            tmp_path / out,
            backend_name,
            model=start,
            **{**LORA, "steps": 4, **fields},
        )
        return getattr(od, stage)(**given)

    whole = run("whole")
    broken = run("broken")
    folder = broken.parent
    # as a kill right after the checkpoint in the middle leaves it
    import shutil

    for path in (
        folder / "model",
        folder / "value_model",
        folder / "checkpoints" / "step-00000004",
    ):
        shutil.rmtree(path, ignore_errors=True)
    for path in (folder / "done.json", folder / "checkpoints" / "best"):
        path.unlink(missing_ok=True)
    run("broken", resume=True)
    assert any(e["event"] == "resume" and e["step"] == 2 for e in read(folder / "events.jsonl"))
    assert steps(tmp_path / "broken", stage) == steps(tmp_path / "whole", stage)
    from safetensors.numpy import load_file

    for name in ("model", *(["value_model"] if stage == "ppo" else [])):
        one, other = (load_file(m.parent / name / peft.WEIGHTS) for m in (whole, broken))
        assert same(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merge_writes_whole_weights(
    dtype: str, files: Path, tmp_path: Path, backend: Backend
) -> None:
    """What is added is added to the base as its file has it, whatever was computed in."""
    low = sft(files, tmp_path / "low", backend.name, **LORA, dtype=dtype)
    whole = sft(files, tmp_path / "whole", backend.name, **LORA, merge=True, dtype=dtype)
    assert (whole / "config.json").is_file() and not (whole / peft.CONFIG).exists()
    later = merge(low, tmp_path / "later", backend=backend)
    one = load_model(low, backend)
    for folder in (whole, later):
        other = load_model(folder, backend)
        for name, p in one.params.items():
            np.testing.assert_allclose(
                backend.numpy(p), backend.numpy(other.params[name]), rtol=1e-6, atol=1e-7
            )
    with pytest.raises(UserError, match="nothing to merge"):
        merge(later, tmp_path / "again", backend=backend)
    assert merged(other, backend).params.keys() == other.params.keys()


@pytest.mark.slow
def test_whole_weights_go_on_from_an_adapter(files: Path, tmp_path: Path) -> None:
    """Without --adapter a stage takes the adapter into the weights and trains these."""
    low = sft(files, tmp_path / "low", "torch", **LORA)
    made = od.dpo(**settings(files, "dpo", tmp_path / "low", "torch", model=low, steps=2))
    assert (made / "config.json").is_file()
    first = next(e for e in read(made.parent / "events.jsonl") if e["event"] == "step")
    assert first["loss"] == pytest.approx(np.log(2), abs=1e-6)


@pytest.mark.slow
def test_a_reward_models_head_is_trained_whole(
    files: Path, tmp_path: Path, backend: Backend
) -> None:
    """And PEFT reads it; PPO takes it with a base of its own."""
    torch, theirs = pytest.importorskip("torch"), pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    judge = od.reward(**settings(files, "reward", tmp_path / "run", backend.name, **LORA, steps=4))
    config = json.loads((judge / peft.CONFIG).read_text())
    assert config["task_type"] == "SEQ_CLS" and config["modules_to_save"] == ["score"]
    model = load_model(judge, backend)
    assert model.cfg.num_labels == 1
    base = transformers.AutoModelForSequenceClassification.from_pretrained(
        files / "policy", num_labels=1
    )
    loaded = theirs.PeftModel.from_pretrained(base, judge).eval()
    text = [5, 6, 7, 8, 9]
    with torch.no_grad():
        want = loaded(input_ids=torch.tensor([text])).logits.item()
    assert Scorer(model, backend).scores(model.params, [text])[0] == pytest.approx(want, abs=1e-4)
    made = od.ppo(
        **settings(
            files, "ppo", tmp_path / "run", backend.name, **LORA, reward_model=judge, steps=2
        )
    )
    assert (made / peft.CONFIG).is_file() and (made.parent / "value_model" / peft.CONFIG).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("quantised_base", [False, True])
def test_in_bfloat16_the_base_is_small_and_what_is_trained_exact(
    quantised_base: bool, files: Path, tmp_path: Path, backend_name: str
) -> None:
    """The base is held in bfloat16, the adapter in float32: updates far below bfloat16's steps add
    up. The loss is float32's within bfloat16's noise."""
    from ondevice.config.finetuning import SFTConfig
    from ondevice.seam.protocols import OptimSettings
    from ondevice.stages.tuning import load_start, with_adapter

    folder = (
        quantize(files / "policy", tmp_path / "low", 8, 32) if quantised_base else files / "policy"
    )
    cfg = SFTConfig(model=str(folder), **LORA)
    losses, moved = {}, np.zeros(1)
    for dtype in ("float32", "bfloat16"):
        backend = load_backend(backend_name, device="cpu", dtype=dtype)
        ctx: Any = type("Ctx", (), {"backend": backend, "name": "sft"})
        model = with_adapter(load_start(cfg.model, cfg, backend), cfg, ctx)
        kept = {
            str(p.dtype).rpartition(".")[2]
            for n, p in model.params.items()
            if not model.trains(n) and ".lora_" not in n
        }
        assert kept == {dtype, "uint32"} if quantised_base else {dtype}
        own = {n: p for n, p in model.params.items() if model.trains(n)}
        assert {str(p.dtype).rpartition(".")[2] for p in own.values()} == {"float32"}
        trained = backend.trainer(
            partial(causal_lm_loss, model=model.network, checkpoint=True),
            own,
            {n: p for n, p in model.params.items() if n not in own},
            OptimSettings(clip_norm=0.0),
        )
        batch = models.batch(model.cfg, tokens=30)
        name = f"model.layers.0.mlp.up_proj.lora_A.{TRAINED}"
        before = backend.numpy(trained.params()[name]).copy()
        losses[dtype] = [trained.step([batch], 1e-6)["loss"] for _ in range(4)]
        moved = np.abs(backend.numpy(trained.params()[name]) - before)
    assert 0 < moved.max() < 1e-5  # below half a step of bfloat16 at these values
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], rtol=0.02)


# what a person does wrong


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"merge": True}, "merge: has no effect: there is no adapter"),
        ({"lora_targets": ("q_proj",)}, "lora_targets: has no effect: there is no adapter"),
        ({**LORA, "lora_targets": ("q_prj",)}, "no matrix 'q_prj' (did you mean 'q_proj'?)"),
        (
            {**LORA, "chat_template": "chatml"},
            "needs new tokens, for which an adapter's base has no room",
        ),
        ({**LORA, "lora_whole": ("embeddings",)}, "no matrix 'embeddings'"),
        ({**LORA, "lora_rank": 0}, "lora_rank"),
        ({**LORA, "optimizer": "muon"}, "muon is for whole"),
        ({**LORA, "lora_alpha": 0}, "lora_alpha"),
    ],
)
def test_wrong_settings(fields: dict[str, Any], said: str, files: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        sft(files, tmp_path / "run", "torch", **fields)
    assert said in str(caught.value), caught.value


def test_settings_of_adapters_are_not_a_whole_runs_own(files: Path, tmp_path: Path) -> None:
    """A run without an adapter is the same run whatever later versions let an adapter have."""
    sft(files, tmp_path / "run", "torch")
    done = json.loads((tmp_path / "run" / "sft" / "done.json").read_text())
    assert not [
        name for name in done["fingerprint"] if "lora" in name or name in ("adapter", "merge")
    ]
    with pytest.raises(UserError, match="lora_rank: has no effect: there is no adapter"):
        sft(files, tmp_path / "run", "torch", lora_rank=8, resume=True)
