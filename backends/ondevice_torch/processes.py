"""Several processes that torchrun has started, by torch.distributed: gloo between hosts' memories,
nccl between CUDA devices. Read beside `ondevice_mlx/processes.py`.

Chosen: a process that waits, waits as long as the others live, however long an exam takes: that one
has died is seen by its closed connection, not by a clock.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ondevice.seam.connections import FlatEngine, connected, watch
from ondevice.seam.group import NotJoined

_PATIENCE = timedelta(days=30)
_QUICKLY = timedelta(seconds=5)


class TorchProcesses(FlatEngine):
    name = "torch"

    def __init__(self, device: str) -> None:
        """Raises NotJoined where there are fewer GPUs than processes on this machine."""
        gpu = device != "cpu" and torch.cuda.is_available()
        if gpu:
            local, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
            if local >= count:
                raise NotJoined(
                    f"{os.environ.get('LOCAL_WORLD_SIZE', local + 1)} processes, but {count} GPUs here",
                    where="torchrun",
                    hint=f"give --nproc-per-node {count}, or --device cpu",
                )
            torch.cuda.set_device(local)
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=_PATIENCE)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        watch()

    def gather(self, x: np.ndarray) -> np.ndarray:
        own = torch.from_numpy(np.array(x, order="C"))
        found = [torch.empty_like(own) for _ in range(self.size)]
        with connected():
            dist.all_gather(found, own)
        return torch.stack(found).numpy()

    def send_host(self, x: np.ndarray, source: int) -> np.ndarray:
        own = torch.from_numpy(np.array(x, order="C"))
        with connected():
            dist.broadcast(own, source)
        return own.numpy()

    @torch.no_grad()
    def flat(self, arrays: Sequence[Tensor], summed: bool) -> Tensor:
        flat = torch.cat([x.reshape(-1) for x in arrays])
        return _reachable(flat.float() if summed else flat)

    def parts(self, flat: Tensor, arrays: Sequence[Tensor]) -> list[Tensor]:
        parts = flat.to(arrays[0].device).split([x.numel() for x in arrays])
        return [part.view(x.shape) for part, x in zip(parts, arrays, strict=True)]

    def reduce(self, flat: Tensor, owner: int | None) -> Tensor:
        if owner is None:
            dist.all_reduce(flat)
        else:
            dist.reduce(flat, owner)
        return flat

    def broadcast(self, flat: Tensor, source: int) -> Tensor:
        dist.broadcast(flat, source)
        return flat

    def tells(self) -> bool:
        """Whoever is first to put it down with the launcher, whose store outlives the processes."""
        try:
            store = dist.TCPStore(
                os.environ["MASTER_ADDR"],
                int(os.environ["MASTER_PORT"]),
                is_master=False,
                timeout=_QUICKLY,
            )
            again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            return bool(store.add(f"ondevice/lost/{again}", 1) == 1)
        except (
            RuntimeError,
            KeyError,
            ValueError,
        ):  # it was the process's that is gone, or far away
            return super().tells()

    def close(self) -> None:
        dist.destroy_process_group()


def _reachable(x: Tensor) -> Tensor:
    """Where the processes can send it from: gloo and nccl know nothing of Apple's GPU."""
    if x.device.type in ("cpu", "cuda"):
        return x
    return x.cpu()


def join(device: str) -> TorchProcesses:
    """Meets the other processes. Raises RuntimeError or NotJoined where that fails."""
    return TorchProcesses(device)
