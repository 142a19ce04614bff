"""Runs as a table: figures, search and order; notes and tags; what differs; events as a table; and
another name, under which everything that refers to the run goes on working.
"""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import ondevice as od
from ondevice import cli
from ondevice.common.errors import UserError
from ondevice.config.runs import RunsConfig
from ondevice.runs import labels, listing, table, trash
from ondevice.runs.commands import ACTIONS
from ondevice.runs.dependents import needed_by
from ondevice.runs.events import EventWriter
from ondevice.runs.folder import RunFolder, StageFolder
from ondevice.runs.rename import rename_run

REWARD, EXACT = 0.5, 0.25


def a_stage(folder: Path, run: str, name: str, *, end: str = "done", **config: Any) -> StageFolder:
    stage = RunFolder(folder / run).stage(name).create()
    stage.lock.write_text("")
    with EventWriter(stage.events) as events:
        events.emit("start", 0, stage=name, steps=2, config=config)
        events.emit("step", 1, loss=2.0, reward=REWARD, by_kind={"sum": 1, "facts": 0.5})
        events.emit("eval", 2, loss=1.5, accuracy=0.75)
        if end == "failed":
            events.emit("failed", reason="ValueError", message="kaboom")
    if end == "done":
        marks = {"exact_match": EXACT, "bits_per_byte": 1.2}
        stage.done.write_text(json.dumps({"marks": marks, "seconds": 60.0}))
    return stage


def a_folder(tmp_path: Path) -> Path:
    """a: done, with figures; b: failed, without exact; c: nothing begun."""
    a_stage(tmp_path, "a", "sft", learning_rate=1e-3, model=str(tmp_path / "a" / "init" / "model"))
    a_stage(tmp_path, "b", "sft", end="failed", learning_rate=3e-4, model="runs/b/init/model")
    a_stage(tmp_path, "b", "grpo", end="failed", group=4)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "recipe.yaml").write_text("stages: {}\n")
    return tmp_path


def names(runs: list[dict[str, Any]]) -> list[str]:
    return [run["run"] for run in runs]


# figures, search, order


def test_figures_search_and_order(tmp_path: Path) -> None:
    folder = a_folder(tmp_path)
    labels.set_note(folder / "b", "see Anna's mail")
    labels.add_tags(folder / "b", ["bad"])
    by_name = {run["run"]: run for run in od.list_runs(folder)}
    assert by_name["a"]["figures"]["exact"] == EXACT and by_name["a"]["state"] == "done"
    assert by_name["b"]["figures"]["reward"] == REWARD and "exact" not in by_name["b"]["figures"]
    assert by_name["b"]["state"] == "failed" and by_name["c"]["state"] == "open"
    for words, expected in {
        "": {"a", "b", "c"},
        "ANNA": {"b"},
        "tag:bad": {"b"},
        "-tag:bad": {"a", "c"},
        "state:done": {"a"},
        "stage:grpo state:failed": {"b"},
        "exact>0.2": {"a"},
        "exact<=0.2": set(),  # a run without the figure is not less
        "reward=0.5 -a": {"b"} - {"b"},  # `-a`: "bad" and "Anna" have an a
    }.items():
        assert set(names(od.list_runs(folder, search=words))) == expected, words
    assert names(od.list_runs(folder, sort="name")) == ["a", "b", "c"]
    assert names(od.list_runs(folder, sort="name", reverse=True)) == ["c", "b", "a"]
    # what has no such figure comes last either way
    for reverse in (False, True):
        assert names(od.list_runs(folder, sort="exact", reverse=reverse))[0] == "a"
    with pytest.raises(UserError, match="did you mean 'exact'"):
        od.list_runs(folder, sort="exat")
    with pytest.raises(UserError, match="no state is called 'don'"):
        od.list_runs(folder, search="state:don")


def test_each_order_has_a_value_and_a_word(tmp_path: Path) -> None:
    [run] = od.list_runs(a_folder(tmp_path), search="a state:done")
    for name in table.SORTS:
        value = table.value_of(run, name)
        assert value is not None and table.shown(name, value) not in ("", "–"), name
    # what is not read yet is not nothing
    assert table.shown("size", None) == "…" and table.shown("exact", None) == "–"
    hints = get_type_hints(RunsConfig)
    assert set(hints["sort"].__args__) == {"", *table.SORTS}
    assert set(hints["state"].__args__) == {"", *table.STATES}


# the command line


def said(capsys: pytest.CaptureFixture[str], *words: str, folder: Path, code: int = 0) -> str:
    assert cli.main(["runs", *words, "--folder", str(folder)]) == code
    captured = capsys.readouterr()
    return captured.err if code else captured.out


def test_the_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = a_folder(tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    shown = said(capsys, "--sort", "exact", folder=folder).splitlines()
    assert shown[0].split()[:3] == ["run", "state", "exact"]
    assert shown[1].split()[:3] == ["a", "done", "25%"] and len(shown) == 4
    found = json.loads(said(capsys, "--search", "state:failed", "--json", folder=folder))
    assert names(found) == ["b"] and found[0]["figures"]["reward"] == REWARD
    assert "that this holds of" in said(capsys, "--search", "nothing-like-this", folder=folder)
    assert "a: two words" in said(capsys, "note", "a", "two", "words", folder=folder)
    assert said(capsys, "note", "a", folder=folder) == "two words\n"
    assert "a: good, kept" in said(capsys, "tag", "a", "kept,good", folder=folder)
    assert "#good #kept two words" in said(capsys, folder=folder)
    assert "a: good" in said(capsys, "untag", "a", "kept", folder=folder)
    assert "no note any more" in said(capsys, "note", "a", "--clear", folder=folder)
    rows = [row.split() for row in said(capsys, "diff", "a", "b", folder=folder).splitlines()]
    assert ["sft.learning_rate", "0.001", "0.0003"] in rows
    # each one's own folder is told alike
    assert not any(row[0] == "sft.model" for row in rows)
    assert "d (what knows it as a still" in said(capsys, "rename", "a", "d", folder=folder)
    assert "d.csv: 3 events" in said(capsys, "export", "d", folder=folder)
    assert "stands there already" in said(capsys, "export", "d", folder=folder, code=2)
    for words, told in {
        ("tag", "d"): "one more word",
        ("rename", "d", "x", "y"): "a name is one word",
        ("rename", "d", "b"): "stands there already",
        ("tag", "d", "a b"): "cannot be a tag",
        ("untag", "d", "never"): "has no tag",
        ("diff", "d", "zzz"): "no such run",
        ("list", "--reverse"): "give --sort too",
    }.items():
        assert told in said(capsys, *words, folder=folder, code=2), words
    assert set(ACTIONS) < set(get_type_hints(RunsConfig)["action"].__args__)


def test_a_damaged_file_of_labels_hides_no_run(tmp_path: Path) -> None:
    folder = a_folder(tmp_path)
    for text in ("{", "[]", '{"note": 3}', '{"tags": "x"}', '{"tags": [1]}'):
        (folder / "a" / labels.FILE).write_text(text)
        by_name = {run["run"]: run for run in od.list_runs(folder)}
        assert by_name["a"]["stages"] and "is damaged" in by_name["a"]["labels_trouble"], text
        assert "is damaged" in table.table_text(list(by_name.values()))
        with pytest.raises(UserError, match="is damaged"):  # and it is not written over
            od.note_run("a", "x", folder=folder)
        assert (folder / "a" / labels.FILE).read_text() == text
    (folder / "a" / labels.FILE).unlink()
    with pytest.raises(UserError, match="too many"):
        od.note_run("a", "x" * 5000, folder=folder)
    assert od.tag_run("a", "x", "y", folder=folder) == ("x", "y")
    assert od.tag_run("a", remove=["x", "y"], folder=folder) == ()
    assert not (folder / "a" / labels.FILE).exists()  # nothing is written, nothing is kept


def test_differences_of_more_than_two_and_of_stages(tmp_path: Path) -> None:
    folder = a_folder(tmp_path)
    a_stage(folder, "e", "sft", learning_rate=1e-3, model=str(folder / "e" / "init" / "model"))
    (folder / "e" / "sft" / "settings.json").write_text('{"settings": {"learning_rate": 0.5}}')
    found = od.diff_runs("a", "b", "e", folder=folder)
    assert found["sft.learning_rate"] == ("0.001", "0.0003", "0.5")  # what a rule has chosen
    assert found["grpo"] == ("(no such stage)", "begun", "(no such stage)")
    assert "sft.model" not in found
    assert od.diff_runs("a", "a", folder=folder) == {}
    assert od.diff_runs("a", "a", folder=folder, everything=True)["sft.model"][0] == (
        "RUN/init/model"
    )


# events as a table


def test_events_as_csv_and_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    from pyarrow import parquet

    stage = a_stage(tmp_path, "a", "sft")
    with EventWriter(stage.events) as events:
        events.emit("resume", 1)
        events.emit("step", 2, loss=float("nan"), huge=1 << 70, text="=1+1, “x”\n", flag=True)
        events.emit("warning", 2, message="half \ud800")
    made = od.export_run("a", tmp_path / "t.csv", folder=tmp_path)
    with open(tmp_path / "t.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    # what a resume has undone is not there
    assert [row["event"] for row in rows] == ["start", "step", "resume", "step", "warning"]
    assert made["rows"] == len(rows) == 5 and made["columns"] == list(rows[0])
    assert rows[1]["by_kind.facts"] == "0.5" and json.loads(rows[0]["config"]) == {}
    assert rows[3]["text"] == "=1+1, “x”\n" and rows[3]["loss"] == ""
    od.export_run("a", tmp_path / "t.parquet", to="parquet", folder=tmp_path)
    found = parquet.read_table(tmp_path / "t.parquet").to_pylist()
    assert [row["step"] for row in found] == [0, 1, 1, 2, 2]
    assert found[1]["loss"] == 2.0 and found[3]["loss"] is None and found[3]["flag"] is True
    assert found[3]["huge"] == float(1 << 70)
    with pytest.raises(UserError, match="stands there already"):
        od.export_run("a", tmp_path / "t.csv", folder=tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no events"):
        od.export_run("empty", tmp_path / "x.csv", folder=tmp_path)
    assert not (tmp_path / "x.csv").exists()


# another name


def test_what_refers_to_a_run_goes_on_working(tmp_path: Path) -> None:
    folder = a_folder(tmp_path)
    model = folder / "a" / "sft" / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    other = a_stage(folder, "z", "dpo", end="", model=str(model))
    new = od.rename_run("a", "renamed", folder=folder)
    assert new == folder / "renamed" and new.is_dir() and not new.is_symlink()
    assert (model / "config.json").is_file()  # by the path that z has written down
    assert sorted(names(od.list_runs(folder))) == ["b", "c", "renamed", "z"]  # once
    assert listing.find_run("a", folder).path == new  # commands take either name
    assert needed_by(RunFolder(other.path.parent), new)
    with pytest.raises(UserError, match="z needs it"):
        trash.remove_runs(["a"], folder)
    # by its older name it is the run that is taken away, not the link
    [moved] = trash.remove_runs(["a"], folder, anyway=True)
    assert moved["run"] == "renamed" and not new.exists()
    trash.restore_run("renamed", folder)
    assert (model / "config.json").is_file()
    # back to its first name, and on to a third
    assert od.rename_run("renamed", "a", folder=folder) == folder / "a"
    assert (folder / "renamed").is_symlink() and not (folder / "a").is_symlink()
    od.rename_run("a", "third", folder=folder)
    assert {p.name: os.readlink(p) for p in listing.older_names(folder)} == {
        "a": "third",
        "renamed": "a",
    }
    assert (folder / "renamed" / "sft").is_dir() and (model / "config.json").is_file()
    # names of a run that is deleted are free again, those of one in the trash are not
    trash.remove_runs(["third"], folder, anyway=True)
    assert (folder / "a").is_symlink()
    with pytest.raises(UserError, match="leads there, an older name of a run in the trash"):
        rename_run("b", "third", folder)
    trash.empty_trash(folder)
    assert not os.path.lexists(folder / "a") and not os.path.lexists(folder / "renamed")


@pytest.mark.parametrize("new", ["", ".", "..", "a/b", "-x", ".x", "x\n", " x", "x" * 201, "\0"])
def test_what_cannot_be_a_name(tmp_path: Path, new: str) -> None:
    folder = a_folder(tmp_path)
    with pytest.raises(UserError):
        rename_run("a", new, folder)
    assert sorted(names(od.list_runs(folder))) == ["a", "b", "c"]


def test_a_run_at_work_keeps_its_name(tmp_path: Path) -> None:
    folder = a_folder(tmp_path)
    with (
        StageFolder(folder / "a" / "sft").locked(),
        pytest.raises(UserError, match="is being trained"),
    ):
        rename_run("a", "n", folder)
    other = a_stage(folder, "z", "dpo", end="", model=str(folder / "a"))
    with other.locked(), pytest.raises(UserError, match="z trains with it now"):
        rename_run("a", "n", folder)
    rename_run("a", "n", folder)
    with pytest.raises(UserError, match="an older name of n"):
        rename_run("b", "a", folder)
    (folder / "plain").mkdir()
    with pytest.raises(UserError, match="is not a run"):
        rename_run("plain", "x", folder)


def test_a_rename_that_was_killed_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = a_folder(tmp_path)
    real = os.rename

    def killed(source: Any, target: Any) -> None:
        real(source, target)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("ondevice.runs.rename.os.rename", killed)
        with pytest.raises(KeyboardInterrupt):
            rename_run("a", "n", folder)
    assert (folder / "n").is_dir() and not os.path.lexists(folder / "a")
    assert sorted(names(od.list_runs(folder))) == ["b", "c", "n"]
    assert rename_run("a", "n", folder) == folder / "n"
    assert os.readlink(folder / "a") == "n"
    assert not list(folder.glob(".renaming*"))


def test_a_disk_without_links_renames_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = a_folder(tmp_path)

    def refuse(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("ondevice.runs.rename.os.symlink", refuse)
    with pytest.raises(UserError, match="this disk has no links"):
        rename_run("a", "n", folder)
    assert (folder / "a").is_dir() and not (folder / "n").exists()
