"""What models, files and programs say cannot act on the app, nor on the terminal: hostile text on
every screen, and a look at the source for a widget that is fed by another door."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from textual.app import App
from textual.pilot import Pilot

from ondevice.common.intervals import wilson
from ondevice.config.rounds import RoundsConfig
from ondevice.inference.pair_sampling import Judge
from ondevice.preferences import rubric
from ondevice.preferences.agreement import cohen_kappa
from ondevice.preferences.database import Ratings
from ondevice.preferences.history import history
from ondevice.preferences.project import Project, change_project
from ondevice.preferences.rating_queue import Wanted
from ondevice.preferences.rubric_terminal import ask_scores
from ondevice.preferences.votes import Response
from ondevice.rating_rounds.standing import Rounds, Standing
from ondevice.runs.events import EventWriter, LineFile
from ondevice.runs.folder import RunFolder
from ondevice_tui import worker_client
from ondevice_tui.app import OndeviceApp
from ondevice_tui.screens import rounds
from ondevice_tui.screens.confirm import Details
from ondevice_tui.screens.keep_pair import Keep, Kept
from ondevice_tui.screens.rate import RateScreen
from ondevice_tui.screens.rate_cards import Conversation, Reasons, ScoreCard, why_this
from ondevice_tui.screens.rate_history import History
from ondevice_tui.screens.rate_project import Asked, AskOnly, ChangeProject, Guidelines
from ondevice_tui.screens.sample_pairs import MorePairs
from ondevice_tui.screens.start import StartScreen
from ondevice_tui.screens.start_fields import Field
from ondevice_tui.screens.text_card import Ask
from ondevice_tui.screens.vote_statistics import told_of
from ondevice_tui.widgets.markdown import drawn
from ondevice_tui.widgets.safe import SafeArea
from test_inert import HOSTILE, acts
from test_tui import ROAD, no_plans, play  # noqa: F401
from tui_runs import a_run, completion, until, until_shown, write_done

ROOT = Path(__file__).parent.parent
MARKUP = [
    "[/]",
    "[/b]",
    "[@click=app.quit]x[/]",
    "[bold",
    "[link='http://x']y[/link]",
    "\\[",
    "[$primary]",
    "[red]a[/red]",
    "[@click=app.bell]" * 50,
    "a" * 50_000,
    "é" + "\u0301" * 500,
    "👩\u200d👩\u200d👧\u200d👦",
    "",
    "\n" * 300,
]
STRINGS = [text for _, text, _ in HOSTILE] + MARKUP


def harmless(app: App[Any], what: str) -> None:
    """No control, no bidi, no surrogate in what is drawn, no action on it, and a picture can be
    made of it.
    """
    for strip in app.screen._compositor.render_strips():
        for segment in strip:
            assert not acts(segment.text), (what, segment.text)
            meta = segment.style.meta if segment.style is not None else {}
            assert "@click" not in meta and not (segment.style and segment.style.link), (
                what,
                segment.text,
            )


def hostile_run(folder: Path) -> RunFolder:
    """Every place that text can stand in, with every string in it."""
    run = a_run(folder)
    answers = [{"prompt": text, "answer": text} for text in STRINGS]
    for name in ("init", "pretrain"):
        write_done(run.stage(name), answers)
    stage = run.stage("grpo")
    stage.create().lock.touch()
    (run.path / "grpo.log").write_text("\n".join(STRINGS), encoding="utf-8", errors="surrogatepass")
    with (
        EventWriter(stage.events) as events,
        LineFile(stage.samples) as samples,
        LineFile(stage.path / "groups.jsonl") as groups,
    ):
        events.emit("start", 0, stage="grpo", steps=len(STRINGS), config={})
        for step, text in enumerate(STRINGS, 1):
            sampled = samples.append({"step": step, "answers": [{"prompt": text, "answer": text}]})
            made = [
                {
                    **completion("a b", True, 0.5),
                    "text": text,
                    "parsed": text,
                    "span": [0, 1],
                    "rewards": {text: 1.0},
                }
            ]
            grouped = groups.append(
                {"step": step, "groups": [{"prompt": text, "answer": text, "completions": made}]}
            )
            events.emit(
                "step", step, loss=1.0, reward=0.5, groups=grouped, **{f"reward/{text[:40]}": 0.5}
            )
            events.emit("sample", step, offset=sampled)
            events.emit("warning", step, message=text)
        events.emit("failed", reason="x", message=STRINGS[3])
    with Ratings.open(run.path, create=True) as ratings:
        for number, text in enumerate(STRINGS):
            ratings.add(
                "a", text, [Response(text, text), Response(f"{number} {text}", text)], seed=0
            )
    return run


@pytest.mark.slow
def test_hostile_text_on_every_screen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RateScreen, "GUARD_S", 0.0)
    run = hostile_run(tmp_path)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        async def each(mode: str, key: str) -> None:
            app.choose(run.path, "grpo")
            app.action_go(mode)
            await pilot.pause(0.6)
            for text in STRINGS:
                await pilot.press(key)
                harmless(app, f"{mode}: {text!r}")

        await each("train", "left_square_bracket")
        await each("reason", "left_square_bracket")
        await each("ladder", "right_square_bracket")
        await each("rate", "s")
        for key in ("d", "w"):
            await pilot.press(key)
            harmless(app, "rate")
        for text in STRINGS:
            app.screen.pairing._tell(text)  # type: ignore[attr-defined]
            harmless(app, f"behind the voting: {text!r}")
        app.action_go("road")
        app.screen.query_one("#stages").highlighted = ROAD.index("grpo")  # type: ignore[attr-defined]
        await pilot.press("L")
        await until_shown(pilot, "first · grpo")
        harmless(app, "details")
        app.screen.query_one("#card").scroll_end(animate=False)
        await pilot.pause()
        harmless(app, "the end of the log")
        await pilot.press("escape")
        for text in STRINGS:
            app.say(text)
            await pilot.pause()
            harmless(app, f"toast: {text!r}")
            app.clear_notifications()
        app.export_screenshot()

    play(tmp_path, script, (120, 36))


@pytest.mark.slow
def test_hostile_text_in_the_chat_and_the_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        worker_client, "COMMAND", (sys.executable, str(Path(__file__).parent / "tui_worker.py"))
    )
    a_run(tmp_path)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("6")
        await until_shown(pilot, "Enter sends")
        pane = app.screen.query_one("#pane-a")
        for text in STRINGS:
            pane.add("assistant", text)  # type: ignore[attr-defined]
            pane.writing, pane.told = text, text  # type: ignore[attr-defined]
            pane.show()  # type: ignore[attr-defined]
            await pilot.pause()
            harmless(app, f"chat: {text!r}")
            pane.turns.clear()  # type: ignore[attr-defined]
            pane.speakers.clear()  # type: ignore[attr-defined]
        for text in STRINGS[:12]:
            app.screen.query_one("#say", SafeArea).text = f"x{text[:300]}"
            await pilot.press("enter")
            await until(pilot, lambda: not app.screen.busy)  # type: ignore[attr-defined]
            harmless(app, f"chat: {text!r}")
        await app.push_screen(StartScreen("sft", {"out": "x"}))
        await until_shown(pilot, "start sft")
        fields = [
            field
            for field in app.screen.query(Field)
            if field.spec.name in ("out", "model", "data")
        ]
        for text in STRINGS:
            for field in fields:
                field.put(text[:2000])
            await pilot.press("ctrl+y")
            harmless(app, f"form: {text!r}")

    play(tmp_path, script, (120, 36))


@pytest.mark.slow
def test_hostile_text_on_the_cards_of_rating_and_chat(tmp_path: Path) -> None:
    """Every string at once on each card: as a rater, a checkpoint, a model, an answer."""
    run = a_run(tmp_path)
    names = [text[:200] or "x" for text in STRINGS]
    nothing, alone = asdict(wilson(0, 0)), asdict(cohen_kappa([]))
    rater = {"votes": 1, "median_dwell_ms": 5.0, "hasty": 1, "repeats": alone, "gold": nothing}
    count = len(names)
    found = {
        "votes": 1,
        "simulated_votes": 0,
        "settled": 2,
        "outcomes": dict.fromkeys(names, 1),
        "raters": dict.fromkeys(names, rater),
        "agreement": {
            "pairs_of_raters": [{"raters": [name, name], **alone} for name in names],
            "fleiss": alone,
            "krippendorff": alone,
        },
        "first_shown": nothing,
        "longer": nothing,
        "win_rate": dict.fromkeys(names, nothing),
        "strengths": {
            "sources": names,
            "strength": [1.0] * count,
            "low": [0.0] * count,
            "high": [2.0] * count,
            "beats": [(0.7, 0.4, 0.9)] * (count - 1),
        },
        "rubric": {
            name: {
                "scores": 1,
                "mean": 3.0,
                "sources": {name: {"scores": 1, "mean": 3.0}},
                "agreement": {"n": 0, "raw": None, "alpha": None},
            }
            for name in names
        },
    }
    judged = {name: {"new": nothing, "learned": nothing} for name in names}
    whole = "\n".join(names)
    kept = Kept(
        run.path,
        [{"role": "user", "content": whole}],
        (Response(whole, whole), Response("b", whole)),
        whole,
    )
    item: Any = SimpleNamespace(id=1, kind="normal")
    project = Project(guidelines=whole[:9000], reasons=tuple(names[:9]))
    with Ratings.open(run.path, create=True) as ratings:
        ratings.add("b", whole, [Response(whole), Response("b")], seed=0)
        votes = [
            ratings.vote(1, name, "s", ranking=[n % 2], reason=name) for n, name in enumerate(names)
        ]
        ratings.note(1, names[0], "s", whole)
        entries = history(ratings, names[0])
    assert len(entries) == 1 and len(entries[0].others) > 10 and len(votes) == count
    cfg = RoundsConfig(run=whole)
    version = Standing(1, "failed", 1, wilson(0, 0), None, refused=whole)
    versions = Rounds([version], 0, 1, 1, whole)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        pairing: Any = SimpleNamespace(
            judge=Judge(whole, "", frozenset(), 0), scores={1: [1.0, 0.0]}, doubts={1: 0.8}
        )
        app.runs = [{"run": name, "path": str(run.path), "stages": []} for name in names]
        for card in (
            Details(whole, told_of(found, judged)),
            Keep(kept),
            MorePairs(app, None),
            Ask(whole, whole),
            Details("why", why_this(item, pairing, [1])),
            History(entries, names[0], "disagreements"),
            Guidelines(project),
            ChangeProject(project),
            AskOnly(Asked(Wanted(), 0), names, names),
            Reasons([], names[:9]),
            ScoreCard((0, 1, 2, 3), [*names, "漢👩" * 25_000, whole], {(0, names[0]): 3}),
            Conversation(drawn(whole, 70)),
            Details("rounds", rounds.told_of(versions, cfg, {"now": whole}, True, whole)),
        ):
            app.push_screen(card)
            await pilot.pause()
            harmless(app, type(card).__name__)
            for scroll in app.screen.query("VerticalScroll"):
                for _ in range(12):
                    scroll.scroll_page_down(animate=False)  # type: ignore[attr-defined]
                    await pilot.pause()
                    harmless(app, type(card).__name__)
            await app.pop_screen()

    play(tmp_path, script, (120, 36))


@pytest.mark.slow
def test_hostile_text_around_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scales, guidelines, a rater and answers: scored by keys in the app and in the terminal."""
    monkeypatch.setattr(RateScreen, "GUARD_S", 0.0)
    scales = ("[@click=app.quit]x[/]", "\x1b[2J\x1b]0;t\x07", "漢字👩" * 6, "\u202egnp [/b]")
    whole = "\n".join(STRINGS)
    answers = [Response(whole + "\x1b[31m漢" * 20_000), Response("[/]" * 40_000)]
    run = a_run(tmp_path)
    with Ratings.open(run.path, create=True) as ratings:
        change_project(ratings, rubric=scales, guidelines=whole[:9000])
        item = ratings.add("b", whole, answers, seed=0)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("4")
        await until(pilot, lambda: isinstance(app.screen, RateScreen) and bool(app.screen.item))
        screen = app.screen
        assert isinstance(screen, RateScreen)
        screen.rater = "[@click=app.quit]Vera\x1b[2J"
        await until(pilot, lambda: not screen.busy)
        await pilot.press("asterisk")
        await until(pilot, lambda: isinstance(app.screen, ScoreCard))
        for key in ("1", "2", "3", "4", "5", "u", "4"):
            await pilot.press(key)
            harmless(app, f"score {key}")
        await pilot.press("enter")
        await until_shown(pilot, "scored:")
        harmless(app, "scored")

    play(tmp_path, script, (100, 30))
    with Ratings.open(run.path) as ratings:
        scores = rubric.scores_of(ratings, item, "[@click=app.quit]Vera\x1b[2J")
        assert sorted(scores.values()) == [1, 2, 3, 4, 4]
        keys: Any = SimpleNamespace(line=lambda: "1 2", interactive=True)
        ask_scores(ratings, keys, ratings.item(item), "x", "s")
    assert not acts(capsys.readouterr().out.replace("\n", ""))


@pytest.mark.slow
def test_folders_of_any_name(tmp_path: Path) -> None:
    """Runs and stages are folders: their names are whatever a disk takes, bytes that are no UTF-8
    included.
    """
    name = "[@click=app.quit]x\x1b[2J a\nb.\u202egnp [b]" + os.fsdecode(b"\xff\xfe")
    run = a_run(tmp_path, name)
    os.rename(run.path / "pretrain", run.path / name)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        for run in app.runs or ():
            app.choose(Path(run["path"]), run["run"])
            for mode in app.MODES:
                app.action_go(mode)
                await pilot.pause(0.1)
                harmless(app, f"{mode}: {run['run']!r}")
            app.action_go("road")
            await pilot.pause()
            rows = app.screen.query_one("#stages")
            rows.highlighted = rows.option_count - 1  # type: ignore[attr-defined]
            for key in ("enter", "L", "escape", "1", "R", "X", "g", "2", "1"):
                await pilot.press(key)
                harmless(app, f"{key}: {run['run']!r}")

    play(tmp_path, script, (120, 36))


# the source

# what they are given is checked below
ALLOWED = {"Checkbox", "Input", "OptionList", "Select"}
DOORS = {"content", "line", "lines", "cell"}


def wrong_doors(source: str, path: str) -> list[str]:
    """Where a module of the UI feeds a widget, a title or a toast otherwise than through
    `widgets.safe`.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        where = f"{path}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names}
            if node.module == "textual.widgets" and names - ALLOWED:
                found.append(f"{where} imports {names - ALLOWED}")
            if node.module in ("rich.text", "rich.markdown", "textual.markup", "rich.markup"):
                found.append(f"{where} imports {node.module}")
        if isinstance(node, ast.Call):
            name = (
                node.func.attr
                if isinstance(node.func, ast.Attribute)
                else getattr(node.func, "id", "")
            )
            if name in ("Static", "Label", "Input", "Text", "from_markup", "render_markup") or (
                name == "notify" and path != "app.py"
            ):
                found.append(f"{where} calls {name}")
            if name == "Content" and not (node.args and isinstance(node.args[0], ast.Constant)):
                found.append(f"{where} makes Content of what is no constant")
            if (
                name in ("Option", "Select", "update", "add_row")
                and path.startswith("screens")
                and any(isinstance(arg, ast.JoinedStr | ast.Name) for arg in node.args)
            ):
                found.append(f"{where} gives {name} bare text")
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if (
                    isinstance(target, ast.Attribute)
                    and target.attr
                    in ("border_title", "border_subtitle", "tooltip", "title", "sub_title")
                    and not (
                        isinstance(node.value, ast.Call)
                        and getattr(node.value.func, "id", "") in DOORS
                    )
                ):
                    found.append(f"{where} sets {target.attr}")
    return found


def modules() -> list[tuple[str, str]]:
    root = ROOT / "tui" / "ondevice_tui"
    return [
        (str(file.relative_to(root)), file.read_text(encoding="utf-8"))
        for file in sorted(root.rglob("*.py"))
        if file.relative_to(root).as_posix() != "widgets/safe.py"
    ]


def test_no_widget_is_fed_by_another_door() -> None:
    assert [wrong for path, source in modules() for wrong in wrong_doors(source, path)] == []


@pytest.mark.parametrize(
    "line",
    [
        "from textual.widgets import Static",
        "from textual.widgets import Input, Markdown",
        "from rich.text import Text",
        "widget.border_title = name",
        "widget.tooltip = f'{name}'",
        "self.app.notify(text)",
        "Content(text)",
        "Input(text)",
        "Content.from_markup(text)",
        "Option(text)",
        "self.query_one(Static).update(text)",
    ],
)
def test_the_look_at_the_source_sees_it(line: str) -> None:
    assert wrong_doors(line, "screens/x.py"), line


# the process


@pytest.mark.slow
def test_the_app_loads_no_array_library(tmp_path: Path) -> None:
    """Every screen opened, a form filled, and nothing that trains is in the process."""
    a_run(tmp_path)
    code = """
import asyncio, json, sys
from pathlib import Path
from ondevice_tui.app import OndeviceApp
from ondevice_tui.screens.start import StartScreen
from ondevice_tui.screens.start_fields import Field
async def main():
    app = OndeviceApp(Path(sys.argv[1]), look_at_machine=False)
    async with app.run_test() as pilot:
        for mode in app.MODES:
            app.action_go(mode)
            await pilot.pause(0.2)
        await app.push_screen(StartScreen("sft", {}))
        await pilot.pause()
asyncio.run(main())
print(json.dumps(sorted({m.split(".")[0] for m in sys.modules})))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert "ondevice_tui" in loaded
    assert not loaded & {
        "torch",
        "mlx",
        "mlx_lm",
        "transformers",
        "huggingface_hub",
        "tokenizers",
        "ondevice_torch",
        "ondevice_mlx",
    }
