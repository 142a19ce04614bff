"""The seam's rules that no result shows: how often a step is traced, and how memory grows."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import models
from device import backend_of
from ondevice.config.stages import PretrainConfig
from ondevice.models.decoder import Decoder, split_layers
from ondevice.models.tables import placed
from ondevice.seam.protocols import Backend, OptimSettings
from ondevice.seam.select import load_backend
from ondevice.training import logprobs
from ondevice.training.losses import causal_lm_loss
from ondevice.training.lr_schedule import learning_rate


def run_steps(backend: Backend, shapes: list[tuple[int, int]], steps: int = 20) -> int:
    """Traces after `steps` steps under a schedule; the batches' shapes come in turn, two
    micro-batches a step.
    """
    cfg = models.config("qwen3")
    params = {n: backend.array(w) for n, w in models.weights(cfg).items()}
    settings = OptimSettings(
        optimizer="muon",
        weight_decay=0.1,
        muon_names=frozenset(n for n in params if n.endswith("proj.weight")),
    )
    trained = backend.trainer(partial(causal_lm_loss, model=Decoder(cfg)), params, {}, settings)
    schedule = PretrainConfig(steps=steps, warmup_steps=5, schedule="cosine", learning_rate=1e-3)
    rates = set()
    for step in range(steps):
        rows, tokens = shapes[step % len(shapes)]
        lr = learning_rate(step, schedule)
        rates.add(lr)
        trained.step(
            [
                models.batch(cfg, rows, tokens, seed=2 * step + i)
                | {"denominator": np.float32(70 + step)}
                for i in range(2)
            ],
            lr,
        )
    assert len(rates) > steps / 2
    return trained.traces()


@pytest.mark.compiled
@pytest.mark.parametrize("shapes", [[(2, 16)], [(2, 16), (2, 24)], [(2, 16), (3, 16), (2, 24)]])
def test_one_trace_a_bucket(shapes: list[tuple[int, int]]) -> None:
    """One gradient for each shape of batch, an update by Muon and one by AdamW, however the rate and
    the denominator change.
    """
    pytest.importorskip("mlx.core")
    assert run_steps(backend_of("mlx"), shapes) == len(shapes) + 2


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", [False, True])
def test_one_graph_serves_all_layers(checkpoint: bool) -> None:
    """Blocks see relative names, so that a compiler meets the same function again at each layer."""
    torch = pytest.importorskip("torch")
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    backend = load_backend("torch", device="cpu", dtype="float32")
    cfg = models.config("qwen3", num_hidden_layers=12)
    params = {
        n: backend.array(w).requires_grad_()  # type: ignore[attr-defined]
        for n, w in models.weights(cfg).items()
    }
    batch = models.batch(cfg, segments=True)
    decoder = Decoder(cfg)
    tables = placed(decoder, backend.ops, 20)
    turn = decoder._turns(backend.ops, tables, backend.array(batch["positions"]))[0]
    segments = backend.array(batch["segments"])
    body = partial(decoder._block, backend.ops, 0, segments, None, turn, None)
    counter = CompileCounter()
    compiled = torch.compile(backend.ops.checkpoint(body) if checkpoint else body, backend=counter)
    x = torch.ones(3, 20, cfg.hidden_size, requires_grad=True)
    for block in split_layers(params, "model.layers."):
        x = compiled(block, x)
    x.sum().backward()
    assert counter.frame_count == 1
    assert all(p.grad is not None for n, p in params.items() if n.startswith("model.layers."))


# No (B, T, V) array: what memory grows by between N and 2 N targets is no multiple of the
# vocabulary.

VOCABULARY, TARGETS = 16384, 1024
LOGITS = VOCABULARY * TARGETS * 4  # bytes that the logits of the N further targets would take


def train_one_step(backend: Backend, targets: int, tied: bool = True) -> None:
    """A step of the trainer, compiled as in training, of a model that is little but its head."""
    cfg = models.config(
        "llama",
        vocab_size=VOCABULARY,
        max_position_embeddings=64,
        num_hidden_layers=1,
        hidden_size=16,
        intermediate_size=16,
        head_dim=4,
        tie_word_embeddings=tied,
    )
    params = {n: backend.array(w) for n, w in models.weights(cfg).items()}
    trained = backend.trainer(
        partial(causal_lm_loss, model=Decoder(cfg)), params, {}, OptimSettings()
    )
    rng, rows = np.random.default_rng(0), targets // 64
    trained.step(
        [
            {
                "ids": rng.integers(0, VOCABULARY, (rows, 64)).astype(np.int32),
                "positions": np.tile(np.arange(64, dtype=np.int32), (rows, 1)),
                "targets": rng.integers(0, VOCABULARY, targets).astype(np.int32),
                "index": np.arange(targets, dtype=np.int32),
                "weights": np.ones(targets, np.float32),
                "denominator": np.float32(targets),
            }
        ],
        1e-3,
    )


def small_chunks() -> None:
    """64 rows a chunk, nothing kept: the sizes above are then many chunks, as a long batch is."""
    logprobs.CHUNK_ELEMENTS = 64 * VOCABULARY
    logprobs.KEEP_ELEMENTS = 0


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_memory_does_not_grow_with_the_vocabulary_on_mlx(
    tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    mx = pytest.importorskip("mlx.core")
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", logprobs.CHUNK_ELEMENTS)
    monkeypatch.setattr(logprobs, "KEEP_ELEMENTS", logprobs.KEEP_ELEMENTS)
    small_chunks()
    backend = backend_of("mlx")
    peaks = []
    for targets in (TARGETS, 2 * TARGETS):
        mx.synchronize()
        mx.clear_cache()
        held = mx.get_active_memory()
        mx.reset_peak_memory()
        train_one_step(backend, targets, tied)
        peaks.append(mx.get_peak_memory() - held)
    assert peaks[1] - peaks[0] < 0.15 * LOGITS, f"{peaks} bytes; logits would add {LOGITS}"


@pytest.mark.slow
def test_memory_does_not_grow_with_the_vocabulary_on_torch() -> None:
    """By the process's peak: a fresh one, which gives every freed array back at once (glibc else
    keeps holes in its heap that the next chunk does not always fit)."""
    pytest.importorskip("torch")
    code = """
import resource, sys
import test_rules as t
from ondevice.seam.select import load_backend
t.small_chunks()
backend = load_backend("torch", device="cpu", dtype="float32")
unit = 1 if sys.platform == "darwin" else 1024
for targets in (128, t.TARGETS, 2 * t.TARGETS):
    t.train_one_step(backend, targets)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
"""
    out = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"},
    )
    _, first, second = map(int, out.stdout.split())
    assert second - first < 0.15 * LOGITS, f"{out.stdout.split()} bytes; logits would add {LOGITS}"
