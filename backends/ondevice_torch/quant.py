"""Group-affine quantised weights in torch: `.scales` and `.biases` beside a packed `.weight`, as
MLX writes them.

A packed row holds 32 / bits values a word, the first in the lowest bits; value = q · scale + bias
of its group. Read beside `ondevice_mlx/quant.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

TOGETHER = 1 << 22
"""Weights that stand unpacked at once: a vocabulary's matrix as a whole would be the largest thing
of a training.
"""


def dequantize(packed: Tensor, scales: Tensor, biases: Tensor, width: int) -> Tensor:
    """(…, width) in the type of `scales` from words (…, width · bits / 32), scales and biases (…,
    groups).
    """
    octets = packed.view(torch.uint8)  # a word's first byte holds its lowest bits
    bits = 8 * octets.shape[-1] // width
    if bits == 8:
        q = octets
    else:
        q = torch.stack([(octets >> low) & (2**bits - 1) for low in range(0, 8, bits)], -1)
    grouped = q.reshape(*scales.shape, -1).to(scales.dtype)
    torch.addcmul(biases[..., None], grouped, scales[..., None], out=grouped)
    return grouped.reshape(*packed.shape[:-1], width)


class QuantizedLinear(torch.autograd.Function):
    """x · Wᵀ. Only what is packed is kept for the backward pass, which unpacks it again: else all
    layers of a model would stand unpacked at once. Of a large matrix some rows are unpacked at a
    time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, scales: Tensor, biases: Tensor) -> Tensor:
        ctx.save_for_backward(packed, scales, biases)
        ctx.width = x.shape[-1]
        parts = [
            x @ dequantize(packed[rows], scales[rows], biases[rows], x.shape[-1]).T
            for rows in _parts(len(packed), x.shape[-1])
        ]
        if len(parts) == 1:
            return parts[0]
        return torch.cat(parts, -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        first, *others = _parts(grads[0].shape[-1], ctx.width)
        total = grads[0][..., first] @ dequantize(*[t[first] for t in ctx.saved_tensors], ctx.width)
        for rows in others:
            total = total + grads[0][..., rows] @ dequantize(
                *[t[rows] for t in ctx.saved_tensors], ctx.width
            )
        return total, None, None, None


def _parts(rows: int, width: int) -> list[slice]:
    step = max(1, TOGETHER // width)
    return [slice(start, start + step) for start in range(0, rows, step)]
