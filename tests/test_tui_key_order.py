"""What is typed faster than a screen or a card opens goes to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from textual.events import Key
from textual.pilot import Pilot

from ondevice.preferences.database import Ratings
from ondevice.preferences.votes import Response
from ondevice.runs import labels
from ondevice_tui.app import OndeviceApp
from ondevice_tui.screens.rate import RateScreen
from ondevice_tui.screens.road import RoadScreen
from ondevice_tui.widgets.run_list import RunList
from test_tui import play
from tui_runs import a_run, until, until_shown


def typed(app: OndeviceApp, *keys: str) -> None:
    """All at once, as from a machine that was busy meanwhile."""
    for key in keys:
        app.post_message(Key(key, key if len(key) == 1 else None))


def test_a_note_on_a_pair_gets_all_of_it_and_the_pair_no_vote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RateScreen, "GUARD_S", 0.0)
    run = a_run(tmp_path)
    with Ratings.open(run.path, create=True) as ratings:
        for number in range(3):
            ratings.add("b", f"Question {number}?", [Response("yes"), Response("no")], seed=0)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        typed(app, "4")
        await until_shown(pilot, "Question 0?")
        screen = app.screen
        assert isinstance(screen, RateScreen)
        typed(app, "N", *"why12", "enter")
        await until_shown(pilot, "noted")
        await until(pilot, lambda: screen.answers.all_read)
        typed(app, "left")
        await until_shown(pilot, "Question 1?")
        await until(pilot, lambda: screen.answers.all_read)
        typed(app, "question_mark", "escape", "right")  # what opens and closes lets the next by
        await until_shown(pilot, "Question 2?")
        await until(pilot, lambda: screen.answers.all_read)
        app.card_comes()  # one that does not come, after all
        typed(app, "t")
        await until(pilot, lambda: screen.votes_now == 3)

    play(tmp_path, script)
    with Ratings.open(run.path) as ratings:
        found = [(row.action, row.note, row.item) for row in ratings.votes()]
    assert found == [("note", "why12", 1), ("vote", None, 1), ("vote", None, 2), ("vote", None, 3)]


@pytest.mark.slow
def test_a_search_and_a_note_on_a_run(tmp_path: Path) -> None:
    """The letters of a search were deeds of the list, and those of a note of the screen beneath."""
    a_run(tmp_path, "evil")
    a_run(tmp_path, "other")

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        listed = app.screen.query_one(RunList)
        await until(pilot, lambda: len(listed.shown) == 2)
        typed(app, "slash", *"evil")
        await until(pilot, lambda: listed.search_field.value == "evil" and len(listed.shown) == 1)
        assert isinstance(app.screen, RoadScreen)
        typed(app, "enter")
        await until(pilot, lambda: app.focused is listed.rows)
        typed(app, "N", *"quit", "enter")
        await until(pilot, lambda: labels.read_labels(tmp_path / "evil").note == "quit")
        assert isinstance(app.screen, RoadScreen)
        typed(app, "6", "2", "q")  # a screen that is opened for the first time
        await until(pilot, lambda: app.current_mode == "chat")
        await until(pilot, lambda: "2q" in app.screen.query_one("#say").text)  # type: ignore[attr-defined]

    play(tmp_path, script)
