"""Several processes that mlx.launch has started, by mlx.core.distributed: a ring over TCP, or JACCL
over Thunderbolt. Read beside `ondevice_torch/processes.py`.

All of it runs on the CPU's stream: on the GPU's, a reduction waits among kernels, and a watchdog may
end it. Memory is one, so nothing is copied for that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import mlx.core as mx
import numpy as np


class MLXProcesses:
    name = "mlx"

    def __init__(self) -> None:
        self._group = mx.distributed.init(strict=True)
        self.rank, self.size = self._group.rank(), self._group.size()

    def gather(self, x: np.ndarray) -> np.ndarray:
        # the sum of such small things is bytes: not every type is gathered
        own = mx.array(np.frombuffer(np.ascontiguousarray(x).tobytes(), np.uint8))
        with _connected():
            found = mx.distributed.all_gather(own[None], group=self._group, stream=mx.cpu)
            mx.eval(found)
        return np.array(found).view(x.dtype).reshape(self.size, *x.shape)

    def send_host(self, x: np.ndarray, source: int) -> np.ndarray:
        return np.array(self._send(mx.array(x), source))

    def sum(self, arrays: Sequence[mx.array], owner: int | None = None) -> list[mx.array]:
        flat = mx.concatenate([x.reshape(-1).astype(mx.float32) for x in arrays])
        mx.eval(flat)
        with _connected():
            flat = mx.distributed.all_sum(flat, group=self._group, stream=mx.cpu)
            mx.eval(flat)
        return _parts(flat, arrays)

    def send(self, arrays: Sequence[mx.array], source: int) -> list[mx.array]:
        flat = mx.concatenate([x.reshape(-1) for x in arrays])
        return _parts(self._send(flat, source), arrays)

    def _send(self, x: mx.array, source: int) -> mx.array:
        own = x if self.rank == source else mx.zeros_like(x)
        mx.eval(own)
        with _connected():
            sent = mx.distributed.all_sum(own, group=self._group, stream=mx.cpu)
            mx.eval(sent)
        return sent

    def close(self) -> None:
        """The connections end with the process."""


def _parts(flat: mx.array, arrays: Sequence[mx.array]) -> list[mx.array]:
    """What lies in `flat` one after the other, in the arrays' shapes."""
    ends = np.cumsum([x.size for x in arrays])[:-1].tolist()
    parts = [part.reshape(x.shape) for part, x in zip(mx.split(flat, ends), arrays, strict=True)]
    mx.eval(parts)
    return parts


@contextmanager
def _connected() -> Iterator[None]:
    """What goes wrong within is a connection's end."""
    try:
        yield
    except RuntimeError as error:
        raise ConnectionError(str(error)) from error


def join(device: str) -> MLXProcesses:
    """Meets the other processes. Raises RuntimeError where that fails."""
    return MLXProcesses()
