"""Pulls from a Hub on the loopback device: every byte as it was pushed, and nothing that could act
on this machine.
"""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

import ondevice
from hub_models import contents, write_model, write_ratings, write_run
from hub_server import HubServer
from ondevice import cli
from ondevice.common.disk import DiskFull
from ondevice.common.errors import UserError
from ondevice.data.rows import read
from ondevice.hub.pull import ORIGIN, origin
from ondevice.hub.snapshot import resolve
from ondevice.seam.protocols import Backend

WEIGHTS = {"config.json": b"{}", "model.safetensors": b"w" * 50_000}


def pull(repo: str, out: Path, **fields: Any) -> dict[str, Any]:
    return ondevice.pull(repo, out=out, tell=lambda event: None, **fields)


def refused(repo: str, out: Path, **fields: Any) -> str:
    with pytest.raises(UserError) as caught:
        pull(repo, out, **fields)
    assert not out.exists() and not list(out.parent.glob(".tmp-*"))
    return str(caught.value)


def test_there_and_back_every_byte_is_equal(server: HubServer, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    ondevice.push(run.path, "me/m", all_stages=True, tell=lambda event: None)
    done = pull("me/m", tmp_path / "back")
    back = contents(tmp_path / "back")
    assert json.loads(back.pop(ORIGIN)) == {
        "repo": "me/m",
        "commit": done["commit"],
        "kind": "model",
    }
    sent = dict(server.repo("me/m").commits[-1].files)
    sent.pop(".gitattributes")
    assert back == sent
    for stage in ("init", "pretrain", "sft"):
        for path, content in contents(run.path / stage / "model").items():
            assert back[f"{stage}/{path}"] == content
    assert not any(path.is_symlink() for path in (tmp_path / "back").rglob("*"))


@pytest.mark.slow
def test_the_model_answers_the_same(server: HubServer, tmp_path: Path, backend: Backend) -> None:
    run = write_run(tmp_path / "run")
    ondevice.push(run.path, "me/m", tell=lambda event: None)
    pull("me/m", tmp_path / "back")
    said = [
        ondevice.generate(
            model=str(model),
            prompt="Anna likes 12",
            max_new_tokens=12,
            temperature=0.0,
            backend=backend.name,
            device="cpu",
        )
        for model in (run.path, tmp_path / "back")
    ]
    assert said[0] == said[1] and said[0][0]


def test_ratings_there_and_back(server: HubServer, tmp_path: Path) -> None:
    write_ratings(tmp_path / "run")
    ondevice.push(tmp_path / "run", "me/votes", dataset=True, tell=lambda event: None)
    assert "--dataset" in refused("me/votes", tmp_path / "back")
    pull("me/votes", tmp_path / "back", dataset=True)
    rows = list(read(str(tmp_path / "back" / "data" / "train.jsonl")))
    assert len(rows) == 3 and set(rows[0][0]) == {"prompt", "chosen", "rejected"}


def test_what_was_pulled_is_a_base_that_is_named(server: HubServer, tmp_path: Path) -> None:
    ondevice.push(write_model(tmp_path / "m"), "me/m", tell=lambda event: None)
    done = pull("me/m", tmp_path / "back")
    assert origin(tmp_path / "back") == {"repo": "me/m", "commit": done["commit"], "kind": "model"}
    assert origin(tmp_path / "m") == {} == origin("")


@pytest.mark.slow
def test_a_stage_from_a_pulled_folder_tells_its_base(
    server: HubServer, tmp_path: Path, backend: Backend
) -> None:
    ondevice.push(write_run(tmp_path / "run").path, "me/base", tell=lambda event: None)
    pull("me/base", tmp_path / "base")
    (tmp_path / "chats.jsonl").write_text(
        "".join(
            json.dumps(
                {
                    "messages": [
                        {"role": "user", "content": f"Anna {n}"},
                        {"role": "assistant", "content": "12"},
                    ]
                }
            )
            + "\n"
            for n in range(20)
        )
    )
    ondevice.sft(
        tmp_path / "base",
        str(tmp_path / "chats.jsonl"),
        out=tmp_path / "mine",
        steps=1,
        batch_size=2,
        sequence_length=48,
        backend=backend.name,
        device="cpu",
    )
    ondevice.push(tmp_path / "mine", "me/mine", tell=lambda event: None)
    card = server.repo("me/mine").commits[-1].files["README.md"].decode()
    assert (
        "base_model: me/base\n" in card
        and "It began from me/base at" in card
        and "chats.jsonl" in card
    )


def test_a_revision(server: HubServer, tmp_path: Path) -> None:
    repo = server.add("me/m", WEIGHTS)
    old = repo.commits[-1].id
    repo.tags["v1"] = old
    repo.commit("next", "", {**WEIGHTS, "config.json": b'{"a": 1}'})
    for revision, wanted in (("v1", b"{}"), (old, b"{}"), ("", b'{"a": 1}')):
        out = tmp_path / f"at-{revision}"
        pull("me/m", out, revision=revision)
        assert (out / "config.json").read_bytes() == wanted
    assert "no such branch, tag or commit" in refused("me/m", tmp_path / "x", revision="v9")


@pytest.mark.parametrize(
    "path",
    [
        "../evil.json",
        "a/../../evil.json",
        "/etc/evil.json",
        "a//evil.json",
        "./evil.json",
        "a\\..\\evil.json",
        "C:evil.json",
        ".git/config.json",
        "a/evil.json\n",
        "\x1b[2Jevil.json",
        "a /evil.json",
        "con./evil.json",
        "~/evil.json",
    ],
)
def test_paths_that_leave_the_folder(server: HubServer, tmp_path: Path, path: str) -> None:
    server.add("me/m", {**WEIGHTS, path: b"{}"})
    said = refused("me/m", tmp_path / "out")
    assert "is not a path within the folder" in said
    assert not [p for p in tmp_path.rglob("*evil*")]


@pytest.mark.parametrize(
    "paths", [("a.json", "A.json"), ("a.json", "a.json/b.json"), ("A/x.json", "a")]
)
def test_paths_that_are_one_on_some_disks(
    server: HubServer, tmp_path: Path, paths: tuple[str, ...]
) -> None:
    server.add("me/m", {**WEIGHTS, **dict.fromkeys(paths, b"{}")})
    assert "stands there twice" in refused("me/m", tmp_path / "out")


def test_symbolic_links(server: HubServer, tmp_path: Path) -> None:
    server.add("me/m", {**WEIGHTS, "tokenizer.json": b"/etc/passwd"}).links.add("tokenizer.json")
    assert "'tokenizer.json' is a symbolic link or a submodule" in refused("me/m", tmp_path / "out")


def test_pickled_weights(server: HubServer, tmp_path: Path) -> None:
    server.add("me/m", {"config.json": b"{}", "pytorch_model.bin": b"cos\nsystem\n"})
    assert "its weights are pickled (pytorch_model.bin)" in refused("me/m", tmp_path / "out")
    server.add(
        "me/both",
        {**WEIGHTS, "pytorch_model.bin": b"cos\nsystem\n", "modeling.py": b"boom", ".env": b"x"},
    )
    done = pull("me/both", tmp_path / "out")
    assert sorted(done["left_out"]) == [".env", "modeling.py", "pytorch_model.bin"]
    assert set(contents(tmp_path / "out")) == {*WEIGHTS, ORIGIN}
    assert not any("pytorch_model.bin" in line for line in server.log)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("config.json", '{"auto_map": {"AutoModelForCausalLM": "modeling.X"}}'),
        ("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": ["tok.X", null]}}'),
        ("sub/config.json", '{"trust_remote_code": true}'),
    ],
)
def test_code_of_its_author(server: HubServer, tmp_path: Path, path: str, text: str) -> None:
    server.add("me/m", {**WEIGHTS, path: text.encode()})
    assert f"{path} asks for code of its author to be run" in refused("me/m", tmp_path / "out")


@pytest.mark.parametrize("path", ["config.json", "model.safetensors"])
def test_other_bytes_than_the_commit_states(server: HubServer, tmp_path: Path, path: str) -> None:
    """Whoever stands between gives as many bytes, and other ones."""
    repo = server.add("me/m", WEIGHTS)
    whole = repo.commits[-1].files[path]

    def spoil() -> None:
        repo.commits[-1].files[path] = b"x" * len(whole)

    server.ask_for("HEAD", f"/resolve/.*{path}", "pass", then=spoil)
    assert f"{path} came otherwise than its commit states" in refused("me/m", tmp_path / "out")
    repo.commits[-1].files[path] = whole
    pull("me/m", tmp_path / "out")  # the cache has not kept the others
    assert (tmp_path / "out" / path).read_bytes() == whole


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "status", "status": 500},
        {"kind": "status", "status": 429},
        {"kind": "drop"},
        {"kind": "half"},
        {"kind": "slow"},
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/revision/"),
        ("GET", "/tree/"),
        ("HEAD", "/resolve/"),
        ("GET", "/resolve/.*safetensors"),
    ],
)
def test_what_did_not_come_is_asked_for_again(
    server: HubServer, tmp_path: Path, method: str, path: str, fields: dict[str, Any]
) -> None:
    server.add("me/m", WEIGHTS)
    server.ask_for(method, path, **fields)
    pull("me/m", tmp_path / "out")
    assert {**contents(tmp_path / "out"), ORIGIN: b""} == {**WEIGHTS, ORIGIN: b""}


def test_a_folder_that_is_there_stays(server: HubServer, tmp_path: Path) -> None:
    server.add("me/m", WEIGHTS)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    os.symlink(tmp_path / "elsewhere", tmp_path / "link")
    for out in ("out", "link"):
        with pytest.raises(UserError, match="is there already"):
            pull("me/m", tmp_path / out)
    assert contents(tmp_path / "out") == {"mine": b"x"} and server.log == []


def test_no_room_on_the_disk(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add("me/m", WEIGHTS)
    monkeypatch.setattr("ondevice.hub.pull.ROOM", 1e15)
    assert "of the disk, of which" in refused("me/m", tmp_path / "out")


def test_no_room_for_a_model_that_a_stage_names(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is fetched then; what is in the cache needs no room."""
    server.add("me/m", WEIGHTS)
    with monkeypatch.context() as patch:
        patch.setattr("ondevice.hub.snapshot.ROOM", 1e15)
        with pytest.raises(DiskFull, match=r"me/m, in the Hub's cache .* of the disk, of which"):
            resolve("me/m")
    assert (folder := resolve("me/m")).is_dir()
    monkeypatch.setattr("ondevice.hub.snapshot.ROOM", 1e15)
    assert resolve("me/m") == folder


def test_a_disk_that_gets_full_leaves_nothing(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a file is put in its place, and while it is fetched into the client's cache."""
    server.add("me/m", WEIGHTS)

    def full(*given: object, **how: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("shutil.copyfile", full)
        assert "the disk is full" in refused("me/m", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.file_download._chmod_and_move", full)
        assert "the disk is full" in refused("me/m", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith((".tmp", "out"))] == []
    pull("me/m", tmp_path / "out")
    assert (tmp_path / "out").is_dir()


def test_nothing_to_take(server: HubServer, tmp_path: Path) -> None:
    server.add("me/m", {".gitattributes": b"", "run.sh": b"rm"})
    assert "holds nothing that could be used" in refused("me/m", tmp_path / "out")


def test_private_and_missing_repositories(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add("others/secret", WEIGHTS)
    assert "no such repository, or this account may not see it" in refused(
        "others/secret", tmp_path / "out"
    )
    server.add("others/open", WEIGHTS, private=False)
    monkeypatch.delenv("HF_TOKEN")
    assert "hf auth login" in refused("others/secret", tmp_path / "out")
    pull("others/open", tmp_path / "out")  # what is public needs no login


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pull"], "REPO_ID is missing"),
        (["pull", "../x"], "--repo-id: '../x' is not a name of a repository"),
        (
            ["pull", "a/b", "--revision", "a..b"],
            "--revision: 'a..b' is not a branch, tag or commit",
        ),
        (["pull", "a/b", "c"], "'c' is one word too many"),
    ],
)
def test_wrong_input_is_one_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    assert said in captured.err and captured.err.count("\n") == 1 and captured.out == ""


def test_the_command(
    server: HubServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.add("me/m", WEIGHTS)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["pull", "me/m"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "m\n" and "model.safetensors" in captured.err
    assert (tmp_path / "m" / "model.safetensors").is_file()
