"""Locks on open files: who excludes whom, and when one is free again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ondevice.common import file_lock


def test_shared_locks_exclude_an_exclusive_one(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    file.touch()
    # flock excludes descriptors, so that one process can stand for three
    first, second, third = (os.open(file, os.O_RDONLY) for _ in range(3))
    assert file_lock.try_lock(first, shared=True)
    assert file_lock.try_lock(second, shared=True)
    assert not file_lock.try_lock(third)
    assert not file_lock.lock(third, patience_s=0)
    os.close(first)
    assert not file_lock.try_lock(third)
    os.close(second)
    assert file_lock.lock(third, patience_s=0)
    os.close(third)


def test_a_lock_that_becomes_free_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "lock"
    file.touch()
    holder, waiting = (os.open(file, os.O_RDONLY) for _ in range(2))
    assert file_lock.try_lock(holder)
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            os.close(holder)

    monkeypatch.setattr(file_lock.time, "sleep", wait)
    assert file_lock.lock(waiting, shared=True, patience_s=3600)
    assert waits == [file_lock.LOOK_S] * 3
    os.close(waiting)
