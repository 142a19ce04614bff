"""Sleep is held off while a stage works, by programs that end with it, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import ondevice as od
from ondevice.common import power
from ondevice.config.stages import InitConfig
from ondevice.runs.events import read
from ondevice.stages import runner

INHIBIT = """#!/bin/sh
echo "$@" > "$HOME/asked"
while [ "${1#--}" != "$1" ]; do shift; done
echo $$ > "$HOME/pid"
exec "$@"
"""
CAFFEINATE = """#!/bin/sh
echo "$@" > "$HOME/asked"
echo $$ > "$HOME/pid"
while kill -0 "$4" 2>/dev/null; do sleep 0.05; done
"""
REFUSES = """#!/bin/sh
echo "Failed to inhibit: Access denied" >&2
exit 1
"""
TINY = {
    "vocab_size": 300,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "backend": "torch",
}


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Puts a program on the PATH, which has nothing else but a shell's own."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(power, "BOOTED", tmp_path)

    def put(name: str, text: str) -> None:
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)

    return put


def wait_for(true: Callable[[], object]) -> None:
    for _ in range(6000):
        if true():
            return
        time.sleep(0.02)
    raise AssertionError("it never came true")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not (status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z")


def the_pid(folder: Path) -> int:
    wait_for(lambda: (folder / "pid").exists() and (folder / "pid").read_text().strip())
    return int((folder / "pid").read_text())


def on(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power, "sys", SimpleNamespace(platform=system))


@pytest.mark.parametrize(
    ("system", "name", "text"),
    [("linux", "systemd-inhibit", INHIBIT), ("darwin", "caffeinate", CAFFEINATE)],
)
def test_held_off_inside_and_no_longer(
    program: Callable[[str, str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    system: str,
    name: str,
    text: str,
) -> None:
    program(name, text)
    on(system, monkeypatch)
    said: list[str] = []
    with power.kept_awake(said.append):
        pid = the_pid(tmp_path)
        assert alive(pid)
        asked = (tmp_path / "asked").read_text()
        if system == "darwin":
            assert asked.split() == ["-i", "-s", "-w", str(os.getpid())]
        else:
            assert "--what=idle:sleep" in asked and "--who=ondevice" in asked
    wait_for(lambda: not alive(pid))
    assert said == []


@pytest.mark.parametrize(
    ("system", "name", "text"),
    [("linux", "systemd-inhibit", INHIBIT), ("darwin", "caffeinate", CAFFEINATE)],
)
def test_nothing_is_left_of_it_when_the_process_is_killed(
    program: Callable[[str, str], None], tmp_path: Path, system: str, name: str, text: str
) -> None:
    program(name, text)
    code = (
        "import time, types; from ondevice.common import power\n"
        f"power.sys = types.SimpleNamespace(platform={system!r})\n"
        "import pathlib; power.BOOTED = pathlib.Path('/')\n"
        "with power.kept_awake(print): time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    pid = the_pid(tmp_path)
    assert alive(pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: not alive(pid))


def test_a_refusal_is_told(
    program: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    program("systemd-inhibit", REFUSES)
    on("linux", monkeypatch)
    told = threading.Event()
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        told.set()

    monkeypatch.setattr(power, "_told", threading.Event())
    with power.kept_awake(say):
        assert told.wait(20)
    for _ in range(2):  # of the stages after it nothing more is said
        with power.kept_awake(say):
            time.sleep(0.1)
    assert said == ["sleep is not held off: Failed to inhibit: Access denied"]


def test_where_systemd_does_not_run_it_is_not_asked(
    program: Callable[[str, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container, where the program may well be installed."""
    program("systemd-inhibit", INHIBIT)
    on("linux", monkeypatch)
    monkeypatch.setattr(power, "BOOTED", tmp_path / "not")
    with power.kept_awake(lambda text: pytest.fail(text)):
        pass
    assert not (tmp_path / "asked").exists()


def test_without_such_a_program_nothing_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power.shutil, "which", lambda name: None)
    monkeypatch.setattr(power.processes, "start", lambda *given, **how: pytest.fail("started"))
    for system in ("linux", "darwin", "freebsd"):
        on(system, monkeypatch)
        with power.kept_awake(lambda text: pytest.fail(text)):
            pass


def test_a_stage_holds_it_and_a_setting_turns_it_off(
    program: Callable[[str, str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    program("systemd-inhibit", INHIBIT)
    on("linux", monkeypatch)
    monkeypatch.setattr(runner, "power_state", lambda: "battery")
    asked: list[str] = []
    start = power.processes.start

    def started(words: list[str], *given: Any, **how: Any) -> Any:
        asked.append(words[0])
        return start(words, *given, **how)

    # not what the program has written: a stage may be over before that
    monkeypatch.setattr(power.processes, "start", started)
    text = tmp_path / "a.txt"
    text.write_text("Anna eats red pears in Rome. " * 50)
    od.init(data=str(text), out=str(tmp_path / "off"), keep_awake=False, **TINY)
    assert "systemd-inhibit" not in asked
    od.init(data=str(text), out=str(tmp_path / "on"), **TINY)
    assert asked.count("systemd-inhibit") == 1
    assert capsys.readouterr().err.count("on battery") == 2
    # which of the two it was decides nothing: the stage is complete for either
    again = InitConfig(data=str(text), out=str(tmp_path / "off"), resume=True, **TINY)  # type: ignore[arg-type]
    od.init(cfg=again)
    assert [e["event"] for e in read(tmp_path / "off" / "init" / "events.jsonl")].count("done") == 1


@pytest.mark.parametrize(
    ("state", "said"),
    [("mains", ""), ("unknown", ""), ("battery", "on battery"), ("mains low-power", "low-power")],
)
def test_what_is_said_of_the_power(state: str, said: str) -> None:
    told = power.power_warning(state)
    assert said in told and bool(told) == bool(said)
