"""Group-affine quantised weights in MLX: `.scales` and `.biases` beside a packed `.weight`.

Read beside `ondevice_torch/quant.py`.
"""

from __future__ import annotations

import mlx.core as mx


def format_of(packed: mx.array, scales: mx.array, width: int) -> tuple[int, int]:
    """(bits, group size) of rows that hold `width` values."""
    return 32 * packed.shape[-1] // width, width // scales.shape[-1]


def dequantize(packed: mx.array, scales: mx.array, biases: mx.array, width: int) -> mx.array:
    """(…, width) from words (…, width · bits / 32), scales and biases (…, groups)."""
    bits, group_size = format_of(packed, scales, width)
    return mx.dequantize(packed, scales, biases, group_size=group_size, bits=bits)
