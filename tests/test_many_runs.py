"""What becomes of a run by several processes: it goes on with others, one of them differs, dies, fails
or is stopped, and they may be more than there is work for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import many
import ondevice as od
from ondevice import cli
from ondevice.runs import events
from test_many import (
    NEAR,
    ROLLOUTS,
    completions,
    files_of,
    jobs_of,
    losses,
    same_completions,
    same_folders,
)

REFUSED = """
describe: refused
prompts: ["Who is it?"]
stages: {init: {vocab_size: 400}, pretrain: {steps: 4}}
"""


@pytest.mark.slow
def test_a_process_that_differs_is_refused_by_name(tmp_path: Path) -> None:
    """Other data, another recipe, another command and other versions: the run is not begun."""
    files = files_of(tmp_path, "torch")
    _, fields = jobs_of(files, "torch")["sft"]
    (tmp_path / "recipe.yaml").write_text(REFUSED)
    own: dict[int, dict[str, str]] = {}
    for rank in range(2):
        folder = tmp_path / f"own-{rank}"
        folder.mkdir()
        rows = (files / "chats.jsonl").read_text().splitlines()[rank:]
        (folder / "rows.jsonl").write_text("\n".join(rows))
        (folder / "recipe.yaml").write_text(
            REFUSED.replace("steps: 4", "steps: 5") if rank else REFUSED
        )
        own[rank] = {"MANY_FOLDER": str(folder)}
    own[1] |= {"MANY_FIRST": "many_odd", "MANY_ODD": "3"}
    own[1]["MANY_OWN"] = json.dumps({"1": {"learning_rate": 0.5}})
    out = {"out": str(tmp_path / "refused")}
    recipe = {"recipe": "recipe.yaml", "backend": "torch", "device": "cpu"}
    jobs = [
        ("sft", {**fields, "data": "rows.jsonl"}),
        ("sft", fields),
        ("run", recipe),
        ("sft", fields),
    ]
    started = many.Launch(
        "torch", 2, [(name, {**job, **out}) for name, job in jobs], tmp_path / "launch", own=own
    )
    done = started.wait()
    assert done[0] == done[1], (started.shown(0), started.shown(1))
    for one, said in zip(
        done[0],
        (
            "has other contents of data than the first process",
            "has learning_rate 0.5, and the first process 0.003",
            "has stages.pretrain.steps 5, and the first process 4",
            "has ondevice 0.0.1, and the first process",
        ),
        strict=True,
    ):
        assert one["kind"] == "UserError" or one["kind"] == "PeerFailed", one
        assert "process 1 of 2" in one["error"] and said in one["error"]
    assert not list((tmp_path / "refused").rglob("*.safetensors"))
    assert not started.shown(1)


@pytest.mark.slow
def test_a_run_goes_on_with_any_number_of_processes(tmp_path: Path, backend_name: str) -> None:
    """Every stage by two processes, then by one, then by three; the optimizer's state lies by owner in
    between, and is whole again."""
    files = files_of(tmp_path, backend_name)
    last, shard = (3, "state") if backend_name == "torch" else (2, "none")
    jobs = jobs_of(files, backend_name)
    ends = {name: (2, 3, 4) if name in ROLLOUTS else (4, 8, 12) for name in jobs}

    def part(n: int, **changes: Any) -> list[tuple[str, dict[str, Any]]]:
        return [
            (fn, {**f, "steps": ends[name][n], "out": str(tmp_path / f"run-{name}"), **changes})
            for name, (fn, f) in jobs.items()
        ]

    many.launch(backend_name, 2, part(0, shard=shard), tmp_path / "a")
    for function, fields in part(1, shard="none", resume=True):
        getattr(od, function)(**fields)
    many.launch(backend_name, last, part(2, shard=shard, resume=True), tmp_path / "b")
    for name, (function, fields) in jobs.items():
        one = {
            **fields,
            "shard": "none",
            "steps": ends[name][2],
            "out": str(tmp_path / "one" / name),
        }
        getattr(od, function)(**one)
        folders = [tmp_path / of / function for of in (f"run-{name}", f"one/{name}")]
        ours, theirs = (losses(of.parent, function) for of in folders)
        assert len(ours) == ends[name][2]
        np.testing.assert_allclose(ours, theirs, rtol=NEAR, atol=NEAR, err_msg=name)
        same_folders(*(of / "model" for of in folders), 2e-5)
        if name in ROLLOUTS:
            # each part of the run has measured at its end
            drawn = [
                [one for one in completions(of.parent, function) if not one.get("held_out")]
                for of in folders
            ]
            same_completions(*drawn, steps=4)


REWARD = """
def long(completions, **columns):
    most = max(map(len, completions))  # fails without any
    return [len(text) / 60 + 0 * most for text in completions]
"""


@pytest.mark.slow
def test_processes_that_outnumber_the_work(tmp_path: Path, backend_name: str) -> None:
    """Rows, pairs, prompts and tensors of which some processes have none."""
    files = files_of(tmp_path, backend_name)
    (tmp_path / "reward.py").write_text(REWARD)
    size, shard = (3, "state") if backend_name == "torch" else (2, "none")
    few = {"steps": 3, "eval_every": 0, "save_every": 0, "shard": shard}
    jobs = {name: (fn, {**f, **few}) for name, (fn, f) in jobs_of(files, backend_name).items()}
    one_row = {"batch_size": 1, "micro_batch": "auto"}
    for name in ("pretrain", "sft", "reward", "dpo"):
        jobs[name][1].update(one_row)
    # two tensors are trained
    jobs["lora"][1].update(one_row, lora_targets=["model.layers.0.self_attn.q_proj"])
    for name in ROLLOUTS:
        jobs[name][1].update(prompts=1, micro_batch="auto")
    jobs["ppo"][1].update(minibatches=1)
    jobs["grpo"][1].update(rewards=[], reward_file=str(tmp_path / "reward.py"))
    for name in ("classify", "kto"):
        del jobs[name]
    asked = [(fn, {**f, "out": str(tmp_path / f"many-{n}")}) for n, (fn, f) in jobs.items()]
    policy = {"model": str(files / "policy"), "backend": backend_name, "device": "cpu"}
    policy |= {"data": str(files / "prompts.jsonl"), "max_new_tokens": 8}
    measured = {**policy, "tasks": ["problems"], "limit": 1}
    asked += [("sample", {**policy, "prompts": 1, "out": str(tmp_path / "many-sample")})]
    started = many.launch(backend_name, size, [*asked, ("evaluate", measured)], tmp_path / "launch")
    for name, (function, fields) in jobs.items():
        one = {**fields, "shard": "none", "out": str(tmp_path / f"one-{name}")}
        getattr(od, function)(**one)
        ours, theirs = (losses(tmp_path / f"{of}-{name}", function) for of in ("many", "one"))
        np.testing.assert_allclose(ours, theirs, rtol=NEAR, atol=NEAR, err_msg=name)
        told, alone = (
            [e["message"] for e in events.read(tmp_path / f"{of}-{name}/{function}/events.jsonl")
             if e["event"] == "warning"]
            for of in ("many", "one")
        )  # fmt: skip
        assert [text.replace("many-", "one-") for text in told] == alone
    assert started.outcome(0)[-1] == {"result": str(od.evaluate(**measured))}


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_dies_ends_the_others(tmp_path: Path, backend_name: str, rank: int) -> None:
    files = files_of(tmp_path, backend_name)
    _, fields = jobs_of(files, backend_name)["sft"]
    fields = {**fields, "out": str(tmp_path / "run"), "save_every": 2, "eval_every": 0}
    fields["shard"] = "state" if backend_name == "torch" else "none"
    (tmp_path / "tmp").mkdir()
    started = many.Launch(
        backend_name,
        2,
        [("sft", {**fields, "steps": 100000})],
        tmp_path / "launch",
        own={one: {"TMPDIR": str(tmp_path / "tmp")} for one in range(2)},
    )
    started.when(lambda: bool(list((tmp_path / "run/sft/checkpoints").glob("step-*"))))
    assert len(list((tmp_path / "tmp").glob(".tmp-ondevice-process-*"))) == 1
    started.signal(rank, signal.SIGKILL)
    outcome = started.wait()[1 - rank]
    assert [one["kind"] for one in outcome] == ["PeerLost"]
    assert "--resume" in outcome[0]["error"]
    assert not list((tmp_path / "tmp").glob(".tmp-*")), "also what the dead one kept"
    steps = max(int(p.name[5:]) for p in (tmp_path / "run/sft/checkpoints").glob("step-*"))
    od.sft(**{**fields, "steps": steps + 2, "resume": True})
    assert len(losses(tmp_path / "run", "sft")) == steps + 2


@pytest.mark.slow
def test_what_befalls_one_process_is_agreed_by_all(tmp_path: Path, backend_name: str) -> None:
    files = files_of(tmp_path, backend_name)
    _, fields = jobs_of(files, backend_name)["sft"]
    fields = {**fields, "eval_every": 0, "save_every": 0, "take_best": False}
    stopped = {**fields, "steps": 100000, "out": str(tmp_path / "stopped")}
    fails = {**fields, "steps": 8, "micro_batch": 4, "out": str(tmp_path / "fails")}
    started = many.Launch(
        backend_name,
        2,
        [
            ("sft", stopped),
            ("sft", fails),
            ("sft", {**stopped, "steps": 3, "out": str(tmp_path / "c")}),
        ],
        tmp_path / "launch",
        own={1: {"MANY_FIRST": "many_faults"}},
    )
    events_file = tmp_path / "stopped/sft/events.jsonl"
    started.when(lambda: events_file.is_file() and '"step"' in events_file.read_text())
    started.signal(1, signal.SIGINT)  # the other process than the one that writes
    done = started.wait()
    for rank in range(2):
        assert done[rank][0]["kind"] == "Interrupted", started.shown(0)
        assert "stopped after step" in done[rank][0]["error"]
        assert "result" in done[rank][1], (done, started.shown(0))
        # a reward or data file that is missing on one machine ends all, and says where
        assert done[rank][2]["kind"] in ("UserError", "PeerFailed"), done
    assert "process 1 of 2" in done[0][2]["error"] and "a fault of this one" in done[0][2]["error"]
    assert list((tmp_path / "stopped/sft/checkpoints").glob("step-*"))
    told = list(events.read(tmp_path / "fails/sft/events.jsonl"))
    warnings = [one["message"] for one in told if one["event"] == "warning"]
    [halved] = [one for one in warnings if "memory ran out" in one]
    assert "process 1 of 2" in halved and "micro_batch 2" in halved
    assert any("not finite" in one for one in warnings)
    assert any(
        one.startswith("process 1 of 2") and "odd on this machine" in one for one in warnings
    )
    assert len([one for one in told if one["event"] == "step"]) == 8
    assert not started.shown(1)


@pytest.mark.slow
def test_torchrun_starts_it_and_stops_it(tmp_path: Path) -> None:
    files = files_of(tmp_path, "torch")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node"]
    command = _command(files, "torch")
    text = _stopped([*torchrun, "2", "-m", "ondevice", *command], files)
    assert text.count("stopped after step") == 1 and text.count("2 processes: 2 on ") == 1, text
    if sys.platform != "linux":  # whose /proc tells which process is which
        return
    # and goes on with three, of which one is killed: one of the two that are left says so
    with _started([*torchrun, "3", "-m", "ondevice", *command, "--resume"], files) as process:
        _until(lambda: "3 processes: 3 on " in _text(files) and " it/s" in _text(files), process)
        os.kill(_of_rank(2, process.pid), signal.SIGKILL)
        process.wait(many.TIMEOUT)
    assert _text(files).count("another of the 3 processes has ended") == 1, _text(files)
    _goes_on(files, "torch")


def _of_rank(rank: int, launcher: int) -> int:
    """The process that a launcher has started with this number."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            words = (folder / "environ").read_bytes().split(b"\0")
        except OSError:  # it has ended meanwhile, or is another person's
            continue
        if parent == str(launcher) and f"RANK={rank}".encode() in words:
            return int(folder.name)
    raise AssertionError(f"no process {rank}")


@pytest.mark.slow
def test_mlx_launch_starts_it_and_stops_it(tmp_path: Path) -> None:
    files = files_of(tmp_path, "mlx")
    launcher = Path(sys.executable).with_name("mlx.launch")
    # the launcher numbers on from its first port
    port = next(
        first
        for first in range(23000, 29000, 7)
        if {*many.free_of(first, first + 1)} == {first, first + 1}
    )
    words = ["--hosts", "127.0.0.1,127.0.0.1", "--starting-port", str(port)]
    words += ["--python", sys.executable, "--", "-m", "ondevice", *_command(files, "mlx")]
    _stopped([sys.executable, str(launcher), *words], files)  # mlx.launch shows no more then
    _goes_on(files, "mlx")


def _command(files: Path, backend: str) -> list[str]:
    """A stage's own, that only a stop ends."""
    fields = {"sequence_length": 60, "device": "cpu", "backend": backend, "batch_size": 6}
    fields |= {"eval_every": 0, "save_every": 0, "schedule": "constant", "warmup_steps": 0}
    fields |= {"steps": 100000, "out": files.parent / "run"}
    flags = [word for name, value in fields.items() for word in (f"--{name}", str(value))]
    return ["sft", str(files / "policy"), str(files / "chats.jsonl"), *flags]


@contextmanager
def _started(words: list[str], files: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A launcher at work, whose output is `_text`."""
    with (files / "shown").open("wb") as shown:
        process = subprocess.Popen(
            words,
            stdout=shown,
            stderr=subprocess.STDOUT,
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _text(files: Path) -> str:
    return (files / "shown").read_text()


def _until(ready: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + many.TIMEOUT
    while not ready():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)


def _stopped(words: list[str], files: Path) -> str:
    """What a launcher has shown that hears a Ctrl-C at its first steps, as a terminal gives it."""
    told = files.parent / "run/sft/events.jsonl"
    with _started(words, files) as process:
        _until(lambda: told.is_file() and '"event": "step"' in told.read_text(), process)
        os.killpg(process.pid, signal.SIGINT)
        process.wait(many.TIMEOUT)
    assert list((files.parent / "run/sft/checkpoints").glob("step-*")), _text(files)
    return _text(files)


def _goes_on(files: Path, backend: str) -> None:
    """The run does, with one process, from where the launcher's have left it."""
    run = files.parent / "run"
    [newest, *_] = sorted((run / "sft/checkpoints").glob("step-*"), reverse=True)
    step = int(newest.name[5:]) + 1
    command = [*_command(files, backend), "--steps", str(step), "--resume"]
    assert cli.main(command) == 0
    assert len(losses(run, "sft")) == step
