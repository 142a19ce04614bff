"""This process's client of the Hub, turned to a server of the tests. A fixture; no test by itself."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from hub_server import TOKEN, HubServer, running
from ondevice.hub import client


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub of its own for each test; nobody waits between tries, and the cache is empty."""
    from huggingface_hub import close_session, constants

    home = tmp_path / "hf"
    with running() as made:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        template = f"{made.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        changed = {
            "ENDPOINT": made.address,
            "HUGGINGFACE_CO_URL_TEMPLATE": template,
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DISABLE_TELEMETRY": True,
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_XET_CACHE": str(home / "xet"),
            "HF_TOKEN_PATH": str(home / "token"),
        }
        for name, value in changed.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(client, "WAITS_S", (0.0, 0.0, 0.0))
        # the client's own tries
        patient = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
        monkeypatch.setattr("huggingface_hub.utils._http.time", patient)
        close_session()
        yield made
        close_session()
