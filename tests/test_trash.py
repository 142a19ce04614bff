"""The space that runs take, and runs that are moved away and come back."""

from __future__ import annotations

import errno
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import ondevice as od
from ondevice import cli
from ondevice.common.disk import space_of
from ondevice.common.errors import UserError
from ondevice.runs import trash
from ondevice.runs.events import EventWriter
from ondevice.runs.folder import RunFolder, StageFolder


def a_run(folder: Path, name: str, *, done: bool = True, **config: object) -> StageFolder:
    stage = RunFolder(folder / name).stage("sft").create()
    stage.lock.write_text("")
    with EventWriter(stage.events) as events:
        events.emit("start", 0, stage="sft", steps=2, config=config)
        events.emit("step", 1, loss=2.0)
    stage.model.mkdir()
    (stage.model / "config.json").write_text("{}")
    (stage.model / "model.safetensors").write_bytes(b"x" * 100_000)
    if done:
        stage.done.write_text('{"fingerprint": {}}')
    return stage


def an_adapter(stage: StageFolder, base: Path) -> None:
    config = {"base_model_name_or_path": str(base)}
    (stage.model / "adapter_config.json").write_text(json.dumps(config))


def everything(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# space


def test_space_counts_a_file_once_and_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "big").write_bytes(b"x" * 1_000_000)
    run = tmp_path / "runs" / "a"
    run.mkdir(parents=True)
    (run / "one").write_bytes(b"x" * 200_000)
    alone = space_of(run)
    assert 200_000 <= alone < 300_000
    os.link(run / "one", run / "two")
    (run / "link").symlink_to(tmp_path / "elsewhere")
    (run / "file").symlink_to(tmp_path / "elsewhere" / "big")
    assert space_of(run) < alone + 20_000
    with open(run / "nothing", "wb") as sparse:
        sparse.truncate(1 << 40)
    assert space_of(run) < alone + 40_000
    (run / "loop").symlink_to(run)
    assert space_of(run) < alone + 60_000
    assert space_of(run / "one") >= 200_000
    with pytest.raises(OSError):
        space_of(tmp_path / "missing")


def test_runs_tell_their_space(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a_run(tmp_path, "a")
    [run] = od.list_runs(tmp_path)
    assert run["bytes"] == space_of(tmp_path / "a") > 100_000
    assert cli.main(["runs", "--folder", str(tmp_path)]) == 0
    assert f"{tmp_path / 'a'}  1" in capsys.readouterr().out
    assert cli.main(["runs", "--folder", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["bytes"] == run["bytes"]


# away and back


def test_there_and_back_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b", "c"):
        a_run(tmp_path, name)
    before = everything(tmp_path)
    words = ["--folder", str(tmp_path)]
    assert cli.main(["runs", "rm", "a", "b", *words]) == 0
    assert "runs restore a" in capsys.readouterr().out
    assert [run["run"] for run in od.list_runs(tmp_path)] == ["c"]
    assert [one["run"] for one in trash.entries(tmp_path)] == ["a", "b"]
    for name in ("a", "b"):
        assert cli.main(["runs", "restore", name, *words]) == 0
    assert everything(tmp_path) == before
    assert list((tmp_path / trash.TRASH).iterdir()) == []


def test_two_of_one_name_do_not_stand_in_each_others_way(tmp_path: Path) -> None:
    for loss in (1, 2, 3):
        a_run(tmp_path, "a").path.joinpath("which").write_text(str(loss))
        od.remove_runs("a", folder=tmp_path)
    found = [one["entry"] for one in trash.entries(tmp_path)]
    assert len(set(found)) == 3
    assert (od.restore_run("a", tmp_path) / "sft" / "which").read_text() == "3"  # moved last
    with pytest.raises(UserError, match=r"stands there already.*runs rm a"):
        od.restore_run("a", tmp_path)
    od.remove_runs("a", folder=tmp_path)
    assert (od.restore_run(found[0], tmp_path) / "sft" / "which").read_text() == "1"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rm", "nosuch"], "no such run"),
        (["rm"], "no run was named"),
        (["restore", "b"], "is not in the trash"),
        (["restore", "a", "b"], "also: has no effect"),
        (["empty-trash", "a"], "run: has no effect"),
        (["report", "a", "--anyway"], "anyway: has no effect"),
        (["rm", "notes"], "is not a run"),
    ],
)
def test_bad_input(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a_run(tmp_path, "a")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("mine")
    before = everything(tmp_path)
    assert cli.main(["runs", *words, "--folder", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and said in err
    assert everything(tmp_path) == before


def test_a_run_that_is_trained_rated_or_pushed_is_not_moved(tmp_path: Path) -> None:
    stage = a_run(tmp_path, "a", done=False)
    a_run(tmp_path, "b")
    with stage.locked(), pytest.raises(UserError, match="sft is being trained"):
        od.remove_runs("a", folder=tmp_path)
    from ondevice.preferences.database import Ratings

    with Ratings.open(tmp_path / "a", create=True), pytest.raises(UserError, match="rated"):
        od.remove_runs("a", folder=tmp_path)
    assert (tmp_path / "a" / "sft").is_dir()
    od.remove_runs("a", folder=tmp_path)
    # whoever begins in the trash all the same keeps it from being emptied
    [one] = trash.entries(tmp_path)
    inside = RunFolder(one["path"]).stage("sft")
    with inside.locked(), pytest.raises(UserError, match="is being trained"):
        od.empty_trash(tmp_path)
    assert inside.events.is_file()


def test_a_run_that_another_one_needs(tmp_path: Path) -> None:
    base = a_run(tmp_path, "base")
    an_adapter(a_run(tmp_path, "tuned"), base.model)
    with pytest.raises(UserError, match=r"tuned needs it: the base of tuned/sft/model is base/sft"):
        od.remove_runs("base", folder=tmp_path)
    od.remove_runs("base", "tuned", folder=tmp_path)  # together they need nobody
    od.restore_run("base", tmp_path)
    a_run(tmp_path, "whole", model=str(base.model))  # complete, all weights are its own
    od.remove_runs("base", folder=tmp_path)
    od.restore_run("base", tmp_path)
    a_run(tmp_path, "going", done=False, model=str(base.model))
    with pytest.raises(UserError, match=r"going needs it: sft, which is not complete, has model"):
        od.remove_runs("base", folder=tmp_path)
    od.remove_runs("base", folder=tmp_path, anyway=True)
    assert not (tmp_path / "base").exists()


@pytest.mark.parametrize("setting", ["data", "sft_data", "continue_from", "reward_model"])
def test_what_an_unfinished_stage_reads_is_needed(setting: str, tmp_path: Path) -> None:
    stage = a_run(tmp_path, "made")
    value = str(stage.path)
    if "data" in setting:
        value = f"elsewhere.jsonl:2,{stage.path / 'chats.jsonl'}:1"
    a_run(tmp_path, "reader", done=False, **{setting: value})
    with pytest.raises(UserError, match=f"has {setting}"):
        od.remove_runs("made", folder=tmp_path)


def test_the_trash_is_emptied_of_runs_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a_run(tmp_path, "a")
    od.remove_runs("a", folder=tmp_path)
    (tmp_path / ".trash" / "thesis").mkdir()
    (tmp_path / ".trash" / "thesis" / "one.txt").write_text("mine")
    (tmp_path / ".trash" / "b-20260101-000000").mkdir()  # a name alone proves nothing
    words = ["runs", "empty-trash", "--folder", str(tmp_path)]
    assert cli.main(words) == 2  # nobody can be asked
    assert "--yes" in capsys.readouterr().err and len(trash.entries(tmp_path)) == 1
    assert cli.main([*words, "--yes"]) == 0
    said = capsys.readouterr()
    assert "1 runs deleted" in said.out and "thesis" in said.err
    assert sorted(p.name for p in (tmp_path / ".trash").iterdir()) == [
        "b-20260101-000000",
        "thesis",
    ]


def test_no_is_an_answer(tmp_path: Path) -> None:
    a_run(tmp_path, "a")
    od.remove_runs("a", folder=tmp_path)
    asked: list[str] = []

    def no(what: str) -> bool:
        asked.append(what)
        return False

    with pytest.raises(UserError, match="nothing was deleted"):
        trash.empty_trash(tmp_path, agreed=no)
    assert "1 runs, " in asked[0] and "a-2" in asked[0] and len(trash.entries(tmp_path)) == 1


KILLED = """
import os, sys
from pathlib import Path
import ondevice as od
count, number, folder = 0, int(sys.argv[1]), sys.argv[2]
def look(event, args):
    global count
    if event in ("os.rename", "os.mkdir", "open", "os.remove", "os.rmdir"):
        if str(args[0]).startswith(folder):
            count += 1
            if count == number:
                os.kill(os.getpid(), 9)
from ondevice.runs import trash
sys.addaudithook(look)
od.remove_runs("a", folder=folder)
od.restore_run("a", folder)
"""


def test_killed_anywhere_it_is_in_the_one_place_or_the_other(tmp_path: Path) -> None:
    a_run(tmp_path, "a")
    whole = everything(tmp_path / "a")
    ended = set()
    for number in range(1, 40, 3):
        code = subprocess.run([sys.executable, "-c", KILLED, str(number), str(tmp_path)]).returncode
        ended.add(code)
        there = [one["run"] for one in trash.entries(tmp_path)]
        if there:
            assert not (tmp_path / "a").exists() and there == ["a"]
            od.restore_run("a", tmp_path)
        assert everything(tmp_path / "a") == whole
        if code == 0:
            break
    assert ended == {0, -signal.SIGKILL}


def test_what_is_on_another_disk_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_run(tmp_path, "a")

    def refuse(*given: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(UserError, match=r"cannot be moved.*another disk begins here"):
        od.remove_runs("a", folder=tmp_path)
    assert (tmp_path / "a" / "sft" / "done.json").is_file()


def test_a_run_that_is_a_relative_link_comes_back(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    a_run(tmp_path / "far", "big")
    before = everything(tmp_path / "far")
    (runs / "rel").symlink_to("../far/big")
    od.remove_runs("rel", folder=runs)
    assert od.restore_run("rel", runs) == runs / "rel"
    assert os.readlink(runs / "rel") == "../far/big" and (runs / "rel" / "sft").is_dir()
    od.remove_runs("rel", folder=runs)
    assert len(od.empty_trash(runs)["removed"]) == 1
    assert list((runs / ".trash").iterdir()) == []
    assert everything(tmp_path / "far") == before


@pytest.mark.parametrize("what", ["mkdir", "rename"])
def test_rm_and_empty_trash_make_room_on_a_full_disk(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No folder can be made; or one is there, that has no room for another name."""
    a_run(tmp_path, "a")
    whole = everything(tmp_path / "a")
    if what == "rename":
        (tmp_path / ".trash").mkdir()
    real = os.rename

    def full(*given: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def rename(source: Path, target: Path) -> None:
        if what == "rename" and Path(target).parent.name == ".trash":
            full()
        real(source, target)

    monkeypatch.setattr(os, "mkdir", full)
    monkeypatch.setattr(os, "rename", rename)
    for again in (True, False):
        [moved] = od.remove_runs("a", folder=tmp_path)
        assert Path(moved["trash"]).name.startswith(".trash-a-2") and not od.list_runs(tmp_path)
        if again:
            od.restore_run(Path(moved["trash"]).name, tmp_path)
            assert everything(tmp_path / "a") == whole
    assert len(od.empty_trash(tmp_path)["removed"]) == 1
    assert everything(tmp_path) == {}
    monkeypatch.undo()
    stage = a_run(tmp_path, "b")
    monkeypatch.setattr(os, "mkdir", full)
    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(UserError, match=r"no room even for another name.*empty-trash"):
        od.remove_runs("b", folder=tmp_path)
    assert stage.done.is_file()


@pytest.mark.parametrize(
    ("files", "is_run"),
    [
        ({"thesis.txt": "mine", "build.log": "made"}, False),
        ({"build.log": "made"}, False),
        ({"thesis.txt": "mine", "sft.log": "made"}, False),
        ({"sub/lock": "", "thesis.txt": "mine"}, False),
        ({"recipe.yaml": "bread: [flour, water]"}, False),
        ({}, False),
        ({"sft.log": "it would not begin"}, True),
        ({"recipe.yaml": "stages: {sft: {steps: 2}}"}, True),
        ({"ratings.db": ""}, True),
        ({"sft/lock": '{"pid": 1, "host": "a", "since": 1.0}'}, True),
        ({"sft/done.json": "{}"}, True),
    ],
)
def test_only_what_is_proved_to_be_a_run_is_taken_away(
    files: dict[str, str], is_run: bool, tmp_path: Path
) -> None:
    place = tmp_path / "proj"
    place.mkdir()
    for name, text in files.items():
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(text)
    if is_run:
        od.remove_runs(str(place), folder=tmp_path / "runs")
        assert od.empty_trash(tmp_path)["removed"]
    else:
        with pytest.raises(UserError, match="is not a run"):
            od.remove_runs(str(place), folder=tmp_path / "runs")
        assert everything(place).keys() == files.keys()


@pytest.mark.parametrize("name", ["two\nlines", "my run", "-x", "it's", "a-20260101-000000"])
def test_any_name_goes_and_comes_back_as_it_is_told(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "all runs"
    a_run(folder, name)
    before = everything(folder)
    assert cli.main(["runs", "rm", str(folder / name)]) == 0
    said = capsys.readouterr().out
    if "\n" not in name:  # what is shown of a name is one line
        told = said.partition("ondevice ")[2].partition(" brings it back")[0]
        assert cli.main(shlex.split(told)) == 0
        assert everything(folder) == before
        od.remove_runs(name, folder=folder)
    assert od.restore_run(str(folder / name), tmp_path) == folder / name
    [moved] = od.remove_runs(name, folder=folder)
    assert od.restore_run(moved["trash"], tmp_path) == folder / name
    od.remove_runs(name, folder=folder)
    assert len(od.empty_trash(folder)["removed"]) == 1


def test_beside_another_command_that_is_quicker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_run(tmp_path, "a")
    real = trash._to_trash

    def later(run: Path) -> Path:
        real(run)
        return real(run)

    monkeypatch.setattr(trash, "_to_trash", later)
    with pytest.raises(UserError, match=r"not there any more: another command.*runs restore"):
        od.remove_runs("a", folder=tmp_path)
    monkeypatch.undo()
    assert [one["run"] for one in trash.entries(tmp_path)] == ["a"]

    def restores(what: str) -> bool:
        od.restore_run("a", tmp_path)
        return True

    gone = trash.empty_trash(tmp_path, agreed=restores)
    assert gone == {"removed": [], "bytes": 0} and (tmp_path / "a" / "sft").is_dir()
