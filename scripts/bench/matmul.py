"""The best rate of a square matrix product on this device in this type: what a model's FLOPs are
measured against. Prints FLOPs per second."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from job import Job
from meter import device_of, print_result, torch_device, use_mlx_device, wait_for_device


def main() -> None:
    job = Job.from_argv()
    width = _width(job)
    product = (_mlx if job.backend == "mlx" else _torch)(job, width)
    product()
    wait_for_device(job)
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        product()
        wait_for_device(job)
        best = min(best, time.perf_counter() - began)
    print_result(rate=2 * width**3 / best)


def _width(job: Job) -> int:
    if job.small:
        return 256
    return 2048 if device_of(job) == "cpu" else 8192


def _torch(job: Job, width: int) -> Callable[[], Any]:
    import torch

    a = torch.randn(width, width, device=torch_device(job), dtype=getattr(torch, job.dtype))
    return lambda: a @ a


def _mlx(job: Job, width: int) -> Callable[[], Any]:
    import mlx.core as mx

    use_mlx_device(job)
    a = mx.random.normal((width, width)).astype(getattr(mx, job.dtype))
    mx.eval(a)
    return lambda: mx.eval(a @ a)


if __name__ == "__main__":
    main()
