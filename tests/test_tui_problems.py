"""Any step's groups in reach, the problems over training, the same problem first against now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from ondevice.runs.events import EventWriter, LineFile
from ondevice_tui.app import OndeviceApp
from ondevice_tui.event_reader import Follower, History
from ondevice_tui.group_browser import SEARCHED, Browser, HeldOut
from ondevice_tui.group_places import GroupPlaces
from ondevice_tui.problems import CELLS, PROBLEMS, Problems, blocks, group_of
from ondevice_tui.rollout_groups import groups_at, groups_of
from ondevice_tui.screens.reward_cards import chosen_answer, compared
from ondevice_tui.screens.reward_curves import _time_rows, from_to
from ondevice_tui.screens.reward_lines import answer_line, found_in, problem_line
from ondevice_tui.widgets.rows import Rows
from test_tui import play
from tui_runs import (
    Clock,
    a_run,
    completion,
    group,
    shown,
    until,
    until_shown,
    write_grpo,
    write_held_out,
)


def asked(prompt: str, rights: list[int], step: int = 0) -> dict[str, Any]:
    """A group whose completions are right (1) or not (0)."""
    made = [
        completion(f"step {step} says {43 if right else 33}", bool(right), 0.0) for right in rights
    ]
    return {"prompt": prompt, "answer": "43", "completions": made}


def write_groups(path: Path, steps: int, held_every: int = 0) -> list[int]:
    """A group a step, now and then a measurement between; returns where the steps' lines begin."""
    offsets = []
    with LineFile(path) as file:
        for step in range(1, steps + 1):
            offsets.append(file.append({"step": step, "groups": [group(step, "mixed")]}))
            if held_every and step % held_every == 0:
                file.append({"held_out": True, "step": step, "groups": [group(step, "mixed")]})
    return offsets


def test_every_step_is_in_reach_though_few_places_are_kept(tmp_path: Path) -> None:
    """The newest 50,000 steps were once all that could be gone to."""
    path = tmp_path / "groups.jsonl"
    offsets = write_groups(path, 300, held_every=7)
    places = GroupPlaces(limit=16)
    assert places.first is None and places.until(path, 5) is None and places.after(path, 5) is None
    for step, offset in enumerate(offsets, 1):
        places.add(step, offset)
        assert places.newest == (step, offset)
    assert places.stride == 32 and len(places._steps) <= 16 and len(places) == 300
    for step, offset in enumerate(offsets, 1):
        assert places.until(path, step) == (step, offset)
        wanted = (step + 1, offsets[step]) if step < 300 else None
        assert places.after(path, step) == wanted
    assert places.until(path, 0) is None and places.after(path, 0) == (1, offsets[0])
    assert places.until(path, 10**6) == places.newest
    path.unlink()  # what is kept is known without the file
    assert places.until(path, 1) == (1, offsets[0])


def test_a_step_that_is_told_again_takes_the_place_of_later_ones(tmp_path: Path) -> None:
    places = GroupPlaces()
    for step in range(1, 11):
        places.add(step, step * 100)
    places.add(4, 777)
    places.add(5, -1)  # no place at all
    places.add(5, 10**40)
    path = tmp_path / "none"
    assert places.newest == places.until(path, 10) == (4, 777) and places.after(path, 3) == (4, 777)
    assert places.until(path, 3) == (3, 300) and len(places) == 4


def history_of(path: Path, offsets: list[int], limit: int) -> History:
    history = History()
    history.groups = GroupPlaces(limit)
    for step, offset in enumerate(offsets, 1):
        history.take({"event": "step", "step": step, "groups": offset})
    return history


def test_a_search_that_a_key_cannot_end_goes_on_through_all_steps(tmp_path: Path) -> None:
    path = tmp_path / "groups.jsonl"
    offsets = write_groups(path, 400)
    browser = Browser(path, history_of(path, offsets, 32))
    browser.search = "what is 7+"
    assert browser.current() == (None, 0, 0) and browser.rest == (400 - SEARCHED, 1 << 30)
    found = browser.find(browser.rest, -1, lambda: False)
    assert found == (7, 0)
    assert browser.find(browser.rest, -1, lambda: True) is None, "it can be stopped"
    browser.place = found
    group_, _, of = browser.current()
    assert group_ is not None and group_.step == 7 and of == 1
    assert not browser.move(1) and browser.rest is not None and browser.place == (7, 0)
    assert browser.find(browser.rest, 1, lambda: False) is None, "there is no other"
    browser.search = "390 and 3 make 43"
    assert browser.go_to(389) and browser.place == (390, 0)
    browser.search = ""
    assert browser.move_step(-1) and browser.place == (389, 0)
    assert browser.move_step(1) and browser.place == (390, 0)
    browser.go_to(400)
    assert not browser.move_step(1) and browser.place == (400, 0)
    browser.go_to(1)
    assert not browser.move_step(-1) and browser.place == (1, 0)


def test_completions_stand_in_the_order_that_is_wanted(tmp_path: Path) -> None:
    path = tmp_path / "groups.jsonl"
    with LineFile(path) as file:
        raw = asked("p", [0, 1, 0, 1])
        raw["completions"][2] |= {"tokens": 99, "reward": None}
        offset = file.append({"step": 1, "groups": [raw]})
    [found] = groups_at(path, 1, offset)
    browser = Browser(path, History())
    numbers = {}
    for browser.order in ("as written", "best first", "longest first"):
        numbers[browser.order] = [number for number, _ in browser.answers(found)]
    assert numbers == {
        "as written": [0, 1, 2, 3],
        "best first": [1, 3, 0, 2],
        "longest first": [2, 0, 1, 3],
    }


def test_what_was_searched_for_is_in_view() -> None:
    [found] = groups_of({"groups": [asked("p", [1], step=12)]}, 1)
    answer = found.answers[0]
    assert found.mentions("says 43") and not found.mentions("SAYS")
    shown_ = answer_line("1", answer, [], 60, search="says")
    assert "says 43" in shown_.plain and any("reverse" in str(s.style) for s in shown_.spans)
    assert found_in("no such", "x").plain == "no such"


def write_problems(path: Path, steps: int) -> None:
    """`easy` becomes right at once, `hard` never, `late` is asked in the second half alone."""
    with LineFile(path) as file:
        for step in range(steps + 1):
            if step % 10 == 0:
                held = asked("held?", [int(step > steps / 2)], step)
                file.append({"held_out": True, "step": step, "groups": [held]})
            if step:
                groups = [asked("easy", [1, int(step > 2)], step), asked("hard", [0, 0], step)]
                if step > steps / 2:
                    groups.append(asked("late", [1, 0, 0, 0], step))
                file.append({"step": step, "groups": groups})


def all_of(problems: Problems) -> Problems:
    while problems.read_on():
        pass
    return problems


def test_the_pass_rate_of_each_problem_over_training(tmp_path: Path) -> None:
    path = tmp_path / "groups.jsonl"
    problems = Problems(path)
    assert not problems.read_on() and problems.unread == 0
    write_problems(path, 400)
    all_of(problems)
    assert problems.width == 8 and problems.last_step == 400  # 401 steps in 64 cells
    by_name = {problem.prompt: problem for problem in problems.listed("newest")}
    assert list(by_name)[0] == "held?", "held-out ones come first"
    assert problems.strip(by_name["easy"], 10) == "██████████"
    assert problems.strip(by_name["hard"], 10) == "▁▁▁▁▁▁▁▁▁▁"
    assert problems.strip(by_name["late"], 10) == "     ▃▃▃▃▃"
    assert problems.strip(by_name["held?"], 10) == "▁▁▁▁▁▆████"
    assert (
        by_name["easy"].begin == 0.5 and by_name["easy"].now == 1 and by_name["late"].asked == 200
    )
    names = {
        order: [p.prompt for p in problems.listed(order)][1]
        for order in ("worst now", "most gained")
    }
    assert names == {"worst now": "hard", "most gained": "easy"}
    assert [p.prompt for p in problems.listed("newest", "ar")] == ["hard"]
    assert "50% →  100%" in problem_line(by_name["easy"], "██", 80, rate=True).plain
    late = by_name["late"]
    first = group_of(late, groups_at(path, *late.first))
    assert first is not None and first.step == 201 and group_of(late, []) is None


def test_problems_are_read_on_and_anew(tmp_path: Path) -> None:
    path = tmp_path / "groups.jsonl"
    write_problems(path, 20)
    problems = all_of(Problems(path))
    with LineFile(path) as file:
        file.append({"step": 21, "groups": [asked("new", [1])]})
        file.append({"step": "x", "groups": [asked("odd", [1])]})
    with open(path, "ab") as raw:
        raw.write(b"not json\n" + b'{"step": 22')  # damaged, and not yet whole
    assert {p.prompt for p in all_of(problems).listed("newest")} == {
        "held?",
        "easy",
        "hard",
        "late",
        "new",
    }
    path.unlink()
    write_problems(path, 5)  # begun anew
    assert all_of(problems).last_step == 5 and len(problems.listed("newest")) == 4


def test_problems_take_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ondevice_tui.problems.PROBLEMS", 3)
    assert PROBLEMS >= 1000
    path = tmp_path / "groups.jsonl"
    with LineFile(path) as file:
        for step in (1, 10**9):
            file.append(
                {"step": step, "groups": [asked("p" * 9000 + str(n), [1]) for n in range(5)]}
            )
    problems = all_of(Problems(path))
    assert len(problems.found) == 3 and problems.left_out == 4
    assert all(len(p.prompt) <= 300 and len(p.sums) == CELLS for p in problems.found.values())


def test_rewards_stand_where_nothing_tells_what_is_right(tmp_path: Path) -> None:
    """As PPO writes it; the scale is that of the scores."""
    path = tmp_path / "groups.jsonl"
    with LineFile(path) as file:
        for step, score in ((1, -3.0), (2, 5.0)):
            answer = {"text": "x", "rewards": {"score": score}, "reward": score}
            file.append({"step": step, "groups": [{"prompt": "p", "completions": [answer]}]})
    problems = all_of(Problems(path))
    [problem] = problems.listed("newest")
    assert (problem.begin, problem.now) == (-3, 5) and (problems.low, problems.high) == (-3, 5)
    assert problems.strip(problem, 10) == " ▁█"
    assert blocks([1.0], 1.0, 1.0) == "▁"


def test_a_problem_first_against_now() -> None:
    [first] = groups_of({"groups": [asked("p", [0, 0, 1], 3)]}, 3)
    [now] = groups_of({"groups": [asked("p", [1, 1, 0], 90)]}, 90)
    told = compared(first, now).plain
    assert "right 1/3 → 2/3" in told and "reward 0.533 → 0.867" in told and "truth 43" in told
    assert chosen_answer(first, "best").right and not chosen_answer(now, "worst").right
    assert not chosen_answer(first, "typical").right and chosen_answer(now, "typical").right


def test_held_out_figures_begin_before_the_first_step(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventWriter(path, now=Clock()) as events:
        events.emit("start", 0, steps=600)
        events.emit("before", 0, reward=0.41, groups=0)
        events.emit("before", 0, reward=0.41, groups=0)  # of one that was killed at once
        for step in range(1, 601):
            events.emit(
                "step",
                step,
                reward=0.5,
                seconds=2.0,
                sampling_seconds=1.0,
                tokens_per_second=100.0,
                update_seconds=0.5,
            )
            events.emit("eval", step, reward=0.69, groups=step)
    follower = Follower(path)
    while follower.read():
        pass
    history = follower.history
    assert from_to(history, "reward") == "0.41 → 0.69"
    assert history.evals["reward"].span == (0, 600) and history.evals["reward"].points == 601
    assert history.first_held_out == (0, 0) and history.held_out[0] != (0, 0)
    told = [row.plain for row in _time_rows(history)]
    assert [row.split()[:2] for row in told[:3]] == [
        ["sampling", "50%"],
        ["update", "25%"],
        ["the", "rest"],
    ]
    assert "200 tokens/s" in told[3]
    path.unlink()
    with EventWriter(path, now=Clock()) as events:
        events.emit("eval", 10, reward=0.69)
    follower = Follower(path)
    follower.read()
    assert from_to(follower.history, "reward") == "0.69", "an earlier version measured later"
    assert list(_time_rows(follower.history)) == []


def test_the_first_measurement_stays_though_older_ones_go(tmp_path: Path) -> None:
    path = tmp_path / "groups.jsonl"
    history = History()
    with LineFile(path) as file:
        for step in range(0, 1200, 2):
            held = {"held_out": True, "step": step, "groups": [asked("h", [int(step > 600)], step)]}
            kind = "eval" if step else "before"
            history.take({"event": kind, "step": step, "groups": file.append(held)})
    course, at, of = HeldOut(path, history).course()
    assert (at, of) == (0, 1) and course[0].step == 1198 and course[-1].step == 0
    assert len(course) == 501


@pytest.mark.slow
def test_problems_searches_and_comparisons_by_their_keys(tmp_path: Path) -> None:
    stage = a_run(tmp_path).stage("grpo")
    write_grpo(stage, 20)
    write_held_out(stage, 10, False)
    write_held_out(stage, 20, True)
    with LineFile(stage.path / "groups.jsonl") as file, EventWriter(stage.events) as events:
        for step in (21, 22):
            raw = asked("twice?", [int(step == 22), 0], step)
            place = file.append({"step": step, "groups": [raw]})
            events.emit("step", step, reward=1.0, groups=place)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("3")
        await until_shown(pilot, "step 22 · group 1 of 1")
        await pilot.press("O")
        await until_shown(pilot, "O: best first")
        await pilot.press("O", "O", "d")
        await until_shown(pilot, "same problem · step 21 → 22", "right 0/2 → 1/2", "typical one")
        await pilot.press("tab")
        await until_shown(pilot, "the best one", "step 22 says 43")
        await pilot.press("escape", "enter")
        await until_shown(pilot, "completion 1 · 4 tokens · 1 of 2", "prompt  twice?")
        await pilot.press("down")
        await until_shown(pilot, "completion 2 · 4 tokens · 2 of 2")
        await pilot.press("escape")
        await until(pilot, lambda: app.screen.query_one("#completions", Rows).highlighted == 1)
        await pilot.press("slash", *"18 and 2", "enter")
        await until_shown(pilot, "step 18 · group 3 of 3", "/18 and 2")
        found = app.screen.query_one("#completions", Rows)
        assert found.highlighted_option and "18 and 2" in str(found.highlighted_option.prompt)
        await pilot.press("l")
        await until_shown(pilot, "No such group")
        await pilot.press("slash", *["backspace"] * 9, "enter")
        await until_shown(pilot, "problems", "twice?", "What is 20+mixed?", "0% →   50%")
        await pilot.press("O", "O", "O", "O", "home")
        await until(pilot, lambda: app.screen.query_one("#completions", Rows).highlighted == 0)
        await pilot.press("enter")
        await until_shown(pilot, "held-out problem 1 of 2")
        await pilot.press("d")
        await until_shown(pilot, "same problem · step 10 → 20", "right 0/1 → 1/1")
        await pilot.press("escape", "h", "dollar_sign")
        await until_shown(pilot, "step 22 · group 1 of 1")
        await pilot.press("slash", *"18 and 2", "enter")
        await until_shown(pilot, "step 18 · group 3 of 3")
        await pilot.press("escape")  # the search is in front; a second one would lead home
        await until_shown(pilot, "step 22 · group 1 of 1")
        assert app.current_mode == "reason"
        await pilot.press("percent_sign")
        text = await until_shown(pilot, "where a step's time goes", "of an earlier version")
        assert "% spread" in text and "q quit" in shown(app)
        await pilot.press("percent_sign")
        text = await until_shown(pilot, "step 22:", "completions, 1 groups", "length")
        assert "% rewards" in text

    play(tmp_path, script, (100, 30))
