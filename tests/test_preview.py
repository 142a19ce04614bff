"""`data show`: what is marked is what the stage learns, and every row is accounted for."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ondevice as od
import small_stages
from ondevice import cli
from ondevice.common.errors import UserError
from ondevice.data import plain_text, rows
from ondevice.data.chat_encoding import encode_chat
from ondevice.data.tokenizer import Tokenizer
from ondevice.datasets.preview import LEARNED, render
from ondevice.seam.select import load_backend
from test_hostile_commands import WRITTEN
from test_inert import acts

CHAT = {
    "messages": [
        {"role": "user", "content": "Anna"},
        {"role": "assistant", "content": "12"},
        {"role": "user", "content": "Rome"},
        {"role": "assistant", "content": "34 red"},
    ]
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_stages.write(
        tmp_path_factory.mktemp("preview") / "model",
        load_backend("torch", "cpu"),
        small_stages.config(),
    )


def write(folder: Path, *rows: Any) -> Path:
    file = folder / "rows.jsonl"
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return file


def marked(example: list[list[Any]]) -> list[str]:
    return [text for text, learned in example if learned]


def test_a_chat_is_marked_where_the_stage_learns(model: Path, tmp_path: Path) -> None:
    found = od.show_data(write(tmp_path, CHAT), model)
    tokenizer = Tokenizer.load(model)
    row = encode_chat(CHAT["messages"], tokenizer)[0]
    assert (found["form"], found["rows"], found["used"], found["learned"]) == (
        "chat",
        1,
        1,
        int(row.mask.sum()),
    )
    shown = found["examples"][0]["tokens"]
    assert "".join(text for text, _ in shown) == tokenizer.decode(row.ids, skip_special=False)
    assert [re.sub("<.*?>", "", text).strip() for text in marked(shown)] == ["12", "34 red"]
    ends = np.flatnonzero(np.diff(row.mask.astype(int)) == -1)
    assert all(int(row.ids[end]) in tokenizer.stop_ids for end in ends)


@pytest.mark.parametrize(
    ("row", "form", "learned"),
    [
        ({"text": "Anna likes pears"}, "text", True),
        ({"prompt": "Anna", "completion": "12"}, "chat", True),
        ({"prompt": "Anna", "chosen": "12", "rejected": "34"}, "preference", True),
        ({"question": "Anna 12?", "answer": "34"}, "chat", True),
        ({"prompt": "Anna"}, "prompt", False),
    ],
)
def test_each_form_is_told(
    model: Path, tmp_path: Path, row: dict[str, str], form: str, learned: bool
) -> None:
    found = od.show_data(write(tmp_path, row), model)
    assert (found["form"], found["used"], bool(found["learned"])) == (form, 1, learned)
    if form == "preference":
        sides = found["examples"][0]
        assert [marked(sides[name])[0][:2] for name in ("chosen", "rejected")] == ["12", "34"]


def test_every_row_is_accounted_for(model: Path, tmp_path: Path) -> None:
    long = {"prompt": "Anna", "completion": "red " * 100}
    lost = {"prompt": "Anna " * 100, "completion": "red"}
    found = od.show_data(
        write(tmp_path, CHAT, long, lost, "{broken", {"colour": "red"}, CHAT),
        model,
        sequence_length=40,
        examples=2,
    )
    assert found["rows"] == 6 and found["refused"] and len(found["examples"]) == 2
    skipped = {reason: entry["count"] for reason, entry in found["skipped"].items()}
    assert found["used"] + sum(skipped.values()) == 6 and found["cut"] == 1 and len(skipped) == 3
    shown = render(found)
    assert "3 used, 1 cut at 40 tokens, 3 left out" in shown and "a stage would refuse" in shown
    assert ":4" in shown  # where the broken line is


def test_what_of_a_folder_is_not_read_is_named(model: Path, tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({**CHAT, "category": "x"}) + "\n")
    (tmp_path / "a\x1b[31m.pdf").write_text("")
    found = od.show_data(tmp_path, model)
    assert found["rows"] == 1 and [note.partition(":")[0] for note in found["notes"]] == [
        "files not read"
    ]
    lines = render(found).splitlines()
    assert sum(line.startswith("not used: category (1 row") for line in lines) == 1
    [line] = [
        line
        for line in lines
        if line.startswith("files not read: 1 of the split test (test.jsonl), 1 of .pdf")
    ]
    assert not acts(line)


def test_a_row_of_another_form_is_bad_and_a_long_one_is_not(model: Path, tmp_path: Path) -> None:
    pair, long = (
        {"prompt": "Anna", "chosen": "12", "rejected": "34"},
        {"prompt": "Anna " * 100, "completion": "red"},
    )
    assert od.show_data(write(tmp_path, pair, CHAT), model, form="chat")["refused"]
    found = od.show_data(write(tmp_path, CHAT, long), model, sequence_length=40)
    assert not found["refused"] and found["used"] == 1


def test_a_text_file_is_one_row_however_long(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain_text, "_CHUNK", 1000)
    file = tmp_path / "long.txt"
    file.write_text("Anna likes pears.\n" * 300)
    assert len(list(rows.read(file))) > 1  # it is read in pieces, and ends once
    found = od.show_data(file, model)
    assert (found["rows"], found["used"]) == (1, 1)
    assert found["tokens"] == 1 + 300 * len(Tokenizer.load(model).encode("Anna likes pears.\n"))


@pytest.mark.parametrize("color", ["always", "never"])
def test_what_a_file_holds_cannot_act(model: Path, tmp_path: Path, color: str) -> None:
    rows = [{"prompt": text, "completion": text} for text in WRITTEN]
    shown = render(
        od.show_data(write(tmp_path, *rows), model, examples=len(rows), sequence_length=10_000),
        color,
    )
    for mark in LEARNED:
        shown = shown.replace(mark, "")
    assert not acts(shown)


def test_the_command(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, CHAT)
    assert cli.main(["data", "show", str(file), "--model", str(model)]) == 0
    out = capsys.readouterr().out
    assert "⟦12" in out and "\x1b" not in out and "1 row, read as chat (for sft)" in out
    assert cli.main(["data", "show", str(file), "--model", str(model), "--color", "always"]) == 0
    assert LEARNED[0] + "12" in capsys.readouterr().out
    assert cli.main(["data", "show", str(file), "--model", str(model), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["form"] == "chat"


@pytest.mark.parametrize(
    ("rows", "changes", "told"),
    [
        ([CHAT], {"model": "nowhere"}, "nowhere"),
        ([CHAT], {"model": ""}, "no model was named"),
        ([CHAT], {"data": "none.jsonl"}, r"none\.jsonl: no such file"),
        ([{"colour": "red"}], {}, "nothing to learn from"),
        ([], {}, r"rows\.jsonl"),
        ([CHAT], {"examples": -1}, "examples: -1 is too small"),
        ([CHAT], {"form": "chats"}, "form"),
    ],
)
def test_bad_input_is_one_line(
    model: Path, tmp_path: Path, rows: list[Any], changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError, match=told) as error:
        od.show_data(**{"data": write(tmp_path, *rows), "model": model, **changes})
    assert "\n" not in str(error.value)


def test_a_text_is_shown_as_each_architecture_learns_it(tmp_path: Path) -> None:
    """With its masks between what opens and closes it; with sentinels, and what they hide; a class
    beside its text.
    """
    text = (
        "Anna lives in Rome. Anna likes red apples, and Ben likes green pears. Ben: 12 + 34 = 46. "
        * 30
    )
    (tmp_path / "text.txt").write_text(text)
    shown = {}
    for family in ("modernbert", "t5", "bart"):
        model = od.init(
            str(tmp_path / "text.txt"),
            out=tmp_path / family,
            family=family,
            backend="torch",
            device="cpu",
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            vocab_size=340,
            max_position_embeddings=96,
        )
        shown[family] = od.show_data(tmp_path / "text.txt", model, sequence_length=90)
        assert shown[family]["form"] == "text" and shown[family]["used"] == 1
    share = {family: found["learned"] / found["tokens"] for family, found in shown.items()}
    assert 0.24 < share["modernbert"] < 0.36 and 0.15 < share["t5"] < 0.3 and share["bart"] == 1
    masked, spans, infilled = (found["examples"][0]["tokens"] for found in shown.values())
    assert masked[0][0].startswith("<|open|>") and any(
        part.strip() == "<|mask|>" for part in marked(masked)
    )
    assert (
        len(spans) == 2 and spans[1][0].startswith("<extra_id_0>") and "<extra_id_0>" in spans[0][0]
    )
    assert len(infilled) == 2 and "<|mask|>" in infilled[0][0] and "<|mask|>" not in infilled[1][0]
    row = write(
        tmp_path,
        {"text": "Anna", "label": "who"},
        {"text": "Rome", "label": 3},
        {"text": "x", "label": None},
    )
    found = od.show_data(row, tmp_path / "modernbert")
    assert (found["form"], found["used"], found["learned"]) == ("label", 2, 2)
    assert marked(found["examples"][0]["tokens"]) == [" who"] and len(found["skipped"]) == 1
    assert od.show_data(row, tmp_path / "t5")["form"] == "text"
