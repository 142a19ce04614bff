"""AdamW with moments of 8 bits (after Dettmers 2022), a block of `BLOCK` numbers with a scale of its
own. Read beside `ondevice_mlx/packed_moments.py`.

The first moment is kept as the root of its size relative to the block's largest, the second as the
fourth root: small numbers, by whose size a step is divided, then have steps of their own. A second
moment that is not 0 does not become it. Dettmers's tables are closer for some numbers; roots need
no table, and are the same on both backends.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ondevice.seam.protocols import OptimSettings

BLOCK = 256
LEAST = 4096  # tensors of fewer numbers keep whole moments: norms, biases, small heads
CHUNK = 1 << 14  # blocks that stand unpacked at once


class PackedMoments:
    """Both moments of one tensor: `.exp_avg` int8 and `.exp_avg_sq` uint8, (blocks, BLOCK), and what
    each block's largest is, `.exp_avg.top` and `.exp_avg_sq.top` (blocks, 1) float32.
    """

    def __init__(self, param: Tensor) -> None:
        blocks = -(-param.numel() // BLOCK)
        place = param.device
        self.first = torch.zeros((blocks, BLOCK), dtype=torch.int8, device=place)
        self.second = torch.zeros((blocks, BLOCK), dtype=torch.uint8, device=place)
        self.first_top = torch.zeros((blocks, 1), device=place)
        self.second_top = torch.zeros((blocks, 1), device=place)

    def state(self, name: str) -> dict[str, Tensor]:
        return {
            f"{name}.exp_avg": self.first,
            f"{name}.exp_avg.top": self.first_top,
            f"{name}.exp_avg_sq": self.second,
            f"{name}.exp_avg_sq.top": self.second_top,
        }

    def restore(self, name: str, state: dict[str, Tensor]) -> None:
        for key, held in self.state(name).items():
            held.copy_(state[key])

    @torch.no_grad()
    def update(
        self, param: Tensor, settings: OptimSettings, lr: float, decay: float, step: int
    ) -> None:
        """One step of AdamW, number `step` from 1 on; changes `param` in its place."""
        assert param.grad is not None
        flat, grad = param.detach().reshape(-1), param.grad.reshape(-1)
        for start in range(0, len(self.first), CHUNK):
            part = slice(start, start + CHUNK)
            inside = slice(start * BLOCK, (start + CHUNK) * BLOCK)
            self._update_part(part, flat[inside], grad[inside], settings, lr, decay, step)
        if flat.data_ptr() != param.data_ptr():  # a matrix that lies the other way around
            param.copy_(flat.reshape(param.shape))

    def _update_part(
        self,
        part: slice,
        param: Tensor,
        grad: Tensor,
        settings: OptimSettings,
        lr: float,
        decay: float,
        step: int,
    ) -> None:
        blocks = len(self.first[part])
        g = torch.nn.functional.pad(grad, (0, blocks * BLOCK - len(grad))).reshape(blocks, BLOCK)
        first = unpack_first(self.first[part], self.first_top[part])
        first.lerp_(g, 1 - settings.beta1)
        second = unpack_second(self.second[part], self.second_top[part])
        second.mul_(settings.beta2).addcmul_(g, g, value=1 - settings.beta2)
        root = (second.sqrt() / (1 - settings.beta2**step) ** 0.5).add_(settings.eps)
        change = (first / root).reshape(-1)[: len(param)]
        param.mul_(1 - lr * decay).add_(change, alpha=-lr / (1 - settings.beta1**step))
        self.first[part], self.first_top[part] = pack_first(first)
        self.second[part], self.second_top[part] = pack_second(second)


def pack_first(x: Tensor) -> tuple[Tensor, Tensor]:
    """(int8, the blocks' largest) of (blocks, BLOCK)."""
    top = x.abs().amax(1, keepdim=True)
    size = (x.abs() / _divisor(top)).sqrt_().mul_(127).round_()
    return (size * x.sign()).to(torch.int8), top


def unpack_first(packed: Tensor, top: Tensor) -> Tensor:
    q = packed.to(torch.float32).div_(127)
    return q * q.abs() * top


def pack_second(x: Tensor) -> tuple[Tensor, Tensor]:
    """(uint8, the blocks' largest) of (blocks, BLOCK), none below 0."""
    top = x.amax(1, keepdim=True)
    size = (x / _divisor(top)).sqrt_().sqrt_().mul_(255).round_()
    return torch.maximum(size, (x > 0).to(torch.float32)).to(torch.uint8), top


def unpack_second(packed: Tensor, top: Tensor) -> Tensor:
    q = packed.to(torch.float32).div_(255)
    return (q * q).square_() * top


def _divisor(top: Tensor) -> Tensor:
    return torch.where(top > 0, top, 1.0)
