"""What stands behind the voting: pairs that are sampled or read in while a person rates."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from ondevice.inference import pair_sampling
from ondevice.preferences.database import Ratings
from ondevice.preferences.pairs import pairs_of
from ondevice.preferences.votes import Response
from ondevice.runs.folder import RunFolder
from ondevice_tui import live_sampling, worker_client
from ondevice_tui.app import TOAST, OndeviceApp
from ondevice_tui.live_sampling import AHEAD
from ondevice_tui.screens.rate import RateScreen
from ondevice_tui.screens.sample_pairs import MorePairs
from ondevice_tui.widgets.safe import in_rows
from ondevice_tui.worker_client import ModelProcess
from test_tui import play
from tui_rating import no_guard, queue, rate, settled, votes  # noqa: F401
from tui_runs import a_run, until, until_shown, write_done

pytestmark = pytest.mark.slow


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What opens and closes models in the place of real workers, in turn."""
    monkeypatch.setattr(
        worker_client, "COMMAND", (sys.executable, str(Path(__file__).parent / "tui_worker.py"))
    )
    monkeypatch.setattr(live_sampling, "IDLE_S", 0.05)
    log: list[str] = []
    opened, closed = ModelProcess.open, ModelProcess.close

    async def open_(self: ModelProcess) -> dict[str, Any]:
        log.append(f"open {Path(self.path).parent.name}")
        return await opened(self)

    async def close(self: ModelProcess) -> None:
        if self._process is not None:
            log.append(f"close {Path(self.path).parent.name}")
        await closed(self)

    monkeypatch.setattr(ModelProcess, "open", open_)
    monkeypatch.setattr(ModelProcess, "close", close)
    return log


def questions(folder: Path, count: int) -> str:
    file = folder / "asked.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"Question {n}?"}) + "\n" for n in range(count)))
    return str(file)


async def plan(pilot: Pilot[Any], **texts: str) -> None:
    """Fills the card of further pairs and begins."""
    await pilot.press("4")
    await until(pilot, lambda: isinstance(pilot.app.screen, RateScreen))
    await pilot.press("m")
    await until(pilot, lambda: isinstance(pilot.app.screen, MorePairs))
    for name, text in texts.items():
        pilot.app.screen.query_one(f"#more-{name}").value = text  # type: ignore[attr-defined]
    await pilot.press("ctrl+g")


def all_items(run: RunFolder) -> list[Any]:
    """Without repeats."""
    if not (run.path / "ratings.db").is_file():
        return []
    with Ratings.open(run.path) as ratings:
        return [item for item in ratings.items() if item.kind == "normal"]


def test_pairs_are_sampled_while_a_person_rates(tmp_path: Path, workers: list[str]) -> None:
    run = a_run(tmp_path)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await plan(pilot, prompts=questions(tmp_path, 16), temperatures="0.7, 1.2")
        text = await until_shown(pilot, "Question 0?", "answer", "the next pairs are ready")
        assert "pretrain" not in text and len(all_items(run)) == AHEAD
        for _ in range(AHEAD - 1):  # some of them are repeats
            await pilot.press("left")
            await settled(app, pilot)  # a key before the vote is stored would be refused
        await until(pilot, lambda: len(all_items(run)) == 16)
        await until_shown(pilot, "every prompt was answered once")
        await pilot.press("escape")
        await until(pilot, lambda: workers[-1:] == ["close pretrain"])

    play(tmp_path, script)
    items = all_items(run)
    assert [[r.source for r in item.responses] for item in items] == [
        ["first-pretrain@0.7", "first-pretrain@1.2"]
    ] * 16
    assert [item.prompt for item in items] == [f"Question {n}?" for n in range(16)]
    assert all(
        " at 0.7" in item.responses[0].text and " at 1.2" in item.responses[1].text
        for item in items
    )
    assert workers == ["open pretrain", "close pretrain"]
    assert len({item.shown for item in items}) == 2  # sides are drawn

    async def again(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        """What was asked once in this way is not asked again."""
        await plan(pilot, prompts=questions(tmp_path, 17), temperatures="0.7, 1.2")
        await until(pilot, lambda: len(all_items(run)) == 17)

    rate(tmp_path, ["left"] * 10)
    play(tmp_path, again)
    assert all_items(run)[-1].prompt == "Question 16?"


def test_two_checkpoints_take_turns_and_four_answers(tmp_path: Path, workers: list[str]) -> None:
    run = a_run(tmp_path)
    write_done(run.stage("sft"), [])

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await plan(
            pilot,
            prompts=questions(tmp_path, 6),
            second=str(run.stage("pretrain").model),
            answers="4",
        )
        await until(pilot, lambda: len(all_items(run)) == 6)
        await until_shown(pilot, "every prompt was answered once")
        await pilot.press("m", "ctrl+x")
        await until(pilot, lambda: isinstance(app.screen, RateScreen))

    play(tmp_path, script, (120, 36))
    assert [r.source for r in all_items(run)[0].responses] == ["first-sft", "first-pretrain"] * 2
    first = ["open sft", "close sft", "open pretrain", "close pretrain"]
    assert workers[:8] == first * 2  # never two at a time


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ({"answers": "5"}, "answers: 2 to 4"),
        ({"temperatures": "hot"}, "'hot' is not a number"),
        ({"temperatures": "0"}, "temperatures"),
        ({"longest": "0"}, "longest"),
        ({"file": "none.jsonl"}, "none.jsonl"),
    ],
)
def test_a_plan_that_is_none_is_said_on_the_card(
    tmp_path: Path, texts: dict[str, str], says: str
) -> None:
    a_run(tmp_path)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await plan(pilot, **texts)
        await until_shown(pilot, "✗ ", says)
        assert isinstance(app.screen, MorePairs)
        (wrong,) = texts
        assert app.focused is app.screen.query_one(f"#more-{wrong}"), (
            "the cursor stands where it is wrong"
        )

    play(tmp_path, script, (120, 36))


def test_what_of_a_file_of_prompts_was_not_used_is_said(tmp_path: Path, workers: list[str]) -> None:
    run = a_run(tmp_path)
    queue(run, 2)
    file = tmp_path / "asked.jsonl"
    message = {"role": "user", "content": "Question 9?", "mood": "sad"}
    file.write_text(
        "".join(json.dumps({"messages": [message]}) + "\n" for _ in range(200)) + '{"other": 1}\n'
    )
    _, remarks = pair_sampling.prompts(str(file), run)
    bad, unused = remarks
    assert bad.startswith(f"{file}: 1 of 201 rows could not be used (first: {file}:201: ")
    assert unused == f"{file}: not used: messages.mood (200 rows, first {file}:1)"

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await plan(pilot, prompts=str(file))
        told = [in_rows(remark, TOAST) for remark in remarks]
        await until(
            pilot, lambda: [n.message for n in app._notifications if file.name in n.message] == told
        )

    play(tmp_path, script, (120, 36))


def test_what_stops_the_sampling_is_told(
    tmp_path: Path, workers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_run(tmp_path)
    queue(run, 2)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        monkeypatch.setattr(
            live_sampling, "memory_warning", lambda folder: "9.0 GB are wanted, 1.0 GB are free"
        )
        await plan(pilot, prompts=questions(tmp_path, 3))
        await until_shown(
            pilot, "nothing is loaded beside what runs: 9.0 GB are wanted", "Question 0?"
        )
        assert not workers
        await pilot.press("m", "ctrl+x", "escape")
        monkeypatch.setattr(live_sampling, "memory_warning", lambda folder: "")
        await plan(pilot, prompts=questions(tmp_path, 3), first=str(run.stage("init").model))
        await until_shown(pilot, "no more pairs: this model has no chat format")
        await pilot.press("escape")
        await plan(pilot, prompts=str(tmp_path / "none.jsonl"))
        await until_shown(pilot, "✗ no more pairs: ")

    play(tmp_path, script, (120, 36))
    assert len(all_items(run)) == 2


def test_pairs_come_in_from_a_file(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps({"prompt": "Which?", "a": "this one", "b": "that one"}) + "\n")

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await plan(pilot, file=str(file))
        await until_shown(pilot, "1 pairs came in", "Which?", "that one")

    play(tmp_path, script)
    assert len(all_items(run)) == 1


def test_the_reward_model_says_what_comes_first_and_why(tmp_path: Path, workers: list[str]) -> None:
    run = a_run(tmp_path)
    queue(run, 5)
    write_done(run.stage("reward"), [])
    (run.stage("reward").path / "pairs.jsonl").write_text(
        json.dumps({"item": 1, "held": False}) + "\n"
    )
    with Ratings.open(run.path) as ratings:
        gold = ratings.add(
            "gold", "Known?", [Response("x"), Response("y")], kind="gold", gold=0, seed=0
        )

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("4")
        await until_shown(pilot, "Question 0?")
        await until(pilot, lambda: len(app.screen.pairing.doubts) == 5)  # type: ignore[attr-defined]
        await pilot.press("Y")
        await until_shown(
            pilot, "0.06 of 1 bit", "it gives one of the two 99%", "more doubt in 1 of the 4"
        )
        await pilot.press("escape", "left")
        await until_shown(pilot, "Question 3?")  # of which it knows nothing
        await pilot.press("Y")
        text = await until_shown(pilot, "1.00 of 1 bit", "gives one of the two 50%")
        assert "answer" not in text.split("why this pair")[1].split("more doubt")[0]
        await pilot.press("escape")
        while app.screen.item.id != gold:  # type: ignore[attr-defined]
            await pilot.press("left")
        await pilot.press("Y")
        await until_shown(pilot, "or by chance")
        await pilot.press("escape")
        while app.screen.item is not None:  # type: ignore[attr-defined]
            await pilot.press("left")
        await until_shown(pilot, "Everything here is rated")
        await pilot.press("S")
        await until_shown(
            pilot, "the reward model", "it has not learned from", "position", "Bradley", "gold"
        )

    play(tmp_path, script, (120, 60))
    assert workers == ["open reward", "close reward"]
    with Ratings.open(run.path) as ratings:
        assert ratings.item(gold).kind == "gold" and len(pairs_of(ratings)) == 5


def test_a_reward_model_that_cannot_be_used_is_told_once(
    tmp_path: Path, workers: list[str]
) -> None:
    run = a_run(tmp_path, "broken")
    queue(run, 2)
    write_done(run.stage("reward"), [])

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("4")
        await until_shown(pilot, "Question 0?", "the reward model cannot be used")
        await pilot.press("left", "Y")
        await until_shown(pilot, "or by chance")

    play(tmp_path, script)
    assert workers.count("open reward") == 1
