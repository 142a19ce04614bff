"""Data sets of the Hub: pinned to a commit that is recorded, refused in one line; by the real
client from a server on this machine."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from hub_server import HubServer, environment, running
from ondevice.common import bounded
from ondevice.common.errors import UserError
from ondevice.data import hub_datasets as hub_data
from ondevice.data import hub_stream
from ondevice.data.hub_datasets import HubSpec
from ondevice.data.mixture import sources
from ondevice.data.row_process import answers
from ondevice.data.rows import Reading, read
from ondevice.publishing.history import hub_datasets
from ondevice.publishing.model_card import run_card
from ondevice.runs.folder import RunFolder
from test_card import configure, write_stage

SHOW = """
import sys
from ondevice.data.rows import read
from ondevice.common.errors import UserError
for spec in sys.argv[1:]:
    rows = read(spec)
    try:
        found = [row["text"] for row, _ in rows]
        print(found, rows.commit)
    except UserError as error:
        print("refused", error)
"""


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("hub:me/set", ("me/set", "", "", "train")),
        ("hub:imdb:test", ("imdb", "", "", "test")),
        ("hub:me/set/en:validation", ("me/set", "en", "", "validation")),
        ("hub:me/set@v1.0", ("me/set", "", "v1.0", "train")),
        ("hub:me/set/en@refs/pr/3:test", ("me/set", "en", "refs/pr/3", "test")),
    ],
)
def test_a_name_has_four_parts(spec: str, parts: tuple[str, ...]) -> None:
    assert HubSpec.parse(spec) == parts


@pytest.mark.parametrize(
    "spec", ["hub:", "hub:@main", "hub:me/set@", "hub:me/set@:train", "hub:me//x"]
)
def test_a_name_without_a_part_is_refused_before_anything_is_read(spec: str) -> None:
    with pytest.raises(UserError, match="is not the name of a data set"):
        read(spec)


@pytest.mark.parametrize(
    ("spec", "cut"),
    [
        ("hub:me/set", ("train", 0, None)),
        ("hub:me/set:test[:5]", ("test", 0, 5)),
        ("hub:me/set/en@v1:train[2000:3000]", ("train", 2000, 3000)),
        ("hub:me/set:train[7:]", ("train", 7, None)),
    ],
)
def test_a_split_may_be_cut(spec: str, cut: tuple[Any, ...]) -> None:
    assert HubSpec.parse(spec).cut() == cut


@pytest.mark.parametrize(
    "cut", ["[5:5]", "[9:2]", "[:0]", "[:10%]", "[1:2", "[-3:]", "[1]", "[1:2][3:4]"]
)
def test_a_cut_that_is_none_is_refused_before_anything_is_read(cut: str) -> None:
    with pytest.raises(UserError, match="has no rows|does not say which rows"):
        read(f"hub:me/set:train{cut}")


def test_a_cut_stands_in_a_mixture() -> None:
    found = sources("hub:me/set:train[:5]:2,orders:hub:me/two:test[5:9]:1")
    assert [(one.data, one.weight) for one in found] == [
        ("hub:me/set:train[:5]", 2.0),
        ("orders:hub:me/two:test[5:9]", 1.0),
    ]
    plain = sources("hub:me/set:train[:5],hub:me/two:test[5:]")
    assert [one.data for one in plain] == ["hub:me/set:train[:5]", "hub:me/two:test[5:]"]


def lines(count: int, word: str) -> bytes:
    return "".join(json.dumps({"text": f"{word} {n}"}) + "\n" for n in range(count)).encode()


def parquet(broken: bool) -> bytes:
    arrow, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    out = io.BytesIO()
    pq.write_table(arrow.table({"text": ["a", "b", "c", "d"]}), out)
    whole = out.getvalue()
    return whole[: len(whole) // 2] + bytes(len(whole) // 2) if broken else whole


@pytest.mark.slow
def test_sets_are_read_at_a_commit_and_refused_in_a_line(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    with running() as server:
        repo = server.add("me/one", {"train.jsonl": lines(2, "old")}, "dataset")
        old = repo.commits[-1].id
        new = repo.commit("more", "", {"train.jsonl": lines(3, "new")}).id
        configs = "".join(
            f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in ("en", "de")
        )
        card = f"---\nconfigs:\n{configs}---\n"
        server.add(
            "me/two",
            {"README.md": card.encode(), "en.jsonl": lines(1, "one"), "de.jsonl": lines(1, "ein")},
            "dataset",
        )
        shards = {f"data/train-0000{n}-of-00002.parquet": parquet(n == 1) for n in range(2)}
        server.add("me/bad", shards, "dataset")
        said = shown(
            server,
            tmp_path,
            "hub:me/one",
            f"hub:me/one@{old}",
            "hub:me/one@main:train",
            "hub:me/two",
            "hub:me/two/de",
            "hub:me/bad",
            "hub:me/one:test",
            "hub:me/one@v9",
            "hub:me/one:train[1:]",
            f"hub:me/one@{new}:train[1:2]",
            "hub:me/one:train[:9]",
            "hub:me/one:train[5:9]",
        )
        repo_bad = server.repo("me/bad", "dataset")
        repo_bad.commit("mended", "", {name: parquet(False) for name in shards})
        server.ask_for("GET", "train-00001", "status", status=500, times=1000)
        said.append(*shown(server, tmp_path, "hub:me/bad"))
    assert said[:3] == [
        f"['new 0', 'new 1', 'new 2'] {new}",
        f"['old 0', 'old 1'] {old}",
        f"['new 0', 'new 1', 'new 2'] {new}",
    ]
    assert "has several configs, name one: en, de (hub:me/two/en:train)" in said[3] and said[
        4
    ].startswith("['ein 0']")
    assert (
        "hub:me/bad: cannot be read after row 4: " in said[5]
        and "Available splits: ['train']" in said[6]
    )
    assert "Revision 'v9' doesn't exist" in said[7]
    assert said[8:11] == [
        f"['new 1', 'new 2'] {new}",
        f"['new 1'] {new}",
        f"['new 0', 'new 1', 'new 2'] {new}",
    ]
    assert "hub:me/one:train[5:9]: no rows in it" in said[11]
    assert (
        "hub:me/bad: cannot be read after row 4: " in said[12]
        and "500 Internal Server Error" in said[12]
    )


def shown(server: HubServer, home: Path, *specs: str) -> list[str]:
    """A line for each."""
    env = {
        **environment(server, home),
        "HF_DATASETS_CACHE": str(home / "datasets"),
        "PYTHONPATH": os.getcwd(),
    }
    done = subprocess.run(
        [sys.executable, "-c", SHOW, *specs], capture_output=True, text=True, env=env, timeout=300
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    return done.stdout.splitlines()


class Picture:
    """What a library makes of a file, and JSON has no word for."""


def streamed(monkeypatch: pytest.MonkeyPatch, rows: Callable[[], Any]) -> list[tuple[bytes, Any]]:
    """The parts of a set that has these rows."""
    datasets = pytest.importorskip("datasets")

    class Builder:
        hash = "ab" * 20

        def as_streaming_dataset(self, split: str) -> Any:
            return Rows(iter(rows()))

    class Rows:
        features = None

        def __init__(self, found: Iterator[Any]) -> None:
            self.found = found

        def __iter__(self) -> Iterator[Any]:
            return self.found

    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *a, **k: Builder())
    return list(hub_stream.parts_of("hub:me/one"))


def test_what_breaks_off_is_told_with_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows() -> Any:
        yield {"text": "a", "on": datetime(2026, 1, 2), "picture": Picture()}
        raise OSError("the server\nhas gone")

    head, row, ended = streamed(monkeypatch, rows)
    assert (
        json.loads(head[1]) == {"commit": "ab" * 20, "features": {}}
        and head[0] == b"h"
        and row[0] == b"r"
    )
    assert json.loads(row[1]) == {
        "text": "a",
        "on": "2026-01-02 00:00:00",
        "picture": {"not read": "Picture"},
    }
    said = json.loads(ended[1])
    assert ended[0] == b"e" and said["where"] == "hub:me/one"
    assert said["message"] == "cannot be read after row 1: the server has gone"


def test_a_row_that_is_too_large_is_a_bad_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "LARGEST", 3 << 20)
    parts = streamed(monkeypatch, lambda: [{"text": "a" * (4 << 20)}, {"text": "b"}])
    assert [kind for kind, _ in parts] == [b"h", b"x", b"r", b"."]
    monkeypatch.setattr(hub_data, "answers", lambda *given: (part for part in parts))
    found = read("hub:me/one", reading=Reading(bad=0.9))
    assert [row["text"] for row, _ in found] == ["b"] and found.commit == "ab" * 20
    assert [bad.reason for bad in found.rejected] == ["has 4 MB (at most 3)"]


def test_a_process_that_ends_takes_nothing_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")

    def other(asked: bytes, module: str, *given: Any) -> Any:
        return answers(asked, "ondevice.data.no_such_module", *given)

    monkeypatch.setattr(hub_data, "answers", other)
    with pytest.raises(UserError, match="cannot be read after row 0: datasets ended its process"):
        list(read("hub:me/one"))


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("Couldn't reach 'a/b' on the Hub (OfflineModeIsEnabled)", "HF_HUB_OFFLINE"),
        ("Couldn't reach 'a/b' on the Hub (ConnectionError)", "network"),
        ("Dataset 'a/b' doesn't exist", "hub:OWNER"),
    ],
)
def test_a_hub_that_is_not_reached_is_no_wrong_name(
    said: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")

    def fails(*_: Any, **__: Any) -> None:
        raise ConnectionError(said)

    monkeypatch.setattr(datasets, "load_dataset_builder", fails)
    with pytest.raises(UserError, match="cannot be loaded") as error:
        hub_stream.opened("hub:a/b")
    assert hint in str(error.value.hint)


def test_a_card_names_the_commit_and_a_set_with_a_config(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    write_stage(run.stage("sft"), 1, model="/somewhere/base")
    configure(run, "sft", data="hub:org/chats/en@main:train")
    (run.stage("sft").path / "commits.json").write_text(
        json.dumps({"hub:org/chats/en@main:train": "cd" * 20})
    )
    card = run_card(run, "sft", "me/m").text
    assert (
        f"org/chats/en@main:train at {'cd' * 6}" in card and "- org/chats\n" in card.split("---")[1]
    )
    from ondevice.publishing.history import history

    assert hub_datasets(history(run, "sft")) == ["org/chats"]
