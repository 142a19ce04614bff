"""Commands as a test types them: in a process of their own, or in this one."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ondevice import cli


def command(*arguments: str, cwd: Path, typed: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ondevice", *arguments],
        input=typed,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=cwd,
    )


def typed_in(folder: Path, capfd: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """What a command of this process comes to in `folder`: its exit code, stdout and stderr."""
    capfd.readouterr()
    with contextlib.chdir(folder):
        code = cli.main(arguments)
    return (code, *capfd.readouterr())


def strict_json(text: str) -> Any:
    """The value of `text`, which has nothing in it that JSON does not know."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)
