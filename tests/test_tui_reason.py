"""Reasoning rewards: curves above, groups below, filters, following and going back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from ondevice.runs.events import LineFile
from ondevice_tui.app import OndeviceApp
from ondevice_tui.event_reader import Follower, History
from ondevice_tui.group_browser import Browser
from ondevice_tui.rollout_groups import FILTERS, Answer, Group, groups_at, warnings
from ondevice_tui.screens.reward_lines import bar, head
from ondevice_tui.widgets.rows import Rows
from test_tui import fits, play
from tui_runs import SIZES, a_run, group, shown, until, until_shown, write_grpo, write_held_out


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_rewards_and_the_newest_group(tmp_path: Path, size: tuple[int, int]) -> None:
    write_grpo(a_run(tmp_path).stage("grpo"))

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("3")
        text = await until_shown(pilot, "first · grpo", "step 20 · group 3 of 3 · 2 of 4 right")
        assert fits(text, size)
        assert (
            "reward 1.00" in text
            and ("reward 1.00 ±0.20" in text) == (size[0] >= 110)
            and "correct" in text
            and "no spread" in text
        )
        assert (
            "66% of the groups taught nothing" in text
            and "What is 20+truncated?" in text
            and "truth 43" in text
        )
        rows = [row for row in text.splitlines() if "0.87 " in row]
        assert ["✓" in row for row in rows[:4]] == [True, False, False, True]
        assert "✗…" in rows[2] and "+0.87 ███" in rows[0] and "-0.87 ▒▒▒" in rows[1]
        assert ("completion 1 · 5 tokens" in text) == (size[0] >= 110)
        await pilot.press("down", "enter")
        text = await until_shown(
            pilot, "step 20 · completion 2", "20 and 1 make 33", "advantage  -0.87"
        )
        await pilot.press("escape")

    play(tmp_path, script, size)


@pytest.mark.slow
def test_the_keys_of_the_groups(tmp_path: Path) -> None:
    write_grpo(a_run(tmp_path).stage("grpo"))

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("3")
        await until_shown(pilot, "step 20 · group 3 of 3", "newest  F: all")
        back = "left_square_bracket"
        for key, says in (
            (back, "group 2 of 3 · 0 of 4 right"),
            (back, "group 1 of 3"),
            (back, "step 19 · group 3 of 3"),
            ("dollar_sign", "step 20 · group 3 of 3"),
        ):
            await pilot.press(key)
            await until_shown(pilot, says)
        wanted = {
            "all right": "step 19 · group 2",
            "all wrong": "step 20 · group 2",
            "mixed": "step 20 · group 3",
            "truncated": "step 20 · group 3",
            "no spread": "step 20 · group 2",
            "all": "step 20 · group 3",
        }
        for name in [*list(FILTERS)[1:], "all"]:
            await pilot.press("F")
            await until_shown(pilot, f"F: {name}", wanted[name])
        await pilot.press("underscore", "left_square_bracket")
        await until_shown(pilot, "F: no spread", "step 19 · group 2")
        await pilot.press("underscore", "F", "F", "F", "F", "left_square_bracket")
        await until_shown(pilot, "F: truncated", "step 16 · group 3")
        await pilot.press("F", "F", "dollar_sign", "left_square_bracket", "p")
        await until_shown(pilot, "p: one problem", "What is 20+all wrong?")
        await pilot.press("left_square_bracket")
        await until_shown(pilot, "no such group further back")
        await pilot.press("p")
        for name in ("accuracy", "kl", "entropy", "length"):
            await pilot.press("tab")
            await until_shown(pilot, f"╭─ {name} ")
        await pilot.press("y")
        await until_shown(pilot, "y: full")
        await pilot.press("0")
        await until_shown(pilot, "step 1 · group 1 of 3")
        await pilot.press("G")
        await until_shown(pilot, "which step?")
        await pilot.press("1", "2", "enter")
        await until_shown(pilot, "step 12 · group 1 of 3")
        await pilot.press("right_curly_bracket")
        await until_shown(pilot, "step 13 · group 1 of 3")
        await pilot.press("left_curly_bracket", "left_curly_bracket")
        await until_shown(pilot, "step 11 · group 1 of 3")
        await pilot.press("escape")
        await until(pilot, lambda: app.current_mode == "road")

    play(tmp_path, script, (100, 30))


@pytest.mark.slow
def test_it_follows_and_stays_where_it_was_put(tmp_path: Path) -> None:
    stage = a_run(tmp_path).stage("grpo")
    write_grpo(stage, 3)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("3")
        await until_shown(pilot, "step 3 · group 3 of 3")
        app.screen.query_one("#completions", Rows).highlighted = 2
        write_grpo(stage, 4)  # the same file, written anew with one step more
        await until_shown(pilot, "step 4 · group 3 of 3")
        await pilot.press("left_square_bracket")
        await until_shown(pilot, "step 4 · group 2 of 3")
        write_grpo(stage, 6)
        history = app.screen.history  # type: ignore[attr-defined]
        await until(pilot, lambda: history.step == 6)
        assert "step 4 · group 2 of 3" in shown(app)
        await pilot.press("dollar_sign")
        await until_shown(pilot, "step 6 · group 3 of 3")

    play(tmp_path, script)


@pytest.mark.slow
def test_a_held_out_problem_is_watched_over_the_steps(tmp_path: Path) -> None:
    stage = a_run(tmp_path).stage("grpo")
    write_grpo(stage, 20)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("3")
        await until_shown(pilot, "step 20 · group 3 of 3")
        await pilot.press("h")
        await until_shown(pilot, "No held-out problem measured yet")
        write_held_out(stage, 10, False)
        write_held_out(stage, 20, True)
        text = await until_shown(
            pilot, "held-out problem 1 of 2 · right at 1 of 2 measurements", "o held-out"
        )
        assert (
            text.index("20 ✓") < text.index("10 ✗")
            and "+0.00" not in text
            and "What is 5+1?" in text
        )
        write_held_out(stage, 30, False, said="now it is")
        await until_shown(pilot, "right at 1 of 3", "step 30 · ")  # the newest is followed
        await pilot.press("right_square_bracket")
        await until_shown(pilot, "held-out problem 2 of 2", "What is 6+1?")
        await pilot.press("right_square_bracket")
        await until_shown(pilot, "held-out problem 1 of 2")
        await pilot.press("F")
        text = await until_shown(pilot, "F: all right")
        assert "now it is" not in text
        await pilot.press("F", "down", "enter")
        text = await until_shown(
            pilot, "step 10 · held-out problem 1", "reward  0.2", "so it is 33"
        )
        assert "advantage" not in text
        await pilot.press("escape", "h", "underscore")
        await until_shown(pilot, "step 20 · group 2 of 3")

    play(tmp_path, script, (120, 36))


@pytest.mark.slow
def test_a_run_without_rewards_says_so(tmp_path: Path) -> None:
    a_run(tmp_path)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("3")
        await until_shown(pilot, "No stage with rewards in this run yet")
        await pilot.press(
            "left_square_bracket",
            "F",
            "p",
            "dollar_sign",
            "tab",
            "underscore",
            "enter",
            "h",
            "right_square_bracket",
            "dollar_sign",
            "enter",
        )

    play(tmp_path, script)


def test_groups_are_read_defensively(tmp_path: Path) -> None:
    odd = {
        "step": 1,
        "groups": [
            group(1, "mixed"),
            7,
            {"prompt": None, "completions": 3},
            {
                "completions": [
                    3,
                    {
                        "text": 5,
                        "tokens": "x",
                        "rewards": {"correct": None, "b": "c"},
                        "span": [5, 1],
                        "advantage": "high",
                    },
                    {"text": "abc", "span": [0, 99], "parsed": 43, "rewards": None},
                ],
                "answer": 43,
            },
        ],
    }
    with LineFile(tmp_path / "groups.jsonl") as file:
        offset = file.append(odd)
    good, empty, strange = groups_at(tmp_path / "groups.jsonl", 1, offset)
    assert (
        good.right == 2
        and good.spread == pytest.approx(0.577, abs=1e-3)
        and good.answers[0].span == (13, 15)
    )
    assert empty.answers == () and not FILTERS["all right"](empty) and not FILTERS["mixed"](empty)
    # as PPO writes it
    unread = {"text": "4", "rewards": {"score": 0.5}, "reward": 0.5, "parsed": None}
    with LineFile(tmp_path / "groups.jsonl") as file:
        offset = file.append(
            {"step": 2, "groups": [{"answer": "4", "completions": [unread, unread]}]}
        )
    assert [a.right for a in groups_at(tmp_path / "groups.jsonl", 2, offset)[0].answers] == [
        None,
        None,
    ]
    first, second = strange.answers
    assert (
        first.right is False and first.span is None and first.advantage == 0 and first.tokens == 0
    )
    assert second.right is True and second.span is None
    assert (
        groups_at(tmp_path / "groups.jsonl", 1, 999) == []
        and groups_at(tmp_path / "none", 1, 0) == []
    )


def test_the_browser_stops_at_both_ends(tmp_path: Path) -> None:
    path = tmp_path / "groups.jsonl"
    history = History()
    browser = Browser(path, history)
    assert browser.current() == (None, 0, 0) and browser.move(1) and not browser.move(-1)
    with LineFile(path) as file:
        for step in (1, 2):
            offset = file.append({"step": step, "groups": [group(step, "mixed")]})
            history.take({"event": "step", "step": step, "groups": offset})
    found, at, of = browser.current()
    assert found is not None and (found.step, at, of) == (2, 0, 1)
    assert browser.move(-1) and not browser.move(-1)
    assert browser.place == (1, 0) and browser.move(1) and browser.place == (2, 0)
    assert browser.move(1) and browser.place is None
    with LineFile(path) as file:
        for step in range(3, 60):
            two = [group(step, "all right"), group(step, "mixed")]
            history.take(
                {
                    "event": "step",
                    "step": step,
                    "groups": file.append({"step": step, "groups": two}),
                }
            )
    assert browser.go_to(0) and browser.place == (1, 0)
    assert browser.go_to(40) and browser.place == (40, 0)
    browser.filter = "mixed"
    assert browser.go_to(40) and browser.place == (40, 1)
    assert browser.go_to(10**9) and browser.place is not None and browser.place[0] >= 58
    browser.filter = "all wrong"
    assert not browser.go_to(40) and browser.place is not None, "it stays where it was"


def test_words_for_what_goes_wrong(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with open(path, "w") as file:
        for step in range(1, 51):
            file.write(
                json.dumps(
                    {
                        "event": "step",
                        "step": step,
                        "zero_spread": 0.9,
                        "completion_length": 10 + step,
                        "accuracy": 0.01,
                        "entropy": 1 / step**2,
                        "reward/format": 0.99,
                    }
                )
                + "\n"
            )
    follower = Follower(path)
    follower.read()
    told = warnings(follower.history)
    assert len(told) == 4 and told[0].startswith("90% of the groups") and "gamed" in told[3]
    assert warnings(History()) == []


def test_a_bar_tells_the_sign_by_its_glyph() -> None:
    assert bar(1.0).plain == "███   " and bar(-1.0).plain == "▒▒▒   " and bar(9).plain == "██████"
    assert not bar(0).plain.strip()
    assert "correct" in head(["correct", "format"], 80) and "correct" not in head(["correct"], 50)


def test_rewards_that_are_all_alike_have_no_spread() -> None:
    """Eight times 1.1 have a mean that is not 1.1, in binary."""
    same = Answer("133.", 4, False, {"correct": 1.0}, 1.1, 0.0, "133", None, True)
    alike = Group(30, "55+78", "133", (same,) * 8)
    assert alike.spread == 0 and FILTERS["no spread"](alike)
    assert not FILTERS["no spread"](
        replace(alike, answers=(*alike.answers, replace(same, reward=0.1)))
    )
