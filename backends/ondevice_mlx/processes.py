"""Several processes that mlx.launch has started, by mlx.core.distributed: a ring over TCP, or JACCL
over Thunderbolt. Read beside `ondevice_torch/processes.py`.

All of it runs on the CPU's stream: on the GPU's, a reduction waits among kernels, and a watchdog may
end it. Memory is one, so nothing is copied for that.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from ondevice.seam.connections import FlatEngine, connected, watch


class MLXProcesses(FlatEngine):
    name = "mlx"

    def __init__(self) -> None:
        self._group = mx.distributed.init(strict=True)
        self.rank, self.size = self._group.rank(), self._group.size()
        watch()

    def gather(self, x: np.ndarray) -> np.ndarray:
        # the sum of such small things is bytes: not every type is gathered
        own = mx.array(np.frombuffer(np.ascontiguousarray(x).tobytes(), np.uint8))
        with connected():
            found = mx.distributed.all_gather(own[None], group=self._group, stream=mx.cpu)
            mx.eval(found)
        return np.array(found).view(x.dtype).reshape(self.size, *x.shape)

    def send_host(self, x: np.ndarray, source: int) -> np.ndarray:
        with connected():
            return np.array(self.broadcast(mx.array(x), source))

    def flat(self, arrays: Sequence[mx.array], summed: bool) -> mx.array:
        flat = mx.concatenate([x.reshape(-1) for x in arrays])
        flat = flat.astype(mx.float32) if summed else flat
        mx.eval(flat)
        return flat

    def parts(self, flat: mx.array, arrays: Sequence[mx.array]) -> list[mx.array]:
        ends = np.cumsum([x.size for x in arrays])[:-1].tolist()
        split = zip(mx.split(flat, ends), arrays, strict=True)
        parts = [part.reshape(x.shape) for part, x in split]
        mx.eval(parts)
        return parts

    def reduce(self, flat: mx.array, owner: int | None) -> mx.array:
        flat = mx.distributed.all_sum(flat, group=self._group, stream=mx.cpu)
        mx.eval(flat)
        return flat

    def broadcast(self, flat: mx.array, source: int) -> mx.array:
        if self.rank == source:
            own = flat
        else:
            own = mx.zeros_like(flat)
        mx.eval(own)
        return self.reduce(own, None)

    def close(self) -> None:
        """The connections end with the process."""


def join(device: str) -> MLXProcesses:
    """Meets the other processes. Raises RuntimeError where that fails."""
    return MLXProcesses()
