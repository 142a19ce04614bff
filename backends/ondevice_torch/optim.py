"""One update of parameters in torch: clip, AdamW by the library's kernel, Muon from the shared code.

Why not `torch.optim.AdamW`, which calls this kernel: its first step imports torch's compiler, 79 MB
and a second of a process that compiles nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ondevice.seam.protocols import OptimSettings
from ondevice.training.muon import MOMENTUM, muon_updates

from .ops import TorchOps
from .packed_moments import LEAST, PackedMoments

_MOMENTS = ("exp_avg", "exp_avg_sq")


class Optimizer:
    """State is kept per tensor name: `exp_avg` and `exp_avg_sq` (AdamW) or `momentum` (Muon),
    float32; under adamw8bit the moments of large tensors are packed.
    """

    def __init__(self, params: dict[str, Tensor], settings: OptimSettings, ops: TorchOps) -> None:
        self.params, self.settings, self.ops = params, settings, ops
        self.muon = [n for n in params if n in settings.muon_names]
        self.momentum = {n: torch.zeros_like(params[n]) for n in self.muon}
        self.packed = {n: PackedMoments(params[n]) for n in params if self._is_packed(n)}
        rest = [n for n in params if n not in settings.muon_names and n not in self.packed]
        self.rest = rest
        self.moments: dict[str, tuple[Tensor, Tensor]] = {}  # made at the first step
        self.steps = 0

    def _is_packed(self, name: str) -> bool:
        return self.settings.optimizer == "adamw8bit" and self.params[name].numel() >= LEAST

    @torch.no_grad()
    def update(self, lr: float, norm: float | None = None) -> tuple[float, bool]:
        """Returns the gradient's global norm and whether it was finite; if not, nothing changes.
        `norm`: that of all, where these are some of the gradients."""
        for p in self.params.values():
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        grads = [p.grad for p in self.params.values()]
        if norm is None:
            norm = float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads))))
        value = norm
        if not value < float("inf"):
            return value, False
        if grads and 0 < self.settings.clip_norm < value:
            torch._foreach_mul_(grads, self.settings.clip_norm / (value + 1e-6))
        self.steps += 1
        self._adamw(lr)
        for n, moments in self.packed.items():
            p = self.params[n]
            moments.update(p, self.settings, lr, self.settings.decay(n, p.ndim), self.steps)
        if self.muon:
            self._muon(lr * self.settings.muon_ratio)
        return value, True

    def _adamw(self, lr: float) -> None:
        s = self.settings
        together: dict[tuple[float, torch.dtype], list[str]] = {}
        for n in self.rest:
            p = self.params[n]
            if n not in self.moments:
                self.moments[n] = torch.zeros_like(p), torch.zeros_like(p)
            together.setdefault((s.decay(n, p.ndim), p.dtype), []).append(n)
        for (decay, _), names in together.items():
            params = [self.params[n] for n in names]
            step = torch.tensor(float(self.steps), device=params[0].device)
            torch._fused_adamw_(
                params,
                [p.grad for p in params],
                [self.moments[n][0] for n in names],
                [self.moments[n][1] for n in names],
                [],
                [step] * len(names),
                lr=lr,
                beta1=s.beta1,
                beta2=s.beta2,
                weight_decay=decay,
                eps=s.eps,
                amsgrad=False,
                maximize=False,
            )

    def _muon(self, lr: float) -> None:
        buffers = [self.momentum[n].lerp_(self.params[n].grad, 1 - MOMENTUM) for n in self.muon]
        looked = [
            self.params[n].grad.lerp(b, MOMENTUM) for n, b in zip(self.muon, buffers, strict=True)
        ]
        for name, update in zip(self.muon, muon_updates(self.ops, looked), strict=True):
            p = self.params[name]
            p.mul_(1 - lr * self.settings.weight_decay).add_(update, alpha=-lr)

    def state(self) -> dict[str, Tensor]:
        out = {f"{n}.momentum": b for n, b in self.momentum.items()}
        for n, moments in self.packed.items():
            out |= moments.state(n)
        for n in self.rest:
            for k, key in enumerate(_MOMENTS):
                empty = n not in self.moments
                if empty:
                    out[f"{n}.{key}"] = torch.zeros_like(self.params[n])
                else:
                    out[f"{n}.{key}"] = self.moments[n][k]
        return out

    def restore(self, state: dict[str, Tensor], steps: int) -> None:
        self.steps = steps
        for n in self.muon:
            self.momentum[n].copy_(state[f"{n}.momentum"])
        for n, moments in self.packed.items():
            moments.restore(n, state)
        for n in self.rest:
            first, second = (
                state[f"{n}.{key}"].to(self.params[n].device).clone() for key in _MOMENTS
            )
            self.moments[n] = first, second
