"""Chat: a model in a process of its own, streamed, stopped, asked beside another, and gone when it
is not needed.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from textual.events import Paste
from textual.pilot import Pilot
from textual.widgets import Input

from ondevice.common.remembered import Remembered
from ondevice.inference import conversations
from ondevice.preferences.database import Ratings
from ondevice.preferences.pairs import pairs_of
from ondevice_tui import worker_client
from ondevice_tui.app import OndeviceApp
from ondevice_tui.screens.chat import ChatScreen
from ondevice_tui.screens.chat_pane import Pane
from ondevice_tui.widgets.rows import Rows
from ondevice_tui.widgets.safe import SafeArea
from test_tui import fits, play
from test_tui_safe import harmless
from tui_runs import SIZES, a_run, shown, until, until_shown, write_done

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def quick_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        worker_client, "COMMAND", (sys.executable, str(Path(__file__).parent / "tui_worker.py"))
    )


def pids(app: OndeviceApp) -> list[int]:
    return [
        pane.process._process.pid
        for pane in app.screen.query(Pane)
        if pane.process and pane.process._process
    ]


async def say(pilot: Pilot[Any], text: str) -> None:
    pilot.app.screen.query_one("#say", SafeArea).text = text
    await pilot.press("enter")


@pytest.mark.parametrize("size", SIZES)
def test_a_conversation(tmp_path: Path, size: tuple[int, int]) -> None:
    a_run(tmp_path)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("6")
        text = await until_shown(pilot, "first · pretrain", "Enter sends")
        assert fits(text, size) and "temperature 0.8" in text
        await pilot.press(*"hi", "space", *"q1?", "enter")  # keys of other screens are letters here
        await until_shown(pilot, "1 hi q1? 0", "4 tokens  8 tok/s")
        await say(pilot, "more")
        await until_shown(pilot, "3 more 0")
        assert fits(shown(app), size)
        await pilot.press("ctrl+n")
        await until(pilot, lambda: "more" not in shown(app))
        await pilot.press("ctrl+n")  # nothing is lost by it
        await until_shown(pilot, "3 more 0")
        await pilot.press("ctrl+n")
        await until(pilot, lambda: "more" not in shown(app))
        assert isinstance(app.screen, ChatScreen)
        app.screen.sampling["max_new_tokens"] = 3
        await say(pilot, "long")
        await until_shown(pilot, "1 long 0", "cut at max_new_tokens, 3;")
        app.screen.sampling["max_new_tokens"] = 256
        await say(pilot, "full")
        await until_shown(pilot, "cut: the model's context of 64 tokens is full, 61 of them")
        await say(pilot, "forget")
        await until_shown(pilot, "the first 2 turns no longer fit")
        await say(pilot, "refuse")
        await until_shown(pilot, "the model's context holds 64 (shorten it)")

    play(tmp_path, script, size)


def test_another_answer_an_edit_a_system_prompt_and_a_copy(tmp_path: Path) -> None:
    run = a_run(tmp_path)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("6")
        await until_shown(pilot, "first · pretrain", "Enter sends")
        pane = app.screen.query_one("#pane-a", Pane)
        area = app.screen.query_one("#say", SafeArea)
        await pilot.press("ctrl+r", "f2", "ctrl+y")
        await until_shown(pilot, "nothing to copy yet")
        await say(pilot, "Question one")
        await until_shown(pilot, "answer 1 at 0.8", "first · pretrain · 9/64 tokens")
        await pilot.press("ctrl+s")
        await until(pilot, lambda: pane.file is not None)
        saved = pane.file
        await pilot.press("ctrl+r")
        await until_shown(pilot, "answer 2001 at 0.8")
        assert len(pane.turns) == 2 and pane.file is None, "the saved one stays as it is"
        await pilot.press("ctrl+y")
        assert app.clipboard == pane.turns[-1]["content"]
        await pilot.press("f2")
        await until(pilot, lambda: area.text == "Question one" and pane.turns == [])
        await pilot.press("enter")
        await until_shown(pilot, "answer 1 at 0.8")
        await pilot.press(*"draft", "f2")  # what was being typed is not in its way, nor lost
        await until(pilot, lambda: area.text == "Question one" and pane.turns == [])
        await pilot.press("up")
        await until(pilot, lambda: area.text == "draft")
        await pilot.press("down")
        await until(pilot, lambda: area.text == "Question one")
        await pilot.press("f3", *"be kind", "enter")
        await until_shown(pilot, "system", "be kind", "holds from here on")
        await pilot.press("enter")
        await until_shown(pilot, "answer 2 at 0.8")
        assert [turn["role"] for turn in pane.turns] == ["system", "user", "assistant"]
        before = list(pane.turns)
        await say(pilot, "crash later")
        await until_shown(pilot, "The model's process ended", "It had begun: half an answer")
        assert pane.turns == before and area.text == "crash later"
        await pilot.press("up", "up")
        await until(pilot, lambda: area.text == "Question one")
        await pilot.press("down", "down")
        await until(pilot, lambda: area.text == "crash later")
        area.text = ""
        pane.turns[-2]["content"] = "crash"  # it cannot be answered anew: the old answer stays
        await pilot.press("ctrl+r")
        await until_shown(pilot, "out of memory")
        assert [turn["role"] for turn in pane.turns] == ["system", "user", "assistant"]
        assert pane.turns[-1] == before[-1] and area.text == ""
        assert saved is not None and len(conversations.load(saved).messages) == 2

    play(tmp_path, script, (100, 30))
    assert (run.path / "chats").is_dir()


def test_stop_and_a_second_message_meanwhile(tmp_path: Path) -> None:
    a_run(tmp_path)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("6")
        await say(pilot, "slow please")
        await until(pilot, lambda: app.screen.query_one("#pane-a", Pane).writing == "slow ")
        await say(pilot, "and this?")
        await until_shown(pilot, "still being written")
        await pilot.press("ctrl+x")
        await until_shown(pilot, "(stopped)")

    play(tmp_path, script)


def test_two_models_side_by_side_and_the_settings(tmp_path: Path) -> None:
    a_run(tmp_path)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("6")
        await until_shown(pilot, "first · pretrain")
        await pilot.press("ctrl+o")
        await until_shown(pilot, "which model")
        await pilot.press("down", "enter")
        await until_shown(pilot, "first · init")
        await pilot.press("ctrl+e")
        await until_shown(pilot, "how answers are drawn", "0 always takes the likeliest")
        app.screen.query_one("#set-top_p", Input).value = "7"
        await pilot.press("enter")
        await until_shown(pilot, "out of range")
        app.screen.query_one("#set-top_p", Input).value = "0.9"
        app.screen.query_one("#set-seed", Input).value = "42"
        await pilot.press("enter")
        await until_shown(pilot, "top-p 0.9 · seed 42")
        await say(pilot, "hello")
        # init has no chat format: it is given the text
        await until_shown(pilot, "1 hello 42", "0 hello 42")
        await pilot.press("ctrl+o")
        await until(pilot, lambda: "first · init" not in shown(app))

    play(tmp_path, script, (120, 36))


def test_a_model_that_fails_is_told_and_can_be_asked_again(tmp_path: Path) -> None:
    a_run(tmp_path)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("6")
        await say(pilot, "crash")
        await until_shown(pilot, "ended: out of memory")
        await say(pilot, "again")
        await until_shown(pilot, "again 0")
        await pilot.press("ctrl+t")
        await until_shown(pilot, "which model")
        await pilot.press("escape")
        screen = app.screen
        assert isinstance(screen, ChatScreen)
        screen._take_model(0, ("broken · x", str(tmp_path / "broken")))
        await say(pilot, "hello")
        await until_shown(pilot, "is not a checkpoint")

    play(tmp_path, script)


def test_leaving_lets_the_model_go(tmp_path: Path) -> None:
    a_run(tmp_path)
    seen: list[int] = []

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("6")
        await say(pilot, "hello")
        await until_shown(pilot, "hello 0")
        (pid,) = pids(app)
        await pilot.press("escape")
        await until(pilot, lambda: app.current_mode == "road")
        await until(pilot, lambda: not os.path.exists(f"/proc/{pid}"), "the worker is gone")
        await pilot.press("6")
        await until_shown(pilot, "hello 0")  # the conversation is still there
        await say(pilot, "back")
        await until_shown(pilot, "3 back 0")
        seen.extend(pids(app))

    play(tmp_path, script)
    end = time.monotonic() + 60  # it was told to end
    while time.monotonic() < end and any(map(_runs, seen)):
        time.sleep(0.05)
    assert seen and not any(map(_runs, seen))


def test_no_model_says_what_to_do(tmp_path: Path) -> None:
    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("6")
        await until_shown(pilot, "No model yet")
        await say(pilot, "hello")
        await pilot.press("ctrl+t")
        assert not pids(app)

    play(tmp_path, script)


def _runs(pid: int) -> bool:
    """Whether this process still does anything: a killed one that nobody has buried does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_an_answer_is_kept_as_a_pair(tmp_path: Path) -> None:
    run = a_run(tmp_path)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("6")
        await until_shown(pilot, "Enter sends")
        await pilot.press("f4")
        await until_shown(pilot, "nothing to keep yet")
        app.clear_notifications()
        await say(pilot, "the same")
        await until_shown(pilot, "1 the same 0")
        await pilot.press("f4")
        await until_shown(pilot, "it says the same again")
        app.clear_notifications()
        await say(pilot, "Question?")
        await until_shown(pilot, "3 answer 3 at 0.8 0")
        for key in ("escape", "1"):
            await pilot.press("f4")
            await until_shown(pilot, "which answer is better?", "answer 1004 at 0.8")
            assert not (run.path / "ratings.db").exists()
            await pilot.press(key)
        await until_shown(pilot, "kept in first/ratings.db")

    play(tmp_path, script, (120, 36))
    with Ratings.open(run.path) as ratings:
        (pair,) = pairs_of(ratings)
        (item,) = ratings.items()
    assert [m["content"] for m in pair.prompt] == ["the same", "1 the same 0", "Question?"]
    assert (pair.chosen, pair.rejected) == ("3 answer 3 at 0.8 0", "3 answer 1004 at 0.8 0")
    assert item.meta["blind"] is False and pair.source_chosen == "first-pretrain"


def test_of_two_models_the_better_answer_is_kept_while_both_were_asked_the_same(
    tmp_path: Path,
) -> None:
    run = a_run(tmp_path)
    write_done(run.stage("sft"), [])

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("6")
        await until_shown(pilot, "Enter sends")
        await pilot.press("ctrl+o", "down", "enter")
        await until_shown(pilot, "first · pretrain")
        await say(pilot, "the same")
        await until(pilot, lambda: not app.screen.busy)  # type: ignore[attr-defined]
        app.screen.query_one("#pane-b", Pane).turns[-1]["content"] = "another"
        await pilot.press("f4")
        await until_shown(pilot, "1 · first-sft", "2 · first-pretrain")
        await pilot.press("2")
        await until_shown(pilot, "kept in first/ratings.db")
        app.clear_notifications()
        await say(pilot, "and now")
        await until(pilot, lambda: not app.screen.busy)  # type: ignore[attr-defined]
        await pilot.press("f4")
        await until_shown(pilot, "answered differently before")

    play(tmp_path, script, (120, 36))
    with Ratings.open(run.path) as ratings:
        (pair,) = pairs_of(ratings)
    assert (pair.chosen, pair.source_chosen) == ("another", "first-pretrain")


def paste(pilot: Pilot[Any], text: str) -> None:
    """As a terminal with bracketed paste sends it."""
    pilot.app.post_message(Paste(text))


@pytest.mark.parametrize("size", SIZES)
def test_several_lines_are_pasted_typed_and_sent(tmp_path: Path, size: tuple[int, int]) -> None:
    a_run(tmp_path)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("6")
        await until_shown(pilot, "Enter sends")
        area = app.screen.query_one("#say", SafeArea)
        paste(pilot, "first\nsecond\n\tthird")
        await until(pilot, lambda: area.text == "first\nsecond\n\tthird")
        await pilot.press("ctrl+j", *"last")
        await until_shown(pilot, "second", "last")
        await pilot.press("enter")
        await until_shown(pilot, "tok/s")
        assert (
            area.text == ""
            and app.screen.query_one(Pane).turns[0]["content"] == "first\nsecond\n\tthird\nlast"
        )
        long = "word " * 1000
        paste(pilot, long + "\n" + "\x1b[31mred\x07 \u202e" * 3)
        await until(pilot, lambda: len(area.text) > 5000)
        harmless(app, "pasted")
        await pilot.press("enter")
        await until(pilot, lambda: len(app.screen.query_one(Pane).turns) == 4)
        assert str(app.screen.query_one(Pane).turns[2]["content"]).startswith(long)

    play(tmp_path, script, size)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("refuse", "your message: has 99 tokens"),
        ("crash", "out of memory"),
        ("crash later", "had begun: half an answer"),
    ],
)
def test_what_was_refused_stands_in_the_input_again(tmp_path: Path, text: str, says: str) -> None:
    a_run(tmp_path)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("6")
        await until_shown(pilot, "Enter sends")
        await say(pilot, text)
        await until_shown(pilot, says)
        await until(pilot, lambda: app.screen.query_one("#say", SafeArea).text == text)
        assert app.screen.query_one(Pane).turns == []
        await say(pilot, "now better")
        await until_shown(pilot, "tok/s")
        assert [turn["role"] for turn in app.screen.query_one(Pane).turns] == ["user", "assistant"]

    play(tmp_path, script)


def test_it_talks_with_the_model_of_the_run_and_stage_one_comes_from(tmp_path: Path) -> None:
    a_run(tmp_path, "first")
    a_run(tmp_path, "second")

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        app.choose(tmp_path / "first")
        await until_shown(pilot, "▸ first")
        rows = app.screen.query_one("#stages", Rows)
        rows.highlighted = 0
        await pilot.press("6")
        await until_shown(pilot, "first · init")
        await say(pilot, "hello")
        await until_shown(pilot, "tok/s")
        await pilot.press("escape")
        app.choose(tmp_path / "second")
        await until_shown(pilot, "▸ second")
        rows.highlighted = 1
        await pilot.press("6")
        text = await until_shown(
            pilot, "second · pretrain", "From here on second · pretrain answers", "hello"
        )
        assert "init" in text, "what init said is still said to be init's"
        pane = app.screen.query_one(Pane)
        assert pane.speakers == ["first · init"] * 2 and len(pane.turns) == 2
        screen = app.screen
        assert isinstance(screen, ChatScreen)
        screen._take_model(0, ("first · init", str(tmp_path / "first" / "init" / "model")))
        await until_shown(pilot, "From here on first · init answers")
        await pilot.press("escape", "6")  # from the stage that is highlighted, once more
        await until_shown(pilot, "From here on second · pretrain answers")
        await pilot.press("escape")
        rows.highlighted = 2  # it died, and left no model
        await pilot.press("6")
        await until(
            pilot,
            lambda: any("sft of this run has no model" in n.message for n in app._notifications),
        )
        await until_shown(pilot, "second · pretrain")

    play(tmp_path, script)


def test_another_model_takes_the_conversation_over(tmp_path: Path) -> None:
    a_run(tmp_path)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("6")
        await until_shown(pilot, "first · pretrain")
        await say(pilot, "hello")
        await until_shown(pilot, "1 hello 0")
        await pilot.press("ctrl+o")
        await until_shown(pilot, "which model")
        await pilot.press("down", "enter")
        await until_shown(pilot, "first · init")
        one, two = app.screen.query(Pane)
        assert one.turns == two.turns and len(two.turns) == 2
        await say(pilot, "more")
        await until(pilot, lambda: len(one.turns) == len(two.turns) == 4)
        assert len(one.turns) == 4 and two.turns is not one.turns
        await pilot.press("ctrl+t")
        await until_shown(pilot, "which model")
        await pilot.press("down", "enter")
        await until(pilot, lambda: one.name_shown == "first · init")
        assert [turn["content"] for turn in one.turns[:2]] == ["hello", "1 hello 0"]
        assert one.speakers == ["first · pretrain"] * 4

    play(tmp_path, script, (120, 36))


@pytest.mark.parametrize("size", SIZES)
def test_what_the_chat_template_is_told_is_seen_and_changed(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    run = a_run(tmp_path)
    write_done(run.stage("sft"), [])  # its template reads a name, and was told it in training

    async def setting(pilot: Pilot[Any], text: str) -> None:
        await pilot.press("ctrl+e")
        await until_shown(pilot, "how answers are drawn")
        pilot.app.screen.query_one("#set-chat_template_kwargs", Input).value = text
        await pilot.press("enter")

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("6")
        await until_shown(pilot, "first · sft")
        await say(pilot, "template")
        await until_shown(pilot, "1 told nothing", "first · sft · thinks false")
        await setting(pilot, '{"wings": 1}')
        await until_shown(pilot, "does not read 'wings'")
        assert app.focused is app.screen.query_one("#set-chat_template_kwargs"), (
            "the cursor stands where it is wrong"
        )
        await until_shown(pilot, "told in training:")
        await pilot.press("escape")
        await setting(pilot, '{"thinks": true}')
        await until_shown(pilot, "first · sft · thinks true")
        await say(pilot, "template")
        await until_shown(pilot, '3 told {"thinks": true}')
        await pilot.press("ctrl+o")
        await until_shown(pilot, "which model")
        await pilot.press("down", "enter")
        await until(pilot, lambda: len(app.screen.panes) == 2)  # type: ignore[attr-defined]
        await say(pilot, "template")
        one, two = app.screen.query(Pane)
        await until(pilot, lambda: len(one.turns) == len(two.turns) == 6)
        assert one.turns[-1]["content"].startswith('5 told {"thinks": true}')
        assert two.turns[-1]["content"].startswith("5 told {}"), (
            "its template does not read the name"
        )
        await pilot.press("ctrl+t")
        await until_shown(pilot, "which model")
        await pilot.press("down", "enter")
        await until(pilot, lambda: one.name_shown == "first · pretrain")
        assert app.screen.sampling["chat_template_kwargs"] == ""  # type: ignore[attr-defined]

    play(tmp_path, script, size)
    assert Remembered().get("sampling", lambda _: True)["chat_template_kwargs"] == "", (
        "it is for one model"
    )


@pytest.mark.parametrize("size", SIZES)
def test_a_conversation_is_saved_and_taken_up_again(tmp_path: Path, size: tuple[int, int]) -> None:
    run = a_run(tmp_path)

    def kept() -> list[Path]:
        return conversations.saved(run.path)

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await pilot.press("6")
        await until_shown(pilot, "first · pretrain", "Enter sends")
        await pilot.press("ctrl+s")
        await until_shown(pilot, "nothing to save yet")
        await pilot.press("ctrl+l")
        await until(
            pilot, lambda: any("no saved conversation yet" in n.message for n in app._notifications)
        )
        await say(pilot, "hello")
        await until_shown(pilot, "1 hello 0")
        await pilot.press("ctrl+s")
        await until(pilot, lambda: len(kept()) == 1)
        await say(pilot, "more")
        await until_shown(pilot, "3 more 0")
        app.clear_notifications()
        await pilot.press("ctrl+l")
        await until(pilot, lambda: any("is not saved" in n.message for n in app._notifications))
        await pilot.press("ctrl+s")
        await until(
            pilot, lambda: len(conversations.load(kept()[0]).messages) == 4, "it grows in its file"
        )
        assert len(kept()) == 1
        app.clear_notifications()
        await pilot.press("ctrl+n")
        await until(pilot, lambda: "more" not in shown(app))
        await pilot.press("ctrl+l")
        text = await until_shown(pilot, "which conversation", "4 turns", "hello")
        assert fits(text, size)
        await pilot.press("enter")
        await until_shown(pilot, "1 hello 0", "3 more 0", "goes on with it")
        await say(pilot, "last")
        await until_shown(pilot, "5 last 0")
        await pilot.press("ctrl+n")
        await say(pilot, "other")
        await until_shown(pilot, "1 other 0")
        await pilot.press("ctrl+s")
        await until(pilot, lambda: len(kept()) == 2, "another conversation has a file of its own")

    play(tmp_path, script, size)
    other, first = (conversations.load(file) for file in kept())
    assert first.model == other.model == "first · pretrain" and first.sampling["temperature"] == 0.8
    assert [len(one.messages) for one in (first, other)] == [4, 2]
