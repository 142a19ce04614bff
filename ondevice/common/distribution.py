"""Our distribution by its name, and how to add an extra's packages to the interpreter in use.

The name `ondevice` on the public package index is somebody else's program, so that no hint may name
a package of ours there: hints name the third-party packages themselves, or `scripts/setup` where
this is a checkout in its own .venv.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# what is installed; the import name and the command are `ondevice`
DISTRIBUTION = "ondevice-trainer"

_MLX = "mlx[cpu]" if sys.platform == "linux" else "mlx"

# The packages of each extra of pyproject.toml on this system (a test compares them), without their
# versions: a hint is for packages that are missing, and the newest is right.
EXTRAS: Mapping[str, tuple[str, ...]] = {
    "mlx": (_MLX, "mlx-lm"),
    "mlx-cuda": ("mlx[cuda13]", "mlx-lm") if sys.platform == "linux" else ("mlx-lm",),
    "torch": ("torch",),
    "data": ("datasets", "pyarrow"),
    "transformers": ("transformers",),
    "rewards": ("math-verify", "reasoning-gym", "jsonschema"),
    "export": ("gguf",),
    "tensorboard": ("tensorboard",),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
    "documents": (
        "pypdf",
        "python-docx",
        "lxml",
        "charset-normalizer",
        "py3langid",
        "datasketch",
    ),
}


def own_version() -> str:
    """Our version, "unknown" where the source is on the path but not installed."""
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "unknown"


def _has_pip() -> bool:
    """Whether this interpreter has pip.

    Not by importlib.util.find_spec: setuptools watches for that name, and then takes the process
    for pip's own. torch's compiler, which imports setuptools, would fail from there on.
    """
    return PathFinder.find_spec("pip") is not None


def install_hint(extra: str) -> str:
    """The command line that adds an extra to the interpreter in use, quoted for a shell.

    `scripts/setup EXTRA` in a checkout that runs in its own .venv, else pip of this interpreter,
    else uv. Raises KeyError for an extra that EXTRAS does not have.
    """
    packages = EXTRAS[extra]
    has_pip = _has_pip()
    checkout = Path(__file__).resolve().parents[2]
    setup = checkout / "scripts" / "setup"
    # Where the environment has no pip, scripts/setup would make it anew.
    if has_pip and setup.is_file() and Path(sys.prefix).resolve() == checkout / ".venv":
        return shlex.join(["scripts/setup" if Path.cwd() == checkout else str(setup), extra])
    python = sys.executable or "python3"
    if has_pip:
        installer = [python, "-m", "pip", "install"]
    else:
        installer = ["uv", "pip", "install", "--python", python]
    return shlex.join([*installer, *packages])
