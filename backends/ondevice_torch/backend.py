"""torch on CUDA, MPS or CPU: files, steps, memory. Read beside `ondevice_mlx/backend.py`."""

from __future__ import annotations

import gc
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from ondevice.common.errors import UserError
from ondevice.common.physical_memory import physical_memory
from ondevice.seam.external_library import Library
from ondevice.seam.group import ALONE, Group
from ondevice.seam.ops import Batch, Loss
from ondevice.seam.protocols import Memory, OptimSettings

from .compiled import Compiled
from .costs import COSTS
from .ops import DTYPES, TorchOps
from .optim import Optimizer
from .sharded import ShardedOptimizer, send_into


def make(device: str, dtype: str) -> TorchBackend:
    """`device` auto, cpu or gpu; `dtype` auto, float32 or bfloat16. Raises UserError where there is
    no such device.
    """
    if torch.cuda.is_available():
        gpu = "cuda"
    elif torch.backends.mps.is_available():
        gpu = "mps"
    else:
        gpu = None
    if device == "gpu" and gpu is None:
        raise UserError("torch sees no GPU here", where="device", hint="take --device cpu or auto")
    name = "cpu" if device == "cpu" or gpu is None else gpu
    return TorchBackend(
        torch.device(name),
        ("float32" if name == "cpu" else "bfloat16") if dtype == "auto" else dtype,
    )


_MAPPED = 32 << 20


class TorchBackend:
    name = "torch"
    group: Group = ALONE
    shards = COSTS.shards

    def __init__(self, device: torch.device, dtype: str) -> None:
        self._device, self.device, self.dtype = device, device.type, dtype
        self.ops = TorchOps(device, dtype)
        self.activation_factor = COSTS.activation_factor(self.device)
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high" if dtype == "bfloat16" else "highest")

    # files
    def load(self, file: Path, dtype: str | None = "float32") -> dict[str, Tensor]:
        with safetensors.safe_open(file, "pt") as opened:
            names = list(opened.keys())
        params: dict[str, Tensor] = {}
        while names:
            names = self._load_some(file, names, dtype, params)
        return params

    def _load_some(
        self, file: Path, names: list[str], dtype: str | None, params: dict[str, Tensor]
    ) -> list[str]:
        """Loads the first of `names` into `params` and returns the rest. What is read of the file
        stays mapped until it is closed: beside what is loaded that is `_MAPPED` bytes, or one
        tensor."""
        mapped = 0
        # closed, and the tensors in it gone, when this returns
        with safetensors.safe_open(file, "pt", device=self.device) as opened:
            for n, name in enumerate(names):
                if mapped >= _MAPPED:
                    return names[n:]
                p = opened.get_tensor(name)
                mapped += p.nbytes
                if dtype and p.is_floating_point():
                    kind = DTYPES[dtype]
                else:
                    kind = p.dtype
                params[name] = p.to(kind, copy=self.device == "cpu")
        return []

    def save(
        self,
        file: Path,
        params: dict[str, Tensor],
        metadata: dict[str, str],
        dtype: str | None = None,
    ) -> None:
        cast = DTYPES[dtype] if dtype else None
        host = {
            n: p.detach()
            .to("cpu", cast if cast and p.is_floating_point() else p.dtype)
            .contiguous()
            for n, p in params.items()
        }
        held: set[int] = set()
        for (
            name,
            p,
        ) in (
            host.items()
        ):  # safetensors refuses two names of one memory, as a head begins as a table's copy
            if p.data_ptr() in held and p.numel():
                host[name] = p.clone()
            else:
                host[name] = p
            held.add(p.data_ptr())
        safetensors.torch.save_file(host, file, metadata={"format": "pt", **metadata})

    def open_library(
        self, folder: Path, raw: dict[str, Any], dtype: str
    ) -> tuple[Library, dict[str, Tensor]]:
        from .libraries import load

        return load(folder, raw, self.ops, dtype)  # type: ignore[return-value]

    def array(self, x: np.ndarray) -> Tensor:
        host = torch.from_numpy(np.asarray(x, order="C"))
        # from pinned memory alone may a copy go on behind us; on MPS one from other memory reads
        # what is there later
        if self.device == "cuda":
            return host.pin_memory().to(self._device, non_blocking=True)
        return host.to(self._device)

    def numpy(self, x: Tensor) -> np.ndarray:
        x = x.detach()
        return (x.float() if x.dtype == torch.bfloat16 else x).cpu().numpy()

    def start(self, x: Tensor) -> None:
        """Nothing to do: the device begins with each operation as it is asked for."""

    def read_later(self, x: Tensor) -> Callable[[], np.ndarray]:
        if self.device != "cuda":
            return lambda: self.numpy(x)
        host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
        host.copy_(x, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()

        def wait() -> np.ndarray:
            copied.synchronize()
            return self.numpy(host)

        return wait

    # work
    def trainer(
        self,
        loss: Loss,
        trainable: dict[str, Tensor],
        frozen: dict[str, Tensor],
        optim: OptimSettings,
        *,
        compile: str = "auto",
        take: bool = False,
    ) -> TorchTrainer:
        # in one order, whatever a file's is: sums over tensors are then the same to the bit after a
        # resume
        own = _owned(dict(sorted(trainable.items())), take)
        return TorchTrainer(self, loss, own, frozen, optim, self.compiles(compile))

    def inference_fn(self, fn: Callable[..., Any], *, compile: str = "auto") -> Callable[..., Any]:
        if self.compiles(compile):
            body = Compiled(fn)
        else:
            body = fn

        def run(*args: Any) -> Any:
            with torch.no_grad():
                return body(*(self._place(a) for a in args))

        return run

    def compiles(self, compile: str) -> bool:
        return compile == "always" or (compile == "auto" and self.device == "cuda")

    def _place(self, x: Any) -> Any:
        if isinstance(x, np.ndarray | np.generic):
            return self.array(np.asarray(x))
        if isinstance(x, Mapping):
            return {k: self._place(v) for k, v in x.items()}
        if isinstance(x, list | tuple):
            return type(x)(self._place(v) for v in x)
        return x

    def device_name(self) -> str:
        if self.device == "cuda":
            return torch.cuda.get_device_name(self._device)
        return "Apple GPU (MPS)" if self.device == "mps" else ""

    def memory(self) -> Memory:
        if self.device == "cuda":
            total = torch.cuda.get_device_properties(self._device).total_memory
            return Memory(torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated(), total)
        if self.device == "mps":
            return Memory(
                torch.mps.current_allocated_memory(),
                torch.mps.driver_allocated_memory(),
                torch.mps.recommended_max_memory(),
            )
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return Memory(peak, peak, physical_memory() or 0)

    def device_facts(self) -> dict[str, str | int]:
        if self.device == "cuda":
            return {"chip": torch.cuda.get_device_name(self._device)}
        return {}

    def out_of_memory(self, error: BaseException) -> bool:
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            return True
        # the CPU's allocator and MPS raise a plain RuntimeError
        texts = ("can't allocate memory", "not enough memory", "out of memory")
        return isinstance(error, RuntimeError) and any(text in str(error) for text in texts)

    def clear_cache(self) -> None:
        # CUDA's own allocator joins blocks of all sizes: emptying it costs more than it gives
        if self.device == "mps":
            torch.mps.empty_cache()

    def free_memory(self) -> None:
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()
        elif self.device == "mps":
            torch.mps.empty_cache()

    def sync(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
        elif self.device == "mps":
            torch.mps.synchronize()

    def versions(self) -> dict[str, str]:
        return {"torch": torch.__version__, "threads": str(torch.get_num_threads())}


def _owned(params: dict[str, Tensor], take: bool) -> dict[str, Tensor]:
    """The parameters as tensors that are changed in place: with `take` themselves, but for those
    that share their memory with another or are a part of a larger one."""
    own: dict[str, Tensor] = {}
    held: set[int] = set()
    for name in list(params):
        p = params.pop(name).detach()
        storage = p.untyped_storage()
        if not take or storage.data_ptr() in held or storage.nbytes() != p.nbytes:
            p = p.clone()
        held.add(p.untyped_storage().data_ptr())
        own[name] = p.requires_grad_()
    return own


class TorchTrainer:
    def __init__(
        self,
        backend: TorchBackend,
        loss: Loss,
        trainable: dict[str, Tensor],
        frozen: dict[str, Tensor],
        optim: OptimSettings,
        compiled: bool,
    ) -> None:
        self.backend, self.trainable, self.frozen = backend, trainable, frozen
        self.group = backend.group
        self._share_start()
        self.optimizer: Optimizer | ShardedOptimizer
        if optim.shard and self.group.several:
            self.optimizer = ShardedOptimizer(self.trainable, optim, backend.ops, self.group)
        else:
            self.optimizer = Optimizer(self.trainable, optim, backend.ops)
        self._totals: dict[str, list[Tensor]] = {}

        def whole(arrays: Mapping[str, Tensor]) -> Any:
            return loss(backend.ops, {**self.trainable, **self.frozen}, arrays)  # type: ignore[arg-type]

        self._loss = Compiled(whole) if compiled else whole

    @torch.no_grad()
    def _share_start(self) -> None:
        if self.group.several:
            send_into(self.trainable, self.group, 0)

    def gradient(self, batches: Sequence[Batch]) -> None:
        try:
            for batch in batches:
                value, metrics = self._loss(self.backend._place(batch))
                value.backward()
                self._fill_gradients()
                for name, (total, count) in metrics.items():
                    pair = torch.stack((total.detach().float(), count.detach().float()))
                    self._totals.setdefault(name, []).append(pair)
            self.group.agree()
        except BaseException:
            self._forget_gradient()
            raise

    def _fill_gradients(self) -> None:
        """Gives those of tables of which only rows were read (`TorchOps.embed`) all their rows."""
        for p in self.trainable.values():
            if p.grad is not None and p.grad.is_sparse:
                p.grad = p.grad.to_dense()

    def _forget_gradient(self) -> None:
        self._totals = {}
        for p in self.trainable.values():
            p.grad = None

    def step(self, batches: Sequence[Batch], lr: float) -> dict[str, float]:
        self.gradient(batches)
        return self.update(lr)

    def _sum_gradients(self) -> None:
        """Over the processes, of which each has some of the step's micro-batches."""
        if not self.group.several or isinstance(self.optimizer, ShardedOptimizer):
            return
        grads = {
            n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in self.trainable.items()
        }
        for p in self.trainable.values():
            p.grad = None  # each is freed as its sum takes its place
        self.group.sum(grads)  # type: ignore[arg-type]
        for n, p in self.trainable.items():
            p.grad = grads[n]

    def update(self, lr: float) -> dict[str, float]:
        self._sum_gradients()
        totals = self._totals
        norm, finite = self.optimizer.update(lr)
        self._forget_gradient()
        names = list(totals)
        sums = [torch.stack(totals[n]).sum(0) for n in names]
        *flat, size = torch.cat([*sums, self._size()[None]]).tolist()
        own = {n: pair for n, *pair in zip(names, flat[0::2], flat[1::2], strict=True)}
        pairs = self.group.sum_figures(own)
        out = {n: total / count if count else float("nan") for n, (total, count) in pairs.items()}
        # finite weights can be so large that their norm is not
        ruined = finite and not size < float("inf") and bool(self.not_finite())
        return {
            **out,
            "grad_norm": norm,
            "skipped": 0.0 if finite else 1.0,
            "ruined": float(ruined),
        }

    @torch.no_grad()
    def _size(self) -> Tensor:
        """The global norm of the parameters: not finite where one of them is not."""
        return torch.linalg.vector_norm(
            torch.stack(torch._foreach_norm(list(self.trainable.values())))
        ).float()

    @torch.no_grad()
    def not_finite(self) -> list[str]:
        if float(self._size()) < float("inf"):
            return []
        return [n for n, p in self.trainable.items() if not bool(torch.isfinite(p).all())]

    def params(self) -> dict[str, Tensor]:
        return {**{n: p.detach() for n, p in self.trainable.items()}, **self.frozen}

    def save_state(self, file: Path | None) -> None:
        if isinstance(self.optimizer, ShardedOptimizer):
            self.optimizer.save(file)
        elif file is not None:
            self.backend.save(file, self.optimizer.state(), {"steps": str(self.optimizer.steps)})

    def load_state(self, file: Path) -> None:
        if isinstance(self.optimizer, ShardedOptimizer):
            self.optimizer.load(file)
            return
        steps, state = 0, {}
        if self.group.leader:
            with safetensors.safe_open(file, "pt") as opened:
                steps = int(opened.metadata()["steps"])
            state = self.backend.load(file)
        steps = self.group.tell(steps)
        if self.group.several:
            for n, like in self.optimizer.state().items():
                held = {n: state.get(n, like)}
                self.group.send(held)  # type: ignore[arg-type]
                state[n] = held[n]
        self.optimizer.restore(state, steps)

    def traces(self) -> int:
        if isinstance(self._loss, Compiled):
            return self._loss.traces
        return 0
