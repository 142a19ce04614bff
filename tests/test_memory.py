"""What a training holds in memory, where that can be counted: what the backward pass keeps, and bytes
a parameter.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import models
import small_stages
from ondevice.common.errors import UserError
from ondevice.config.preference import DPOConfig
from ondevice.data.completion_batches import Row
from ondevice.models.compute_type import cast_once
from ondevice.models.decoder import Decoder
from ondevice.models.load import load_for_use, load_model
from ondevice.models.lora import init_lora
from ondevice.models.shapes import matrices, shapes
from ondevice.models.tensor_names import is_block_matrix
from ondevice.seam.protocols import Backend, OptimSettings
from ondevice.seam.select import load_backend
from ondevice.stages.tuning import load_start, reference_params, with_adapter
from ondevice.training.losses import causal_lm_loss
from ondevice.training.sequence_logprobs import Scorer

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


# ---- loaded for use ---------------------------------------------------------------------------------


def test_what_is_loaded_holds_nothing_of_its_file(
    tmp_path: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where the file is read a few tensors at a time, and has them in the very type."""
    if backend.name == "torch":
        monkeypatch.setattr("ondevice_torch.backend._MAPPED", 3000)
    weights = models.weights(wide())
    for kept in ("float32", "bfloat16"):
        file = tmp_path / f"{kept}.safetensors"
        backend.save(file, {n: backend.array(w) for n, w in weights.items()}, {}, kept)
        for asked in ("float32", "bfloat16", None):
            got = backend.load(file, asked)
            assert got.keys() == weights.keys()
            for name, p in got.items():
                assert str(p.dtype).endswith(asked or kept)
                near = 0 if kept == asked == "float32" else 4e-3
                assert np.allclose(backend.numpy(p), weights[name], rtol=near, atol=0)
                if backend.name == "torch":
                    tensor: Any = p
                    assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_for_use_weights_come_in_the_compute_type(tmp_path: Path, backend_name: str) -> None:
    whole = load_backend(backend_name, "cpu", "float32")
    half = load_backend(backend_name, "cpu", "bfloat16")
    folder = small_stages.write(tmp_path / "base", whole, small_stages.config())
    exact = load_for_use(folder, whole)
    used = load_for_use(folder, half)
    trained = load_model(folder, half)
    for name, p in exact.params.items():
        assert np.array_equal(whole.numpy(p), half.numpy(trained.params[name]))
        assert str(trained.params[name].dtype).endswith("float32")
        assert str(used.params[name].dtype).endswith("bfloat16")
        cast = half.ops.cast(trained.params[name], "bfloat16")
        assert np.array_equal(half.numpy(cast), half.numpy(used.params[name]))


def test_parameters_cast_once_give_the_same_numbers(backend_name: str, tmp_path: Path) -> None:
    half = load_backend(backend_name, "cpu", "bfloat16")
    folder = small_stages.write(tmp_path / "base", half, small_stages.config())
    model = load_model(folder, half)
    used = cast_once(model, model.params, half)
    rows = [Row(list(range(3, 9)), [4, 5, 6]), Row([7, 8], [9, 3])]
    scorer = Scorer(model, half, batch_size=2)
    for one, other in zip(
        scorer.logprobs(model.params, rows), scorer.logprobs(used, rows), strict=True
    ):
        assert np.array_equal(one, other)
    matrices_of = [n for n, p in model.params.items() if p.ndim == 2]
    assert all(str(used[n].dtype).endswith("bfloat16") for n in matrices_of)
    whole = load_backend(backend_name, "cpu", "float32")
    assert cast_once(model, model.params, whole) is model.params


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_a_reference_stays_while_its_model_is_trained(
    adapter: str, backend_name: str, tmp_path: Path
) -> None:
    """No second model beside an adapter, none of whose own tensors it has; else, in the compute
    type, a copy that no training reaches."""
    half = load_backend(backend_name, "cpu", "bfloat16")
    folder = small_stages.write(tmp_path / "base", half, small_stages.config())
    cfg = DPOConfig(model=str(folder), adapter=adapter, lora_rank=2)  # type: ignore[arg-type]
    model = load_start(str(folder), cfg, half)
    if adapter == "lora":
        trained = with_adapter(model, cfg, SimpleNamespace(name="dpo", backend=half))  # type: ignore[arg-type]
        reference = reference_params(trained, half)
        assert reference.keys() == model.params.keys() and len(trained.params) > len(reference)
        assert all(p is model.params[name] for name, p in reference.items())
        return
    reference = reference_params(model, half)
    before = {name: half.numpy(p).copy() for name, p in reference.items()}
    loss = partial(causal_lm_loss, model=model.network)
    trainer = half.trainer(loss, model.release(), {}, OptimSettings(), take=True)
    trainer.step([batch_of(2, 8)], 0.1)
    for name, p in reference.items():
        assert np.array_equal(half.numpy(p), before[name])
        assert not np.array_equal(half.numpy(trainer.params()[name]), before[name])
        assert str(p.dtype).endswith("bfloat16" if p.ndim == 2 else "float32")


# ---- MLX's bounds on a GPU ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "memory", "cache"),
    [
        ({}, 13_600_000_000, 1_600_000_000),
        ({"ONDEVICE_MLX_MEMORY_MB": "8000"}, 8000 << 20, 1_600_000_000),
        ({"ONDEVICE_MLX_CACHE_MB": "0"}, 13_600_000_000, 0),
    ],
)
def test_mlx_is_bounded_by_the_working_set(
    env: dict[str, str], memory: int, cache: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    mx = pytest.importorskip("mlx.core")
    from ondevice_mlx.backend import set_limits

    given: dict[str, int] = {}
    monkeypatch.setattr(mx, "set_memory_limit", lambda n: given.update(memory=n))
    monkeypatch.setattr(mx, "set_cache_limit", lambda n: given.update(cache=n))
    assert set_limits(16_000_000_000, env) == (memory, cache)
    assert given == {"memory": memory, "cache": cache}
    set_limits(64_000_000_000, {})
    assert given["cache"] == 2 << 30
    with pytest.raises(UserError, match="ONDEVICE_MLX_CACHE_MB"):
        set_limits(16_000_000_000, {"ONDEVICE_MLX_CACHE_MB": "much"})


def test_a_gpu_gets_bounds_and_doctor_tells_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine without one, what MLX says of a GPU is made up."""
    mx = pytest.importorskip("mlx.core")
    import ondevice_mlx.backend as module
    from ondevice.seam import doctor

    given: dict[str, int] = {}
    facts = {"device_name": "Apple M2", "max_recommended_working_set_size": 12 << 30}
    monkeypatch.setattr(mx, "is_available", lambda device: True)
    monkeypatch.setattr(mx, "set_default_device", lambda device: None)
    monkeypatch.setattr(mx, "device_info", lambda: facts)
    monkeypatch.setattr(mx, "set_memory_limit", lambda n: given.update(memory=n))
    monkeypatch.setattr(mx, "set_cache_limit", lambda n: given.update(cache=n))
    monkeypatch.setattr(module, "output_of", lambda *words: "10240\n")
    monkeypatch.setattr(mx, "get_cache_memory", lambda: 5)
    monkeypatch.delenv("ONDEVICE_MLX_MEMORY_MB", raising=False)
    monkeypatch.delenv("ONDEVICE_MLX_CACHE_MB", raising=False)
    backend = module.make("gpu", "auto")
    assert given == {"memory": int(0.85 * (12 << 30)), "cache": int(0.1 * (12 << 30))}
    memory = backend.memory()
    assert memory.total == 12 << 30 and memory.active == mx.get_active_memory() + 5
    assert memory.peak >= memory.active
    assert doctor._gpu(backend.device_facts()) == (
        "Apple M2, 12.0 GB to work in, at most 10.0 GB wired (iogpu.wired_limit_mb)"
    )
    given.clear()
    assert module.make("cpu", "auto").device_facts() == {} and not given


# ---- moments of 8 bits ------------------------------------------------------------------------------


@pytest.fixture
def everything_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tensors too, and large ones in several parts."""
    for name in ("ondevice_torch", "ondevice_mlx"):
        module = pytest.importorskip(f"{name}.packed_moments")
        monkeypatch.setattr(module, "LEAST", 0)
        monkeypatch.setattr(module, "CHUNK", 5)
    monkeypatch.setattr("ondevice_torch.optim.LEAST", 0)


def eight_bits(backend: Backend, params: dict[str, Any], optimizer: str = "adamw8bit") -> Any:
    loss = partial(causal_lm_loss, model=Decoder(wide()))
    settings = OptimSettings(optimizer=optimizer, weight_decay=0.1)
    return backend.trainer(loss, params, {}, settings)


def window(step: int) -> dict[str, np.ndarray]:
    """A text in which every token follows from the one before: something can be learned."""
    first = np.arange(4)[:, None] * 7 + step
    ids = (3 + (first + 5 * np.arange(17)) % 90).astype(np.int32)
    batch = batch_of(4, 16)
    return {**batch, "ids": ids[:, :-1], "targets": ids[:, 1:].reshape(-1)}


@pytest.mark.usefixtures("everything_packed")
def test_packed_moments_are_near_what_they_were(backend: Backend) -> None:
    """Roots relative to the block's largest are within half a step; no second moment becomes 0."""
    module: Any = pytest.importorskip(f"ondevice_{backend.name}.packed_moments")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((7, 256)).astype(np.float32) * np.float32(10.0) ** -rng.integers(
        0, 9, (7, 256)
    ).astype(np.float32)
    x[3] = 0
    packed, top = module.pack_first(backend.array(x))
    got = backend.numpy(module.unpack_first(packed, top))
    largest = np.maximum(np.abs(x).max(1, keepdims=True), 1e-15)
    assert "int8" in str(packed.dtype) and np.array_equal(np.sign(got), np.sign(x) * (got != 0))
    off = np.sqrt(np.abs(got) / largest) - np.sqrt(np.abs(x) / largest)
    assert np.abs(off).max() <= 0.501 / 127
    packed, top = module.pack_second(backend.array(x * x))
    got = backend.numpy(module.unpack_second(packed, top))
    assert "uint8" in str(packed.dtype) and np.array_equal(got > 0, x * x > 0)
    off = (got / largest**2) ** 0.25 - np.sqrt(np.abs(x) / largest)
    assert (
        np.abs(off).max() <= 1.001 / 255 and np.abs(off[got > largest**2 / 1e9]).max() < 0.501 / 255
    )


@pytest.mark.slow
@pytest.mark.usefixtures("everything_packed")
def test_eight_bits_learn_as_well(backend: Backend) -> None:
    """Within 3 % of the loss that AdamW has at each of 40 steps, by which it has fallen by half."""
    curves = {}
    for optimizer in ("adamw", "adamw8bit"):
        params = {n: backend.array(w) for n, w in models.weights(wide()).items()}
        trainer = eight_bits(backend, params, optimizer)
        curves[optimizer] = np.array([trainer.step([window(n)], 3e-3)["loss"] for n in range(40)])
    exact, packed = curves["adamw"], curves["adamw8bit"]
    assert exact[-1] < exact[0] / 2
    assert np.abs(packed / exact - 1).max() < 0.03, np.abs(packed / exact - 1).max()


@pytest.mark.slow
@pytest.mark.usefixtures("everything_packed")
def test_eight_bits_go_on_exactly_and_on_the_other_backend(tmp_path: Path) -> None:
    backends = [load_backend(name, "cpu", "float32") for name in ("torch", "mlx")]
    for one in backends:
        params = {n: one.array(w) for n, w in models.weights(wide()).items()}
        first = eight_bits(one, params)
        for n in range(3):
            first.step([window(n)], 3e-3)
        one.save(tmp_path / "model.safetensors", first.params(), {})
        first.save_state(tmp_path / "optimizer.safetensors")
        expected = [first.step([window(n)], 3e-3)["loss"] for n in range(3, 6)]
        for backend in backends:
            resumed = eight_bits(backend, backend.load(tmp_path / "model.safetensors"))
            resumed.load_state(tmp_path / "optimizer.safetensors")
            got = [resumed.step([window(n)], 3e-3)["loss"] for n in range(3, 6)]
            if backend is one:
                assert got == expected
            np.testing.assert_allclose(got, expected, rtol=1e-3)
