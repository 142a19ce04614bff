from __future__ import annotations

import errno
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ondevice.common.disk import DiskFull
from ondevice.common.errors import UserError
from ondevice.common.json_files import to_json
from ondevice.common.progress import Progress, duration, number, numbers_line
from ondevice.runs import events
from ondevice.runs.events import EventWriter, LineFile, read, read_at


def steps(path: Path) -> list[int]:
    return [event["step"] for event in read(path) if event["event"] == "step"]


def test_a_torn_last_line_is_left_out_and_then_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventWriter(path) as writer:
        for step in (1, 2, 3):
            writer.emit("step", step, loss=1.0)
    whole = path.read_bytes()
    for end in range(len(whole) + 1):
        path.write_bytes(whole[:end])
        known = whole[:end].count(b"\n")
        assert steps(path) == [1, 2, 3][:known]
        with EventWriter(path) as writer:
            writer.emit("step", 9)
        assert steps(path) == [*[1, 2, 3][:known], 9]


def test_a_tail_of_zeros_from_a_power_loss_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event":"step","step":1}\n' + b"\0" * 200_000)
    assert steps(path) == [1]
    EventWriter(path).close()
    assert path.stat().st_size == 26


def test_a_damaged_line_becomes_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"event":"step","step":1}\n{"even\xff\n[1]\n{"event":"step","step":2}\n')
    assert [event["event"] for event in read(path)] == ["step", "warning", "warning", "step"]


def test_resume_drops_what_came_after_its_step(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventWriter(path) as writer:
        writer.emit("start")
        for step in range(1, 6):
            writer.emit("step", step, loss=float(step))
        writer.emit("eval", 5, loss=0.0)
    with EventWriter(path) as writer:
        writer.emit("resume", 3)
        writer.emit("step", 4, loss=40.0)
        writer.emit("resume", 3)
        writer.emit("step", 4, loss=44.0)
    found = list(read(path))
    assert [(e["event"], e.get("step")) for e in found] == [
        ("start", None),
        ("step", 1),
        ("step", 2),
        ("step", 3),
        ("resume", 3),
        ("resume", 3),
        ("step", 4),
    ]
    assert found[-1]["loss"] == 44.0
    assert list(read(tmp_path / "missing.jsonl")) == []


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 12), max_size=6))
def test_after_any_resumes_each_step_stands_once(
    tmp_path_factory: pytest.TempPathFactory, stops: list[int]
) -> None:
    path = tmp_path_factory.mktemp("e") / "events.jsonl"
    with EventWriter(path) as writer:
        at = 0
        for stop in stops:
            for step in range(at + 1, at + stop + 1):
                writer.emit("step", step)
            at = (at + stop) // 2
            writer.emit("resume", at)
    assert steps(path) == list(range(1, at + 1))


def test_numbers_that_json_has_no_word_for_become_null(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventWriter(path, now=lambda: 12.3456789) as writer:
        writer.emit(
            "step",
            1,
            loss=float("nan"),
            norm=np.float32("inf"),
            deep={"a": [1.0, float("-inf")]},
            count=np.int64(3),
            row=np.array([1.5, np.nan]),
            on=np.bool_(True),
            path=Path("x"),
            text="\udc80é",
        )
    line = path.read_text()
    record = json.loads(line, parse_constant=lambda word: pytest.fail(word))
    assert record == {
        "t": 12.346,
        "event": "step",
        "step": 1,
        "loss": None,
        "norm": None,
        "deep": {"a": [1.0, None]},
        "count": 3,
        "row": [1.5, None],
        "on": True,
        "path": "x",
        "text": "\udc80é",
    }
    with pytest.raises(TypeError, match="set"):
        to_json({"a": {1}})


def test_steps_wait_for_a_batch_and_other_events_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(events, "ticks", lambda: now)
    path = tmp_path / "events.jsonl"
    writer = EventWriter(path)
    writer.emit("step", 1)
    assert steps(path) == []
    now = 1.0
    writer.emit("step", 2)
    assert steps(path) == [1, 2]
    writer.emit("step", 3)
    assert steps(path) == [1, 2]
    writer.emit("checkpoint", 3)
    assert steps(path) == [1, 2, 3]
    writer.close()
    writer.close()


def test_a_full_disk_leaves_no_broken_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "events.jsonl"
    writer = EventWriter(path)
    write = os.write
    room = 10

    def full(descriptor: int, data: bytes) -> int:
        nonlocal room
        if room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        size, room = min(room, len(data)), room - min(room, len(data))
        return write(descriptor, bytes(data[:size]))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(DiskFull, match="events.jsonl: the disk is full"):
        writer.emit("eval", 1, loss=2.0)
    room = 10_000
    writer.emit("eval", 2, loss=1.0)
    writer.close()
    assert [event["step"] for event in read(path)] == [1, 2]


def test_long_texts_are_found_by_their_offset(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    texts = ["a" * 10, "é\n" * 1000, ""]
    offsets = []
    for text in texts:
        with LineFile(path) as file:
            offsets.append(file.append({"text": text}))
    assert [read_at(path, offset)["text"] for offset in offsets] == texts
    with pytest.raises(ValueError):
        read_at(path, offsets[1] + 1)


def test_tail_reads_whole_lines_only(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventWriter(path, now=lambda: 1.0) as writer:
        for step in range(10, 30):
            writer.emit("step", step)
    size = path.stat().st_size // 20
    for tail in range(1, 3 * size + 1):
        assert [e["step"] for e in read(path, tail=tail)] == list(range(30 - tail // size, 30))


def test_progress_without_a_terminal_is_plain_lines() -> None:
    out = io.StringIO()
    with Progress("sft", 10, first=4, stream=out) as progress:
        for step in range(5, 11):
            progress.update(
                step,
                {"loss": 2.0, "lr": 3e-3, "tokens_per_second": 41234.0, "grad_norm": float("nan")},
            )
        progress.note("saved")
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("sft 5/10  loss 2.000  lr 3.0e-03  41.2k tok/s  norm –")
    assert lines[1] == "saved" and lines[2].startswith("sft 10/10")
    assert "\x1b" not in out.getvalue()


def test_progress_on_a_terminal_shows_a_bar() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    with Progress("sft", 10, stream=out) as progress:
        progress.update(7, {"loss": 2.0})
        progress.note("[red]saved[/red]")
    assert "7/10" in out.getvalue() and "[red]saved[/red]" in out.getvalue()


def test_progress_outlives_its_terminal() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.EIO, "Input/output error")

    with Progress("sft", 3, stream=Gone()) as progress:
        progress.update(1)
        progress.note("x")


def test_numbers_are_short() -> None:
    assert [
        number(x) for x in (0, 0.0, 1.23456, 0.00012, 512.3, 12345.0, 3_000_000, None, float("inf"))
    ] == ["0", "0.000", "1.235", "1.2e-04", "512", "12.3k", "3.0M", "–", "–"]
    assert numbers_line({"bits_per_byte": 1.5, "step": 3}) == "bpb 1.500  step 3"
    assert [duration(s) for s in (7, 59.6, 750, 11100, 187200)] == [
        "0:07",
        "1:00",
        "12:30",
        "3:05:00",
        "2d 04h",
    ]


def test_a_step_and_a_measurement_stand_once_in_the_curve(tmp_path: Path) -> None:
    """A process that was killed behind its last checkpoint measures anew; one that was killed before
    its first tells its steps again."""
    path = tmp_path / "events.jsonl"
    with EventWriter(path) as writer:
        for step in (1, 2, 3):
            writer.emit("step", step, loss=step)
        writer.emit("resume", 0)
        for step in (1, 2, 3, 4):
            writer.emit("step", step, loss=10 * step)
        writer.emit("eval", 4, loss=1.0)
        writer.emit("checkpoint", 4)
        writer.emit("resume", 4)
        writer.emit("eval", 4, loss=2.0)
    assert steps(path) == [1, 2, 3, 4]
    assert [e["loss"] for e in read(path) if e["event"] == "step"] == [10, 20, 30, 40]
    assert [e["loss"] for e in read(path) if e["event"] == "eval"] == [2.0]


def test_a_file_that_was_removed_or_replaced_is_not_written_to_in_secret(tmp_path: Path) -> None:
    for change in ("unlink", "replace"):
        path = tmp_path / change / "events.jsonl"
        writer = EventWriter(path)
        writer.emit("start", 0)
        if change == "unlink":
            path.unlink()
        else:
            (tmp_path / "other").write_text("")
            (tmp_path / "other").replace(path)
        with pytest.raises(UserError, match="removed or replaced"):
            writer.emit("eval", 1)
        writer.close()
