"""The terminal UI by its keys, at the smallest size and a large one: what stands on the screen, and
what a key does.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from ondevice.config.recipe import STAGES
from ondevice.preferences.database import Ratings
from ondevice.preferences.sqlite_store import FILE
from ondevice.runs.events import EventWriter
from ondevice.runs.folder import RunFolder
from ondevice_tui import plan_process, push_process, stage_processes
from ondevice_tui.app import OndeviceApp, own_bindings
from ondevice_tui.proposals import proposal
from ondevice_tui.screens.start import StartScreen
from ondevice_tui.widgets.curve import Curve
from ondevice_tui.widgets.key_footer import Keys
from ondevice_tui.widgets.rows import Rows
from tui_runs import SIZES, WIDE, a_run, app_on, shown, until, until_shown, write_done, write_stage

ROAD = [name for name in STAGES if name != "classify"]  # a run without a classifier
Script = Callable[[OndeviceApp, Pilot[Any]], Awaitable[None]]


def play(folder: Path, script: Script, size: tuple[int, int] = (80, 24)) -> None:
    """Opens the app on a folder of runs and lets `script` press its keys."""

    async def run() -> None:
        app = app_on(folder)
        async with app.run_test(size=size, notifications=True) as pilot:
            await until(pilot, lambda: app.runs is not None, "the runs are read")
            await script(app, pilot)

    asyncio.run(run())


@pytest.fixture(autouse=True)
def no_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is pushed or planned in these tests: opening a screen starts no process that loads the
    Hub's client, or reads a model.
    """

    async def ask(values: dict[str, Any]) -> dict[str, Any]:
        raise push_process.PlanFailed("not asked")

    async def plan(words: Sequence[str], run: Path, *, measure: bool = False) -> dict[str, Any]:
        return {"line": "", "machine": {"calibrated": True}}

    monkeypatch.setattr(push_process, "ask_plan", ask)
    monkeypatch.setattr(plan_process, "ask", plan)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command lines that would have been started."""
    calls: list[list[str]] = []

    class Quiet:
        def poll(self) -> None:
            return None

    def start(words: list[str], run: Path) -> stage_processes.Child:
        calls.append(list(words))
        return stage_processes.Child(stage_processes.shown(words), Quiet(), run / "x.log")  # type: ignore[arg-type]

    monkeypatch.setattr(stage_processes, "start", start)
    return calls


def fits(text: str, size: tuple[int, int]) -> bool:
    lines = text.split("\n")
    return len(lines) == size[1] and all(len(line) <= size[0] for line in lines)


# home


@pytest.mark.parametrize("size", SIZES)
def test_home_shows_the_road_and_the_runs(tmp_path: Path, size: tuple[int, int]) -> None:
    a_run(tmp_path)
    write_stage(RunFolder(tmp_path / "other").stage("pretrain"), 10, end="failed")

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        app.choose(tmp_path / "first")
        text = await until_shown(pilot, "process gone after step 40")
        assert fits(text, size)
        rows = [row for row in text.splitlines() if "│" in row]
        assert any("init " in row and "✓ done" in row for row in rows)
        assert any(
            "pretrain " in row and "✓ done" in row and "held-out" in row and "0:50" in row
            for row in rows
        )
        assert any("sft " in row and "✗ died" in row for row in rows)
        for stage in ROAD:
            assert f"│ {stage} " in text or f"│›{stage} " in text
        assert "classify" not in text
        assert "▸ first" in text and "other" in text and "✗ pretrain" in text and "exact" in text
        assert "R resumes" in text and "? help" in text.replace("?help", "? help")
        assert ("the same prompt, after each stage" in text) == (size[0] >= 110)
        if size[0] >= 110:
            assert "in a small house" in text and "xq zz" in text

    play(tmp_path, script, size)


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_an_empty_folder_says_what_to_do(tmp_path: Path, size: tuple[int, int]) -> None:
    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        text = await until_shown(pilot, "no run yet in", "starts the recipe minute")
        assert fits(text, size)
        for key, says in (
            ("2", "Nothing to watch yet"),
            ("5", "No stage of this run is complete yet"),
        ):
            await pilot.press(key)
            await until_shown(pilot, says)
            await pilot.press("escape")
        await until_shown(pilot, "no run yet in")
        await pilot.press("n")
        await until_shown(pilot, "begin a run")

    play(tmp_path, script, size)


@pytest.mark.slow
def test_tab_enter_chooses_another_run(tmp_path: Path) -> None:
    a_run(tmp_path)
    write_stage(RunFolder(tmp_path / "other").stage("pretrain"), 10)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        before = app.chosen
        await pilot.press("tab")
        rows = app.screen.query_one("#runs", Rows)
        assert rows.has_focus
        wanted = next(i for i, option in enumerate(rows.options) if option.id != str(before))
        rows.highlighted = wanted
        await pilot.press("enter")
        assert str(app.chosen) == rows.options[wanted].id != str(before)

    play(tmp_path, script)


@pytest.mark.slow
def test_a_click_chooses_and_opens(tmp_path: Path) -> None:
    a_run(tmp_path)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await until_shown(pilot, "pretrain")
        stages = app.screen.query_one("#stages", Rows)
        await pilot.click("#stages", offset=(10, 1))
        assert stages.highlighted == 0 and app.current_mode == "road", "one click highlights"
        await pilot.click("#stages", offset=(10, 2), times=2)
        await until(pilot, lambda: app.current_mode == "train")
        assert app.stage == "pretrain"

    play(tmp_path, script)


@pytest.mark.slow
def test_r_resumes_by_the_recipe_or_by_the_stages_own_command(
    tmp_path: Path, started: list[list[str]]
) -> None:
    first = a_run(tmp_path)
    alone = a_run(tmp_path, "alone", recipe="")
    config = {
        "out": "",
        "model": "m",
        "data": "d.jsonl",
        "steps": 70,
        "packing": False,
        "resume": False,
    }
    stage = alone.stage("sft")
    stage.events.unlink()
    with EventWriter(stage.events) as events:
        events.emit("start", 0, steps=70, config=config)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        for run in (first, alone):
            app.choose(run.path)
            app.tell_page()
            rows = app.screen.query_one("#stages", Rows)
            rows.highlighted = 2
            await pilot.press("R")
        rows.highlighted = 1
        await pilot.press("R")  # done: there is nothing to resume

    play(tmp_path, script)
    assert started[0] == ["runs", "resume", str(first.path)]
    assert started[1][:3] == ["sft", "m", "d.jsonl"]
    assert set(started[1][3:]) == {f"--out={alone.path}", "--steps=70", "--no-packing", "--resume"}
    assert len(started) == 2


@pytest.mark.slow
def test_x_asks_and_then_writes_the_stop_file(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    stage = run.stage("sft")

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("X")
        await until_shown(pilot, "nothing trains in this run")
        with stage.locked():
            app.look()
            await until_shown(pilot, "40%")
            await pilot.press("X")
            await until_shown(pilot, "stop sft?")
            await pilot.press("n")
            assert not stage.stop.exists()
            await pilot.press("X", "y")
            assert stage.stop.exists()
        app.look()
        await until_shown(pilot, "✗ died")

    play(tmp_path, script)


@pytest.mark.slow
def test_c_asks_for_a_checkpoint(tmp_path: Path) -> None:
    stage = a_run(tmp_path).stage("sft")

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        app.choose(stage.path.parent, "sft")
        await pilot.press("2", "C")
        await until_shown(pilot, "nothing to save")
        assert not stage.save.exists()
        with stage.locked():
            await pilot.press("C")
            await until_shown(pilot, "asked for a checkpoint")
            assert stage.save.exists()

    play(tmp_path, script)


@pytest.mark.slow
def test_the_log_shows_the_last_lines_of_a_run_that_died(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    (run.path / "sft.log").write_text("step 39\rstep 40\nKilled: out of memory [/]\n")

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        app.screen.query_one("#stages", Rows).highlighted = 2
        await pilot.press("L")
        text = await until_shown(pilot, "Killed: out of memory [/]")
        assert "step 40" in text and "step 39" not in text
        await pilot.press("escape")
        (run.path / "sft.log").unlink()  # one that was started from the command line has none
        await pilot.press("L")
        text = await until_shown(pilot, "Its last events", "step 40")
        assert "step 39" in text and "loss" in text

    play(tmp_path, script)


# train


@pytest.mark.parametrize("size", SIZES)
def test_train_shows_curves_numbers_and_samples(tmp_path: Path, size: tuple[int, int]) -> None:
    run = a_run(tmp_path)
    write_stage(run.stage("pretrain"), warning="half of the rows were cut")

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        app.choose(run.path, "pretrain")
        await pilot.press("2")
        text = await until_shown(pilot, "o held-out", "step 100/100 100%")
        assert fits(text, size)
        assert "✓ done" in text and "grad 0.500" in text and "lr 1.0e-03" in text
        assert any("\u2800" < c < "\u28ff" for c in text) and " o" in text
        await until_shown(pilot, "step 100 · Leo lives in…", "in a small house")
        assert ("half of the rows" in text) == (size[0] >= 110)

    play(tmp_path, script, size)


@pytest.mark.slow
def test_the_keys_of_train(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    a_run(tmp_path, "second")
    write_stage(RunFolder(tmp_path / "third").stage("sft"))

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        app.choose(run.path, "pretrain")
        await pilot.press("2")
        await until_shown(pilot, "step 100/100")
        curve = app.screen.query_one("#curve", Curve)
        for scale in ("full", "log", "fit"):
            await pilot.press("y")
            assert curve.scale == scale
            await until_shown(pilot, f"y: {scale}")
        await pilot.press("e")
        await until_shown(pilot, "smooth 0.9")
        await pilot.press("a")
        await until_shown(pilot, "x: time")
        await pilot.press("a")
        text = await until_shown(pilot, "x: tokens")
        assert "51200" in text
        await pilot.press("a", "plus")
        text = await until_shown(pilot, "zoom 2×")
        await pilot.press("minus")
        await pilot.press("tab")
        await until_shown(pilot, " grad_norm 0.500")
        await pilot.press("shift+tab")
        await until_shown(pilot, " loss 1.")
        await pilot.press("right_curly_bracket")
        await until_shown(pilot, "2 + 2 =")
        await pilot.press("s")  # an earlier version's: it says where its deed has gone
        await until(pilot, lambda: any("s is { } now" in n.message for n in app._notifications))
        await pilot.press("left_square_bracket")
        await until_shown(pilot, "step 50 · 2 + 2", "[ ] 1 of 2")
        await pilot.press("right_square_bracket")
        await until_shown(pilot, "step 100 · 2 + 2")
        page = app.screen
        await pilot.press("o")
        await until_shown(pilot, "runs with pretrain: up to 5", "[ ] second")
        await pilot.press("space")
        await until_shown(pilot, "[x] second", "1 ticked")
        await pilot.press("enter")
        await until_shown(pilot, "laid over it  a second 1.")
        assert app.ticked_runs == (tmp_path / "second",)
        # as the table of runs may do
        app.ticked_runs = (tmp_path / "second", run.path, tmp_path / "third")
        await until(pilot, lambda: app.screen is page, "the card is away")
        await pilot.press("o", "escape")
        await until_shown(pilot, "a second 1.", "1 ticked without pretrain")
        await until(pilot, lambda: app.screen is page, "the card is away")
        app.ticked_runs = (tmp_path / "second", run.path)
        await pilot.press("o", "u", "escape")
        await until(pilot, lambda: "laid over it" not in shown(app))
        assert app.ticked_runs == (run.path,)
        await pilot.press("Z")
        await until_shown(pilot, "frozen")
        await pilot.press("Z", "full_stop")
        await until_shown(pilot, "first · sft", "the process is gone and left no word", "R resumes")
        await pilot.press("comma")
        await until_shown(pilot, "first · pretrain")
        await pilot.press("L")
        await until_shown(pilot, "Its last events")
        await pilot.press("escape", "escape")
        await until(pilot, lambda: app.current_mode == "road")

    play(tmp_path, script)


@pytest.mark.slow
def test_train_follows_a_stage_that_writes(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "live")
    stage = run.stage("pretrain")

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        with stage.locked(), EventWriter(stage.events) as events:
            events.emit("start", 0, steps=10)
            app.look()
            await pilot.press("2")
            await until_shown(pilot, "no step yet")
            for step in (1, 2, 3):
                events.emit("step", step, loss=float("nan") if step == 2 else 3.5, lr=0.1)
                events.flush()
                await until_shown(pilot, f"step {step}/10")
            assert "✗" in shown(app)
            await pilot.press("Z")
            await until_shown(pilot, "frozen")
            events.emit("step", 4, loss=3.5)
            events.emit("step", 9, loss=3.5)
            events.flush()
            history = app.screen.history  # type: ignore[attr-defined]
            await until(pilot, lambda: history.step == 9)
            assert "step 3/10" in shown(app)
            await pilot.press("Z")
            await until_shown(pilot, "step 9/10 90%", "running")

    play(tmp_path, script)


@pytest.mark.slow
def test_where_there_is_no_room_for_both_a_key_shows_the_samples(tmp_path: Path) -> None:
    run = a_run(tmp_path)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        app.choose(run.path, "pretrain")
        await pilot.press("2")
        text = await until_shown(pilot, "step 100/100", "y: fit")
        assert "in a small house" not in text and fits(text, (60, 20))
        await until_shown(pilot, "X stop", "R resume", "^p palette")
        await pilot.press("right_curly_bracket")
        text = await until_shown(pilot, "step 100 · Leo lives in", "in a small house")
        assert "y: fit" not in text and fits(text, (60, 20))
        await pilot.press("right_curly_bracket")
        await until_shown(pilot, "step 100 · 2 + 2")
        await pilot.press("left_square_bracket")
        await until_shown(pilot, "step 50 · 2 + 2")
        await pilot.press("tab")
        await until_shown(pilot, "╭─ loss 1.", "y: fit")
        app.say("kept: " + "/somewhere" * 20 + "/the-model")
        text = await until_shown(pilot, "kept:", "/the-model")
        (told,) = [row for row in text.splitlines() if "/the-model" in row]
        assert "▌ …" in told and "X stop" in text, text

    play(tmp_path, script, (60, 20))


# ladder


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_the_ladder(tmp_path: Path, size: tuple[int, int]) -> None:
    run = a_run(tmp_path)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("5")
        text = await until_shown(pilot, "73.1%", "prompt 1 of 2")
        assert fits(text, size)
        assert "in a small house" in text and "xq zz" in text
        await pilot.press("right_square_bracket")
        await until_shown(pilot, "prompt 2 of 2", "> 2 + 2 =")
        await pilot.press("left")
        await until_shown(pilot, "prompt 1 of 2")
        await pilot.press("tab")
        await until_shown(pilot, "75%", "2 of ")
        await pilot.press("ctrl+s")
        await until_shown(pilot, "written:")

    play(tmp_path, script, size)
    assert "in a small house" in run.report.read_text()


# everywhere


@pytest.mark.slow
def test_help_lists_every_key_of_each_screen(tmp_path: Path) -> None:
    a_run(tmp_path)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        for mode in app.MODES:
            app.action_go(mode)
            await pilot.pause()
            if getattr(app.screen, "TYPES", False):
                app.action_explain()  # letters are typed here: the palette has it
            else:
                await pilot.press("question_mark")
            await until_shown(pilot, "esc closes")
            told = app.screen.query_one("#card SafeText").plain  # type: ignore[attr-defined]
            for binding, _ in own_bindings(app.screen_stack[-2]):
                assert (binding.tooltip or binding.description) in told
            await pilot.press("escape")

    play(tmp_path, script, (120, 50))


@pytest.mark.slow
def test_the_foot_shows_every_action(tmp_path: Path) -> None:
    """At 80 columns too; where two keys are one action each way, they stand together. A click
    presses a key."""
    a_run(tmp_path)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        for mode in ("road", "train", "ladder", "reason", "chat"):
            app.action_go(mode)
            await until(pilot, lambda: app.screen.query_one(Keys).rows, mode)
            await pilot.pause()
            foot = app.screen.query_one(Keys)
            keys = [key for row in foot.rows for key in row]
            wanted = {verb(binding.action) for binding, _ in own_bindings(app.screen)}
            # tab and ctrl+c, as everywhere
            textuals = {"focus_next", "focus_previous", "screen.copy_text"}
            assert wanted - textuals <= {verb(key.action) for key in keys}, mode
            assert all(x + key.cells <= foot.size.width for key, x, _ in foot.placed()), mode
            assert app.screen.region.contains_region(foot.region) and foot.region.bottom == 24
            assert foot.size.height == len(foot.rows)
            for key, x, y in foot.placed():
                drawn = shown(app).splitlines()[foot.region.y + y]
                assert f"{drawn[x:]} ".startswith(f"{key.display} {key.description} "), drawn
        app.action_go("train")
        await until(pilot, lambda: app.screen.query_one(Keys).rows, "train")
        foot = app.screen.query_one(Keys)
        x, y = next((x, y) for key, x, y in foot.placed() if key.action == "app.go('road')")
        await pilot.hover(Keys, offset=(x, y))
        assert str(foot.tooltip) == "Back to the road"
        await pilot.click(Keys, offset=(x, y))
        await until(pilot, lambda: app.current_mode == "road", "a click presses the key")

    def verb(action: str) -> str:
        return action.removeprefix("app.").split("(")[0]

    play(tmp_path, script)


@pytest.mark.slow
def test_palette_theme_and_numbers(tmp_path: Path) -> None:
    a_run(tmp_path)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        titles = [command.title for command in app.get_system_commands(app.screen)]
        assert any(title.startswith("new run (n)") for title in titles) and "Theme" in titles
        await pilot.press("ctrl+p")
        await until_shown(pilot, "Search")
        await pilot.press(*"ladder", "down", "enter")
        await until(pilot, lambda: app.current_mode == "ladder")
        await pilot.press("1")
        dark = app.current_theme.dark
        await pilot.press("T")
        assert app.current_theme.dark != dark
        await pilot.press("q")

    play(tmp_path, script)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(20, 6), (200, 60), (80, 24), (100, 30), (120, 36), (40, 12)])
def test_no_size_breaks_a_screen(tmp_path: Path, size: tuple[int, int]) -> None:
    a_run(tmp_path)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        for mode in app.MODES:
            app.action_go(mode)
            await pilot.pause()
            assert fits(shown(app), size)
            await pilot.resize_terminal(80, 24)
            await pilot.pause()
            await pilot.resize_terminal(*size)
            await pilot.pause()
            assert fits(shown(app), size)

    play(tmp_path, script, size)


@pytest.mark.slow
def test_a_child_that_refuses_is_told_with_its_last_words(tmp_path: Path) -> None:
    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        app.start(["sft", "nowhere", "--out", str(tmp_path / "r")], tmp_path / "r")
        await until_shown(pilot, "ended with code 2", "nowhere")

    play(tmp_path, script, (120, 36))
    assert "nowhere" in (tmp_path / "r" / "sft.log").read_text()


@pytest.mark.slow
def test_a_started_process_is_detached(tmp_path: Path) -> None:
    child = stage_processes.start(["doctor"], tmp_path / "r")
    assert os.getsid(child.process.pid) == child.process.pid != os.getsid(0)
    assert child.process.wait() == 0 and child.ended() is not None and child.ended() is None
    assert "ondevice" in child.log.read_text()


@pytest.mark.slow
def test_a_complete_stage_is_proposed_anew_with_the_votes_that_are_there(tmp_path: Path) -> None:
    """In a run of its own, whose ratings.db does not exist: the votes are those of the run that was
    looked at.
    """
    run = RunFolder(tmp_path / "first")
    write_done(run.stage("sft"), [])
    Ratings.open(run.path, create=True).close()
    assert "data" not in proposal("dpo", run) and proposal("dpo", run)["out"] == str(run.path)
    (run.stage("ppo").checkpoints / "step-00000010").mkdir(parents=True)  # it was stopped
    assert proposal("ppo", run)["out"] != str(run.path)
    write_done(run.stage("dpo"), [])
    found = proposal("dpo", run)
    assert found["data"] == str(run.path / FILE) and found["out"] != str(run.path)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await app.push_screen(StartScreen("dpo", found))
        await until_shown(pilot, "ratings.db", "ready")
        app.screen._take_recipe("tiny")
        await until_shown(pilot, "ratings.db", "ready")

    play(tmp_path, script, WIDE)


def test_the_start_of_rating_is_the_screen_where_people_rate(tmp_path: Path) -> None:
    """Also once the stage is complete: no command of that name runs it."""
    run = a_run(tmp_path)
    write_done(run.stage("rate"), [])

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        rows = app.screen.query(Rows).first()
        await until(pilot, lambda: app.run_state is not None and "rate" in shown(app), "the road")
        rows.highlighted = rows.get_option_index("rate")
        await pilot.press("g")
        await until(pilot, lambda: app.current_mode == "rate", "the rate screen")

    play(tmp_path, script)
