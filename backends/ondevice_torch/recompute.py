"""What is cheap to compute is computed again in the backward pass, in place of being kept for it:
norms and gated products, which go into the matrices of a block.

Such a tensor knows how it was made (`Recipe`), so that a matrix product that needs it for the
gradient of its weight keeps the recipe, not the tensor. The operations are the same ones, in the
same order, so that no number changes. Compilers, torch's and MLX's, choose by themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST_BYTES = 1 << 19
"""Below this, what is spared is not worth the calls."""


class GradientSum:
    """The gradient of a matrix that is used several times: what each use adds to it in place.

    It stands at the matrix as `gradient_sum`, for `product` alone."""

    total: Tensor | None = None

    def add(self, grad: Tensor, x: Tensor) -> None:
        """gradᵀ (outputs, N) · x (N, inputs)"""
        if self.total is None:
            self.total = grad.t() @ x
        else:
            self.total.addmm_(grad.t(), x)


class Recipe(NamedTuple):
    """How a tensor is made: `make(*inputs)`."""

    make: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]


def with_recipe(make: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """`make(*inputs)`, which a product need not keep. What the operations within keep for the
    gradient of the inputs, they keep."""
    out = make(*inputs)
    if _worth_it(inputs):
        out.recipe = Recipe(make, inputs)  # type: ignore[attr-defined]
    return out


def recomputed(make: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """`make(*inputs)`, of which the backward pass keeps the inputs alone. Where an input is used
    elsewhere too, its gradient is added up in another order."""
    if not _worth_it(inputs):
        return make(*inputs)
    out: Tensor = _Recomputed.apply(make, *inputs)  # type: ignore[no-untyped-call]
    out.recipe = Recipe(make, inputs)  # type: ignore[attr-defined]
    return out


def _worth_it(inputs: tuple[Tensor, ...]) -> bool:
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return False
    return max(x.nbytes for x in inputs) >= LEAST_BYTES


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x · weightᵀ. Where x has a recipe, that is kept for the gradient of the weight; where the
    weight has a sum for its gradient, that gets it."""
    if hasattr(weight, "gradient_sum"):
        added: Tensor = _AddingProduct.apply(x, weight)  # type: ignore[no-untyped-call]
        return added
    recipe: Recipe | None = getattr(x, "recipe", None)
    if recipe is None or not weight.requires_grad or not torch.is_grad_enabled():
        return F.linear(x, weight)
    out: Tensor = _Product.apply(x, weight, recipe)  # type: ignore[no-untyped-call]
    return out


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, make: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        ctx.make = make
        ctx.save_for_backward(*inputs)
        return make(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        inputs = []
        for x, wanted in zip(ctx.saved_tensors, needed, strict=True):
            inputs.append(x.detach().requires_grad_(wanted))
        with torch.enable_grad():
            out = ctx.make(*inputs)
        wanted_inputs = [x for x in inputs if x.requires_grad]
        found = iter(torch.autograd.grad(out, wanted_inputs, grads[0]))
        return None, *(next(found) if wanted else None for wanted in needed)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, recipe: Recipe) -> Tensor:
        ctx.make = recipe.make
        ctx.save_for_backward(weight, *recipe.inputs)
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, None]:
        weight, *inputs = ctx.saved_tensors
        grad = grads[0].reshape(-1, weight.shape[0])
        x_grad = None
        if ctx.needs_input_grad[0]:
            x_grad = (grad @ weight).reshape(*grads[0].shape[:-1], weight.shape[1])
        x = ctx.make(*(one.detach() for one in inputs))
        return x_grad, grad.t() @ x.reshape(-1, weight.shape[1]), None


class _AddingProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.gradient_sum = weight.gradient_sum  # type: ignore[attr-defined]
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None]:
        x, weight = ctx.saved_tensors
        grad = grads[0].reshape(-1, weight.shape[0])
        ctx.gradient_sum.add(grad, x.reshape(-1, weight.shape[1]))
        if not ctx.needs_input_grad[0]:
            return None, None
        return (grad @ weight).reshape(x.shape), None
