"""A full disk by itself: how it is recognised and said, how a run waits, and a real one (tmpfs)."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ondevice as od
import small_stages
from ondevice import cli
from ondevice.common import atomic, disk
from ondevice.common.disk import DiskFull
from ondevice.common.errors import Interrupted, UserError
from ondevice.common.files import whole_folder, write_file
from ondevice.preferences.sqlite_store import refused
from ondevice.rewards.process import Host
from ondevice.runs import disk_pause
from ondevice.runs.disk_pause import DiskPause
from ondevice.runs.events import EventWriter, LineFile, read
from ondevice.runs.folder import RunFolder, StopRequest
from ondevice.runs.listing import runs_text, stage_state
from ondevice.seam.select import load_backend
from test_full_disk import result
from warm_processes import WarmProcess, start

FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_pause, "LOOK_S", 0.02)
    monkeypatch.setattr(disk_pause, "STOP_LOOK_S", 0.005)


class Flaky:
    """Raises `error` the first few times."""

    def __init__(self, times: int, error: Exception = FULL) -> None:
        self.times, self.error, self.asked = times, error, 0

    def __call__(self) -> str:
        self.asked += 1
        if self.asked <= self.times:
            raise self.error
        return "written"


def waiting(said: list[str]) -> DiskPause:
    pause = DiskPause(StopRequest(), said.append)
    pause.under_way = True
    return pause


# recognised, and said


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "x"),
        OSError(errno.EDQUOT, "x"),
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("tokenizer: No space left on device"),
        ValueError("Disk quota exceeded"),
        RuntimeError(f"[write] Unable to write {1 << 62} bytes to file."),
        DiskFull(Path("x")),
    ],
)
def test_known_as_a_full_disk(error: Exception, tmp_path: Path) -> None:
    assert disk.is_full(error, tmp_path)
    told = disk.as_full(error, tmp_path / "file")
    assert told is not None and "disk" in str(told) and "make room" in str(told)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EACCES, "x"),
        OSError(errno.EIO, "x"),
        RuntimeError("[write] Unable to write 10 bytes to file."),
        UserError("No space left on device"),
        ValueError("os error 13"),
        KeyError("x"),
    ],
)
def test_not_known_as_one(error: Exception, tmp_path: Path) -> None:
    assert not disk.is_full(error, tmp_path)
    with pytest.raises(type(error)), disk.naming(tmp_path):
        raise error


def test_sqlites_own_words(tmp_path: Path) -> None:
    """A database that may have no more pages."""
    with sqlite3.connect(tmp_path / "a.db") as connection:
        connection.execute("CREATE TABLE t (x)")
        connection.execute("PRAGMA max_page_count = 3")
        with pytest.raises(sqlite3.OperationalError, match="full") as caught:
            connection.execute("INSERT INTO t VALUES (?)", ["x" * 100_000])
    told = refused(caught.value, tmp_path / "a.db")
    assert isinstance(told, DiskFull) and "a.db: the disk is full" in str(told)


def test_the_file_that_the_system_names_is_told(tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match="inner: the disk is full"), disk.naming(tmp_path / "outer"):
        raise OSError(errno.ENOSPC, "x", str(tmp_path / "inner"))


def test_what_is_needed_and_free_is_told(tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match=r"a model needs 1000000.0 GB of the disk, of which .* free"):
        disk.need_room(tmp_path / "there" / "not", 1e15, "a model")
    disk.need_room(tmp_path, 1000, "a model")
    assert "at least 12 B are needed" in str(DiskFull(tmp_path, 12))


@pytest.mark.parametrize(
    "error", [FULL, RuntimeError("(os error 28)"), OSError(errno.ENOSPC, "", "a")]
)
def test_whatever_comes_up_to_the_command_is_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(argv: list[str]) -> int:
        raise error

    monkeypatch.setattr(cli, "_command", full)
    assert cli.main(["runs"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "the disk is full" in err and "make room" in err


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize("words", [["runs"], ["--version"], ["help"], ["doctor", "--json"]])
def test_a_result_that_cannot_be_printed(words: list[str], tmp_path: Path) -> None:
    with open("/dev/full", "w") as nowhere:
        done = subprocess.run(
            [sys.executable, "-m", "ondevice", *words],
            stdout=nowhere,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        )
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "standard output: the disk is full" in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_messages_that_cannot_be_written_end_nothing(tmp_path: Path) -> None:
    """The log of a process that the app started, on a full disk."""
    code = (
        "import sys; from ondevice import cli; from ondevice.common.sanitize import to_stderr\n"
        "from ondevice.common.errors import UserError\n"
        "def said(argv):\n    to_stderr('x' * 100000); raise UserError('wrong')\n"
        "cli._command = said; sys.exit(cli.command())"
    )
    with open("/dev/full", "w") as nowhere:
        done = subprocess.run([sys.executable, "-c", code], stderr=nowhere, cwd=tmp_path)
    assert done.returncode == 2


# written again


def test_nobody_waits(tmp_path: Path) -> None:
    flaky = Flaky(1)
    with pytest.raises(DiskFull, match=r"file: the disk is full.*--resume"):
        disk.until_written(tmp_path / "file", flaky)
    assert flaky.asked == 1


def test_it_is_done_again_until_there_is_room(tmp_path: Path) -> None:
    said: list[str] = []
    with EventWriter(tmp_path / "events.jsonl") as events:
        pause = waiting(said)
        pause.attach(events, lambda seconds: None)
        with pause():
            flaky = Flaky(3, OSError(errno.EDQUOT, "x"))  # of a quota nothing tells but a try
            assert disk.until_written(tmp_path / "file", flaky) == "written" and flaky.asked == 4
    # however often it was tried, it was one pause
    assert [line.partition(":")[0] for line in said] == ["paused", said[1].partition(":")[0]]
    assert "share of the disk" in said[0] and "room again" in said[1]
    [event] = read(tmp_path / "events.jsonl")
    assert event["event"] == "paused" and event["reason"] == "the disk is full"
    assert event["seconds"] > 0 and event["file"] == str(tmp_path / "file")


def test_another_error_is_not_waited_for(tmp_path: Path) -> None:
    with waiting([])(), pytest.raises(ValueError, match="mine"):
        disk.until_written(tmp_path, Flaky(1, ValueError("mine")))


def test_before_a_run_is_under_way_nobody_waits(tmp_path: Path) -> None:
    pause = DiskPause(StopRequest(), lambda text: pytest.fail(text))
    with pause(), pytest.raises(DiskFull):
        disk.until_written(tmp_path, Flaky(1))


def test_a_try_is_worth_more_room_than_there_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = [1000, 1000, 900, 1100, 5000]
    monkeypatch.setattr(disk, "free_bytes", lambda path: free.pop(0) if len(free) > 1 else free[0])
    looks = len(free)
    flaky = Flaky(1)
    with waiting([])():
        disk.until_written(tmp_path / "file", flaky, needed=1050)
    assert flaky.asked == 2 and len(free) < looks


def test_ctrl_c_leaves_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_pause, "LOOK_S", 600.0)
    stop = StopRequest()
    pause = DiskPause(stop, lambda text: None)
    pause.under_way = True
    stage = RunFolder(tmp_path / "run").stage("sft")
    with stage.locked():
        pause.begin(stage)
        stop.begin(stage)
        threading.Timer(0.2, stage.stop.touch).start()
        with pause(), pytest.raises(Interrupted, match="stopped while the disk is full"):
            disk.until_written(tmp_path / "file", Flaky(99))
    assert stage.stopped_in_pause() == "stopped while the disk is full"


def test_ctrl_c_says_what_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(disk_pause, "LOOK_S", 600.0)
    with StopRequest() as stop:
        pause = DiskPause(stop, lambda text: None)
        pause.under_way = True

        def interrupt(seconds: float) -> None:
            os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(disk_pause.time, "sleep", interrupt)
        with pause(), pytest.raises(Interrupted):
            disk.until_written(tmp_path / "file", Flaky(99))
    said = capfd.readouterr().err
    assert "leaving: the last checkpoint is whole" in said and "finishing" not in said
    with StopRequest() as stop:  # at work
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
    assert "finishing the step, then saving" in capfd.readouterr().err


def test_others_see_it_while_nothing_can_be_written(tmp_path: Path) -> None:
    stage = RunFolder(tmp_path / "run").stage("sft")
    with stage.locked():
        with EventWriter(stage.events) as events:
            events.emit("start", 0, stage="sft", steps=10)
            events.emit("step", 3, loss=1.0)
        length = stage.lock.stat().st_size
        stage.note(paused="the disk is full: 0 B are free (events.jsonl)")
        assert stage.lock.stat().st_size == length  # which needs no room
        state = stage_state(stage)
        assert state["state"] == "training" and "0 B are free" in state["waiting"]
        shown = runs_text([{"path": "run", "stages": [state]}])
        assert "paused" in shown and "it goes on once there is room" in shown
        stage.note(paused=None)
        assert stage_state(stage)["waiting"] == ""
        stage.note(stopped="stopped while the disk is full")
    state = stage_state(stage)
    assert state["state"] == "stopped" and state["message"] == "stopped while the disk is full"
    with stage.locked():
        assert stage.stopped_in_pause() == ""
    assert stage_state(stage)["state"] == "died"


def test_a_long_command_does_not_make_the_lock_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["x" * 5000])
    stage = RunFolder(tmp_path / "run").stage("sft")
    with stage.locked():
        holder = stage.holder()
        assert holder is not None and "pid" in holder
        length = stage.lock.stat().st_size
        stage.note(paused="y" * 5000)
        assert stage.lock.stat().st_size == length and "yyy" in str(stage.holder())


def test_a_line_that_was_refused_half_goes_on_in_the_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, room = os.write, [5, 0, 0, 7, 0, 10_000, 10_000]

    def full(descriptor: int, data: bytes) -> int:
        take = room.pop(0) if room else 10_000
        if not take:
            raise OSError(errno.EDQUOT, "x")
        return write(descriptor, bytes(data[:take]))

    said: list[str] = []
    with LineFile(tmp_path / "lines.jsonl") as file, waiting(said)():
        file.append({"n": 1, "text": "é" * 20})
        file.append({"n": 2})
        monkeypatch.setattr(os, "write", full)
        file.flush()
        monkeypatch.undo()
    assert [json.loads(line)["n"] for line in (tmp_path / "lines.jsonl").open()] == [1, 2]
    assert len([text for text in said if text.startswith("paused")]) == 1


def test_a_whole_file_and_folder_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync, refused_times = atomic.sync, [1, 1]

    def full(path: Path) -> None:
        if refused_times:
            refused_times.pop()
            raise OSError(errno.EDQUOT, "x")
        sync(path)

    monkeypatch.setattr(atomic, "sync", full)
    with waiting([])():
        write_file(tmp_path / "a", "text")
    assert (tmp_path / "a").read_text() == "text" and os.listdir(tmp_path) == ["a"]


def test_what_is_removed_needs_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old" / "inner").mkdir(parents=True)
    (tmp_path / "old" / "inner" / "file").write_text("x")
    (tmp_path / "link").symlink_to("old")
    mkdir = Path.mkdir

    def full(path: Path, *given: Any, **how: Any) -> None:
        if path.name.startswith(".tmp-"):
            raise OSError(errno.ENOSPC, "x", str(path))
        mkdir(path, *given, **how)

    monkeypatch.setattr(Path, "mkdir", full)
    for name in ("link", "old"):
        atomic.remove(tmp_path / name)
    assert os.listdir(tmp_path) == []
    with pytest.raises(DiskFull, match="new"), whole_folder(tmp_path / "new"):
        pytest.fail("there was no room for it")


def test_a_marker_without_room_for_its_text_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, data: bytes) -> int:
        raise FULL

    monkeypatch.setattr(os, "write", full)
    (tmp_path / "old").write_text("x")
    atomic.remove(tmp_path / "old")
    assert os.listdir(tmp_path) == []


# rewards

WRITES = """
import errno
tries = 0
def printing(prompts, completions, **columns):
    print("x" * 100000)
    return [1.0 for _ in completions]
def writing(prompts, completions, **columns):
    global tries
    tries += 1
    if tries < 3:
        raise OSError(errno.ENOSPC, "No space left on device", "/full/mine.log")
    return [2.0 for _ in completions]
"""


def test_a_reward_is_not_at_fault(tmp_path: Path) -> None:
    (tmp_path / "reward.py").write_text(WRITES)
    given = {"prompts": ["a"], "completions": ["b"]}
    log = Path("/dev/full") if os.path.exists("/dev/full") else None
    host = Host(tmp_path / "reward.py", timeout=120, log=log)
    try:
        host.start()
        assert host.call("printing", given) == [1.0]
        with pytest.raises(DiskFull, match="/full/mine.log: the disk is full"):
            host.call("writing", given)
        with waiting([])():
            assert host.call("writing", given) == [2.0]
    finally:
        host.close()


# a real one

needs_tmpfs = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0 or shutil.which("mount") is None,
    reason="only root can mount a disk of its own",
)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A tmpfs of a given size; asked again it gets another size."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = False

    def sized(size: str) -> Path:
        nonlocal mounted
        again = ["-o", f"remount,size={size}"] if mounted else ["-o", f"size={size}"]
        done = subprocess.run(["mount", "-t", "tmpfs", *again, "tmpfs", str(place)])
        if done.returncode:
            pytest.skip("this machine lets nobody mount a tmpfs")
        mounted = True
        return place

    yield sized
    if mounted:
        subprocess.run(["umount", "-l", str(place)], check=True)


CODE = """
import json, sys
import ondevice as od
from ondevice.common.errors import Interrupted
from ondevice.runs import disk_pause
disk_pause.LOOK_S, disk_pause.STOP_LOOK_S = 0.1, 0.01
try:
    od.pretrain(**json.loads(sys.argv[1]))
except Interrupted as stop:
    print(stop, file=sys.stderr); sys.exit(130)
"""


def pretraining(files: Path, out: Path) -> dict[str, Any]:
    return {
        "model": str(files / "policy"),
        "data": str(files / "book.txt"),
        "out": str(out),
        "backend": "torch",
        "device": "cpu",
        "sequence_length": 32,
        "batch_size": 4,
        "steps": 8,
        "save_every": 2,
        "eval_every": 4,
        "anyway": True,
    }


def printed(process: Any) -> str:
    assert isinstance(process, WarmProcess)
    return os.pread(process.printed[1].fileno(), 1 << 16, 0).decode()


@needs_tmpfs
@pytest.mark.slow
@pytest.mark.parametrize("way", ["room", "stop"])
def test_a_run_on_a_real_disk_that_gets_full(
    small_disk: Callable[[str], Path], tmp_path: Path, way: str
) -> None:
    files = small_stages.make(tmp_path / "files", load_backend("torch", "cpu", "float32"))
    lines = [f"Anna eats red pears in Rome with Ben number {n}." for n in range(400)]
    (files / "book.txt").write_text("\n\n".join(lines))
    whole = tmp_path / "whole"
    whole.mkdir()
    od.pretrain(**pretraining(files, whole / "r"))
    place = small_disk("1600k")
    process = start("-c", CODE, json.dumps(pretraining(files, place / "r")))
    while process.poll() is None and "paused: " not in printed(process):
        time.sleep(0.02)
    assert process.poll() is None, printed(process)
    assert "the disk is full" in printed(process) and "Make" in printed(process)
    if way == "stop":
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=300)
        assert process.returncode == 130
        small_disk("20m")
        od.pretrain(**pretraining(files, place / "r"), resume=True)
    else:
        small_disk("20m")
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        kinds = [event["event"] for event in read(place / "r" / "pretrain" / "events.jsonl")]
        assert "paused" in kinds and "room again" in err
    assert result(place, "pretrain") == result(whole, "pretrain")
    assert not [path for path in (place / "r").rglob("*") if path.name.startswith(".tmp-")]


@needs_tmpfs
def test_what_will_not_fit_is_refused_before_it_begins(
    small_disk: Callable[[str], Path], tmp_path: Path
) -> None:
    files = small_stages.make(tmp_path / "files", load_backend("torch", "cpu", "float32"))
    (files / "book.txt").write_text("Anna eats red pears in Rome. " * 400)
    place = small_disk("600k")
    settings = {**pretraining(files, place / "r"), "anyway": False}
    with pytest.raises(DiskFull, match=r"pretrain does not fit: .* of the disk, of which .* free"):
        od.pretrain(**settings)
    with pytest.raises(DiskFull, match="needs .* of the disk"):
        od.export(str(files / "policy"), "hf", out=str(small_disk("80k") / "made"), backend="torch")
