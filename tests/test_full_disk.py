"""A disk that gets full at any write of any command or stage: one line, or a pause that goes on by
itself, and never another result.

The campaign in full, whose figures are in docs/results/reliability.md:

    python -m pytest tests/test_full_disk.py --writes 1000
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import small_stages
from full_disk import FullDisk, needs_compiler
from ondevice.common.files import sha256
from ondevice.runs import listing
from ondevice.runs.events import read
from ondevice.seam.select import load_backend

_ON = ("--backend", "torch", "--device", "cpu")
_STAGES: dict[str, list[str]] = {
    "pretrain": [
        "pretrain",
        "policy",
        "book.txt",
        *[
            "--sequence-length",
            "32",
            "--batch-size",
            "4",
            "--steps",
            "6",
            "--save-every",
            "2",
            "--eval-every",
            "3",
        ],
    ],
    "grpo": [
        "grpo",
        "policy",
        "prompts.jsonl",
        *[
            "--prompts",
            "3",
            "--group-size",
            "4",
            "--max-new-tokens",
            "8",
            "--steps",
            "4",
            "--save-every",
            "2",
        ],
        *["--rewards", "length"],
    ],
    "dpo": [
        "dpo",
        "policy",
        "pairs.jsonl",
        *["--batch-size", "8", "--sequence-length", "60", "--steps", "4", "--save-every", "2"],
    ],
    "sample": ["sample", "policy", "prompts.jsonl", "--max-new-tokens", "8"],
    "init": [
        "init",
        "book.txt",
        *[
            "--vocab-size",
            "300",
            "--hidden-size",
            "16",
            "--intermediate-size",
            "32",
            "--num-hidden-layers",
            "1",
        ],
        *["--num-attention-heads", "2", "--num-key-value-heads", "2"],
    ],
}
_COMMANDS: dict[str, list[str]] = {
    "export gguf": ["export", "policy", "--to", "gguf", "--out", "made", "--backend", "torch"],
    "export hf": ["export", "policy", "--to", "hf", "--out", "made", "--backend", "torch"],
    "eval": ["eval", "policy", "book.txt", "--backend", "torch"],
    "ratings import": ["ratings", "import", "made.db", "pairs.jsonl"],
    "ratings export": ["ratings", "export", "rated.db", "made.jsonl"],
}
_OF_THE_CLOCK = ("t", "seconds", "tokens_per_second", "memory_bytes")


@pytest.fixture
def writes(request: pytest.FixtureRequest) -> int:
    """At how many operations the disk is to be full."""
    return int(request.config.getoption("--writes"))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FullDisk]:
    """A disk with what commands begin from; what they make is removed by `fresh`."""
    base = tmp_path_factory.mktemp("full")
    files = small_stages.make(base / "files", load_backend("torch", "cpu", "float32"))
    lines = [f"Anna eats red pears in Rome with Ben number {n}." for n in range(400)]
    (files / "book.txt").write_text("\n\n".join(lines))
    (base / "disk").mkdir()
    one = FullDisk(base / "disk")
    yield one
    one.close()


def fresh(full: FullDisk) -> None:
    """The disk as before: nothing but links to what lies on another one."""
    full.fill(0)
    shutil.rmtree(full.root)
    full.root.mkdir()
    files = full.root.parent / "files"
    for file in files.iterdir():
        if file.suffix == ".db":
            shutil.copy(file, full.root)
        else:
            (full.root / file.name).symlink_to(file)


def result(root: Path, stage: str) -> dict[str, Any]:
    """What may not differ: the curve, the weights, what was sampled."""
    found: dict[str, Any] = {"curve": []}
    for event in read(root / "r" / stage / "events.jsonl"):
        if event["event"] in ("step", "eval"):
            told = {
                name: value
                for name, value in event.items()
                if name not in _OF_THE_CLOCK and not name.endswith("_seconds")
            }
            found["curve"].append(told)
    model = root / "r" / stage / "model"
    for file in sorted(model.glob("*.safetensors")) if model.is_dir() else ():
        found[file.name] = sha256(file)
    if stage == "sample":
        from ondevice.preferences.database import Ratings

        with Ratings.open(root / "r") as ratings:
            found["items"] = [
                (item.prompt, [response.text for response in item.responses])
                for item in ratings.items()
            ]
    return found


def everything(folder: Path) -> dict[str, str]:
    """The files of a folder by their hashes; none where it is not there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): sha256(path) for path in files}


def one_line(err: str) -> str:
    """The last line, which is the only one that complains."""
    assert "Traceback" not in err, err
    complaints = [line for line in err.splitlines() if line.startswith("ondevice: ")]
    assert len(complaints) == 1 and err.rstrip().endswith(complaints[0]), err
    return complaints[0]


def numbers(full: FullDisk, words: list[str], writes: int) -> list[int]:
    """Operations at which the disk is to be full, after a run in which it never is: evenly spread
    ones, the last among them."""
    fresh(full)
    code, _, err = full.run(*words)
    assert code == 0, err
    count = full.operations
    assert count > 5
    return sorted({max(1, count * (n + 1) // writes) for n in range(writes)})


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("command", _COMMANDS)
def test_a_command_says_it_in_one_line(full: FullDisk, command: str, writes: int) -> None:
    words = _COMMANDS[command]
    _prepare(full)
    todo = numbers(full, words, writes)
    whole = everything(full.root / "made")
    for number in todo:
        fresh(full)
        full.fill(number)
        code, _, err = full.run(*words)
        assert full.refused, "the operation was never reached"
        if code == 0:  # SQLite's own tidying up: what it could not write it does next time
            assert command.startswith("ratings"), number
            continue
        said = one_line(err)
        assert code == 2 and ("full" in said or "of the disk" in said), (number, said)
        # the file that could not be written, as it was named
        assert str(full.root) in said or "made" in said or "rated.db" in said, said
        assert not list(full.root.glob(".tmp-*")), number
        full.make_room()
        if (full.root / "made").exists():  # only the last word to the disk was refused
            assert everything(full.root / "made") == whole
        else:
            assert full.run(*words)[0] == 0


def _prepare(full: FullDisk) -> None:
    """Ratings to export."""
    files = full.root.parent / "files"
    if (files / "rated.db").exists():
        return
    fresh(full)
    assert full.run("ratings", "import", "rated.db", "pairs.jsonl")[0] == 0
    shutil.move(full.root / "rated.db", files)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("stage", _STAGES)
def test_a_stage_waits_and_comes_to_the_same(full: FullDisk, stage: str, writes: int) -> None:
    """The disk is full for a few writes."""
    words = [*_STAGES[stage], *_ON, "--out", "r"]
    todo = numbers(full, words, writes)
    expected = result(full.root, stage)
    for number in todo:
        fresh(full)
        full.fill(number, number + 8)
        code, _, err = full.run(*words)
        if code == 2:  # before it was under way
            one_line(err)
            full.make_room()
            code, _, err = full.run(*words, "--resume")
        assert code == 0 and "Traceback" not in err, (number, err)
        assert result(full.root, stage) == expected, number
        assert not _left(full.root / "r"), number


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "dpo"])
def test_a_pause_is_left_at_once_with_all_that_was_whole(
    full: FullDisk, stage: str, writes: int
) -> None:
    """The disk stays full: Ctrl-C, and by turns the stop file, end the pause; a resume comes to the
    same curve."""
    words = [*_STAGES[stage], *_ON, "--out", "r"]
    todo = numbers(full, words, writes)
    expected = result(full.root, stage)
    for turn, number in enumerate(todo):
        fresh(full)
        full.fill(number)
        process = full.start(*words)
        while process.poll() is None and "paused: " not in _printed(process):
            time.sleep(0.01)
        if process.poll() is None:
            [state] = listing.list_runs(full.root)[-1]["stages"]
            # at its last event the stage is complete already
            assert state["state"] == "done" or "disk is full" in state["waiting"], state
            if turn % 2:
                full.make_room()  # which the stop file itself may need
                (full.root / "r" / stage / "stop").touch()
            else:
                process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
        if process.returncode == 0:  # events are written by the clock: it had fewer writes
            assert not full.refused and result(full.root, stage) == expected, err
            continue
        said = one_line(err)
        full.make_room()
        if process.returncode == 130:
            assert "--resume" in said, said
        else:
            assert process.returncode == 2, err
        code, _, err = full.run(*words, "--resume")
        assert code == 0, (number, err)
        assert result(full.root, stage) == expected, number


def _printed(process: Any) -> str:
    file = process.printed[1]
    return os.pread(file.fileno(), 1 << 16, 0).decode()


def _left(run: Path) -> list[Path]:
    return [path for path in run.rglob("*") if path.name.startswith(".tmp-")]
