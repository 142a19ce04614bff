"""The closed set of operations in MLX. Read beside `ondevice_torch/ops.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ondevice.common.kept import Kept
from ondevice.models.lora import add_adapters
from ondevice.models.tables import places
from ondevice.seam.ops import CONSTANTS

from .attention import BLOCK, attention_mask, causal_by_blocks, on_cpu, prefix_mask
from .quant import dequantize, format_of

DTYPES = {
    "float32": mx.float32,
    "bfloat16": mx.bfloat16,
    "float16": mx.float16,
    "int32": mx.int32,
    "int64": mx.int64,
    "bool": mx.bool_,
}
Params = dict[str, mx.array]


class MLXOps:
    def __init__(self, dtype: str) -> None:
        self.compute = DTYPES[dtype]
        self._constants = Kept(CONSTANTS)
        self._indices = Kept(CONSTANTS)

    # weights
    def weight(self, params: Params, name: str) -> mx.array:
        return params[name].astype(self.compute)

    def linear(self, params: Params, name: str, x: mx.array) -> mx.array:
        if f"{name}.scales" in params:
            packed = params[f"{name}.weight"]
            scales, biases = (
                self.weight(params, f"{name}.{part}") for part in ("scales", "biases")
            )
            bits, group_size = format_of(packed, scales, x.shape[-1])
            y = mx.quantized_matmul(
                x, packed, scales, biases, transpose=True, group_size=group_size, bits=bits
            )
        else:
            y = x @ self.weight(params, f"{name}.weight").T
        if f"{name}.bias" in params:
            y = y + self.weight(params, f"{name}.bias")
        return add_adapters(self, params, name, x, y)  # type: ignore[arg-type,return-value]

    def embed(self, params: Params, name: str, ids: mx.array, width: int = 0) -> mx.array:
        table = params[f"{name}.weight"]
        if f"{name}.scales" in params:
            scales, biases = (
                self.weight(params, f"{name}.{part}")[ids] for part in ("scales", "biases")
            )
            return dequantize(table[ids], scales, biases, width)
        # the gather comes before the cast: the gradient of a cast table would be a second dense
        # table
        return table[ids].astype(self.compute)

    def rms_norm(
        self, params: Params, name: str, x: mx.array, eps: float, shift: float = 0.0
    ) -> mx.array:
        weight = params[f"{name}.weight"]
        if weight.dtype == x.dtype:  # one kernel, which adds in float32
            if shift:
                weight = weight + shift
            return mx.fast.rms_norm(x, weight, eps)
        weight = weight.astype(mx.float32)
        if shift:
            weight = weight + shift
        normed = mx.fast.rms_norm(x.astype(mx.float32), weight, eps)
        return normed.astype(x.dtype)

    def layer_norm(self, params: Params, name: str, x: mx.array, eps: float) -> mx.array:
        weight = params[f"{name}.weight"]
        bias = params.get(f"{name}.bias")
        if weight.dtype == x.dtype:
            return mx.fast.layer_norm(x, weight, bias, eps)
        if bias is not None:
            bias = bias.astype(mx.float32)
        weight = params[f"{name}.weight"].astype(mx.float32)
        return mx.fast.layer_norm(x.astype(mx.float32), weight, bias, eps).astype(x.dtype)

    # blocks
    def rope(self, x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
        if x.shape[2] == 1:  # of a token that is written, which has no gradient
            return rotated(x, cos, sin)
        return _rotated(x, cos, sin)

    def attention(
        self,
        q: mx.array,
        k: mx.array,
        v: mx.array,
        *,
        scale: float,
        causal: bool = True,
        window: int = 0,
        segments: mx.array | None = None,
        lengths: mx.array | None = None,
        bias: mx.array | None = None,
        prefix: mx.array | None = None,
    ) -> mx.array:
        mask: Any
        if window >= k.shape[2]:
            window = 0  # it reaches over all keys
        if prefix is not None:
            mask = prefix_mask(q.shape[2], k.shape[2], window, prefix)
            return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)
        plain = segments is None and lengths is None and not window and (bias is None or not causal)
        mask = "causal" if causal else None
        if not plain:
            keys = self._places(k.shape[2])
            queries = self._places(q.shape[2])
            mask = attention_mask(queries, keys, causal, window, segments, lengths)
        if bias is not None:
            if mask is None:
                mask = bias
            else:
                mask = mx.where(mask, bias, -mx.inf)
        if isinstance(mask, str) and q.shape[2] == k.shape[2] > 2 * BLOCK and on_cpu():
            return causal_by_blocks(q, k, v, scale)
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)

    def cache_write(self, cache: mx.array, new: mx.array, at: mx.array) -> mx.array:
        b, h, room, c = cache.shape
        first = self._places(b * h).reshape(b, h, 1) * room
        where = first + at.reshape(b, 1, 1) + self._places(new.shape[2])
        flat = cache.reshape(b * h * room, c)
        flat[where.reshape(-1)] = new.reshape(-1, c)
        return flat.reshape(b, h, room, c)

    def _places(self, count: int) -> mx.array:
        """0 … count - 1: one array each time, so that a compiler sees that what follows from it for
        one layer is what follows for the next. A trace keeps it, 4 bytes a place."""
        host = places(count)
        placed: mx.array = self._indices.get(host, lambda: mx.array(host))
        return placed

    def put(self, x: mx.array, rows: mx.array, new: mx.array) -> mx.array:
        x[rows] = new
        return x

    def silu(self, x: mx.array) -> mx.array:
        return nn.silu(x)

    def product(self, x: mx.array, weight: mx.array) -> mx.array:
        return x @ weight.T

    def add_product(self, y: mx.array, x: mx.array, weight: mx.array) -> mx.array:
        outputs, inputs = weight.shape
        # as matrices: of a batch of them the gradient would be one for each, and their sum
        flat = mx.addmm(y.reshape(-1, outputs), x.reshape(-1, inputs), weight.T)
        return flat.reshape(y.shape)

    def gated(
        self, activation: Callable[[mx.array], mx.array], gate: mx.array, x: mx.array
    ) -> mx.array:
        return activation(gate) * x

    def gelu(self, x: mx.array, approximate: bool = False) -> mx.array:
        if approximate:
            return nn.gelu_approx(x)
        return nn.gelu(x)

    # numbers
    def softmax(self, x: mx.array, axis: int) -> mx.array:
        return mx.softmax(x, axis, precise=True)

    def logsumexp(self, x: mx.array, axis: int) -> mx.array:
        return mx.logsumexp(x, axis)

    def log_likelihood(
        self, x: mx.array, targets: mx.array, *, spent: bool = False
    ) -> mx.array:  # MLX sees by itself what is spent
        at = targets[:, None]

        @mx.custom_function
        def forward(x: mx.array) -> mx.array:
            return mx.take_along_axis(x, at, 1)[:, 0] - mx.logsumexp(x, -1)

        # one pass over the logits, where the gradients of both parts are four
        @forward.vjp
        def backward(x: mx.array, cotangent: mx.array, found: mx.array) -> mx.array:
            norm = mx.take_along_axis(x, at, 1) - found[:, None]
            hit = self._places(x.shape[1]) == at
            return (hit - mx.exp(x - norm)) * cotangent[:, None]

        made: mx.array = forward(x)
        return made

    def exp(self, x: mx.array) -> mx.array:
        return mx.exp(x)

    def log(self, x: mx.array) -> mx.array:
        return mx.log(x)

    def tanh(self, x: mx.array) -> mx.array:
        return mx.tanh(x)

    def sqrt(self, x: mx.array) -> mx.array:
        return mx.sqrt(x)

    def sum(self, x: mx.array, axis: int | None = None, keepdims: bool = False) -> mx.array:
        return mx.sum(x, axis, keepdims=keepdims)

    def max(self, x: mx.array, axis: int, keepdims: bool = False) -> mx.array:
        return mx.max(x, axis, keepdims=keepdims)

    def argmax(self, x: mx.array, axis: int) -> mx.array:
        return mx.argmax(x, axis)

    def cumsum(self, x: mx.array, axis: int) -> mx.array:
        return mx.cumsum(x, axis)

    def sort(self, x: mx.array, axis: int) -> mx.array:
        return mx.sort(x, axis)

    def largest(self, x: mx.array, count: int) -> mx.array:
        return mx.topk(x, count, -1)

    def maximum(self, a: Any, b: Any) -> mx.array:
        return mx.maximum(a, b)

    def minimum(self, a: Any, b: Any) -> mx.array:
        return mx.minimum(a, b)

    def where(self, condition: mx.array, a: Any, b: Any) -> mx.array:
        return mx.where(condition, a, b)

    # shapes
    def take(self, x: mx.array, index: mx.array) -> mx.array:
        return x[index]

    def to_rows(self, x: mx.array, tables: Sequence[mx.array], slots: mx.array) -> list[mx.array]:
        @mx.custom_function
        def forward(x: mx.array) -> list[mx.array]:
            return [x[table] for table in tables]

        @forward.vjp
        def backward(_: Any, cotangents: Any, __: Any) -> mx.array:
            return _together(cotangents)[slots]

        return list(forward(x))

    def from_rows(
        self, xs: Sequence[mx.array], tables: Sequence[mx.array], slots: mx.array
    ) -> mx.array:
        @mx.custom_function
        def forward(*xs: mx.array) -> mx.array:
            return _together(xs)[slots]

        @forward.vjp
        def backward(_: Any, cotangent: mx.array, __: Any) -> list[mx.array]:
            return [cotangent[table] for table in tables]

        made: mx.array = forward(*xs)
        return made

    def concat(self, xs: Sequence[mx.array], axis: int) -> mx.array:
        return mx.concatenate(list(xs), axis)

    def stack(self, xs: Sequence[mx.array]) -> mx.array:
        return mx.stack(list(xs))

    def zeros(self, shape: tuple[int, ...], dtype: str) -> mx.array:
        return mx.zeros(shape, DTYPES[dtype])

    def cast(self, x: mx.array, dtype: str) -> mx.array:
        return x.astype(DTYPES[dtype])

    def constant(self, x: np.ndarray) -> mx.array:
        placed: mx.array = self._constants.get(x, lambda: mx.array(x))
        return placed

    # autograd
    def stop_gradient(self, x: mx.array) -> mx.array:
        return mx.stop_gradient(x)

    def checkpoint(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        def run(block: Params, *args: Any) -> Any:
            # what is packed has no gradient, and MLX refuses it as an argument of what is
            # differentiated
            packed, floats = _apart(block)
            return mx.checkpoint(lambda floats, *args: fn({**floats, **packed}, *args))(
                floats, *args
            )

        return run

    def in_chunks(
        self, fn: Callable[..., tuple[mx.array, ...]], rows: int, *, keep: bool = False
    ) -> Callable[..., tuple[mx.array, ...]]:
        # an own gradient, not mx.checkpoint of each chunk: a graph has no order but its edges, and
        # a compiler that sees independent chunks computes many of them again at once. `depends`
        # draws the missing edges, both ways
        def run(params: Params, x: mx.array, *others: mx.array) -> tuple[mx.array, ...]:
            packed, params = _apart(params)
            parts = [slice(start, start + rows) for start in range(0, x.shape[0], rows)]

            @mx.custom_function
            def forward(params: Params, x: mx.array) -> tuple[mx.array, ...]:
                out: list[tuple[mx.array, ...]] = []
                for part in parts:
                    if out:
                        piece = mx.depends(x[part], list(out[-1]))
                    else:
                        piece = x[part]
                    out.append(fn({**params, **packed}, piece, *(o[part] for o in others)))
                return tuple(mx.concatenate(column) for column in zip(*out, strict=True))

            @forward.vjp
            def backward(primals: Any, cotangents: Any, _: Any) -> tuple[Params, mx.array]:
                params, x = primals
                names, total, grads = list(params), list[mx.array](), list[mx.array]()
                for part in parts:

                    def chunk(*arrays: mx.array, part: slice = part) -> list[mx.array]:
                        held = {**dict(zip(names, arrays[:-1], strict=True)), **packed}
                        return list(fn(held, arrays[-1], *(o[part] for o in others)))

                    if grads:
                        piece = mx.depends(x[part], [*total, grads[-1]])
                    else:
                        piece = x[part]
                    _, new = mx.vjp(chunk, [*params.values(), piece], [c[part] for c in cotangents])
                    if total:
                        total = [a + b for a, b in zip(total, new[:-1], strict=True)]
                    else:
                        total = new[:-1]
                    grads.append(new[-1])
                return dict(zip(names, total, strict=True)), mx.concatenate(grads)

            return forward(params, x)

        return run


def _together(xs: Sequence[mx.array]) -> mx.array:
    if len(xs) == 1:
        return xs[0]
    return mx.concatenate(list(xs))


def _apart(block: Params) -> tuple[Params, Params]:
    """(packed weights, whose arrays are of whole numbers; all others)."""
    packed: Params = {}
    others: Params = {}
    for name, weight in block.items():
        if weight.dtype == mx.uint32:
            packed[name] = weight
        else:
            others[name] = weight
    return packed, others


def rotated(x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
    """`rope` as products and one sum, which a compiler makes one kernel of: nothing is put together
    of two halves."""
    b, h, t, c = x.shape
    halves = x.reshape(b, h, t, 2, c // 2)
    # the same for all layers: a compiler makes it once
    turned = mx.stack([-sin, sin], -2)
    y = halves.astype(mx.float32) * cos[..., None, :]
    y = y + halves[..., ::-1, :].astype(mx.float32) * turned
    return y.astype(x.dtype).reshape(b, h, t, c)


_rotated = mx.custom_function(rotated)


@_rotated.vjp
def _rotated_back(primals: Any, cotangent: mx.array, _: Any) -> tuple[mx.array, ...]:
    """Its gradient is the rotation back, of which a compiler makes one kernel too; that of the
    halves' order would be several. The tables are constants."""
    _, cos, sin = primals
    return _rotated(cotangent, cos, -sin), mx.zeros_like(cos), mx.zeros_like(sin)
