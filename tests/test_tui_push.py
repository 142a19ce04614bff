"""The Push screen by its keys: what is listed before anything is sent, and what becomes of a push."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from hub_models import write_ratings, write_run
from hub_server import TOKEN, HubServer, environment
from ondevice.runs.folder import RunFolder
from ondevice_tui import push_process, stage_processes
from ondevice_tui.app import OndeviceApp
from test_tui import fits, play
from test_tui_safe import STRINGS, harmless
from tui_runs import shown, until, until_shown

PLAN = {
    "repo": "me/first",
    "kind": "model",
    "private": True,
    "tag": "",
    "bytes": 4_500_700,
    "files": [
        {"path": "config.json", "bytes": 700},
        {"path": "model.safetensors", "bytes": 4_500_000},
    ],
    "login": {"name": "me", "text": "logged in as me"},
}


class Process:
    """Stands in for a push's process."""

    code: int | None = None

    def poll(self) -> int | None:
        return self.code


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The plans that were asked for; each is PLAN."""
    calls: list[dict[str, Any]] = []

    async def ask(values: dict[str, Any]) -> dict[str, Any]:
        calls.append(values)
        return PLAN

    monkeypatch.setattr(push_process, "ask_plan", ask)
    return calls


@pytest.fixture
def begun(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> list[tuple[dict[str, Any], push_process.Push]]:
    """The pushes that were begun; their process and log are the test's."""
    calls: list[tuple[dict[str, Any], push_process.Push]] = []

    def begin(run: RunFolder, values: dict[str, Any]) -> push_process.Push:
        log = run.path / "push.log"
        log.write_bytes(b"")
        push = push_process.Push(stage_processes.Child("push", Process(), log), 0)  # type: ignore[arg-type]
        calls.append((values, push))
        return push

    monkeypatch.setattr(push_process, "begin", begin)
    return calls


def told(push: push_process.Push, *events: dict[str, Any] | str) -> None:
    with open(push.child.log, "a", encoding="utf-8", errors="surrogatepass") as log:
        for event in events:
            log.write((event if isinstance(event, str) else json.dumps(event)) + "\n")


@pytest.mark.parametrize("size", [(80, 24), pytest.param((120, 36), marks=pytest.mark.slow)])
def test_everything_is_seen_before_it_is_sent(
    tmp_path: Path, asked: list[Any], begun: list[Any], size: tuple[int, int]
) -> None:
    write_run(tmp_path / "first")

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("7")
        text = await until_shown(
            pilot,
            "4.5 MB  model.safetensors",
            "700 B  config.json",
            "2 files, 4.5 MB",
            "private",
            "logged in as me",
            "g sends",
        )
        assert fits(text, size) and "PUBLIC" not in text and not begun
        await pilot.press("g")
        await until_shown(pilot, "Send 2 files, 4.5 MB to me/first (private)?")
        await pilot.press("n")
        await until(pilot, lambda: app.current_mode == "push" and "Send 2" not in shown(app))
        assert not begun
        await pilot.press("g", "y")
        await until(pilot, lambda: begun)
        values, push = begun[0]
        assert values == {
            "model": str(tmp_path / "first"),
            "repo_id": "first",
            "public": False,
            "all_stages": False,
            "dataset": False,
            "stage": "sft",
            "with_optimizer": False,
        }
        told(
            push,
            {"event": "plan", "bytes": 200},
            {"event": "file", "path": "model.safetensors", "sent": 100, "of": 200},
        )
        await until_shown(pilot, "100 B of 200 B", "sent model.safetensors")
        told(push, {"event": "wait", "reason": "503 later"})
        await until_shown(pilot, "waiting: 503 later")
        told(
            push,
            {"event": "done", "url": "https://hub/me/first", "commit": "ab" * 20, "private": True},
        )
        push.child.process.code = 0
        await until_shown(pilot, "✓ https://hub/me/first", "commit abababababab, private")
        assert fits(shown(app), size)

    play(tmp_path, script, size)


@pytest.mark.slow
def test_what_is_sent_is_chosen(tmp_path: Path, asked: list[Any], begun: list[Any]) -> None:
    run = write_run(tmp_path / "first")
    write_ratings(run.path)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("7")
        await until(pilot, lambda: asked)
        for key, field, value in (
            ("tab", "stage", "pretrain"),
            ("tab", "stage", "init"),
            ("tab", "all_stages", True),
            ("tab", "dataset", True),
            ("tab", "stage", "sft"),
            ("B", "with_optimizer", True),
            ("A", "public", True),
        ):
            count = len(asked)
            await pilot.press(key)
            await until(pilot, lambda count=count: len(asked) > count)  # type: ignore[misc]
            assert asked[-1][field] == value, key
        await until_shown(pilot, "PUBLIC: everyone can see it", "with the optimizer's state")
        await pilot.press("f2", "ctrl+u", *"team/m", "enter")
        await until(pilot, lambda: asked[-1]["repo_id"] == "team/m")
        assert (
            app.current_mode == "push"
            and app.focused is not None
            and app.focused.id == "push-files"
        )

    play(tmp_path, script)


@pytest.mark.slow
def test_without_a_login_nothing_is_sent(
    tmp_path: Path, begun: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "first")

    async def ask(values: dict[str, Any]) -> dict[str, Any]:
        return {
            **PLAN,
            "login": {"name": "", "text": "nobody is logged in (`hf auth login`, or set HF_TOKEN)"},
        }

    monkeypatch.setattr(push_process, "ask_plan", ask)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("7")
        await until_shown(pilot, "✗ nobody is logged in (`hf auth login`")
        await pilot.press("g")
        await pilot.pause()
        assert app.current_mode == "push" and len(app.screen_stack) == 1 and not begun

    play(tmp_path, script)


@pytest.mark.slow
def test_a_plan_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "first")

    async def ask(values: dict[str, Any]) -> dict[str, Any]:
        raise push_process.PlanFailed("model.safetensors is missing")

    monkeypatch.setattr(push_process, "ask_plan", ask)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("7")
        await until_shown(pilot, "✗ model.safetensors is missing")

    play(tmp_path, script)


@pytest.mark.slow
def test_a_push_that_failed_is_gone_on_with(
    tmp_path: Path, asked: list[Any], begun: list[Any]
) -> None:
    run = write_run(tmp_path / "first")

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("7")
        await until(pilot, lambda: asked)
        await pilot.press("R")
        await pilot.pause()
        assert not begun
        await until_shown(pilot, "2 files")
        await pilot.press("g", "y")
        await until(pilot, lambda: begun)
        told(begun[0][1], "ondevice: me/first: the Hub cannot be reached: 503")
        begun[0][1].child.process.code = 2
        await until_shown(pilot, "✗ me/first: the Hub cannot be reached: 503")
        (run.path / push_process.PENDING).write_text("{}")
        await pilot.press("R")
        await until(pilot, lambda: len(begun) == 2)
        assert begun[1][0] == {"model": str(run.path), "resume": True, "dataset": False}

    play(tmp_path, script)


@pytest.mark.slow
def test_nothing_to_send(tmp_path: Path, asked: list[Any]) -> None:
    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("7")
        await until_shown(pilot, "Nothing to send yet")
        for key in ("g", "tab", "R", "A"):
            await pilot.press(key)
        assert not asked

    play(tmp_path, script)


@pytest.mark.parametrize(
    ("name", "repo"),
    [
        ("first", "first"),
        ("a b", "a-b"),
        ("--x--y..z", "x-y-z"),
        ("\x1b[2J", "2J"),
        ("é", "model"),
        ("[b]", "b"),
        ("x" * 200, "x" * 90),
    ],
)
def test_a_run_s_name_as_the_hub_takes_it(name: str, repo: str) -> None:
    from ondevice.config.hub import check_repo_id

    made = push_process.repo_name(RunFolder(Path("/nowhere") / name))
    check_repo_id(made)
    assert made == repo


@pytest.mark.slow
def test_hostile_text(
    tmp_path: Path, asked: list[Any], begun: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the Hub, a log or a folder says is drawn as text."""
    write_run(tmp_path / "first")

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("7")
        await until_shown(pilot, "2 files")
        await pilot.press("g", "y")
        await until(pilot, lambda: begun)
        screen: Any = app.screen
        push = begun[0][1]
        for text in STRINGS:
            screen.plan = {
                **PLAN,
                "repo": text,
                "login": {"name": "", "text": text},
                "files": [{"path": text, "bytes": 1}],
            }
            screen.trouble = ""
            told(push, {"event": "wait", "reason": text}, {"event": text}, text.replace("\n", " "))
            push.read()
            screen._show()
            await pilot.pause()
            harmless(app, f"push: {text!r}")
            screen.trouble = text
            push.code, push.url = 0, text
            screen._show()
            await pilot.pause()
            harmless(app, f"pushed: {text!r}")
            push.code, push.said = 2, [text]
            screen._show()
            push.code = None
            screen.query_one("#push-repo", Input).value = text[:300]
            await pilot.pause()
            harmless(app, f"failed: {text!r}")

    play(tmp_path, script, (120, 36))


@pytest.mark.slow
def test_a_real_push(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command's own process, a Hub on the loopback device; no token on the screen, in a log or
    in the run.
    """
    run = write_run(tmp_path / "runs" / "first")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    for name, value in environment(server, tmp_path / "hf").items():
        monkeypatch.setenv(name, value)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("7")
        await until_shown(pilot, "logged in as me", "model.safetensors", "README.md")
        await pilot.press("g", "y")
        await until_shown(pilot, f"✓ {server.address}/me/first", "private")
        assert TOKEN not in shown(app)

    play(tmp_path / "runs", script, (120, 36))
    repo = server.repo("me/first")
    assert repo.private and len(repo.commits) == 2
    for path in run.path.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path
    assert "HF_TOKEN" in os.environ
