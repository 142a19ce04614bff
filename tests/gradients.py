"""Differentiating in each backend's own style. No test by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ondevice.backend import Backend

Array = np.ndarray


def graded(backend: Backend, fn: Callable[..., Any], *at: Array) -> tuple[float, list[Array]]:
    """`fn`'s value at some arrays and its gradient with respect to each, on the host."""
    if backend.name == "torch":
        leaves: list[Any] = [backend.array(np.asarray(x, np.float32)).clone().requires_grad_()  # type: ignore[attr-defined]
                             for x in at]
        value = fn(*leaves)
        value.backward()
        return value.item(), [np.zeros(x.shape, np.float32) if x.grad is None else x.grad.numpy() for x in leaves]
    import mlx.core as mx
    given = [mx.array(np.asarray(x, np.float32)) for x in at]
    value, grads = mx.value_and_grad(lambda xs: fn(*xs))(given)
    return value.item(), [np.array(g) for g in grads]


def on_device(backend: Backend, batch: dict[str, Array]) -> dict[str, Any]:
    return {name: backend.array(np.asarray(x)) for name, x in batch.items()}
