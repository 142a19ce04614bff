"""Architectures that are not ours, through transformers on torch and mlx-lm on MLX: a mixture of
experts, hybrids.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import library_models
import ondevice as od
import small_stages
from gradients import on_device
from library_models import LIBRARY
from ondevice import cli
from ondevice.common.errors import UserError
from ondevice.data.completion_batches import Row, completion_batch
from ondevice.inference.beam_search import beam_search
from ondevice.inference.external_generator import generator_of
from ondevice.inference.next_token import Sampling
from ondevice.models.load import load_model
from ondevice.models.lora import INHERITED, adapted_modules
from ondevice.models.model import Model
from ondevice.models.save import write
from ondevice.runs.events import read
from ondevice.seam.protocols import Backend
from ondevice.seam.select import load_backend
from ondevice.training.sequence_logprobs import Scorer
from warm_processes import killed_at_first_save

pytestmark = pytest.mark.slow
transformers = pytest.importorskip("transformers", reason="transformers is the oracle")
TRAINED = ("experts", "hybrid")
LORA: dict[str, Any] = {"adapter": "lora", "lora_rank": 3, "lora_alpha": 6.0}
SFT: dict[str, Any] = {
    "device": "cpu",
    "steps": 8,
    "batch_size": 4,
    "sequence_length": 48,
    "learning_rate": 2e-2,
    "eval_every": 0,
    "warmup_steps": 0,
    "schedule": "constant",
}
ROWS = [Row([9, 30, 77, 12], [5, 6, 7]), Row([40, 8], [11, 2]), Row([3, 99, 4, 5, 6, 200, 14], [8])]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("files")
    for kind in LIBRARY:
        library_models.write(made / kind, kind)
    return small_stages.make(made, load_backend("torch", device="cpu", dtype="float32"))


def theirs(folder: Path) -> Any:
    import torch

    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def their_logps(model: Any) -> np.ndarray:
    """Of every token of the completions in ROWS, one row at a time."""
    import torch

    found = []
    for row in ROWS:
        ids = torch.tensor([[*row.prompt, *row.completion]])
        with torch.no_grad():
            logp = model(input_ids=ids).logits[0].log_softmax(-1)
        found += [float(logp[at - 1, ids[0, at]]) for at in range(len(row.prompt), ids.shape[1])]
    return np.array(found, np.float32)


def logps(model: Model, backend: Backend) -> np.ndarray:
    """The same, all rows of a batch together and padded at the right."""
    return np.concatenate(Scorer(model, backend, batch_size=4).logprobs(model.params, ROWS))


@pytest.mark.parametrize("kind", LIBRARY)
def test_log_probs_and_text_are_the_librarys(kind: str, files: Path, backend: Backend) -> None:
    """Greedy text of prompts of several lengths; what is drawn does not depend on the neighbours."""
    import torch

    model, oracle = load_model(files / kind, backend), theirs(files / kind)
    np.testing.assert_allclose(logps(model, backend), their_logps(oracle), rtol=1e-5, atol=2e-5)
    prompts = [list(row.prompt) for row in (*ROWS, *ROWS[:1])]
    stops = model.tokenizer.stop_ids
    found = generator_of(model, backend, Sampling(max_new_tokens=10, temperature=0)).run(
        model.params, prompts
    )
    for prompt, one in zip(prompts, found, strict=True):
        wanted = oracle.generate(
            torch.tensor([prompt]),
            max_new_tokens=10,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=list(stops),
        )[0, len(prompt) :].tolist()
        assert [*one.ids, *([] if one.stop is None else [one.stop])] == wanted
    drawn = generator_of(model, backend, Sampling(max_new_tokens=6, temperature=1.0))
    together = drawn.run(model.params, prompts, samples=2)
    assert len({tuple(c.ids) for c in together}) > 4
    assert [c.ids for c in drawn.run(model.params, prompts[2:3], first=5)] == [together[5].ids]


@pytest.mark.parametrize("kind", library_models.OTHERS)
def test_others_in_passing(kind: str, tmp_path: Path, backend: Backend) -> None:
    """Gemma 2 caps its logits, which is no plain product: better refused than computed otherwise."""
    folder = library_models.write(tmp_path / kind, kind)
    if kind == "gemma2":
        with pytest.raises(UserError, match="not a plain product"):
            load_model(folder, backend)
        return
    np.testing.assert_allclose(
        logps(load_model(folder, backend), backend),
        their_logps(theirs(folder)),
        rtol=1e-5,
        atol=2e-5,
    )


def test_a_search_among_continuations(files: Path, backend: Backend) -> None:
    import torch

    model, prompt = load_model(files / "hybrid", backend), list(ROWS[0].prompt)
    best = beam_search(
        generator_of(model, backend, Sampling(max_new_tokens=6)), model.params, prompt, 3
    )[0].completion
    wanted = (
        theirs(files / "hybrid")
        .generate(
            torch.tensor([prompt]),
            max_new_tokens=6,
            num_beams=3,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=list(model.tokenizer.stop_ids),
        )[0, len(prompt) :]
        .tolist()
    )
    assert [*best.ids, *([] if best.stop is None else [best.stop])] == wanted


@pytest.mark.parametrize("kind", LIBRARY)
def test_what_is_saved_loads_again(
    kind: str, files: Path, tmp_path: Path, backend: Backend
) -> None:
    """In the library that wrote it, with the same numbers, and here; no field of config.json is
    lost.
    """
    model, out = load_model(files / kind, backend), tmp_path / "out"
    out.mkdir()
    write(out, backend, model)
    before, after = (
        json.loads((folder / "config.json").read_text()) for folder in (files / kind, out)
    )
    tokens = {"bos_token_id", "eos_token_id", "pad_token_id", "dtype", "torch_dtype"}
    assert {n: v for n, v in after.items() if n not in tokens} == {
        n: v for n, v in before.items() if n not in tokens
    }
    again = load_model(out, backend)
    assert list(again.params) == list(model.params)
    np.testing.assert_array_equal(logps(again, backend), logps(model, backend))
    if backend.name == "torch":
        np.testing.assert_allclose(
            their_logps(theirs(out)), logps(model, backend), rtol=1e-5, atol=2e-5
        )
        return
    import mlx.core as mx
    from mlx_lm import load

    found, _ = load(str(out))
    ids = mx.array([[*ROWS[0].prompt, *ROWS[0].completion]])
    z = found(ids)[0].astype(mx.float32)
    logp = z - mx.logsumexp(z, -1, keepdims=True)
    got = [float(logp[at - 1, int(ids[0, at])]) for at in range(4, 7)]
    np.testing.assert_allclose(got, logps(model, backend)[:3], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("kind", TRAINED)
def test_every_gradient_is_the_librarys(kind: str, files: Path) -> None:
    """Of all tensors on torch, by one backward pass of transformers' own model."""
    import torch

    backend = load_backend("torch", device="cpu", dtype="float32")
    model, oracle = load_model(files / kind, backend), theirs(files / kind)
    batch = on_device(backend, completion_batch(ROWS[:1], 1))
    params = {
        n: p.detach().clone().requires_grad_(p.is_floating_point()) for n, p in model.params.items()
    }  # type: ignore
    head, hidden = (
        model.network.head,
        model.network.hidden(backend.ops, params, batch, at=batch["index"]),
    )  # type: ignore
    z = head.logits(backend.ops, params, hidden)[:3]  # type: ignore[arg-type]
    torch.nn.functional.cross_entropy(z, torch.tensor(ROWS[0].completion)).backward()  # type: ignore[arg-type]
    ids = torch.tensor([[*ROWS[0].prompt, *ROWS[0].completion]])
    torch.nn.functional.cross_entropy(oracle(input_ids=ids).logits[0, 3:6], ids[0, 4:]).backward()
    wanted = dict(oracle.named_parameters())
    assert set(params) == set(wanted)
    for name, p in params.items():
        np.testing.assert_allclose(
            p.grad.numpy(), wanted[name].grad.numpy(), rtol=1e-3, atol=1e-6, err_msg=name
        )


def losses(out: Path, stage: str) -> list[float]:
    return [
        event["loss"] for event in read(out / stage / "events.jsonl") if event["event"] == "step"
    ]


@pytest.mark.parametrize("kind", TRAINED)
def test_an_adapter_is_trained_read_by_peft_and_merged(
    kind: str, files: Path, tmp_path: Path, backend: Backend
) -> None:
    theirs_too = pytest.importorskip("peft")
    folder = od.sft(
        files / kind, str(files / "chats.jsonl"), out=tmp_path, backend=backend.name, **SFT, **LORA
    )
    curve = losses(tmp_path, "sft")
    assert np.mean(curve[-2:]) < np.mean(curve[:2]) - 0.5
    beside = load_model(folder, backend, merge=False)
    modules = adapted_modules(beside.params, INHERITED)
    assert modules and not any(".experts" in m or m.endswith((".gate", "lm_head")) for m in modules)
    got = logps(beside, backend)
    assert np.abs(got - logps(load_model(files / kind, backend), backend)).max() > 1e-2
    np.testing.assert_allclose(
        logps(load_model(folder, backend), backend), got, rtol=1e-4, atol=1e-4
    )
    found = theirs_too.PeftModel.from_pretrained(theirs(files / kind), folder)
    np.testing.assert_allclose(their_logps(found), got, rtol=1e-4, atol=1e-4)


def test_both_backends_take_the_same_steps(files: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlx_lm")
    pytest.importorskip("torch")
    for kind in TRAINED:
        curves = []
        for name in ("torch", "mlx"):
            out = tmp_path / kind / name
            od.sft(files / kind, str(files / "chats.jsonl"), out=out, backend=name, **SFT, **LORA)
            curves.append(losses(out, "sft"))
        np.testing.assert_allclose(curves[0], curves[1], rtol=2e-3)


@pytest.mark.parametrize("kind", TRAINED)
def test_preferences_and_rewards(kind: str, files: Path, tmp_path: Path, backend_name: str) -> None:
    """DPO begins where policy and reference are one, and learns; GRPO goes on from an adapter, and
    moves from it.
    """
    changes = {"model": str(files / kind), "learning_rate": 2e-2, **LORA}
    fields = small_stages.settings(files, "dpo", tmp_path, backend_name, **changes)
    od.dpo(**fields)
    curve = losses(tmp_path, "dpo")
    assert curve[0] == pytest.approx(np.log(2), abs=1e-5) and np.mean(curve[-3:]) < 0.62
    start = od.sft(
        files / kind, str(files / "chats.jsonl"), out=tmp_path, backend=backend_name, **SFT, **LORA
    )
    changes |= {"model": str(start), "steps": 4}
    made = od.grpo(**small_stages.settings(files, "grpo", tmp_path, backend_name, **changes))
    steps = [e for e in read(tmp_path / "grpo" / "events.jsonl") if e["event"] == "step"]
    assert (
        len(steps) == 4
        and all(np.isfinite(e["loss"]) for e in steps)
        and any(e["grad_norm"] > 0 for e in steps)
    )
    assert len({e["reward"] for e in steps}) > 1 and abs(steps[0]["kl"]) < abs(steps[-1]["kl"])
    assert (made / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(("kind", "adapter"), [("experts", "none"), ("hybrid", "lora")])
def test_killed_it_goes_on_as_if_it_had_not_been(
    kind: str, adapter: str, files: Path, tmp_path: Path, backend_name: str
) -> None:
    fields: dict[str, Any] = {
        **SFT,
        "model": str(files / kind),
        "data": str(files / "chats.jsonl"),
        "backend": backend_name,
        "adapter": adapter,
        "save_every": 3,
    }
    made = od.sft(**fields, out=tmp_path / "whole")
    fields |= {"out": str(tmp_path / "broken")}
    killed_at_first_save("sft", fields)
    again = od.sft(**fields, resume=True)
    assert any(e["event"] == "resume" for e in read(tmp_path / "broken" / "sft" / "events.jsonl"))
    assert len(losses(tmp_path / "whole", "sft")) == SFT["steps"]
    assert losses(tmp_path / "broken", "sft") == losses(tmp_path / "whole", "sft")
    weights = "model.safetensors" if adapter == "none" else "adapter_model.safetensors"
    assert (made / weights).read_bytes() == (again / weights).read_bytes()


@pytest.mark.parametrize("kind", TRAINED)
@pytest.mark.parametrize("stage", ["dpo", "grpo"])
def test_preferences_and_rewards_killed_go_on_likewise(
    stage: str, kind: str, files: Path, tmp_path: Path, backend_name: str
) -> None:
    fields = {
        **small_stages.settings(files, stage, tmp_path / "whole", backend_name),
        "model": str(files / kind),
        "steps": 4,
        **LORA,
    }
    made = getattr(od, stage)(**fields)
    fields |= {"out": str(tmp_path / "broken")}
    killed_at_first_save(stage, fields)
    again = getattr(od, stage)(**fields, resume=True)
    assert losses(tmp_path / "broken", stage) == losses(tmp_path / "whole", stage)
    weights = "adapter_model.safetensors"
    assert (made / weights).read_bytes() == (again / weights).read_bytes()


def test_the_other_backend_does_not_go_on(files: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlx_lm")
    how: dict[str, Any] = {**SFT, "steps": 4, "save_every": 2, "out": tmp_path}
    od.sft(files / "hybrid", str(files / "chats.jsonl"), backend="torch", **how)
    (tmp_path / "sft" / "done.json").unlink()
    with pytest.raises(UserError, match="was begun on torch"):
        od.sft(files / "hybrid", str(files / "chats.jsonl"), backend="mlx", resume=True, **how)


def test_in_bfloat16(files: Path, tmp_path: Path, backend_name: str) -> None:
    """The adapter is merged into the base as its file has it."""
    made = od.sft(
        files / "hybrid",
        str(files / "chats.jsonl"),
        backend=backend_name,
        dtype="bfloat16",
        out=tmp_path,
        merge=True,
        **SFT,
        **LORA,
    )
    curve = losses(tmp_path, "sft")
    assert np.mean(curve[-2:]) < np.mean(curve[:2]) - 0.3
    backend = load_backend(backend_name, device="cpu", dtype="float32")
    base, tuned = (load_model(folder, backend) for folder in (files / "hybrid", made))
    same = {
        n
        for n, p in base.params.items()
        if np.array_equal(backend.numpy(p), backend.numpy(tuned.params[n]))
    }
    assert set(base.params) - same == {f"{name}.weight" for name in base.cfg.lib.linears}  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", TRAINED)
def test_commands_that_use_a_model(
    kind: str,
    files: Path,
    backend_name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, common = str(files / kind), ["--backend", backend_name, "--device", "cpu"]
    short = ["--temperature", "0", "--max_new_tokens", "5"]
    assert cli.main(["generate", model, "Anna lives", *short, *common]) == 0
    assert capsys.readouterr().out.strip()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Anna?\n")))
    assert cli.main(["chat", model, "--max_new_tokens", "5", *common]) == 0
    assert capsys.readouterr().out.strip()
    assert cli.main(["eval", model, str(files / "chats.jsonl"), "--json", *common]) == 0
    assert json.loads(capsys.readouterr().out)


def test_what_such_a_model_cannot_have_is_said(
    files: Path, tmp_path: Path, backend_name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model, chats, pairs = files / "experts", str(files / "chats.jsonl"), str(files / "pairs.jsonl")
    labelled = tmp_path / "labelled.jsonl"
    labelled.write_text(
        "".join(json.dumps({"text": f"Anna {n}", "label": n % 2}) + "\n" for n in range(20))
    )
    how: dict[str, Any] = {"backend": backend_name, "device": "cpu", "out": tmp_path / "out"}
    with pytest.raises(UserError, match="cannot be had for a qwen3_moe model") as found:
        od.sft(model, chats, checkpointing=True, **how)
    assert found.value.where == "checkpointing"
    with pytest.raises(UserError, match="can be tuned, not pre-trained"):
        od.pretrain(model, chats, **how)
    with pytest.raises(UserError, match="no head of scores"):
        od.reward(model, pairs, sequence_length=48, **how)
    with pytest.raises(UserError, match="no head of scores"):
        od.ppo(model, str(files / "judge"), data=str(files / "prompts.jsonl"), **how)
    with pytest.raises(UserError, match="no head of scores"):
        od.classify(model, str(labelled), sequence_length=48, **how)
    with pytest.raises(UserError, match="one form here"):
        od.export(model, to="gguf", out=str(tmp_path / "gguf"), backend=backend_name)
    with pytest.raises(UserError, match="cannot be quantised"):
        od.quantize(model, tmp_path / "packed")
    words = ["--backend", backend_name, "--out", str(how["out"])]
    capsys.readouterr()
    assert cli.main(["sft", str(model), chats, "--checkpointing", *words]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "checkpointing" in told


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (
            {"model_type": "their_own", "auto_map": {"AutoModelForCausalLM": "m.M"}},
            "unknown architecture 'their_own'",
        ),
        ({"model_type": "cache"}, "unknown architecture 'cache'"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "not known here"),
        ({"architectures": ["Qwen3MoeForSequenceClassification"]}, "not known here"),
        ({"attn_implementation": "somebody/kernel"}, "code of the Hub"),
        ({"vocab_size": None}, "vocabulary"),
        ({"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3}, "load|lacks"),
        ({"hidden_size": "wide"}, "cannot load it"),
    ],
)
def test_a_folder_that_is_none(
    changes: dict[str, Any], match: str, files: Path, tmp_path: Path, backend: Backend
) -> None:
    made = tmp_path / "m"
    shutil.copytree(files / "experts", made)
    raw = json.loads((made / "config.json").read_text())
    (made / "config.json").write_text(json.dumps({**raw, **changes}))
    with pytest.raises(UserError, match=match):
        load_model(made, backend)


def test_the_library_may_be_missing(
    files: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = {"torch": "transformers", "mlx": "mlx_lm.utils"}[backend.name]
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match="is not installed, which knows qwen3_moe"):
        load_model(files / "experts", backend)


@pytest.mark.parametrize("kind", ["experts", "hybrid"])
def test_a_repetition_penalty_is_transformers(kind: str, files: Path, backend: Backend) -> None:
    import torch

    model = load_model(files / kind, backend)
    generator = generator_of(
        model, backend, Sampling(max_new_tokens=10, temperature=0, repetition_penalty=1.4)
    )
    prompts = [[9, 30, 77, 12], [40, 8, 9, 9]]
    for prompt, done in zip(prompts, generator.run(model.params, prompts), strict=True):
        out = theirs(files / kind).generate(
            torch.tensor([prompt]),
            max_new_tokens=10,
            do_sample=False,
            pad_token_id=0,
            repetition_penalty=1.4,
            eos_token_id=sorted(generator.stop_ids),
        )
        assert out[0].tolist()[4:] == [*done.ids, *([] if done.stop is None else [done.stop])]
