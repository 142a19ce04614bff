"""A function of many rows, a part of them at a time, whose gradient of a large matrix is one array
from the first chunk to the last: each chunk adds its product to it in place.

Left to autograd, each chunk makes a gradient as large as the matrix, and adds it to the sum. For
the head of a model with a vocabulary of 152,000 that is one more array of the table's size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .recompute import GradientSum

Params = dict[str, Tensor]
Chunk = Callable[..., tuple[Tensor, ...]]


def in_chunks(
    fn: Chunk, rows: int, params: Params, x: Tensor, others: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """`Ops.in_chunks` where gradients are wanted and no compiler traces: both passes compute
    `fn`."""
    trained = {n: p for n, p in params.items() if p.requires_grad}
    fixed = {n: p for n, p in params.items() if n not in trained}
    out: tuple[Tensor, ...] = _InChunks.apply(  # type: ignore[no-untyped-call]
        fn, rows, list(trained), fixed, others, x, *trained.values()
    )
    return out


def _parts(count: int, rows: int) -> Iterator[slice]:
    return (slice(start, start + rows) for start in range(0, count, rows))


class _InChunks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        fn: Chunk,
        rows: int,
        names: list[str],
        fixed: Params,
        others: tuple[Tensor, ...],
        x: Tensor,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.fn, ctx.rows, ctx.names, ctx.fixed, ctx.others = fn, rows, names, fixed, others
        ctx.save_for_backward(x, *weights)
        params = {**fixed, **dict(zip(names, weights, strict=True))}
        out = [fn(params, x[part], *(o[part] for o in others)) for part in _parts(len(x), rows)]
        return tuple(torch.cat(column) for column in zip(*out, strict=True))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        x_wanted = ctx.needs_input_grad[5]
        x_grad = torch.empty_like(x) if x_wanted else None
        leaves = []
        for weight in weights:
            leaves.append(weight.detach().requires_grad_())
            leaves[-1].gradient_sum = GradientSum()
        params = {**ctx.fixed, **dict(zip(ctx.names, leaves, strict=True))}
        for part in _parts(len(x), ctx.rows):
            piece = x[part].detach().requires_grad_(x_wanted)
            with torch.enable_grad():
                out = ctx.fn(params, piece, *(o[part] for o in ctx.others))
            learned = [(o, g[part]) for o, g in zip(out, grads, strict=True) if o.requires_grad]
            torch.autograd.backward(*zip(*learned, strict=True))
            if x_grad is not None:
                x_grad[part] = piece.grad
        return None, None, None, None, None, x_grad, *map(_gradient, leaves)


def _gradient(leaf: Tensor) -> Tensor | None:
    """What the chunks' products have added up, and what came to the leaf by other ways."""
    total: Tensor | None = leaf.gradient_sum.total  # type: ignore[attr-defined]
    if total is None:
        return leaf.grad
    if leaf.grad is None:
        return total
    return total.add_(leaf.grad)
