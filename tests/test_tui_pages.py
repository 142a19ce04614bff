"""What holds for every screen that a key of the app opens."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widget import Widget

from ondevice_tui import push_process, worker_client
from ondevice_tui.app import OndeviceApp
from ondevice_tui.screens.page import Page
from test_tui import play
from tui_runs import a_run, until


@pytest.fixture(autouse=True)
def no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """No screen starts a process that loads a model or the Hub's client."""

    async def ask(values: dict[str, Any]) -> dict[str, Any]:
        raise push_process.PlanFailed("not asked")

    monkeypatch.setattr(push_process, "ask_plan", ask)
    monkeypatch.setattr(
        worker_client, "COMMAND", (sys.executable, str(Path(__file__).parent / "tui_worker.py"))
    )


@pytest.mark.slow
@pytest.mark.parametrize("mode", OndeviceApp.MODES)
def test_news_may_come_while_a_screen_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """The top line is there and what is inside of other widgets is not: nothing is shown yet."""
    a_run(tmp_path)
    half_made: list[Page] = []
    looked: list[Page] = []

    async def mount(page: Page, widgets: list[Widget]) -> None:
        look = page.runs_changed

        def counted() -> None:
            looked.append(page)
            look()

        monkeypatch.setattr(page, "runs_changed", counted)
        mounted = page.mount_all(widgets)
        assert page.app.screen is page and page.query("#top")
        half_made.append(page)
        page.ui.tell_page()
        assert page not in looked
        await mounted

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        app.action_go(mode)
        await until(pilot, lambda: app.screen in half_made and app.screen in looked)
        assert app.current_mode == mode
        looked.clear()
        app.tell_page()
        assert looked == [app.screen]

    monkeypatch.setattr(Page, "mount_composed_widgets", mount)
    play(tmp_path, script)
