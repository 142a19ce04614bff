"""What the tests of the Rate screen share: pairs to rate, and keys that wait for the database."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from ondevice.preferences.database import Ratings
from ondevice.preferences.votes import Response
from ondevice.runs.folder import RunFolder
from ondevice_tui.app import OndeviceApp
from ondevice_tui.screens.rate import RateScreen
from test_tui import play
from tui_runs import shown, until


@pytest.fixture(autouse=True)
def no_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys count at once: how fast a test presses them must not matter."""
    monkeypatch.setattr(RateScreen, "GUARD_S", 0.0)


def queue(run: RunFolder, count: int = 5, width: int = 2, long: bool = False) -> None:
    with Ratings.open(run.path, create=True) as ratings:
        for i in range(count):
            responses = [
                Response(
                    f"answer {'xyzw'[slot]} to {i}" + "\nand more" * (80 * long),
                    source=f"secret-{slot}",
                )
                for slot in range(width)
            ]
            ratings.add("first", f"Question {i}?", responses, seed=0)


def votes(run: RunFolder) -> list[Any]:
    with Ratings.open(run.path) as ratings:
        return ratings.live_votes()


async def settled(app: OndeviceApp, pilot: Pilot[Any]) -> None:
    """Until the database has done what the last key asked for."""
    await pilot.pause()
    await until(pilot, lambda: not (isinstance(app.screen, RateScreen) and app.screen.busy))
    await pilot.pause()


async def press(app: OndeviceApp, pilot: Pilot[Any], *keys: str) -> None:
    """Keys, each after the database has done what the one before asked for: those that come sooner
    are not taken (test_rate_refusals)."""
    for key in keys:
        await pilot.press(key)
        await settled(app, pilot)


def rate(folder: Path, keys: list[str], size: tuple[int, int] = (80, 24)) -> str:
    """The screen after these keys."""
    seen: list[str] = []

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("4")
        await until(pilot, lambda: isinstance(app.screen, RateScreen))
        await settled(app, pilot)
        await press(app, pilot, *keys)
        seen.append(shown(app))

    play(folder, script, size)
    return seen[0]
