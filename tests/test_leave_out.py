"""Many pairs leave the queue at once, and come back at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from ondevice.preferences.database import Ratings
from ondevice.preferences.pairs import pairs_of
from ondevice.preferences.rating_queue import Asking, Wanted, next_turn
from ondevice.preferences.undo import leave_out, put_back
from ondevice.preferences.votes import Response
from ondevice_tui.app import OndeviceApp
from ondevice_tui.screens.rate import RateScreen
from test_tui import play
from test_tui_rate import no_guard, press, settled  # noqa: F401
from tui_runs import a_run, shown, until, until_shown


def _queue(path: Path, count: int = 6) -> None:
    """Every other pair has an answer of `b`."""
    with Ratings.open(path, create=True) as ratings:
        for n in range(count):
            of = "ab"[n % 2]
            answers = [Response(f"yes {n}", source=of), Response(f"no {n}", source="c")]
            ratings.add("q", f"Question {n}?", answers, seed=0)


def test_all_of_one_checkpoint_leave_and_come_back(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    _queue(path)
    with Ratings.open(path) as ratings:
        ratings.vote(2, "ann", "s", "ranked", [0, 1])
        ratings.vote(2, "bob", "s", "ranked", [0, 1])
        ratings.vote(1, "ann", "s", "ranked", [0, 1])
        before = [(vote.item, vote.rater, vote.action) for vote in ratings.live_votes()]
        wanted = Asking("ann", "s", 0, wanted=Wanted(source="b"))
        assert next_turn(ratings, wanted).waiting == [4, 6]
        skips = leave_out(ratings, [2, 4, 6], "ann", "s")
        assert ratings.voted(2, "ann") is None and ratings.voted(2, "bob") is not None
        assert len(pairs_of(ratings)) == 2, "ann's vote on 1, bob's on 2"
        # what is rated since stays, and is not in the way of the others
        ratings.vote(6, "ann", "s", "tie")
        assert put_back(ratings, skips, "s") == [2, 4]
        after = [(vote.item, vote.rater, vote.action) for vote in ratings.live_votes()]
        assert after == [*before, (6, "ann", "vote")]
        assert put_back(ratings, skips, "s") == [] == put_back(ratings, [], "s")


@pytest.mark.slow
def test_a_list_and_what_waits_are_left_out_in_the_app(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    _queue(run.path)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("4")
        await until_shown(pilot, "Question 0?")
        screen = app.screen
        assert isinstance(screen, RateScreen)
        await press(app, pilot, "f", "1")
        await until_shown(pilot, "Question 1?", "last: 1")
        await pilot.press("H")
        await until_shown(pilot, "votes so far")
        await pilot.press("right")
        await until_shown(pilot, "[flagged 1]")
        await pilot.press("ctrl+a")
        await until_shown(pilot, "Leave out 1 pair of the list 'flagged'?", "no longer count")
        await pilot.press("y")
        await until_shown(pilot, "left out: 1 pair")
        with Ratings.open(run.path) as ratings:
            assert ratings.voted(1, screen.rater) is None
        # of what waits, all with an answer of b
        screen.wanted = Wanted(source="b")
        screen.next()
        await settled(app, pilot)
        await pilot.press("ctrl+a")
        await until_shown(pilot, "Leave out 3 pairs that wait (b)?")
        await pilot.press("y")
        await until(pilot, lambda: screen.item is None and not screen.busy)
        await pilot.press("u")
        await until_shown(pilot, "taken back: 3 pairs as before", "Question 1?")
        await pilot.press("u")
        await until_shown(pilot, "taken back: 1 pair as before")
        with Ratings.open(run.path) as ratings:
            assert ratings.voted(1, screen.rater) is not None and len(ratings.live_votes()) == 1
        assert "Question 1?" in shown(app)

    play(tmp_path, script, (100, 30))
