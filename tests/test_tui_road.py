"""The road of a run: what is ready, what waits and for what, how much time is left, and what is
looked at how often.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from ondevice.common.clock import clock
from ondevice.preferences.database import Ratings
from ondevice.preferences.votes import Response
from ondevice.runs.events import EventWriter
from ondevice.runs.folder import RunFolder
from ondevice.runs.listing import stage_state
from ondevice_tui import run_reader, run_status, stage_processes
from ondevice_tui.app import OndeviceApp
from ondevice_tui.run_reader import RunsReader
from ondevice_tui.run_status import Row, next_row
from ondevice_tui.screens.confirm import ask_to_stop
from ondevice_tui.screens.start import StartScreen
from ondevice_tui.screens.start_fields import Field
from ondevice_tui.widgets.rows import Rows
from test_tui import no_plans, play  # noqa: F401
from tui_runs import a_run, app_on, shown, until, until_shown, write_done, write_stage


def rows(run: RunFolder, *starting: str) -> dict[str, Row]:
    (read,) = [
        found for found in RunsReader(run.path.parent).read() if found["run"] == run.path.name
    ]
    return {row.stage: row for row in run_status.rows(read, starting)}


def pairs(run: RunFolder, count: int = 3, votes: int = 0) -> None:
    with Ratings.open(run.path, create=True) as ratings:
        for n in range(count):
            ratings.add("b", f"Question {n}?", [Response("yes"), Response("no")], seed=0)
        for n in range(votes):
            ratings.vote(n + 1, "ann", "s", "tie")


def ready(found: dict[str, Row]) -> list[str]:
    return [name for name, row in found.items() if row.state == "next"]


def test_after_a_stop_what_is_ready_has_what_it_needs(tmp_path: Path) -> None:
    """Every later row once said that it could start from init."""
    run = RunFolder(tmp_path / "one")
    write_stage(run.stage("init"), 0)
    write_stage(run.stage("pretrain"), 40, of=100, end="stopped")
    found = rows(run)
    assert ready(found) == ["sft", "sample", "grpo"]
    assert found["rate"].told == "needs answers to choose among: sample writes some"
    assert found["dpo"].told == found["reward"].told == "needs pairs: rate some answers first"
    assert found["ppo"].told == "needs a reward model"
    pairs(run, votes=1)
    found = rows(run)
    assert ready(found) == ["sft", "sample", "rate", "reward", "dpo", "grpo"]
    assert found["rate"].told == "1 rated by a person, 2 wait"
    write_stage(run.stage("reward"))
    write_done(run.stage("reward"), [])
    assert "ppo" in ready(rows(run))


def test_the_rest_of_a_recipe_that_stopped_comes_by_itself(tmp_path: Path) -> None:
    run = a_run(tmp_path)  # sft died
    found = rows(run)
    assert (
        found["reward"].told == "comes by itself once sft goes on"
        and found["reward"].state == "waits"
    )
    assert found["dpo"].told != "comes by itself once sft goes on", "the recipe goes by ppo"


def test_what_a_recipe_does_not_make_waits_for_nothing(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    (read,) = RunsReader(tmp_path).read()
    read["stages"][2]["state"] = "training"
    found = {row.stage: row for row in run_status.rows(read)}
    assert run.recipe.is_file() and found["dpo"].told == "not in this run's recipe"
    assert found["reward"].told == "comes by itself"


def test_pairs_of_a_model_of_elsewhere_are_rated_and_then_learned_from(tmp_path: Path) -> None:
    """The stage sample in a run of its own: the road once said that everything needs a model."""
    run = RunFolder(tmp_path / "own")
    write_stage(run.stage("sample"), 0)
    pairs(run, 3)
    read = list(rows(run).values())
    assert (
        read[next_row(read)].stage == "rate"
        and read[next_row(read)].told == "a person's choice among 3 pairs"
    )
    with Ratings.open(run.path) as ratings:
        for n in (1, 2, 3):
            ratings.vote(n, "ann", "s", "tie")
        ratings.repeat(1, "ann")
        ratings.vote(4, "ann", "s", "tie")
        ratings.vote(1, "bob", "s2", "tie")  # a pair that two have rated is one
    read = list(rows(run).values())
    assert (
        read[next_row(read)].stage in ("reward", "dpo")
        and "form asks for the model" in read[next_row(read)].told
    )
    rate = next(row for row in read if row.stage == "rate")
    assert rate.told == "3 rated by a person" and rate.enter == "rate", "a repeat counts for none"


def test_a_process_that_began_nothing_is_on_the_row(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "new")
    run.create()
    (run.path / "pretrain.log").write_text("loading …\nondevice: data: no such file\n")
    found = rows(run)
    assert (found["pretrain"].state, found["pretrain"].enter) == ("failed", "start")
    assert found["pretrain"].told == "did not start: ondevice: data: no such file"
    assert rows(run, "pretrain")["pretrain"].state == "starting"
    (run.path / "sft.log").touch()
    assert rows(run)["sft"].state == "waits"
    os.utime(run.path / "sft.log", (clock() - 100, clock() - 100))
    assert rows(run)["sft"].told == "did not start: it said nothing"
    write_stage(run.stage("pretrain"), 5, of=10, end="died")
    assert rows(run)["pretrain"].state == "died"


def test_the_pause_between_a_stop_and_its_resume_is_no_work(tmp_path: Path) -> None:
    stage = RunFolder(tmp_path / "run").stage("sft")
    stage.create()
    times = iter([0.0, *range(10, 60, 10), 50.0, 72_050.0, 72_060.0, 72_070.0])
    with EventWriter(stage.events, now=lambda: next(times)) as events:
        events.emit("start", 0, stage="sft", steps=100, config={})
        for step in range(1, 6):
            events.emit("step", step, loss=1.0)
        events.emit("failed", reason="stopped", message="stopped")
        events.emit("resume", 5)
        events.emit("step", 6, loss=1.0)
        events.emit("step", 7, loss=1.0)
    found = stage_state(stage)
    assert found["since"] == (72_050.0, 5) and found["paused"] == 72_000.0
    assert run_status.left(found) == "15:30 left"  # 93 steps of ten seconds
    assert run_status._seconds({**found, "state": "died"}) == 70.0
    assert run_status.left({**found, "step": 5, "last": 72_050.0}) == "", (
        "nothing is known of the pace"
    )
    planned = {**found, "step": 5, "last": 72_050.0, "planned": 200.0}
    assert run_status.left(planned) == "≈ 3:10 left", "until a step is done, what the plan said"


def test_sleep_a_full_disk_and_a_suspended_process_are_no_work(tmp_path: Path) -> None:
    stage = RunFolder(tmp_path / "run").stage("sft")
    stage.create()
    now = [0.0]
    with EventWriter(stage.events, now=lambda: now[0]) as events:

        def step(number: int, seconds: float = 10.0, gap: float = 10.0) -> None:
            now[0] += gap
            events.emit("step", number, loss=1.0, seconds=seconds)

        events.emit("start", 0, stage="sft", steps=100, config={})
        for number in range(1, 21):
            step(number)
        step(21, gap=30_000.0)  # the machine slept: the clock of a step's seconds stood still
        step(22, seconds=7_000.0, gap=7_000.0)  # it was suspended
        now[0] += 500
        events.emit("paused", reason="the disk is full", seconds=500.0)
        step(23)
        now[0] += 25  # a measurement, which is work
        events.emit("eval", 23, loss=1.0)
        step(24, seconds=12.0, gap=20.0)  # as a busy machine has them
    found = stage_state(stage)
    assert found["idle"] == 29_990 + 6_990 + 500 and found["paused"] == 500
    assert run_status.left(found) == "14:31 left"  # 76 steps of 275 / 24 seconds


def test_runs_in_which_nothing_goes_on_are_looked_at_seldom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(30):
        write_stage(RunFolder(tmp_path / f"run-{n:02}").stage("pretrain"), 5)
    now = [100.0]
    monkeypatch.setattr(run_reader, "ticks", lambda: now[0])
    looked: list[str] = []
    look = RunsReader._run

    def counted(reader: RunsReader, path: Path) -> Any:
        looked.append(path.name)
        return look(reader, path)

    monkeypatch.setattr(RunsReader, "_run", counted)
    reader = RunsReader(tmp_path)

    def read(after: float = 1.0) -> list[str]:
        looked.clear()
        now[0] += after
        assert len(reader.read(tmp_path / "run-03")) == 30
        return sorted(looked)

    assert len(read()) == 30
    assert read() == ["run-03"], "the chosen one"
    # something new in its folder
    write_stage(RunFolder(tmp_path / "run-20").stage("sft"), 5, end="died")
    assert read() == ["run-03", "run-20"]
    # somebody writes into files that were there
    for n in range(30):
        with open(tmp_path / f"run-{n:02}" / "pretrain" / "events.jsonl", "ab") as file:
            file.write(b"\n")
    most = 0
    seen: set[str] = set()
    for _ in range(10):
        found = read()
        most, seen = max(most, len(found)), seen | set(found)
    assert len(seen) == 30 and most <= 20, "each within ten seconds"
    for _ in range(10):
        assert read() == ["run-03"], "nothing has changed in the others"
    assert len(read(run_reader.WHOLE_S)) == 30, "all the same, once in a while"
    (tmp_path / "run-31").mkdir()
    assert "run-31" in read()


def test_a_child_has_begun_once_its_stage_is_seen(tmp_path: Path) -> None:
    class Alive:
        def poll(self) -> None:
            return None

    child = stage_processes.Child("x", Alive(), tmp_path / "run" / "sft.log")  # type: ignore[arg-type]
    state = {
        "stages": [{"stage": "pretrain", "state": "done", "last": child.at - 50}],
        "recipe": ["pretrain", "sft"],
    }
    assert child.run == tmp_path / "run" and child.starts(None) == "sft"
    child.look(state)
    assert not child.begun
    recipe = stage_processes.Child("x", Alive(), tmp_path / "run" / "run.log")  # type: ignore[arg-type]
    assert recipe.stage == "" and recipe.starts(state) == "sft" and recipe.starts(None) == "init"
    state["stages"] += [{"stage": "sft", "state": "training", "last": None}]
    child.look(state)
    assert child.begun and child.starts(state) == ""


@pytest.mark.slow
def test_a_second_key_starts_nothing_and_the_road_says_that_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_run(tmp_path)
    calls: list[list[str]] = []

    def start(words: list[str], run: Path) -> stage_processes.Child:
        calls.append(list(words))
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        return stage_processes.Child(stage_processes.shown(words), process, run / "run.log")

    monkeypatch.setattr(stage_processes, "start", start)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        app.screen.query_one("#stages", Rows).highlighted = 2
        await until_shown(pilot, "R resumes")
        await pilot.press("R")
        await until_shown(pilot, "▶ starting", "its process was started and loads")
        await pilot.press("R")
        app.start(["runs", "resume", str(tmp_path / "first")], tmp_path / "first")
        await until(
            pilot, lambda: any("it is starting already" in n.message for n in app._notifications)
        )
        assert len(calls) == 1
        (child,) = app.started
        child.process.kill()
        await until(pilot, lambda: not app.starting)
        await until_shown(pilot, "✗ died")

    play(tmp_path, script)


@pytest.mark.slow
def test_not_read_is_not_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_run(tmp_path)
    monkeypatch.setattr(OndeviceApp, "on_runs_read", lambda self, message: None)

    async def run() -> None:
        app = app_on(tmp_path)
        async with app.run_test(size=(80, 24)) as pilot:
            text = await until_shown(pilot, "reading the runs in", "being read")
            assert "start init" not in text and "No run yet" not in text and "ready" not in text
            await pilot.press("enter")

    asyncio.run(run())


def test_a_stop_means_the_stage_that_is_meant(tmp_path: Path) -> None:
    asked: list[Any] = []

    class Ui:
        run_state: Any = {
            "stages": [
                {"stage": "sft", "state": "training"},
                {"stage": "grpo", "state": "training"},
            ]
        }
        run_folder = RunFolder(tmp_path / "run")

        def say(self, text: str) -> None:
            asked.append(text)

        def push_screen(self, screen: Any, then: Any) -> None:
            asked.append(screen._text)

    ask_to_stop(Ui(), "grpo")  # type: ignore[arg-type]
    ask_to_stop(Ui(), "pretrain")  # type: ignore[arg-type]
    Ui.run_state = {"stages": [{"stage": "sft", "state": "training"}]}
    ask_to_stop(Ui(), "pretrain")  # type: ignore[arg-type]
    assert (
        "stop grpo?" in asked[0]
        and asked[1].startswith("which one? sft and grpo train")
        and "stop sft?" in asked[2]
    )


@pytest.mark.slow
def test_ctrl_c_says_how_to_leave_and_help_names_the_keys(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    pairs(run)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("ctrl+c")
        await until(
            pilot, lambda: any(n.message.startswith("q closes the app") for n in app._notifications)
        )
        await pilot.press("4")
        await until_shown(pilot, "Question 0?")
        await pilot.resize_terminal(120, 40)
        await until_shown(pilot, "1 ←")
        await pilot.press("question_mark")
        text = await until_shown(pilot, "← 1  The first (left) answer is better", "→ 2  The second")
        assert "Focus" not in text and "Copy selected" not in text
        await pilot.press("escape", "c", "ctrl+c")
        await pilot.press("escape", "6", "ctrl+c")
        await until(
            pilot,
            lambda: any(n.message.startswith("ctrl+q closes the app") for n in app._notifications),
        )

    play(tmp_path, script)


@pytest.mark.slow
def test_the_form_says_what_a_stage_would_refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_run(tmp_path)
    model = str(run.stage("pretrain").model)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await app.push_screen(
            StartScreen("reward", {"out": str(tmp_path / "other"), "model": model})
        )
        await until_shown(pilot, "✗ data: this run has no ratings to learn from")
        fields = {field.spec.name: field for field in app.screen.query(Field)}
        fields["data"].put("builtin")
        await until_shown(pilot, "✓ ready")
        monkeypatch.setattr(os, "access", lambda path, mode: False)
        fields["steps"].put("7")
        await until_shown(pilot, "✗ out:", "cannot be written to")

    play(tmp_path, script)


# a full disk, and the trash


@pytest.mark.slow
def test_a_run_that_waits_for_room_says_so(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    stage = run.stage("sft")
    full = f"the disk is full: 0 B are free ({stage.events})"

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        with stage.locked():
            await until_shown(pilot, "40%")
            stage.note(paused=full)
            await until_shown(pilot, "paused", "paused: the disk is full")
            await pilot.press("2")
            await until_shown(pilot, "‖ paused until there is room: the disk")
            stage.note(paused=None)
            await until(pilot, lambda: "until there is room" not in shown(app))

    play(tmp_path, script, (120, 36))


def test_a_run_goes_to_the_trash_and_comes_back(tmp_path: Path) -> None:
    a_run(tmp_path, "first")
    a_run(tmp_path, "second")

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await until_shown(pilot, "second", " kB")
        await pilot.press("u")
        await until_shown(pilot, "nothing was moved to the trash here")
        chosen = app.chosen
        assert chosen is not None
        await pilot.press("D")
        await until_shown(pilot, f"Move {chosen.name} to the trash?")
        await pilot.press("escape")
        assert chosen.is_dir()
        await pilot.press("D")
        await until_shown(pilot, f"Move {chosen.name} to the trash?")
        await pilot.press("y")
        await until(pilot, lambda: not chosen.exists())
        await until(pilot, lambda: app.runs is not None and len(app.runs) == 1)
        await pilot.press("u")
        await until(pilot, lambda: chosen.is_dir() and app.chosen == chosen)
        await until(pilot, lambda: app.runs is not None and len(app.runs) == 2)

    play(tmp_path, script, (120, 36))


def test_a_run_that_trains_does_not_go_to_the_trash(tmp_path: Path) -> None:
    run = a_run(tmp_path)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await until_shown(pilot, "first")
        with run.stage("sft").locked():
            await pilot.press("D")
            await until_shown(pilot, "Move first to the trash?")
            await pilot.press("y")
            await until_shown(pilot, "sft is being trained")

    play(tmp_path, script, (120, 36))
    assert run.path.is_dir()


def test_space_is_read_in_turns_and_is_not_0_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        a_run(tmp_path, f"run-{number}", recipe="")
    asked: list[str] = []

    def slow(path: Path) -> int:
        asked.append(path.name)
        return 1_000_000 + len(asked)

    monkeypatch.setattr(run_reader, "space", slow)
    monkeypatch.setattr(run_reader, "SPACE_LOOK_S", -1.0)  # one run for each look
    reader = RunsReader(tmp_path)
    for known in range(1, 6):
        runs = reader.read()
        assert sum(run["bytes"] is not None for run in runs) == known
    assert sorted(asked) == [f"run-{number}" for number in range(5)]
    before = reader.read()
    assert asked[5:] == [] and [id(run) for run in reader.read()] == [id(run) for run in before]


def test_a_run_with_a_time_says_how_much_of_it_is_used(tmp_path: Path) -> None:
    stage = RunFolder(tmp_path / "run").stage("sft")
    stage.create()
    times = iter([0.0, 10.0, 20.0])
    with EventWriter(stage.events, now=lambda: next(times)) as events:
        time = {"stage": 3, "stages": 7, "used": 230.0, "seconds": 600.0}
        events.emit("start", 0, stage="sft", steps=100, config={}, time=time)
        events.emit("step", 1, loss=1.0)
        events.emit("step", 2, loss=1.0)
    found = stage_state(stage)
    assert run_status.time_used({**found, "state": "training"}) == "stage 3 of 7, 4:10 of 10:00"
    assert run_status.time_used({**found, "state": "done"}) == ""
    for wrong in (None, 3, {"stage": "x"}, {**time, "used": -1}, {**time, "seconds": float("inf")}):
        assert run_status.time_used({**found, "state": "training", "time": wrong}) == ""


@pytest.mark.slow
def test_the_road_and_the_curves_show_the_time(tmp_path: Path) -> None:
    stage = RunFolder(tmp_path / "run").stage("sft")
    write_stage(stage, 5, of=100, end="died")
    lines = stage.events.read_text().splitlines()
    start = {**json.loads(lines[0]), "time": {"stage": 3, "stages": 7, "used": 250, "seconds": 600}}
    stage.events.write_text("\n".join([json.dumps(start), *lines[1:]]) + "\n")

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await until_shown(pilot, "stage 3 of 7, 4:")
        await pilot.press("2")
        await until_shown(pilot, "running", "of 10:00")

    with stage.locked():
        play(tmp_path, script)


def test_where_a_run_that_trains_is_in_its_recipe(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    assert run_status.place_in_recipe(None) == ""
    [read] = RunsReader(tmp_path).read()
    assert run_status.place_in_recipe(read) == "", "nothing trains"
    with run.stage("sft").locked():
        [read] = RunsReader(tmp_path).read()
        steps = len(read["recipe"])
        place = f"step {read['recipe'].index('sft') + 1} of {steps}"
        assert run_status.place_in_recipe(read) == place, "no plan was kept"
        for text in ("{", '{"seconds": 3}', '{"seconds": {"sft": "x", "init": true}}'):
            run.plan.write_text(text)
            [read] = RunsReader(tmp_path).read()
            assert run_status.place_in_recipe(read) == place and not read["planned"]
        run.plan.write_text(json.dumps({"seconds": dict.fromkeys(read["recipe"], 60.0)}))
        [read] = RunsReader(tmp_path).read()
    told = run_status.run_left(read)
    assert run_status.place_in_recipe(read) == f"{place}, {told}" and told.endswith("of the run")


def test_what_is_left_of_a_run_is_its_plan_at_the_pace_of_its_work() -> None:
    def stage(name: str, state: str, seconds: float, step: int, steps: int) -> dict[str, Any]:
        return {
            "stage": name,
            "state": state,
            "step": step,
            "steps": steps,
            "seconds": seconds if state == "done" else None,
            "began": 0.0,
            "last": seconds,
            "paused": 0.0,
            "since": (0.0, 0),
        }

    run: dict[str, Any] = {
        "recipe": ["init", "pretrain", "sft", "rate"],
        "planned": {"init": 10.0, "pretrain": 100.0, "sft": 50.0, "rate": 0.0},
        "stages": [stage("init", "done", 20.0, 1, 1), stage("pretrain", "training", 50.0, 25, 100)],
    }
    # twice as slow as planned: 75 steps of two seconds, and the tuning
    assert run_status.run_seconds_left(run) == 150 + 100
    assert run_status.place_in_recipe(run) == "step 2 of 4, ≈ 4:10 left of the run"
    # none of its steps is done yet
    run["stages"][1] = stage("pretrain", "training", 0.0, 0, 100)
    assert run_status.run_seconds_left(run) == 2 * (100 + 50)
    run["stages"][0] = stage("init", "done", 0.0, 1, 1)
    assert run_status.run_seconds_left(run) == 100 + 50, "by the plan alone"
    # what was a pause is no work, nor what a person takes to rate
    run["stages"][1] = {**stage("pretrain", "training", 7250.0, 25, 100), "paused": 7200.0}
    run["stages"][1]["idle"] = 7200.0
    assert run_status.run_seconds_left(run) == 150 + 100
    del run["planned"]["sft"]
    assert run_status.run_seconds_left(run) is None and run_status.run_left(run) == ""
    run["stages"][1]["state"] = "stopped"
    assert run_status.place_in_recipe(run) == ""
