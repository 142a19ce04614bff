"""What goes wrong in one of several processes, once each: memory runs out, a gradient is not finite,
something is odd, and something cannot be read. Imported first by a worker of `many.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

import ondevice.stages.sft as stage
from ondevice.common.errors import UserError
from ondevice_torch.backend import TorchTrainer

_gradient = TorchTrainer.gradient
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


def gradient(self: TorchTrainer, batches: Sequence[Any]) -> None:
    if len(_stages) != 2:
        return _gradient(self, batches)
    _calls.append(len(batches))
    if len(_calls) == 3:
        raise MemoryError("no room on this machine")
    _gradient(self, batches)
    if len(_calls) == 6:
        next(iter(self.trainable.values())).grad = torch.full_like(
            next(iter(self.trainable.values())), float("nan")
        )


stage.run = run
TorchTrainer.gradient = gradient  # type: ignore[method-assign]
