"""One update of parameters in MLX: clip, AdamW from the library, Muon from the shared code.

The gradient's norm is known before anything changes, and then the tensors are updated a group at a
time, each in the place of the old one: beside parameters, gradients and state there is never more
than a group's (`GROUP_BYTES`). All in one graph would hold the old and the new ones of every tensor
together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim

from ondevice.seam.protocols import OptimSettings
from ondevice.training.muon import MOMENTUM, muon_updates

from . import packed_moments
from .ops import MLXOps

GROUP_BYTES = 64 << 20  # of parameters that are updated together
# Stands in the place of an array while it is updated: nobody else may have it then, for MLX to
# write the new one into its memory.
_GONE = mx.array(0.0)


class Optimizer:
    """State is kept per tensor name: `exp_avg` and `exp_avg_sq` (AdamW) or `momentum` (Muon),
    float32; under adamw8bit the moments of large tensors are packed.
    """

    def __init__(
        self, params: dict[str, mx.array], settings: OptimSettings, ops: MLXOps, compiled: bool
    ) -> None:
        self.settings, self.ops = settings, ops
        self.muon = [n for n in params if n in settings.muon_names]
        self.packed = [n for n in params if self._is_packed(params[n])]
        apart = settings.muon_names | set(self.packed)
        self.rest = [n for n in params if n not in apart]
        self.state: dict[str, mx.array] = {
            f"{n}.momentum": mx.zeros_like(params[n]) for n in self.muon
        }
        for n in self.rest:
            self.state[f"{n}.exp_avg"] = mx.zeros_like(params[n])
            self.state[f"{n}.exp_avg_sq"] = mx.zeros_like(params[n])
        for n in self.packed:
            self.state |= packed_moments.empty(n, params[n])
        self.steps = 0
        self._traces = 0
        self._adamw8bit = packed_moments.PackedAdamW(settings, compiled)
        # every tensor goes through one trace: of one number of dimensions, and with its decay as an
        # array
        one = self._adamw_update
        if compiled:
            self._adamw: Callable[..., Any] = mx.compile(one, shapeless=True)
            self._muon = mx.compile(self._muon_update)
        else:
            self._adamw = one
            self._muon = self._muon_update

    def _is_packed(self, param: mx.array) -> bool:
        return self.settings.optimizer == "adamw8bit" and param.size >= packed_moments.LEAST

    @property
    def traces(self) -> int:
        return self._traces + self._adamw8bit.traces

    def update(
        self, params: dict[str, mx.array], grads: dict[str, mx.array], lr: float
    ) -> tuple[float, bool]:
        """Changes `params` and the state, and empties `grads`. Returns the gradient's global norm
        and whether it was finite; if not, nothing changes.
        """
        norm = mx.sqrt(sum((mx.sum(mx.square(g)) for g in grads.values()), mx.array(0.0)))
        value = float(norm.item())
        if not value < float("inf"):
            return value, False
        self.steps += 1
        scale = mx.array(1.0)
        if self.settings.clip_norm > 0:
            scale = mx.minimum(1.0, self.settings.clip_norm / (norm + 1e-6))
        rate = mx.array(lr)
        self._update_adamw(params, grads, scale, rate)
        self._update_packed(params, grads, scale, rate)
        if self.muon:
            self._update_muon(params, grads, scale, rate)
        return value, True

    def _update_adamw(
        self,
        params: dict[str, mx.array],
        grads: dict[str, mx.array],
        scale: mx.array,
        rate: mx.array,
    ) -> None:
        step = mx.array(self.steps, mx.int32)
        decays = {decay: mx.array(decay) for decay in (self.settings.weight_decay, 0.0)}
        for names in _groups(self.rest, params):
            for n in names:
                ndim = params[n].ndim
                flat = ndim == 1
                held = [params[n], grads.pop(n), *(self.state[key] for key in _moments(n))]
                params[n] = _GONE
                self.state |= dict.fromkeys(_moments(n), _GONE)
                new = self._adamw(
                    *(x[None] if flat else x for x in held),
                    scale,
                    step,
                    rate,
                    decays[self.settings.decay(n, ndim)],
                )
                del held
                found = [x.squeeze(0) if flat else x for x in new]
                params[n], *moments = found
                self.state |= zip(_moments(n), moments, strict=True)
            mx.eval([(params[n], [self.state[key] for key in _moments(n)]) for n in names])

    def _update_packed(
        self,
        params: dict[str, mx.array],
        grads: dict[str, mx.array],
        scale: mx.array,
        rate: mx.array,
    ) -> None:
        step = mx.array(self.steps, mx.float32)
        for n in self.packed:
            decay = self.settings.decay(n, params[n].ndim)
            params[n] = self._adamw8bit.update(
                n, params[n], grads.pop(n), self.state, scale, rate, decay, step
            )
            mx.eval(params[n], [self.state[f"{n}.{key}"] for key in packed_moments.KEYS])

    def _adamw_update(
        self,
        param: mx.array,
        grad: mx.array,
        first: mx.array,
        second: mx.array,
        scale: mx.array,
        step: mx.array,
        rate: mx.array,
        decay: mx.array,
    ) -> tuple[mx.array, mx.array, mx.array]:
        """One tensor's (parameter, both moments) from these, its gradient, by what that is
        multiplied, the number of the step, the rate and the decay."""
        self._traces += 1
        s = self.settings
        library = optim.AdamW(
            0.0,
            betas=[s.beta1, s.beta2],
            eps=s.eps,
            weight_decay=decay,  # type: ignore[arg-type]
            bias_correction=True,
        )
        library.state["step"], library.state["learning_rate"] = step, rate
        held: dict[str, Any] = {"m": first, "v": second}
        new = library.apply_single(grad * scale, param, held)
        return new, held["m"], held["v"]

    def _update_muon(
        self,
        params: dict[str, mx.array],
        grads: dict[str, mx.array],
        scale: mx.array,
        rate: mx.array,
    ) -> None:
        """All of Muon's matrices together: those of one shape are made orthogonal as one array."""
        new, momentum = self._muon(
            [params[n] for n in self.muon],
            [grads.pop(n) for n in self.muon],
            [self.state[f"{n}.momentum"] for n in self.muon],
            scale,
            rate * self.settings.muon_ratio,
        )
        mx.eval(new, momentum)
        for n, param, buffer in zip(self.muon, new, momentum, strict=True):
            params[n], self.state[f"{n}.momentum"] = param, buffer

    def _muon_update(
        self,
        params: list[mx.array],
        grads: list[mx.array],
        momentum: list[mx.array],
        scale: mx.array,
        rate: mx.array,
    ) -> tuple[list[mx.array], list[mx.array]]:
        self._traces += 1
        scaled = [grad * scale for grad in grads]
        buffers = []
        looked = []
        for grad, old in zip(scaled, momentum, strict=True):
            buffers.append(old + (1 - MOMENTUM) * (grad - old))
            looked.append(grad + MOMENTUM * (buffers[-1] - grad))
        updates = muon_updates(self.ops, looked)  # type: ignore[arg-type]
        kept = 1 - rate * self.settings.weight_decay
        new = []
        for param, change in zip(params, updates, strict=True):
            new.append(param * kept - rate * change)
        return new, buffers


def _moments(name: str) -> tuple[str, str]:
    """What a tensor's moments are called in the state."""
    return f"{name}.exp_avg", f"{name}.exp_avg_sq"


def _groups(names: list[str], params: dict[str, mx.array]) -> Iterator[list[str]]:
    """The names in their order, in groups of about `GROUP_BYTES` of parameters."""
    group: list[str] = []
    held = 0
    for name in names:
        group.append(name)
        held += params[name].nbytes
        if held >= GROUP_BYTES:
            yield group
            group, held = [], 0
    if group:
        yield group
