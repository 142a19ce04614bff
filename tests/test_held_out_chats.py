"""What is held out is learned nowhere: turns of one chat, and the same chat again, stand on one side."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data_samples import small_tokenizer
from ondevice.common.errors import UserError
from ondevice.config.corpus import CorpusConfig
from ondevice.data.chat_encoding import encode_chat
from ondevice.datasets.preference_pairs import _copied
from ondevice.datasets.spec import DataSpec
from ondevice.datasets.text_and_chats import Chats, chats

TOKENIZER = small_tokenizer()


def chat(*said: str) -> dict[str, Any]:
    return {"messages": [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(said)]}


def by_turns(number: int, turns: int = 5) -> list[dict[str, Any]]:
    """One chat as rows of its first turn, of its first two, and so on."""
    said = [text for turn in range(turns) for text in (f"question {number} {turn}", f"answer {number} {turn}")]
    return [chat(*said[:2 * turn + 2]) for turn in range(turns)]


def write(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


class Ctx(SimpleNamespace):
    def __init__(self, folder: Path) -> None:
        super().__init__(name="sft", corpus=CorpusConfig(), warned=[],
                         folder=SimpleNamespace(path=folder / "run" / "sft"))
        self.folder.path.mkdir(parents=True)

    def warn(self, message: str) -> None:
        self.warned.append(message)

    def say(self, message: str) -> None:
        raise AssertionError(message)


def texts(rows: Any) -> list[str]:
    return [TOKENIZER.decode(row.ids, skip_special=False) for row in rows]


def rendered(rows: list[dict[str, Any]]) -> list[str]:
    return texts(encode_chat(row["messages"], TOKENIZER)[0] for row in rows)


def split(rows: list[dict[str, Any]], folder: Path, **more: Any) -> tuple[Chats, list[str]]:
    ctx = Ctx(folder)
    return chats(DataSpec(write(folder / "rows.jsonl", rows), **more), TOKENIZER, ctx), ctx.warned  # type: ignore[arg-type]


@pytest.mark.parametrize("order", ["one after another", "shuffled"])
def test_the_turns_of_a_chat_stand_on_one_side(order: str, tmp_path: Path) -> None:
    rows = [row for number in range(20) for row in by_turns(number)]
    if order == "shuffled":
        rows = [rows[7 * n % 100] for n in range(100)]
    found, warned = split(rows, tmp_path)
    sides = [{text.split("question ")[1].split(" ")[0] for text in texts(part)} for part in (found.train, found.held)]
    assert not sides[0] & sides[1] and (len(found.train), len(found.held)) == (90, 10) and not warned
    if order != "shuffled":
        assert sides[1] == {"18", "19"}


def test_chats_of_their_own_are_held_out_from_the_end(tmp_path: Path) -> None:
    rows = [chat(f"question {n}", "yes") for n in range(40)]
    found, _ = split(rows, tmp_path)
    assert texts(found.train) == rendered(rows[:36]) and texts(found.held) == rendered(rows[36:])


def test_the_same_chat_again_stands_on_one_side(tmp_path: Path) -> None:
    rows = [chat(f"question {n % 10}", "yes") for n in range(40)]
    found, _ = split(rows, tmp_path)
    assert not set(texts(found.train)) & set(texts(found.held)) and len(found.held) == 4


def test_long_chats_leave_something_on_either_side(tmp_path: Path) -> None:
    """Where no chat has as few turns as a tenth of all rows, the shortest one is held out."""
    found, _ = split([*by_turns(0, 9), *by_turns(1, 4), *by_turns(2, 9)], tmp_path)
    assert len(found.held) == 4 and all("question 1 " in text for text in texts(found.held))


def test_of_a_single_chat_it_is_said(tmp_path: Path) -> None:
    found, warned = split(by_turns(0, 20), tmp_path)
    assert (len(found.train), len(found.held)) == (18, 2) and "all chats begin alike" in warned[0]


def test_chats_of_a_validation_file_are_not_learned(tmp_path: Path) -> None:
    held = [chat(f"question {n}", "yes") for n in range(3)]
    found, warned = split([chat(f"question {n}", "yes") for n in range(10)], tmp_path,
                          validation=write(tmp_path / "held.jsonl", held))
    assert (len(found.train), len(found.held)) == (7, 3) and "3 chats are left out" in warned[0]
    with pytest.raises(UserError, match="all of it is held out too"):
        chats(DataSpec(write(tmp_path / "a.jsonl", held), write(tmp_path / "b.jsonl", held)), TOKENIZER,
              Ctx(tmp_path / "other"))  # type: ignore[arg-type]


def test_chats_of_one_source_are_not_learned_where_another_holds_them_out(tmp_path: Path) -> None:
    one, other = ([chat(f"question {n}", "yes") for n in numbers] for numbers in (range(20), range(19, 40)))
    ctx = Ctx(tmp_path)
    found = chats(DataSpec(f"{write(tmp_path / 'a.jsonl', one)},{write(tmp_path / 'b.jsonl', other)}"), TOKENIZER,
                  ctx)  # type: ignore[arg-type]
    assert not set(texts(found.train)) & set(texts(found.held)) and len(ctx.warned) == 1


def test_a_template_that_needs_a_row_a_turn_splits_no_chat(tmp_path: Path) -> None:
    rows = [chat(f"q {n}", "yes", "and?", "no", "well?", "so") for n in range(20)]
    per_turn = TOKENIZER.with_template(
        "{% for m in messages %}{% if m.role == 'assistant' and not loop.last %}{{ '(said)' }}{% else %}"
        "{{ m.content + eos_token }}{% endif %}{% endfor %}", ())
    found = chats(DataSpec(write(tmp_path / "rows.jsonl", rows)), per_turn, Ctx(tmp_path))  # type: ignore[arg-type]
    assert (len(found.train), len(found.held)) == (54, 6)


def test_the_turns_of_a_chat_of_pairs_stand_on_one_side(tmp_path: Path) -> None:
    rows = [{"prompt": row["messages"][:-1], "chosen": "a", "rejected": "b"}
            for number in range(40) for row in by_turns(number, 3)]
    part = tmp_path / "pairs.jsonl"
    _copied(part, DataSpec(write(tmp_path / "rows.jsonl", rows)), 0.3, Ctx(tmp_path))  # type: ignore[arg-type]
    sides: dict[bool, set[str]] = {False: set(), True: set()}
    for row in map(json.loads, part.read_text().splitlines()):
        sides[row["held"]].add(row["prompt"][0]["content"])
    assert sides[True] and len(sides[False]) + len(sides[True]) == 40
