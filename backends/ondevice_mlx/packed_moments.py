"""AdamW with moments of 8 bits, a block of `BLOCK` numbers with a scale of its own.

How they are kept and why is said in `ondevice_torch/packed_moments.py`: read beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from ondevice.seam.protocols import OptimSettings

BLOCK = 256
LEAST = 4096  # tensors of fewer numbers keep whole moments: norms, biases, small heads
CHUNK = 1 << 14  # blocks that stand unpacked at once
KEYS = ("exp_avg", "exp_avg.top", "exp_avg_sq", "exp_avg_sq.top")


def empty(name: str, param: mx.array) -> dict[str, mx.array]:
    """The moments of a tensor before the first step: int8 and uint8 (blocks, BLOCK), and what each
    block's largest is, (blocks, 1) float32.
    """
    blocks = -(-param.size // BLOCK)
    made = (
        mx.zeros((blocks, BLOCK), mx.int8),
        mx.zeros((blocks, 1)),
        mx.zeros((blocks, BLOCK), mx.uint8),
        mx.zeros((blocks, 1)),
    )
    return {f"{name}.{key}": x for key, x in zip(KEYS, made, strict=True)}


class PackedAdamW:
    """One step of AdamW for tensors with packed moments."""

    def __init__(self, settings: OptimSettings, compiled: bool) -> None:
        self.settings = settings
        self.traces = 0
        if compiled:
            self._part: Callable[..., Any] = mx.compile(self._update_part)
        else:
            self._part = self._update_part

    def update(
        self,
        name: str,
        param: mx.array,
        grad: mx.array,
        state: dict[str, mx.array],
        scale: mx.array,
        rate: mx.array,
        decay: float,
        step: mx.array,
    ) -> mx.array:
        """The new parameter; changes `state`. `step` counts from 1 on."""
        shape, size = param.shape, param.size
        moments = [state[f"{name}.{key}"] for key in KEYS]
        kept = 1 - rate * decay
        flat, grads = _blocks(param), _blocks(grad)
        new: list[mx.array] = []
        parts: list[list[mx.array]] = [[] for _ in KEYS]
        for start in range(0, len(moments[0]), CHUNK):
            part = slice(start, start + CHUNK)
            changed, *packed = self._part(
                flat[part], grads[part], *(x[part] for x in moments), scale, rate, kept, step
            )
            mx.eval(changed, packed)
            new.append(changed)
            for found, x in zip(parts, packed, strict=True):
                found.append(x)
        for key, found in zip(KEYS, parts, strict=True):
            if len(found) > 1:
                state[f"{name}.{key}"] = mx.concatenate(found)
            else:
                state[f"{name}.{key}"] = found[0]
        if len(new) > 1:
            whole = mx.concatenate(new)
        else:
            whole = new[0]
        return whole.reshape(-1)[:size].reshape(shape)

    def _update_part(
        self,
        param: mx.array,
        grad: mx.array,
        first: mx.array,
        first_top: mx.array,
        second: mx.array,
        second_top: mx.array,
        scale: mx.array,
        rate: mx.array,
        kept: mx.array,
        step: mx.array,
    ) -> tuple[mx.array, ...]:
        self.traces += 1
        s = self.settings
        g = grad * scale
        old = unpack_first(first, first_top)
        m = old + (1 - s.beta1) * (g - old)
        v = s.beta2 * unpack_second(second, second_top) + (1 - s.beta2) * g * g
        root = mx.sqrt(v) / mx.sqrt(1 - mx.power(s.beta2, step)) + s.eps
        new = param * kept - rate / (1 - mx.power(s.beta1, step)) * (m / root)
        return new, *pack_first(m), *pack_second(v)


def _blocks(x: mx.array) -> mx.array:
    """(blocks, BLOCK) of all numbers, zeros behind them."""
    flat = x.reshape(-1)
    missing = -flat.size % BLOCK
    if missing:
        flat = mx.pad(flat, (0, missing))
    return flat.reshape(-1, BLOCK)


def pack_first(x: mx.array) -> tuple[mx.array, mx.array]:
    """(int8, the blocks' largest) of (blocks, BLOCK)."""
    top = mx.max(mx.abs(x), 1, keepdims=True)
    size = mx.round(mx.sqrt(mx.abs(x) / _divisor(top)) * 127)
    return (size * mx.sign(x)).astype(mx.int8), top


def unpack_first(packed: mx.array, top: mx.array) -> mx.array:
    q = packed.astype(mx.float32) / 127
    return q * mx.abs(q) * top


def pack_second(x: mx.array) -> tuple[mx.array, mx.array]:
    """(uint8, the blocks' largest) of (blocks, BLOCK), none below 0."""
    top = mx.max(x, 1, keepdims=True)
    size = mx.round(mx.sqrt(mx.sqrt(x / _divisor(top))) * 255)
    return mx.maximum(size, (x > 0).astype(mx.float32)).astype(mx.uint8), top


def unpack_second(packed: mx.array, top: mx.array) -> mx.array:
    q = packed.astype(mx.float32) / 255
    return mx.square(q * q) * top


def _divisor(top: mx.array) -> mx.array:
    return mx.where(top > 0, top, 1.0)
