"""Rows that a model wrote, kept or dropped one key each."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from ondevice import cli
from ondevice.common.errors import UserError
from ondevice.data.formats import to_chat
from ondevice.data.rows import read
from ondevice.preferences import review_terminal
from ondevice.preferences.review import Review
from ondevice.preferences.terminal_keys import LEFT, RIGHT
from typed_keys import Typed


def written(folder: Path, count: int = 5) -> Path:
    file = folder / "chats.jsonl"
    rows = []
    for n in range(count):
        messages = [
            {"role": "user", "content": f"What is {n}?"},
            {"role": "assistant", "content": f"A number {n}."},
        ]
        rows.append({"messages": messages, "source": "a.pdf", "asked_of": f"{n} is a number."})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def kept(file: Path) -> list[str]:
    return [
        json.loads(line)["messages"][0]["content"]
        for line in file.with_suffix(".kept.jsonl").read_text().splitlines()
    ]


def test_verdicts_are_stored_at_once_and_go_on_where_they_were(tmp_path: Path) -> None:
    file = written(tmp_path)
    with Review(file) as rows:
        row = rows.next()
        assert row is not None and (row.question, row.passage) == ("What is 0?", "0 is a number.")
        rows.give(0, "keep")
        rows.give(1, "drop")
        rows.give(3, "keep")
        assert kept(file) == ["What is 0?", "What is 3?"]
        undone = rows.undo()
        assert undone is not None and undone.number == 3
        assert kept(file) == ["What is 0?"]
        rows.give(1, "keep")
        rows.give(0, "drop")
        with pytest.raises(UserError, match="reviewed in another window"), Review(file):
            pass
    with file.with_suffix(".review.jsonl").open("ab") as journal:
        journal.write(b'{"row": "ab')  # cut off by a power failure
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[4], *lines[:4]]) + "\n")
    with Review(file) as rows:
        assert rows.counts == {"rows": 5, "kept": 1, "dropped": 1, "left": 3}
        assert kept(file) == ["What is 1?"]
        undone = rows.undo()
        assert undone is not None and undone.question == "What is 0?"
        row = rows.next(after=4)
        assert row is not None and row.question == "What is 4?"


def test_sft_learns_from_what_was_kept(tmp_path: Path) -> None:
    """Nothing of a row is told as unused."""
    file = written(tmp_path)
    with Review(file) as rows:
        rows.give(2, "keep")
    found = read(file.with_suffix(".kept.jsonl"))
    assert [to_chat(row)["messages"][1]["content"] for row, _ in found] == ["A number 2."]
    assert found.telling() == ""


def test_in_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO("k\nd\nu\nk\nwhat\ns\nk\nq\n"))
    assert cli.main(["data", "review", str(file)]) == 0
    told = capsys.readouterr()
    assert "5 rows: 3 kept, 0 dropped, 2 left" in told.out
    assert kept(file) == ["What is 0?", "What is 1?", "What is 3?"]
    assert "│ 0 is a number." in told.err
    assert cli.main(["data", "review", str(tmp_path / "none.jsonl")]) == 2


def test_the_arrows_of_the_app_do_the_same_in_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path)
    typed = Typed(["u", RIGHT, LEFT, "u", RIGHT, "\x1b", "s", LEFT, "q"])
    with Review(file) as rows:
        review_terminal._ask(rows, typed)  # type: ignore[arg-type]
        assert rows.counts == {"rows": 5, "kept": 2, "dropped": 1, "left": 2}
    assert kept(file) == ["What is 0?", "What is 1?"]
    assert capsys.readouterr().err.count("nothing to undo") == 1


@pytest.mark.parametrize("content", ["", "no\n", '{"messages": []}\n', "[1]\n", '{"text": "a"}\n'])
def test_files_of_other_things_are_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(content)
    with pytest.raises(UserError, match=r"a\.jsonl"), Review(file):
        pass


@pytest.mark.parametrize("name", [".", "/", "", ".."])
def test_a_folder_is_no_file_of_rows(name: str) -> None:
    with pytest.raises(UserError, match=r"folder|not a file"), Review(name):
        pass
