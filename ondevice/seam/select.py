"""The seam: what the shared code may ask of an array library, and the one place where a backend is
chosen.

`Ops` is closed by rule: an operation enters when it is one call in both libraries, has two users or
is a fused kernel, and comes with a parity test. Shapes: B batch, T tokens, D hidden, H heads, V
vocabulary.
"""

from __future__ import annotations

import atexit
import importlib
import importlib.util
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir

from ondevice.common import atomic
from ondevice.common.distribution import install_hint
from ondevice.common.errors import UserError
from ondevice.common.launcher import Launched, launched
from ondevice.seam.costs import Costs
from ondevice.seam.group import ALONE, Engine, Group, NotJoined
from ondevice.seam.protocols import Backend

_joined = ALONE
_engine: Engine | None = None
_MODULES = {"mlx": ("ondevice_mlx", "mlx"), "torch": ("ondevice_torch", "torch")}


def available() -> dict[str, str | None]:
    """Backend → version of its library, None where it is not installed. Imports neither."""
    from importlib.metadata import PackageNotFoundError, version  # 35 ms

    found: dict[str, str | None] = {}
    for name, (_, library) in _MODULES.items():
        try:
            if importlib.util.find_spec(library):
                found[name] = version(library)
            else:
                found[name] = None
        except PackageNotFoundError:
            found[name] = None
    return found


def choose(name: str = "auto") -> str:
    """The backend that `name` means on this machine: MLX on Apple Silicon, else torch. Raises
    UserError if absent.
    """
    have = {n for n, version in available().items() if version}
    if name == "auto" and (by := launched()) is not None:
        name = by.engine
    if name == "auto":
        apple = platform.system() == "Darwin" and platform.machine() == "arm64"
        if apple:
            order = ("mlx", "torch")
        else:
            order = ("torch", "mlx")
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
    if _joined.several and _joined.name != backend.name:
        raise UserError(
            f"the processes are {_joined.name}'s",
            where=f"backend {backend.name}",
            hint=f"give --backend {_joined.name} for all stages, or start one process",
        )
    backend.group = _joined
    return backend


@contextmanager
def joined(backend: str, device: str) -> Iterator[Group]:
    """The group of the processes that a launcher has started; within, every backend that is loaded
    has it. One process is `ALONE`. Raises UserError where they cannot meet."""
    global _joined
    by = launched()
    if by is None or _joined.several:
        yield _joined
        return
    if choose(backend) != by.engine:
        raise NotJoined(
            f"{by.launcher} starts processes of {by.engine}",
            where=f"backend {backend}",
            hint=f"give --backend {by.engine}, or start one process",
        )
    engine = _engine_of(by, device)
    _joined = Group(engine) if engine.size > 1 else ALONE
    try:
        yield _joined
    except BaseException as error:
        _joined.part(error)
        raise
    else:
        _joined.part(None)
    finally:
        if _joined.lost:
            atexit.unregister(engine.close)  # it would wait for those that are gone
            atomic.sweep(Path(gettempdir()))  # what they have left on this machine
        _joined = ALONE


def _engine_of(by: Launched, device: str) -> Engine:
    """The connections to the other processes: made once, for all that this process does. Raises
    NotJoined."""
    global _engine
    if _engine is not None:
        return _engine
    module = importlib.import_module(f"{_MODULES[by.engine][0]}.processes")
    try:
        found: Engine = module.join(device)
    except (RuntimeError, ValueError) as error:
        what = str(error).strip().partition("\n")[0]
        raise NotJoined(
            f"process {by.rank} cannot join the others ({what})", where=by.launcher
        ) from error
    atexit.register(found.close)
    _engine = found
    return found


def check_shard(shard: str, backend: str, shards: bool) -> None:
    """Raises UserError where processes are to share the optimizer's state out and cannot."""
    if shard != "none" and not shards:
        raise UserError(
            f"{backend} keeps the optimizer's state whole in each process",
            where="shard",
            hint="leave it out, or give --backend torch",
        )


def costs_of(name: str = "auto") -> Costs:
    """What the backend takes; its array library is not imported. Raises UserError as `choose`."""
    costs: Costs = importlib.import_module(f"{_MODULES[choose(name)][0]}.costs").COSTS
    return costs
