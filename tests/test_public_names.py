"""What is pushed tells of no folder, home or name of this machine, takes nothing from outside the
folder, and claims nothing that is not so."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import ondevice
from hub_models import write_model, write_ratings, write_run
from hub_server import HubServer, Repo
from ondevice.common.errors import UserError
from ondevice.hub.client import Hub
from ondevice.hub.pull import ORIGIN
from ondevice.preferences.database import Ratings
from ondevice.preferences.votes import Response
from ondevice.publishing import background
from ondevice.publishing.model_card import run_card
from ondevice.publishing.plan import FORMAT, PENDING, PlannedFile, pending, plan_push
from ondevice.publishing.public_names import (
    parts,
    plain_values,
    short_name,
    source_names,
    sources_value,
    without_places,
)
from ondevice.runs.checkpoint import Checkpoint
from ondevice.runs.folder import RunFolder
from test_card import change, configure

MARK = "jane-doe-4711"
HOME = f"/home/{MARK}"
MIXTURES = [
    f"{HOME}/private/diary.jsonl",
    f"builtin:1,{HOME}/private/diary.jsonl:2",
    f"{HOME}/private/diary.jsonl:2, builtin:1",
    f"{HOME}/a b/diary.jsonl,{HOME}/sums.jsonl",
    f"~/{MARK}/diary.jsonl,builtin",
    f"{MARK}/x/diary.jsonl:1,builtin:{HOME}/recipe.yaml:2",
    f"hub:owner/rows:train:3,{HOME}/{MARK},x/diary.jsonl:1",
    f"{HOME}/x,{MARK}/diary.jsonl",
    f"gym:chain_sum,{HOME}/diary.jsonl",
]


def push(model: Path, repo: str = "me/m", **fields: Any) -> dict[str, Any]:
    return ondevice.push(model, repo, tell=lambda event: None, **fields)


def refused(model: Path, **fields: Any) -> str:
    with pytest.raises(UserError) as caught:
        push(model, **fields)
    return str(caught.value)


def everything(repo: Repo) -> str:
    """Every byte of every commit, its message and the tags."""
    texts = [f"{commit.title}\n{commit.message}" for commit in repo.commits] + list(repo.tags)
    return "\n".join(
        [
            *texts,
            *(
                f"{path}\n{content.decode('utf-8', 'replace')}"
                for commit in repo.commits
                for path, content in commit.files.items()
            ),
        ]
    )


# names


@pytest.mark.parametrize(
    "value, names, told",
    [
        (MIXTURES[0], ["diary.jsonl"], "diary.jsonl"),
        (MIXTURES[1], ["built-in corpus", "diary.jsonl"], "builtin:1,diary.jsonl:2"),
        (MIXTURES[2], ["diary.jsonl", "built-in corpus"], "diary.jsonl:2,builtin:1"),
        (MIXTURES[3], ["diary.jsonl", "sums.jsonl"], "diary.jsonl,sums.jsonl"),
        (MIXTURES[4], ["diary.jsonl", "built-in corpus"], "diary.jsonl,builtin"),
        (MIXTURES[5], ["diary.jsonl", "built-in corpus"], "diary.jsonl:1,builtin:recipe.yaml:2"),
        (MIXTURES[6], ["owner/rows:train", "diary.jsonl"], "hub:owner/rows:train:3,diary.jsonl:1"),
        (MIXTURES[7], ["diary.jsonl"], "diary.jsonl"),
        (MIXTURES[8], ["gym:chain_sum", "diary.jsonl"], "gym:chain_sum,diary.jsonl"),
        ("builtin:tiny", ["built-in corpus"], "builtin:tiny"),
        ("hub:a/b", ["a/b"], "hub:a/b"),
    ],
)
def test_every_source_by_its_own_name(value: str, names: list[str], told: str) -> None:
    assert source_names(value) == names and sources_value(value) == told


def test_a_file_with_a_comma_is_one_while_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt,b:2").touch()
    assert [source.data for source in parts("a.txt,b:2")] == ["a.txt,b:2"]


def test_a_home_is_a_person_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", HOME)
    assert short_name(f"{HOME}/model") == "a folder" == short_name(HOME)
    assert without_places(f"read from {HOME}/x/y.txt, and {HOME}.") == "read from y.txt, and ~."
    assert (
        without_places("1/2 of https://a.b/c/d and and/or") == "1/2 of https://a.b/c/d and and/or"
    )


def test_values_of_settings() -> None:
    given = {
        "a": f"{HOME}/x",
        "b": ["me/model", f"file://{HOME}/y"],
        "c": "/no_think",
        "d": "C:\\Users\\jane\\z",
        "e": MIXTURES[1],
        "f": "see /home/x\nand more",
        "g": 3,
        "h": "hub:a/b",
    }
    assert plain_values(given) == {
        **given,
        "a": "x",
        "b": ["me/model", "y"],
        "d": "z",
        "e": "builtin:1,diary.jsonl:2",
    }


# cards


@pytest.mark.parametrize("value", MIXTURES[1:3] + MIXTURES[4:6])
def test_a_mixture_is_not_the_corpus_alone(tmp_path: Path, value: str) -> None:
    run = write_run(tmp_path / "run")
    alone = "the built-in corpus alone"
    assert alone in run_card(run, "sft", "me/m").text
    configure(run, "pretrain", data=value, model=str(run.path / "init" / "model"))
    card = run_card(run, "sft", "me/m").text
    assert alone not in card and "diary.jsonl" in card and MARK not in card
    assert (
        "The built-in corpus is generated by ondevice" in card
        and "Licences of the other data are not" in card
    )


def test_weights_from_elsewhere_are_not_the_corpus_alone(tmp_path: Path) -> None:
    """An init stands in the run, but what was tuned began from another model."""
    run = write_run(tmp_path / "run")
    configure(run, "sft", data="builtin", model=f"{HOME}/runs/other/dpo/model")
    card = run_card(run, "sft", "me/m").text
    assert (
        "corpus alone" not in card
        and "It began from dpo; its stages: sft." in card
        and MARK not in card
    )


@pytest.mark.parametrize(
    "raters, other, alone",
    [
        (["simulated:right=1"], "", True),
        (["anna"], "", False),
        ([], "", False),
        (["simulated:right=1"], "/x/other", False),
    ],
)
def test_ratings_of_people_may_be_of_any_text(
    tmp_path: Path, raters: list[str], other: str, alone: bool
) -> None:
    run = write_run(tmp_path / "run")
    configure(run, "pretrain", data="", model="")  # learned from the run's ratings
    run.stage("init").path.rename(run.path / "sample")
    configure(run, "sample", data="builtin", other=other)
    run.recipe.write_text("stages: {sample: {}, pretrain: {}}\n")
    (run.stage("pretrain").path / "pairs.jsonl").write_text(json.dumps({"raters": raters}) + "\n")
    assert ("corpus alone" in run_card(run, "pretrain", "me/m").text) == alone


def test_licences_of_every_source(tmp_path: Path) -> None:
    run, found = write_run(tmp_path / "run"), []
    for name, licence in (("poems", "cc-by-4.0"), ("sums", "mit")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
        (tmp_path / name / f"{name}.jsonl").touch()
        found.append(f"{tmp_path}/{name}/{name}.jsonl:1")
    configure(run, "sft", data=",".join(found))
    card = run_card(run, "sft", "me/m").text
    assert (
        "The licence of poems.jsonl is cc-by-4.0" in card
        and "The licence of sums.jsonl is mit" in card
    )


def test_a_card_in_the_working_folder_is_not_that_of_data_from_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "run")
    configure(run, "sft", data="chats.jsonl")
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    monkeypatch.chdir(tmp_path)
    assert "The licence of chats.jsonl" not in run_card(run, "sft", "me/m").text


# a base is a stage's own start


def test_a_stage_that_starts_from_nothing_names_no_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend_name: str
) -> None:
    (tmp_path / ORIGIN).write_text(
        json.dumps({"repo": "someone/else", "commit": "0" * 40, "kind": "model"})
    )
    (tmp_path / "text.txt").write_text("Anna lives in Rome.\n" * 200)
    monkeypatch.chdir(tmp_path)
    ondevice.init(
        "text.txt",
        out="run",
        vocab_size=300,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        backend=backend_name,
        device="cpu",
    )
    record = json.loads(Path("run/init/done.json").read_text())
    assert (
        "base" not in record
        and "someone" not in run_card(RunFolder(Path("run")), "init", "me/m").text
    )
    # of an earlier version
    change(RunFolder(Path("run")), "init", base={"repo": "someone/else", "commit": "0" * 40})
    assert "someone" not in run_card(RunFolder(Path("run")), "init", "me/m").text


# every pushed byte


def marked_run(folder: Path, value: str) -> RunFolder:
    run = write_run(folder / MARK / "run")
    for stage in ("init", "pretrain", "sft"):
        configure(
            run,
            stage,
            data=value,
            validation=value,
            replay=value,
            tokenizer=f"{HOME}/tok",
            out=str(run.path),
            model=f"{HOME}/x/model",
            other=f"{HOME}/y",
            reward_file=f"{HOME}/r.py",
            chat_template=f"{HOME}/t.jinja",
            rewards=[f"{HOME}/r.py"],
            model_name=f"{HOME}/z",
        )
        change(
            run,
            stage,
            notes=[f"rewarded by {HOME}/judge/model", f"copied to {run.path}/pairs.jsonl"],
        )
        checkpoint = run.stage(stage).checkpoints / "step-00000004"
        (checkpoint / "model").mkdir(parents=True)
        shutil.copy(run.stage(stage).model / "model.safetensors", checkpoint / "model")
        shutil.copy(
            run.stage(stage).model / "model.safetensors", checkpoint / "optimizer.safetensors"
        )
        (checkpoint / "trainer.json").write_text(
            json.dumps(
                {
                    "step": 4,
                    "fingerprint": {"sources": [value, value], "reward_file": f"{HOME}/r.py"},
                    "out": HOME,
                }
            )
        )
        for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
            file = run.stage(stage).model / name
            file.write_text(
                json.dumps(
                    {
                        **json.loads(file.read_text()),
                        "_name_or_path": f"{HOME}/base",
                        "name_or_path": f"{MARK}/x/base",
                    }
                )
            )
    return run


@pytest.mark.parametrize(
    "value",
    [
        *MIXTURES[:1],
        *(pytest.param(value, marks=pytest.mark.slow) for value in MIXTURES[1:]),
    ],
)
def test_no_place_of_this_machine_is_pushed(
    server: HubServer, tmp_path: Path, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / MARK))
    monkeypatch.setattr("ondevice.runs.checkpoint.find_damage", lambda path: None)
    run = marked_run(tmp_path, value)
    push(run.path, "me/one", with_optimizer=True, tag="v1")
    push(run.path, "me/all", all_stages=True)
    push(run.stage("sft").model, "me/model")
    shutil.copytree(run.stage("sft").model, tmp_path / MARK / "alone")
    (tmp_path / MARK / "alone" / "README.md").write_text(
        f"---\nlicense: mit\n---\ntrained in {tmp_path / MARK}/here\n"
    )
    push(tmp_path / MARK / "alone", "me/alone")
    saved = Checkpoint(run.stage("sft").path, 4, {})
    os.link(run.stage("sft").model / "model.safetensors", run.stage("sft").path / "x")
    background.keep(run.stage("sft"), saved)
    (run.stage("sft").path / "push" / "sft").rename(
        run.stage("sft").path / "push" / "step-00000004"
    )
    assert background.drain(run.stage("sft"), "me/beside", Hub()) == 1
    sent = {name: everything(repo) for (_, name), repo in server.repos.items()}
    assert sent.keys() == {"me/one", "me/all", "me/model", "me/alone", "me/beside"}
    for name, text in sent.items():
        assert MARK not in text and str(tmp_path) not in text, (
            name,
            [line for line in text.splitlines() if MARK in line or str(tmp_path) in line],
        )
    assert "diary.jsonl" in sent["me/one"] and '"sources"' in sent["me/one"]


def test_no_place_in_a_data_set(server: HubServer, tmp_path: Path) -> None:
    folder = write_ratings(tmp_path / MARK / "run").parent
    with Ratings.open(folder) as ratings:
        item = ratings.add(
            "a", "q", [Response("x", f"{HOME}/m1"), Response("y", f"{HOME}/m2")], seed=0
        )
        ratings.vote(item, "anna", "s", "ranked", [0])
    push(folder, "me/d", dataset=True, with_raters=True)
    text = everything(server.repo("me/d", "dataset"))
    assert MARK not in text and '"m1"' in text and "anna" in text


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"base_model_name_or_path": f"{HOME}/base"}, None),
        ({"base_model_name_or_path": "../base"}, "someone/base"),
        ({"base_model_name_or_path": "{base}"}, "someone/base"),
        ({"base_model_name_or_path": "owner/name"}, "owner/name"),
        (
            {
                "fine_tune_type": "lora",
                "model": "{base}",
                "data": f"{HOME}/data",
                "adapter_path": "/a/b",
            },
            "someone/base",
        ),
    ],
)
def test_an_adapter_names_its_base_as_the_hub_does(
    server: HubServer, tmp_path: Path, fields: dict[str, str], said: str | None
) -> None:
    base, folder = write_model(tmp_path / MARK / "base"), write_model(tmp_path / MARK / "adapter")
    (base / ORIGIN).write_text(
        json.dumps({"repo": "someone/base", "commit": "1" * 40, "kind": "model"})
    )
    (folder / "config.json").unlink()
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    given = {key: value.format(base=base) for key, value in fields.items()}
    (folder / "adapter_config.json").write_text(json.dumps(given))
    if said is None:
        assert "whose base is a folder of this machine" in refused(folder)
        return
    push(folder)
    sent = json.loads(server.repo("me/m").commits[-1].files["adapter_config.json"])
    assert said in (sent.get("base_model_name_or_path"), sent.get("model"))
    assert sent.get("revision") == ("1" * 40 if said == "someone/base" else None)
    assert MARK not in everything(server.repo("me/m")) and said in everything(server.repo("me/m"))


def test_a_folder_is_no_name_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path / "runs" / "base")
    folder = write_model(tmp_path / "adapter")
    (folder / "config.json").unlink()
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "runs/base"})
    )
    monkeypatch.chdir(tmp_path)
    assert "whose base is a folder" in refused(folder)


@pytest.mark.slow
def test_tokens_and_classes_that_look_like_paths_stay(server: HubServer, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    for name, more in (
        (
            "config.json",
            {"id2label": {"0": "/business/finance"}, "label2id": {"/business/finance": 0}},
        ),
        ("tokenizer_config.json", {"pad_token": "/a/pad", "extra_special_tokens": {"x": "/b/c"}}),
    ):
        given = {**json.loads((folder / name).read_text()), **more, "_name_or_path": f"{HOME}/base"}
        (folder / name).write_text(json.dumps(given))
        push(folder)
        sent = json.loads(server.repo("me/m").commits[-1].files[name])
        assert sent == {**given, "_name_or_path": "base"}


# links

OUT = "leads out of the folder"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    file = tmp_path / "home" / "token"
    file.parent.mkdir()
    file.write_text("hf_the_secret")
    return file


def link(path: Path, to: Path | str) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(to)


@pytest.mark.parametrize(
    "name", ["LICENSE", "README.md", "config.json", "generation_config.json", "model.safetensors"]
)
@pytest.mark.parametrize("relative", [False, True])
def test_a_link_out_of_a_model_is_refused(
    server: HubServer, tmp_path: Path, secret: Path, name: str, relative: bool
) -> None:
    folder = write_model(tmp_path / "m")
    link(folder / name, "../home/token" if relative else secret)
    assert OUT in refused(folder) and name in refused(folder) and not server.repos


def test_links_that_stay_inside_are_followed(server: HubServer, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    (folder / "texts").mkdir()
    (folder / "texts" / "licence").write_text("Apache")
    link(folder / "LICENSE", "texts/licence")
    link(folder / "NOTICE", "LICENSE")
    (tmp_path / "latest").symlink_to("m")  # what a person names may be a link
    push(tmp_path / "latest")
    files = server.repo("me/m").commits[-1].files
    assert files["LICENSE"] == files["NOTICE"] == b"Apache"


def test_a_snapshot_of_the_client_s_cache_is_links_to_its_blobs(
    server: HubServer, tmp_path: Path, secret: Path
) -> None:
    repo = tmp_path / "hub" / "models--a--b"
    snapshot = write_model(repo / "snapshots" / ("0" * 40))
    (repo / "blobs").mkdir()
    for number, file in enumerate(sorted(snapshot.iterdir())):
        file.rename(repo / "blobs" / str(number))
        file.symlink_to(f"../../blobs/{number}")
    push(snapshot)
    assert "model.safetensors" in server.repo("me/m").commits[-1].files
    link(snapshot / "LICENSE", "../../blobs/x")
    link(repo / "blobs" / "x", secret)
    assert OUT in refused(snapshot)
    (repo / "blobs" / "x").unlink()
    (snapshot / "LICENSE").unlink()
    (repo / "blobs").rename(tmp_path / "home" / "blobs")
    (repo / "blobs").symlink_to(tmp_path / "home" / "blobs")
    assert OUT in refused(snapshot)


@pytest.mark.parametrize("fields", [{}, {"all_stages": True}, {"stage": "pretrain"}])
def test_a_folder_that_is_a_link_leads_out_too(
    server: HubServer, tmp_path: Path, fields: dict[str, Any]
) -> None:
    run = write_run(tmp_path / "run")
    for stage in ("pretrain", "sft"):
        run.stage(stage).model.rename(tmp_path / f"private-{stage}")
        run.stage(stage).model.symlink_to(tmp_path / f"private-{stage}")
    assert OUT in refused(run.path, **fields) and not server.repos


@pytest.mark.parametrize("name", ["done.json", "events.jsonl"])
def test_a_run_s_records_are_its_own(server: HubServer, tmp_path: Path, name: str) -> None:
    run = write_run(tmp_path / "run")
    file = run.stage("pretrain").path / name
    file.rename(tmp_path / name)
    file.symlink_to(tmp_path / name)
    assert OUT in refused(run.path) and OUT in refused(run.path, all_stages=True)


@pytest.mark.parametrize("name", ["optimizer.safetensors", "trainer.json"])
def test_an_optimizer_s_state_is_its_own(
    server: HubServer, tmp_path: Path, secret: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ondevice.runs.checkpoint.find_damage", lambda path: None)
    run = marked_run(tmp_path, "builtin")
    link(run.stage("sft").checkpoints / "step-00000004" / name, secret)
    assert OUT in refused(run.path, with_optimizer=True)
    assert OUT in refused(run.stage("sft").model, with_optimizer=True)


def test_ratings_are_the_run_s_own(server: HubServer, tmp_path: Path) -> None:
    file = write_ratings(tmp_path / "elsewhere")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "ratings.db").symlink_to(file)
    assert OUT in refused(tmp_path / "run", dataset=True)
    push(file, "me/d", dataset=True)


def test_a_link_put_there_after_the_plan(
    server: HubServer, tmp_path: Path, secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the hashes are taken, and after."""
    folder = write_model(tmp_path / "m")
    (folder / "LICENSE").write_text("x" * len(secret.read_text()))
    plan = plan_push(ondevice.config.hub.PushConfig(model=str(folder), repo_id="me/m"))
    link(folder / "LICENSE", secret)
    with pytest.raises(UserError, match=OUT):
        plan.hashed()
    for name in ("LICENSE", "model.safetensors"):
        shutil.rmtree(folder)
        write_model(folder)
        (folder / "LICENSE").write_text("x" * len(secret.read_text()))
        create = Hub.files

        def swapped(
            self: Hub, repo: str, commit: str, name: str = name, create: Any = create
        ) -> Any:
            link(folder / name, secret)
            return create(self, repo, commit)

        monkeypatch.setattr(Hub, "files", swapped)
        assert OUT in refused(folder)
        monkeypatch.setattr(Hub, "files", create)
    assert all("hf_the_secret" not in everything(repo) for repo in server.repos.values())


def test_a_record_of_a_push_takes_nothing_from_outside(
    server: HubServer, tmp_path: Path, secret: Path
) -> None:
    """`pending-push.json` in a folder from elsewhere names the files that are sent when it is
    resumed.
    """
    folder = write_model(tmp_path / "m")
    plan = plan_push(ondevice.config.hub.PushConfig(model=str(folder), repo_id="me/m"))
    taken = PlannedFile("LICENSE", secret.stat().st_size, source=str(secret))
    (folder / PENDING).write_text(
        json.dumps(
            {
                "format": FORMAT,
                "repo": "me/m",
                "kind": "model",
                "tag": "",
                "public": False,
                "folder": str(folder),
                "message": plan.message,
                "files": [vars(taken)],
                "parent": "",
                "removed": [],
            }
        )
    )
    assert pending(folder).files == (taken,)
    assert OUT in refused(folder, resume=True) and not server.repos


def test_a_push_beside_training_takes_no_link(
    server: HubServer, tmp_path: Path, secret: Path
) -> None:
    stage = write_run(tmp_path / "run").stage("sft")
    link(stage.model / "LICENSE", secret)
    with pytest.raises(UserError, match="is a link"):
        background.keep(stage, Checkpoint(stage.path, 4, {}))
    (stage.model / "LICENSE").unlink()
    elsewhere = write_model(tmp_path / "elsewhere" / "step-00000004")
    shutil.rmtree(stage.path / "push", ignore_errors=True)
    (stage.path / "push").symlink_to(elsewhere.parent)
    with pytest.raises(UserError, match=OUT):
        background.drain(stage, "me/m", Hub())
    assert elsewhere.is_dir() and not server.repos
