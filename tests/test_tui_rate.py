"""Rating by keys: every vote on disk, undone, guarded, blind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from textual.events import Paste
from textual.pilot import Pilot
from textual.widgets import Input

from ondevice.preferences.database import Ratings
from ondevice.preferences.votes import Response
from ondevice.runs.folder import RunFolder
from ondevice_tui import live_sampling
from ondevice_tui.app import OndeviceApp
from ondevice_tui.screens.rate import RateScreen
from ondevice_tui.widgets.answers import Answer, differences
from ondevice_tui.widgets.safe import content
from test_tui import fits, play
from tui_rating import no_guard, press, queue, rate, settled, votes  # noqa: F401
from tui_runs import SIZES, a_run, shown, until, until_shown

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("size", SIZES)
def test_a_pair_without_names(tmp_path: Path, size: tuple[int, int]) -> None:
    queue(a_run(tmp_path))
    text = rate(tmp_path, [], size)
    assert fits(text, size) and "secret" not in text
    for said in ("0 of 5", "this session 0", "Question 0?", "answer x to 0", "✓ read", "─ 2 → ─"):
        assert said in text


def test_every_key_votes_as_it_says(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    queue(run, 7)
    text = rate(tmp_path, ["left", "2", "less_than_sign", "shift+right", "t", "x"])
    assert "6 of 7" in text and "4 usable of 100" in text and "this session 6" in text
    assert "last: all bad" in text
    found = votes(run)
    with Ratings.open(run.path) as ratings:
        items = [ratings.item(vote.item) for vote in found]
    picked = [
        item.shown.index(vote.ranking[0])
        for vote, item in zip(found, items, strict=True)
        if vote.ranking
    ]
    assert picked == [0, 1, 0, 1]
    assert [vote.strength for vote in found] == [1, 1, 2, 2, None, None]
    assert [vote.outcome for vote in found] == ["ranked"] * 4 + ["tie", "all_bad"]
    assert all(vote.seen_end and vote.dwell_ms is not None for vote in found)


@pytest.mark.parametrize("key", ["a", "b", "A", "n"])
def test_a_letter_of_the_plain_terminal_is_no_vote(tmp_path: Path, key: str) -> None:
    """b is "answer B" there, and was "all bad" here: by either habit it would store a wrong vote."""
    run = a_run(tmp_path)
    queue(run, 2)
    assert "a b g n p do nothing here" in rate(tmp_path, [key, key]) and not votes(run)


def test_skip_undo_note_flag_reasons(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    queue(run, 3)
    text = rate(
        tmp_path,
        ["r", "1", "3", "enter", "left", "u", "u", "right", "f", "N", *"why", "enter", "s", "left"],
    )
    assert (
        "Everything here is rated" in text
        and "1 skipped" in text
        and "a reward model wants about 100" in text
    )
    with Ratings.open(run.path) as ratings:
        rows = ratings.votes()
    assert [row.action for row in rows] == ["vote", "undo", "vote", "flag", "note", "skip", "vote"]
    assert rows[0].reason == "wrong, style" and rows[2].reason is None and rows[4].note == "why"
    assert [vote.action for vote in votes(run)] == ["vote", "skip", "vote"]


def test_a_note_of_several_lines(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    queue(run, 1)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("4")
        await until_shown(pilot, "Question 0?")
        await pilot.press("N")
        await until_shown(pilot, "a note on this pair")
        app.post_message(Paste("one\ntwo"))
        await until_shown(pilot, "two")
        await pilot.press("ctrl+j", *"three", "enter")
        await until_shown(pilot, "noted")

    play(tmp_path, script)
    with Ratings.open(run.path) as ratings:
        assert [row.note for row in ratings.votes()] == ["one\ntwo\nthree"]


def test_four_answers_are_ranked(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    queue(run, 3, width=4)
    text = rate(tmp_path, ["3", "1", "u"], (120, 36))
    assert "best first: 3" in text and "answer w to 0" in text
    rate(tmp_path, ["3", "1", "4", "2", "enter"])
    first, second = votes(run)
    with Ratings.open(run.path) as ratings:
        assert [ratings.item(first.item).shown.index(slot) for slot in first.ranking] == [
            2,
            0,
            3,
            1,
        ]
        assert [ratings.item(second.item).shown.index(slot) for slot in second.ranking] == [1]


def test_a_begun_ranking_is_not_left_by_the_key_beside(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    queue(run, 1, 4)
    assert "a ranking is begun" in rate(tmp_path, ["3", "5", "6", "7"])
    assert "Everything here is rated" in rate(tmp_path, ["3", "5", "1", "2"])
    assert votes(run)[0].ranking[:2]


def test_an_end_that_was_not_read_is_asked_for(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    queue(run, 2, long=True)
    text = rate(tmp_path, ["left"])
    assert (
        "the end of an answer was not read" in text
        and "more: j" in text
        and "% read" in text
        and not votes(run)
    )
    rate(tmp_path, ["left", "left"])
    (vote,) = votes(run)
    assert vote.seen_end is False

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("4")
        await until_shown(pilot, "Question 1?")
        panes = [pane for pane in app.screen.query(Answer) if pane.display]
        for _ in range(200):
            if all(pane.read_to_end for pane in panes):
                break
            await pilot.press("j")
        await until(pilot, lambda: all(pane.read_to_end for pane in panes))
        await press(app, pilot, "right")

    play(tmp_path, script)
    assert votes(run)[1].seen_end is True


CHAT = [
    {"role": "system", "content": "You are terse. " * 40},
    {
        "role": "user",
        "content": f"Read this:\n\ndef f(x):\n    return x + 7\n{'filler ' * 120}\nLAST OF FIRST",
    },
    {"role": "assistant", "content": "I have read it."},
    {"role": "user", "content": "Now explain it.\n" + "\n".join(f"- point {n}" for n in range(30))},
]


def a_chat(run: RunFolder, messages: list[dict[str, str]]) -> None:
    with Ratings.open(run.path, create=True) as ratings:
        ratings.add("a", messages, [Response("this", "x"), Response("that", "y")], seed=0)


@pytest.mark.parametrize("size", [*SIZES, (60, 20)])
def test_the_question_is_in_view_and_scrolls(tmp_path: Path, size: tuple[int, int]) -> None:
    run = a_run(tmp_path)
    a_chat(run, CHAT)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("4")
        text = await until_shown(
            pilot, "Now explain it.", "question · 3 earlier messages: c", "more: J"
        )
        assert "terse" not in text and "point 29" not in text
        await pilot.press("left")
        await until_shown(pilot, "the end of the question was not read: J scrolls it")
        assert not votes(run)
        for _ in range(20):
            await pilot.press("J")
        assert "point 29" in await until_shown(pilot, "• point 29")
        for _ in range(20):
            await pilot.press("K")
        await until_shown(pilot, "Now explain it.", "✓ read")
        await pilot.press("left")
        await until(pilot, lambda: votes(run))

    play(tmp_path, script, size)
    assert votes(run)[0].seen_end is True


def test_a_vote_on_a_question_that_was_not_read_is_marked(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    a_chat(run, CHAT)
    rate(tmp_path, ["left", "left"])
    assert votes(run)[0].seen_end is False


def test_the_whole_conversation_on_a_key(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    a_chat(run, CHAT)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("4")
        await until_shown(pilot, "earlier messages: c")
        await pilot.press("c")
        await until_shown(pilot, "the whole conversation", "You are terse.")
        await pilot.press("escape", "left")
        await until_shown(pilot, "the end of the question was not read")
        await pilot.press("c")
        text = await until_shown(pilot, "the whole conversation", "You are terse.", "system")
        for _ in range(3):
            await pilot.press("space")
            text += "\n" + shown(app)
        for whole in (
            "def f(x):",
            "return x + 7",
            "LAST OF FIRST",
            "I have read it.",
            "assistant",
        ):
            assert whole in text, whole
        await pilot.press("home")
        await until_shown(pilot, "You are terse.")
        await pilot.press("end")
        await until_shown(pilot, "• point 29")
        await pilot.press("c", "right")
        await until(pilot, lambda: votes(run))

    play(tmp_path, script)
    assert votes(run)[0].seen_end is True


def test_a_key_that_comes_too_soon_is_not_a_vote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RateScreen, "GUARD_S", 1e9)
    run = a_run(tmp_path)
    queue(run)
    assert "too soon" in rate(tmp_path, ["left", "t", "s", "enter"])
    assert not votes(run)


def test_another_rater_layout_diff_and_statistics(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    queue(run, 2)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("4")
        await until_shown(pilot, "─ 2 → ─")
        await pilot.press("w")
        await until_shown(pilot, "1 ← above")
        await press(app, pilot, "d", "left", "right")
        await until_shown(pilot, "Everything here is rated")
        await pilot.press("i")
        app.screen.query_one(Input).value = "Vera [/]"
        await pilot.press("enter")
        await until_shown(pilot, "0 of 2", "session 0 · Vera [/]")
        await pilot.press("S")
        await until_shown(pilot, "sways a rater")
        await press(app, pilot, "n", "left", "left", "S")
        text = await until_shown(pilot, "what the votes are worth", "Vera [/]")
        assert "secret-0" in text
        await pilot.press("escape", "m")
        await until_shown(pilot, "further pairs")
        await pilot.press("escape", "M")
        await until_shown(pilot, "start sample")

    play(tmp_path, script, (120, 36))
    assert {vote.rater for vote in votes(run)} >= {"Vera [/]"} and len(votes(run)) == 4


def test_nothing_to_rate_says_what_to_do(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    assert "No pairs to rate in this run yet" in rate(
        tmp_path, ["left", "u", "s", "N", "f", "r", "d", "w", "S", "H", "I", "P", "end", "V"]
    )
    (run.path / "ratings.db").write_text("no database")
    assert "is not a ratings database" in rate(tmp_path, ["left", "u"])


def test_differences_are_marked() -> None:
    made = differences(content("the big [/] cat"), "the small [/] cat")
    assert made.plain == "the big [/] cat"
    assert [
        made.plain[span.start : span.end] for span in made.spans if "underline" in str(span.style)
    ] == ["big"]


def test_undo_says_what_it_was_asks_past_the_session_and_is_taken_back(tmp_path: Path) -> None:
    """u held down once deleted every vote of every session."""
    run = a_run(tmp_path)
    queue(run, 5)
    with Ratings.open(run.path) as ratings:
        ratings.vote(1, live_sampling.rater_name(), "last week", "tie")

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("4")
        await until_shown(pilot, "Question 1?")
        for key in ("shift+right", "x", "s"):
            await settled(app, pilot)
            await pilot.press(key)
        await settled(app, pilot)
        for said, last in (
            ("taken back (1): it was skipped", "last: all bad"),
            ("taken back (2): it was all bad", "last: 2 ››"),
            ("taken back (3): it was 2 is much better", ""),
        ):
            await pilot.press("u")
            text = await until_shown(pilot, said)
            await settled(app, pilot)
            assert last in text if last else "last:" not in text
        for _ in range(5):  # held down
            await pilot.press("u")
        await until_shown(pilot, "of an earlier session", "ago: tie.")
        await pilot.press("n")
        await settled(app, pilot)
        assert [vote.outcome for vote in votes(run)] == ["tie"]
        # the first one is rated anew, so that only the other two come back
        await pilot.press("left")
        await until_shown(pilot, "Question 2?")
        await pilot.press("U")
        await until(pilot, lambda: len(votes(run)) == 3)
        await settled(app, pilot)
        assert [vote.outcome for vote in votes(run)] == ["tie", "ranked", "all_bad"]
        await pilot.press("U")
        await until(pilot, lambda: [vote.action for vote in votes(run)][-1] == "skip")
        await settled(app, pilot)
        await pilot.press("U")
        await until_shown(pilot, "nothing to store again")

    play(tmp_path, script)


def test_what_was_read_is_told_of_the_pair_that_is_shown(tmp_path: Path) -> None:
    """A pair that a card or undo brings back is laid out later than it is asked about: a short
    answer beside a long one must not have the long one's share, nor the other way round."""
    run = a_run(tmp_path)
    with Ratings.open(run.path, create=True) as ratings:
        for i in range(6):
            responses = [Response("short", source="one"), Response("more\n" * 90, source="other")]
            ratings.add("first", f"Question {i}?", responses, seed=0)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("4")
        await until_shown(pilot, "Question 0?")
        screen = app.screen
        assert isinstance(screen, RateScreen)
        for _ in range(5):
            await pilot.press("end", "t")
            await settled(app, pilot)
        for row in range(5):
            await pilot.press("H", *["down"] * row, "enter")
            await until(pilot, lambda: app.screen is screen and screen._jumped)
            await settled(app, pilot)
            await until(pilot, lambda: all(pane.border_subtitle for pane in screen.answers.panes))
            item = screen.item
            assert item is not None
            for pane, slot in zip(screen.answers.panes, item.shown, strict=False):
                whole = item.responses[slot].text == "short"
                assert pane.read_to_end is whole, (row, pane.border_subtitle)
                assert ("✓ read" in str(pane.border_subtitle)) is whole

    play(tmp_path, script)
