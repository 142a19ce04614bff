"""Group-affine quantised weights in torch: `.scales` and `.biases` beside a packed `.weight`, as MLX writes them.

A packed row holds 32 / bits values a word, the first in the lowest bits; value = q · scale + bias of its group.
Read beside `ondevice_mlx/quant.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def dequantize(packed: Tensor, scales: Tensor, biases: Tensor, width: int) -> Tensor:
    """(…, width) in the type of `scales` from words (…, width · bits / 32), scales and biases (…, groups)."""
    words = packed.view(torch.int32)
    bits = 32 * words.shape[-1] // width
    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=words.device)
    q = (words[..., None] >> shifts) & (2**bits - 1)
    grouped = q.reshape(*scales.shape, -1).to(scales.dtype)
    return torch.addcmul(biases[..., None], grouped, scales[..., None]).reshape(*words.shape[:-1], width)


class QuantizedLinear(torch.autograd.Function):
    """x · Wᵀ. Only what is packed is kept for the backward pass, which unpacks it again: else all layers of a model
    would stand unpacked at once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, scales: Tensor, biases: Tensor) -> Tensor:
        ctx.save_for_backward(packed, scales, biases)
        ctx.width = x.shape[-1]
        return x @ dequantize(packed, scales, biases, x.shape[-1]).T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return grads[0] @ dequantize(*ctx.saved_tensors, ctx.width), None, None, None
