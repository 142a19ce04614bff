"""The one place that starts processes: their command line, and what they see of this one's
environment.

Every Python of ours runs with `-P`, so that a `yaml.py` or `huggingface_hub.py` in the working
folder is never imported. The environment is a list of what is passed on, never a list of what is
not:

    HUB      pulls or pushes: everything below, and the Hub's token
    OWN      trains, holds a model, or looks at the machine: everything below, and no token
    REWARD   runs a person's reward function: only what Python needs to start

A test walks the source for a process that is started anywhere else.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from ondevice.common import launch, launcher

TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_TOKEN", "HUGGINGFACEHUB_API_TOKEN")
"""Variables that hold a token of the Hub."""
KEEP, REWARD_KEEP = "ONDEVICE_KEEP_ENV", "ONDEVICE_REWARD_ENV"
"""Variables by which a person names more that is passed on (A,B,C): to our processes, and to reward
code.
"""

_START = re.compile(
    "PATH|HOME|TMPDIR|TEMP|TMP|TZ|LANG|LANGUAGE|LC_.+|LD_LIBRARY_PATH|DYLD_.+|"
    "PYTHONHOME|PYTHONUSERBASE|PYTHONNOUSERSITE|PYTHONUTF8|PYTHONIOENCODING|PYTHONDONTWRITEBYTECODE"
)
"""What a Python needs to start and to find what is installed."""
_USUAL = re.compile(
    # a person's session and terminal
    "USER|LOGNAME|SHELL|PWD|TERM|TERM_.+|COLORTERM|COLUMNS|LINES|NO_COLOR|FORCE_COLOR|CLICOLOR|CLICOLOR_FORCE|"
    "XDG_.+|VIRTUAL_ENV|CONDA_PREFIX|CONDA_DEFAULT_ENV|ONDEVICE_.+|TEXTUAL.*|"
    # the network, and the Hub's cache
    "(?i:https?_proxy|ftp_proxy|all_proxy|no_proxy)|SSL_CERT_FILE|SSL_CERT_DIR|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|"
    "HF_.+|HUGGINGFACE_HUB_CACHE|HUGGINGFACE_ASSETS_CACHE|TRANSFORMERS_.+|TOKENIZERS_.+|"
    # array libraries: devices, threads, memory, caches of compiled code
    "(CUDA|NVIDIA|NCCL|CUDNN|CUBLAS|GPU|HIP|HSA|ROCM|ROCR|AMD|MIOPEN|ZE|SYCL|ONEAPI|MLX|METAL|MTL|TORCH|TORCHINDUCTOR|"
    "TORCHDYNAMO|PYTORCH|TRITON|ATEN|OMP|GOMP|KMP|MKL|OPENBLAS|BLIS|GOTO|VECLIB|NUMEXPR|DNNL|ONEDNN|MALLOC|LD|"
    "USE)_.+|GLIBC_TUNABLES|"
    # the compiler that torch and MLX call
    "CC|CXX|CPATH|C_INCLUDE_PATH|CPLUS_INCLUDE_PATH|LIBRARY_PATH|CFLAGS|CXXFLAGS|LDFLAGS|SDKROOT|DEVELOPER_DIR|"
    "MACOSX_DEPLOYMENT_TARGET|NIX_LD|NIX_LD_LIBRARY_PATH|NIX_SSL_CERT_FILE|NIX_CFLAGS_COMPILE|NIX_LDFLAGS"
)
_SECRET = re.compile(
    r"TOKEN(?!IZERS)|SECRET|PASSW|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY", re.IGNORECASE
)


class Access(Enum):
    """What a process has to do with the Hub, and so what it is told."""

    HUB = "hub"
    OWN = "own"
    REWARD = "reward"


def command(module: str, *words: str) -> list[str]:
    """The command line that runs one of our modules (`ondevice` is the command itself) with this
    Python.
    """
    return [sys.executable, "-P", os.path.abspath(launch.__file__), module, *words]


def base_python() -> str:
    """The Python that this one's environment was made of."""
    return os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable)


def environment(access: Access, given: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a process of this kind sees of `given`, this process's environment."""
    given = os.environ if given is None else given
    reward = access is Access.REWARD
    named = given.get(REWARD_KEEP if reward else KEEP, "").replace(",", " ").split()
    kept = {name: value for name, value in given.items() if name in named or _passes(name, access)}
    if folders := _installed(given.get("PYTHONPATH", "")):
        kept["PYTHONPATH"] = os.pathsep.join(folders)
    return {**kept, "PYTHONSAFEPATH": "1"}  # -P for whatever Python the process starts in its turn


def _passes(name: str, access: Access) -> bool:
    if _START.fullmatch(name):
        return True
    if launcher.VARIABLES.fullmatch(name):
        return False  # it is not one of the launcher's processes
    if access is Access.REWARD or not (_USUAL.fullmatch(name) or name in TOKENS):
        return False
    if access is Access.HUB and (name in TOKENS or name.startswith("HF_")):
        return True
    return not _SECRET.search(name)


def _installed(paths: str) -> list[str]:
    """The folders of a PYTHONPATH in which packages are installed, as on a cluster whose modules
    put them there. A folder of loose files, as a working folder is, is not one."""
    folders = [Path(path) for path in paths.split(os.pathsep) if os.path.isabs(path)]
    return [str(folder) for folder in folders if any(folder.glob("*.dist-info"))]


def start(words: Sequence[str], access: Access, **how: Any) -> subprocess.Popen[bytes]:
    """Starts `words`, a `command`, as `subprocess.Popen` with `how` does. Raises OSError."""
    return subprocess.Popen(list(words), env=environment(access), **how)


async def start_async(
    words: Sequence[str], access: Access, **how: Any
) -> asyncio.subprocess.Process:
    """The same on the event loop. Raises OSError."""
    return await asyncio.create_subprocess_exec(*words, env=environment(access), **how)


def output_of(program: str, *words: str) -> str:
    """What a program of the system says on stdout, whatever its exit code. Raises OSError."""
    return subprocess.run(
        [program, *words], capture_output=True, text=True, check=False, env=environment(Access.OWN)
    ).stdout
