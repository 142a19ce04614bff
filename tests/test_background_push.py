"""Pushes beside the training: finished checkpoints arrive one after the other, and whatever becomes
of them, the training neither waits nor fails."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import ondevice
from hub_models import contents, write_model, write_run, write_stage
from hub_server import TOKEN, HubServer, environment
from ondevice.common.errors import UserError
from ondevice.config.finetuning import SFTConfig
from ondevice.config.load import from_mapping
from ondevice.hub.client import Hub
from ondevice.publishing import background
from ondevice.publishing.plan import PENDING
from ondevice.runs import checkpoint
from ondevice.runs.checkpoint import Checkpoint
from ondevice.runs.folder import RunFolder, StageFolder


@pytest.fixture
def stage(tmp_path: Path) -> StageFolder:
    """An sft that is under way."""
    run = write_run(tmp_path / "run")
    return write_stage(run.stage("grpo"), 4, done=False)


def saved(stage: StageFolder, step: int) -> Checkpoint:
    """A whole checkpoint, as the loop saves it."""

    def write(folder: Path) -> None:
        write_model(folder / "model", seed=step)
        (folder / "optimizer.safetensors").write_bytes(b"moments")

    return checkpoint.save(stage.checkpoints, step, write, {"step": step}, keep=2, best=None)


class Started:
    """Stands in for the pushing process: it has not ended, or ended with `code`."""

    def __init__(self, code: int | None) -> None:
        self.code = code

    def poll(self) -> int | None:
        return self.code


def test_checkpoints_arrive_in_their_order(server: HubServer, stage: StageFolder) -> None:
    for step in (10, 20):
        background.keep(stage, saved(stage, step))
    wanted = [contents(path / "model") for path in checkpoint.steps(stage.checkpoints)]
    assert background.drain(stage, "runs", Hub()) == 2
    repo = server.repo("me/runs")
    assert repo.private
    assert [c.title for c in repo.commits[1:]] == [
        "Push run: grpo, step 10",
        "Push run: grpo, step 20",
    ]
    assert repo.tags == {"grpo-step-10": repo.commits[1].id, "grpo-step-20": repo.commits[2].id}
    for commit, files in zip(repo.commits[1:], wanted, strict=True):
        assert {path: commit.files[path] for path in files} == files
        assert "optimizer.safetensors" not in commit.files
    assert "step 20" in repo.commits[-1].files["README.md"].decode()
    assert checkpoint.steps(stage.path / "push") == []


@pytest.mark.slow
def test_what_did_not_arrive_stays_and_comes_first(server: HubServer, stage: StageFolder) -> None:
    background.keep(stage, saved(stage, 10))
    server.ask_for("POST", "/commit/", "status", status=500, times=99)
    with pytest.raises(UserError, match="cannot be reached"):
        background.drain(stage, "me/runs", Hub())
    (waits,) = checkpoint.steps(stage.path / "push")
    assert (waits / PENDING).is_file()
    server.trouble.clear()
    background.keep(stage, saved(stage, 20))
    assert background.drain(stage, "me/runs", Hub()) == 2
    assert list(server.repo("me/runs").tags) == ["grpo-step-10", "grpo-step-20"]
    assert len(server.uploaded) == 2


@pytest.mark.slow
def test_a_stage_that_is_run_again_comes_by_the_same_steps(
    server: HubServer, stage: StageFolder
) -> None:
    """Its first tags stay where they are, and hold nothing up."""
    background.keep(stage, saved(stage, 10))
    background.drain(stage, "me/runs", Hub())
    first = server.repo("me/runs").commits[-1].id
    for seed in (77, 20):
        target = background.keep(stage, saved(stage, 10 if seed == 77 else 20))
        write_model(target, seed)
    assert background.drain(stage, "me/runs", Hub()) == 2
    repo = server.repo("me/runs")
    assert len(repo.commits) == 4 and repo.tags == {
        "grpo-step-10": first,
        "grpo-step-20": repo.commits[-1].id,
    }


def test_a_checkpoint_that_is_pruned_meanwhile_still_arrives(
    server: HubServer, stage: StageFolder
) -> None:
    background.keep(stage, saved(stage, 10))
    for step in (20, 30, 40):
        saved(stage, step)
    assert "step-00000010" not in [path.name for path in checkpoint.steps(stage.checkpoints)]
    assert background.drain(stage, "me/runs", Hub()) == 1


def test_few_wait(stage: StageFolder) -> None:
    for step in range(10, 80, 10):
        background.keep(stage, saved(stage, step))
    names = [path.name for path in checkpoint.steps(stage.path / "push")]
    assert names == ["step-00000050", "step-00000060", "step-00000070"]
    for path in checkpoint.steps(stage.path / "push"):
        (path / PENDING).write_text("{}")
    for step in range(80, 150, 10):
        background.keep(stage, saved(stage, step))
    assert len(checkpoint.steps(stage.path / "push")) <= 2 * background.WAITING


def test_when_it_is_time(stage: StageFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    kept: list[int] = []
    monkeypatch.setattr(
        background, "start", lambda stage, repo: started.append(repo) or Started(None)
    )
    monkeypatch.setattr(background, "keep", lambda stage, saved: kept.append(saved.step))
    beside = background.BackgroundPusher(stage, "me/runs", 20, print)
    for step in (10, 20, 30, 45, 50, 55):
        beside.on_save(Checkpoint(stage.path / f"step-{step:08d}", step, {}), last=step == 55)
    assert kept == [20, 45, 55]
    resumed = background.BackgroundPusher(stage, "me/runs", 20, print)
    resumed.on_train_begin(SimpleNamespace(adapter=None), 45)  # type: ignore[arg-type]
    resumed.on_save(Checkpoint(stage.path / "step-00000050", 50, {}), last=False)
    assert kept == [20, 45, 55]  # what came before the resume has been offered
    # the one under way takes what comes; the last one's process waits its turn
    assert started == ["me/runs"] * 2


def test_a_failure_is_a_warning(stage: StageFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    warned: list[str] = []
    beside = background.BackgroundPusher(stage, "me/runs", 10, warned.append)
    monkeypatch.setattr(background, "start", lambda stage, repo: Started(2))
    (stage.path / "push.log").write_text("one\nnobody is logged in\x1b[2J\n")
    beside.on_save(saved(stage, 10), last=False)
    beside.on_save(saved(stage, 20), last=False)
    assert len(warned) == 1 and "nobody is logged in" in warned[0] and "\x1b" not in warned[0]

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(background, "keep", full)
    beside.on_save(saved(stage, 30), last=False)
    assert "step 30 was not pushed: [Errno 28] No space left on device" in warned[-1]


def test_its_log_holds_no_token(
    server: HubServer,
    stage: StageFolder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Neither of what the Hub answers, nor of a fault of ours."""
    background.keep(stage, saved(stage, 10))
    server.ask_for("POST", "/commit/", "status", status=400, message=f"wrong {TOKEN}")
    assert background.main([str(stage.path), "me/runs"]) == 2

    def fault(*_: Any) -> None:
        raise KeyError(TOKEN)

    monkeypatch.setattr(Hub, "look", fault)
    assert background.main([str(stage.path), "me/runs"]) == 1
    said = capsys.readouterr().out
    assert TOKEN not in said and said.count("hf_…") >= 2 and "KeyError: 'hf_…'" in said
    assert all(TOKEN.encode() not in content for content in contents(stage.path).values())


def test_the_settings() -> None:
    cfg = from_mapping(SFTConfig, {"push_every": 100, "push_to": "me/runs"})
    assert (cfg.push_every, cfg.push_to) == (100, "me/runs")
    for fields, said in (
        ({"push_every": 5}, "push_every: needs a repository"),
        ({"push_every": -1}, "push_every: -1 is too small"),
        ({"push_every": 5, "push_to": "a/b/c"}, "push_to: 'a/b/c' is not a name of a repository"),
    ):
        with pytest.raises(UserError) as caught:
            from_mapping(SFTConfig, fields)
        assert str(caught.value).startswith(said)


@pytest.mark.slow
@pytest.mark.parametrize("works", [True, False])
def test_a_stage_that_pushes(
    server: HubServer,
    tmp_path: Path,
    backend_name: str,
    monkeypatch: pytest.MonkeyPatch,
    works: bool,
) -> None:
    """A real training: its checkpoints arrive from another process; with nobody logged in it trains
    all the same.
    """
    import small_stages
    from ondevice.seam.select import load_backend

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.delenv("HF_TOKEN")
    for name, value in environment(server, tmp_path / "hf", TOKEN if works else "").items():
        monkeypatch.setenv(name, value)
    files = small_stages.make(tmp_path / "files", load_backend(backend_name, "cpu", "float32"))
    ondevice.sft(
        files / "policy",
        str(files / "chats.jsonl"),
        out=tmp_path / "run",
        steps=4,
        save_every=2,
        eval_every=0,
        batch_size=2,
        sequence_length=60,
        backend=backend_name,
        device="cpu",
        push_every=2,
        push_to="me/runs",
    )
    stage = RunFolder(tmp_path / "run").stage("sft")
    wait_for_the_last(stage)
    if works:
        assert server.repo("me/runs").tags.keys() == {"sft-step-2", "sft-step-4"}
        assert checkpoint.steps(stage.path / "push") == []
        done = json.loads(stage.done.read_text())
        assert "push_every" not in done["fingerprint"]
    else:
        assert "nobody is logged in" in background.last_words(stage) and stage.done.is_file()


def wait_for_the_last(stage: StageFolder) -> None:
    """Waits until nobody pushes any more."""
    import fcntl
    import time

    for _ in range(1800):
        time.sleep(0.1)
        said = (stage.path / "push.log").read_text() if (stage.path / "push.log").is_file() else ""
        lock = stage.path.parent / ".push.lock"
        if not said or not lock.is_file():
            continue
        descriptor = os.open(lock, os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        finally:
            os.close(descriptor)
        if not checkpoint.steps(stage.path / "push") or said.count("logged in") == 2:
            return
    raise AssertionError(f"it never ended: {said}")
