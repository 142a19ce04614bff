"""Preference and reasoning stages that are interrupted: going on gives the run that was never
interrupted, bit for bit.

As in test_resume, whose helpers are used: killed at random moments, between the updates of a
rollout too.
"""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

import ondevice as od
import small_stages
from ondevice.runs.events import read, read_at
from ondevice.seam.select import load_backend
from small_stages import STAGES, settings
from test_resume import same, weights
from warm_processes import Process, start

pytestmark = pytest.mark.slow
ROLLOUTS = ("ppo", "grpo")
MEASURED = ("t", "seconds", "tokens_per_second", "memory_bytes", "groups")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_stages.make(
        tmp_path_factory.mktemp("files"), load_backend("torch", device="cpu", dtype="float32")
    )


def begin(stage: str, fields: dict[str, Any], *more: str) -> Process:
    words = [fields["model"], fields["reward_model"] if stage == "ppo" else fields["data"]]
    flags = []
    for name, value in fields.items():
        if name in ("model", "reward_model") or (name == "data" and stage != "ppo"):
            continue
        flags += [f"--{name}", ",".join(value) if isinstance(value, tuple) else str(value)]
    return start(
        *("-m", "ondevice", stage, *words, *flags, *more), torch=fields["backend"] == "torch"
    )


def wait_for(file: Path, text: str, times: int, process: Process) -> None:
    """Until a file holds `text` so often; a process that ends before has failed."""
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if file.exists() and file.read_text(errors="replace").count(text) >= times:
            return
        time.sleep(0.005)
    pytest.fail(f"{file} never had {times} × {text}: {process.communicate()[1]}")


def steps(out: Path, stage: str) -> list[dict[str, Any]]:
    """All that the steps' events say but for what is measured with a clock."""
    return [
        {k: v for k, v in e.items() if k not in MEASURED and not k.endswith("_seconds")}
        for e in read(out / stage / "events.jsonl")
        if e["event"] == "step"
    ]


def told(out: Path, stage: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / stage / "groups.jsonl").read_text().splitlines()]


def check_same(stage: str, broken: Path, whole: Path) -> None:
    assert steps(broken, stage) == steps(whole, stage)
    assert len(steps(whole, stage)) == STAGES[stage]["steps"]
    assert same(weights(broken, stage), weights(whole, stage))
    if stage == "ppo":
        from safetensors.numpy import load_file

        one, other = (
            load_file(out / stage / "value_model" / "model.safetensors") for out in (broken, whole)
        )
        assert same(one, other)
    if stage in ROLLOUTS:
        assert told(broken, stage) == told(whole, stage)
        watched = set()
        for event in read(broken / stage / "events.jsonl"):
            if "groups" in event:
                line = read_at(broken / stage / "groups.jsonl", event["groups"])
                assert line["step"] == event["step"]
                assert line.get("held_out", False) == (event["event"] in ("before", "eval"))
                if event["event"] == "eval":
                    watched.add(
                        tuple(
                            (group["prompt"], len(group["completions"])) for group in line["groups"]
                        )
                    )
        # always the same few prompts
        assert len(watched) == 1 and {count for _, count in next(iter(watched))} == {1}


@pytest.mark.parametrize("stage", STAGES)
def test_killed_again_and_again_the_curve_is_that_of_one_run(
    files: Path, tmp_path: Path, backend_name: str, stage: str
) -> None:
    """Of a rollout stage, once after a rollout is on the disk and before its updates are all done."""
    getattr(od, stage)(**settings(files, stage, tmp_path / "whole", backend_name))
    broken = settings(files, stage, tmp_path / "broken", backend_name)
    folder = tmp_path / "broken" / stage
    rng = random.Random(stage)
    for attempt, saved in enumerate((1, 2)):
        process = begin(stage, broken, *(["--resume"] if attempt else []))
        wait_for(folder / "events.jsonl", '"event": "checkpoint"', saved, process)
        if stage in ROLLOUTS:
            lines = (folder / "groups.jsonl").read_text().count('{"step"')
            wait_for(folder / "groups.jsonl", '{"step"', lines + 1, process)
        time.sleep(rng.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    process = begin(stage, broken, "--resume")
    _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    check_same(stage, tmp_path / "broken", tmp_path / "whole")
    assert any(e["event"] == "resume" for e in read(folder / "events.jsonl"))


@pytest.mark.parametrize("stage", ROLLOUTS)
def test_a_stop_falls_between_rollouts_and_loses_nothing(
    files: Path, tmp_path: Path, stage: str
) -> None:
    """By its stop file; then by Ctrl-C. No checkpoint but those of the stops."""
    getattr(od, stage)(**settings(files, stage, tmp_path / "whole", "torch", save_every=0))
    broken = settings(files, stage, tmp_path / "broken", "torch", save_every=0)
    folder = tmp_path / "broken" / stage
    for attempt, how in enumerate(("file", "signal")):
        process = begin(stage, broken, *(["--resume"] if attempt else []))
        wait_for(folder / "groups.jsonl", '{"step"', 2 + 2 * attempt, process)
        if how == "file":
            (folder / "stop").touch()
        else:
            process.send_signal(signal.SIGINT)
        _, stderr = process.communicate()
        assert process.returncode == 130, stderr
        assert "saved" in stderr and "Traceback" not in stderr
    getattr(od, stage)(**{**broken, "resume": True})
    check_same(stage, tmp_path / "broken", tmp_path / "whole")


def test_what_came_after_the_checkpoint_is_cut_from_the_groups(tmp_path: Path) -> None:
    """Also where the line that was being written is torn; what is before stays where it was, byte
    for byte.
    """
    from ondevice.rl.rollout_log import GroupLog

    first = GroupLog(tmp_path / "groups.jsonl")
    offsets = [first.append(step, [{"prompt": "x" * step}]) for step in (1, 2, 3, 4)]
    whole = (tmp_path / "groups.jsonl").read_bytes()
    with (tmp_path / "groups.jsonl").open("ab") as file:
        file.write(b'{"step": 5, "gro')
    again = GroupLog(tmp_path / "groups.jsonl")
    assert again.append(3, [{"prompt": "xxx"}]) == offsets[2]
    assert again.append(4, [{"prompt": "xxxx"}]) == offsets[3]
    assert (tmp_path / "groups.jsonl").read_bytes() == whole


def items(file: Path) -> list[tuple[Any, ...]]:
    with sqlite3.connect(file) as found:
        return list(
            found.execute(
                "SELECT item.id, prompt, shown, item.meta, slot, text, response.meta "
                "FROM item JOIN response ON item = item.id ORDER BY item.id, slot"
            )
        )


def count(file: Path) -> int:
    try:
        with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as found:
            return int(found.execute("SELECT count(*) FROM item").fetchone()[0])
    except sqlite3.Error:  # not there yet, or not yet made
        return 0


def test_sampling_that_is_killed_halfway_queues_the_same_pairs(
    files: Path, tmp_path: Path, backend_name: str
) -> None:
    """More prompts than are committed at once; responses so short that some prompts have no choice
    of two.
    """
    asked = tmp_path / "many.jsonl"
    asked.write_text(
        "\n".join(
            json.dumps({"prompt": f"{word} {n}"})
            for n in range(150)
            for word in small_stages.WORDS[:4]
        )
    )
    fields = {
        "model": str(files / "policy"),
        "data": str(asked),
        "backend": backend_name,
        "device": "cpu",
        "max_new_tokens": 3,
        "temperature": 0.5,
        "prompts": 0,
    }
    od.sample(**fields, out=str(tmp_path / "whole"))
    broken, ends = {**fields, "out": str(tmp_path / "broken")}, []
    for attempt in range(2):
        process = begin("sample", broken, *(["--resume"] if attempt else []))
        before = count(tmp_path / "broken" / "ratings.db")
        while process.poll() is None and count(tmp_path / "broken" / "ratings.db") <= before:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        ends.append(process.returncode)
    assert -signal.SIGKILL in ends
    od.sample(**broken, resume=True)
    one, other = (items(tmp_path / run / "ratings.db") for run in ("broken", "whole"))
    assert one == other and len(one) > 128
    marks = [
        json.loads((tmp_path / run / "sample" / "done.json").read_text())["marks"]
        for run in ("broken", "whole")
    ]
    assert marks[0] == marks[1] and marks[0]["alike"] > 0
