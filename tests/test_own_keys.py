"""A person's own keys for rating: refused where they do something else, the same in the app and in
the terminal, and remembered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from textual.keys import _character_to_key
from textual.pilot import Pilot
from textual.widgets import Input

from ondevice.common.errors import UserError
from ondevice.common.remembered import Remembered, settings_file
from ondevice.config.ratings import RateConfig
from ondevice.preferences import terminal
from ondevice.preferences.database import Ratings
from ondevice.preferences.own_keys import (
    DEEDS,
    FIXED,
    OwnKeys,
    keys_text,
    own_keys,
    parse_keys,
    remembered_keys,
)
from ondevice.preferences.votes import Response, Vote
from ondevice_tui.app import OndeviceApp
from ondevice_tui.screens.rate import RateScreen
from ondevice_tui.screens.rate_keys import PAIRS
from ondevice_tui.screens.rate_own_keys import BY_DEED, shown_keys
from test_tui import play
from test_tui_rate import no_guard  # noqa: F401
from tui_runs import a_run, shown, until, until_shown


@pytest.fixture(autouse=True)
def own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def test_keys_are_read_and_written_alike() -> None:
    own = parse_keys(" left=a, right = l,much_left=A,tie== ,")
    assert own == {"left": "a", "right": "l", "much_left": "A", "tie": "="}
    assert parse_keys(keys_text(own)) == own
    assert parse_keys("none") == parse_keys(" ") == {}


@pytest.mark.parametrize(
    "text, told",
    [
        ("left=t", "keys: t for left is taken: it is tie (a tie)"),
        ("left=c", "keys: c for left is taken: it is context (the whole conversation)"),
        ("left=q", "keys: q for left is taken: quit"),
        ("left=T", "keys: T for left is taken: light or dark"),
        ("left=a, right=a", "keys: a is given to left and to right"),
        ("left=a, left=l", "keys: left stands there twice"),
        ("left=ab", "keys: left='ab' is not a key"),
        ("left=", "keys: left='' is not a key"),
        ("left=\x1b", "keys: left='\\x1b' is not a key"),
        ("left", "keys: 'left' gives no key"),
        ("lefd=a", "did you mean 'left'?"),
    ],
)
def test_what_is_no_key_of_ones_own_is_one_line(text: str, told: str) -> None:
    with pytest.raises(UserError) as raised:
        parse_keys(text)
    assert told in str(raised.value) and "\n" not in str(raised.value)


def test_every_key_of_the_screen_is_known_here() -> None:
    """A key that is bound and stands neither among the deeds nor among the others could be given
    away, and would no longer do what it did."""
    bound: dict[str, str] = {}
    for where in (OndeviceApp, RateScreen):
        for binding in where.BINDINGS:
            for key in binding.key.split(","):  # type: ignore[union-attr]
                bound[key] = binding.action  # type: ignore[union-attr]
    names = {_character_to_key(deed.key): name for name, deed in DEEDS.items()}
    assert {name: bound[key] for key, name in names.items()} == {
        name: BY_DEED[name].action for name in DEEDS
    }
    assert set(BY_DEED) == set(DEEDS) and set(PAIRS) | set(PAIRS.values()) <= set(DEEDS)
    fixed = {_character_to_key(key) for key in FIXED}
    characters = {
        key for key in bound if len(key) == 1 or key in map(_character_to_key, "?/*<>[]{}+-=")
    }
    said_only = {key for key, action in bound.items() if action == "letter"}
    assert characters - said_only <= set(names) | fixed
    # the terminal's keys that are the app's are deeds, and no others do anything there
    here = {key for key in "1234<>" + terminal._COMMANDS + terminal._CAPITALS}
    assert here - {"q", "?", "n", "y"} == {d.key for d in DEEDS.values() if d.in_terminal}


class Typed:
    """Keys that were typed on a terminal."""

    def __init__(self, typed: str, *, interactive: bool = True) -> None:
        self.interactive, self._typed = interactive, list(typed)

    def key(self) -> str | None:
        return self._typed.pop(0) if self._typed else None

    def line(self) -> str | None:
        return self.key()

    def forget(self) -> None:
        pass


def _rated(path: Path, typed: Typed, own: dict[str, str]) -> list[Vote]:
    with Ratings.open(path, create=True) as ratings:
        if not ratings.batches():
            for n in range(3):
                ratings.add("b", f"Question {n}?", [Response("yes"), Response("no")], seed=0)
        cfg = RateConfig(ratings=str(path), rater="ann", repeat_share=0)
        terminal.Session(ratings, typed, cfg, own).run()  # type: ignore[arg-type]
        return ratings.live_votes()


def test_own_keys_vote_in_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = {"left": "a", "much_right": "L", "context": "X"}
    votes = _rated(tmp_path / "r.db", Typed("aXL2"), own)
    said = capsys.readouterr().out
    assert [(vote.ranking[0] == vote.shown[0], vote.strength) for vote in votes] == [
        (True, 1), (False, 2), (False, 1)
    ]  # fmt: skip
    assert "a/2 best · < L much better · t tie" in said
    assert "your own   a the first (left) is better" in said
    assert "X is the whole conversation in the app, and nothing here" in said
    # a line of a file means what it always did
    lines = _rated(tmp_path / "lines.db", Typed("bbb", interactive=False), {"left": "b"})
    assert [vote.ranking[0] == vote.shown[1] for vote in lines] == [True] * 3


def test_the_prompt_without_own_keys() -> None:
    assert (
        OwnKeys({}).prompt("ABC", much=False)
        == (
            "a/b/c best · t tie · x all bad · s skip · u undo · N note · f flag · q quit · ? help > "
        )
        and not OwnKeys({}).told
    )


def test_keys_are_remembered_and_odd_ones_are_not_used() -> None:
    assert own_keys("") == {}
    assert own_keys("left=a, right=l") == {"left": "a", "right": "l"} == own_keys("")
    with pytest.raises(UserError, match="t for left is taken"):
        own_keys("left=t")
    assert own_keys("") == {"left": "a", "right": "l"}, "what is refused changes nothing"
    assert own_keys("none") == {} == own_keys("")
    for odd, told in (
        ({"left": "t"}, "t for left is taken"), ({"left": 3}, "write them like"), ("a", "write them")
    ):  # fmt: skip
        settings_file().write_text(json.dumps({"keys": odd}))
        found, trouble = remembered_keys(Remembered())
        assert found == {} and told in trouble and str(settings_file()) in trouble
        with pytest.raises(UserError, match="none: no own ones"):
            own_keys("")
    assert own_keys("none") == {}


def test_the_foot_shows_both_of_a_pair() -> None:
    assert shown_keys({"right": "l"}) == {"left": "← l", "right": "l"}
    assert shown_keys({"left": "a", "much_left": "A", "tie": "g"}) == {
        "left": "a →", "much_left": "A >", "tie": "g"
    }  # fmt: skip


@pytest.mark.slow
def test_own_keys_in_the_app(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    with Ratings.open(run.path, create=True) as ratings:
        for n in range(3):
            ratings.add("b", f"Question {n}?", [Response("yes"), Response("no")], seed=0)
    own_keys("right=b")

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("4")
        await until_shown(pilot, "Question 0?", "← b better", "─ 1 ← ─", "─ 2 b ─")
        await pilot.press("b")
        await until_shown(pilot, "Question 1?", "last: 2")
        await pilot.press("ctrl+k")
        await until_shown(pilot, "keys of your own")
        app.screen.query_one(Input).value = "left=t"
        await pilot.press("enter")
        await until_shown(pilot, "t for left is taken")
        app.screen.query_one(Input).value = "left=a, tie=g"
        await pilot.press("enter")
        await until_shown(pilot, "your keys: left=a, tie=g", "a → better", "g tie", "─ 1 a ─")
        await pilot.press("a")
        await until_shown(pilot, "Question 2?", "last: 1")
        await pilot.press("b")  # nobody's any more
        await until_shown(pilot, "do nothing here", "Question 2?")
        await pilot.press("question_mark")
        await until_shown(pilot, "a ← 1", "g t")
        await pilot.press("escape", "g")
        await until(pilot, lambda: isinstance(app.screen, RateScreen) and app.screen.item is None)
        assert "tie" in shown(app)

    play(tmp_path, script, (100, 30))
    with Ratings.open(run.path) as ratings:
        said = [(vote.outcome, vote.ranking[:1], vote.shown) for vote in ratings.live_votes()]
    assert [outcome for outcome, _, _ in said] == ["ranked", "ranked", "tie"]
    assert said[0][1] == said[0][2][1:2] and said[1][1] == said[1][2][:1]
    assert own_keys("") == {"left": "a", "tie": "g"}
