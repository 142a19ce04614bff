"""Whether a launcher has started this process as one of several: torchrun or mlx.launch.

Only the environment is read; nothing is imported or connected. A process that we start in our turn
is none of the launcher's (`processes.environment` leaves these variables out).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass

VARIABLES = re.compile(
    "RANK|LOCAL_RANK|WORLD_SIZE|LOCAL_WORLD_SIZE|GROUP_RANK|ROLE_RANK|MASTER_ADDR|MASTER_PORT|"
    "TORCHELASTIC_.+|MLX_RANK|MLX_HOSTFILE|MLX_WORLD_SIZE|MLX_IBV_DEVICES|MLX_JACCL_.+"
)
"""The environment variables by which a process learns that it is one of several."""
_MLX = ("MLX_HOSTFILE", "MLX_IBV_DEVICES", "MLX_WORLD_SIZE")


@dataclass(frozen=True)
class Launched:
    """`engine`: the backend whose processes `launcher` starts. `rank`: this one's number."""

    engine: str
    launcher: str
    rank: int


def launched(given: Mapping[str, str] | None = None) -> Launched | None:
    """What started this process; None: a person did, or a launcher of one process."""
    env = os.environ if given is None else given
    if env.get("MLX_RANK", "").isdecimal() and any(env.get(name) for name in _MLX):
        return Launched("mlx", "mlx.launch", int(env["MLX_RANK"]))
    several = env.get("WORLD_SIZE", "1") != "1" and "MASTER_ADDR" in env
    if several and env.get("RANK", "").isdecimal():
        return Launched("torch", "torchrun", int(env["RANK"]))
    return None


def leads() -> bool:
    """Whether this process is the one that shows and writes."""
    found = launched()
    return found is None or found.rank == 0


@contextmanager
def quiet() -> Iterator[None]:
    """Within, nothing that Python prints is shown: what another process than the first one says."""
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        redirect_stderr(nowhere),
        redirect_stdout(nowhere),
    ):
        yield
