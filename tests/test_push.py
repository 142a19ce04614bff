"""Pushes to a Hub on the loopback device: what is sent, what never is, and what becomes of it if
the network fails.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ondevice
from hub_models import ALLOWED, contents, write_model, write_ratings, write_run
from hub_server import READER, TOKEN, HubServer, environment
from ondevice import cli
from ondevice.common.disk import DiskFull
from ondevice.common.errors import UserError
from ondevice.common.files import sha256
from ondevice.common.redact import redacted
from ondevice.publishing.plan import PENDING, pending, plan_push
from ondevice.rewards.process import Host

Events = list[dict[str, Any]]


def push(model: Path, repo: str = "me/m", **fields: Any) -> dict[str, Any]:
    return ondevice.push(model, repo, tell=lambda event: None, **fields)


def refused(model: Path, repo: str = "me/m", **fields: Any) -> str:
    with pytest.raises(UserError) as caught:
        push(model, repo, **fields)
    return str(caught.value)


def requests(server: HubServer, word: str) -> list[str]:
    return [line for line in server.log if word in line]


# what is sent


def test_listed_files_alone_in_one_private_commit(server: HubServer, tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    for name in (
        ".env",
        "notes.txt",
        "pytorch_model.bin",
        "optimizer.safetensors",
        "trainer.json",
        "train.jsonl",
        "modeling.py",
        "model.safetensors.bak",
    ):
        (model / name).write_text("secret")
    (model / "LICENSE").write_text("Apache")
    (model / "sub").mkdir()
    (model / "sub" / "config.json").write_text("{}")
    done = push(model)
    repo = server.repo("me/m")
    assert len(repo.commits) == 2 and done["commit"] == repo.commits[-1].id
    assert sorted(repo.commits[-1].files) == sorted(
        [*ALLOWED, "LICENSE", "README.md", ".gitattributes"]
    )
    assert repo.private and done["private"]
    assert done["url"] == f"{server.address}/me/m"
    assert not (model / PENDING).exists()


def test_public_is_asked_for(server: HubServer, tmp_path: Path) -> None:
    assert push(write_model(tmp_path / "m"), public=True)["private"] is False
    assert not server.repo("me/m").private


def test_what_is_public_already_gets_nothing_by_accident(server: HubServer, tmp_path: Path) -> None:
    repo = server.add("me/m", {}, private=False)
    assert "is public already" in refused(write_model(tmp_path / "m"))
    assert len(repo.commits) == 2 and not requests(server, "PUT")
    push(tmp_path / "m", public=True)
    assert len(repo.commits) == 3


def test_a_short_name_is_one_of_mine(server: HubServer, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert push(run.path, "short")["repo"] == "me/short"
    assert (
        'from_pretrained("me/short")'
        in server.repo("me/short").commits[-1].files["README.md"].decode()
    )


def test_a_second_push_goes_on_top_and_leaves_no_old_weights(
    server: HubServer, tmp_path: Path
) -> None:
    """Two shards and their index beside one whole file would be neither model."""
    old = {
        "model-00001-of-00002.safetensors": b"a",
        "model-00002-of-00002.safetensors": b"b",
        "model.safetensors.index.json": b"{}",
        "adapter_config.json": b"{}",
        "own.txt": b"mine",
        "other/model-00001-of-00002.safetensors": b"c",
    }
    repo = server.add("me/m", old)
    done = push(write_model(tmp_path / "m"))
    assert done["removed"] == sorted(
        ["adapter_config.json", *[name for name in old if name.startswith("model")]]
    )
    assert {"own.txt", "other/model-00001-of-00002.safetensors"} <= set(repo.commits[-1].files)
    assert not {"model.safetensors.index.json", "adapter_config.json"} & set(repo.commits[-1].files)
    assert len(repo.commits) == 3
    push(tmp_path / "m")
    assert len(repo.commits) == 3  # nothing is new


def test_an_adapter_goes_where_its_base_can_be_had(server: HubServer, tmp_path: Path) -> None:
    """Its files and its base's name; a folder of this machine is of no use to others, and nobody's
    business.
    """
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    for base in (str(tmp_path / "base"), "../base"):
        (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
        assert "whose base is a folder of this machine" in refused(folder)
    mlx = tmp_path / "mlx"
    mlx.mkdir()
    (mlx / "adapters.safetensors").write_bytes(b"weights")
    (mlx / "adapter_config.json").write_text(
        json.dumps({"fine_tune_type": "lora", "model": str(tmp_path / "base")})
    )
    assert "whose base is a folder of this machine" in refused(mlx)
    assert not requests(server, "PUT") and not requests(server, "POST")
    (folder / "adapter_config.json").write_text(
        '{"base_model_name_or_path": "org/base", "peft_type": "LORA"}'
    )
    push(folder)
    files = server.repo("me/m").commits[-1].files
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(files)
    assert "base_model: org/base" in files["README.md"].decode()


@pytest.mark.slow
def test_tags(server: HubServer, tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    first = push(model, tag="step-1200")
    assert server.repo("me/m").tags == {"step-1200": first["commit"]}
    push(model, tag="step-1200")  # the same commit
    (model / "generation_config.json").write_text("{} ")
    said = refused(model, tag="step-1200")
    assert "the tag 'step-1200' is there already" in said and "all has arrived as commit" in said
    assert not (model / PENDING).exists() and "--resume" not in said


def test_a_stage_and_the_last_one(server: HubServer, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    for given, stage, wanted in (
        (run.path, "pretrain", "pretrain"),
        (run.path, "", "sft"),
        (run.path / "init", "", "init"),
        (run.path / "init" / "model", "", "init"),
    ):
        push(given, stage=stage)
        weights = server.repo("me/m").commits[-1].files["model.safetensors"]
        assert weights == (run.path / wanted / "model" / "model.safetensors").read_bytes()


def test_every_stage_in_a_folder_of_its_name(server: HubServer, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    push(run.path, all_stages=True)
    repo = server.repo("me/m")
    files = repo.commits[-1].files
    assert len(repo.commits) == 2
    for name in ("init", "pretrain", "sft"):
        assert (
            files[f"{name}/model.safetensors"]
            == (run.path / name / "model" / "model.safetensors").read_bytes()
        )
        assert f'subfolder="{name}"' in files[f"{name}/README.md"].decode()
    assert files["model.safetensors"] == files["sft/model.safetensors"]
    assert len(server.uploaded) == 3  # the last one's weights stand there twice, and were sent once
    assert "in a folder of its name" in files["README.md"].decode()


def test_the_optimizer_s_state_of_these_very_weights(server: HubServer, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    model, checkpoints = run.path / "sft" / "model", run.path / "sft" / "checkpoints"
    assert "no checkpoint with these weights" in refused(run.path, with_optimizer=True)
    for step, seed in ((1, 9), (2, 3)):
        folder = checkpoints / f"step-{step:08d}"
        write_model(folder / "model", seed)
        (folder / "optimizer.safetensors").write_text(f"moments {step}")
        (folder / "trainer.json").write_text(f'{{"step": {step}}}')
        listed = {
            str(p.relative_to(folder)): {"size": p.stat().st_size, "sha256": sha256(p)}
            for p in folder.rglob("*")
            if p.is_file()
        }
        (folder / "MANIFEST.json").write_text(json.dumps({"format": 1, "files": listed}))
    assert (checkpoints / "step-00000002/model/model.safetensors").read_bytes() == (
        model / "model.safetensors"
    ).read_bytes()
    push(run.path)
    assert "optimizer.safetensors" not in server.repo("me/m").commits[-1].files
    push(run.path, with_optimizer=True)
    assert server.repo("me/m").commits[-1].files["optimizer.safetensors"] == b"moments 2"


@pytest.mark.parametrize("with_raters", [False, True])
def test_ratings_as_a_data_set(server: HubServer, tmp_path: Path, with_raters: bool) -> None:
    write_ratings(tmp_path / "run")
    done = push(tmp_path / "run", "me/votes", dataset=True, with_raters=with_raters)
    files = server.repo("me/votes", "dataset").commits[-1].files
    rows = [json.loads(line) for line in files["data/train.jsonl"].splitlines()]
    assert len(rows) == 3 and done["url"].endswith("/datasets/me/votes")
    assert rows[0]["chosen"] == [{"role": "assistant", "content": "yes"}]
    named = "anna" in b"".join(files.values()).decode()
    assert named == with_raters
    assert set(rows[0]) >= {"prompt", "chosen", "rejected"} and ("raters" in rows[0]) == with_raters
    card = files["README.md"].decode()
    assert (
        "raters: 1 person, 1 program" in card
        and "of people 2, of programs (a rule, not a person) 1" in card
    )


def test_a_dry_run_sends_nothing(server: HubServer, tmp_path: Path) -> None:
    told = push(write_model(tmp_path / "m"), dry_run=True)
    assert (
        [f["path"] for f in told["files"]][-1] == "README.md"
        and told["private"]
        and told["login"]["name"] == "me"
    )
    assert told["bytes"] == sum(f["bytes"] for f in told["files"])
    assert server.log == ["GET /api/whoami-v2"] and not server.repos


def test_the_plan_is_what_is_sent(server: HubServer, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    events: Events = []
    ondevice.push(run.path, "me/m", tell=events.append)  # type: ignore[arg-type]
    plan = events[0]
    sent = server.repo("me/m").commits[-1].files
    assert {f["path"]: f["bytes"] for f in plan["files"]} == {
        path: len(content) for path, content in sent.items() if path != ".gitattributes"
    }
    assert [e["event"] for e in events][-3:] == ["commit", "verify", "done"]


# errors say what to do


def test_nobody_is_logged_in(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert "hf auth login" in refused(write_model(tmp_path / "m"))
    assert server.log == []
    assert "hf auth login" in push(tmp_path / "m", dry_run=True)["login"]["text"]


def test_a_login_that_is_not_known(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_unknownunknownunknown")
    said = refused(write_model(tmp_path / "m"))
    assert "does not know this login" in said and "hf auth login" in said


def test_a_token_that_may_only_read(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", READER)
    said = refused(write_model(tmp_path / "m"), "reader/m")
    assert "may only read" in said and "https://huggingface.co/settings/tokens" in said


def test_no_right_to_write_there(server: HubServer, tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    assert "may not make a repository for 'others'" in refused(model, "others/m")
    server.add("others/theirs", {}, private=False)
    assert "this account may not do that here" in refused(model, "others/theirs", public=True)


def test_a_name_that_is_taken(server: HubServer, tmp_path: Path) -> None:
    server.taken.add("me/m")
    assert "the name is taken by what this account may not see (give another name)" in refused(
        write_model(tmp_path / "m")
    )


@pytest.mark.parametrize(
    ("status", "message"), [(402, "pay"), (403, "private storage limit reached"), (413, "large")]
)
def test_no_room(server: HubServer, tmp_path: Path, status: int, message: str) -> None:
    server.ask_for(
        "POST",
        "/commit/",
        "status",
        status=status,
        message=message,
        headers={"X-Error-Message": message},
    )
    said = refused(write_model(tmp_path / "m"))
    assert "there is no room left" in said and "billing" in said


def test_a_full_disk_is_found_before_anything_is_sent(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record of what a push is to send is what it writes here."""

    def full(path: Path, text: str) -> None:
        raise DiskFull(path)

    with monkeypatch.context() as patch:
        patch.setattr("ondevice.publishing.plan.write_file", full)
        said = refused(write_model(tmp_path / "m"))
    assert "pending-push.json: the disk is full" in said and requests(server, "commit") == []


def test_no_network(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    said = refused(write_model(tmp_path / "m"))
    assert "the Hub cannot be reached" in said and "is there a network?" in said


def test_offline_is_told(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refused(write_model(tmp_path / "m"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["push"], "MODEL is missing"),
        (["push", "{m}"], "--repo-id: no repository was named"),
        (["push", "{m}", "a/b/c"], "--repo-id: 'a/b/c' is not a name of a repository"),
        (["push", "{m}", "a--b"], "--repo-id: 'a--b' is not a name"),
        (["push", "{m}", "me/m", "--tag", "a b"], "--tag: 'a b' cannot be a tag"),
        (["push", "{m}", "me/m", "--stage", "sft"], "is a model's folder: it has no stages"),
        (
            ["push", "{run}", "me/m", "--stage", "sfd"],
            "has no finished stage 'sfd' with a model (did you mean 'sft'?)",
        ),
        (
            ["push", "{run}", "me/m", "--stage", "sft", "--all-stages"],
            "--all-stages: does not go with --stage",
        ),
        (["push", "{run}", "me/m", "--with-raters"], "--with-raters: is about ratings"),
        (["push", "{run}", "me/m", "--dataset"], "no such ratings database"),
        (["push", "{nothing}", "me/m"], "there is no such folder"),
        (["push", "{empty}", "me/m"], "holds no model"),
        (["push", "{pickled}", "me/m"], "pickled weights are not read"),
        (["push", "{m}", "--resume"], "no push was interrupted here"),
        (["push", "{m}", "me/m", "--publik"], "unknown flag '--publik' (did you mean '--public'?)"),
    ],
)
def test_wrong_input_is_one_line(
    tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {
        "m": write_model(tmp_path / "m"),
        "run": write_run(tmp_path / "run").path,
        "empty": tmp_path / "empty",
        "nothing": tmp_path / "nothing",
        "pickled": write_model(tmp_path / "pickled"),
    }
    places["empty"].mkdir()
    (places["pickled"] / "model.safetensors").rename(places["pickled"] / "pytorch_model.bin")
    assert cli.main([word.format(**places) for word in words]) == 2
    captured = capsys.readouterr()
    assert said in captured.err and captured.err.count("\n") == 1 and captured.out == ""


# the command


def command(env: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ondevice", *words],
        capture_output=True,
        text=True,
        env=env,
        timeout=120,
    )


@pytest.mark.slow
def test_the_command_and_its_lines(server: HubServer, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    env = environment(server, tmp_path / "hf")
    done = command(env, "push", str(run.path), "m")
    assert (done.returncode, done.stdout) == (0, f"{server.address}/me/m\n"), done.stderr
    assert "me/m  (model, private)" in done.stderr and "comparing hashes" in done.stderr
    lines = command(env, "push", str(run.path), "m", "--stage", "init", "--lines")
    events = [json.loads(line) for line in lines.stdout.splitlines()]
    assert [e["event"] for e in events] == [
        "plan",
        "file",
        "commit",
        "verify",
        "done",
    ] and lines.stderr == ""
    plain = json.loads(command(env, "push", str(run.path), "m", "--dry-run", "--json").stdout)
    assert plain["login"]["name"] == "me" and plain["files"]


@pytest.mark.slow
def test_the_token_is_nowhere(server: HubServer, tmp_path: Path) -> None:
    """The canary: not on any outcome's output, nor in any file that is left, nor in a traceback of
    ours.
    """
    run = write_run(tmp_path / "run")
    env = environment(server, tmp_path / "hf")
    said = []
    outcomes: list[dict[str, Any]] = [
        {},
        {"kind": "status", "status": 400, "message": f"wrong {TOKEN}"},
        {"kind": "status", "status": 412},
        {"kind": "status", "status": 403, "headers": {"X-Error-Message": f"no {TOKEN}"}},
    ]
    for fields in outcomes:
        if fields:
            server.ask_for("POST", "/commit/", **fields)
        done = command(
            env, "push", str(run.path), "m", "--stage", "init" if fields else "sft", "--lines"
        )
        said += [done.stdout, done.stderr]
    ours = (
        "import sys, ondevice.hub.client as h\nfrom ondevice.cli import main\n"
        f"def fail(*a, **k): raise KeyError('{TOKEN}')\n"
        "h.Hub.look = fail\nsys.exit(main(sys.argv[1:]))"
    )
    broken = subprocess.run(
        [sys.executable, "-c", ours, "push", str(run.path), "m"],
        capture_output=True,
        text=True,
        env=env,
        timeout=120,
    )
    assert broken.returncode == 1 and "KeyError: 'hf_…'" in broken.stderr
    said += [broken.stdout, broken.stderr]
    assert TOKEN not in "".join(said) and "hf_…" in "".join(said)
    for path, content in contents(tmp_path).items():
        assert TOKEN.encode() not in content, path
    for repo in server.repos.values():
        for commit in repo.commits:
            assert all(TOKEN.encode() not in content for content in commit.files.values())


def test_a_person_s_reward_file_gets_no_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    (tmp_path / "reward.py").write_text(
        "import os\ndef reward(prompts, completions, **columns):\n"
        "    return [float('HF_TOKEN' in os.environ) for _ in completions]\n"
    )
    host = Host(tmp_path / "reward.py", timeout=60)
    try:
        (function,) = host.start()
        assert host.call(function.name, {"prompts": ["p"], "completions": ["c"]}) == [0.0]
    finally:
        host.close()


def test_what_looks_like_a_token_is_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "eyJ.an-odd.token")
    assert redacted("a hf_abcDEF123456 b eyJ.an-odd.token c") == "a hf_… b hf_… c"
    assert redacted("half_life of hf_x") == "half_life of hf_x"


def test_nothing_is_lost_in_the_record(tmp_path: Path) -> None:
    from ondevice.config.hub import PushConfig

    run = write_run(tmp_path / "run")
    plan = plan_push(PushConfig(model=str(run.path), repo_id="me/m", tag="t", public=True)).hashed()
    plan.keep()
    assert pending(run.path) == plan and pending(run.path).mark == plan.mark
