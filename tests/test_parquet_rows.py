"""Parquet files are unpacked in a process of their own, so that a damaged one ends no stage."""

from __future__ import annotations

import random
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fuzz_cases import spoil
from fuzz_readers import READERS_OF
from ondevice.common import processes
from ondevice.common.errors import UserError
from ondevice.data import row_process as module
from ondevice.data.parquet_rows import parquet_rows
from ondevice.data.readers import READERS

pq = pytest.importorskip("pyarrow.parquet")
pa = pytest.importorskip("pyarrow")


def written(file: Path, rows: int, group: int = 100) -> Path:
    table = pa.table({"text": [f"{n} " * 500 for n in range(rows)]})
    pq.write_table(table, file, row_group_size=group)
    return file


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """The processes that the test starts; none is left over from another."""
    found: list[subprocess.Popen[bytes]] = []
    start = processes.start

    def kept(*words: Any, **how: Any) -> subprocess.Popen[bytes]:
        found.append(start(*words, **how))
        return found[-1]

    monkeypatch.setattr(processes, "start", kept)
    monkeypatch.setattr(module, "_idle", [])
    return found


def test_a_reader_that_is_ended_refuses_its_file_and_not_the_next(
    tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    file = written(tmp_path / "a.parquet", 5000)
    head, rows = parquet_rows(file)
    assert head.rows == 5000 and head.features == {}
    assert next(rows)["text"].startswith("0 ")
    started[0].send_signal(signal.SIGABRT)  # as C++ does where nobody catches its error
    with pytest.raises(UserError, match=r"a\.parquet.*pyarrow ended its process by signal 6"):
        list(rows)
    assert len(list(READERS[".parquet"](written(tmp_path / "b.parquet", 10)))) == 10


def test_one_process_reads_a_folder_and_ends_with_what_is_left_unread(
    tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    files = [written(tmp_path / f"{n}.parquet", 3000) for n in range(3)]
    for file in files:
        assert len(list(parquet_rows(file)[1])) == 3000
    assert len(started) == 1
    reading = [parquet_rows(file)[1] for file in files]  # three at once, as a mixture does
    assert [next(rows)["text"][0] for rows in reading] == ["0", "0", "0"]
    assert len(started) == 3
    for rows in reading:
        rows.close()
    assert [process.poll() for process in started] == [-signal.SIGKILL] * 3


def test_an_idle_process_that_is_gone_is_replaced(
    tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    file = written(tmp_path / "a.parquet", 3)
    assert len(list(parquet_rows(file)[1])) == 3
    started[0].kill()
    started[0].wait()
    assert len(list(parquet_rows(file)[1])) == 3


def test_spoilt_files_are_read_or_refused(tmp_path: Path) -> None:
    """The last of them ends its process within pyarrow 26."""
    samples = READERS_OF["rows .parquet"].samples(tmp_path)
    for number in (*range(12), 345):
        file = tmp_path / "a.parquet"
        file.write_bytes(spoil(random.Random(f"q{number}"), samples))
        try:
            list(READERS[".parquet"](file))
        except UserError as error:
            assert str(file) in str(error)  # noqa: PT017 (some are read)
