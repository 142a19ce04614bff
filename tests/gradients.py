"""Differentiating in each backend's own style. No test by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

import mlx_compiler
from ondevice.models.network import network
from ondevice.models.registry import ModelConfig
from ondevice.seam.protocols import Backend
from ondevice.training.losses import causal_lm_loss

Array = np.ndarray
Weights = dict[str, np.ndarray]


def by_name(
    backend: Backend,
    fn: Callable[..., Any],
    params: Weights,
    batch: Weights,
    *,
    compiled: bool = False,
) -> tuple[float, Weights]:
    """The value of `fn(params, batch)` and its gradient with respect to each of `params`, on the
    host.
    """
    assert not compiled or backend.name == "torch" or mlx_compiler.compiles()
    arrays = on_device(backend, batch)
    if backend.name == "torch":
        import torch

        leaves = {n: backend.array(p).clone().requires_grad_() for n, p in params.items()}  # type: ignore[attr-defined]
        value = (torch.compile(fn, backend="aot_eager") if compiled else fn)(leaves, arrays)
        value.backward()
        return value.item(), {
            n: np.zeros_like(params[n]) if p.grad is None else p.grad.numpy()
            for n, p in leaves.items()
        }
    import mlx.core as mx

    grad = mx.value_and_grad(fn)
    value, grads = (mx.compile(grad) if compiled else grad)(
        {n: mx.array(p) for n, p in params.items()}, arrays
    )
    return value.item(), {n: np.array(g) for n, g in grads.items()}


def graded(backend: Backend, fn: Callable[..., Any], *at: Array) -> tuple[float, list[Array]]:
    """`fn`'s value at some arrays and its gradient with respect to each."""
    given = {str(n): np.asarray(x, np.float32) for n, x in enumerate(at)}
    value, grads = by_name(backend, lambda xs, _: fn(*xs.values()), given, {})
    return value, list(grads.values())


def on_device(backend: Backend, batch: dict[str, Array]) -> dict[str, Any]:
    return {name: backend.array(np.asarray(x)) for name, x in batch.items()}


def loss_of(cfg: ModelConfig, backend: Backend, *, checkpoint: bool = False) -> Any:
    """The mean over target tokens of a model of this shape, as a function of (params, batch)."""
    loss = partial(causal_lm_loss, model=network(cfg), checkpoint=checkpoint)
    return lambda p, b: loss(backend.ops, p, b)[0]


def assert_close(got: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray]) -> None:
    """Tensor by tensor, within 1e-5 of its largest value."""
    top = max(np.abs(w).max() for w in want.values())
    for name, w in want.items():
        # a bias of keys shifts all scores of a query alike: without rotation its gradient is 0 but
        # for rounding
        scale = top if name.endswith(("key.bias", "k_proj.bias")) else np.abs(w).max()
        assert np.abs(got[name] - w).max() <= 1e-5 * scale, name
