"""The seam: what the shared code may ask of an array library, and the one place where a backend is
chosen.

`Ops` is closed by rule: an operation enters when it is one call in both libraries, has two users or
is a fused kernel, and comes with a parity test. Shapes: B batch, T tokens, D hidden, H heads, V
vocabulary.
"""

from __future__ import annotations

import importlib
import importlib.util
import platform

from ondevice.common.distribution import install_hint
from ondevice.common.errors import UserError
from ondevice.seam.costs import Costs
from ondevice.seam.protocols import Backend

_MODULES = {"mlx": ("ondevice_mlx", "mlx"), "torch": ("ondevice_torch", "torch")}


def available() -> dict[str, str | None]:
    """Backend → version of its library, None where it is not installed. Imports neither."""
    from importlib.metadata import PackageNotFoundError, version  # 35 ms

    found: dict[str, str | None] = {}
    for name, (_, library) in _MODULES.items():
        try:
            found[name] = version(library) if importlib.util.find_spec(library) else None
        except PackageNotFoundError:
            found[name] = None
    return found


def choose(name: str = "auto") -> str:
    """The backend that `name` means on this machine: MLX on Apple Silicon, else torch. Raises
    UserError if absent.
    """
    have = {n for n, version in available().items() if version}
    if name == "auto":
        apple = platform.system() == "Darwin" and platform.machine() == "arm64"
        order = ("mlx", "torch") if apple else ("torch", "mlx")
        name = next((n for n in order if n in have), order[0])
    if name not in _MODULES:
        raise UserError(
            f"unknown backend {name!r}", where="backend", hint="known: auto, mlx, torch"
        )
    if name not in have:
        raise UserError(f"{name} is not installed", where="backend", hint=install_hint(name))
    return name


def load_backend(name: str = "auto", device: str = "auto", dtype: str = "auto") -> Backend:
    """The one dynamic import. `device`: auto, cpu, gpu; `dtype`: auto, float32, bfloat16."""
    module = importlib.import_module(f"{_MODULES[choose(name)][0]}.backend")
    backend: Backend = module.make(device, dtype)
    return backend


def costs_of(name: str = "auto") -> Costs:
    """What the backend takes; its array library is not imported. Raises UserError as `choose`."""
    costs: Costs = importlib.import_module(f"{_MODULES[choose(name)][0]}.costs").COSTS
    return costs
