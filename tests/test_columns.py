"""What columns are called otherwise, and how many rows may be bad: the same for all stages and all
that looks.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import ondevice as od
import small_stages
from ondevice.common.errors import UserError
from ondevice.config.data import DataConfig
from ondevice.config.evaluation import EvalConfig
from ondevice.data.formats import to_chat
from ondevice.data.preference_formats import to_pair
from ondevice.data.rows import LIMIT, Reading, read
from ondevice.rewards.problems import problems
from ondevice.seam.select import load_backend


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_stages.write(
        tmp_path_factory.mktemp("columns") / "model",
        load_backend("torch", "cpu"),
        small_stages.config(),
    )


def write(file: Path, *rows: Any) -> str:
    file.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    )
    return str(file)


def made(tmp_path: Path, row: dict[str, Any], *columns: str, convert: Any = to_chat) -> Any:
    rows = read(write(tmp_path / "a.jsonl", row), reading=Reading(columns))
    return [(convert(found), rows.unused) for found, _ in rows][0][0], rows.unused


def said(*texts: str) -> dict[str, Any]:
    return {
        "messages": [
            {"role": ("user", "assistant")[n], "content": text} for n, text in enumerate(texts)
        ]
    }


def test_columns_get_the_names_of_a_form(tmp_path: Path) -> None:
    row = {"ask": "a", "reply": "b", "tag": 1}
    assert made(tmp_path, row, "prompt=ask", "completion=reply") == (
        said("a", "b"),
        {"tag": (1, f"{tmp_path / 'a.jsonl'}:1")},
    )
    pair = made(
        tmp_path,
        {"ask": "a", "good": "b", "worse": "c"},
        "prompt=ask",
        "chosen=good",
        "rejected=worse",
        convert=to_pair,
    )[0]
    assert (pair["chosen"], pair["rejected"]) == ("b", "c")


@pytest.mark.parametrize(
    "other",
    [
        {"messages": said("x", "y")["messages"]},
        {"prompt": "x", "answer": "y"},
        {"instruction": "x", "output": "y"},
        {"text": "x"},
        {"question": "x"},
    ],
)
def test_what_is_named_comes_before_what_the_file_calls_so(
    other: dict[str, Any], tmp_path: Path
) -> None:
    found, unused = made(
        tmp_path, {"ask": "a", "reply": "b", **other}, "prompt=ask", "completion=reply"
    )
    assert found == said("a", "b") and set(unused) == set(other)


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"a.jsonl:1: has no column 'ask' \(it has question, reply\)"
    ):
        made(tmp_path, {"question": "a", "reply": "b"}, "prompt=ask")


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        (("prompt",), "does not say what is what"),
        (("=a",), "does not say"),
        (("prompt=a", "prompt=b"), "there twice"),
    ],
)
def test_columns_that_say_nothing(columns: tuple[str, ...], told: str) -> None:
    with pytest.raises(UserError, match=f"columns: .*{told}"):
        DataConfig(action="show", data="a", model="m", columns=columns).check()


def test_columns_in_stages_and_in_what_looks(model: Path, tmp_path: Path) -> None:
    data = write(
        tmp_path / "rows.jsonl",
        *({"ask": f"Anna {n}", "reply": "12", "worse": "34"} for n in range(40)),
    )
    chat, pair = (
        ("prompt=ask", "completion=reply"),
        ("prompt=ask", "chosen=reply", "rejected=worse"),
    )
    common: dict[str, Any] = {"steps": 1, "batch_size": 2, "backend": "torch", "device": "cpu"}
    od.sft(model, data, out=str(tmp_path / "run"), columns=chat, sequence_length=32, **common)
    od.dpo(model, data, out=str(tmp_path / "run"), columns=pair, **common)
    shown = [od.show_data(data, model, columns=columns) for columns in (chat, pair)]
    assert [(found["form"], found["used"]) for found in shown] == [("chat", 40), ("preference", 40)]
    assert (
        od.evaluate(model=str(model), data=data, columns=chat, backend="torch", device="cpu")[
            "chats"
        ]
        == 40
    )
    assert [
        p.answer
        for p in problems(
            data,
            "all",
            2,
            0,
            None,
            reading=Reading(  # type: ignore[arg-type]
                ("question=ask", "answer=reply")
            ),
        )
    ] == ["12", "12"]
    with pytest.raises(UserError, match="columns: has no effect"):
        od.sft(
            model,
            "builtin",
            out=str(tmp_path / "other"),
            columns=chat,
            sequence_length=32,
            **common,
        )


def test_the_share_of_bad_rows_is_a_setting(model: Path, tmp_path: Path) -> None:
    """Texts of which the first is bad, chats, pairs, problems: the same rule."""
    file = write(tmp_path / "texts.jsonl", "no row", *({"text": f"Anna {n}"} for n in range(19)))
    with pytest.raises(
        UserError,
        match=r"texts.jsonl:1: not JSON.*1 of 20 rows are bad.*at most 1 % may be; --bad-share",
    ):
        list(read(file))
    assert len(list(read(file, reading=Reading(bad=0.05)))) == 19
    common: dict[str, Any] = {"backend": "torch", "device": "cpu"}
    with pytest.raises(UserError, match="texts.jsonl:1"):
        od.init(data=str(file), out=str(tmp_path / "none"), vocab_size=300, **common)
    od.init(data=str(file), out=str(tmp_path / "run"), vocab_size=300, bad_share=0.1, **common)
    rejected = [
        json.loads(line) for line in (tmp_path / "run/init/rejected.jsonl").read_text().splitlines()
    ]
    assert [Path(row["where"]).name for row in rejected] == ["texts.jsonl:1"]


def test_a_document_that_cannot_be_read_ends_no_stage(tmp_path: Path) -> None:
    """A Latin-1 note is read; what is no text is named and left out."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for n in range(5):
        (folder / f"{n}.txt").write_text(f"Anna {n}")
    (folder / "old.txt").write_bytes("café".encode("latin-1"))
    (folder / "picture.txt").write_bytes(b"a\0b")
    assert [row["text"] for row, _ in read(folder)][-1] == "café"
    od.init(
        data=str(folder),
        out=str(tmp_path / "run"),
        vocab_size=300,
        backend="torch",
        device="cpu",
    )
    rejected = [
        json.loads(line) for line in (tmp_path / "run/init/rejected.jsonl").read_text().splitlines()
    ]
    assert [Path(row["where"]).name for row in rejected] == ["picture.txt"]
    events = (tmp_path / "run/init/events.jsonl").read_text()
    assert "1 file left out: holds NUL bytes" in events


@pytest.mark.parametrize(
    ("tasks", "row"),
    [
        ((), {"prompt": "Anna", "completion": "12"}),
        (("problems",), {"question": "Anna", "answer": "12"}),
        (("preference",), {"prompt": "Anna", "chosen": "12", "rejected": "34"}),
    ],
)
def test_an_evaluation_bears_a_bad_first_row(
    tasks: tuple[str, ...],
    row: dict[str, Any],
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    good = [
        {name: value if name == "answer" else f"{value} {n}" for name, value in row.items()}
        for n in range(100)
    ]
    data = write(tmp_path / "rows.jsonl", "no row", *good)
    settings: dict[str, Any] = {
        "tasks": tasks,
        "backend": "torch",
        "device": "cpu",
        "limit": 0 if not tasks else 4,
    }
    if tasks == ("problems",):
        settings["max_new_tokens"] = 4
    if tasks == ("preference",):
        settings["reference"] = str(model)
    assert od.evaluate(model=str(model), data=data, **settings)
    assert f"1 of 101 rows could not be used (first: {data}:1: not JSON" in capsys.readouterr().err
    worse = write(tmp_path / "worse.jsonl", "no row", *good[:20])
    with pytest.raises(UserError, match=r"worse.jsonl:1: not JSON.*1 of 21 rows are bad"):
        od.evaluate(model=str(model), data=worse, **settings)
    assert od.evaluate(model=str(model), data=worse, bad_share=0.1, **settings)


def test_shares_out_of_range_and_the_usual_one() -> None:
    assert DataConfig(action="show", data="a").bad_share == EvalConfig(model="m").bad_share == LIMIT
    for share in (-0.1, 1.0):
        with pytest.raises(UserError, match="bad_share"):
            EvalConfig(model="m", bad_share=share).check()
