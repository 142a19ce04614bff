"""What goes wrong in one of several processes, once each: memory runs out, a gradient is not finite,
something is odd, and something cannot be read. Imported first by a worker of `many.py`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import ondevice.stages.sft as stage
from ondevice.common.errors import UserError

if "MLX_RANK" in os.environ:
    import mlx.core as mx

    from ondevice_mlx.backend import MLXTrainer as Trainer
else:
    import torch

    from ondevice_torch.backend import TorchTrainer as Trainer  # type: ignore[assignment]

_gradient = Trainer.gradient
_run = stage.run
_stages: list[str] = []


def run(cfg: Any, ctx: Any) -> Any:
    _stages.append(ctx.name)
    if len(_stages) == 3:
        raise UserError("a fault of this one", where="here")
    if len(_stages) == 2:
        ctx.warn("odd on this machine")
    _calls.clear()
    return _run(cfg, ctx)


_calls: list[int] = []


def gradient(self: Any, batches: Sequence[Any]) -> None:
    if len(_stages) != 2:
        return _gradient(self, batches)
    _calls.append(len(batches))
    if len(_calls) == 3:
        raise MemoryError("no room on this machine")
    _gradient(self, batches)
    if len(_calls) == 6:
        name, weight = next(iter(self.trainable.items()))
        if "MLX_RANK" in os.environ:
            self._grads[name] = mx.full(weight.shape, float("nan"))
        else:
            weight.grad = torch.full_like(weight, float("nan"))


stage.run = run
Trainer.gradient = gradient  # type: ignore[method-assign]
