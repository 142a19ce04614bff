"""Pushes over a network that fails, and pushes that are killed: everything arrives once or not at
all, and goes on where it was.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import ondevice
from hub_models import write_model, write_run, write_stage
from hub_server import HubServer, Repo, environment
from ondevice.common.errors import Interrupted, UserError
from ondevice.hub import client
from ondevice.publishing.plan import PENDING, Plan, pending, plan_push
from ondevice.runs.folder import RunFolder
from test_push import command, push, refused, requests


def once(server: HubServer, repo: str = "me/m") -> Repo:
    """The repository, which has got the push's commit once."""
    found = server.repo(repo)
    assert [client.TRAILER in c.message for c in found.commits] == [False, True]
    return found


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "status", "status": 500},
        {"kind": "status", "status": 503, "times": 2},
        {"kind": "status", "status": 429},
        {"kind": "status", "status": 409},
        {"kind": "drop"},
        {"kind": "lose"},
        {"kind": "half"},
        {"kind": "slow"},
    ],
)
def test_a_commit_lands_once_whatever_happens_to_its_reply(
    server: HubServer, tmp_path: Path, fields: dict[str, Any]
) -> None:
    model = write_model(tmp_path / "m")
    server.ask_for("POST", "/commit/", **fields)
    done = push(model)
    repo = once(server)
    assert done["commit"] == repo.commits[-1].id and not (model / PENDING).exists()
    assert len(server.uploaded) == 1


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/whoami-v2", "/repos/create", "/revision/", "/tree/"])
@pytest.mark.parametrize(
    "fields", [{"kind": "drop"}, {"kind": "status", "status": 502}, {"kind": "half"}]
)
def test_a_question_is_asked_again(
    server: HubServer, tmp_path: Path, path: str, fields: dict[str, Any]
) -> None:
    server.ask_for("POST" if "create" in path else "GET", path, **fields)
    push(write_model(tmp_path / "m"))
    once(server)


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "status", "status": 500},
        {"kind": "drop"},
        {"kind": "lose"},
        {"kind": "status", "status": 429},
    ],
)
def test_large_files_are_sent_again(
    server: HubServer, tmp_path: Path, fields: dict[str, Any]
) -> None:
    """The client itself does this."""
    server.ask_for("PUT", "/lfs/", **fields)
    push(write_model(tmp_path / "m"))
    once(server)


def test_the_server_says_how_long_to_wait() -> None:
    assert client.retry_delay(1.0, client.NoReply("429", 30.0)) == 30.0
    assert client.retry_delay(4.0, client.NoReply("500")) == 4.0
    assert client.retry_delay(1.0, client.NoReply("429", 1e9)) == client.LONGEST_WAIT_S


@pytest.mark.parametrize("path", ["/revision/", "/commit/"])
def test_it_waits_longer_each_time(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    waits: list[float] = []
    for module in ("hub.client", "publishing.push"):
        monkeypatch.setattr(f"ondevice.{module}.time", SimpleNamespace(sleep=waits.append))
    monkeypatch.setattr(client, "WAITS_S", (1.0, 2.0, 4.0))
    server.ask_for("POST" if path == "/commit/" else "GET", path, "status", status=503, times=2)
    server.ask_for(
        "POST" if path == "/commit/" else "GET",
        path,
        "status",
        status=429,
        headers={"Retry-After": "9", "X-Error-Message": "slower"},
    )
    push(write_model(tmp_path / "m"))
    assert waits == [1.0, 2.0, 9.0]
    once(server)


def test_somebody_else_s_commit_is_a_conflict(server: HubServer, tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    repo = server.add("me/m", {"own.txt": b"mine"})
    server.ask_for(
        "POST", "/commit/", "pass", then=lambda: repo.commit("theirs", "", {"own.txt": b"theirs"})
    )
    said = refused(model)
    assert "somebody has changed the repository" in said and "nothing was overwritten" in said
    assert [c.title for c in repo.commits] == ["initial commit", "files", "theirs"]
    assert not (model / PENDING).exists()
    push(model)  # on top of what came in
    assert repo.commits[-1].files["own.txt"] == b"theirs"


def test_a_commit_on_top_of_the_one_that_was_lost(server: HubServer, tmp_path: Path) -> None:
    """Ours had landed, its reply was lost, and somebody went on from it at once."""
    repo = server.add("me/m", {})
    server.ask_for("POST", "/commit/", "lose")
    server.ask_for("GET", "/revision/main", "pass", times=0)
    after = server.trouble[-1]

    def follow() -> None:
        repo.commit("theirs", "", {**repo.commits[-1].files, "own.txt": b"theirs"})

    server.trouble[0].then = lambda: (setattr(after, "times", 1), setattr(after, "then", follow))[0]
    done = push(write_model(tmp_path / "m"))
    assert done["commit"] == repo.commits[-2].id and repo.commits[-1].title == "theirs"


@pytest.mark.slow
def test_what_was_given_up_goes_on_without_sending_again(server: HubServer, tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    server.ask_for("POST", "/commit/", "status", status=500, times=99)
    said = refused(model, tag="v1")
    assert "the Hub cannot be reached: 500" in said and f"ondevice push {model} --resume" in said
    assert (model / PENDING).is_file() and len(server.repo("me/m").commits) == 1
    server.trouble.clear()
    server.log.clear()
    done = push(model, "", resume=True)
    assert once(server).tags == {"v1": done["commit"]} and not (model / PENDING).exists()
    assert not requests(server, "PUT /lfs/")


def test_resume_of_a_push_that_landed(server: HubServer, tmp_path: Path) -> None:
    """Killed between the commit and the look at it."""
    model = write_model(tmp_path / "m")
    server.ask_for("GET", "/tree/", "status", status=400, times=0)
    server.ask_for("POST", "/commit/", "pass", then=lambda: setattr(server.trouble[0], "times", 99))
    assert "--resume goes on" in refused(model)
    server.trouble.clear()
    done = push(model, "me/m", resume=True)
    assert done["commit"] == once(server).commits[-1].id


@pytest.mark.slow
def test_resume_sends_what_was_planned_or_nothing(server: HubServer, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    model = run.path / "sft" / "model"
    assert "no push was interrupted here" in refused(run.path, resume=True)
    server.ask_for("POST", "/commit/", "status", status=500, times=99)
    refused(run.path)
    planned = {f.path: f.text for f in pending(run.path).files if f.text}
    server.trouble.clear()
    # the run has gone on: the card of the push is the one that was planned
    write_stage(run.stage("dpo"), 4)
    assert "goes to me/m" in refused(run.path, "me/other", resume=True)
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[:-1] + b"x")
    said = refused(run.path, resume=True)
    assert "has changed since the push began (push without --resume)" in said
    (model / "model.safetensors").write_bytes(weights)
    push(run.path, "", resume=True)
    files = once(server).commits[-1].files
    assert {path: files[path].decode() for path in planned} == planned


def interrupted(server: HubServer, path: Path, **fields: Any) -> None:
    server.ask_for("POST", "/commit/", "status", status=500, times=99)
    refused(path, **fields)
    server.trouble.clear()


@pytest.mark.slow
def test_a_resume_takes_the_flags_of_the_push_and_refuses_others_by_name(
    server: HubServer, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run")
    asked: dict[str, Any] = {"stage": "sft", "public": True, "tag": "v1", "license": "mit"}
    interrupted(server, run.path, **asked)
    for name, value, had in (
        ("stage", "init", "'sft'"),
        ("tag", "v2", "'v1'"),
        ("license", "apache-2.0", "'mit'"),
        ("with_optimizer", True, "'none'"),
        ("dataset", True, "'none'"),
    ):
        same = {
            key: given for key, given in asked.items() if not (name == "dataset" and key == "stage")
        }
        said = refused(run.path, resume=True, **{**same, name: value})
        assert (
            said.startswith(f"{name}: ") and f"goes on as it was planned, and had {had}" in said
        ), said
        assert "push without --resume" in said
    assert not server.repo("me/m").tags
    push(run.path, resume=True, **asked)
    assert set(server.repo("me/m").tags) == {"v1"} and not server.repo("me/m").private


@pytest.mark.slow
def test_a_resume_of_all_stages_or_ratings_takes_their_flags(
    server: HubServer, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run")
    interrupted(server, run.path, all_stages=True)
    assert refused(run.path, resume=True, stage="sft").startswith(
        "stage: the push that was interrupted"
    )
    push(run.path, "", resume=True, all_stages=True)
    interrupted(server, run.path)  # of the last stage, which was not named
    newest = pending(run.path).settings["stage"]
    assert newest and refused(run.path, resume=True, all_stages=True).startswith("all_stages: ")
    push(run.path, "", resume=True, stage=newest)


@pytest.mark.slow
def test_a_record_that_does_not_say_what_was_asked_for_refuses_the_flag(
    server: HubServer, tmp_path: Path
) -> None:
    model = write_model(tmp_path / "m")
    interrupted(server, model, tag="v1")
    record = json.loads((model / PENDING).read_text())
    del record["settings"]  # as an earlier version wrote it
    (model / PENDING).write_text(json.dumps(record))
    assert (
        "license: the push that was interrupted goes on as it was planned, and does not say what it had"
        in refused(model, resume=True, license="mit")
    )
    push(model, resume=True, tag="v1")


def test_ctrl_c_says_how_to_go_on(server: HubServer, tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")

    def tell(event: Any) -> None:
        if event["event"] == "commit":
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="--resume goes on with it"):
        ondevice.push(model, "me/m", tell=tell)
    push(model, "", resume=True)
    once(server)


@pytest.mark.parametrize("record", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "files": 3}'])
def test_a_damaged_record_is_told(tmp_path: Path, record: str) -> None:
    model = write_model(tmp_path / "m")
    (model / PENDING).write_text(record)
    with pytest.raises(UserError, match="cannot be read"):
        pending(model)


def test_hashes_are_compared_in_the_end(server: HubServer, tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    repo = server.add("me/m", {})

    def spoil() -> None:
        files = repo.commits[-1].files
        if "config.json" in files:
            files["config.json"] += b" "

    server.ask_for("GET", "/tree/", "pass", times=9, then=spoil)
    assert "arrived otherwise than it was sent: config.json" in refused(model)


# killed anywhere

POINTS = [(number, when) for number in range(1, 15) for when in ("before", "after", "half")]
KILLED = random.Random(0).sample(POINTS, 20)


def at(point: tuple[int, str]) -> str:
    return f"{point[0]}-{point[1]}"


@pytest.mark.slow
@pytest.mark.parametrize("point", KILLED[:7], ids=at)
def test_killed_anywhere_the_remote_has_all_or_nothing(
    server: HubServer, tmp_path: Path, point: tuple[int, str]
) -> None:
    all_or_nothing(server, tmp_path, point)


@pytest.mark.slow
@pytest.mark.parametrize("point", KILLED[7:], ids=at)
def test_killed_elsewhere_the_remote_has_all_or_nothing(
    server: HubServer, tmp_path: Path, point: tuple[int, str]
) -> None:
    all_or_nothing(server, tmp_path, point)


def all_or_nothing(server: HubServer, tmp_path: Path, point: tuple[int, str]) -> None:
    run = write_run(tmp_path / "run")
    env = environment(server, tmp_path / "hf")
    server.kill_at = point
    words = [sys.executable, "-m", "ondevice", "push", str(run.path), "me/m", "--tag", "v1"]
    with subprocess.Popen(
        words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        server.victim = process.pid
        process.wait(timeout=120)
    assert server.killed, server.log
    planned = plan_push_of(run, env)
    repo = server.repos.get(("model", "me/m"))
    for commit in repo.commits[1:] if repo else ():
        assert {
            path: len(c) for path, c in commit.files.items() if path != ".gitattributes"
        } == planned
    sent = set(server.uploaded)
    began = (run.path / PENDING).is_file()
    again = command(env, *words[3:5], *(["--resume"] if began else ["me/m", "--tag", "v1"]))
    assert again.returncode == 0, again.stderr
    repo = once(server)
    assert {
        path: len(c) for path, c in repo.commits[-1].files.items() if path != ".gitattributes"
    } == planned
    assert repo.tags == {"v1": repo.commits[-1].id} and not (run.path / PENDING).exists()
    assert len(server.uploaded) == len(set(server.uploaded)) and sent <= set(server.uploaded)


def plan_push_of(run: RunFolder, env: dict[str, str]) -> dict[str, int]:
    from ondevice.config.hub import PushConfig

    plan: Plan = plan_push(PushConfig(model=str(run.path), repo_id="me/m"))
    return {file.path: file.size for file in plan.files}
