"""A real stage, begun in the app, going on without it, and found again."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

import ondevice as od
from ondevice.runs.events import read
from ondevice.runs.folder import RunFolder
from ondevice_tui.app import OndeviceApp
from ondevice_tui.screens.start import StartScreen
from ondevice_tui.screens.start_fields import Field
from test_tui import no_plans, play  # noqa: F401
from tui_runs import until, until_shown

pytestmark = pytest.mark.slow


def test_a_stage_outlives_the_app_and_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("The cat sat on the mat. The dog sat on the log.\n" * 400)
    model = od.init(
        data="text.txt",
        out="runs/mine",
        vocab_size=300,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        device="cpu",
        backend="torch",
    )
    stage = RunFolder("runs/mine").stage("pretrain")
    values = {
        "model": str(model),
        "data": "text.txt",
        "out": "runs/mine",
        "steps": 60,
        "batch_size": 4,
        "sequence_length": 32,
        "device": "cpu",
        "backend": "torch",
        "eval_every": 20,
        "save_every": 20,
    }

    async def begin(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await app.push_screen(StartScreen("pretrain", {"out": "runs/mine"}))
        await until_shown(pilot, "name the folder of a model")
        for field in app.screen.query(Field):
            if field.spec.name in values:
                field.put(values[field.spec.name])
        await until_shown(pilot, "✓ ready")
        await pilot.press("ctrl+g")
        await until(
            pilot,
            lambda: stage.holder() is not None or stage.done.is_file(),
            "the stage's process works",
        )

    async def find(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await until(
            pilot, lambda: stage.done.is_file(), "the stage goes on without the app that began it"
        )
        app.look()
        await until_shown(pilot, "pretrain   ✓ done")
        await pilot.press("2")
        text = await until_shown(pilot, "mine · pretrain", "step 60/60 100%", "o held-out")
        assert "✓ done" in text

    play(Path("runs"), begin)
    play(Path("runs"), find)
    assert (stage.model / "model.safetensors").is_file()
    assert "held-out loss" in (stage.path.parent / "pretrain.log").read_text()


def test_a_run_that_was_killed_is_shown_as_died_and_goes_on_by_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun from the command line, killed with -9 in the middle; the app shows its last events, and
    R ends it.
    """
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("The cat sat on the mat. The dog sat on the log.\n" * 400)
    model = od.init(
        data="text.txt",
        out="runs/mine",
        vocab_size=300,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        device="cpu",
        backend="torch",
    )
    stage = RunFolder("runs/mine").stage("pretrain")
    words = [
        "pretrain",
        str(model),
        "text.txt",
        "--out=runs/mine",
        "--steps=150",
        "--batch_size=4",
        "--sequence_length=32",
        "--device=cpu",
        "--backend=torch",
        "--eval_every=0",
        "--save_every=20",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "ondevice", *words], stderr=subprocess.DEVNULL
    )
    while len(list(stage.checkpoints.glob("step-*"))) < 1:
        assert process.poll() is None, "it ended by itself"
        time.sleep(0.05)
    process.kill()
    process.wait()

    async def script(app: OndeviceApp, pilot: Pilot[Any]) -> None:
        await until_shown(pilot, "✗ died", "process gone after step")
        app.screen.query_one("#stages").highlighted = 1  # type: ignore[attr-defined]
        await pilot.press("L")
        await until_shown(pilot, "Its last events", "loss")
        await pilot.press("escape", "R")
        await until(pilot, lambda: stage.done.is_file(), "it goes on and ends")
        app.look()
        await until_shown(pilot, "pretrain   ✓ done")

    play(Path("runs"), script)
    resumed = [event for event in read(stage.events) if event["event"] == "resume"]
    assert len(resumed) == 1 and resumed[0]["step"] >= 20


def test_without_arguments_the_command_opens_the_app_on_a_terminal_and_prints_help_elsewhere(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-m", "ondevice"]
    done = subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, cwd=tmp_path
    )
    assert done.returncode == 0 and done.stdout.startswith("usage: ondevice")
    pid, master = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execve(sys.executable, command, {**os.environ, "TERM": "xterm-256color"})
    seen = b""
    while b"no run yet" not in seen:
        seen += os.read(master, 1 << 16)
    os.write(master, b"q")
    while True:
        try:
            if not os.read(master, 1 << 16):
                break
        except OSError:
            break
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def read_until(terminal: int, text: str, read: bytearray) -> None:
    """Reads what the app draws until this text stands in it; gives up after a time that no machine
    needs."""
    end = time.monotonic() + 120
    while text.encode() not in read:
        ready, _, _ = select.select([terminal], [], [], max(end - time.monotonic(), 0))
        assert ready, f"never drawn: {text}\n{bytes(read[-2000:])!r}"
        read += os.read(terminal, 1 << 16)


def test_ctrl_z_leaves_to_the_shell_and_fg_draws_everything_anew(tmp_path: Path) -> None:
    """In a screen with an input field too; ctrl+c there says how to leave."""
    own, terminal_of_app = pty.openpty()
    fcntl.ioctl(terminal_of_app, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "XDG_CONFIG_HOME": str(tmp_path / "c")}
    app = subprocess.Popen(
        [sys.executable, "-m", "ondevice"],
        cwd=tmp_path,
        env=environment,
        stdin=terminal_of_app,
        stdout=terminal_of_app,
        stderr=terminal_of_app,
        start_new_session=True,
    )
    os.close(terminal_of_app)
    try:
        read = bytearray()
        read_until(own, "no run yet", read)
        os.write(own, b"6")
        read_until(own, "say something", read)
        os.write(own, b"\x03")
        read_until(own, "ctrl+q closes the app", read)
        os.write(own, b"\x1a")
        stopped, status = os.waitpid(app.pid, os.WUNTRACED)
        assert stopped == app.pid and os.WIFSTOPPED(status)
        read.clear()
        os.kill(app.pid, signal.SIGCONT)
        read_until(own, "say something", read)
        read_until(own, "temperature", read)
        os.write(own, b"\x11")  # ctrl+q
        assert app.wait(60) == 0
    finally:
        if app.poll() is None:
            app.kill()
            app.wait()
        os.close(own)
