"""The keys of rating: the same in the app and in the terminal; a person's own ones are refused where
they do something else, and remembered."""

from __future__ import annotations

import json
import sys
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
    typed_as,
)
from ondevice.preferences.terminal_answers import COMMANDS, Answers
from ondevice.preferences.terminal_keys import ARROWS, ESCAPE, LEFT, RIGHT
from ondevice.preferences.votes import Response, Vote
from ondevice.rating_rounds.command import RoundsSession
from ondevice_tui import imports
from ondevice_tui.app import OndeviceApp
from ondevice_tui.screens.keep_pair import Keep
from ondevice_tui.screens.page import Page
from ondevice_tui.screens.rate import RateScreen
from ondevice_tui.screens.rate_keys import KEYS, PAIRS
from ondevice_tui.screens.rate_own_keys import BY_DEED, shown_keys
from ondevice_tui.screens.road import RoadScreen
from test_tui import play
from tui_rating import no_guard, queue  # noqa: F401
from tui_runs import a_run, shown, until, until_shown
from typed_keys import Typed


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


def keys_of(screen: Any) -> dict[str, str]:
    """Key → deed."""
    found = {}
    for binding in screen.BINDINGS:
        for key in binding.key.split(","):
            found[key] = binding.action
    return found


PAGES = [
    ("ondevice_tui.screens.road", "RoadScreen"),
    ("ondevice_tui.screens.train", "TrainScreen"),
    ("ondevice_tui.screens.ladder", "LadderScreen"),
    ("ondevice_tui.screens.rewards", "ReasonScreen"),
    ("ondevice_tui.screens.rate", "RateScreen"),
    ("ondevice_tui.screens.push", "PushScreen"),
    ("ondevice_tui.widgets.run_list", "RunList"),
]


def test_the_cards_of_rating_have_the_keys_of_the_screen() -> None:
    keep, rate = keys_of(Keep), keys_of(RateScreen)
    for key, deed in (("1", "'1'"), ("left", "'1'"), ("2", "'2'"), ("t", "'tie'"), ("x", "'bad'")):
        assert keep[key] == f"dismiss({deed})" and key in rate


def test_keys_of_the_road_mean_nothing_else_where_one_rates() -> None:
    """n, g and p lead somewhere on the road: here they do nothing but say so."""
    rate, road = keys_of(RateScreen), keys_of(RoadScreen)
    for key in "ngp":
        assert key in road and rate[key] == "letter"


def test_a_capital_letter_has_one_deed_on_every_screen() -> None:
    """J and K scroll wherever they are; a letter that only says what it is not does nothing."""
    deeds: dict[str, set[str]] = {}
    imports.load_all()
    screens = [getattr(sys.modules[module], name) for module, name in PAGES] + [OndeviceApp]
    for screen in screens:
        for binding in screen.BINDINGS:
            for key in binding.key.split(","):
                if len(key) == 1 and key.isupper() and key not in "JK" and binding.description:
                    deeds.setdefault(key, set()).add(binding.description)
    assert {key: found for key, found in deeds.items() if len(found) > 1} == {}
    assert {"H", "N", "P", "U", "W", "R", "X", "D"} <= deeds.keys()


def test_every_key_has_one_deed_and_is_explained() -> None:
    found: list[str] = []
    for binding in KEYS:
        found += binding.key.split(",")  # type: ignore[union-attr]
        assert binding.tooltip or not binding.description  # type: ignore[union-attr]
    assert len(found) == len(set(found))


def test_every_key_of_the_screen_is_known_here() -> None:
    """A key that is bound and stands neither among the deeds nor among the others could be given
    away, and would no longer do what it did."""
    bound = keys_of(OndeviceApp) | keys_of(RateScreen)
    names = {_name(deed.key): name for name, deed in DEEDS.items()}
    assert {name: bound[key] for key, name in names.items()} == {
        name: BY_DEED[name].action for name in DEEDS
    }
    assert set(BY_DEED) == set(DEEDS) and set(PAIRS) | set(PAIRS.values()) <= set(DEEDS)
    fixed = {_name(key) for key in FIXED}
    characters = {key for key in bound if len(key) == 1 or key in map(_name, "?/*<>[]{}+-=")}
    said_only = {key for key, action in bound.items() if action == "letter"}
    assert characters - said_only <= set(names) | fixed


def _name(key: str) -> str:
    """A key as a binding has it."""
    return key if key.startswith("ctrl+") else _character_to_key(key)


# What a terminal sends for the keys of the app that are no characters. What it makes of ctrl+c and
# ctrl+z itself (it interrupts, it stops until `fg`) no program reads.
SENT = {"backspace": "\x7f", "enter": "\r", "tab": "\t"}
OF_THE_TERMINAL = {"ctrl+c", "super+c", "ctrl+z"}


def test_a_key_does_the_same_in_the_app_and_in_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every key of the Rate screen and of the app, ctrl and arrows among them, typed at a pair in
    `ondevice rate`: it does the same, or nothing, and a character says then what it is in the app."""
    bound = keys_of(Page) | keys_of(OndeviceApp) | keys_of(RateScreen)
    deed_of = {binding.action: name for name, binding in BY_DEED.items()}
    deed_of["leave"], deed_of["explain"] = "quit", "help"
    nothing: set[str] = set()
    for key, action in bound.items():
        if key in OF_THE_TERMINAL:
            continue
        did, told = _deed_of_typed(SENT.get(key) or _sent(key)), capsys.readouterr().out
        if did:
            assert did == deed_of.get(action), (key, did)
            continue
        nothing.add(deed_of.get(action, action))
        if len(key) == 1 or key == "space":
            said = f"{key} is" in told and "in the app, and nothing here" in told
            others = ("letters are no answers here", "means nothing", "there are 2 answers")
            assert said or any(other in told for other in others), key
        assert action != "letter" or "letters are no answers" in told or key in "gGp", key
    only_in_app = {name for name, deed in DEEDS.items() if not deed.in_terminal}
    assert nothing & set(DEEDS) == only_in_app | {"third", "fourth"}
    assert {"leave_out", "own_keys"} <= {name for name in DEEDS if DEEDS[name].in_terminal}
    # and nothing is done there by a character that is another key, or none, here
    for number in range(1, 127):
        did, _ = _deed_of_typed(chr(number)), capsys.readouterr()
        if did and chr(number) not in "qy?\x08\x7f\x11":
            assert deed_of.get(bound[_name(_named(chr(number)))]) == did, (number, did)


def test_keys_of_a_ranking_on_a_terminal() -> None:
    for typed, answer in (
        ("34\r", "cd"), ([RIGHT, "3", "u", "\x7f", LEFT, "\r"], "a"), ("3t", "t"), ("21\x01", "\x01"),
        (["3", ESCAPE, "\r"], "c"), ("413", "dac"), (["\r", "q"], "q"), ("", None), ("22\r", "b"),
    ):  # fmt: skip
        assert Answers(Typed(typed), OwnKeys({})).ask(4) == answer  # type: ignore[arg-type]
    # where no pair is shown
    assert Answers(Typed("1axu"), OwnKeys({})).ask(0) == "x"  # type: ignore[arg-type]


def _named(character: str) -> str:
    """`ctrl+a` for what a terminal sends for it."""
    return f"ctrl+{chr(ord(character) + 96)}" if ord(character) < 27 else character


def _sent(key: str) -> str:
    """What `Keys` reads for a key of a binding; an escape for what has no character."""
    if key in ARROWS:
        return key
    if key.startswith("ctrl+"):
        return typed_as(key)
    for number in range(32, 127):
        if _character_to_key(chr(number)) == key:
            return chr(number)
    return ESCAPE


def _deed_of_typed(key: str) -> str:
    """What this key does at a pair in the terminal; empty for nothing."""
    answer = Answers(Typed([key, "\x11"]), OwnKeys({})).ask(2)  # type: ignore[arg-type]
    votes = {"a": "left", "b": "right", "A": "much_left", "B": "much_right"}
    if answer == "q" and key not in "q\x11":
        return ""
    return {**votes, **COMMANDS, "q": "quit", "?": "help"}.get(answer or "", answer or "")


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
    assert "a/2 best · < L much · t tie" in said
    assert "your own   a the first (left) is better" in said
    assert "X is the whole conversation in the app, and nothing here" in said
    # a line of a file means what it always did
    lines = _rated(tmp_path / "lines.db", Typed("bbb", interactive=False), {"left": "b"})
    assert [vote.ranking[0] == vote.shown[1] for vote in lines] == [True] * 3


def test_own_keys_vote_while_the_model_learns(tmp_path: Path) -> None:
    """`ondevice rounds` asks by the same keys."""
    own_keys("right=l")
    with Ratings.open(tmp_path / "r.db", create=True) as ratings:
        ratings.add("b", "Question?", [Response("yes"), Response("no")], seed=0)
        cfg = RateConfig(ratings=str(tmp_path), rater="ann", repeat_share=0)
        RoundsSession(ratings, Typed("l"), cfg, lambda: "version 1").run()  # type: ignore[arg-type]
        [vote] = ratings.live_votes()
    assert vote.ranking[0] == vote.shown[1]


def test_the_prompt_without_own_keys() -> None:
    assert (
        OwnKeys({}).prompt("ABC", much=False)
        == ("a/b/c best · t tie · x all bad · s skip · u undo · q quit · ? help > ")
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
    queue(run, 3)
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
