"""torch's operations in few passes against the plain formulas: values and gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch")
F = torch.nn.functional

from ondevice_torch import few_passes  # noqa: E402

Tensor = torch.Tensor


def gradients(fn: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    """What `fn` gives, and the gradient of each input that is floating."""
    leaves = []
    for x in inputs:
        leaf = x.detach()
        leaves.append(leaf.requires_grad_() if leaf.is_floating_point() else leaf)
    out = fn(*leaves)
    weights = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).reshape(out.shape)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    return out.detach(), *torch.autograd.grad((out * weights).sum(), wanted)


def assert_same(ours: tuple[Tensor, ...], plain: tuple[Tensor, ...]) -> None:
    assert len(ours) == len(plain) > 1
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def drawn(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(len(shape) * 7 + shape[-1])
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("turned", [False, True])
def test_rotation(turned: bool) -> None:
    cos, sin = drawn(5, 3).cos(), drawn(5, 3).sin()

    def of_heads(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: fn(x.transpose(1, 2) if turned else x)

    def plain(x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    x = drawn(2, 5, 4, 6) if turned else drawn(2, 4, 5, 6)
    ours = gradients(of_heads(lambda x: few_passes.rotated(x, cos, sin)), x)
    assert_same(ours, gradients(of_heads(plain), x))


def test_log_likelihood_of_large_logits_too() -> None:
    x = drawn(7, 11) * 300
    targets = torch.arange(7)
    ours = gradients(few_passes.log_likelihood, x, targets)
    plain = gradients(lambda x, t: -F.cross_entropy(x, t, reduction="none"), x, targets)
    assert_same(ours, plain)


def test_a_gradient_made_in_place_is_taken_once() -> None:
    x = drawn(3, 5).requires_grad_()
    out = few_passes.log_likelihood(x, torch.arange(3)).sum()
    out.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


@pytest.mark.parametrize("shape", [(4, 6), (2, 3, 6), (2, 3, 4, 6)])
def test_norm(shape: tuple[int, ...]) -> None:
    x, weight = drawn(*shape), drawn(6)
    ours = gradients(lambda x, w: few_passes.rms_norm(x, w, 1e-3), x, weight)
    assert_same(ours, gradients(lambda x, w: F.rms_norm(x, (6,), w, 1e-3), x, weight))


def test_norm_of_a_weight_that_is_not_trained() -> None:
    x = drawn(4, 6).requires_grad_()
    few_passes.rms_norm(x, drawn(6), 1e-3).sum().backward()
    assert x.grad is not None and bool(torch.isfinite(x.grad).all())
