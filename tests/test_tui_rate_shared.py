"""The Rate screen beside the voting: reading, history, what raters share, settling, learning; and the
keys, which are the same in the plain terminal.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from ondevice.inference.conversations import load, saved
from ondevice.preferences import history, rubric, terminal
from ondevice.preferences.database import Ratings
from ondevice.preferences.pairs import pairs_of
from ondevice.preferences.project import Project, change_project, read_project
from ondevice.preferences.rating_queue import Asking
from ondevice.preferences.votes import Response
from ondevice_tui.app import OndeviceApp
from ondevice_tui.screens.rate import RateScreen
from ondevice_tui.screens.rate_messages import last_line, top_parts
from ondevice_tui.screens.start import StartScreen
from ondevice_tui.widgets.answers import Answers
from ondevice_tui.widgets.markdown import drawn
from test_tui import fits, play
from test_tui_safe import STRINGS
from tui_rating import no_guard, press, queue, rate, settled, votes  # noqa: F401
from tui_runs import a_run, shown, until, until_shown

# Markdown

SOURCE = """\
# Title
**bold**, `a|b`, snake_case, 2 * 3 * 4, a*b*c and [text](http://x)
1. one
- two
> said
```python
def f(x):
    return **x
```
| n | words |
|--:|---|
| 1 | `a|b` and `c` |
---"""


def test_markdown_is_drawn_and_nothing_but_marks_is_left_out() -> None:
    made = drawn(SOURCE, 40)
    assert made.plain.split("\n") == [
        "Title",
        "bold, a|b, snake_case, 2 * 3 * 4, a*b*c and text (http://x)",
        "1. one",
        "• two",
        "▎ said",
        "▏ python",
        "▏def f(x):",
        "▏    return **x",
        "n │ words",
        "──┼──────────",
        "1 │ a|b and c",
        "─" * 40,
    ]
    looks = {made.plain[span.start : span.end]: str(span.style) for span in made.spans}
    assert looks["bold"] == "bold" and "underline" in looks["text"] and "bold" in looks["Title"]


def test_a_wide_table_is_wrapped_within_its_width() -> None:
    table = "| a | b |\n|---|---|\n| " + "word " * 12 + "| " + "other " * 12 + "|"
    rows = drawn(table, 36).plain.split("\n")
    assert len(rows) > 4 and max(map(len, rows)) <= 36
    assert "".join(rows).count("word") == 12 and "".join(rows).count("other") == 12


def test_a_cell_too_many_is_shown() -> None:
    assert "3" in drawn("|a|b|\n|-|-|\n|1|2|3|", 36).plain


@pytest.mark.parametrize(
    "text",
    ["[" * 20_000, "**a " * 5000, "`" * 20_000, "_a " * 6000, "> " * 9000, "|x\n|-\n" * 3000]
    + ["~~a" * 6000, "| a " * 3000 + "\n" + "|-" * 16, "```\n" * 5000, "# " * 9000],
)
def test_no_text_takes_for_ever_to_draw(text: str) -> None:
    """Texts that make a pattern try again from each place: of the greatest length that is shown."""
    assert drawn(text, 36).plain


def test_hostile_text_is_no_markup_in_markdown() -> None:
    for text in STRINGS:
        for made in (drawn(text, 36), drawn(f"# {text}\n|{text[:300]}|\n|-|\n`{text}`", 36)):
            assert not any(
                "click" in str(span.style) or "link" in str(span.style) for span in made.spans
            )
            assert "\x1b" not in made.plain and "\u202e" not in made.plain


# the lines around


def test_the_top_line_fits(tmp_path: Path) -> None:
    with Ratings.open(tmp_path / "r.db", create=True) as ratings:
        progress = ratings.progress("Ada")
    for width in (60, 80, 120):
        parts = top_parts(
            progress,
            474,
            [2.0],
            "Ada",
            votes_now=12,
            goal=20 * (width >= 80),
            wanted="",
            width=width,
        )
        told = "".join(part if isinstance(part, str) else part[0] for part in parts)
        assert len(f" ondevice  {told}") <= width and "session 12" in told and "Ada" in told
    assert "░░░" in told and "left" in told


def test_the_last_vote_is_visible(tmp_path: Path) -> None:
    with Ratings.open(tmp_path / "r.db", create=True) as ratings:
        ratings.add("b", "?", [Response("a"), Response("b")], seed=0)
        ranking = [ratings.item(1).shown[1]]
        vote = ratings.vote(1, "Ada", "s", ranking=ranking, strength=2, reason="wrong, too long")
    told = last_line(vote, history.Marks(2, 1, 0)).plain
    assert (
        told == " last: 2 ›› (wrong, too long)   u takes it back   H history (2 flagged, 1 noted)"
    )
    assert last_line(None, history.Marks(0, 0, 0)).plain.strip() == ""


# the keys


# by keys

LONG = "\n".join(f"line {n}" for n in range(60))


def long_pair(run: Any) -> None:
    with Ratings.open(run.path, create=True) as ratings:
        ratings.add("a", "Which?", [Response(SOURCE), Response(LONG)], seed=0)
        ratings.add("a", "And now?", [Response("this"), Response("that")], seed=0)


@pytest.mark.slow
def test_reading_by_pages_and_one_box(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    long_pair(run)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("4")
        text = await until_shown(pilot, "Which?", "% read", "snake_case", "def f(x):")
        assert fits(text, (80, 24)) and "**bold**" not in text
        answers = app.screen.query_one(Answers)
        place = next(p.place for p in answers.panes if not p.read_to_end)
        before = answers.panes[place].share
        await pilot.press("space")
        await until(pilot, lambda: answers.panes[place].share > before)
        await pilot.press("home", *["tab"] * (place + 1), "J", "J")
        await until(pilot, lambda: answers.panes[place].scroll_offset.y == 4)
        assert answers.panes[1 - place].scroll_offset.y == 0
        assert answers.one is answers.panes[place]
        await pilot.press("end")
        await until(pilot, lambda: answers.all_read)
        assert "line 59" in shown(app) and "✓ read" in shown(app)
        await pilot.press("V")
        await until_shown(pilot, "**bold**")
        await pilot.press("V", "left")
        await until_shown(pilot, "And now?", "last: 1 ›", "this session 1")

    play(tmp_path, script)
    assert votes(run)[0].seen_end is True


@pytest.mark.slow
def test_history_changes_a_vote(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    queue(run, 4)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("4")
        await until_shown(pilot, "Question 0?")
        for key in ("left", "t", "f"):
            await pilot.press(key)
            await settled(app, pilot)
        await until_shown(pilot, "H history (1 flagged)")
        await pilot.press("H")
        await until_shown(pilot, "[mine 2]", "flagged 1", "ties 1", "Question 0?", "all 3")
        await pilot.press("right")
        await until_shown(pilot, "[flagged 1]", "Question 2?", "f: looked at")
        await pilot.press("f")
        await until_shown(pilot, "[flagged 0]", "Nothing in this list")
        await pilot.press("left", "down", "enter")
        await until_shown(pilot, "Question 0?", "you said", "1 is better. A vote replaces it")
        await settled(app, pilot)
        await pilot.press("x")
        await until_shown(pilot, "Question 2?", "last: all bad")
        await settled(app, pilot)
        await pilot.press("u")
        await until_shown(pilot, "Question 0?", "1 is better counts again")
        await pilot.press("U")
        await until_shown(pilot, "stored again: all bad")
        await settled(app, pilot)
        await pilot.press("H", "enter", "escape")
        await until_shown(pilot, "Question 2?")

    play(tmp_path, script)
    assert [vote.outcome for vote in votes(run)] == ["tie", "all_bad"]


@pytest.mark.slow
def test_disagreements_are_settled_by_keys(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    queue(run, 3)
    with Ratings.open(run.path) as ratings:
        for item in (1, 2):
            ratings.vote(item, "Ada", "s", ranking=[0])
            ratings.vote(item, "Bob", "s", ranking=[1])

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("4")
        await until_shown(pilot, "H history (2 to settle)")
        await pilot.press("H", "left")
        await until_shown(pilot, "[disagreements 2]", "Ada", "Bob")
        await pilot.press("enter")
        await until_shown(pilot, "your vote settles it (", "Ada:")
        await settled(app, pilot)
        await pilot.press("left")
        await until_shown(pilot, "(1 to settle)", "last: 1 ›")
        await settled(app, pilot)
        await pilot.press("u")
        await until_shown(pilot, "taken back (1)", "your vote settles it (", "Ada:")
        await settled(app, pilot)
        await pilot.press("left")
        await until_shown(pilot, "(1 to settle)", "last: 1 ›")

    play(tmp_path, script)
    with Ratings.open(run.path) as ratings:
        assert len(pairs_of(ratings)) == 1
        assert sum(vote.rater.startswith("settled:") for vote in ratings.live_votes()) == 1


@pytest.mark.slow
def test_all_that_can_be_done_where_everything_is_rated_is_in_view(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    queue(run, 3)
    with Ratings.open(run.path) as ratings:
        change_project(ratings, overlap=2)
        for rater in ("ann", "bob"):
            ratings.vote(1, rater, "s", ranking=[int(rater == "bob")])
    text = " ".join(rate(tmp_path, ["left", "s"], (60, 20)).split())
    for told in (
        "Everything that you are asked is rated", "1 skipped", "H settles what people disagree on: 1",
        "P dpo on these votes", "W reward model", "m more pairs", "S statistics",
    ):  # fmt: skip
        assert told in text, told


@pytest.mark.slow
def test_guidelines_reasons_filter_and_goal(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    queue(run, 4)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("4")
        await until_shown(pilot, "Question 0?")
        await pilot.press("I")
        await until_shown(pilot, "No guidelines yet", "everybody is asked every pair")
        await pilot.press("f2")
        await until_shown(pilot, "overlap", "feedback")
        await pilot.press(*"**Short** wins")
        app.screen.query_one("#field-reasons", Input).value = "false, rude"
        app.screen.query_one("#field-rubric", Input).value = "helpful, correct"
        app.screen.query_one("#field-overlap", Input).value = "x"
        await pilot.press("ctrl+g")
        await until_shown(pilot, "'x' is not a whole number")
        app.screen.query_one("#field-overlap", Input).value = "1"
        app.screen.query_one("#field-reveal").toggle()  # type: ignore[attr-defined]
        await pilot.press("ctrl+g")
        await until_shown(pilot, "all raters of this run see it")
        await settled(app, pilot)
        await pilot.press("s")
        await until_shown(pilot, "this project has guidelines: I shows them")
        await settled(app, pilot)
        await pilot.press("I")
        await until_shown(pilot, "Short wins", "1 false, 2 rude", "1 person is asked each pair")
        await until_shown(pilot, "helpful, correct, 1 to 5 each")
        await pilot.press("escape", "asterisk")
        text = await until_shown(pilot, "scores, 1 to 5", "helpful", "correct")
        assert "Question 1?" in text and " to 1" in text  # the answers stay in view
        await press(app, pilot, "4", "2", "5", "u", "1", "3", "enter")
        await until_shown(pilot, "scored: helpful 4 2 · correct 1 3")
        await settled(app, pilot)
        await pilot.press("E")
        await until_shown(pilot, "a better answer, for sft")
        await pilot.press(*"!!", "enter")
        await until_shown(pilot, "kept for sft: chats/")
        await pilot.press("r", "2", "enter")
        await until_shown(pilot, "why: rude")
        await pilot.press("slash")
        await until_shown(pilot, "what is asked", "checkpoint")
        app.screen.query_one("#field-goal", Input).value = "1"
        app.screen.query_one("#field-longest", Input).value = "99"
        await pilot.press("ctrl+g")
        await until_shown(pilot, "this session 0 of 1", "up to 99 characters")
        await settled(app, pilot)
        await press(app, pilot, "r", "2", "enter", "left")
        await until_shown(pilot, "the goal of this session is reached", "was by secret-")

    play(tmp_path, script, (120, 36))
    [file] = saved(run.path)
    asked, written = load(file).messages
    assert asked["content"] == "Question 1?" and written["content"].endswith(" to 1!!")
    with Ratings.open(run.path) as ratings:
        assert read_project(ratings) == Project(
            "**Short** wins", ("false", "rude"), 1, False, True, ("helpful", "correct")
        )
        [first, second] = ratings.item(2).shown
        assert rubric.scores_of(ratings, 2, ratings.live_votes()[0].rater) == {
            (first, "helpful"): 4, (second, "helpful"): 2,
            (first, "correct"): 1, (second, "correct"): 3,
        }  # fmt: skip
        assert [vote.reason for vote in ratings.live_votes() if vote.action == "vote"] == ["rude"]


@pytest.mark.slow
def test_two_people_at_once_get_other_pairs_and_a_known_answer_is_told(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    with Ratings.open(run.path, create=True) as ratings:
        ratings.add("g", "Known?", [Response("x"), Response("y")], kind="gold", gold=0, seed=0)
        change_project(ratings, overlap=1, feedback=True)
    queue(run, 2)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("4")
        await until_shown(pilot, "Question 0?")
        with Ratings.open(run.path) as ratings:
            other = terminal.next_turn(ratings, Asking("Bob", "Bob's window")).item
            assert other is not None and other.prompt == "Question 1?"
        await settled(app, pilot)
        await pilot.press("left")
        await until_shown(pilot, "Known?")
        await settled(app, pilot)
        await pilot.press("x")
        await until_shown(pilot, "Everything that you are asked is rated", "P dpo on these votes")
        await press(app, pilot, "u", "1")
        await until(pilot, lambda: isinstance(app.screen, RateScreen) and app.screen.item is None)
        await pilot.press("P")
        await until(pilot, lambda: isinstance(app.screen, StartScreen))
        await until_shown(pilot, "start dpo")

    play(tmp_path, script)
    with Ratings.open(run.path) as ratings:
        assert not ratings.rows("SELECT * FROM claim WHERE rater <> 'Bob'")


@pytest.mark.slow
def test_a_known_answer_is_told_beneath_the_next_pair(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    with Ratings.open(run.path, create=True) as ratings:
        for n in range(2):
            ratings.add(
                "g", f"Known {n}?", [Response("x"), Response("y")], kind="gold", gold=0, seed=0
            )
        change_project(ratings, feedback=True)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("4")
        await until_shown(pilot, "Known 0?")
        await pilot.press("x")
        await until_shown(pilot, "Known 1?", "you said all bad (0 of 1 right)")

    play(tmp_path, script)
