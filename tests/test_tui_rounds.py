"""The card of the rounds over the Rate screen: how the versions stand, and the loop begun from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from ondevice.common.intervals import wilson
from ondevice.config.rounds import RoundsConfig
from ondevice.preferences.database import Ratings
from ondevice.preferences.votes import Response
from ondevice.rating_rounds.places import RoundsFolder, batch_of
from ondevice.rating_rounds.standing import Rounds, Standing, sentence
from ondevice_tui.app import OndeviceApp
from ondevice_tui.screens import rounds as card
from ondevice_tui.screens.rate import RateScreen
from ondevice_tui.screens.rounds import BAR, RoundsCard, interval, told_of
from test_tui import fits, play
from tui_rating import no_guard  # noqa: F401
from tui_runs import a_run, until, until_shown

CFG = RoundsConfig(run="runs/x")
SKILLS = {"exact_match": 0.7, "reasoning": 0.65, "bits_per_byte": 0.87}
START = {"exact_match": 0.729, "reasoning": 0.717, "bits_per_byte": 0.867}


def known() -> Rounds:
    one = Standing(
        1, "refused", 30, wilson(2, 12), (0.17, 0.04, 0.45), SKILLS, "you prefer the start"
    )
    two = Standing(2, "ready", 60, wilson(34, 48), (0.71, 0.57, 0.82), SKILLS)
    three = Standing(3, "training", 90, wilson(0, 0), None)
    found = [one, two, three]
    return Rounds(found, 2, 97, 7, sentence(found, 2), START)


def test_the_card_says_the_sentence_the_curve_and_the_cost() -> None:
    text = told_of(known(), CFG, {"now": "version 3 is being trained"}, True).plain
    assert "you prefer version 2 to the start in 71 % of 48 pairs (57 to 82)" in text
    assert "at work  version 3 is being trained" in text
    assert "97 usable votes, 23 until the next version" in text
    assert "▸ version 2" in text and "71 % (57 to 82), 48 pairs" in text
    assert "version 3  not yet known (0 pairs), training" in text
    assert "70.0 % -2.9" in text and "version 1 refused: you prefer the start" in text
    assert max(map(len, text.split("\n"))) <= 76
    nothing = told_of(None, CFG, {}, False, "no room").plain
    assert "g begins" in nothing and "no room" in nothing


def test_an_interval_is_drawn_between_0_and_100() -> None:
    drawn = interval(0.71, 0.57, 0.82)
    assert len(drawn) == BAR and drawn.index("├") < drawn.index("●") < drawn.index("┤")
    assert interval(0.0, 0.0, 0.2).startswith("●") and interval(0.9, 0.8, 1.0)[-1] == "┤"
    assert interval(0.1, 0.05, 0.2)[round((BAR - 1) / 2)] == "┊"


@pytest.mark.slow
def test_by_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """v opens it, + and − choose how many votes a version waits for, g begins the loop and says
    where it cannot; with a loop at work its pairs alone are asked."""
    run = a_run(tmp_path)
    cfg = RoundsConfig(run=str(run.path), rater="me")
    begun: list[RoundsFolder] = []
    with Ratings.open(run.path, create=True) as ratings:
        ratings.add("old", "An older one?", [Response("a"), Response("b")], seed=0)
        ratings.add(batch_of(cfg), "Of the rounds?", [Response("c"), Response("d")], seed=0)
    monkeypatch.setattr(card, "start_loop", begun.append)
    monkeypatch.setattr(RoundsFolder, "busy", property(lambda folder: bool(begun)))

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("4")
        await until_shown(pilot, "An older one?")
        await pilot.press("v")
        text = await until_shown(pilot, "at rest", "there is no version yet", "every 30 usable")
        assert fits(text, (80, 24))
        await pilot.press("plus")
        await until_shown(pilot, "every 50 usable")
        await pilot.press("g")
        await until_shown(pilot, "✗", "tuned")
        (run.stage("sft").model).mkdir(exist_ok=True)
        (run.stage("sft").model / "config.json").write_text("{}")
        await pilot.press("g")
        await until_shown(pilot, "at work", "every 50 votes")
        kept = json.loads(RoundsFolder(run.path).settings.read_text())
        assert kept["every"] == 50 and len(begun) == 1
        await pilot.press("escape")
        await until_shown(pilot, "Of the rounds?")
        screen = app.screen
        assert isinstance(screen, RateScreen) and screen.wanted.batch == batch_of(cfg)
        await pilot.press("v")
        await until(pilot, lambda: isinstance(app.screen, RoundsCard))
        await pilot.press("plus")  # what is shown is what the loop does
        await until_shown(pilot, "keeps its number", "every 50 votes")

    play(tmp_path, script)
