"""What holds for every screen that a key of the app opens."""

from __future__ import annotations

import asyncio
import re
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.screen import Screen
from textual.widget import Widget

from ondevice_tui import push_process, worker_client
from ondevice_tui.app import OndeviceApp
from ondevice_tui.run_reader import RunsReader
from ondevice_tui.screens.page import READING, Page
from ondevice_tui.screens.road import RoadScreen
from ondevice_tui.widgets.rows import Rows
from ondevice_tui.widgets.welcome import Welcome
from test_tui import play
from tui_runs import a_run, app_on, until, until_shown


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


@pytest.mark.slow
def test_while_the_runs_are_read_no_screen_says_that_there_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is a card that begins a run ever what Enter is for."""
    a_run(tmp_path)
    focused: list[Widget | None] = []
    may_read = threading.Event()
    read, set_focus = RunsReader.read, Screen.set_focus

    def later(reader: RunsReader, chosen: Path | None) -> list[dict[str, Any]]:
        may_read.wait()
        return read(reader, chosen)

    def noted(screen: Screen[Any], widget: Widget | None, *args: Any, **more: Any) -> None:
        focused.append(widget)
        set_focus(screen, widget, *args, **more)

    monkeypatch.setattr(RunsReader, "read", later)
    monkeypatch.setattr(Screen, "set_focus", noted)

    async def script() -> None:
        app = app_on(tmp_path)
        told: list[str] = []
        monkeypatch.setattr(app, "say", lambda text, **more: told.append(text))
        async with app.run_test(size=(80, 24)) as pilot:
            try:
                for mode in app.MODES:
                    app.action_go(mode)
                    text = await until_shown(pilot, "eading the runs", "ondevice")
                    assert not re.search(r"(?i)no (run|stage|pairs)\b|nothing to|no model y", text)
                app.action_go("road")
                await pilot.press("tab")
                assert "no run" not in await until_shown(pilot, "reading the runs … ─")
                for key in "DNRg":
                    await pilot.press(key)
                assert told == [READING] * 4
            finally:
                may_read.set()
            road = app.screen
            assert isinstance(road, RoadScreen)
            road.show_lists(False)
            await until_shown(pilot, "pretrain")
            assert focused and not any(isinstance(one, Welcome) for one in focused)
            rows = road.query_one("#stages", Rows)
            await until(pilot, lambda: rows.size.width, "a width")
            road.show_all()
            before = [str(option.prompt) for option in rows.options]
            road.show_lists(True)
            await until(pilot, lambda: not rows.size.width, "the list has the screen")
            road.show_all()
            road.show_lists(False)
            assert [str(option.prompt) for option in rows.options] == before, "cut nowhere"

    asyncio.run(script())
