from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from ondevice.common.errors import UserError
from ondevice.runs.folder import RunFolder, StopRequest


def started(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A Python process running `code`, once it has said "ready"."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("ready")
    return process


HOLDER = """
    import subprocess, sys, time
    from pathlib import Path
    from ondevice.runs.folder import StageFolder
    with StageFolder(Path(sys.argv[1])).locked():
        child = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        Path(sys.argv[2]).write_text(str(child.pid))
        print("ready", flush=True)
        time.sleep(60)
"""


def test_a_held_lock_names_its_holder_and_is_free_after_kill_9(tmp_path: Path) -> None:
    stage = RunFolder(tmp_path / "r").stage("sft")
    process = started(HOLDER, stage.path, tmp_path / "child")
    child = int((tmp_path / "child").read_text())
    try:
        with pytest.raises(UserError) as caught, stage.locked():
            pass
        assert f"process {process.pid} trains here" in str(caught.value)
        holder = stage.holder()
        assert holder is not None and holder["pid"] == process.pid
        process.kill()
        process.wait()
        os.kill(child, 0)  # the spawned child lives on, and does not hold the lock
        with stage.locked():
            assert stage.holder() is not None
        assert stage.holder() is None
    finally:
        process.kill()
        os.kill(child, signal.SIGKILL)
        process.communicate()


def test_the_same_process_cannot_lock_twice(tmp_path: Path) -> None:
    stage = RunFolder(tmp_path).stage("sft")
    with stage.locked(), pytest.raises(UserError, match=str(os.getpid())), stage.locked():
        pass
    with stage.locked():
        pass


def test_stages_do_not_block_each_other(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with run.stage("pretrain").locked(), run.stage("sft").locked():
        assert {stage.name for stage in run.stages()} == {"pretrain", "sft"}


def test_looking_makes_nothing(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "r")
    assert run.stage("sft").holder() is None
    assert run.stage("sft").done_record() is None
    assert run.stages() == []
    assert not run.path.exists()


def test_a_stop_file_asks_for_a_stop_and_an_old_one_is_forgotten(tmp_path: Path) -> None:
    stage = RunFolder(tmp_path).stage("sft").create()
    stage.stop.touch()
    with StopRequest() as stop:
        stop.begin(stage)
        assert not stop.requested
        stage.stop.touch()
        assert stop.requested and stop.reason == "stop file"


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with StopRequest():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


STEPS = """
    import signal
    import time
    from ondevice.runs.folder import StopRequest
    signal.signal(signal.SIGHUP, HANGUP)
    with StopRequest() as stop:
        print("ready", flush=True)
        while not stop.requested:
            time.sleep(0.01)
        print(stop.reason, flush=True)
        SAVING
    print("saved", flush=True)
"""


@pytest.mark.parametrize(
    ("number", "reason"),
    [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM"), (signal.SIGHUP, "SIGHUP")],
)
def test_one_signal_lets_the_work_be_saved(number: int, reason: str) -> None:
    process = started(STEPS.replace("SAVING", "pass").replace("HANGUP", "signal.SIG_DFL"))
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert out.split() == [reason, "saved"]
    assert process.returncode == 0
    assert ("Ctrl-C again leaves at once" in err) == (number == signal.SIGINT)


def test_under_nohup_a_closed_terminal_stops_nothing() -> None:
    process = started(STEPS.replace("SAVING", "pass").replace("HANGUP", "signal.SIG_IGN"))
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert out.split() == ["SIGTERM", "saved"]


def test_a_second_ctrl_c_leaves_at_once_and_a_second_sigterm_does_not() -> None:
    saving = """
        while not stop._interrupts:
            time.sleep(0.01)
        print("once", flush=True)
        time.sleep(600)
"""
    process = started(
        STEPS.replace("        SAVING\n", saving[1:]).replace("HANGUP", "signal.SIG_DFL")
    )
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None and process.stdout.readline() == "SIGTERM\n"
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "once\n"
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "saved" not in out and "--resume" in err


def test_new_run_folders_never_share_a_name(tmp_path: Path) -> None:
    paths = set()
    for _ in range(3):
        run = RunFolder.new("sft", tmp_path).create()
        paths.add(run.path)
        assert run.path.name.startswith("sft-")
    assert len(paths) == 3


@pytest.mark.parametrize("name", ["", "..", "a/b", "-x", "a b"])
def test_a_stage_name_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError):
        RunFolder(tmp_path).stage(name)


def test_a_file_in_the_way_is_said(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    with pytest.raises(UserError, match="not a run folder"):
        RunFolder(tmp_path / "f")
    with pytest.raises(UserError, match="in the way"):
        RunFolder(tmp_path / "f" / "r").create()
