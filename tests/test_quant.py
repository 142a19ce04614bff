"""Quantised bases in mlx-community's format: the same numbers as MLX's and on both backends; a base
for adapters.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import models
import ondevice as od
import small_stages
from gradients import by_name, on_device
from ondevice.common.errors import UserError
from ondevice.common.files import sha256
from ondevice.inference.generator import Generator
from ondevice.inference.next_token import Sampling
from ondevice.models import peft
from ondevice.models.convert import merge, quantize
from ondevice.models.decoder import decoder_of
from ondevice.models.load import load_model
from ondevice.models.quant import packed, unpacked
from ondevice.models.save import write_model
from ondevice.models.shapes import matrices
from ondevice.models.state_dict import quantised
from ondevice.runs.events import read
from ondevice.seam.protocols import Backend
from ondevice.seam.select import load_backend
from ondevice.training.losses import causal_lm_loss
from small_stages import settings
from test_lora import IDS, logits
from test_lora_stages import LORA

FORMATS = [(4, 32), (4, 64), (8, 32), (8, 128)]
Weights = dict[str, np.ndarray]


@pytest.mark.parametrize(("bits", "group_size"), FORMATS)
def test_values_are_mlxs(bits: int, group_size: int) -> None:
    """Packed, scaled and unpacked as mx.quantize and mx.dequantize do it; groups that are all alike
    among them.
    """
    mx = pytest.importorskip("mlx.core")
    rng = np.random.default_rng(bits)
    weight = rng.standard_normal((24, 256)).astype(np.float32)
    weight[0], weight[1], weight[2, :group_size], weight[3] = 0, 0.5, -0.25, np.abs(weight[3])
    words, scales, biases = packed(weight, bits, group_size)
    theirs = mx.quantize(mx.array(weight), group_size=group_size, bits=bits)
    np.testing.assert_allclose(scales, np.array(theirs[1]), rtol=1e-5)
    np.testing.assert_allclose(biases, np.array(theirs[2]), rtol=1e-5)
    assert np.mean(words != np.array(theirs[0])) < 1e-3  # values halfway between two
    back = np.array(
        mx.dequantize(
            mx.array(words), mx.array(scales), mx.array(biases), group_size=group_size, bits=bits
        )
    )
    np.testing.assert_allclose(unpacked(words, scales, biases, 256), back, rtol=1e-6, atol=1e-7)
    # the far end met, the other a little cut
    assert np.abs(back - weight).max() <= np.abs(scales).max()


@pytest.mark.parametrize("together", [1, 256 * 7, 1 << 22])
@pytest.mark.parametrize(("bits", "group_size"), FORMATS)
def test_torch_multiplies_by_some_rows_at_a_time(
    bits: int, group_size: int, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from ondevice_torch import quant

    rng = np.random.default_rng(bits)
    parts = packed(rng.standard_normal((24, 256)).astype(np.float32), bits, group_size)
    whole = torch.tensor(unpacked(*parts, 256))
    words, scales, biases = (torch.tensor(part) for part in parts)
    torch.testing.assert_close(
        quant.dequantize(words, scales, biases, 256), whole, rtol=1e-6, atol=1e-6
    )
    monkeypatch.setattr(quant, "TOGETHER", together)
    torch.manual_seed(0)
    x, grad = torch.randn(2, 3, 256, requires_grad=True), torch.randn(2, 3, 24)
    y = quant.QuantizedLinear.apply(x, words, scales, biases)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(y, x @ whole.T, rtol=1e-5, atol=1e-4)
    y.backward(grad)
    torch.testing.assert_close(x.grad, grad @ whole, rtol=1e-5, atol=1e-4)


def test_scales_are_numbers_of_the_files_type() -> None:
    weight = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    torch = pytest.importorskip("torch")
    for dtype in ("bfloat16", "float16"):
        words, scales, biases = packed(weight, 8, 64, dtype)
        for x in (scales, biases):
            kept = torch.tensor(x).to(getattr(torch, dtype)).float().numpy()
            assert np.array_equal(kept, x)
        # counted in these, so that what is read differs by no more than half a step
        assert (
            np.abs(unpacked(words, scales, biases, 64) - weight).max() <= np.abs(scales).max() * 0.6
        )


def quantised_weights(family: str, bits: int, group_size: int) -> tuple[Any, Weights, Weights]:
    """(config, weights with every matrix packed, the same unpacked)."""
    # a width for which bits and group size do not follow from the table's own shape
    cfg = models.config(family, hidden_size=128, intermediate_size=128)
    weights, low, flat = models.weights(cfg), {}, {}
    known = matrices(cfg, every=True)
    for name, w in weights.items():
        module = name.removesuffix(".weight")
        if module in known and known[module][1] % group_size == 0:
            words, scales, biases = packed(w, bits, group_size)
            low |= {
                f"{module}.weight": words,
                f"{module}.scales": scales,
                f"{module}.biases": biases,
            }
            flat[name] = unpacked(words, scales, biases, known[module][1])
        else:
            low[name] = flat[name] = w
    return cfg, low, flat


@pytest.mark.parametrize(("bits", "group_size"), [(4, 64), (8, 32)])
@pytest.mark.parametrize("family", ["llama", "llama-gqa-tied", "gemma3"])
def test_quantised_is_its_unpacked_weights(
    family: str, bits: int, group_size: int, backend: Backend
) -> None:
    """Loss, and the gradient of what is not packed (norms, through every layer), with and without
    checkpointing.
    """
    cfg, low, flat = quantised_weights(family, bits, group_size)
    batch = models.batch(cfg)
    loss = partial(causal_lm_loss, model=decoder_of(cfg))
    frozen = {
        n: p for n, p in low.items() if p.dtype == np.uint32 or n.endswith((".scales", ".biases"))
    }
    held = on_device(backend, frozen)
    trained = {n: p for n, p in low.items() if n not in frozen}
    want, dense = by_name(backend, lambda p, b: loss(backend.ops, p, b)[0], flat, batch)
    for checkpointed in (False, True):
        got, grads = by_name(
            backend,
            lambda p, b, c=checkpointed: loss(backend.ops, {**held, **p}, b, checkpoint=c)[0],
            trained,
            batch,
        )
        assert got == pytest.approx(want, abs=1e-4)
        for name, g in grads.items():
            assert np.abs(g - dense[name]).max() <= 1e-3 * max(np.abs(dense[name]).max(), 1e-4), (
                name
            )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_stages.make(
        tmp_path_factory.mktemp("files"), load_backend("torch", device="cpu", dtype="float32")
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bits", "group_size", "tied"), [(4, 32, True), (8, 32, False), (4, 64, False)]
)
def test_mlx_lm_reads_our_quantised_folders(
    bits: int, group_size: int, tied: bool, tmp_path: Path
) -> None:
    """The same logits and greedy text as both our backends, whichever wrote the folder."""
    mlx_lm = pytest.importorskip("mlx_lm")
    import mlx.core as mx
    from mlx_lm.generate import generate_step

    found = []
    for name in ("torch", "mlx"):
        backend = load_backend(name, device="cpu", dtype="float32")
        cfg = small_stages.config(
            hidden_size=64, intermediate_size=64, head_dim=16, tie_word_embeddings=tied
        )
        (tmp_path / name).mkdir()
        made = {n: backend.array(w) for n, w in models.weights(cfg).items()}
        write_model(tmp_path / name, backend, cfg, made, small_stages.small_tokenizer())
        out = quantize(tmp_path / name, tmp_path / f"{name}-q", bits, group_size, backend=backend)
        assert json.loads((out / "config.json").read_text())["quantization"] == {
            "bits": bits,
            "group_size": group_size,
            "mode": "affine",
        }
        found.append(sha256(out / "model.safetensors"))
    loaded, _ = mlx_lm.load(str(tmp_path / "mlx-q"))
    want = np.array(loaded(mx.array(IDS)))
    prompts = [IDS[0, :9], IDS[0], IDS[1, :5], IDS[1]]
    texts = [
        [int(token) for token, _ in generate_step(mx.array(p), loaded, max_tokens=30)]
        for p in prompts
    ]
    for name in ("torch", "mlx"):
        backend = load_backend(name, device="cpu", dtype="float32")
        for folder in ("torch-q", "mlx-q"):
            model = load_model(tmp_path / folder, backend)
            assert len(quantised(model.params)) == len(matrices(model.cfg, every=True))
            np.testing.assert_allclose(logits(model, backend, IDS), want, rtol=1e-3, atol=1e-3)
            written = [
                c.ids
                for c in Generator(
                    model, backend, Sampling(max_new_tokens=30, temperature=0.0)
                ).run(model.params, [p.tolist() for p in prompts])
            ]
            assert written == [text[: len(ids)] for ids, text in zip(written, texts, strict=True)]
            assert max(map(len, written)) > 3


@pytest.mark.slow
def test_we_read_what_mlx_lm_quantises(backend: Backend, tmp_path: Path) -> None:
    pytest.importorskip("mlx_lm")
    import mlx.core as mx
    from mlx_lm.utils import load, quantize_model, save

    cfg = small_stages.config(hidden_size=64, intermediate_size=64, head_dim=16)
    small_stages.write(tmp_path / "base", backend, cfg)
    model, words, config = load(str(tmp_path / "base"), return_config=True)
    model, config = quantize_model(model, config, 64, 4)
    save(tmp_path / "theirs", tmp_path / "base", model, words, config, donate_model=False)
    ours = load_model(tmp_path / "theirs", backend)
    np.testing.assert_allclose(
        logits(ours, backend, IDS), np.array(model(mx.array(IDS))), rtol=1e-3, atol=1e-3
    )


@pytest.mark.slow
def test_an_adapter_beside_a_quantised_base(files: Path, tmp_path: Path, backend: Backend) -> None:
    """Trained, saved, read again, on the other backend too, merged with a word on what it costs;
    the base untouched.
    """
    low = quantize(files / "policy", tmp_path / "low", 4, 32, backend=backend)
    before = sha256(low / "model.safetensors")
    with pytest.raises(UserError, match="quantised weights cannot be trained.*--adapter lora"):
        od.dpo(**settings(files, "dpo", tmp_path / "refused", backend.name, model=low))
    with pytest.raises(UserError, match="quantised weights cannot be trained"):
        od.pretrain(
            low,
            str(files / "chats.jsonl"),
            out=tmp_path / "refused",
            backend=backend.name,
            device="cpu",
            sequence_length=16,
            steps=1,
        )
    with pytest.raises(UserError, match="is quantised and cannot be trained whole"):
        od.dpo(
            **settings(
                files,
                "dpo",
                tmp_path / "refused",
                backend.name,
                model=low,
                **LORA,
                lora_whole=("lm_head",),
            )
        )
    fields = settings(
        files, "dpo", tmp_path / "run", backend.name, **{**LORA, "model": low, "steps": 4}
    )
    made = od.dpo(**fields, checkpointing=True)
    assert sha256(low / "model.safetensors") == before
    assert json.loads((made / peft.CONFIG).read_text())["base_model_name_or_path"] == str(low)
    assert len([e for e in read(made.parent / "events.jsonl") if e["event"] == "step"]) == 4
    one = load_model(made, backend)
    assert quantised(one.params) and one.adapter is not None
    for name in ("torch", "mlx"):
        other = load_backend(name, device="cpu", dtype="float32")
        np.testing.assert_allclose(
            logits(load_model(made, other), other, IDS),
            logits(one, backend, IDS),
            rtol=1e-3,
            atol=1e-3,
        )
    costs: list[str] = []
    merge(made, tmp_path / "later", backend=backend, told=costs.append)
    assert len(costs) == 1 and not quantised(load_model(tmp_path / "later", backend).params)
    whole = od.dpo(**{**fields, "out": str(tmp_path / "merged")}, merge=True)
    said = [e["message"] for e in read(whole.parent / "events.jsonl") if e["event"] == "warning"]
    assert any("the base is quantised" in text for text in said)
    after = load_model(whole, backend)
    assert not quantised(after.params) and "quantization" not in json.loads(
        (whole / "config.json").read_text()
    )
    np.testing.assert_allclose(
        logits(after, backend, IDS), logits(one, backend, IDS), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "'gptq'"),
        ({"quantization": {"mode": "mxfp4", "bits": 4, "group_size": 32}}, "'mxfp4'"),
        ({"quantization": "four"}, "'four'"),
    ],
)
def test_other_ways_to_quantise_are_refused(
    change: dict[str, Any], said: str, files: Path, tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(files / "policy", tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(UserError) as caught:
        load_model(tmp_path / "m", load_backend("torch", device="cpu"))
    assert said in str(caught.value)


def test_what_quantize_refuses(files: Path, tmp_path: Path) -> None:
    backend = load_backend("torch", device="cpu")
    low = quantize(files / "policy", tmp_path / "low", 4, 32, backend=backend)
    for said, arguments in {
        "bits: 3": (files / "policy", tmp_path / "x", 3, 32),
        "group_size: 48": (files / "policy", tmp_path / "x", 4, 48),
        "is quantised already": (low, tmp_path / "x", 4, 32),
        "is there already": (files / "policy", low, 4, 32),
        "whole groups of 128": (files / "policy", tmp_path / "x", 4, 128),
    }.items():
        with pytest.raises(UserError, match=said):
            quantize(*arguments, backend=backend)
    assert not (tmp_path / "x").exists()
    tensors = backend.load(low / "model.safetensors", None)
    del tensors["model.layers.0.mlp.up_proj.biases"]
    backend.save(low / "model.safetensors", tensors, {})
    with pytest.raises(UserError, match="lacks the tensor model.layers.0.mlp.up_proj.biases"):
        load_model(low, backend)
