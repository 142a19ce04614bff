"""A command that trains starts itself anew with our settings of the C library, once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ondevice import cli
from ondevice.common import allocator

PROGRAM = """
import os, sys
from ondevice.common import allocator
print("began", flush=True)
allocator.restart()
print(os.getpid(), sys.argv[1:], os.environ.get("GLIBC_TUNABLES"))
"""
ON_GLIBC = pytest.mark.skipif(
    sys.platform != "linux" or not allocator._is_glibc(), reason="another C library"
)


@ON_GLIBC
def test_a_program_starts_itself_anew_once_and_keeps_its_number_and_words(tmp_path: Path) -> None:
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)
    given = {n: v for n, v in os.environ.items() if n not in allocator.CHOSEN}
    process = subprocess.Popen(
        [sys.executable, str(file), "two words", "--flag"],
        env=given,
        stdout=subprocess.PIPE,
        text=True,
    )
    out, _ = process.communicate(timeout=60)
    wanted = allocator.settings(given)["GLIBC_TUNABLES"]
    last = f"{process.pid} ['two words', '--flag'] {wanted}"
    assert out.splitlines() == ["began", "began", last]


@ON_GLIBC
def test_a_program_with_other_words_than_it_was_started_with_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in allocator.CHOSEN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("it began as another program"))
    monkeypatch.setattr(sys, "argv", ["ondevice", "sft", "of another process"])
    allocator.restart()


@pytest.mark.parametrize("name", allocator.CHOSEN)
def test_what_a_person_has_chosen_stays(name: str) -> None:
    assert allocator.settings({name: "1"}) == {}


@pytest.mark.parametrize(
    ("words", "restarts"),
    [(["sft", "--help"], 1), (["bench", "--help"], 1), (["doctor", "--help"], 0), (["--help"], 0)],
)
def test_commands_that_train_start_anew(
    words: list[str],
    restarts: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    done: list[None] = []
    monkeypatch.setattr(allocator, "restart", lambda: done.append(None))
    monkeypatch.setattr(sys, "argv", ["ondevice", *words])
    assert cli.command() == 0
    assert len(done) == restarts and capsys.readouterr().out


HOLES = """
import resource
from ondevice.common import allocator

def held():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

parts = [bytes(64 << 10) for _ in range(2000)]
last = bytes(64 << 10)
del parts
before = held()
allocator.give_back()
print(before - held())
"""


@ON_GLIBC
def test_what_is_free_below_what_is_in_use_goes_back() -> None:
    given = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    done = subprocess.run(
        [sys.executable, "-c", HOLES], env=given, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) > 64 << 20
