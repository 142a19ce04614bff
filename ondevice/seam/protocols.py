"""What a backend and its trainer are: the protocols that each array library implements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ondevice.seam.external_library import Library
from ondevice.seam.group import Group
from ondevice.seam.ops import Array, Batch, HostArray, Loss, Ops, Params


@dataclass(frozen=True)
class OptimSettings:
    """Everything an optimizer needs but the rate: see `TrainingConfig` for the meanings."""

    optimizer: str = "adamw"
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    muon_ratio: float = 1.0  # Muon's rate as a multiple of the rate that `step` is given
    muon_names: frozenset[str] = frozenset()  # the tensors Muon updates; AdamW has the rest
    shard: bool = False  # whether each of several processes keeps the state of some tensors

    def decay(self, name: str, dimensions: int) -> float:
        """AdamW's decay of a tensor: matrices shrink; gains and biases of any shape (BART's is (1,
        V)) do not.
        """
        if dimensions >= 2 and not name.endswith("bias"):
            return self.weight_decay
        return 0.0


@dataclass(frozen=True)
class Memory:
    """Bytes held by this process or on its device, now and at most; `total` are there in
    all, 0 where that is not known.
    """

    active: int
    peak: int
    total: int


class Trainer(Protocol):
    """Owns parameters and optimizer state on the device. Where several processes train together,
    each has its own and all are asked for the same, in one order: they begin with the first one's
    parameters, and an update is by the sum of their gradients.
    """

    def gradient(self, batches: Sequence[Batch]) -> None:
        """Adds the micro-batches' gradients. Parameters and state do not change, and where it
        raises, nothing is kept of what was added: it can be asked again.
        """
        ...

    def update(self, lr: float) -> dict[str, float]:
        """Clips the gradient, 0 where there was no micro-batch, and updates with it. Where it
        raises, parameters and state may have changed in part.

        Returns each metric's sum divided by its count, and `grad_norm`; where the gradient is not
        finite nothing changes and `skipped` is 1; where the update has made a parameter not finite
        `ruined` is 1.
        """
        ...

    def step(self, batches: Sequence[Batch], lr: float) -> dict[str, float]:
        """`gradient`, then `update`."""
        ...

    def not_finite(self) -> list[str]:
        """The trained parameters that hold a number that is not finite."""
        ...

    def params(self) -> Params: ...
    def save_state(self, file: Path | None) -> None:
        """The optimizer's state into a file; None: of several processes another one writes it."""
        ...

    def load_state(self, file: Path) -> None:
        """Of several processes the first one reads the file, and the others have it from there."""
        ...

    def traces(self) -> int:
        """How often the step was traced by a compiler, 0 where it runs eagerly."""
        ...


class Backend(Protocol):
    """One array library on one device with one compute type."""

    name: str
    device: str
    dtype: str
    ops: Ops
    group: Group
    """The processes that work together, each with a backend of its own."""
    shards: bool
    """Whether each of several processes can keep a part of the optimizer's state."""
    activation_factor: float
    """Bytes that the backward pass keeps for a token, as a multiple of those that go into and come
    out of the blocks' matrices."""

    def load(self, file: Path, dtype: str | None = "float32") -> Params:
        """Tensors of one safetensors file; `dtype` None keeps the file's."""
        ...

    def save(
        self, file: Path, params: Params, metadata: dict[str, str], dtype: str | None = None
    ) -> None: ...
    def open_library(self, folder: Path, raw: dict[str, Any], dtype: str) -> tuple[Library, Params]:
        """A model of another architecture than ours, by the library that knows it, and its weights.
        `raw` is its config.json. Raises UserError where the library cannot load it."""
        ...

    def array(self, x: HostArray) -> Array: ...
    def numpy(self, x: Array) -> HostArray:
        """On the host; bfloat16 comes as float32, since numpy has none."""
        ...

    def start(self, x: Array) -> None:
        """Lets the device begin with what `x` asks for, where it else would wait until it is read."""
        ...

    def read_later(self, x: Array) -> Callable[[], HostArray]:
        """Begins to copy `x` to the host; what is returned waits for that, but not for what the
        device is asked for meanwhile."""
        ...

    def trainer(
        self,
        loss: Loss,
        trainable: Params,
        frozen: Params,
        optim: OptimSettings,
        *,
        compile: str = "auto",
        take: bool = False,
    ) -> Trainer:
        """`take`: nobody else uses the tensors of `trainable` afterwards, so that they need not be
        copied."""
        ...

    def compiles(self, compile: str) -> bool:
        """Whether a compiler traces what is made with this setting of `compile`: for it, each new
        shape is a new trace."""
        ...

    def inference_fn(self, fn: Callable[..., Any], *, compile: str = "auto") -> Callable[..., Any]:
        """`fn` without gradients, compiled where that gains; numpy arguments are put on the device."""
        ...

    def memory(self) -> Memory: ...
    def device_name(self) -> str:
        """What the GPU is called; empty on a CPU."""
        ...

    def device_facts(self) -> dict[str, str | int]:
        """What `doctor` tells of a GPU: its `chip`, and in bytes the `working_set` that it is to be
        given at most and the `wired_limit` of the system; without those that are not known."""
        ...

    def out_of_memory(self, error: BaseException) -> bool:
        """Whether the error says that the device or this process has no memory left."""
        ...

    def clear_cache(self) -> None:
        """Gives back freed memory that is kept for later, between work of different shapes."""
        ...

    def free_memory(self) -> None:
        """Gives back what is cached and not in use."""
        ...

    def sync(self) -> None: ...
    def versions(self) -> dict[str, str]: ...
