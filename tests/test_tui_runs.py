"""The list of runs in the app: columns for any width, a search and an order, ticks, notes, tags, names
and differences; and the card of who has no run yet.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from textual.pilot import Pilot

from ondevice.config.recipe import STAGES
from ondevice.runs import labels
from ondevice.runs.folder import RunFolder
from ondevice_tui import plan_process, run_lines, run_reader, stage_processes
from ondevice_tui.app import OndeviceApp
from ondevice_tui.fields import field_help
from ondevice_tui.run_reader import RunsReader
from ondevice_tui.screens.road import RoadScreen
from ondevice_tui.screens.run_cards import difference_lines
from ondevice_tui.screens.start import StartScreen
from ondevice_tui.screens.start_fields import Field
from ondevice_tui.widgets import safe
from ondevice_tui.widgets.run_list import SORTS, RunList
from ondevice_tui.widgets.safe import SafeText
from ondevice_tui.widgets.welcome import UNMEASURED, Welcome
from test_tui import no_plans, play  # noqa: F401
from tui_runs import a_run, in_one_line, shown, until, until_shown, write_stage


def runs_of(folder: Path) -> list[dict[str, Any]]:
    return RunsReader(folder).read()


@pytest.mark.parametrize("width", [50, 55, 75, 100, 160])
@pytest.mark.parametrize("name", ["a", "x" * 200, "運行" * 20])
def test_a_line_has_its_width(tmp_path: Path, width: int, name: str) -> None:
    write_stage(RunFolder(tmp_path / name).stage("pretrain"), 5)
    labels.set_note(tmp_path / name, "a note of several words, and more than fits " * 5)
    [run] = runs_of(tmp_path)
    shape = run_lines.layout(width, run_lines.longest_name([run]))
    drawn = run_lines.run_line(run, shape, chosen=True, ticked=True).plain
    head = run_lines.head(shape, "exact", False).plain
    assert cell_len(drawn) <= width and cell_len(head) <= width
    assert drawn.startswith("▸*") and "✓ pretrain" in drawn and "exact" in head
    # a column's name stands over its values, and a click there finds it
    at = head.index("exact")
    assert run_lines.column_at(shape, at) == "exact"
    for sort in SORTS:  # what they are ordered by is seen
        ordered_by = run_lines.layout(width, 20, sort)
        assert f"{sort}▾" in run_lines.head(ordered_by, sort, False).plain
        drawn = run_lines.run_line(run, ordered_by, chosen=False, ticked=False).plain
        assert cell_len(drawn) <= width
    wrong = run_lines.run_line({**run, "wrong": "no"}, shape, chosen=False, ticked=False).plain
    assert "cannot be read: no" in wrong or width < 55
    assert cell_len(wrong) <= width


def test_what_is_not_read_yet_is_not_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs come bit by bit, the newest first; what is left is counted."""
    for number in range(6):
        write_stage(RunFolder(tmp_path / f"r{number}").stage("pretrain"), 2)
        for path in (tmp_path / f"r{number}" / "pretrain", tmp_path / f"r{number}"):
            for inner in (*path.iterdir(), path):
                os.utime(inner, (1e9 + number, 1e9 + number))
    now = [100.0]

    def slow() -> float:
        now[0] += 0.3
        return now[0]

    monkeypatch.setattr(run_reader, "ticks", slow)
    reader = RunsReader(tmp_path)
    first = [run["run"] for run in reader.read()]
    assert first and set(first) <= {"r5", "r4"} and reader.unread == 6 - len(first)
    for _ in range(6):
        found = reader.read()
    assert len(found) == 6 and reader.unread == 0


def test_a_run_that_is_the_same_is_the_same_record(tmp_path: Path) -> None:
    """So that nothing is drawn again."""
    a_run(tmp_path)
    reader = RunsReader(tmp_path)
    before = reader.read()
    for _ in range(3):
        again = reader.read(tmp_path / "first")  # the chosen one is looked at each time
    assert [id(run) for run in again] == [id(run) for run in before] or again[0]["bytes"]
    assert reader.read(tmp_path / "first")[0] is again[0]


def test_differences_stand_beside_or_under_each_other(tmp_path: Path) -> None:
    from ondevice.runs.differences import Difference

    runs = [tmp_path / ("a" * 20), tmp_path / ("b" * 20)]
    found = [Difference("sft.learning_rate", ("0.001", "0.0003"))]
    beside = [row.plain for row in difference_lines(runs, found, 100)]
    assert len(beside) == 2 and "0.001" in beside[1] and "0.0003" in beside[1]
    under = [row.plain for row in difference_lines(runs, found, 40)]
    assert len(under) == 3 and under[0] == "sft.learning_rate" and "0.0003" in under[2]
    assert "No setting differs" in difference_lines(runs, [], 40)[0].plain


def test_names_that_differ_at_their_ends_are_told_apart() -> None:
    """As those do that runs get by default."""
    names = [
        "minute-20261201-011853",
        "minute-20261201-011921",
        "運行" * 20 + "x",
        "運行" * 20 + "y",
    ]
    for width in (3, 16, 17, 20):
        cut = [safe.cell(name, width, middle=True) for name in names]
        assert len(set(cut)) == len(cut) and all(cell_len(text) == width for text in cut)
    assert safe.cell(names[0], 20, middle=True) == "minute-202…01-011853"
    assert safe.cell("short", 7, middle=True) == "short  "


@pytest.mark.slow
def test_home_in_a_small_terminal(tmp_path: Path) -> None:
    """What is highlighted is in view from the first, and a note before the figures."""
    run = RunFolder(tmp_path / "minute-20261201-011853")
    write_stage(run.stage("grpo"), 5)
    labels.set_note(run.path, "the good one")
    for other in ("a", "b"):
        write_stage(RunFolder(tmp_path / other).stage("init"), 0)
        os.utime(tmp_path / other, (1e9, 1e9))

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        app.choose(run.path)
        app.screen.query_one(RunList).sort = "name"
        app.tell_page()
        await until_shown(pilot, "›grpo", "1-011853 ✓ grpo")
        await pilot.press("tab")  # the list begins at the chosen run, whatever its order
        await until_shown(pilot, "✓ grpo", "the good one", "›▸ minute")
        await pilot.press("6")  # how to leave stands at the foot where letters are typed, too
        await until_shown(pilot, "esc home", "^x stop", "^q quit", "f1 help", "^p palette")
        assert "f3 system" in shown(app)  # the foot has two rows here
        await pilot.press("escape")
        await app.push_screen(StartScreen("sft", {"out": str(run.path)}))
        await pilot.press("ctrl+f", *"learning_rate", "enter")
        await until_shown(pilot, "learning_rate  ")
        await pilot.press("f1")  # all of its help, of which two lines stand below the form
        await until_shown(pilot, "help", "esc closes", "Peak rate")
        told = field_help(STAGES["sft"])["learning_rate"]
        assert in_one_line(told) in in_one_line(app.screen.query_one(SafeText).plain)
        await pilot.press("f1")
        await until(pilot, lambda: isinstance(app.screen, StartScreen))
        # a field that is looked for comes into view, though all others are shown again
        await pilot.press("ctrl+e", "ctrl+f", *"sample_prompts", "enter")
        box = app.screen.query_one("#form")

        def in_view() -> bool:
            field = app.screen.focused
            at = field.parent.parent if field else None
            return isinstance(at, Field) and box.region.contains_region(at.region)

        await until(pilot, lambda: in_view() and not app.screen.query_one("#find").display)

    play(tmp_path, script, (60, 20))


@pytest.mark.slow
def test_the_list_by_its_keys(tmp_path: Path) -> None:
    """One session: search, order, state, ticks, differences, note, tags, name, trash and back."""
    a_run(tmp_path, "first")
    a_run(tmp_path, "second")
    write_stage(RunFolder(tmp_path / "third").stage("grpo"), 10, end="failed")

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        page = app.screen
        assert isinstance(page, RoadScreen)
        listed = page.query_one(RunList)

        def names() -> list[str]:
            return [run["run"] for run in listed.shown]

        await until(pilot, lambda: len(names()) == 3)
        # a search, also by its state; what is wrong with it is said
        await pilot.press("slash", *"thi")
        await until(pilot, lambda: names() == ["third"])
        await pilot.press("enter", "escape")
        await until(pilot, lambda: len(names()) == 3)
        await pilot.press("slash", *"state:nope")
        await until_shown(pilot, "no state is called")
        await pilot.press("escape", "slash", *"zzz")
        await until_shown(pilot, "no run fits")
        assert "open third" not in shown(app)
        await pilot.press("escape", "F", "F", "F", "F")  # training, done, stopped, failed
        await until(pilot, lambda: names() == ["third"])
        await pilot.press("escape")
        # an order, and the other way round
        listed.sort = "age"
        await pilot.press("O")
        await until(pilot, lambda: names() == ["first", "second", "third"])
        await until_shown(pilot, "name▾")
        await pilot.press("exclamation_mark")
        await until(pilot, lambda: names() == ["third", "second", "first"])
        await pilot.press("exclamation_mark")
        # ticks: what another screen lays over each other
        listed.go_to(tmp_path / "first")
        await pilot.press("space", "space")
        await until_shown(pilot, "2 ticked")
        assert app.ticked_runs == (tmp_path / "first", tmp_path / "second")
        await pilot.press("d")
        await until_shown(pilot, "No setting differs")
        await pilot.press("escape", "number_sign", *"kept, good", "enter")
        await until(pilot, lambda: labels.read_labels(tmp_path / "second").tags == ("good", "kept"))
        await pilot.press("escape")
        assert app.ticked_runs == ()
        # a note, and a name
        listed.go_to(tmp_path / "third")
        await pilot.press("N", *"see it", "enter")
        await until_shown(pilot, "see it")
        assert labels.read_labels(tmp_path / "third").note == "see it"
        await pilot.press("f2", *"-b", "enter")
        await until(pilot, lambda: names() == ["first", "second", "third-b"])
        assert (tmp_path / "third").is_symlink()
        # several to the trash and back; enter opens
        listed.go_to(tmp_path / "first")
        await pilot.press("space", "space", "D")
        await until_shown(pilot, "Move 2 runs to the trash?", "y move them")
        await pilot.press("y")
        await until(pilot, lambda: names() == ["third-b"])
        await pilot.press("u")
        await until(pilot, lambda: len(names()) == 3)
        listed.go_to(tmp_path / "second")
        await pilot.press("D", "y")  # the one that has come to its place is highlighted
        await until(pilot, lambda: len(names()) == 2)
        assert listed.highlighted is not None and listed.highlighted["run"] == "third-b"
        await pilot.press("u")
        await until(pilot, lambda: len(names()) == 3)
        listed.go_to(tmp_path / "second")
        await pilot.press("enter")
        await until(pilot, lambda: app.chosen == tmp_path / "second" and not page.lists)
        await pilot.press("tab", "escape")
        assert not page.lists, "esc leads back to the road"

    play(tmp_path, script)


def test_who_has_no_run_begins_by_enter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How long it takes here, by what is known; then by measuring. Enter begins it, without a form."""
    measured: list[bool] = []

    async def plan(words: Sequence[str], run: Path, *, measure: bool = False) -> dict[str, Any]:
        assert words[:2] == ["run", "minute"]
        measured.append(measure)
        seconds = 187.0 if measure else None
        return {"line": "", "seconds": seconds, "machine": {"calibrated": measure}}

    class Quiet:
        def poll(self) -> None:
            return None

    started: list[list[str]] = []

    def start(words: Sequence[str], run: Path) -> stage_processes.Child:
        started.append(list(words))
        run.mkdir(parents=True)
        return stage_processes.Child("ondevice run", Quiet(), run / "run.log")  # type: ignore[arg-type]

    monkeypatch.setattr(plan_process, "ask", plan)
    monkeypatch.setattr(stage_processes, "start", start)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        welcome = app.screen.query_one(Welcome)
        await until_shown(pilot, "no run yet in", UNMEASURED)
        app.looks_at_machine = True
        welcome.begin()
        await until_shown(pilot, "about 3:07 on this machine")
        assert measured == [False, True]
        await pilot.press("tab", "slash")  # there is no list to go to
        assert app.screen.focused is welcome
        await pilot.press("enter")
        await until(pilot, lambda: not welcome.display)
        assert started[0][:2] == ["run", "minute"] and f"--out={app.chosen}" in started[0]
        await until_shown(pilot, "its process was started")

    play(tmp_path / "runs", script)
