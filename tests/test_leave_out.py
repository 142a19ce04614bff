"""Many pairs leave the queue at once, and come back at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from ondevice.config.ratings import RateConfig
from ondevice.preferences import assignment, terminal
from ondevice.preferences.database import Ratings
from ondevice.preferences.pairs import pairs_of
from ondevice.preferences.rating_queue import Asking, Wanted, next_turn
from ondevice.preferences.undo import leave_out, put_back
from ondevice.preferences.votes import Response
from ondevice_tui.app import OndeviceApp
from ondevice_tui.screens.rate import RateScreen
from test_tui import play
from tui_rating import no_guard, press, settled  # noqa: F401
from tui_runs import a_run, shown, until, until_shown
from typed_keys import Typed


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


def test_all_that_waits_and_a_list_are_left_out_in_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """ctrl+a asks, y does it; u takes it back as a whole, also where nothing is left."""
    path = tmp_path / "r.db"
    _queue(path)

    def session(*typed: str, **fields: Any) -> tuple[list[tuple[int, str]], str]:
        with Ratings.open(path) as ratings:
            cfg = RateConfig(ratings=str(path), rater="ann", repeat_share=0, **fields)
            rated = terminal.Session(ratings, Typed(typed), cfg)  # type: ignore[arg-type]
            rated.run(stays=True)
            assignment.release(ratings, rated.name)
            said = [(vote.item, vote.action) for vote in ratings.live_votes(raters=["ann"])]
        return said, capsys.readouterr().out

    # asked, and another key: nothing is done
    assert session("\x01", "f", "y", "q")[0] == []
    said, told = session("1", "\x01", "y", "u", "q", source="b")
    assert "Leave out 2 pairs that wait (b)?" in told and "left out: 2 pairs" in told
    assert "nothing is left to rate" in told and "taken back: 2 pairs as before" in told
    assert said == [(2, "vote")], "item 2 was voted on, 4 and 6 are as before"
    # a list of H: what is flagged, and the own vote on it; then nothing else waits
    said, told = session("H", "flagged", "\x01", "y", "\x01", "y", "u", "u", "t", "q")
    assert "Leave out 1 pair of the list 'flagged'? They come" in told
    assert "Leave out 4 pairs that wait?" in told and told.count("taken back:") == 2
    assert sorted(said) == [(1, "vote"), (2, "vote")]
    said, told = session("H", "", "\x01", "y", "x", "u", "u", "q")
    assert "Leave out 2 pairs of the list 'mine'? Your votes on 2 of them no longer count" in told
    assert "undone: here it is again (it was: all bad)" in told and "2 pairs as before" in told
    assert sorted(said) == [(1, "vote"), (2, "vote")]
    _, told = session("\x01", "q", settle=True)
    assert "nothing is left to settle" in told


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
