"""A network that is not the Hub, or a Hub that is hostile: one line, in bounded time and room."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from hub_client import server  # noqa: F401  # a fixture
from hub_server import HubServer
from ondevice.common.errors import UserError
from ondevice.config.hub import PullConfig
from ondevice.hub import client as clients
from ondevice.hub import limits, pull
from ondevice.hub.client import Hub

FILES = {"config.json": b"{}" * 100, "model.safetensors": b"x" * 300_000}
PORTAL = b"<html><title>Sign in to Hotel Wi-Fi</title></html>"
ODD = [PORTAL, b"", b"null", b"[]", b"7", b"[" * 100_000 + b"]" * 100_000, b'{"sha": 5}', b"{}"]
TREES: list[Any] = [
    [{"type": "file", "path": 5, "size": 1, "oid": "a"}],
    [{"type": "file", "path": "a.json", "size": None, "oid": "a"}],
    [{"type": "file", "path": "a.json", "size": "x", "oid": "a"}],
    [{"type": "file", "path": "a.json", "size": -1, "oid": "a"}],
    [{"type": "file", "path": "a.json", "size": 1, "oid": None}],
    [{"type": "file", "path": "a.json", "size": 1, "oid": "a", "lfs": {"size": 1}}],
    [{"type": "file"}],
    [7],
    {"a": 1},
]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "WAITS_S", (0.0,))


def refused(tmp_path: Path) -> UserError:
    with pytest.raises(UserError) as caught:
        pull.pull(PullConfig(repo_id="me/m", out=str(tmp_path / "out")))
    assert list(tmp_path.glob("*out*")) == []
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("body", ODD, ids=range(len(ODD)))
@pytest.mark.parametrize("path", ["/revision/", "/tree/"])
def test_an_answer_that_is_none_is_one_line(
    server: HubServer,  # noqa: F811
    tmp_path: Path,
    path: str,
    body: bytes,
) -> None:
    server.add("me/m", FILES)
    server.ask_for("GET", path, "body", body=body, times=9)
    refused(tmp_path)


def test_a_sign_in_page_is_called_so(server: HubServer, tmp_path: Path) -> None:  # noqa: F811
    server.add("me/m", FILES)
    server.ask_for("GET", "", "body", body=PORTAL, headers={"Content-Type": "text/html"}, times=99)
    server.ask_for("HEAD", "", "body", body=PORTAL, headers={"Content-Type": "text/html"}, times=99)
    assert "sign in" in str(refused(tmp_path))
    with pytest.raises(UserError, match="sign in"):
        Hub().account()


@pytest.mark.parametrize("tree", TREES, ids=range(len(TREES)))
def test_entries_that_no_hub_has(server: HubServer, tmp_path: Path, tree: Any) -> None:  # noqa: F811
    server.add("me/m", FILES)
    server.ask_for("GET", "/tree/", "body", body=json.dumps(tree).encode(), times=9)
    refused(tmp_path)


@pytest.mark.parametrize("name", list(FILES))
def test_no_more_comes_than_was_stated(
    server: HubServer,  # noqa: F811
    tmp_path: Path,
    name: str,
) -> None:
    server.add("me/m", FILES)
    server.ask_for("GET", f"/resolve/.*{name}", "endless", times=9)
    assert "more than" in str(refused(tmp_path))
    kept = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    assert kept <= sum(map(len, FILES.values())) + 4096


def test_an_answer_without_an_end(
    server: HubServer,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "ANSWER", 1 << 20)
    server.add("me/m", FILES)
    server.ask_for("GET", "/revision/", "endless", times=9)
    assert "more than" in str(refused(tmp_path))
    assert server.sent < 64 << 20


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/revision/", "/resolve/.*safetensors"])
def test_a_byte_at_a_time_is_not_waited_for(
    server: HubServer,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
) -> None:
    monkeypatch.setattr(limits, "PATIENCE_S", 0.2)
    monkeypatch.setattr(limits, "FLOOR", 1_000_000)
    server.add("me/m", FILES)
    server.ask_for("GET", path, "trickle", times=9)
    assert "hardly sends" in str(refused(tmp_path))


@pytest.mark.parametrize("ask", ["download", "snapshot"])
def test_what_is_fetched_comes_where_it_is_watched(
    server: HubServer,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    ask: str,
) -> None:
    """hf_xet has connections of its own. Uploads may take it."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    server.add("me/m", FILES)
    hub = Hub()
    disabled = []
    name = "hf_hub_download" if ask == "download" else "snapshot_download"
    real = getattr(hub._api, name)

    def seen(*args: Any, **how: Any) -> Any:
        disabled.append(constants.HF_HUB_DISABLE_XET)
        return real(*args, **how)

    monkeypatch.setattr(hub._api, name, seen)
    if ask == "download":
        commit = hub.look("me/m").head
        file = next(file for file in hub.files("me/m", commit) if file.path == "config.json")
        assert hub.download("me/m", commit, file).is_file()
    else:
        assert (hub.snapshot("me/m", ["*.json"]) / "config.json").is_file()
    assert disabled == [True] and constants.HF_HUB_DISABLE_XET is False
