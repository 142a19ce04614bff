"""The Rate screen and its database: every vote outlives a kill, a database that is held, odd, damaged or
moved away is told and loses nothing, and so is what another window has voted."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from ondevice.preferences.database import Ratings
from ondevice_tui import live_sampling
from ondevice_tui.app import OndeviceApp
from ondevice_tui.screens import rating_page
from ondevice_tui.screens.rate import RateScreen
from test_tui import play
from tui_rating import no_guard, queue, rate, settled, votes  # noqa: F401
from tui_runs import a_run, in_one_line, shown, until, until_shown

pytestmark = pytest.mark.slow


def test_twenty_votes_survive_kill_9(tmp_path: Path) -> None:
    """The app votes in a process of its own and is killed in the middle of the screen after several
    of the votes.
    """
    run = a_run(tmp_path)
    queue(run, 20)
    code = textwrap.dedent("""
        import asyncio, os, signal, sys
        from pathlib import Path
        from ondevice_tui.app import OndeviceApp
        from ondevice_tui.screens.rate import RateScreen
        RateScreen.GUARD_S = 0.0
        async def main(folder, keys):
            app = OndeviceApp(folder, look_at_machine=False)
            async with app.run_test(size=(80, 24)) as pilot:
                while app.runs is None:
                    await pilot.pause(0.05)
                await pilot.press("4")
                for key in keys.split(","):
                    while getattr(app.screen, "item", None) is None or app.screen.busy:
                        await pilot.pause(0.01)
                    before = app.screen.item.id
                    await pilot.press(key)
                    while app.screen.item is not None and app.screen.item.id == before:
                        await pilot.pause(0.01)
                os.kill(os.getpid(), signal.SIGKILL)
        asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
    """)
    wanted: list[str] = []
    for keys in (["left"], ["right", "t", "left"], ["x"] * 5, ["right"] * 11):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path), ",".join(keys)],
            timeout=120,
            text=True,
            capture_output=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
        wanted += ["tie" if key == "t" else "all_bad" if key == "x" else "ranked" for key in keys]
        assert [vote.outcome for vote in votes(run)] == wanted
    assert len({vote.item for vote in votes(run)}) == 20


@pytest.mark.parametrize("key", ["left", "t", "s", "u", "f"])
def test_a_held_database_freezes_nothing_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """Another program holds it for longer than anyone waits, then lets it go: the same key does its
    deed.
    """
    monkeypatch.setattr(
        Ratings.open.__func__, "__kwdefaults__", {"create": False, "patience_s": 5.0}
    )
    run = a_run(tmp_path)
    queue(run, 3)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("4")
        await until_shown(pilot, "Question 0?")
        await pilot.press("left")
        await until_shown(pilot, "Question 1?")
        held = sqlite3.connect(run.path / "ratings.db", isolation_level=None)
        held.execute("BEGIN IMMEDIATE")
        await pilot.press(key)
        await until_shown(pilot, rating_page.WAITING)
        screen = app.screen
        assert isinstance(screen, RateScreen)
        await pilot.press("question_mark")  # the app goes on while it waits
        await until(pilot, lambda: not isinstance(app.screen, RateScreen))
        assert screen.busy
        await pilot.press("escape")
        await until_shown(pilot, "not saved: ratings.db: another program")
        assert "Question 1?" in shown(app)
        held.rollback()
        await pilot.press(key)
        await until(pilot, lambda: len(acts()) == 2)

    def acts() -> list[str]:
        with Ratings.open(run.path) as ratings:
            return [row.action for row in ratings.votes()]

    play(tmp_path, script)
    assert acts() == [
        "vote",
        {"left": "vote", "t": "vote", "s": "skip", "u": "undo", "f": "flag"}[key],
    ]


def test_a_wait_for_the_database_is_no_longer_told_when_it_is_over(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    queue(run, 3)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("4")
        await until_shown(pilot, "Question 0?")
        held = sqlite3.connect(run.path / "ratings.db", isolation_level=None)
        held.execute("BEGIN IMMEDIATE")
        await pilot.press("left")
        await until_shown(pilot, rating_page.WAITING)
        held.rollback()
        await until_shown(pilot, "Question 1?")
        await until(pilot, lambda: in_one_line(rating_page.WAITING) not in in_one_line(shown(app)))

    play(tmp_path, script)


def test_a_note_that_cannot_be_stored_stays_in_its_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Ratings.open.__func__, "__kwdefaults__", {"create": False, "patience_s": 0.2}
    )
    run = a_run(tmp_path)
    queue(run, 3)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("4")
        await until_shown(pilot, "Question 0?")
        await pilot.press("N")
        await until_shown(pilot, "a note on this pair")
        await pilot.press(*"why")
        held = sqlite3.connect(run.path / "ratings.db", isolation_level=None)
        held.execute("BEGIN IMMEDIATE")
        await pilot.press("enter")
        await until_shown(pilot, "not saved (another program", "why")
        held.rollback()
        await pilot.press("enter")
        await until_shown(pilot, "noted")

    play(tmp_path, script)
    with Ratings.open(run.path) as ratings:
        assert [(row.action, row.note) for row in ratings.votes()] == [("note", "why")]


def test_an_odd_database_is_named_and_repaired(tmp_path: Path) -> None:
    """One whose view is gone: the list of runs says so, and the screen that rates makes it whole."""
    run = a_run(tmp_path)
    queue(run, 3)
    with sqlite3.connect(run.path / "ratings.db") as raw:
        raw.execute("DROP VIEW live")

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await until_shown(pilot, "its ratings: lacks the table live")
        await pilot.press("4")
        await until_shown(pilot, "Question 0?", "was damaged")
        await pilot.press("left")
        await until_shown(pilot, "Question 1?")

    play(tmp_path, script, (120, 36))
    assert len(votes(run)) == 1
    assert [
        path.suffix[:9]
        for path in run.path.glob("*.damaged-*")
        if "-wal" not in path.name and "-shm" not in path.name
    ] == [".damaged-"]


def test_a_damaged_database_that_another_program_has_open_is_told(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    queue(run, 3)
    with Ratings.open(run.path) as held:
        held.connection.execute("DROP VIEW live")
        assert "another program has it open" in " ".join(
            rate(tmp_path, ["left", "u"], (120, 36)).split()
        )
    assert "1 of 3" in rate(tmp_path, ["left"])


def test_a_vote_of_another_window_is_told_before_it_is_replaced(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    queue(run, 3)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("4")
        await until_shown(pilot, "Question 0?")
        with Ratings.open(run.path) as other:
            other.vote(1, live_sampling.rater_name(), "another window", "tie")
            other.vote(2, live_sampling.rater_name(), "another window", "all_bad")
        await settled(app, pilot)
        await pilot.press("left")
        await until_shown(pilot, "in another window meanwhile: tie", "Question 0?")
        assert [vote.outcome for vote in votes(run)] == ["tie", "all_bad"]
        await pilot.press("left")
        await until_shown(pilot, "Question 2?")
        assert [vote.outcome for vote in votes(run)] == ["all_bad", "ranked"]

    play(tmp_path, script)


def test_a_database_that_is_moved_away_takes_no_votes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A vote into a file that has no name any more would be shown as saved, and lost."""
    monkeypatch.setattr("ondevice_tui.screens.rating_page.RETRY_S", 0.5)
    run = a_run(tmp_path)
    queue(run, 3)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("4")
        await until_shown(pilot, "Question 0?")
        await pilot.press("left")
        await until_shown(pilot, "Question 1?")
        with sqlite3.connect(run.path / "ratings.db") as raw:
            raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (run.path / "ratings.db").rename(tmp_path / "moved.db")
        await pilot.press("left")
        await until_shown(pilot, "not saved", "was moved")
        (tmp_path / "moved.db").rename(run.path / "ratings.db")
        await until_shown(pilot, "1 of 3", "Question 1?")
        await pilot.press("left")
        await until_shown(pilot, "Question 2?")

    play(tmp_path, script, (120, 36))
    assert len(votes(run)) == 2


def test_a_database_that_is_damaged_while_a_person_rates_is_repaired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ondevice_tui.screens.rating_page.RETRY_S", 0.5)
    run = a_run(tmp_path)
    queue(run, 3)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("4")
        await until_shown(pilot, "Question 0?")
        with sqlite3.connect(run.path / "ratings.db") as raw:
            raw.execute("UPDATE item SET shown = '[7, 0]' WHERE id = 2")
        await pilot.press("left")
        await until_shown(pilot, "is repaired", "Question 2?")

    play(tmp_path, script, (120, 36))
    assert len(votes(run)) == 1
