"""Whatever is killed at any file operation and done again is as if it had not been: the commands
beside the stages, and what the app keeps. (The stages: test_recovery_stages, test_resume; a push over a
network that fails: test_push_network.)"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hub_server import HubServer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="forks, and looks into /proc"),
]
PROGRAM = Path(__file__).with_name("killed_commands.py")
LEAST = {"export gguf": 2, "export hf": 2, "pull": 5, "push": 5, "sample": 5, "rate": 5, "kept": 5}


def killed(name: str, folder: Path, every: int, **environment: str) -> int:
    """How often the work was killed."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, str(PROGRAM), name, str(folder), str(every)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return int(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("every", [9, 1])
@pytest.mark.parametrize("name", [name for name in LEAST if name not in ("pull", "push")])
def test_killed_and_done_again_the_result_is_the_same(
    tmp_path: Path, name: str, every: int
) -> None:
    assert killed(name, tmp_path / "k", every) >= LEAST[name]


@pytest.mark.parametrize("every", [9, 1])
def test_a_pull_is_there_as_a_whole_or_not_at_all(
    server: HubServer, tmp_path: Path, every: int
) -> None:
    files = {
        "config.json": b"{}",
        "README.md": b"# m\n",
        "model.safetensors": bytes(range(256)) * 4000,
        "part/notes.txt": b"n",
    }
    server.add("me/m", files)
    assert killed_beside(server, "pull", tmp_path, every) >= LEAST["pull"]


@pytest.mark.parametrize("every", [4, 1])
def test_a_push_lands_once_and_as_a_whole(server: HubServer, tmp_path: Path, every: int) -> None:
    assert killed_beside(server, "push", tmp_path, every) >= LEAST["push"]


def killed_beside(server: HubServer, name: str, folder: Path, every: int) -> int:
    """How often work was killed that asks the server."""
    return killed(
        name,
        folder / "k",
        every,
        KILLED_HUB=server.address,
        HF_HUB_DISABLE_XET="1",
        HF_TOKEN=os.environ["HF_TOKEN"],
    )
