"""What calls a person back: a stage that has ended, one whose training is sick; never in a pipe."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from ondevice.runs.events import EventWriter
from ondevice.runs.folder import RunFolder
from ondevice.runs.listing import stage_state
from ondevice_tui import alerts
from ondevice_tui.alerts import Alert, Alerts, sequence
from tui_runs import Clock, app_on, until, write_done, write_stage


def runs(state: str, sick: dict[str, Any] | None = None, message: str = "") -> list[dict[str, Any]]:
    stage = {"stage": "grpo", "state": state, "sick": sick, "message": message}
    return [{"run": "mine", "path": "runs/mine", "stages": [stage]}]


def test_an_end_is_told_once_and_what_stood_there_is_nothing_new() -> None:
    seen = Alerts()
    assert seen.look(runs("done")) == [] == seen.look(runs("done"))
    seen = Alerts()
    assert seen.look(runs("training")) == [] == seen.look(runs("training"))
    assert seen.look(runs("done")) == [Alert("mine: grpo is done")]
    assert seen.look(runs("done")) == [] == seen.look(runs("training"))
    assert seen.look(runs("stopped")) == [], "a person asked for it"
    seen.look(runs("training"))
    assert seen.look(runs("failed", message="no room")) == [Alert("mine: grpo has failed: no room")]
    seen.look(runs("training"))
    assert seen.look(runs("died"))[0].text == "mine: grpo has died"


def test_what_is_sick_is_told_while_it_goes_on() -> None:
    seen = Alerts()
    first = {"t": 1.0, "step": 3, "message": "rewards teach nothing"}
    assert seen.look(runs("training", first)) == [], "it was so before the app was opened"
    assert seen.look(runs("training", {**first, "t": 9.0})) == [
        Alert("mine: grpo is not well: rewards teach nothing", sick=True)
    ]
    assert seen.look(runs("training", {**first, "t": 9.0})) == []
    assert seen.look(runs("training", {**first, "t": 9.5})) == [], "it is so at every step"
    other = {**first, "t": 9.6, "message": "far from its reference"}
    assert len(seen.look(runs("training", other))) == 1
    assert seen.look(runs("training", {**first, "t": 9.7})) == []
    seen.look(runs("stopped"))
    seen.look(runs("training"))
    assert len(seen.look(runs("training", {**first, "t": 9.8}))) == 1, "it began again"
    assert seen.look(runs("failed", {**first, "t": 9.9}, message="no room")) == [
        Alert("mine: grpo has failed: no room")
    ]
    seen.look(runs("training"))
    collapsed = {"t": 10.0, "step": 9, "message": "the policy has collapsed"}
    assert seen.look(runs("done", collapsed)) == [
        Alert("mine: grpo is done: the policy has collapsed")
    ]


def test_a_text_of_anyones_cannot_leave_its_sequence() -> None:
    told = sequence([Alert("a\x1b]0;evil\x07\nb"), Alert("c" * 999)])
    assert told.count("\x1b") == 2 and told.count("\x07") == 3 and "\n" not in told
    assert told.startswith("\x1b]9;ondevice: a") and told.endswith("\x07\x07")
    assert sequence([]) == ""


def test_stages_say_what_is_sick(tmp_path: Path) -> None:
    stage = RunFolder(tmp_path / "r").stage("grpo").create()
    with EventWriter(stage.events, now=Clock()) as events:
        events.emit("start", 0, steps=9)
        for step in range(1, 3):
            events.emit("step", step, loss=1.0, kl=50.0)
    assert stage_state(stage)["sick"] is None, "twice may be chance"
    with EventWriter(stage.events, now=Clock()) as events:
        events.emit("step", 3, loss=1.0, kl=50.0)
    assert "50.0 nats per token" in stage_state(stage)["sick"]["message"]
    with EventWriter(stage.events, now=Clock()) as events:
        events.emit("warning", 3, message="the gradient is not finite", sick=True)
        events.emit("warning", 3, message="half of the rows were cut")
    found = stage_state(stage)["sick"]
    assert found["message"] == "the gradient is not finite" and found["step"] == 3
    far = RunFolder(tmp_path / "r").stage("ppo").create()
    with EventWriter(far.events, now=Clock()) as events:
        for step in range(1, 9):
            events.emit("step", step, loss=1.0, kl=50.0, kl_coef=0.1)
    assert stage_state(far)["sick"] is None, "nats of a whole completion, with a bound of its own"


class Terminal:
    is_headless = False

    def __init__(self) -> None:
        self.written: list[str] = []

    def write(self, text: str) -> None:
        self.written.append(text)


def test_the_app_rings_in_a_terminal_alone_and_only_if_it_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    app = app_on(tmp_path)
    said: list[str] = []
    monkeypatch.setattr(app, "say", lambda text, bad=False: said.append(text))
    found = [Alert("first: sft is not well: nan", sick=True)]
    app.alert(found)
    assert said == ["first: sft is not well: nan"], "shown though there is no terminal"
    terminal = Terminal()
    monkeypatch.setattr(app, "_driver", terminal)
    app.alert(found)
    assert terminal.written == [] and not alerts.is_terminal(), "standard error is a pipe"
    monkeypatch.setattr("ondevice_tui.app.is_terminal", lambda: True)
    app.alert(found)
    app.alert([])
    assert terminal.written == [sequence(found)]
    app.action_ring()
    app.alert(found)
    assert len(terminal.written) == 1 and not app.rings and "no bell rings any more" in said
    app.action_ring()
    assert app.rings and "a bell rings" in said[-1]


@pytest.mark.slow
def test_the_app_sees_a_stage_end(tmp_path: Path) -> None:
    stage = RunFolder(tmp_path / "first").stage("sft")
    write_stage(stage, 5, of=10, end="died")
    rung: list[Alert] = []

    async def script() -> None:
        app = app_on(tmp_path)
        app.alert = rung.extend  # type: ignore[method-assign, assignment]
        async with app.run_test() as pilot:
            with stage.locked():
                app.look()
                await until(pilot, lambda: app.training() == [("first", "sft")])
            write_done(stage, [])
            app.look()
            await until(pilot, lambda: rung)

    asyncio.run(script())
    assert rung == [Alert("first: sft is done")]
