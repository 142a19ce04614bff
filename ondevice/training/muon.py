"""Muon for matrices, written once (Jordan 2024, "Muon: An optimizer for hidden layers").

The update is the momentum (Nesterov) made orthogonal by five Newton–Schulz steps of the quintic
iteration, times sqrt(max(1, rows / columns)).
"""

from __future__ import annotations

from collections.abc import Sequence

from ondevice.seam.ops import Array, Ops

MOMENTUM = 0.95
_STEPS = 5
_A, _B, _C = 3.4445, -4.7750, 2.0315


def orthogonalize(ops: Ops, g: Array) -> Array:
    """(N, rows, columns) → the same shape with singular values near 1; float32."""
    tall = g.shape[1] > g.shape[2]
    x = g.swapaxes(1, 2) if tall else g
    norm = ops.sqrt(ops.sum(ops.sum(x * x, 2, True), 1, True))
    x = x / (norm + 1e-7)
    for _ in range(_STEPS):
        gram = x @ x.swapaxes(1, 2)
        x = _A * x + (_B * gram + _C * (gram @ gram)) @ x
    if tall:
        return x.swapaxes(1, 2)
    return x


def muon_updates(ops: Ops, gradients: Sequence[Array]) -> list[Array]:
    """One update per matrix, in order; matrices of one shape go through the iteration together."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, g in enumerate(gradients):
        groups.setdefault(tuple(g.shape), []).append(i)
    out: dict[int, Array] = {}
    for shape, members in groups.items():
        scale = max(1.0, shape[0] / shape[1]) ** 0.5
        update = orthogonalize(ops, ops.stack([gradients[i] for i in members])) * scale
        out.update((i, update[j]) for j, i in enumerate(members))
    return [out[i] for i in range(len(gradients))]
