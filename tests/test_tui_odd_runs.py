"""A run that cannot be read takes neither the app nor the other runs with it; an error of the app's
own is told.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from ondevice.cli import main
from ondevice.preferences.database import Ratings
from ondevice.preferences.votes import Response
from ondevice.runs import listing
from ondevice.runs.events import EventWriter
from ondevice.runs.folder import RunFolder, StageFolder
from ondevice_tui import trouble
from ondevice_tui.app import OndeviceApp
from ondevice_tui.run_reader import RunsReader
from test_tui import play
from tui_runs import SIZES, a_run, shown, until, until_shown, until_told, write_done


@pytest.fixture(autouse=True)
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "ondevice" / "app.log"


def stage(folder: Path, *lines: str) -> StageFolder:
    made = RunFolder(folder / "odd").stage("sft").create()
    made.lock.touch()
    made.events.write_text("".join(f"{line}\n" for line in lines))
    return made


def odd_types(folder: Path) -> None:
    rows: list[Any] = [
        {"t": "noon", "event": ["start"], "step": {}, "steps": "many", "config": 3},
        {"t": 1e999, "event": "step", "step": "x", "loss": "low"},
        {"event": "resume", "step": "y"},
        {"t": 10**400, "event": None, "step": None, "loss": float("nan")},
        [],
        3,
    ]
    stage(folder, *map(json.dumps, rows), "[" * 100_000).done.write_text(
        json.dumps({"marks": [], "seconds": "long"})
    )


def events_folder(folder: Path) -> None:
    made = stage(folder)
    made.events.unlink()
    made.events.mkdir()


def pipes(folder: Path) -> None:
    made = stage(folder)
    made.events.unlink()
    for file in (made.events, made.done):
        os.mkfifo(file)


def pipe_for_a_lock(folder: Path) -> None:
    made = stage(folder)
    made.lock.unlink()
    os.mkfifo(made.lock)
    made.done.write_text("[" * 100_000)


def folders_for_files(folder: Path) -> None:
    made = stage(folder)
    made.lock.unlink()
    made.lock.mkdir()
    made.done.mkdir()
    RunFolder(folder / "odd").recipe.write_text("stages: {sft: {}}\n")


def loop(folder: Path) -> None:
    made = stage(folder)
    made.events.unlink()
    made.events.symlink_to(made.events)
    (folder / "odd-2").symlink_to(folder / "odd-2")


def bad_recipe(folder: Path) -> None:
    stage(folder)
    RunFolder(folder / "odd").recipe.write_bytes(b"\xff\xfe: [\0")


ODD: list[Callable[[Path], None]] = [
    odd_types,
    events_folder,
    pipes,
    pipe_for_a_lock,
    folders_for_files,
    loop,
    bad_recipe,
]


@pytest.mark.parametrize(
    "make",
    [
        *(pytest.param(make, id=make.__name__) for make in ODD[:1]),
        *(pytest.param(make, id=make.__name__, marks=pytest.mark.slow) for make in ODD[1:]),
    ],
)
def test_an_odd_run_is_listed_and_hides_no_other(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    runs = tmp_path / "runs"
    a_run(runs)
    make(runs)
    for found in (listing.list_runs(runs), RunsReader(runs).read()):
        by_name = {run["run"]: run for run in found}
        assert by_name.keys() == {"first", "odd"} and len(by_name["first"]["stages"]) == 3
        odd = by_name["odd"]
        assert odd["stages"] or odd.get("wrong") or make is folders_for_files, odd
    assert "first" in listing.runs_text(found)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await until_shown(pilot, "first", "odd")
        app.choose(runs / "odd")
        await until(pilot, lambda: app.run_state is not None)
        for mode in app.MODES:
            app.action_go(mode)
            await pilot.pause(0.05)

    play(runs, script)


def test_a_mistake_of_ours_is_on_the_row_and_in_the_log(
    tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "runs"
    a_run(runs)
    stage(runs)
    told = listing.stage_state

    def broken(stage: StageFolder) -> dict[str, Any]:
        if stage.path.parent.name == "odd":
            raise ZeroDivisionError("who wrote this?")
        return told(stage)

    for module in (listing, sys.modules["ondevice_tui.run_reader"]):
        monkeypatch.setattr(module, "stage_state", broken)
    reader = RunsReader(runs)
    for _ in range(3):
        odd = {run["run"]: run for run in reader.read()}["odd"]
    assert odd["wrong"] == "ZeroDivisionError: who wrote this?"
    text = log.read_text()
    assert text.count("Traceback") == 1 and "in broken" in text and str(runs / "odd") in text
    assert "odd  (cannot be read: ZeroDivisionError: who wrote this?)" in listing.runs_text(
        listing.list_runs(runs)
    )

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await until_shown(pilot, "✗ cannot be read: Zer")
        app.choose(runs / "odd")
        await until_shown(pilot, "odd cannot be read: ZeroDivisionError: who wrote this?")

    play(runs, script)


@pytest.mark.slow
def test_a_folder_of_runs_that_cannot_be_read_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "runs"
    a_run(runs)

    def refuse(self: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(self))

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        monkeypatch.setattr("os.scandir", refuse)
        await until_shown(pilot, "the folder of runs cannot be read (Permission denied)")
        monkeypatch.undo()
        await until_shown(pilot, "process gone")

    play(runs, script)


# pairs alone


@pytest.mark.slow
def test_a_folder_with_nothing_but_ratings_is_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`ratings import` makes one, and its pairs can be rated."""
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps({"prompt": "Which?", "a": "this one", "b": "that one"}) + "\n")
    runs = tmp_path / "runs"
    assert main(["ratings", "import", str(runs / "new"), str(file)]) == 0
    assert main(["ratings", "import", str(tmp_path / "alone.db"), str(file)]) == 0
    assert (runs / "new" / "ratings.db").is_file() and (tmp_path / "alone.db").is_file()
    # the same again, now that it is there
    assert main(["ratings", "import", str(runs / "new"), str(file)]) == 0
    capsys.readouterr()
    assert main(["runs", "list", f"--folder={runs}"]) == 0
    assert str(runs / "new") in capsys.readouterr().out

    before = listing.list_runs(runs)[0]["began"]
    os.utime(runs / "new", (before + 1000, before + 1000))  # as after a look at its ratings
    assert listing.list_runs(runs)[0]["began"] == before, "a look at a run makes it no newer"

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await until_shown(pilot, "new", "pairs to rate", "Enter ▸ rate")
        await pilot.press("enter")
        await until_shown(pilot, "Which?", "that one")

    play(runs, script)


# errors of the app's own


def survivor(folder: Path) -> OndeviceApp:
    return OndeviceApp(folder, look_at_machine=False, survives=True)


async def boom() -> None:
    raise ZeroDivisionError("of a task")


@pytest.mark.slow
def test_what_fails_in_a_task_a_thread_or_a_key_is_told_and_the_app_goes_on(
    tmp_path: Path, log: Path
) -> None:
    run = a_run(tmp_path / "runs")
    with Ratings.open(run.path, create=True) as ratings:
        ratings.add("a", "Which?", [Response("this", "x"), Response("that", "y")], seed=0)

    async def play_() -> None:
        app = survivor(run.path.parent)
        async with app.run_test(size=(100, 30), notifications=True) as pilot:
            await until_shown(pilot, "process gone")
            app.screen.run_worker(boom())
            await until_shown(pilot, "ZeroDivisionError: of a task", "The app goes on")
            app.screen.run_worker(lambda: {}["thread"], thread=True)
            await until_told(pilot, "KeyError: 'thread'")
            app.action_go("rate")
            await until_shown(pilot, "Which?")
            app.screen.action_why = lambda: 1 / 0  # type: ignore[attr-defined]
            app.clear_notifications()
            await pilot.press("Y")
            await until_told(pilot, "ZeroDivisionError: division by zero")
            app.clear_notifications()
            await pilot.press("Y", "escape")  # told once; and the screen takes its keys
            await until_shown(pilot, "the road")
            assert "division" not in shown(app)

    import asyncio

    asyncio.run(play_())
    text = log.read_text()
    assert [
        text.count(said) for said in ("of a task\n", "KeyError: 'thread'\n", "division by zero\n")
    ] == [1, 1, 1]


def test_under_a_test_an_error_is_raised(tmp_path: Path) -> None:
    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        worker = app.screen.run_worker(boom())
        await until(pilot, lambda: worker.is_finished)

    with pytest.raises(Exception, match="of a task"):
        play(tmp_path, script)


def test_a_log_that_cannot_be_written_is_said(tmp_path: Path, log: Path) -> None:
    log.mkdir(parents=True)
    assert "could not be written" in trouble.write_trouble("x", ValueError("y"))


def counted(stage: StageFolder, *steps: dict[str, Any]) -> None:
    """A stage that counts, as `rate` does: no loss, no speed."""
    stage.create()
    stage.lock.touch()
    with EventWriter(stage.events) as events:
        events.emit("start", 0, stage=stage.name, steps=0, config={})
        for number, fields in enumerate(steps, 1):
            events.emit("step", number * 100, **fields)
        events.emit("done", seconds=1.0)
    write_done(stage, [])


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_counts_stay_whole_and_one_figure_is_a_value(tmp_path: Path, size: tuple[int, int]) -> None:
    run = a_run(tmp_path)
    counted(run.stage("sample"), {"tokens_per_second": 812.5, "queued": 15, "alike": 3})
    counted(run.stage("rate"), *({"ranked": n, "all_bad": n // 2} for n in (7, 60, 176)))

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        app.stage = "sample"
        await pilot.press("2")
        text = await until_shown(pilot, "queued 15", "15: the only value", "alike 3")
        assert "average" not in text and "┤" not in text, "a dot on axes says less than the number"
        app.stage = "rate"
        app.screen.runs_changed()  # type: ignore[attr-defined]
        text = await until_shown(pilot, "ranked 176", "all bad 88", "counts")
        assert "average" not in text and ".000" not in text
        labels = re.findall(r"(\S+)┤", text)
        assert labels and all(label.isdigit() for label in labels)

    play(tmp_path, script, size)
