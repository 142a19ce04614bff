"""A large table of tokens that is the head too: its gradient is that of the whole, and no chunk of
the head makes an array of its size but the first."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ondevice.config.stages import PretrainConfig
from ondevice.seam.head import Head
from ondevice.seam.protocols import Backend
from ondevice.training import logprobs
from ondevice.training.optimizer_settings import optim_settings

V, D, N = 640, 8, 300


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 rows at a time, none of them kept, and every table is a large one."""
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", 1)
    monkeypatch.setattr(logprobs, "KEEP_ELEMENTS", 0)
    ops = pytest.importorskip("ondevice_torch.ops")
    monkeypatch.setattr(ops, "LARGE_TABLE", 0)


def weights(tied: bool) -> dict[str, Any]:
    draw = np.random.default_rng(3)
    names = ("table.weight",) if tied else ("head.weight", "table.weight")
    return {n: 0.1 * draw.standard_normal((V, D)).astype(np.float32) for n in names}


def batch(seed: int) -> dict[str, Any]:
    draw = np.random.default_rng(seed)
    # some tokens are read several times
    return {
        "ids": draw.integers(0, V // 8, (1, N)).astype(np.int32),
        "targets": draw.integers(0, V, N).astype(np.int32),
    }


def loss(ops: Any, params: Any, batch: Any, *, head: str) -> Any:
    x = ops.tanh(ops.embed(params, "table", batch["ids"]).reshape(N, D) * 3.0)
    logp, _ = logprobs.token_logprobs(ops, params, Head(head), x, batch["targets"])
    total = -ops.sum(logp)
    return total / N, {"loss": (total, ops.sum(logp * 0 + 1))}


def trained(backend: Backend, tied: bool) -> dict[str, Any]:
    """The weights after two steps of two micro-batches."""
    head = "table.weight" if tied else "head.weight"
    params = {n: backend.array(w) for n, w in weights(tied).items()}
    made = backend.trainer(
        lambda o, p, b: loss(o, p, b, head=head),
        params,
        {},
        optim_settings(PretrainConfig(), params),
    )
    for step in range(2):
        made.step([batch(step), batch(step + 10)], 1e-2)
    return {n: backend.numpy(p) for n, p in made.params().items()}


@pytest.mark.parametrize("tied", [True, False])
def test_training_by_small_chunks_is_the_whole(
    backend: Backend, tied: bool, request: pytest.FixtureRequest
) -> None:
    whole = trained(backend, tied)
    request.getfixturevalue("small_chunks")
    for name, found in trained(backend, tied).items():
        assert np.abs(found - weights(tied)[name]).max() > 1e-3  # all are trained
        np.testing.assert_allclose(found, whole[name], atol=2e-6)


@pytest.mark.usefixtures("small_chunks")
def test_chunks_add_to_one_gradient() -> None:
    torch = pytest.importorskip("torch")
    from torch.utils._python_dispatch import TorchDispatchMode

    from ondevice.seam.select import load_backend

    made: Counter[str] = Counter()

    class Watching(TorchDispatchMode):  # type: ignore[misc]
        def __torch_dispatch__(
            self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            out = func(*args, **(kwargs or {}))
            new = isinstance(out, torch.Tensor) and not any(out is a for a in args)
            if new and out.layout == torch.strided and out.shape == (V, D) and not out._is_view():
                made[str(func)] += 1
            return out

    ops = load_backend("torch", "cpu", "float32").ops
    params: dict[str, Any] = {
        n: torch.tensor(w, requires_grad=True) for n, w in weights(True).items()
    }
    arrays = {n: torch.tensor(x) for n, x in batch(0).items()}
    value, _ = loss(ops, params, arrays, head="table.weight")
    with Watching():
        value.backward()
    assert params["table.weight"].grad.shape == (V, D)
    del made["aten.detach.default"]  # the same memory
    # five chunks: the first one's product, its sum with the rows that were read, and no others
    assert made == {"aten.mm.default": 1, "aten.add.Tensor": 1}


def test_spent_logits_give_the_same(backend: Backend) -> None:
    draw = np.random.default_rng(0)
    x = draw.standard_normal((6, 11)).astype(np.float32)
    at = np.arange(6, dtype=np.int32)
    kept, spent = (
        backend.numpy(
            backend.ops.log_likelihood(backend.array(x.copy()), backend.array(at), spent=s)
        )
        for s in (False, True)
    )
    np.testing.assert_array_equal(kept, spent)
    np.testing.assert_allclose(kept, x[at, at] - np.log(np.exp(x).sum(1)), rtol=1e-5)


@pytest.mark.slow  # a process of its own, whose modules no other test has imported
def test_a_step_does_not_import_torchs_compiler() -> None:
    pytest.importorskip("torch")
    program = """
import sys, numpy
from ondevice.config.stages import PretrainConfig
from ondevice.seam.select import load_backend
from ondevice.training.optimizer_settings import optim_settings
backend = load_backend("torch", "cpu", "float32")
params = {"a": backend.array(numpy.ones((2, 2), numpy.float32))}
loss = lambda ops, p, b: (ops.sum(p["a"] * p["a"]), {})
trainer = backend.trainer(loss, params, {}, optim_settings(PretrainConfig(), params))
trainer.step([{}], 0.1)
assert float(backend.numpy(trainer.params()["a"]).max()) < 1
sys.exit("torch._dynamo" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
