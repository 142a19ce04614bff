"""The form that starts a stage: what is typed lands where it is meant to, and nothing that was
typed is lost.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from textual.events import Key, Paste
from textual.pilot import Pilot
from textual.widgets import Input, OptionList

import ondevice as od
from ondevice.common.errors import UserError
from ondevice.config.command_line import take_apart
from ondevice.config.recipe import STAGES, load_recipe
from ondevice.config.runs import RunConfig
from ondevice.config.verbs import VERBS
from ondevice.runs.folder import RunFolder
from ondevice_tui import plan_process
from ondevice_tui.app import OndeviceApp
from ondevice_tui.field_groups import in_groups
from ondevice_tui.fields import fields_of, settings
from ondevice_tui.screens.confirm import Question
from ondevice_tui.screens.start import StartScreen
from ondevice_tui.screens.start_fields import Field, GroupHead, best_field
from ondevice_tui.stage_processes import words_for
from ondevice_tui.widgets.rows import Rows
from ondevice_tui.widgets.safe import YesNo
from test_tui import fits, no_plans, play, started  # noqa: F401
from tui_runs import a_run, shown, until, until_shown, write_stage


@pytest.mark.parametrize(
    "part, found",
    [
        ("out", "out"),
        ("reward", "reward_model"),
        ("reward-t", "reward_timeout"),
        ("time", "reward_timeout"),
        (" OUT ", "out"),
        ("nothing", None),
        ("", None),
    ],
)
def test_the_field_that_is_meant(part: str, found: str | None) -> None:
    """The whole name before one that begins with it, before one that has it inside."""
    assert (
        best_field(
            ["reward_timeout", "reward_model", "out"]
            if part != "reward"
            else ["reward_model", "out"],
            part,
        )
        == found
    )


def entries(app: OndeviceApp) -> dict[str, Any]:
    return {field.spec.name: field.entry for field in app.screen.query(Field)}


def form(app: OndeviceApp) -> StartScreen:
    assert isinstance(app.screen, StartScreen)
    return app.screen


@pytest.mark.slow
def test_what_is_looked_for_is_found_and_every_field_is_shown_again(tmp_path: Path) -> None:
    run = a_run(tmp_path)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        model = str(run.stage("pretrain").model)
        await app.push_screen(StartScreen("grpo", {"out": str(tmp_path / "x"), "model": model}))
        await until_shown(pilot, "✓ ready")
        await pilot.press("ctrl+f", *"nowhere", "enter")
        await until(pilot, lambda: any("nowhere" in note.message for note in app._notifications))
        await pilot.press("escape")
        await pilot.press("ctrl+f", *"out", "enter", *"other")
        await until(pilot, lambda: entries(app)["out"] == "other")
        assert entries(app)["reward_timeout"] != "other"
        shown_again = {field.spec.name for field in app.screen.query(Field) if field.display}
        assert {"model", "steps", "out"} <= shown_again and "reward_timeout" not in shown_again
        await pilot.press("ctrl+f", *"sample_p", "enter", "a")
        await until(pilot, lambda: entries(app)["sample_prompts"] == "a")
        box = app.focused
        assert isinstance(box, Input)

        def in_view() -> bool:
            return app.screen.query_one("#form").content_region.contains_region(box.region)

        await until(pilot, in_view)
        command = app.screen.query_one("#command")
        command.styles.height = command.styles.max_height = 7  # it takes rows from the fields
        await until(pilot, lambda: command.size.height == 7)
        await until(pilot, in_view)

    play(tmp_path, script)


@pytest.mark.slow
def test_what_is_typed_while_fields_are_coming_reaches_its_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = asyncio.Event()
    fill = StartScreen._fill

    async def slow(screen: StartScreen) -> None:
        await go.wait()
        await fill(screen)

    monkeypatch.setattr(StartScreen, "_fill", slow)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await app.push_screen(StartScreen("pretrain", {"out": str(tmp_path / "x")}))
        await until_shown(pilot, "start pretrain")
        assert "seed" not in entries(app)
        await pilot.press("ctrl+f", *"seed", "enter", *"12")
        await pilot.press("ctrl+f", *"memory", "enter", *"elsewh")
        await until(pilot, lambda: app.screen.query_one("#find", Input).value == "elsewh")
        go.set()
        await until(pilot, lambda: "seed" in entries(app) and entries(app)["memory"] == "elsewh")
        await until(
            pilot,
            lambda: isinstance(app.focused, Input) and not form(app).query_one("#find").display,
        )
        await pilot.press(*"ere")
        await until(pilot, lambda: entries(app)["memory"] == "elsewhere")
        assert entries(app)["seed"] == "12"
        assert all(one.display for one in app.screen.query(Field) if one.control.has_focus)

    play(tmp_path, script)


@pytest.mark.slow
def test_a_wrong_form_has_no_command_and_leads_to_the_field_at_fault(tmp_path: Path) -> None:
    run = a_run(tmp_path)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        model = str(run.stage("pretrain").model)
        await app.push_screen(StartScreen("sft", {"out": str(tmp_path / "x"), "model": model}))
        text = await until_shown(pilot, "✓ ready")
        fields = {field.spec.name: field for field in app.screen.query(Field)}
        fields["steps"].put("abc")
        text = await until_shown(pilot, "✗ steps: expected", "no command while")
        assert "$ ondevice" not in text
        await pilot.press("ctrl+y")
        await until(
            pilot, lambda: any("nothing copied" in note.message for note in app._notifications)
        )
        assert not app.clipboard
        await pilot.press("ctrl+f", *"seed")
        await pilot.press("ctrl+g")
        await until(pilot, lambda: app.focused is fields["steps"].control)
        assert fields["steps"].display
        # all at once, as on a machine that was busy: Enter came behind what was typed after it
        for key in ("ctrl+f", *"se", "ctrl+u", *"seed", "enter", *"12", "enter"):
            app.post_message(Key(key, key if len(key) == 1 else None))
        await until(pilot, lambda: entries(app)["seed"] == "12")
        await pilot.pause()
        assert not any("no setting" in note.message for note in app._notifications)
        fields["model"].put("")
        await until_shown(pilot, "✗", "no command while")

    play(tmp_path, script)


@pytest.mark.slow
def test_a_form_that_was_changed_asks_before_it_is_left(tmp_path: Path) -> None:
    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await app.push_screen(StartScreen("pretrain", {"out": str(tmp_path / "x")}))
        await until(pilot, lambda: "seed" in entries(app))
        await pilot.press("ctrl+f", *"seed", "enter", *"12", "escape")
        await until_shown(pilot, "What you changed is lost: seed")
        await pilot.press("n")
        await until(pilot, lambda: entries(app).get("seed") == "12")
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, Question))
        await pilot.press("y")
        await until(
            pilot,
            lambda: (
                app.current_mode == "road" and not isinstance(app.screen, (StartScreen, Question))
            ),
        )
        await app.push_screen(StartScreen("pretrain", {"out": str(tmp_path / "x")}))
        await until(pilot, lambda: "seed" in entries(app))
        await pilot.press("escape")
        await until(
            pilot,
            lambda: not isinstance(app.screen, (StartScreen, Question)),
            "nothing was changed",
        )

    play(tmp_path, script)


ASK = plan_process.ask  # as it is outside of tests, where it starts a process


def planned(words: Sequence[str], measure: bool = False) -> dict[str, Any]:
    """A plan that says how many steps it is of."""
    steps = next((word.partition("=")[2] for word in words if word.startswith("--steps=")), "1000")
    time = ", 0:20" if measure else ""
    return {"line": f"{steps} steps{time}, 0.6 GB", "machine": {"calibrated": measure}}


@pytest.mark.slow
def test_the_form_shows_what_the_command_takes_and_renews_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_run(tmp_path)
    asked: list[tuple[list[str], bool]] = []
    measured = asyncio.Event()

    async def ask(words: Sequence[str], run: Path, *, measure: bool = False) -> dict[str, Any]:
        asked.append((list(words), measure))
        if measure:
            await measured.wait()
        return planned(words, measure or measured.is_set())

    monkeypatch.setattr(plan_process, "ask", ask)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        model = str(run.stage("pretrain").model)
        await app.push_screen(StartScreen("sft", {"out": str(tmp_path / "x"), "model": model}))
        await until_shown(pilot, "✓ ready", "1000 steps, 0.6 GB")
        fields = {field.spec.name: field for field in app.screen.query(Field)}
        assert "1000 steps" in fields["steps"].told.plain
        fields["steps"].put("4")
        await until_shown(pilot, "4 steps, 0.6 GB")
        measured.set()
        await until_shown(pilot, "4 steps, 0:20, 0.6 GB")
        assert sum(measure for _, measure in asked) == 1, "this machine is measured once"
        fields["model"].put("nowhere")
        await until_shown(pilot, "✗")
        assert "steps," not in fields["steps"].told.plain

    play(tmp_path, script)


@pytest.mark.slow
def test_a_plan_comes_from_the_command_itself(tmp_path: Path) -> None:
    chats = tmp_path / "chats.jsonl"
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    chats.write_text(f"{json.dumps(row)}\n" * 40)
    text = tmp_path / "text.txt"
    text.write_text("a few words, again and again\n" * 50)
    od.init(str(text), out=str(tmp_path / "run"), vocab_size=300, device="cpu")
    model = str(tmp_path / "run" / "init" / "model")
    plan = asyncio.run(ASK(["sft", model, str(chats), "--steps=5"], tmp_path))
    assert plan["stages"][0]["steps"] == 5 and "36 chats" in plan_process.told(plan)
    wrong = asyncio.run(ASK(["sft", model, str(tmp_path / "no.jsonl")], tmp_path))
    assert "no.jsonl" in plan_process.told(wrong) and plan_process.is_calibrated(wrong)


@pytest.mark.slow
def test_enter_goes_to_the_field_that_is_wrong_and_says_why(tmp_path: Path) -> None:
    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        model, out = tmp_path / "model", str(tmp_path / "new")
        model.mkdir()
        app.push_screen(StartScreen("sft", {"model": str(model), "out": out, "steps": 5}))
        await until_shown(pilot, "ready: ctrl+g starts it")
        await until(pilot, lambda: not form(app)._coming)
        await pilot.press("ctrl+e")  # all of them
        fields = {field.spec.name: field for field in app.screen.query(Field)}
        flag = fields["keep_awake"]

        async def enter_in(name: str) -> str:
            fields[name].control.focus()
            await pilot.press("enter")
            await pilot.pause()
            return next(name for name, field in fields.items() if field.control is app.focused)

        names = list(fields)
        assert await enter_in("steps") == names[names.index("steps") + 1], (
            "nothing is wrong: the next field"
        )
        assert isinstance(flag.control, YesNo) and await enter_in("keep_awake") == "track"
        assert flag.control.value == flag.begun, "Enter changes nothing"
        flag.control.focus()
        await pilot.press("space")
        await until(pilot, lambda: flag.entry != flag.begun)
        fields["steps"].control.value = "many"
        for name in ("keep_awake", "out", "steps"):
            app.clear_notifications()
            assert await enter_in(name) == "steps"
            assert any("steps" in n.message and n.severity == "error" for n in app._notifications)

    play(tmp_path, script)


@pytest.mark.slow
@pytest.mark.parametrize("turn", [0, 1, 2])
def test_every_stage_has_a_form_with_its_help(turn: int, tmp_path: Path) -> None:
    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        for stage in list(STAGES)[turn::3]:
            form = StartScreen(stage, {"out": str(tmp_path / "x")})
            await app.push_screen(form)
            await pilot.pause()
            fields = list(form.query(Field))
            assert {field.spec.name for field in fields} >= {"seed", "backend", "out"}
            assert all(field.spec.help for field in fields), [
                f.spec.name for f in fields if not f.spec.help
            ]
            assert fields[0].display, "the basics come first"
            text = await until_shown(pilot, f"start {stage}", " $ ")
            assert f"$ ondevice {stage}" in text or "✗ model" in text or "✗ data" in text
            assert fits(text, (80, 24))
            await app.pop_screen()

    play(tmp_path, script)


@pytest.mark.slow
def test_the_form_checks_says_the_command_and_starts(
    tmp_path: Path, started: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = Path("runs")
    run = a_run(runs)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        app.screen.query_one("#stages", Rows).highlighted = 1
        await pilot.press("g")
        await until_shown(pilot, "start pretrain", "✓ ready")
        fields = {field.spec.name: field for field in app.screen.query(Field)}
        assert fields["model"].entry == str(run.stage("init").model)
        # the run's own recipe's
        assert fields["steps"].entry == str(load_recipe("minute").stages["pretrain"].steps)
        fields["learning_rate"].put("0")
        await until_shown(pilot, "✗ learning_rate: 0.0 is too small")
        await pilot.press("ctrl+g")
        assert not started
        fields["learning_rate"].put("many")
        await until_shown(pilot, "expected auto or a number")
        fields["learning_rate"].put("2e-3")
        fields["steps"].put("7")
        fields["isolate_documents"].put(True)
        fields["out"].put(str(run.path))
        await until_shown(pilot, "stands there already")
        fields["out"].put("fresh one")
        text = await until_shown(pilot, "✓ ready", "--isolate_documents")
        assert "--steps=7" in text
        await pilot.press("ctrl+y")
        assert "--learning_rate=0.002" in app.clipboard and "fresh one'" in app.clipboard
        await pilot.press("ctrl+f", *"weight")
        await until(
            pilot,
            lambda: [f.spec.name for f in app.screen.query(Field) if f.display] == ["weight_decay"],
        )
        await pilot.press("escape", "ctrl+g")
        await until(pilot, lambda: app.current_mode == "train")

    play(runs, script)
    (words,) = started
    assert words[:2] == ["pretrain", str(run.stage("init").model)]
    assert set(words[2:]) == {
        f"--recipe={run.path}",
        "--steps=7",
        "--learning_rate=0.002",
        "--isolate_documents",
        "--out=fresh one",
    }


@pytest.mark.slow
def test_the_form_refuses_what_has_no_effect_but_for_what_a_recipe_filled_in(
    tmp_path: Path,
) -> None:
    run = a_run(tmp_path)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await app.push_screen(
            StartScreen(
                "pretrain",
                {
                    "out": str(tmp_path / "x"),
                    "recipe": "minute",
                    "model": str(run.stage("init").model),
                },
            )
        )
        await until_shown(pilot, "✓ ready")
        fields = {field.spec.name: field for field in app.screen.query(Field)}
        fields["optimizer"].put("adamw")  # the recipe's rate of Muon is nobody's wish
        await until(pilot, lambda: "--optimizer=adamw" in app.screen._words)  # type: ignore[attr-defined]
        assert not any("muon_learning_rate" in word for word in app.screen._words)  # type: ignore[attr-defined]
        await until_shown(pilot, "✓ ready")
        fields["muon_learning_rate"].put("0.5")
        await until_shown(pilot, "✗ muon_learning_rate: has no effect")

    play(tmp_path, script)


@pytest.mark.slow
def test_a_stage_begins_from_a_model_of_another_run(tmp_path: Path) -> None:
    for name in ("first", "second"):
        a_run(tmp_path, name)
    reward = RunFolder(tmp_path / "second").stage("reward")
    write_stage(reward, 5)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("n")
        await until_shown(pilot, "begin a run")
        app.screen.query_one(Rows).highlighted = app.screen.query_one(Rows).get_option_index("ppo")
        await pilot.press("enter")
        await until_shown(pilot, "start ppo", "model: name the folder of a model")
        fields = {field.spec.name: field for field in app.screen.query(Field)}
        await pilot.press("ctrl+t")
        await until_shown(pilot, "which model", "first · pretrain", "second · init")
        rows = app.screen.query_one(Rows)
        rows.highlighted = next(
            i for i, row in enumerate(rows.options) if "first · pretrain" in str(row.prompt)
        )
        await pilot.press("enter")
        await until_shown(pilot, "reward_model: name the folder of a model")
        assert fields["model"].entry == str(tmp_path / "first" / "pretrain" / "model")
        fields["reward_model"].control.focus()
        await pilot.press("ctrl+t")
        text = await until_shown(pilot, "which model", "second · reward")
        assert "first · pretrain" not in text.partition("which model")[2].partition("╰")[0]
        await pilot.press("enter")
        await until_shown(pilot, "✓ ready")
        assert fields["reward_model"].entry == str(reward.model)

    play(tmp_path, script)


def test_every_setting_stands_under_one_heading_and_the_basics_come_first() -> None:
    for verb, cls in {**STAGES, "run": RunConfig}.items():
        specs = fields_of(cls)
        groups = in_groups(verb, cls, specs)
        named = [spec.name for group in groups.values() for spec in group]
        assert sorted(named) == sorted(spec.name for spec in specs)
        assert next(iter(groups)) == "basics" and len(groups["basics"]) <= 13, verb
        assert "out" in [spec.name for spec in groups["basics"]]
    grpo = in_groups("grpo", STAGES["grpo"], fields_of(STAGES["grpo"]))
    names = {name: [spec.name for spec in group] for name, group in grpo.items()}
    assert names["basics"][:2] == ["model", "data"] and "group_size" in names["grpo"]
    assert "weight_decay" in names["optimizer"] and "lora_rank" in names["adapter"]
    assert "sample_prompts" in names["measuring and saving"] and "seed" in names["machine"]


@pytest.mark.slow
@pytest.mark.parametrize("size", [(60, 20), (120, 36)])
def test_groups_fold_and_what_is_changed_stays_in_view(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    run = a_run(tmp_path)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        model = str(run.stage("pretrain").model)
        await app.push_screen(StartScreen("sft", {"out": str(tmp_path / "x"), "model": model}))
        await until_shown(pilot, "✓ ready")
        fields = {field.spec.name: field for field in app.screen.query(Field)}

        def visible() -> set[str]:
            return {name for name, field in fields.items() if field.display}

        assert {"model", "steps", "out"} <= visible() and "seed" not in visible()
        head = next(one for one in app.screen.query(GroupHead) if one.group == "machine")
        head.focus()
        await pilot.press("enter")
        await until(pilot, lambda: "seed" in visible())
        fields["seed"].put("7")
        await until(pilot, lambda: "1 changed" in head.plain)
        await pilot.press("space")
        await until(pilot, lambda: "device" not in visible())
        assert "seed" in visible(), "a changed field is always in view"
        fields["beta1"].put("7")
        await until_shown(pilot, "✗ beta1")
        assert "beta1" in visible() and "beta2" not in visible()
        fields["steps"].control.focus()
        await until_shown(pilot, "steps  Optimizer steps")
        await pilot.press("enter")
        await until(pilot, lambda: app.focused is fields["beta1"].control)
        text = shown(app)
        assert fits(text, size) and "q quit" in text
        await pilot.press("ctrl+e")
        await until(pilot, lambda: visible() == set(fields))

    play(tmp_path, script, size)


@pytest.mark.slow
def test_a_recipe_is_begun_by_two_keys(tmp_path: Path, started: list[list[str]]) -> None:
    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("n")
        await until_shown(pilot, "begin a run", "minute", "laptop")
        listed = {option.id for option in app.screen.query_one(OptionList).options}
        assert listed >= {name for name in STAGES if name != "rate"} | {"run:laptop"}
        await pilot.press("end")  # the list is longer than a small terminal
        await until_shown(pilot, "grpo")
        await pilot.press("home", "enter")
        await until_shown(pilot, "start run", "✓ ready", "$ ondevice run minute")
        await pilot.press("escape")
        await until(pilot, lambda: app.current_mode == "road")
        await until_shown(pilot, "no run yet")
        await pilot.press("n", "enter")
        await until_shown(pilot, "✓ ready")
        await pilot.press("x")
        # typed over the one that stood there
        await until_shown(pilot, "✗ recipe: unknown recipe 'x'")
        await pilot.press("backspace", *"minute")
        await until_shown(pilot, "✓ ready")
        await pilot.press("ctrl+g")
        await until(pilot, lambda: started)

    play(tmp_path, script)
    assert started[0][:1] == ["run"] and any(word.startswith("--out=") for word in started[0])


def test_a_choice_that_is_not_on_the_screen_yet_has_the_value_it_begins_with() -> None:
    """The form of a recipe called it wrong for its first moments, and had no command."""
    for spec in fields_of(RunConfig):
        if spec.choices:
            field = Field(spec, spec.choices[-1], spec.choices[0])
            assert field.entry == field.begun == spec.text(spec.choices[-1])


@pytest.mark.slow
def test_yes_and_no_are_told_in_characters_and_pasted_lines_are_joined_and_told(
    tmp_path: Path,
) -> None:
    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await app.push_screen(StartScreen("sft", {"out": "x"}))
        await until_shown(pilot, "start sft")
        await until(pilot, lambda: not app.screen._coming)  # type: ignore[attr-defined]
        flag = next(field for field in app.screen.query(Field) if field.spec.name == "packing")
        await pilot.press("ctrl+e")
        flag.control.focus()
        row = await until_shown(pilot, "[x] yes" if flag.entry else "[ ] no")
        assert "X" not in row.replace("XDG", "")
        before = flag.entry
        await pilot.press("space")
        await until(pilot, lambda: flag.entry != before)
        await until_shown(pilot, "[ ] no" if before else "[x] yes")
        out = next(field for field in app.screen.query(Field) if field.spec.name == "out")
        out.put("")
        out.control.focus()
        await pilot.pause()
        app.post_message(Paste("runs/a\nb\n"))
        await until(pilot, lambda: out.entry == "runs/a b")
        await until_shown(pilot, "joined by spaces")

    play(tmp_path, script, (120, 36))


def test_the_form_of_a_recipe_takes_a_time_where_the_recipe_scales(tmp_path: Path) -> None:
    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        given = {"recipe": "minute", "out": str(tmp_path / "x"), "time": "10m"}
        await app.push_screen(StartScreen("run", given))
        await until_shown(pilot, "✗ time: minute does not say how it scales; laptop does")
        fields = {field.spec.name: field for field in app.screen.query(Field)}
        fields["recipe"].put("laptop")
        await until_shown(pilot, "✓ ready", "$ ondevice run laptop")
        assert "--time=10m" in app.screen._words  # type: ignore[attr-defined]
        fields["time"].put("10 minutes")
        await until_shown(pilot, "✗ time: '10 minutes' is not a time")
        fields["time"].put("30s")
        await until_shown(pilot, "✗ time: 30s is too short for any road")
        fields["time"].put("10m")
        fields["text"].put(str(tmp_path / "none.txt"))
        await until_shown(pilot, "✗ text: there is no ")

    play(tmp_path, script)


def test_a_list_is_the_same_in_a_form_and_on_a_command_line() -> None:
    cls = STAGES["grpo"]
    spec = next(spec for spec in fields_of(cls) if spec.name == "rewards")
    for typed, parts in (
        ("correct, format ,", ["correct", "format"]),
        ('["correct", "a, b"]', ["correct", "a, b"]),
        ("[0-9]x, y", ["[0-9]x", "y"]),
        ("[]", []),
    ):
        assert spec.value(typed) == parts
        assert take_apart(VERBS["grpo"], cls, ["--rewards", typed]).values == {"rewards": parts}
        assert spec.value(spec.text(parts)) == parts
        words = words_for("grpo", cls, {"rewards": parts})
        assert take_apart(VERBS["grpo"], cls, words[1:]).values.get("rewards", []) == parts
    with pytest.raises(UserError, match=r"rewards: is not a JSON list.*\[\"one\""):
        settings([spec], {"rewards": '["correct'})
    with pytest.raises(UserError, match="--rewards: is not a JSON list"):
        take_apart(VERBS["grpo"], cls, ["--rewards", '["correct'])
