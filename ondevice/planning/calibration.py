"""This machine's speeds: measured once, kept in the user's cache, checked before they are believed.

A file for each machine, backend, device, compute type, version and power state: what was measured on
the mains says nothing of a laptop on its battery. `measure.py` measures, in a process of its own.
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ondevice.common import processes
from ondevice.common.distribution import own_version
from ondevice.common.errors import UserError
from ondevice.common.file_lock import lock
from ondevice.common.files import digest, write_file
from ondevice.common.json_files import load_json, parse_json
from ondevice.common.physical_memory import cores, physical_memory
from ondevice.common.power import power_state
from ondevice.common.processor import processor_name
from ondevice.common.user_cache import folder
from ondevice.seam.select import available, choose

FORMAT = 5
PATIENCE_S = 60.0  # for another process that measures
_LEAST, _MOST = 1e-12, 1e18  # within which any speed and time here lies
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Terms:
    """Of a piece of work: `products`, seconds of the matrix products alone, `moved` bytes between
    them, `blocks` whose operations are started."""

    products: float
    moved: float
    blocks: float


@dataclass(frozen=True)
class Rates:
    """What each of the terms takes in reality: `products` times theirs, seconds for a byte that is
    moved, seconds for a block."""

    products: float
    moved: float
    block: float

    def of(self, terms: Terms) -> float:
        """Seconds."""
        between = self.moved * terms.moved + self.block * terms.blocks
        return self.products * terms.products + between


@dataclass(frozen=True)
class Speeds:
    """`products`: (width, floating-point operations a second) of products of square matrices of
    some hundred rows; `bytes_per_second` that are read and written number by number; `tokenizer`:
    bytes of text that are encoded a second. `learning`, `reading`, `writing`: what a model's steps
    take."""

    products: tuple[tuple[float, float], ...]
    bytes_per_second: float
    tokenizer: float
    learning: Rates
    reading: Rates
    writing: Rates

    def product(self, width: float) -> float:
        """Operations a second at this width; between two that were measured, on the line through
        them in logarithms."""
        points = self.products
        if width <= points[0][0]:
            return points[0][1]
        for (low, slow), (high, fast) in zip(points, points[1:], strict=False):
            if width <= high:
                part = math.log(width / low) / math.log(high / low)
                return float(slow * (fast / slow) ** part)
        return points[-1][1]


@dataclass(frozen=True)
class Calibration:
    """What was measured, and `key`: on what. `device`, `dtype` are what auto became there;
    `device_memory`: bytes that the device has, `process`: of a process with the library loaded."""

    key: Mapping[str, str]
    device: str
    dtype: str
    device_memory: int
    process: int
    speeds: Speeds


def key_of(backend: str, device: str, dtype: str) -> dict[str, str]:
    """All that the speeds follow from. Raises UserError for a backend that is not here."""
    name = choose(backend)
    return {
        "processor": processor_name(),
        "cores": str(cores()),
        "memory": str(physical_memory()),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": " ".join(f"{name}={os.environ.get(name, '')}" for name in _THREADS),
        "preloaded": os.environ.get("LD_PRELOAD", ""),
        "backend": name,
        "library": str(available()[name]),
        "device": device,
        "dtype": dtype,
        "ondevice": own_version(),
        "power": power_state(),
    }


def place_of(key: Mapping[str, str]) -> Path:
    return folder() / f"calibration-{digest(dict(key))}.json"


def load(backend: str, device: str, dtype: str, tell: Tell | None = None) -> Calibration | None:
    """What was measured here before; None where nothing was. A file that cannot be believed is told
    of, and counts as none."""
    key = key_of(backend, device, dtype)
    file = place_of(key)
    try:
        return parse(load_json(file), key)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, LookupError) as error:
        if tell is not None:
            tell(f"{file} is not used, for it {error}: ondevice plan measures this machine anew")
        return None


def parse(raw: Any, key: Mapping[str, str]) -> Calibration:
    """Raises ValueError, saying what is wrong, for anything but a whole calibration of `key`."""
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise ValueError("is not a calibration of this version")
    if raw.get("key") != dict(key):
        raise ValueError("is of another machine")
    given = raw["speeds"]
    points = [(_figure(width), _figure(speed)) for width, speed in given["products"]]
    if not points or points != sorted(points) or len({width for width, _ in points}) < len(points):
        raise ValueError("has no speeds of products in their order")
    return Calibration(
        dict(key),
        str(raw["device"]),
        str(raw["dtype"]),
        int(_figure(raw["device_memory"], least=0.0)),
        int(_figure(raw["process"])),
        Speeds(
            tuple(points),
            _figure(given["bytes_per_second"]),
            _figure(given["tokenizer"]),
            _rates(given["learning"]),
            _rates(given["reading"]),
            _rates(given["writing"]),
        ),
    )


def _rates(given: Any) -> Rates:
    found = {field.name: _figure(given[field.name], least=0.0) for field in fields(Rates)}
    if not any(found.values()):
        raise ValueError("has rates that are all 0")
    return Rates(**found)


def _figure(value: Any, least: float = _LEAST) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"has {value!r} for a number")
    if not least <= value < _MOST:
        raise ValueError(f"has {value!r}, which no machine has")
    return float(value)


def save(found: Calibration) -> Path:
    """Whole or not there, whoever else writes it. Raises UserError on a full disk."""
    file = place_of(found.key)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_file(file, json.dumps({"format": FORMAT, **asdict(found)}, indent=1) + "\n")
    return file


def calibrated(backend: str, device: str, dtype: str, tell: Tell) -> Calibration:
    """What was measured before, else what is measured now, in a process of its own: some ten
    seconds, once. Of several processes that ask at once one measures. Raises UserError where it
    cannot be measured."""
    found = load(backend, device, dtype, tell)
    if found is not None:
        return found
    key = key_of(backend, device, dtype)
    folder().mkdir(parents=True, exist_ok=True)
    place = place_of(key).with_suffix(".lock")
    descriptor = os.open(place, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if not lock(descriptor, patience_s=PATIENCE_S):
            raise UserError(
                "another process measures this machine and does not end", where=str(place)
            )
        found = load(backend, device, dtype)  # another process may have measured meanwhile
        if found is not None:
            return found
        tell(f"measuring how fast {key['backend']} is on this machine, once: some ten seconds")
        found = _measured(key, backend, device, dtype)
        save(found)
        return found
    finally:
        os.close(descriptor)


def _measured(key: Mapping[str, str], backend: str, device: str, dtype: str) -> Calibration:
    words = processes.command("ondevice.planning.measure", backend, device, dtype)
    process = processes.start(
        words, processes.Access.OWN, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    said, complaint = process.communicate()
    try:
        return parse({**parse_json(said), "format": FORMAT, "key": dict(key)}, key)
    except (ValueError, TypeError, LookupError) as error:
        last = complaint.decode(errors="replace").strip().splitlines()[-1:]
        raise UserError(
            f"this machine could not be measured: {' '.join(last) or error}",
            where="calibration",
            hint="ondevice doctor says what is wrong with a backend; --no-time plans without",
        ) from error
