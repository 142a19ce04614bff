"""What the app remembers from one time to the next, and what a damaged file of it does: nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from ondevice.common.remembered import Remembered, settings_file
from ondevice_tui import live_sampling
from ondevice_tui.app import DARK, LIGHT, OndeviceApp
from ondevice_tui.screens.chat import ChatScreen
from ondevice_tui.screens.chat_settings import is_sampling
from ondevice_tui.screens.rate import RateScreen
from ondevice_tui.screens.sample_pairs import SAMPLING, is_pair_sampling
from ondevice_tui.widgets.curve import Curve
from test_tui import play
from tui_rating import queue
from tui_runs import a_run, until, until_shown


def test_two_windows_remember_beside_each_other(tmp_path: Path) -> None:
    file = tmp_path / "config" / "app.json"
    one, two = Remembered(file), Remembered(file)
    assert one.get("rater", lambda _: True) is None and one.trouble == ""
    assert one.keep("rater", "Ada") == "" and two.keep("smoothing", 0.0) == ""
    both = Remembered(file)
    assert (
        both.get("rater", lambda _: True) == "Ada" and both.get("smoothing", lambda _: True) == 0.0
    )
    assert both.get("rater", lambda value: value == "Bob") is None
    assert [path.name for path in file.parent.iterdir()] == ["app.json"]


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00\xff", "[" * 100_000])
def test_a_damaged_file_is_told_and_set_aside(tmp_path: Path, text: str) -> None:
    file = tmp_path / "app.json"
    file.write_text(text, encoding="latin-1")
    found = Remembered(file)
    assert (
        "is damaged and is not used" in found.trouble and found.get("rater", lambda _: True) is None
    )
    assert found.keep("rater", "Ada") == ""
    assert json.loads(file.read_text()) == {"rater": "Ada"}
    assert (tmp_path / "app.json.damaged").read_text(encoding="latin-1") == text


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("a file where the folder should be")
    assert "cannot be written" in Remembered(tmp_path / "config" / "app.json").keep("rater", "Ada")


@pytest.mark.parametrize(
    "values",
    [
        None,
        {},
        {"temperature": 1},
        {"temperature": "hot", "top_p": 1.0, "top_k": 0, "max_new_tokens": 1, "seed": 0},
    ],
)
def test_odd_settings_of_answers_are_not_taken(values: Any) -> None:
    assert not is_sampling(values)
    assert is_sampling(
        {"temperature": 0.5, "top_p": 1.0, "top_k": 0, "max_new_tokens": 9, "seed": 3}
    )


def test_a_rater_and_how_pairs_are_sampled(tmp_path: Path) -> None:
    remembered = Remembered(tmp_path / "app.json")
    login = live_sampling.rater_name()
    assert live_sampling.rater_name(remembered) == login
    for odd in ("settled:Ada", " ", 3, "x" * 300):
        remembered.keep("rater", odd)
        assert live_sampling.rater_name(remembered) == login
    remembered.keep("rater", "Ada")
    assert live_sampling.rater_name(remembered) == "Ada"
    for odd in (None, [], {"temperatures": "1"}, dict.fromkeys(SAMPLING, 3)):
        assert not is_pair_sampling(odd)
    assert is_pair_sampling(dict.fromkeys(SAMPLING, "2"))


@pytest.mark.slow
def test_choices_are_there_again(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    queue(run, 3)

    async def first(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        assert app.theme == DARK.name
        await pilot.press("T", "4")
        await until_shown(pilot, "Question 0?", live_sampling.rater_name())
        await pilot.press("w", "i")
        await until_shown(pilot, "who rates?")
        app.screen.query_one(Input).value = "Ada"
        await pilot.press("enter")
        await until_shown(pilot, "· Ada")
        await pilot.press("2", "escape", "2")
        await until(pilot, lambda: app.current_mode == "train")
        await until_shown(pilot, "smooth 0.6")
        await pilot.press("e", "y")
        await until_shown(pilot, "smooth 0.9", "y: full")
        await pilot.press("6", "ctrl+e")
        await until_shown(pilot, "how answers are drawn")
        app.screen.query_one("#set-temperature", Input).value = "0.3"
        await pilot.press("enter")
        await until_shown(pilot, "temperature 0.3")

    async def second(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        assert app.theme == LIGHT.name
        await pilot.press("4")
        await until_shown(pilot, "· Ada", "1 ← above")
        assert isinstance(app.screen, RateScreen) and app.screen.rater == "Ada"
        await pilot.press("escape", "2")
        await until(pilot, lambda: app.current_mode == "train")
        assert app.screen.query_one("#curve", Curve).smoothing == 0.9
        await pilot.press("6")
        await until_shown(pilot, "temperature 0.3")
        assert isinstance(app.screen, ChatScreen)

    play(tmp_path, first)
    play(tmp_path, second)
    kept = json.loads(settings_file().read_text())
    assert (
        kept["rater"] == "Ada" and kept["answers_beside"] is False and kept["theme"] == LIGHT.name
    )


@pytest.mark.slow
def test_a_damaged_file_takes_nothing_with_it(tmp_path: Path) -> None:
    settings_file().parent.mkdir(parents=True, exist_ok=True)
    settings_file().write_text("{nonsense")

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await until(pilot, lambda: any("is damaged" in note.message for note in app._notifications))
        await until_shown(pilot, "the road")

    a_run(tmp_path)
    play(tmp_path, script)
