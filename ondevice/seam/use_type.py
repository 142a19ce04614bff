"""The compute type in which this machine uses a model soonest, where that has been measured.

Training has its own default. Whoever only uses a model reads all of its weights for each token: in
bfloat16 these are half the bytes, but not every CPU multiplies bfloat16 quickly. The calibration
(`planning/calibration.py`) measures both and keeps the seconds here; the file is checked before it
is believed.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path

from ondevice.common.distribution import own_version
from ondevice.common.files import digest, write_file
from ondevice.common.json_files import load_json
from ondevice.common.physical_memory import cores
from ondevice.common.processor import processor_name
from ondevice.common.user_cache import folder
from ondevice.seam.protocols import Backend
from ondevice.seam.select import available, load_backend

TYPES = ("float32", "bfloat16")
GAIN = 1.1
"""How many times faster than the default another type must be: each change of type is a change of
the last digits."""
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def load_backend_for_use(name: str = "auto", device: str = "auto", dtype: str = "auto") -> Backend:
    """`load_backend` for what trains nothing: `dtype` auto is the type that was measured to be the
    faster one here; where none was, and among several processes, the backend's own default. Raises
    UserError as `load_backend` does."""
    backend = load_backend(name, device, dtype)
    if dtype != "auto" or backend.group.several:
        return backend
    found = fastest(backend)
    if found == backend.dtype:
        return backend
    return load_backend(name, device, found)


def fastest(backend: Backend) -> str:
    """The type that was measured to be `GAIN` times faster than the backend's; else the backend's."""
    key = _key_of(backend)
    try:
        raw = load_json(_place_of(key))
        seconds = {one: float(raw["seconds"][one]) for one in TYPES}
        if raw["key"] != key or not all(0 < taken < 1e6 for taken in seconds.values()):
            return backend.dtype
    except (OSError, ValueError, TypeError, LookupError):
        return backend.dtype  # nothing was measured, or nothing that can be believed
    best = min(seconds, key=seconds.__getitem__)
    if seconds[best] * GAIN <= seconds[backend.dtype]:
        return best
    return backend.dtype


def keep(backend: Backend, seconds: Mapping[str, float]) -> Path:
    """Keeps what the same work took in each of the types. Raises UserError on a full disk."""
    key = _key_of(backend)
    file = _place_of(key)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_file(file, json.dumps({"key": key, "seconds": dict(seconds)}, indent=1) + "\n")
    return file


def _key_of(backend: Backend) -> dict[str, str]:
    """All that the seconds follow from."""
    return {
        "processor": processor_name(),
        "cores": str(cores()),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": " ".join(f"{name}={os.environ.get(name, '')}" for name in _THREADS),
        "preloaded": os.environ.get("LD_PRELOAD", ""),
        "backend": backend.name,
        "library": str(available()[backend.name]),
        "device": backend.device,
        "ondevice": own_version(),
    }


def _place_of(key: Mapping[str, str]) -> Path:
    return folder() / f"use-type-{digest(dict(key))}.json"
