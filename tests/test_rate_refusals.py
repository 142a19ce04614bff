"""A key on the Rate screen, and on Review, is a vote or a deed, or it is said why not; and what is said
is still there when the next pair is."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from ondevice.preferences.database import Ratings
from ondevice.preferences.review import Review, Verdict
from ondevice_tui.app import OndeviceApp
from ondevice_tui.screens.rate import RateScreen
from ondevice_tui.screens.review import ReviewScreen
from test_review import kept, written
from test_tui import play
from tui_rating import no_guard, queue, settled, votes  # noqa: F401
from tui_runs import a_run, until, until_shown

pytestmark = pytest.mark.slow


def test_a_key_is_taken_or_it_is_said_why_not(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    gate = threading.Event()

    def held(ratings: Ratings) -> None:
        assert gate.wait(120)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        screen = app.screen
        assert isinstance(screen, RateScreen)
        await pilot.press("left")
        await until_shown(pilot, "No pairs to rate", "that key was not taken: no pair was there")
        queue(run, 2)
        queue(run, 1, 3)
        await until_shown(pilot, "Question 0?", "that key was not taken: no pair was there")
        await settled(app, pilot)
        assert screen.ratings is not None
        screen.ratings.do(held)  # a disk that takes its time
        await pilot.press("left", "right", "t", "f")
        assert screen.busy
        await until_shown(pilot, "3 keys were not taken: the one before was still being stored")
        gate.set()
        await until_shown(
            pilot, "Question 1?", "3 keys were not taken: the one before was still being stored"
        )
        assert len(votes(run)) == 1
        # the key that is taken ends it
        await settled(app, pilot)
        await pilot.press("f")
        await until_shown(pilot, "flagged")
        assert not screen.refused
        for key, why in (
            ("3", "there are 2 answers"),
            ("enter", "Enter ends a ranking, and none is begun"),
            ("z", "z does nothing here; ? lists the keys"),
        ):
            await settled(app, pilot)
            await pilot.press(key)
            await until_shown(pilot, why)
        await settled(app, pilot)
        # drawn too late for a key: no word of an end that was not read
        screen.answers.question.laid_out = screen.answers.question.read_to_end = False
        await screen.run_action("pick(0)")
        await until_shown(pilot, "not taken: this pair was not on the screen yet")
        screen.show(again=True)
        await settled(app, pilot)
        await pilot.press("left")
        await until(pilot, lambda: len(votes(run)) == 2)
        await settled(app, pilot)
        await pilot.press("2", "2")
        await until_shown(pilot, "2 has its place; u takes one back")

    async def on_rate(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("4")
        await until(pilot, lambda: isinstance(app.screen, RateScreen))
        await settled(app, pilot)
        await script(app, pilot)

    play(tmp_path, on_rate, (120, 30))
    assert len(votes(run)) == 2


def test_a_key_on_review_is_taken_or_it_is_said_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ReviewScreen, "GUARD_S", 0.0)
    file = written(tmp_path, 3)
    a_run(tmp_path / "runs")
    gate, stores = threading.Event(), Review.give

    def slow(review: Review, number: int, verdict: Verdict) -> None:
        assert gate.wait(120)
        stores(review, number, verdict)

    monkeypatch.setattr(Review, "give", slow)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        screen = ReviewScreen(file)
        await app.push_screen(screen)
        await until_shown(pilot, "What is 0?")
        await until(pilot, lambda: not screen.busy)
        await pilot.press("u")
        await until_shown(pilot, "nothing to undo", "What is 0?")
        await until(pilot, lambda: not screen.busy)
        await pilot.press("right", "left", "s", "u", "escape")
        assert app.screen is screen and screen.busy
        told = "4 keys were not taken: the one before was still being stored"
        await until_shown(pilot, told)
        gate.set()
        await until_shown(pilot, "What is 1?", told)
        await pilot.press("z")
        await until_shown(pilot, "z does nothing here; ? lists the keys")
        monkeypatch.setattr(ReviewScreen, "GUARD_S", 1e9)
        await pilot.press("left")
        await until_shown(pilot, "6 keys were not taken: too soon for this row")
        monkeypatch.setattr(ReviewScreen, "GUARD_S", 0.0)
        for key, says in (("left", "What is 2?"), ("right", "All rows have a verdict")):
            await pilot.press(key)
            await until_shown(pilot, says)
            assert not screen.refused
            await until(pilot, lambda: not screen.busy)
        await pilot.press("right")
        await until_shown(pilot, "that key was not taken: no row was there for it")

    play(tmp_path / "runs", script)
    assert kept(file) == ["What is 0?", "What is 2?"]
