"""One update of parameters in torch: clip, AdamW from the library, Muon from the shared code."""

from __future__ import annotations

import torch
from torch import Tensor

from ondevice.seam.protocols import OptimSettings
from ondevice.training.muon import MOMENTUM, muon_updates

from .ops import TorchOps
from .packed_moments import LEAST, PackedMoments


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
        decays = {n: settings.decay(n, params[n].ndim) for n in rest}
        groups = [
            {"params": [params[n] for n in rest if decays[n] == rate], "weight_decay": rate}
            for rate in sorted({*decays.values()}, reverse=True)
        ]
        self.adamw = (
            torch.optim.AdamW(
                groups, lr=1.0, fused=True, eps=settings.eps, betas=(settings.beta1, settings.beta2)
            )
            if rest
            else None
        )
        self.rest = rest
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
        if self.adamw is not None:
            for group in self.adamw.param_groups:
                group["lr"] = lr
            self.adamw.step()
        for n, moments in self.packed.items():
            p = self.params[n]
            moments.update(p, self.settings, lr, self.settings.decay(n, p.ndim), self.steps)
        if self.muon:
            self._muon(lr * self.settings.muon_ratio)
        return value, True

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
        if self.adamw is not None:
            for n in self.rest:
                held = self.adamw.state.get(self.params[n], {})
                for key in ("exp_avg", "exp_avg_sq"):
                    out[f"{n}.{key}"] = (
                        held[key] if key in held else torch.zeros_like(self.params[n])
                    )
        return out

    def restore(self, state: dict[str, Tensor], steps: int) -> None:
        self.steps = steps
        for n in self.muon:
            self.momentum[n].copy_(state[f"{n}.momentum"])
        for n, moments in self.packed.items():
            moments.restore(n, state)
        if self.adamw is not None:
            for n in self.rest:
                p = self.params[n]
                self.adamw.state[p] = {
                    "step": torch.tensor(float(steps), device=p.device),
                    **{
                        k: state[f"{n}.{k}"].to(p.device).clone() for k in ("exp_avg", "exp_avg_sq")
                    },
                }
