"""MLX on Apple GPUs (and its CPU build): files, steps, memory. Read beside
`ondevice_torch/backend.py`.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ondevice.common.allocator import give_back
from ondevice.common.errors import UserError
from ondevice.common.physical_memory import physical_memory
from ondevice.common.processes import output_of
from ondevice.seam.external_library import Library
from ondevice.seam.group import ALONE, Group
from ondevice.seam.ops import Batch, Loss
from ondevice.seam.protocols import Memory, OptimSettings

from .costs import COSTS
from .ops import DTYPES, MLXOps
from .optim import Optimizer

_MEMORY_SHARE, _CACHE_SHARE, _MOST_CACHE = 0.85, 0.1, 2 << 30
FLOATS = (mx.float32, mx.bfloat16, mx.float16)


def make(device: str, dtype: str) -> MLXBackend:
    """`device` auto, cpu or gpu; `dtype` auto, float32 or bfloat16. Raises UserError where there is
    no such device.
    """
    gpu = mx.is_available(mx.gpu)
    if device == "gpu" and not gpu:
        raise UserError("MLX sees no GPU here", where="device", hint="take --device cpu or auto")
    on_gpu = gpu and device != "cpu"
    mx.set_default_device(mx.gpu if on_gpu else mx.cpu)
    working_set = _working_set() if on_gpu else 0
    if working_set:
        set_limits(working_set, os.environ)
    return MLXBackend(
        "gpu" if on_gpu else "cpu",
        ("bfloat16" if on_gpu else "float32") if dtype == "auto" else dtype,
    )


def set_limits(working_set: int, env: Mapping[str, str]) -> tuple[int, int]:
    """Bounds what MLX takes of the memory that the GPU may use well, and what it keeps of freed
    memory; its own bounds lie beyond where a machine begins to swap. Returns both, in bytes.

    `env` may say them in MB: `ONDEVICE_MLX_MEMORY_MB` (otherwise 85 % of the working set) and
    `ONDEVICE_MLX_CACHE_MB` (otherwise 10 % of it, at most 2 GB). Raises UserError for what is no
    number.
    """
    memory = _megabytes(env, "ONDEVICE_MLX_MEMORY_MB", int(_MEMORY_SHARE * working_set))
    usual = min(_MOST_CACHE, int(_CACHE_SHARE * working_set))
    cache = _megabytes(env, "ONDEVICE_MLX_CACHE_MB", usual)
    mx.set_memory_limit(memory)
    mx.set_cache_limit(cache)
    return memory, cache


def _megabytes(env: Mapping[str, str], name: str, usual: int) -> int:
    said = env.get(name)
    if not said:
        return usual
    if not said.isdecimal():
        raise UserError(f"{said!r} is not a number of megabytes", where=name, hint="such as 8000")
    return int(said) << 20


class MLXBackend:
    name = "mlx"
    group: Group = ALONE
    shards = COSTS.shards

    def __init__(self, device: str, dtype: str) -> None:
        self.device, self.dtype = device, dtype
        self.activation_factor = COSTS.activation_factor(device)
        self.ops = MLXOps(dtype)

    # files
    def load(self, file: Path, dtype: str | None = "float32") -> dict[str, mx.array]:
        found: dict[str, mx.array] = mx.load(str(file))  # type: ignore[assignment]
        params: dict[str, mx.array] = {}
        for name in list(found):
            p = found.pop(name)
            if dtype and p.dtype in FLOATS:
                p = p.astype(DTYPES[dtype])
            mx.eval(p)  # read now, so that what the file has it in is gone before the next
            params[name] = p
        return params

    def save(
        self,
        file: Path,
        params: dict[str, mx.array],
        metadata: dict[str, str],
        dtype: str | None = None,
    ) -> None:
        cast = {
            n: p.astype(DTYPES[dtype]) if dtype and p.dtype in FLOATS else p
            for n, p in params.items()
        }
        mx.save_safetensors(str(file), cast, {"format": "pt", **metadata})

    def open_library(
        self, folder: Path, raw: dict[str, Any], dtype: str
    ) -> tuple[Library, dict[str, mx.array]]:
        from .libraries import load

        return load(folder, raw, self.ops, dtype)  # type: ignore[return-value]

    def array(self, x: np.ndarray) -> mx.array:
        return mx.array(x)

    def numpy(self, x: mx.array) -> np.ndarray:
        return np.array(x.astype(mx.float32) if x.dtype == mx.bfloat16 else x)

    def start(self, x: mx.array) -> None:
        # on a CPU it would compete with what is being built, and its cache would be copied
        if self.device == "gpu":
            mx.async_eval(x)

    def read_later(self, x: mx.array) -> Callable[[], np.ndarray]:
        self.start(x)
        return lambda: self.numpy(x)

    # work
    def trainer(
        self,
        loss: Loss,
        trainable: dict[str, mx.array],
        frozen: dict[str, mx.array],
        optim: OptimSettings,
        *,
        compile: str = "auto",
        take: bool = False,
    ) -> MLXTrainer:
        # no array is ever changed in place: there is no copy to spare
        return MLXTrainer(self, loss, trainable, frozen, optim, self.compiles(compile))

    def compiles(self, compile: str) -> bool:
        return compile != "never"

    def inference_fn(self, fn: Callable[..., Any], *, compile: str = "auto") -> Callable[..., Any]:
        if self.compiles(compile):
            body = mx.compile(fn)
        else:
            body = fn

        def run(*args: Any) -> Any:
            return body(*(self._place(a) for a in args))

        return run

    def _place(self, x: Any) -> Any:
        if isinstance(x, np.ndarray | np.generic):
            return mx.array(np.asarray(x))
        if isinstance(x, Mapping):
            return {k: self._place(v) for k, v in x.items()}
        if isinstance(x, list | tuple):
            return type(x)(self._place(v) for v in x)
        return x

    def device_name(self) -> str:
        if self.device == "gpu":
            return str(mx.device_info().get("device_name", ""))
        return ""

    def memory(self) -> Memory:
        total = physical_memory() or 0
        if self.device == "gpu":
            total = _working_set() or total
        # what is kept of freed memory is the process's too
        active = mx.get_active_memory() + mx.get_cache_memory()
        return Memory(active, max(active, mx.get_peak_memory()), total)

    def device_facts(self) -> dict[str, str | int]:
        if self.device != "gpu":
            return {}
        facts: dict[str, str | int] = {"chip": str(mx.device_info().get("device_name", "GPU"))}
        if _working_set():
            facts["working_set"] = _working_set()
        wired = _wired_limit()
        if wired is not None:
            facts["wired_limit"] = wired
        return facts

    def out_of_memory(self, error: BaseException) -> bool:
        if isinstance(error, MemoryError):  # std::bad_alloc
            return True
        # of the allocator, and of a command buffer on the GPU
        texts = (
            "Unable to allocate",
            "Attempting to allocate",
            "Insufficient Memory",
            "OutOfMemory",
        )
        return isinstance(error, RuntimeError) and any(text in str(error) for text in texts)

    def clear_cache(self) -> None:
        mx.clear_cache()
        if (
            self.device == "cpu"
        ):  # where MLX has its arrays from the C library, which keeps them too
            give_back()

    def free_memory(self) -> None:
        gc.collect()
        self.clear_cache()

    def sync(self) -> None:
        mx.synchronize()

    def versions(self) -> dict[str, str]:
        return {"mlx": mx.__version__}


def _working_set() -> int:
    """Bytes that the GPU may use well, 0 where it does not say."""
    return int(mx.device_info().get("max_recommended_working_set_size", 0))


def _wired_limit() -> int | None:
    """What the system lets a GPU wire in all, in bytes, 0 where it decides by itself; None where it
    does not tell."""
    try:
        said = output_of("sysctl", "-n", "iogpu.wired_limit_mb").strip()
    except OSError:
        return None  # no such program
    if said.isdecimal():
        return int(said) << 20
    return None


def _together(metrics: Mapping[str, tuple[mx.array, mx.array]]) -> dict[str, mx.array]:
    """Every name with one and the same array (M, 2) of all (sum, count), in the names' order. One
    array: where two outputs of a compiled function are the same computation, as two metrics' counts
    are, MLX 0.32 raises IndexError."""
    pairs = [mx.stack([x.astype(mx.float32) for x in metrics[name]]) for name in sorted(metrics)]
    return dict.fromkeys(metrics, mx.stack(pairs))


class MLXTrainer:
    def __init__(
        self,
        backend: MLXBackend,
        loss: Loss,
        trainable: dict[str, mx.array],
        frozen: dict[str, mx.array],
        optim: OptimSettings,
        compiled: bool,
    ) -> None:
        # in one order, whatever a file's is: sums over tensors are then the same to the bit after a
        # resume
        self.backend, self.trainable, self.frozen = backend, dict(sorted(trainable.items())), frozen
        self.group = backend.group
        self.group.send(self.trainable)  # type: ignore[arg-type]
        self.optimizer = Optimizer(self.trainable, optim, backend.ops, compiled)
        self._traces = 0
        self._grads: dict[str, mx.array] = {}
        self._totals: dict[str, list[mx.array]] = {}

        def whole(
            trainable: dict[str, mx.array],
            frozen: dict[str, mx.array],
            arrays: Mapping[str, mx.array],
        ) -> Any:
            self._traces += 1
            value, metrics = loss(backend.ops, {**trainable, **frozen}, arrays)  # type: ignore[arg-type]
            return value, _together(metrics)  # type: ignore[arg-type]

        # parameters are arguments: whatever a compiled function captures is a constant
        self._gradient = mx.value_and_grad(whole)
        if compiled:
            self._gradient = mx.compile(self._gradient)

    def step(self, batches: Sequence[Batch], lr: float) -> dict[str, float]:
        self.gradient(batches)
        return self.update(lr)

    def gradient(self, batches: Sequence[Batch]) -> None:
        try:
            for batch in batches:
                arrays = self.backend._place(batch)
                (_, metrics), new = self._gradient(self.trainable, self.frozen, arrays)
                self._add(new)
                for n, name in enumerate(sorted(metrics)):
                    self._totals.setdefault(name, []).append(metrics[name][n])
                # else the graphs of all micro-batches would be alive together
                mx.eval(self._grads, self._totals)
            self.group.agree()
        except BaseException:
            self._forget_gradient()
            raise

    def _add(self, new: dict[str, mx.array]) -> None:
        if not self._grads:
            self._grads = new
            return
        for name in new:
            self._grads[name] = self._grads[name] + new[name]

    def _forget_gradient(self) -> None:
        self._grads = {}
        self._totals = {}

    def update(self, lr: float) -> dict[str, float]:
        sums = {n: mx.sum(mx.stack(pairs), 0) for n, pairs in self._totals.items()}
        # without a batch the optimizer's step is that of a gradient of zero
        grads = self._grads or {n: mx.zeros_like(p) for n, p in self.trainable.items()}
        self._forget_gradient()
        if self.group.several:  # each has the gradients of some of the step's micro-batches
            grads = dict(sorted(grads.items()))
            self.group.sum(grads)  # type: ignore[arg-type]
        # they are taken over, so that each can be freed when its tensor has been updated
        norm, done = self.optimizer.update(self.trainable, grads, lr)
        size = self._size(self.trainable)
        mx.eval(sums, size)
        pairs = self.group.sum_figures({n: s.tolist() for n, s in sums.items()})
        out = {n: total / count if count else float("nan") for n, (total, count) in pairs.items()}
        # finite weights can be so large that their sum is not
        ruined = done and not bool(mx.isfinite(size).item()) and bool(self.not_finite())
        return {
            **out,
            "grad_norm": norm,
            "skipped": 0.0 if done else 1.0,
            "ruined": float(ruined),
        }

    def _size(self, params: dict[str, mx.array]) -> mx.array:
        """A sum over the parameters: not finite where one of them is not. Not compiled with the
        update, whose numbers it is not to touch."""
        return mx.sum(mx.stack([mx.sum(p).astype(mx.float32) for p in params.values()]))

    def not_finite(self) -> list[str]:
        if bool(mx.isfinite(self._size(self.trainable)).item()):
            return []
        return [n for n, p in self.trainable.items() if not bool(mx.all(mx.isfinite(p)).item())]

    def params(self) -> dict[str, mx.array]:
        return {**self.trainable, **self.frozen}

    def save_state(self, file: Path | None) -> None:
        if file is None:
            return
        self.backend.save(file, self.optimizer.state, {"steps": str(self.optimizer.steps)})

    def load_state(self, file: Path) -> None:
        steps, state = 0, self.optimizer.state
        if self.group.leader:
            state, metadata = mx.load(str(file), return_metadata=True)
            steps = int(metadata["steps"])
        self.optimizer.steps = self.group.tell(steps)
        for n in self.optimizer.state:
            held = {n: state[n]}
            self.group.send(held)  # type: ignore[arg-type]
            self.optimizer.state[n] = held[n]

    def traces(self) -> int:
        return self._traces + self.optimizer.traces
