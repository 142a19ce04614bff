"""Rows that a model wrote, kept or dropped in the app."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from ondevice_tui.app import OndeviceApp
from ondevice_tui.screens.review import ReviewScreen, newest
from ondevice_tui.screens.text_card import Ask
from test_review import kept, written
from test_tui import play
from tui_runs import SIZES, a_run, shown, until, until_shown

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("size", SIZES)
def test_rows_are_kept_and_dropped_by_one_key(
    size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of Rate, on the newest rows that were asked; hostile text is harmless; what is left out is
    told when all have a verdict."""
    monkeypatch.setattr(ReviewScreen, "GUARD_S", 0.0)
    monkeypatch.chdir(tmp_path)
    file = written(tmp_path, 4)
    file.write_text(file.read_text().replace("0 is a number.", "\\u001b[2Jred [bold]0[/bold]"))
    file.with_suffix(".asked.jsonl").touch()
    run = a_run(tmp_path / "runs")
    assert newest(tmp_path / "runs") == "chats.jsonl"

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        app.chosen = run.path
        await pilot.press("4", "Q")
        await until(pilot, lambda: isinstance(app.screen, Ask))
        assert app.screen.query_one(Input).value == "chats.jsonl"
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, ReviewScreen) and not app.screen.busy)
        screen = app.screen
        assert isinstance(screen, ReviewScreen)
        assert "\x1b" not in shown(app) and "[bold]0[/bold]" in shown(app)
        presses = (
            ("right", "1 kept  0 dropped"),
            ("left", "1 kept  1 dropped"),
            ("u", "1 kept  0 dropped"),
            ("s", "1 kept  0 dropped  3 left"),
            ("right", "2 kept"),
            ("left", "1 dropped"),
            ("k", "2 kept  1 dropped  1 left"),  # no verdict: it scrolls, or did
        )
        for key, counts in presses:
            await pilot.press(key)
            await until(pilot, lambda: not screen.busy)
            await until_shown(pilot, counts)
        await pilot.press("right")
        await until_shown(pilot, "All rows have a verdict")
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(app.screen, ReviewScreen))

    play(tmp_path / "runs", script, size)
    assert sorted(kept(file)) == ["What is 0?", "What is 1?", "What is 2?"]


def test_rows_that_are_not_there(tmp_path: Path) -> None:
    a_run(tmp_path)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await app.push_screen(ReviewScreen(tmp_path / "none.jsonl"))
        await until_shown(pilot, "cannot be read")
        await pilot.press("right", "u", "escape")
        await until(pilot, lambda: not isinstance(app.screen, ReviewScreen))

    play(tmp_path, script)
