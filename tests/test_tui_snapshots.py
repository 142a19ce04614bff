"""Every screen as a picture, at the smallest size and a large one: what is drawn stays as it was
found good.

The pictures are in tests/snapshots. After a change that is meant, draw them anew and look at them:

    UPDATE_SNAPSHOTS=1 python -m pytest tests/test_tui_snapshots.py

They hold for one version of Textual (the extra `dev` pins it): another one draws borders, scroll
bars and the footer in its own way.
"""

from __future__ import annotations

import asyncio
import os
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, TextArea

from ondevice.preferences.database import Ratings
from ondevice.preferences.votes import Response
from ondevice.runs import table
from ondevice.runs.folder import RunFolder
from ondevice.runs.labels import add_tags, set_note
from ondevice_tui import plan_process, push_process, run_reader, run_status
from ondevice_tui.app import OndeviceApp
from ondevice_tui.screens import rate_queue, stage_page
from ondevice_tui.screens.chat_pane import Pane
from ondevice_tui.screens.start import StartScreen
from ondevice_tui.widgets.key_footer import Keys
from test_tui_push import PLAN
from tui_runs import (
    SIZES,
    START,
    Clock,
    app_on,
    until,
    until_shown,
    write_done,
    write_grpo,
    write_stage,
)

SNAPSHOTS = Path(__file__).parent / "snapshots"
DRAWN_BY = "8.2.8"  # the version of Textual

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        version("textual") != DRAWN_BY, reason=f"the pictures were drawn by textual {DRAWN_BY}"
    ),
]


@pytest.fixture(autouse=True)
def fixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder, a time and a person that are the same everywhere."""
    monkeypatch.chdir(tmp_path)
    for name in ("TEXTUAL_THEME", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TEXTUAL_ANIMATIONS", "none")
    for module in (run_status, stage_page, table):
        monkeypatch.setattr(module, "clock", lambda: START + 7300)
    monkeypatch.setattr(rate_queue, "rater_name", lambda *_: "vera")

    async def plan(values: dict[str, Any]) -> dict[str, Any]:
        return PLAN

    async def stage_plan(words: Any, run: Path, *, measure: bool = False) -> dict[str, Any]:
        return {"line": "", "machine": {"calibrated": True}}

    monkeypatch.setattr(push_process, "ask_plan", plan)
    monkeypatch.setattr(plan_process, "ask", stage_plan)
    Clock.now = START
    run = RunFolder(Path("runs") / "first")
    write_stage(run.stage("init"), 0, answer="xq zz")
    write_stage(run.stage("pretrain"), warning="half of the rows were cut")
    write_stage(run.stage("sft"), 40, of=100, end="died")
    write_done(
        run.stage("dpo"),
        [{"prompt": "Leo lives in…", "answer": "In a small house. I hope that helps!"}],
    )
    write_grpo(run.stage("grpo"))
    with Ratings.open(run.path, create=True) as ratings:
        for n in range(5):
            ratings.add(
                "a",
                f"Tell me about {n} cats.",
                [
                    Response(
                        "Once there was a cat called Tim. Tim did not like the pond. " * 3,
                        "first-sft",
                    ),
                    Response("The cat water the water. The cat was was afraid.", "first-pretrain"),
                ],
                seed=n,
            )


async def road_(app: OndeviceApp, pilot: Pilot[Any]) -> None:
    await until_shown(pilot, "process gone after step 40")


async def runs_(app: OndeviceApp, pilot: Pilot[Any]) -> None:
    set_note(Path("runs/first"), "the rate that worked")
    add_tags(Path("runs/first"), ["good"])
    await pilot.press("tab")
    await until_shown(pilot, "#good the rate that worked", "exact 73%", "1.2M")


async def start_(app: OndeviceApp, pilot: Pilot[Any]) -> None:
    await app.push_screen(
        StartScreen("sft", {"out": "runs/first", "model": "runs/first/pretrain/model"})
    )
    await until_shown(pilot, "start sft", "ready")


async def train_(app: OndeviceApp, pilot: Pilot[Any]) -> None:
    app.choose(Path("runs/first"), "pretrain")
    await pilot.press("2")
    await until_shown(pilot, "o held-out", "step 100/100", "in a small house")


async def rate_(app: OndeviceApp, pilot: Pilot[Any]) -> None:
    await pilot.press("4")
    await until_shown(pilot, "0 of 5", "✓ read")


async def reason_(app: OndeviceApp, pilot: Pilot[Any]) -> None:
    await pilot.press("3")
    await until_shown(pilot, "What is 20+", "step 20")


async def ladder_(app: OndeviceApp, pilot: Pilot[Any]) -> None:
    await pilot.press("5")
    await until_shown(pilot, "pretrain")


async def chat_(app: OndeviceApp, pilot: Pilot[Any]) -> None:
    await pilot.press("6")
    await until_shown(pilot, "Enter sends")
    pane = app.screen.query_one("#pane-a", Pane)
    pane.add("user", "Who lives in a small house?")
    pane.add("assistant", "Leo.")
    pane.pace = "3 tokens  120 tok/s"
    pane.show()
    await until_shown(pilot, "Leo.")


async def push_(app: OndeviceApp, pilot: Pilot[Any]) -> None:
    await pilot.press("7")
    await until_shown(pilot, "model.safetensors", "logged in as me")


SCREENS = {
    "road": road_,
    "runs": runs_,
    "start": start_,
    "train": train_,
    "rate": rate_,
    "reason": reason_,
    "ladder": ladder_,
    "chat": chat_,
    "push": push_,
}


@pytest.fixture(autouse=True)
def space_of_no_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each disk has blocks of its own size."""
    monkeypatch.setattr(run_reader, "space", lambda path: 1_234_567)


def picture(app: OndeviceApp) -> str:
    """The screen as an SVG that follows from what is drawn alone."""
    drawn = re.sub(r"@font-face\s*\{[^}]*\}", "", app.export_screenshot(title="ondevice"))
    return re.sub(r"terminal-\d+", "terminal", drawn).rstrip() + "\n"


@pytest.mark.parametrize("size", SIZES, ids=["80x24", "120x36"])
@pytest.mark.parametrize("screen", SCREENS)
def test_the_screen_is_drawn_as_it_was(screen: str, size: tuple[int, int]) -> None:
    drawn: list[str] = []
    file = SNAPSHOTS / f"{screen}-{size[0]}x{size[1]}.svg"
    update = bool(os.environ.get("UPDATE_SNAPSHOTS"))
    wanted = "" if update else file.read_text(encoding="utf-8")

    async def run() -> None:
        app = app_on(Path("runs"))
        async with app.run_test(size=size) as pilot:
            await until(pilot, lambda: app.runs is not None, "the runs are read")
            await SCREENS[screen](app, pilot)
            await until(pilot, lambda: app.screen.query_one(Keys).rows, "the footer")
            for field in (*app.screen.query(Input), *app.screen.query(TextArea)):
                field.cursor_blink = False
            before, still = "", 0
            # Until nothing moves any more; a busy machine may stand still for a while before its
            # files are read.
            while still < (5 if update else 50) and (update or drawn[-1:] != [wanted]):
                before = drawn[-1] if drawn else ""
                await pilot.pause(0.2)
                drawn.append(picture(app))
                still = still + 1 if drawn[-1] == before else 0

    asyncio.run(run())
    if update:
        SNAPSHOTS.mkdir(exist_ok=True)
        file.write_text(drawn[-1], encoding="utf-8")
    assert update or drawn[-1] == wanted, f"{file.name} differs: UPDATE_SNAPSHOTS=1 draws it anew"
