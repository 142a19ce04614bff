"""A folder's files: which are read, of which split, and that the rest is named."""

from __future__ import annotations

import gzip
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import ondevice as od
import small_stages
from ondevice.common.errors import UserError
from ondevice.data.folders import holds_split, listing, split_of
from ondevice.data.rows import read
from ondevice.datasets import document_preview
from ondevice.seam.select import load_backend

PAIR = {"chosen": "12", "rejected": "34"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_stages.write(
        tmp_path_factory.mktemp("folders") / "model",
        load_backend("torch", "cpu"),
        small_stages.config(),
    )


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"text": name}) + "\n" if name.endswith("l") else name)
    return folder


def texts_of(folder: Path, split: str = "train") -> list[str]:
    return [row["text"] for row, _ in read(folder, split=split)]


NAMES = [
    "train.jsonl",
    "valid.jsonl",
    "test.jsonl",
    "dev.jsonl",
    "val-1.jsonl",
    "training.jsonl",
    "eval.jsonl",
    "my-train-00000-of-00002.jsonl",
    "train_en.jsonl",
    "latest.jsonl",
    "trainer.jsonl",
    "contest.jsonl",
    "test2.jsonl",
    "a.jsonl",
]


def test_names_of_splits_are_those_of_datasets(tmp_path: Path) -> None:
    files = pytest.importorskip("datasets.data_files")
    fill(tmp_path, *NAMES)
    found = files.get_data_patterns(str(tmp_path))
    for split, patterns in found.items():
        paths = set()
        for pattern in patterns:
            with suppress(FileNotFoundError):  # a pattern without a file
                paths |= {
                    Path(str(path)).name for path in files.resolve_pattern(pattern, str(tmp_path))
                }
        assert paths == {name for name in NAMES if split_of(Path(name)) == str(split)}, split
    assert {
        split_of(Path(name))
        for name in ("a.jsonl", "latest.jsonl", "contest.jsonl", "trainer.jsonl")
    } == {""}


def test_only_the_files_of_a_split_are_read_and_the_rest_is_named(tmp_path: Path) -> None:
    fill(
        tmp_path,
        "train.jsonl",
        "valid.jsonl",
        "test.jsonl",
        "more.jsonl",
        "paper.pdf",
        "a/b.docx",
        "README.md",
    )
    assert {split: texts_of(tmp_path, split) for split in ("train", "validation", "test")} == {
        "train": ["train.jsonl"],
        "validation": ["valid.jsonl"],
        "test": ["test.jsonl"],
    }
    assert listing(tmp_path).notes == [
        "files not read: 1 of the split validation (valid.jsonl), 1 of the split test "
        "(test.jsonl), 1 of no split (more.jsonl), 1 of .docx (a/b.docx), 1 of .pdf "
        "(paper.pdf) (rows are read: documents want a folder of their own)"
    ]
    rows = read(tmp_path)
    for row, _ in rows:
        row["text"]
    assert rows.telling() == listing(tmp_path).notes[0]


@pytest.mark.parametrize(
    ("names", "train", "validation", "test"),
    [
        (
            ("a.jsonl", "test.jsonl"),
            ["a.jsonl"],
            ["a.jsonl"],
            ["test.jsonl"],
        ),  # no train: what has no split
        (("train/1.jsonl", "test/1.jsonl"), ["train/1.jsonl"], ["train/1.jsonl"], ["test/1.jsonl"]),
        (
            ("train.jsonl", "dev.jsonl"),
            ["train.jsonl"],
            ["dev.jsonl"],
            ["dev.jsonl"],
        ),  # nothing to test on
        (
            ("test1.jsonl", "test2.jsonl"),
            ["test1.jsonl", "test2.jsonl"],
        )
        + (["test1.jsonl", "test2.jsonl"],) * 2,
        (("a.jsonl", "b.jsonl"),) + (["a.jsonl", "b.jsonl"],) * 3,
        (("test drive.txt", "b.txt"),)
        + (["b.txt", "test drive.txt"],) * 3,  # names of texts are words
        (("a.md", "test results.md", "training plan.md"),)
        + (["a.md", "test results.md", "training plan.md"],) * 3,
        (("train.txt", "test.txt"), ["train.txt"], ["train.txt"], ["test.txt"]),
    ],
)
def test_folders_with_and_without_splits(
    names: tuple[str, ...], train: list[str], validation: list[str], test: list[str], tmp_path: Path
) -> None:
    fill(tmp_path, *names)
    assert [texts_of(tmp_path, split) for split in ("train", "validation", "test")] == [
        train,
        validation,
        test,
    ]


def test_a_table_beside_documents_hides_none(tmp_path: Path) -> None:
    """However many there are of either: rows are read where they say something that is learned from,
    and what is not read is named."""
    fill(tmp_path, "a.md", "README.md")
    for n in range(9):
        (tmp_path / f"bank{n}.csv").write_text("Day,Amount\n1,2\n")
    (tmp_path / "package.json").write_text('{"name": "x", "version": "1"}')
    assert [file.name for file in listing(tmp_path).files] == ["README.md", "a.md"]
    assert listing(tmp_path).notes == [
        "files not read: 9 of .csv (bank0.csv, bank1.csv, bank2.csv, …), 1 of .json (package.json)"
        " (documents are read: name a table by itself)"
    ]
    shown = od.show_data(tmp_path)
    assert shown["documents"] == 2 and "0 files left out" in document_preview.render(shown)
    one = document_preview.render(od.show_data(tmp_path / "a.md"))
    assert "1 document of 1 file (1 .md)" in one
    (tmp_path / "a.md").rename(tmp_path / "LICENSE.md")
    assert len(listing(tmp_path).files) == 10  # nothing but tables, and what tells of them


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("chats.csv", "Question;x,Answer\n"),
        ("chats.csv", "\ufeffprompt,completion\na,b\n"),
        ("own.json", '[{"n": 1,\n "messages": []}]'),
        ("rows.jsonl", ""),
        ("train.csv", "a,b\n"),
    ],
)
def test_rows_to_learn_from_are_read_and_documents_beside_them_named(
    name: str, inside: str, tmp_path: Path
) -> None:
    fill(tmp_path, "a.md", "b.md", "c.md", "d.pdf")
    (tmp_path / name).write_text(inside, encoding="utf-8")
    assert [file.name for file in listing(tmp_path).files] == [name]
    assert listing(tmp_path).notes == [
        "files not read: 3 of .md (a.md, b.md, c.md), 1 of .pdf (d.pdf)"
        " (rows are read: documents want a folder of their own)"
    ]
    with pytest.raises(UserError, match="are read, and 4 documents beside them are not"):
        od.show_data(tmp_path)


def test_links_and_pipes_are_named(tmp_path: Path) -> None:
    """A link to a folder is not followed: it may lead back."""
    fill(tmp_path, "a.md")
    (tmp_path / "again").symlink_to(tmp_path)
    (tmp_path / "gone.md").symlink_to(tmp_path / "nothing")
    (tmp_path / "link.md").symlink_to(tmp_path / "a.md")
    os.mkfifo(tmp_path / "pipe.pdf")
    found = listing(tmp_path)
    assert [file.name for file in found.files] == ["a.md", "link.md"]
    assert found.notes == [
        "files not read: 3 links to folders, closed folders, or no files (again, gone.md, pipe.pdf)"
    ]


def test_a_folder_with_nothing_to_learn_from(tmp_path: Path) -> None:
    fill(tmp_path, "valid.jsonl", "test.jsonl")
    with pytest.raises(UserError, match="only what is held out"):
        read(tmp_path)
    (tmp_path / "papers").mkdir()
    fill(tmp_path / "papers", "a.doc", "b.odt")
    with pytest.raises(UserError, match=r"no data in this folder.*it holds \.doc \.odt"):
        read(tmp_path / "papers")


def test_packed_files(tmp_path: Path) -> None:
    for name, data in (
        ("a.jsonl.gz", '{"text": "a"}\n'),
        ("b.csv.gz", "text\nb\n"),
        ("c.json.GZ", '[{"text": "c"}]'),
    ):
        (tmp_path / name).write_bytes(gzip.compress(data.encode()))
    assert texts_of(tmp_path) == ["a", "b", "c"]
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "d.txt.gz").write_bytes(gzip.compress(b"d\r\n"))
    assert texts_of(tmp_path / "t") == ["d\n"]
    whole = gzip.compress(b'{"text": "a"}\n' * 1000)
    for broken in (whole[:-9], b"no gzip", whole[:20] + b"\0" * 9 + whole[29:]):
        (tmp_path / "x.jsonl.gz").write_bytes(broken)
        with pytest.raises(UserError, match="x.jsonl.gz: cannot be unpacked"):
            list(read(tmp_path / "x.jsonl.gz"))


ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "pretrain": ("text", {"sequence_length": 16}),
    "sft": ("prompt", {"sequence_length": 32}),
    "dpo": ("prompt", {}),
    "grpo": (
        "prompt",
        {"rewards": ["truncated"], "prompts": 2, "group_size": 2, "max_new_tokens": 4},
    ),
}


@pytest.mark.parametrize("stage", ROWS)
def test_stages_hold_out_what_a_folder_holds_out(stage: str, model: Path, tmp_path: Path) -> None:
    """Every stage measures on valid.jsonl, and learns from no row of test.jsonl."""
    column, settings = ROWS[stage]
    more = {"sft": {"completion": "12"}, "dpo": PAIR}.get(stage, {})
    data = tmp_path / "data"
    data.mkdir()
    for name, count in (("train", 12), ("valid", 5), ("test", 90)):
        (data / f"{name}.jsonl").write_text(
            "".join(json.dumps({column: f"Anna {name} {n}", **more}) + "\n" for n in range(count))
        )
    getattr(od, stage)(
        model,
        str(data),
        out=str(tmp_path / "run"),
        steps=1,
        micro_batch=2,
        backend="torch",
        device="cpu",
        **settings,
    )
    events = [
        json.loads(line)
        for line in (tmp_path / "run" / stage / "events.jsonl").read_text().splitlines()
    ]
    told = next(event for event in events if event["event"] == "data")
    if stage == "pretrain":
        assert told["held_tokens"] > told["tokens"] / 3  # a tenth is held out of a file alone
    else:
        name = {"sft": "chats", "dpo": "pairs", "grpo": "problems"}[stage]
        assert (told[name], told[f"held_{name}"]) == (12, 5)
    said = [event["message"] for event in events if event["event"] == "warning"]
    assert any("1 of the split test (test.jsonl)" in message for message in said)


def test_pairs_whose_prompts_are_held_out_are_not_learned_from(model: Path, tmp_path: Path) -> None:
    for name, numbers in (("train", range(20)), ("held", range(15, 25))):
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps({"prompt": f"Anna {n}", **PAIR}) + "\n" for n in numbers)
        )
    od.dpo(
        model,
        str(tmp_path / "train.jsonl"),
        validation=str(tmp_path / "held.jsonl"),
        out=str(tmp_path / "run"),
        steps=1,
        batch_size=2,
        backend="torch",
        device="cpu",
    )
    rows = [
        json.loads(line) for line in (tmp_path / "run/dpo/pairs.jsonl").read_text().splitlines()
    ]
    learned, held = (
        {row["prompt"][0]["content"] for row in rows if row["held"] is kind}
        for kind in (False, True)
    )
    assert learned == {f"Anna {n}" for n in range(15)} and held == {
        f"Anna {n}" for n in range(15, 25)
    }
    assert (
        "5 pairs are left out because their prompts are held out too"
        in (tmp_path / "run/dpo/events.jsonl").read_text()
    )
    assert not holds_split(str(tmp_path), "validation")


@pytest.mark.parametrize(
    ("lines", "at"),
    [
        (["a,b"] * 300 + ['c,"never closed'] + ["a,b"] * 300, 302),
        (
            ["a,b"] * 3
            + ['"two\nlines",b', 'c,"never closed']
            + ["a,b"] * 30
            + ['d,"e, f"']
            + ["a,b"] * 300,
            7,
        ),
        (["", "a,b", "", 'c,"d', "a,b"], 5),
        (['c,"d', "a,b"], 2),
    ],
)
def test_a_quote_that_swallows_rows_is_named(lines: list[str], at: int, tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("\n".join(["prompt,completion", *lines]) + "\n")
    with pytest.raises(UserError, match=f"a.csv:{at}: a quote opens here"):
        list(read(file))


def test_a_quote_within_a_quote_is_one_bad_row(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text(
        "prompt,completion\n" + "a,b\n" * 200 + 'c,"he said "no" twice"\n' + '"two\n""lines""",b\n'
    )
    rows = read(file)
    assert [row["prompt"] for row, _ in rows][-1] == 'two\n"lines"' and rows.seen == 202
    assert rows.rejected[0].where.endswith("a.csv:202") and "not CSV" in rows.rejected[0].reason


def test_a_stage_that_reads_two_splits_names_neither_as_left_out(tmp_path: Path) -> None:
    """And what both leave out is told with the same words, so that it is said once."""
    for name in ("train", "valid", "test"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "a"}\n')
    notes = [
        listing(tmp_path, *splits).notes
        for splits in (("train", "validation"), ("validation", "train"))
    ]
    assert notes[0] == notes[1] == ["files not read: 1 of the split test (test.jsonl)"]
