"""The seam: what the shared code may ask of an array library, and the one place where a backend is chosen.

`Ops` is closed by rule: an operation enters when it is one call in both libraries, has two users or is a fused
kernel, and comes with a parity test. Shapes: B batch, T tokens, D hidden, H heads, V vocabulary.
"""

from __future__ import annotations

import importlib
import importlib.util
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from ondevice.common.errors import UserError

if TYPE_CHECKING:
    from ondevice.models.library import Library

HostArray = NDArray[Any]
Batch = Mapping[str, HostArray]


class Array(Protocol):
    """What torch's and MLX's arrays share; whatever is not here goes through `Ops`."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> Any: ...
    @property
    def ndim(self) -> int: ...
    def __add__(self, other: Any, /) -> Array: ...
    def __radd__(self, other: Any, /) -> Array: ...
    def __sub__(self, other: Any, /) -> Array: ...
    def __rsub__(self, other: Any, /) -> Array: ...
    def __mul__(self, other: Any, /) -> Array: ...
    def __rmul__(self, other: Any, /) -> Array: ...
    def __truediv__(self, other: Any, /) -> Array: ...
    def __rtruediv__(self, other: Any, /) -> Array: ...
    def __matmul__(self, other: Any, /) -> Array: ...
    def __neg__(self) -> Array: ...
    def __lt__(self, other: Any, /) -> Array: ...
    def __le__(self, other: Any, /) -> Array: ...
    def __gt__(self, other: Any, /) -> Array: ...
    def __ge__(self, other: Any, /) -> Array: ...
    def __getitem__(self, key: Any, /) -> Array: ...
    def reshape(self, *shape: int) -> Array: ...
    def swapaxes(self, a: int, b: int, /) -> Array: ...


Params = dict[str, Array]
Metrics = dict[str, tuple[Array, Array]]  # name → (sum, count): averaged only after all micro-batches are added
Loss = Callable[["Ops", Params, Mapping[str, Array]], tuple[Array, Metrics]]


class Ops(Protocol):
    """Pure operations on arrays; none draws random numbers. Compute type: the backend's `dtype`."""

    # weights: the one door (casts to the compute type, so that no second copy of the model exists; reads quantised
    # weights; `linear` adds what the adapters beside a weight say)
    def weight(self, params: Params, name: str) -> Array: ...
    def linear(self, params: Params, name: str, x: Array) -> Array: ...
    def embed(self, params: Params, name: str, ids: Array, width: int = 0) -> Array:
        """`width`, how wide a row is, is asked for where the table may be quantised: its own shape does not say."""
        ...

    def rms_norm(self, params: Params, name: str, x: Array, eps: float, shift: float = 0.0) -> Array: ...
    def layer_norm(self, params: Params, name: str, x: Array, eps: float) -> Array: ...
    # blocks
    def rope(self, x: Array, cos: Array, sin: Array) -> Array: ...
    def attention(self, q: Array, k: Array, v: Array, *, scale: float, causal: bool = True, window: int = 0,
                  segments: Array | None = None, lengths: Array | None = None,
                  bias: Array | None = None) -> Array:
        """`bias` (1 or B, H, t_q, t_k) is added to the scores; it has q's type and a gradient."""
        ...

    def cache_write(self, cache: Array, new: Array, at: Array) -> Array: ...
    def silu(self, x: Array) -> Array: ...
    def gelu(self, x: Array, approximate: bool = False) -> Array: ...
    # numbers
    def softmax(self, x: Array, axis: int) -> Array: ...
    def logsumexp(self, x: Array, axis: int) -> Array: ...
    def log_likelihood(self, x: Array, targets: Array) -> Array:
        """(N,) log-probabilities of `targets` (N,) under logits `x` (N, V)."""
        ...

    def exp(self, x: Array) -> Array: ...
    def log(self, x: Array) -> Array: ...
    def tanh(self, x: Array) -> Array: ...
    def sqrt(self, x: Array) -> Array: ...
    def sum(self, x: Array, axis: int | None = None, keepdims: bool = False) -> Array: ...
    def max(self, x: Array, axis: int, keepdims: bool = False) -> Array: ...
    def argmax(self, x: Array, axis: int) -> Array: ...
    def cumsum(self, x: Array, axis: int) -> Array: ...
    def sort(self, x: Array, axis: int) -> Array: ...
    def maximum(self, a: Any, b: Any) -> Array: ...
    def minimum(self, a: Any, b: Any) -> Array: ...
    def where(self, condition: Array, a: Any, b: Any) -> Array: ...
    def isfinite(self, x: Array) -> Array: ...
    # shapes
    def take(self, x: Array, index: Array) -> Array: ...
    def concat(self, xs: Sequence[Array], axis: int) -> Array: ...
    def stack(self, xs: Sequence[Array]) -> Array: ...
    def zeros(self, shape: tuple[int, ...], dtype: str) -> Array: ...
    def cast(self, x: Array, dtype: str) -> Array: ...
    def constant(self, x: HostArray) -> Array: ...
    # autograd
    def stop_gradient(self, x: Array) -> Array: ...
    def checkpoint(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """`fn(block_params, x, …)`, computed again in the backward pass; what is differentiated is an argument."""
    def in_chunks(self, fn: Callable[..., tuple[Array, ...]], rows: int, *,
                  keep: bool = False) -> Callable[..., tuple[Array, ...]]:
        """`fn(params, x, *others)` over `rows` rows of `x` and `others` at a time, one chunk after the other in both
        passes, each computed again in the backward one unless there is room to `keep` what it needs. `fn` returns
        arrays with a row for a row; gradients flow to `params` and `x` only."""
        ...


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

    def decay(self, name: str, dimensions: int) -> float:
        """AdamW's decay of a tensor: matrices shrink; gains and biases of any shape (BART's is (1, V)) do not."""
        return self.weight_decay if dimensions >= 2 and not name.endswith("bias") else 0.0


@dataclass(frozen=True)
class Memory:
    """Bytes held by this process or on its device, now and at most."""

    active: int
    peak: int


class Trainer(Protocol):
    """Owns parameters and optimizer state on the device."""

    def step(self, batches: Sequence[Batch], lr: float) -> dict[str, float]:
        """Adds the micro-batches' gradients, clips, updates; one synchronisation.

        Returns each metric's sum divided by its count, and `grad_norm`; where the gradient is not finite nothing
        changes and `skipped` is 1; where the update has made a parameter not finite `ruined` is 1.
        """
        ...

    def not_finite(self) -> list[str]:
        """The trained parameters that hold a number that is not finite."""
        ...

    def params(self) -> Params: ...
    def save_state(self, file: Path) -> None: ...
    def load_state(self, file: Path) -> None: ...
    def traces(self) -> int:
        """How often the step was traced by a compiler, 0 where it runs eagerly."""
        ...


class Backend(Protocol):
    """One array library on one device with one compute type."""

    name: str
    device: str
    dtype: str
    ops: Ops

    def load(self, file: Path, dtype: str | None = "float32") -> Params:
        """Tensors of one safetensors file; `dtype` None keeps the file's."""
        ...

    def save(self, file: Path, params: Params, metadata: dict[str, str], dtype: str | None = None) -> None: ...
    def open_library(self, folder: Path, raw: dict[str, Any], dtype: str) -> tuple[Library, Params]:
        """A model of another architecture than ours, by the library that knows it, and its weights. `raw` is its
        config.json. Raises UserError where the library cannot load it."""
        ...

    def array(self, x: HostArray) -> Array: ...
    def numpy(self, x: Array) -> HostArray:
        """On the host; bfloat16 comes as float32, since numpy has none."""
        ...

    def trainer(self, loss: Loss, trainable: Params, frozen: Params, optim: OptimSettings, *,
                compile: str = "auto") -> Trainer: ...
    def evaluate(self, fn: Callable[..., Any], *, compile: str = "auto") -> Callable[..., Any]:
        """`fn` without gradients, compiled where that gains; numpy arguments are put on the device."""
        ...

    def memory(self) -> Memory: ...
    def sync(self) -> None: ...
    def versions(self) -> dict[str, str]: ...


_MODULES = {"mlx": ("ondevice_mlx", "mlx"), "torch": ("ondevice_torch", "torch")}


def available() -> dict[str, str | None]:
    """Backend → version of its library, None where it is not installed. Imports neither."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str | None] = {}
    for name, (_, library) in _MODULES.items():
        try:
            found[name] = version(library) if importlib.util.find_spec(library) else None
        except PackageNotFoundError:
            found[name] = None
    return found


def choose(name: str = "auto") -> str:
    """The backend that `name` means on this machine: MLX on Apple Silicon, else torch. Raises UserError if absent."""
    have = {n for n, version in available().items() if version}
    if name == "auto":
        apple = platform.system() == "Darwin" and platform.machine() == "arm64"
        order = ("mlx", "torch") if apple else ("torch", "mlx")
        name = next((n for n in order if n in have), order[0])
    if name not in _MODULES:
        raise UserError(f"unknown backend {name!r}", where="backend", hint="known: auto, mlx, torch")
    if name not in have:
        from ondevice.common.distribution import install_hint

        raise UserError(f"{name} is not installed", where="backend", hint=install_hint(name))
    return name


def load_backend(name: str = "auto", device: str = "auto", dtype: str = "auto") -> Backend:
    """The one dynamic import. `device`: auto, cpu, gpu; `dtype`: auto, float32, bfloat16."""
    module = importlib.import_module(f"{_MODULES[choose(name)][0]}.backend")
    backend: Backend = module.make(device, dtype)
    return backend
