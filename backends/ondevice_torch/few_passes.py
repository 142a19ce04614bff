"""Three operations with gradients of their own, for steps that no compiler has joined into few
kernels: each reads and writes memory a third to half as often as the plain formula does.

On a CPU, memory decides what everything but a matrix product takes. The gradients are those of the
formulas beside them in `ops.py`, which compilers get; tests compare both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`Ops.rope` for float32: x (…, T, C), tables (T, C / 2)."""
    out: Tensor = _Rotated.apply(x, cos, sin)  # type: ignore[no-untyped-call]
    return out


def log_likelihood(x: Tensor, targets: Tensor, *, spent: bool = False) -> Tensor:
    """log softmax(x) at `targets` (N,), of x (N, V) float32, which is overwritten where it is
    `spent`."""
    out: Tensor = _LogLikelihood.apply(x, targets, spent)  # type: ignore[no-untyped-call]
    return out


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (…, D) over the root of its mean square, times `weight` (D,), all float32."""
    out: Tensor = _RMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return out


class _Rotated(torch.autograd.Function):
    """The gradient of a rotation is the rotation back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _rotate(grads[0], *ctx.saved_tensors, -1), None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    out = torch.empty_like(x)
    a, b = x.chunk(2, -1)
    low, high = out.chunk(2, -1)
    torch.mul(a, cos, out=low).addcmul_(b, sin, value=-sign)
    torch.mul(b, cos, out=high).addcmul_(a, sin, value=sign)
    return out


class _LogLikelihood(torch.autograd.Function):
    """exp is taken once: what the forward pass has of it becomes the gradient, in place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, targets: Tensor, spent: bool) -> Tensor:
        largest = x.amax(-1, keepdim=True)
        asked = x.gather(-1, targets[:, None]) - largest
        if spent:
            powers = x.detach().sub_(largest)
        else:
            powers = x - largest
        total = powers.exp_().sum(-1, keepdim=True)
        ctx.save_for_backward(powers, total, targets)
        return (asked - total.log()).squeeze(-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        # changed in place: torch refuses to go back a second time
        powers, total, targets = ctx.saved_tensors
        powers.mul_(-(grads[0][:, None] / total))
        powers[torch.arange(len(targets), device=targets.device), targets] += grads[0]
        return powers, None, None


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = torch.rsqrt(size.square() / x.shape[-1] + eps)
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        grad = grads[0]
        both = grad * x
        x_grad = (grad * weight).mul_(scale)
        along = (both @ weight).unsqueeze(-1) * scale**3 / x.shape[-1]
        x_grad.addcmul_(x, along, value=-1)
        weight_grad = None
        if ctx.needs_input_grad[1]:
            weight_grad = scale.reshape(-1) @ both.reshape(-1, x.shape[-1])
        return x_grad, weight_grad, None
