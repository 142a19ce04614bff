"""Both backends compute the same: losses, every gradient by name, optimizer steps, and each other's
checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mlx_compiler
import models
from device import backend_of
from gradients import by_name
from ondevice.models.decoder import decoder_of
from ondevice.models.decoder_config import DecoderConfig
from ondevice.models.network import network
from ondevice.models.tables import with_tables
from ondevice.models.tensor_names import is_block_matrix
from ondevice.seam.protocols import Backend, OptimSettings, Trainer
from ondevice.seam.select import load_backend
from ondevice.training.losses import causal_lm_loss
from ondevice.training.muon import MOMENTUM

pytest.importorskip("torch")
pytest.importorskip("mlx.core")
TORCH = load_backend("torch", device="cpu", dtype="float32")
MLX = backend_of("mlx")
Weights = dict[str, np.ndarray]


def loss_and_gradients(
    backend: Backend,
    cfg: DecoderConfig,
    weights: Weights,
    batch: Weights,
    *,
    checkpoint: bool = False,
    compiled: bool = False,
) -> tuple[float, Weights]:
    """In the backend's own style of differentiation."""
    loss = partial(causal_lm_loss, model=decoder_of(cfg), checkpoint=checkpoint)
    return by_name(
        backend, lambda p, b: loss(backend.ops, p, b)[0], weights, batch, compiled=compiled
    )


def assert_close(got: Weights, want: Weights, relative: float) -> None:
    assert got.keys() == want.keys()
    for name, w in want.items():
        assert np.abs(w).max() > 0, f"{name} has no gradient: nothing is compared"
        assert np.abs(got[name] - w).max() <= relative * np.abs(w).max(), name


def everywhere_alive(grads: Weights) -> Weights:
    """A bias of the keys shifts all scores of a query alike: its gradient is zero but for rotation,
    so keep those that are not numerical dust."""
    top = max(np.abs(g).max() for g in grads.values())
    return {n: g for n, g in grads.items() if np.abs(g).max() > 1e-4 * top}


@pytest.mark.parametrize("segments", [False, True], ids=["plain", "segments"])
@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=pytest.mark.compiled) if name == "qwen3" else name
        for name in models.FAMILIES
    ],
)
def test_loss_and_gradients(family: str, segments: bool) -> None:
    cfg = models.config(family)
    weights, batch = models.weights(cfg), models.batch(cfg, segments=segments)
    loss, grads = loss_and_gradients(TORCH, cfg, weights, batch)
    alive = everywhere_alive(grads)
    assert len(alive) >= len(grads) - 2 * cfg.num_hidden_layers
    ways = [
        (b, ck, comp)
        for b in (TORCH, MLX)
        for ck in (False, True)
        for comp in (False, b is MLX and mlx_compiler.compiles())
    ]
    for backend, checkpoint, compiled in list(dict.fromkeys(ways))[1:]:
        other, theirs = loss_and_gradients(
            backend, cfg, weights, batch, checkpoint=checkpoint, compiled=compiled
        )
        assert abs(other - loss) < 1e-5
        assert_close({n: theirs[n] for n in alive}, alive, 1e-5)
        assert theirs.keys() == grads.keys()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3"])
def test_torch_compiled_gives_the_same(family: str) -> None:
    import torch

    cfg = models.config(family)
    weights, batch = models.weights(cfg), models.batch(cfg, segments=True)
    loss, grads = loss_and_gradients(TORCH, cfg, weights, batch)
    for checkpoint in (False, True):
        torch._dynamo.reset()
        other, theirs = loss_and_gradients(
            TORCH, cfg, weights, batch, checkpoint=checkpoint, compiled=True
        )
        assert abs(other - loss) < 1e-5
        assert_close(theirs, grads, 1e-5)


@pytest.mark.parametrize("backend", [TORCH, MLX], ids=["torch", "mlx"])
def test_packed_examples_are_the_examples_apart(backend: Backend) -> None:
    """Loss and gradients of two examples in a row, and of the same two in rows of their own."""
    cfg = models.config("qwen3")
    weights, packed = models.weights(cfg), models.batch(cfg, segments=True)
    apart = unpacked(packed)
    (a, grads), (b, theirs) = (
        loss_and_gradients(backend, cfg, weights, x) for x in (packed, apart)
    )
    assert abs(a - b) < 1e-5
    assert_close(grads, theirs, 1e-5)


def unpacked(packed: Weights) -> Weights:
    """Each segment of each row in a row of its own, padded at the right."""
    rows, tokens = packed["ids"].shape
    wanted = np.zeros(rows * tokens, np.int64) - 1
    wanted[packed["index"]] = packed["targets"]
    wanted = wanted.reshape(rows, tokens)
    ids, index, targets = [], [], []
    for row, segments in enumerate(packed["segments"]):
        for s in range(1, segments.max() + 1):
            at = np.flatnonzero(segments == s)
            start = len(ids) * tokens
            ids.append(np.pad(packed["ids"][row, at], (0, tokens - len(at))))
            index += [start + i for i, t in enumerate(at) if wanted[row, t] >= 0]
            targets += [wanted[row, t] for t in at if wanted[row, t] >= 0]
    return {
        "ids": np.stack(ids).astype(np.int32),
        "positions": np.tile(np.arange(tokens, dtype=np.int32), (len(ids), 1)),
        "index": np.array(index, np.int32),
        "targets": np.array(targets, np.int32),
        "weights": packed["weights"],
        "denominator": packed["denominator"],
    }


# steps of an optimizer


def trainer(
    backend: Backend, cfg: DecoderConfig, weights: Weights, settings: OptimSettings, **how: Any
) -> Trainer:
    return backend.trainer(
        partial(causal_lm_loss, model=decoder_of(cfg)),
        {n: backend.array(w) for n, w in weights.items()},
        {},
        settings,
        **how,
    )


def host(backend: Backend, trained: Trainer) -> Weights:
    return {n: backend.numpy(p).copy() for n, p in trained.params().items()}


def rate(step: int) -> float:
    return 1e-3 * min(1.0, (step + 1) / 5) * (1 - step / 40)


def matrices(weights: Weights) -> frozenset[str]:
    return frozenset(n for n, w in weights.items() if is_block_matrix(n, w.shape))


SETTINGS = {
    "adamw": OptimSettings(clip_norm=0.0),
    "adamw, decay, clipped": OptimSettings(weight_decay=0.1, clip_norm=0.5),
    "adamw, other betas": OptimSettings(beta1=0.8, beta2=0.999, eps=1e-6),
    "muon": OptimSettings(optimizer="muon", muon_ratio=10.0, clip_norm=0.0),
    "muon, decay, clipped": OptimSettings(
        optimizer="muon", muon_ratio=10.0, weight_decay=0.1, clip_norm=0.5
    ),
}


@pytest.mark.parametrize(
    "which",
    [
        pytest.param(which, marks=pytest.mark.compiled)
        if which == "muon, decay, clipped"
        else which
        for which in SETTINGS
    ],
)
def test_twenty_steps(which: str) -> None:
    cfg = models.config("qwen2")
    weights = models.weights(cfg)
    settings = replace(
        SETTINGS[which], muon_names=matrices(weights) if "muon" in which else frozenset()
    )
    ends, losses = [], []
    compiled = [(MLX, "auto")] if mlx_compiler.compiles() else []
    for backend, how in ((TORCH, "never"), (MLX, "never"), *compiled):
        trained = trainer(backend, cfg, weights, settings, compile=how)
        out = [trained.step(window(cfg, step), rate(step)) for step in range(20)]
        assert not any(o["skipped"] for o in out)
        ends.append(host(backend, trained))
        losses.append([(o["loss"], o["grad_norm"]) for o in out])
    for end, curve in zip(ends[1:], losses[1:], strict=True):
        np.testing.assert_allclose(curve, losses[0], rtol=1e-4, atol=1e-4)
        for name, value in ends[0].items():
            np.testing.assert_allclose(end[name], value, rtol=0, atol=1e-4, err_msg=name)
    moved = np.abs(ends[0]["model.norm.weight"] - weights["model.norm.weight"]).max()
    assert moved > 1e-3


def window(cfg: DecoderConfig, step: int) -> list[Weights]:
    """Two micro-batches of unlike lengths: one accumulation window, one denominator."""
    parts = [
        models.batch(cfg, rows=2, tokens=16, seed=step),
        models.batch(cfg, rows=2, tokens=9, seed=100 + step),
    ]
    total = np.float32(sum(p["weights"].sum() for p in parts))
    return [p | {"denominator": total} for p in parts]


@pytest.mark.parametrize("backend", [TORCH, MLX], ids=["torch", "mlx"])
def test_accumulation_is_one_large_batch(backend: Backend) -> None:
    """Micro-batches of unlike lengths; the loss that is told is the mean over tokens, not over
    micro-batches.
    """
    cfg = models.config("llama")
    weights = models.weights(cfg)
    whole = models.batch(cfg, rows=4, tokens=12)
    # rows 2 and 3 have few targets
    keep = np.isin(whole["index"] // 12, (0, 1)) | (whole["index"] % 12 < 3)
    whole |= {n: whole[n][keep] for n in ("index", "targets", "weights")}
    whole["denominator"] = np.float32(keep.sum())
    parts = []
    for first in (0, 2):
        mine = np.isin(whole["index"] // 12, (first, first + 1))
        parts.append(
            {
                "ids": whole["ids"][first : first + 2],
                "positions": whole["positions"][:2],
                "index": whole["index"][mine] - first * 12,
                "targets": whole["targets"][mine],
                "weights": whole["weights"][mine],
                "denominator": whole["denominator"],
            }
        )
    ends, told = [], []
    for batches in ([whole], parts):
        trained = trainer(backend, cfg, weights, OptimSettings())
        told.append(trained.step(batches, 1e-2))
        ends.append(host(backend, trained))
    assert told[0]["loss"] == pytest.approx(told[1]["loss"], abs=1e-5)
    assert told[0]["grad_norm"] == pytest.approx(told[1]["grad_norm"], abs=1e-4)
    for name, value in ends[0].items():
        np.testing.assert_allclose(ends[1][name], value, rtol=0, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("backend", [TORCH, MLX], ids=["torch", "mlx"])
def test_a_micro_batch_without_targets_changes_nothing(backend: Backend) -> None:
    cfg = models.config("llama")
    weights, full = models.weights(cfg), models.batch(cfg)
    none = full | {"weights": np.zeros_like(full["weights"])}
    ends = []
    for batches in ([full], [none, full]):
        trained = trainer(backend, cfg, weights, OptimSettings())
        out = trained.step(batches, 1e-2)
        assert np.isfinite(out["loss"]) and not out["skipped"]
        ends.append(host(backend, trained))
    for name, value in ends[0].items():
        np.testing.assert_allclose(ends[1][name], value, rtol=0, atol=1e-6)
    alone = trainer(backend, cfg, weights, OptimSettings())
    alone.step([none | {"denominator": np.float32(1)}], 1e-2)
    assert all(np.isfinite(p).all() for p in host(backend, alone).values())


# optimizers against independent ones


def quadratic(pull: Weights) -> Callable[..., Any]:
    """A loss whose gradient at x is x - pull: easily said again elsewhere."""

    def loss(ops: Any, params: Any, batch: Any) -> Any:
        total = sum(ops.sum((params[n] - batch[n]) * (params[n] - batch[n])) for n in pull) * 0.5
        return total * batch["factor"], {"loss": (total, batch["factor"])}

    return loss


SHAPES = {
    "model.layers.0.a.weight": (6, 4),
    "model.layers.0.b.weight": (4, 6),
    "model.layers.1.a.weight": (6, 4),
    "head.weight": (5, 4),
    "model.norm.weight": (4,),
}


def start() -> tuple[Weights, Weights]:
    rng = np.random.default_rng(4)
    return (
        {n: rng.standard_normal(s).astype(np.float32) for n, s in SHAPES.items()},
        {n: rng.standard_normal(s).astype(np.float32) for n, s in SHAPES.items()},
    )


def run_quadratic(backend: Backend, settings: OptimSettings, steps: int = 12) -> Weights:
    weights, pull = start()
    trained = backend.trainer(
        quadratic(pull), {n: backend.array(w) for n, w in weights.items()}, {}, settings
    )
    for step in range(steps):
        trained.step([pull | {"factor": np.float32(1 + step % 3)}], rate(step) * 20)
    return host(backend, trained)


def clipped(grads: Weights, limit: float) -> Weights:
    norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in grads.values()))
    return {n: g * min(1.0, limit / norm) for n, g in grads.items()}


@pytest.mark.parametrize("backend", [TORCH, MLX], ids=["torch", "mlx"])
def test_adamw_is_torchs(backend: Backend) -> None:
    """Decay on matrices only, clipping by the global norm, the rate of each step."""
    import torch

    weights, pull = start()
    params = {n: torch.nn.Parameter(torch.tensor(w)) for n, w in weights.items()}
    reference = torch.optim.AdamW(
        [
            {"params": [p for p in params.values() if p.ndim == 2], "weight_decay": 0.2},
            {"params": [p for p in params.values() if p.ndim < 2], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
        eps=1e-8,
        foreach=False,
        fused=False,
    )
    for step in range(12):
        for group in reference.param_groups:
            group["lr"] = rate(step) * 20
        for n, p in params.items():
            p.grad = (p.detach() - torch.tensor(pull[n])) * (1 + step % 3)
        torch.nn.utils.clip_grad_norm_(params.values(), 1.0)
        reference.step()
    got = run_quadratic(backend, OptimSettings(weight_decay=0.2, clip_norm=1.0))
    for n, p in params.items():
        np.testing.assert_allclose(got[n], p.detach().numpy(), rtol=0, atol=1e-5, err_msg=n)


@pytest.mark.parametrize("backend", [TORCH, MLX], ids=["torch", "mlx"])
def test_muon_is_the_published_one(backend: Backend) -> None:
    """Momentum, Nesterov's look ahead, five steps of the quintic iteration, the scale for tall
    matrices, in float64.
    """
    weights, pull = start()
    names = matrices(weights)
    x = {n: w.astype(np.float64) for n, w in weights.items()}
    momentum = {n: np.zeros(SHAPES[n]) for n in names}
    for step in range(12):
        grads = clipped({n: (x[n] - pull[n]) * (1 + step % 3) for n in x}, 1.0)
        lr = rate(step) * 20 * 3.0
        for n in names:
            momentum[n] = MOMENTUM * momentum[n] + (1 - MOMENTUM) * grads[n]
            ahead = (1 - MOMENTUM) * grads[n] + MOMENTUM * momentum[n]
            x[n] = (
                x[n] * (1 - lr * 0.1)
                - lr * newton_schulz(ahead) * max(1.0, SHAPES[n][0] / SHAPES[n][1]) ** 0.5
            )
        # the tensors that Muon has not: their gradient counts in the norm, so follow AdamW too
        adamw(x, grads, set(x) - names, step, rate(step) * 20)
    settings = OptimSettings(
        optimizer="muon", muon_ratio=3.0, muon_names=names, weight_decay=0.1, clip_norm=1.0
    )
    got = run_quadratic(backend, settings)
    for n in x:
        np.testing.assert_allclose(got[n], x[n], rtol=0, atol=1e-4, err_msg=n)


def newton_schulz(g: np.ndarray) -> np.ndarray:
    x = g.T if g.shape[0] > g.shape[1] else g
    x = x / (np.linalg.norm(x) + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if g.shape[0] > g.shape[1] else x


_moments: dict[str, tuple[np.ndarray, np.ndarray]] = {}


def adamw(x: Weights, grads: Weights, names: set[str], step: int, lr: float) -> None:
    """One step in place; the moments begin anew at step 0."""
    if step == 0:
        _moments.clear()
    for n in names:
        m, v = _moments.get(n, (np.zeros(SHAPES[n]), np.zeros(SHAPES[n])))
        m, v = 0.9 * m + 0.1 * grads[n], 0.95 * v + 0.05 * grads[n] ** 2
        _moments[n] = m, v
        decay = 0.1 if x[n].ndim == 2 else 0.0
        x[n] = x[n] * (1 - lr * decay) - lr * (m / (1 - 0.9 ** (step + 1))) / (
            np.sqrt(v / (1 - 0.95 ** (step + 1))) + 1e-8
        )


def test_newton_schulz_brings_singular_values_near_one() -> None:
    """What the iteration is for; also that the reference above is no nonsense."""
    from ondevice.training.muon import orthogonalize

    g = np.random.default_rng(1).standard_normal((2, 8, 5)).astype(np.float32)
    for backend in (TORCH, MLX):
        out = backend.numpy(orthogonalize(backend.ops, backend.array(g)))
        values = np.linalg.svd(out, compute_uv=False)
        assert values.min() > 0.5 and values.max() < 1.3
        for i in range(2):
            np.testing.assert_allclose(out[i], newton_schulz(g[i].astype(np.float64)), atol=1e-4)


# what is not finite, and checkpoints


@pytest.mark.parametrize("how", [pytest.param("auto", marks=pytest.mark.compiled), "never"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("backend", [TORCH, MLX], ids=["torch", "mlx"])
def test_a_gradient_that_is_not_finite_changes_nothing(
    backend: Backend, bad: float, how: str, tmp_path: Path
) -> None:
    weights, pull = start()
    settings = OptimSettings(optimizer="muon", muon_names=matrices(weights), weight_decay=0.1)
    trained = backend.trainer(
        quadratic(pull),
        {n: backend.array(w) for n, w in weights.items()},
        {},
        settings,
        compile=how,
    )
    trained.step([pull | {"factor": np.float32(1)}], 1e-2)
    before = host(backend, trained)
    trained.save_state(tmp_path / "a.safetensors")
    out = trained.step([pull | {"factor": np.float32(1)}, pull | {"factor": np.float32(bad)}], 1e-2)
    assert out["skipped"] == 1.0 and not np.isfinite(out["grad_norm"])
    trained.save_state(tmp_path / "b.safetensors")
    for name, value in host(backend, trained).items():
        np.testing.assert_array_equal(value, before[name])
    a, b = (backend.load(tmp_path / f"{n}.safetensors") for n in "ab")
    assert a.keys() == b.keys()
    for name, value in a.items():
        np.testing.assert_array_equal(backend.numpy(value), backend.numpy(b[name]))
    assert trained.step([pull | {"factor": np.float32(1)}], 1e-2)["skipped"] == 0.0


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(
    ("one", "other"), [(TORCH, MLX), (MLX, TORCH)], ids=["torch to mlx", "mlx to torch"]
)
def test_a_checkpoint_goes_on_with_the_other_backend(
    one: Backend, other: Backend, optimizer: str, tmp_path: Path
) -> None:
    cfg = models.config("llama-gqa-tied")
    weights = models.weights(cfg)
    settings = OptimSettings(
        optimizer=optimizer,
        weight_decay=0.1,
        muon_names=matrices(weights) if optimizer == "muon" else frozenset(),
    )
    first = trainer(one, cfg, weights, settings)
    for step in range(5):
        first.step(window(cfg, step), rate(step))
    one.save(tmp_path / "model.safetensors", first.params(), {})
    first.save_state(tmp_path / "optimizer.safetensors")
    ends = []
    for backend in (one, other):
        params = backend.load(tmp_path / "model.safetensors")
        resumed = backend.trainer(
            partial(causal_lm_loss, model=decoder_of(cfg)), params, {}, settings
        )
        resumed.load_state(tmp_path / "optimizer.safetensors")
        curve = [resumed.step(window(cfg, step), rate(step))["loss"] for step in range(5, 10)]
        ends.append((host(backend, resumed), curve))
    uninterrupted = [first.step(window(cfg, step), rate(step))["loss"] for step in range(5, 10)]
    assert ends[0][1] == uninterrupted  # the same backend: bit for bit
    np.testing.assert_allclose(ends[1][1], uninterrupted, rtol=0, atol=1e-5)
    for name, value in host(one, first).items():
        np.testing.assert_array_equal(ends[0][0][name], value)
        np.testing.assert_allclose(ends[1][0][name], value, rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_file_of_one_backend_is_the_others(dtype: str, tmp_path: Path) -> None:
    weights = models.weights(models.config("qwen3"))
    for one, other in ((TORCH, MLX), (MLX, TORCH)):
        file = tmp_path / f"{one.name}.safetensors"
        one.save(file, {n: one.array(w) for n, w in weights.items()}, {"made": "here"}, dtype)
        a, b = one.load(file), other.load(file)
        assert list(sorted(a)) == sorted(b) == sorted(weights)
        for name in weights:
            np.testing.assert_array_equal(one.numpy(a[name]), other.numpy(b[name]))
            np.testing.assert_allclose(one.numpy(a[name]), weights[name], rtol=1e-2, atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
@pytest.mark.parametrize("family", ["llama3-rope", "t5"])
def test_an_eager_run_after_a_compiled_one_is_an_eager_run(
    family: str, compiler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit: no table that a compiler made in its own arithmetic is used, in either."""
    import torch

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=compiler))

    kind = next(
        make for make in (models.FAMILIES, models.ENCODERS, models.SEQ2SEQ) if family in make
    )
    cfg = (
        models.config(family, num_hidden_layers=1)  # each layer takes the compiler seconds more
        if kind is models.FAMILIES
        else models.encoder_config(family)
        if kind is models.ENCODERS
        else models.seq2seq_config(family)
    )
    ids = np.random.default_rng(0).integers(3, cfg.vocab_size, (2, 20)).astype(np.int32)
    batch = {"ids": ids, "positions": np.tile(np.arange(20, dtype=np.int32), (2, 1))}
    batch |= {"segments": np.ones_like(ids)} if kind is models.ENCODERS else {}
    batch |= (
        {"source_ids": ids, "source_lengths": np.full(2, 20, np.int32)}
        if kind is models.SEQ2SEQ
        else {}
    )

    def states(backend: Backend, compile: str) -> np.ndarray:
        net = network(cfg)
        params = {n: backend.array(w) for n, w in models.weights(cfg).items()}
        run = backend.inference_fn(lambda p, b: net.hidden(backend.ops, p, b), compile=compile)
        return np.array(backend.numpy(run(params, with_tables(net, backend.ops, batch))))

    alone = states(load_backend("torch", device="cpu", dtype="float32"), "never")
    torch._dynamo.reset()
    both = load_backend("torch", device="cpu", dtype="float32")
    compiled, after = states(both, "always"), states(both, "never")
    assert np.array_equal(after, alone)
    np.testing.assert_allclose(compiled, alone, rtol=0, atol=4e-6)


def test_copies_to_a_device_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless it is CUDA, from pinned memory: on MPS a copy that does not wait reads what is there
    later.
    """
    import torch

    from ondevice_torch.backend import TorchBackend

    asked: list[bool] = []
    before = torch.Tensor.to
    monkeypatch.setattr(
        torch.Tensor,
        "to",
        lambda self, *args, **named: (
            asked.append(bool(named.get("non_blocking"))),
            before(self, *args, **named),
        )[1],
    )
    TorchBackend(torch.device("meta"), "float32").array(np.ones(3, np.float32))
    assert asked == [False]
    cuda = TorchBackend(torch.device("cpu"), "float32")
    cuda.device = "cuda"  # as far as the choice goes
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: (asked.append(True), self)[1])
    cuda.array(np.ones(3, np.float32))
    assert asked == [False, True, True]
