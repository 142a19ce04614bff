"""The round trip on the real Hub, where a person lends a repository for it:
ONDEVICE_TEST_HUB_REPO=OWNER/NAME, and a login (`hf auth login`; conftest hides HF_TOKEN from
tests)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hub_models import contents, write_run

REPO = os.environ.get("ONDEVICE_TEST_HUB_REPO", "")


@pytest.mark.slow
@pytest.mark.skipif(not REPO, reason="ONDEVICE_TEST_HUB_REPO names no repository of the real Hub")
def test_there_and_back_on_the_real_hub(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    env = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    for words in (["push", str(run.path), REPO], ["pull", REPO, "--out", str(tmp_path / "back")]):
        done = subprocess.run(
            [sys.executable, "-m", "ondevice", *words], capture_output=True, text=True, env=env
        )
        assert done.returncode == 0, done.stderr
    back = contents(tmp_path / "back")
    for path, content in contents(run.path / "sft" / "model").items():
        assert back[path] == content, path
