"""One update of parameters in MLX, pure: clip, AdamW from the library, Muon from the shared code."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.optimizers as optim

from ondevice.seam.protocols import OptimSettings
from ondevice.training.muon import MOMENTUM, muon_updates

from .ops import MLXOps


class Optimizer:
    """State is kept per tensor name: `exp_avg` and `exp_avg_sq` (AdamW) or `momentum` (Muon),
    float32.
    """

    def __init__(self, params: dict[str, mx.array], settings: OptimSettings, ops: MLXOps) -> None:
        self.settings, self.ops = settings, ops
        self.muon = [n for n in params if n in settings.muon_names]
        self.rest = [n for n in params if n not in settings.muon_names]
        self.state: dict[str, mx.array] = {
            f"{n}.momentum": mx.zeros_like(params[n]) for n in self.muon
        }
        for n in self.rest:
            self.state[f"{n}.exp_avg"] = mx.zeros_like(params[n])
            self.state[f"{n}.exp_avg_sq"] = mx.zeros_like(params[n])
        self.steps = 0

    def update(
        self,
        params: dict[str, mx.array],
        grads: dict[str, mx.array],
        state: dict[str, mx.array],
        step: mx.array,
        lr: mx.array,
    ) -> tuple[dict[str, mx.array], dict[str, mx.array], mx.array, mx.array]:
        """(new parameters, new state, global norm, finite); where it is not finite, the old ones
        come back.
        """
        s = self.settings
        norm = mx.sqrt(sum((mx.sum(mx.square(g)) for g in grads.values()), mx.array(0.0)))
        finite = mx.isfinite(norm)
        if s.clip_norm > 0:
            scale = mx.minimum(1.0, s.clip_norm / (norm + 1e-6))
            grads = {n: g * scale for n, g in grads.items()}
        new: dict[str, mx.array] = {}
        fresh: dict[str, mx.array] = {}
        self._adamw(params, grads, state, step, lr, new, fresh)
        if self.muon:
            self._muon(params, grads, state, lr * s.muon_ratio, new, fresh)
        kept = {n: mx.where(finite, new[n], p) for n, p in params.items()}
        held = {n: mx.where(finite, fresh[n], old) for n, old in state.items()}
        return kept, held, norm, finite

    def _adamw(
        self,
        params: dict[str, mx.array],
        grads: dict[str, mx.array],
        state: dict[str, mx.array],
        step: mx.array,
        lr: mx.array,
        new: dict[str, mx.array],
        fresh: dict[str, mx.array],
    ) -> None:
        s = self.settings
        for decay in {s.weight_decay, 0.0}:
            library = optim.AdamW(
                0.0, betas=[s.beta1, s.beta2], eps=s.eps, weight_decay=decay, bias_correction=True
            )
            library.state["step"], library.state["learning_rate"] = step, lr
            for n in self.rest:
                if s.decay(n, params[n].ndim) != decay:
                    continue
                held: dict[str, Any] = {"m": state[f"{n}.exp_avg"], "v": state[f"{n}.exp_avg_sq"]}
                new[n] = library.apply_single(grads[n], params[n], held)
                fresh[f"{n}.exp_avg"], fresh[f"{n}.exp_avg_sq"] = held["m"], held["v"]

    def _muon(
        self,
        params: dict[str, mx.array],
        grads: dict[str, mx.array],
        state: dict[str, mx.array],
        lr: mx.array,
        new: dict[str, mx.array],
        fresh: dict[str, mx.array],
    ) -> None:
        for n in self.muon:
            old = state[f"{n}.momentum"]
            fresh[f"{n}.momentum"] = old + (1 - MOMENTUM) * (grads[n] - old)
        looked = [grads[n] + MOMENTUM * (fresh[f"{n}.momentum"] - grads[n]) for n in self.muon]
        for n, update in zip(self.muon, muon_updates(self.ops, looked), strict=True):  # type: ignore[arg-type]
            new[n] = params[n] * (1 - lr * self.settings.weight_decay) - lr * update
