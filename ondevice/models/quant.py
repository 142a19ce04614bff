"""Group-affine quantisation in mlx-community's format, written once in numpy: both backends read
the same bits.

A matrix (outputs, inputs) becomes words of 32 bits, the first value in the lowest ones, and a scale
and a bias for each `group_size` values of a row: w ≈ q · scale + bias. How scale and bias are
chosen is MLX's own rule (`mx.quantize`): the end of a group that is farther from 0 is met exactly,
and 0 is one of the values.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ondevice.seam.ops import HostArray, Params
from ondevice.seam.protocols import Backend

Floats = NDArray[np.float32]


def packed(
    weight: HostArray, bits: int, group_size: int, dtype: str = "float32"
) -> tuple[NDArray[np.uint32], Floats, Floats]:
    """(words (outputs, inputs · bits / 32), scales, biases (outputs, inputs / group_size)) of a
    matrix. Scales and biases are numbers of the type `dtype`, in which a file is to keep them:
    values are counted in these."""
    outputs, inputs = weight.shape
    most = np.float32(2**bits - 1)
    groups = weight.astype(np.float32).reshape(outputs, -1, group_size)
    low = groups.min(-1)
    high = groups.max(-1)
    below = np.abs(low) > np.abs(high)
    scales = np.maximum((high - low) / most, np.float32(1e-7))
    scales = np.where(below, scales, -scales)
    edge = np.where(below, low, high)
    steps = np.rint(edge / scales)
    some = steps != 0
    scales = _rounded(np.where(some, edge / np.where(some, steps, 1), scales), dtype)
    biases = _rounded(np.where(some, edge, 0), dtype)
    values = np.rint((groups - biases[..., None]) / scales[..., None])
    q = np.clip(values, 0, most).astype(np.uint32)
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    words = np.bitwise_or.reduce(q.reshape(outputs, -1, 32 // bits) << shifts, -1)
    return words, scales, biases


def _rounded(x: HostArray, dtype: str) -> Floats:
    """The nearest numbers of a type, as float32; numpy has no bfloat16."""
    single = x.astype(np.float32)
    if dtype == "bfloat16":
        bits = single.view(np.uint32)
        bits = (bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
        single = bits.view(np.float32)
    if dtype == "float16":
        return single.astype(np.float16).astype(np.float32)
    return single


def unpacked(
    words: NDArray[np.uint32], scales: HostArray, biases: HostArray, inputs: int
) -> Floats:
    """The matrix (outputs, inputs) that `packed` stands for."""
    outputs = words.shape[0]
    bits = 32 * words.shape[1] // inputs
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    q = (words[..., None] >> shifts) & np.uint32(2**bits - 1)
    grouped = q.reshape(outputs, scales.shape[1], -1).astype(np.float32)
    values = grouped * scales[..., None] + biases[..., None]
    made: Floats = values.astype(np.float32).reshape(outputs, inputs)
    return made


def dequantised(params: Params, module: str, inputs: int, backend: Backend) -> Floats:
    """A quantised module's matrix on the host."""
    words = backend.numpy(params[f"{module}.weight"])
    scales = backend.numpy(params[f"{module}.scales"])
    biases = backend.numpy(params[f"{module}.biases"])
    return unpacked(words.view(np.uint32), scales, biases, inputs)
