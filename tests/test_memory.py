"""What a training holds in memory, where that can be counted: what the backward pass keeps, and bytes
a parameter.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

import models
from ondevice.models.decoder import Decoder
from ondevice.models.lora import init_lora
from ondevice.models.shapes import matrices, shapes
from ondevice.models.tensor_names import is_block_matrix
from ondevice.seam.protocols import Backend, OptimSettings
from ondevice.seam.select import load_backend
from ondevice.training.losses import causal_lm_loss

ROWS, TOKENS = 8, 64


def batch_of(rows: int, tokens: int) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(0).integers(3, 90, (rows, tokens)).astype(np.int32)
    count = rows * tokens
    return {
        "ids": ids,
        "positions": np.tile(np.arange(tokens, dtype=np.int32), (rows, 1)),
        "targets": ids.reshape(-1),
        "index": np.arange(count, dtype=np.int32),
        "weights": np.ones(count, np.float32),
        "denominator": np.asarray(count, np.float32),
    }


def parts(cfg: Any, backend: Backend, lora: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """(trained, frozen) parameters of a model, all of them or adapters of its blocks."""
    params = {n: backend.array(w) for n, w in models.weights(cfg).items()}
    if not lora:
        return params, {}
    targets = {n: s for n, s in matrices(cfg).items() if is_block_matrix(f"{n}.weight", s)}
    new = init_lora(targets, 4, 2.0, 0, "lora", backend)
    trained = {n: p for n, p in new.items() if ".lora_scale." not in n}
    return trained, {**params, **{n: p for n, p in new.items() if n not in trained}}


def wide(layers: int = 3, **changes: Any) -> Any:
    return models.config(
        "llama",
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=layers,
        num_attention_heads=4,
        **changes,
    )


@pytest.mark.parametrize("lora", [False, True])
def test_torch_keeps_no_norms_and_no_gated_products(
    lora: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a block's activations: what its two norms read, queries, keys, values and what attention
    gives, both ways around, and the two factors of the gated product. No number changes."""
    torch = pytest.importorskip("torch")
    from ondevice_torch import recompute

    backend = load_backend("torch", "cpu", "float32")
    cfg = wide()
    batch = {name: backend.array(np.asarray(x)) for name, x in batch_of(ROWS, TOKENS).items()}

    def run(least: int) -> tuple[int, list[Any]]:
        monkeypatch.setattr(recompute, "LEAST_BYTES", least)
        trained, frozen = parts(cfg, backend, lora)
        leaves: list[Any] = [p.requires_grad_() for p in trained.values()]
        own = {p.untyped_storage().data_ptr() for p in {**trained, **frozen}.values()}
        kept: dict[int, Any] = {}

        def keep(x: Any) -> Any:
            if x.untyped_storage().data_ptr() not in own:
                kept[x.untyped_storage().data_ptr()] = x
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            value, _ = causal_lm_loss(backend.ops, {**trained, **frozen}, batch, model=Decoder(cfg))
        size = sum(x.untyped_storage().nbytes() for x in kept.values())
        return size, list(torch.autograd.grad(value, leaves))

    plain, expected = run(1 << 40)
    spared, got = run(0)
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))
    stream, inner = cfg.hidden_size, cfg.intermediate_size
    a_token = 4 * cfg.num_hidden_layers * (2 * stream + 5 * stream + 2 * inner)
    if not lora:  # what a norm multiplies by its weight
        a_token += 4 * cfg.num_hidden_layers * 2 * stream
    assert spared <= 1.25 * a_token * ROWS * TOKENS + 4 * ROWS * TOKENS * cfg.vocab_size
    less = 4 * cfg.num_hidden_layers * (2 * stream + 2 * inner)
    assert plain - spared > 0.9 * less * ROWS * TOKENS


def test_bytes_a_parameter_on_mlx() -> None:
    """Parameters, gradients and two moments of 4 bytes each; what else there is does not grow with
    the model.
    """
    mx = pytest.importorskip("mlx.core")
    backend = load_backend("mlx", "cpu", "float32")

    def peak(layers: int) -> tuple[int, int]:
        cfg = wide(layers)
        size = sum(int(np.prod(shape)) for shape in shapes(cfg).values())
        loss = partial(causal_lm_loss, model=Decoder(cfg))
        trained, _ = parts(cfg, backend, lora=False)
        before = mx.get_active_memory()
        trainer = backend.trainer(loss, trained, {}, OptimSettings(), take=True)
        before -= sum(p.nbytes for p in trained.values())  # type: ignore[attr-defined]
        del trained
        for _ in range(2):
            trainer.step([batch_of(1, 2)], 1e-3)
            mx.reset_peak_memory()
        trainer.step([batch_of(1, 2)], 1e-3)
        return size, mx.get_peak_memory() - before

    (small, least), (large, most) = peak(4), peak(24)
    assert (most - least) / (large - small) < 17
