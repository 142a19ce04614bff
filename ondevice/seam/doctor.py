"""What this machine can do, and what `auto` would choose on it.

`doctor()` gathers, `render()` words it. Secrets are never read into the result: a token is present
or it is not.
"""

from __future__ import annotations

import ctypes.util
import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ondevice.common.distribution import install_hint, own_version
from ondevice.common.errors import UserError
from ondevice.common.physical_memory import available_memory, cores, physical_memory
from ondevice.seam.select import available, choose, load_backend

Report = dict[str, Any]

_LIBRARIES = (
    "numpy",
    "tokenizers",
    "safetensors",
    "huggingface-hub",
    "transformers",
    "mlx-lm",
    "datasets",
    "textual",
)


def doctor() -> Report:
    """Everything `ondevice doctor` says, as plain JSON values.

    Keys: ondevice, python, machine, cores, memory {total, available}, disk {folder, free}, backends
    (name → version, usable, device, dtype, gpu, error), auto {backend, why}, hints, libraries (name →
    version or None), hf_token. Sizes are bytes, None where the system does not tell. Loads every
    installed backend, which takes seconds.
    """
    backends = {name: _backend(name, found) for name, found in available().items()}
    return {
        "ondevice": own_version(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": cores(),
        "memory": {"total": physical_memory(), "available": available_memory()},
        "disk": {"folder": str(Path.cwd()), "free": shutil.disk_usage(Path.cwd()).free},
        "backends": backends,
        "auto": _auto(backends),
        "hints": _hints(backends),
        "libraries": {name: _version(name) for name in _LIBRARIES},
        "hf_token": _token_present(),
    }


def render(report: Report) -> str:
    """The report as lines for a person."""
    memory, auto = report["memory"], report["auto"]
    lines = [
        f"ondevice {report['ondevice']} · Python {report['python']} · {report['machine']}",
        "",
        f"  {'cores':<12}{report['cores']}",
        f"  {'memory':<12}{_size(memory['available'])} available of {_size(memory['total'])}",
        f"  {'disk':<12}{_size(report['disk']['free'])} free at {report['disk']['folder']}",
        "",
    ]
    for name, found in report["backends"].items():
        if found["version"] is None:
            state = f"not installed ({install_hint(name)})"
        elif found["usable"]:
            state = f"{found['version']} on {found['device']}, computes in {found['dtype']}"
        else:
            state = f"{found['version']} is installed but cannot be used: {found['error']}"
        lines.append(f"  {name:<12}{state}")
        if found.get("gpu"):
            lines.append(f"  {'':<12}{_gpu(found['gpu'])}")
    lines += ["", f"  {'auto':<12}{auto['backend'] or 'nothing'}: {auto['why']}", ""]
    known = (f"{name} {found or '–'}" for name, found in report["libraries"].items())
    lines.append(f"  {'libraries':<12}{', '.join(known)}")
    token = "present" if report["hf_token"] else "none (needed only to push, and for gated models)"
    lines.append(f"  {'Hub token':<12}{token}")
    lines += [f"\nhint: {hint}" for hint in report["hints"]]
    return "\n".join(lines)


def _backend(name: str, found: str | None) -> Report:
    state: Report = {
        "version": found,
        "usable": False,
        "device": None,
        "dtype": None,
        "gpu": {},
        "error": None,
    }
    if found is None:
        return state
    try:
        backend = load_backend(name)
    except (
        Exception
    ) as problem:  # whatever a broken installation raises is what a person came here to learn
        return {**state, "error": f"{type(problem).__name__}: {problem}".splitlines()[0]}
    return {
        **state,
        "usable": True,
        "device": backend.device,
        "dtype": backend.dtype,
        "gpu": backend.device_facts(),
    }


def _gpu(facts: Report) -> str:
    """A GPU's facts in words."""
    words = [str(facts["chip"])]
    if "working_set" in facts:
        words.append(f"{_size(facts['working_set'])} to work in")
    if facts.get("wired_limit"):
        words.append(f"at most {_size(facts['wired_limit'])} wired (iogpu.wired_limit_mb)")
    elif "wired_limit" in facts:
        words.append("what may be wired is the system's to decide (iogpu.wired_limit_mb is 0)")
    return ", ".join(words)


def _auto(backends: dict[str, Report]) -> Report:
    try:
        chosen = choose("auto")
    except UserError as problem:
        return {"backend": None, "why": str(problem)}
    apple = platform.system() == "Darwin" and platform.machine() == "arm64"
    preferred = "mlx" if apple else "torch"
    if chosen == preferred:
        why = "this is Apple Silicon" if apple else "this is not Apple Silicon"
    else:
        why = f"{preferred} is not installed"
    device = backends.get(chosen, {}).get("device") or "nothing here"
    return {"backend": chosen, "why": f"{why}, and {chosen} runs on {device}"}


def _hints(backends: dict[str, Report]) -> list[str]:
    hints = []
    mlx = backends.get("mlx")
    on_cpu = mlx is not None and mlx["usable"] and "cpu" in str(mlx["device"]).lower()
    if on_cpu and platform.system() == "Linux" and not _openblas_loaded():
        library = openblas()
        if library:
            first = ""
        else:
            first = "install OpenBLAS (on Debian: apt install libopenblas0-pthread), then "
        hints.append(
            "MLX multiplies float32 matrices many times faster on this CPU with OpenBLAS preloaded: "
            f"{first}LD_PRELOAD={library or 'libopenblas.so.0'} ondevice …"
        )
    total, free = physical_memory(), shutil.disk_usage(Path.cwd()).free
    if total is not None and total < 4 << 30:
        hints.append("under 4 GB of memory: begin with `ondevice run minute`")
    if free < 2 << 30:
        hints.append("under 2 GB of disk are free: a run keeps three checkpoints a stage")
    return hints


def openblas() -> str | None:
    """The OpenBLAS library that can be preloaded, None where there is none."""
    for folder in sorted(Path("/usr/lib").glob("*-linux-gnu/openblas-pthread")):
        if (folder / "libopenblas.so.0").exists():
            return str(folder / "libopenblas.so.0")
    return ctypes.util.find_library("openblas")


def _openblas_loaded() -> bool:
    """Whether this process holds a system's OpenBLAS (numpy's own, by another name, does nothing
    for MLX).
    """
    maps = Path("/proc/self/maps")
    return maps.is_file() and "/libopenblas" in maps.read_text()


def _token_present() -> bool:
    """Where huggingface_hub would find a token: two variables, and a file. Importing it would take
    half a second.
    """
    if os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN"):
        return True
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("HF_HOME", f"{cache}/huggingface")
    file = Path(os.path.expanduser(os.environ.get("HF_TOKEN_PATH", f"{home}/token")))
    return file.is_file() and file.stat().st_size > 0


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _size(count: int | None) -> str:
    if count is None:
        return "unknown"
    return f"{count / 2**30:.1f} GB"
