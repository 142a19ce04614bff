"""The closed set of operations in torch. Read beside `ondevice_mlx/ops.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from ondevice.common.kept import Kept
from ondevice.models.lora import add_adapters
from ondevice.seam.ops import CONSTANTS

from . import chunks, few_passes
from .attention import after_prefix, as_far_as_rows_go, attention_mask, prefix_mask
from .quant import QuantizedLinear, dequantize
from .recompute import product, recomputed, with_recipe

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int32": torch.int32,
    "int64": torch.int64,
    "bool": torch.bool,
}
Params = dict[str, Tensor]
LARGE_TABLE = 1 << 26  # bytes


class TorchOps:
    def __init__(self, device: torch.device, dtype: str) -> None:
        self.device, self.compute = device, DTYPES[dtype]
        self._constants = Kept(CONSTANTS)

    # weights
    def weight(self, params: Params, name: str) -> Tensor:
        return params[name].to(self.compute)

    def linear(self, params: Params, name: str, x: Tensor) -> Tensor:
        if f"{name}.bias" in params:
            bias = self.weight(params, f"{name}.bias")
        else:
            bias = None
        if f"{name}.scales" in params:
            scales, biases = (
                self.weight(params, f"{name}.{part}") for part in ("scales", "biases")
            )
            y: Tensor = QuantizedLinear.apply(x, params[f"{name}.weight"], scales, biases)  # type: ignore[no-untyped-call]
            y = y if bias is None else y + bias
        else:
            weight = self.weight(params, f"{name}.weight")
            if bias is not None:
                y = F.linear(x, weight, bias)
            else:
                y = product(x, weight)
        return add_adapters(self, params, name, x, y)  # type: ignore[arg-type,return-value]

    def embed(self, params: Params, name: str, ids: Tensor, width: int = 0) -> Tensor:
        table = params[f"{name}.weight"]
        if f"{name}.scales" in params:
            scales, biases = (
                self.weight(params, f"{name}.{part}")[ids] for part in ("scales", "biases")
            )
            return dequantize(table.view(torch.int32)[ids], scales, biases, width)
        # the gather comes before the cast: the gradient of a cast table would be a second dense
        # table
        return F.embedding(ids, table, sparse=self._has_few_rows_read(table)).to(self.compute)

    def _has_few_rows_read(self, table: Tensor) -> bool:
        """Whether the gradient of a look-up is to be of the rows that were read alone, for the
        trainer to add: that of a whole table would stand beside the one that the head gives it."""
        return (
            table.is_leaf
            and table.requires_grad
            and torch.is_grad_enabled()
            and table.nbytes >= LARGE_TABLE
            and self.device.type in ("cpu", "cuda")
            and not _is_compiled()
        )

    def rms_norm(
        self, params: Params, name: str, x: Tensor, eps: float, shift: float = 0.0
    ) -> Tensor:
        def norm(x: Tensor, weight: Tensor) -> Tensor:
            if shift:
                weight = weight.float() + shift
            else:
                weight = weight.float()
            if _is_compiled():
                return F.rms_norm(x.float(), (x.shape[-1],), weight, eps).to(x.dtype)
            return few_passes.rms_norm(x.float(), weight, eps).to(x.dtype)

        return with_recipe(norm, x, params[f"{name}.weight"])

    def layer_norm(self, params: Params, name: str, x: Tensor, eps: float) -> Tensor:
        if f"{name}.bias" in params:
            bias = params[f"{name}.bias"].float()
        else:
            bias = None
        return F.layer_norm(
            x.float(), (x.shape[-1],), params[f"{name}.weight"].float(), bias, eps
        ).to(x.dtype)

    # blocks
    def rope(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        if not _is_compiled():
            return few_passes.rotated(x.float(), cos, sin).to(x.dtype)
        a, b = x.float().chunk(2, -1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float,
        causal: bool = True,
        window: int = 0,
        segments: Tensor | None = None,
        lengths: Tensor | None = None,
        bias: Tensor | None = None,
        prefix: Tensor | None = None,
    ) -> Tensor:
        if window >= k.shape[2]:
            window = 0  # it reaches over all keys
        if prefix is not None:
            mask = prefix_mask(q.shape[2], k.shape[2], window, prefix)
            return after_prefix(q, k, v, scale, mask)
        one = q.shape[2] == 1 and bias is None and self._is_read_at_once()
        if lengths is not None and one:
            k, v, lengths = as_far_as_rows_go(k, v, lengths, window)
            causal = causal and lengths is not None
        plain = (
            segments is None
            and lengths is None
            and not window
            and (not causal or (q.shape[2] == k.shape[2] and bias is None))
        )
        if plain:
            mask = None
        else:
            mask = attention_mask(
                q.shape[2], k.shape[2], q.device, causal, window, segments, lengths
            )
        if bias is not None:
            if mask is None:
                mask = bias
            else:
                mask = torch.where(mask, bias, float("-inf"))
        if (
            q.shape[2] == 1 and q.shape[1] != k.shape[1]
        ):  # the heads of a group ask as so many queries of one head
            b, h, _, c = q.shape
            asked = q.reshape(b, k.shape[1], h // k.shape[1], c)
            return F.scaled_dot_product_attention(asked, k, v, mask, scale=scale).reshape(
                b, h, 1, c
            )
        return F.scaled_dot_product_attention(
            q,
            k,
            v,
            mask,
            is_causal=causal and plain,
            scale=scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )

    def _is_read_at_once(self) -> bool:
        """Whether the host may look at a number without waiting for the device, or for a trace."""
        return self.device.type == "cpu" and not _is_compiled()

    def cache_write(self, cache: Tensor, new: Tensor, at: Tensor) -> Tensor:
        # in place: decoding records no gradient, and the caller only uses what is returned
        rows = torch.arange(cache.shape[0], device=cache.device)
        steps = torch.arange(new.shape[2], device=cache.device)
        columns = at[:, None] + steps
        cache[rows[:, None], :, columns] = new.transpose(1, 2)
        return cache

    def put(self, x: Tensor, rows: Tensor, new: Tensor) -> Tensor:
        x[rows] = new
        return x

    def silu(self, x: Tensor) -> Tensor:
        return F.silu(x)

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        return product(x, weight)

    def add_product(self, y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        outputs, inputs = weight.shape
        # as one matrix product over all rows
        flat = torch.addmm(y.reshape(-1, outputs), x.reshape(-1, inputs), weight.t())
        return flat.view_as(y)

    def gated(self, activation: Callable[[Tensor], Tensor], gate: Tensor, x: Tensor) -> Tensor:
        return recomputed(lambda gate, x: activation(gate) * x, gate, x)

    def gelu(self, x: Tensor, approximate: bool = False) -> Tensor:
        return F.gelu(x, approximate="tanh" if approximate else "none")

    # numbers
    def softmax(self, x: Tensor, axis: int) -> Tensor:
        return torch.softmax(x, axis)

    def logsumexp(self, x: Tensor, axis: int) -> Tensor:
        return torch.logsumexp(x, axis)

    def log_likelihood(self, x: Tensor, targets: Tensor, *, spent: bool = False) -> Tensor:
        if _is_compiled() or x.dtype != torch.float32:
            return -F.cross_entropy(x, targets.long(), reduction="none")
        return few_passes.log_likelihood(x, targets.long(), spent=spent)

    def exp(self, x: Tensor) -> Tensor:
        return torch.exp(x)

    def log(self, x: Tensor) -> Tensor:
        return torch.log(x)

    def tanh(self, x: Tensor) -> Tensor:
        return torch.tanh(x)

    def sqrt(self, x: Tensor) -> Tensor:
        return torch.sqrt(x)

    def sum(self, x: Tensor, axis: int | None = None, keepdims: bool = False) -> Tensor:
        if axis is None:
            return torch.sum(x)
        return torch.sum(x, axis, keepdim=keepdims)

    def max(self, x: Tensor, axis: int, keepdims: bool = False) -> Tensor:
        return torch.amax(x, axis, keepdim=keepdims)

    def argmax(self, x: Tensor, axis: int) -> Tensor:
        return torch.argmax(x, axis)

    def cumsum(self, x: Tensor, axis: int) -> Tensor:
        return torch.cumsum(x, axis)

    def sort(self, x: Tensor, axis: int) -> Tensor:
        return torch.sort(x, axis).values

    def largest(self, x: Tensor, count: int) -> Tensor:
        return torch.topk(x, count, -1, sorted=False).values

    def maximum(self, a: Any, b: Any) -> Tensor:
        if isinstance(b, (int, float)):
            return torch.clamp(a, min=b)
        return torch.maximum(a, b)

    def minimum(self, a: Any, b: Any) -> Tensor:
        if isinstance(b, (int, float)):
            return torch.clamp(a, max=b)
        return torch.minimum(a, b)

    def where(self, condition: Tensor, a: Any, b: Any) -> Tensor:
        return torch.where(condition, a, b)

    # shapes
    def take(self, x: Tensor, index: Tensor) -> Tensor:
        if x.ndim == 2:
            return F.embedding(index, x)
        return x[index]

    def to_rows(self, x: Tensor, tables: Sequence[Tensor], slots: Tensor) -> list[Tensor]:
        if not torch.is_grad_enabled():  # where the compiler would break off at such a function
            return [x.index_select(0, table) for table in tables]
        found: tuple[Tensor, ...] = _ToRows.apply(x, slots, *tables)  # type: ignore[no-untyped-call]
        return list(found)

    def from_rows(self, xs: Sequence[Tensor], tables: Sequence[Tensor], slots: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return torch.cat(list(xs)).index_select(0, slots)
        found: Tensor = _FromRows.apply(slots, len(xs), *xs, *tables)  # type: ignore[no-untyped-call]
        return found

    def concat(self, xs: Sequence[Tensor], axis: int) -> Tensor:
        return torch.cat(list(xs), axis)

    def stack(self, xs: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(xs))

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Tensor:
        return torch.zeros(shape, dtype=DTYPES[dtype], device=self.device)

    def cast(self, x: Tensor, dtype: str) -> Tensor:
        return x.to(DTYPES[dtype])

    def constant(self, x: np.ndarray) -> Tensor:
        def place() -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(x)).to(self.device)

        placed: Tensor = self._constants.get(x, place)
        return placed

    # autograd
    def stop_gradient(self, x: Tensor) -> Tensor:
        return x.detach()

    def checkpoint(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            return torch_checkpoint(fn, *args, use_reentrant=False, preserve_rng_state=False)

        return run

    def in_chunks(
        self, fn: Callable[..., tuple[Tensor, ...]], rows: int, *, keep: bool = False
    ) -> Callable[..., tuple[Tensor, ...]]:
        def run(params: Params, x: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
            if torch.is_grad_enabled() and not keep and not _is_compiled():
                return chunks.in_chunks(fn, rows, params, x, others)
            if torch.is_grad_enabled() and not keep:
                body = self.checkpoint(fn)
            else:
                body = fn
            # by the number of chunks, not by that of rows: a compiler then traces anew for each
            # number of chunks alone, and the last chunk is of any length
            count = -(-x.shape[0] // rows)
            out = []
            for chunk in range(count):
                start = chunk * rows
                end = None if chunk == count - 1 else start + rows
                out.append(body(params, *(a[start:end] for a in (x, *others))))
            return tuple(torch.cat(column) for column in zip(*out, strict=True))

        return run


def _is_compiled() -> bool:
    """Whether a compiler, which joins operations by itself, sees what is done."""
    return torch.compiler.is_compiling()


class _ToRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slots: Tensor, *tables: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(slots)
        return tuple(x.index_select(0, table) for table in tables)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (slots,) = ctx.saved_tensors
        return torch.cat(grads).index_select(0, slots), None, *([None] * len(grads))


class _FromRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, slots: Tensor, count: int, *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs[count:])
        return torch.cat(inputs[:count]).index_select(0, slots)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tables = ctx.saved_tensors
        found = [grad.index_select(0, table) for table in tables]
        return None, None, *found, *([None] * len(tables))
