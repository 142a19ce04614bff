"""What is held out is learned nowhere: turns of one chat, and the same chat, prompt, document or
text again, stand on one side."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from data_samples import small_tokenizer
from ondevice.common.errors import UserError
from ondevice.config.corpus import CorpusConfig
from ondevice.config.data import DataConfig
from ondevice.data.batches import mixed_stream
from ondevice.data.chat_encoding import encode_chat
from ondevice.data.context import DataContext
from ondevice.data.documents import Documents
from ondevice.data.mixture import Joined
from ondevice.datasets.preference_pairs import _copied
from ondevice.datasets.preview import render, show
from ondevice.datasets.prompts import prompts
from ondevice.datasets.spec import DataSpec
from ondevice.datasets.text_and_chats import Chats, Labelled, chats, labelled_texts, token_streams
from ondevice.rewards.problems import problems
from ondevice.rl.problem_prompts import ProblemPrompts

TOKENIZER = small_tokenizer()


def chat(*said: str) -> dict[str, Any]:
    return {
        "messages": [
            {"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(said)
        ]
    }


def by_turns(number: int, turns: int = 5) -> list[dict[str, Any]]:
    """One chat as rows of its first turn, of its first two, and so on."""
    said = [
        text
        for turn in range(turns)
        for text in (f"question {number} {turn}", f"answer {number} {turn}")
    ]
    return [chat(*said[: 2 * turn + 2]) for turn in range(turns)]


def write(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


class Ctx(DataContext):
    """Keeps what it warns of; nothing else is told."""

    def __init__(self, folder: Path) -> None:
        self.warned: list[str]
        object.__setattr__(self, "warned", [])
        super().__init__(folder / "run" / "sft", tell=_unexpected, warn=self.warned.append)


def _unexpected(message: str) -> None:
    raise AssertionError(message)


def texts(rows: Any) -> list[str]:
    return [TOKENIZER.decode(row.ids, skip_special=False) for row in rows]


def rendered(rows: list[dict[str, Any]]) -> list[str]:
    return texts(encode_chat(row["messages"], TOKENIZER)[0] for row in rows)


def split(rows: list[dict[str, Any]], folder: Path, **more: Any) -> tuple[Chats, list[str]]:
    ctx = Ctx(folder)
    return chats(DataSpec(write(folder / "rows.jsonl", rows), **more), TOKENIZER, ctx), ctx.warned


@pytest.mark.parametrize("order", ["one after another", "shuffled"])
def test_the_turns_of_a_chat_stand_on_one_side(order: str, tmp_path: Path) -> None:
    rows = [row for number in range(20) for row in by_turns(number)]
    if order == "shuffled":
        rows = [rows[7 * n % 100] for n in range(100)]
    found, warned = split(rows, tmp_path)
    sides = [
        {text.split("question ")[1].split(" ")[0] for text in texts(part)}
        for part in (found.train, found.held)
    ]
    assert (
        not sides[0] & sides[1] and (len(found.train), len(found.held)) == (90, 10) and not warned
    )
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
    found, warned = split(
        [chat(f"question {n}", "yes") for n in range(10)],
        tmp_path,
        validation=write(tmp_path / "held.jsonl", held),
    )
    assert (len(found.train), len(found.held)) == (7, 3) and "3 chats are left out" in warned[0]
    with pytest.raises(UserError, match="all of it is held out too"):
        chats(
            DataSpec(write(tmp_path / "a.jsonl", held), write(tmp_path / "b.jsonl", held)),
            TOKENIZER,
            Ctx(tmp_path / "other"),
        )  # type: ignore[arg-type]


def test_chats_of_one_source_are_not_learned_where_another_holds_them_out(tmp_path: Path) -> None:
    one, other = (
        [chat(f"question {n}", "yes") for n in numbers] for numbers in (range(20), range(19, 40))
    )
    ctx = Ctx(tmp_path)
    found = chats(
        DataSpec(f"{write(tmp_path / 'a.jsonl', one)},{write(tmp_path / 'b.jsonl', other)}"),
        TOKENIZER,
        ctx,
    )  # type: ignore[arg-type]
    assert not set(texts(found.train)) & set(texts(found.held)) and len(ctx.warned) == 1


def test_a_template_that_needs_a_row_a_turn_splits_no_chat(tmp_path: Path) -> None:
    rows = [chat(f"q {n}", "yes", "and?", "no", "well?", "so") for n in range(20)]
    per_turn = TOKENIZER.with_template(
        "{% for m in messages %}{% if m.role == 'assistant' and not loop.last %}{{ '(said)' }}{% else %}"
        "{{ m.content + eos_token }}{% endif %}{% endfor %}",
        (),
    )
    found = chats(DataSpec(write(tmp_path / "rows.jsonl", rows)), per_turn, Ctx(tmp_path))
    assert (len(found.train), len(found.held)) == (54, 6)


def test_the_turns_of_a_chat_of_pairs_stand_on_one_side(tmp_path: Path) -> None:
    rows = [
        {"prompt": row["messages"][:-1], "chosen": "a", "rejected": "b"}
        for number in range(40)
        for row in by_turns(number, 3)
    ]
    part = tmp_path / "pairs.jsonl"
    _copied(part, DataSpec(write(tmp_path / "rows.jsonl", rows)), 0.3, Ctx(tmp_path))
    sides: dict[bool, set[str]] = {False: set(), True: set()}
    for row in map(json.loads, part.read_text().splitlines()):
        sides[row["held"]].add(row["prompt"][0]["content"])
    assert sides[True] and len(sides[False]) + len(sides[True]) == 40


# ---- documents of plain text ----------------------------------------------------------------------------------------


def document(number: int) -> dict[str, Any]:
    return {"text": f"This is the story of number {number}, which is told once."}


def streams(wanted: DataSpec, folder: Path, **more: Any) -> tuple[list[str], list[str], list[str]]:
    """Documents to learn from, those held out, and what was said."""
    ctx = Ctx(folder)
    found = token_streams(wanted, TOKENIZER, ctx, **more)
    train, held = (
        [text for text in TOKENIZER.decode(part[:], skip_special=False).split(END) if text]
        for part in found
    )
    return train, held, ctx.warned


END = TOKENIZER.decode([TOKENIZER.eos_id], skip_special=False)


def told(numbers: Any) -> list[str]:
    return [document(number)["text"] for number in numbers]


def test_documents_of_a_validation_file_are_not_learned(tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", list(map(document, range(10))))
    held = write(tmp_path / "b.jsonl", list(map(document, (3, 4, 9))))
    train, measured, warned = streams(DataSpec(data, held), tmp_path)
    assert train == told([0, 1, 2, 5, 6, 7, 8]) and measured == told([3, 4, 9])
    assert warned == ["3 documents are left out because they are held out too"]
    with pytest.raises(UserError, match="all of it is held out too") as error:
        streams(DataSpec(data, data), tmp_path / "other")
    assert error.value.where == data


def test_documents_that_end_at_a_separator_are_compared_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one is here##two is here##three is here")
    train, _, warned = streams(
        DataSpec(str(tmp_path / "a.txt"), write(tmp_path / "b.jsonl", [{"text": "two is here"}])),
        tmp_path,
        separator="##",
    )
    assert train == ["one is here", "three is here"]
    assert warned[-1] == "1 document is left out because it is held out too"


def test_documents_of_one_source_are_not_learned_where_another_holds_them_out(
    tmp_path: Path,
) -> None:
    one = write(tmp_path / "a.jsonl", list(map(document, range(20))))
    other = write(tmp_path / "b.jsonl", list(map(document, [*range(40, 60), 5])))
    train, held, warned = streams(DataSpec(f"{one},{other}"), tmp_path)
    assert "number 5," in "".join(held) and "number 5," not in "".join(train)
    assert warned == ["1 document is left out because it is held out too"]


def test_a_document_that_stands_before_the_last_tenth_too_is_learned_and_not_held_out(
    tmp_path: Path,
) -> None:
    data = write(tmp_path / "a.jsonl", [*map(document, range(40)), document(7), document(41)])
    train, held, warned = streams(DataSpec(data), tmp_path)
    assert (
        train.count(document(7)["text"]) == 2
        and not set(train) & set(held)
        and held[-1] == document(41)["text"]
    )
    assert len(train) + len(held) == 42 and not warned
    again = write(tmp_path / "same.jsonl", [document(n % 2) for n in range(40)])
    train, held, warned = streams(DataSpec(again), tmp_path / "other")
    assert held and "all documents of the last tenth stand before it too" in warned[0]


def test_documents_are_found_where_an_end_token_opens_them_too() -> None:
    tokens = np.array([9, 1, 2, 9, 9, 3, 9, 9, 1, 2, 9, 4, 5], np.uint16)
    found = Documents.of(tokens, 9)
    assert list(zip(found.starts.tolist(), found.ends.tolist(), strict=True)) == [
        (0, 4),
        (4, 7),
        (7, 11),
        (11, 13),
    ]
    assert found.keys[0] == found.keys[2] != found.keys[1]
    kept = found.only(np.array([True, False, True, True])).stream
    assert isinstance(kept, Joined) and kept[:].tolist() == [9, 1, 2, 9, 9, 1, 2, 9, 4, 5]
    first, last = found.parted(5)
    assert (
        first.stream.tolist() == tokens[:5].tolist() and last.stream.tolist() == tokens[5:].tolist()
    )
    assert found.only(np.zeros(4, np.bool_)).stream.tolist() == []


def test_a_stream_with_gaps_is_repeated_like_any_other() -> None:
    tokens = np.arange(100, dtype=np.int32)
    gaps = Joined([tokens[:30], tokens[50:]], np.int32)
    whole = np.concatenate([tokens[:30], tokens[50:]])
    other = np.arange(1000, 1040, dtype=np.int32)
    for weights in ([1.0, 2.0], [2.0, 1.0], [None, None]):
        made, plain = (mixed_stream([part, other], weights, 7) for part in (gaps, whole))
        assert made[:].tolist() == plain[:].tolist()


# ---- texts with classes ---------------------------------------------------------------------------------------------


def classes(wanted: DataSpec, folder: Path, pair: str = "") -> tuple[Labelled, list[str]]:
    ctx = Ctx(folder)
    return labelled_texts(wanted, "text", "label", ctx, pair), ctx.warned


def test_texts_of_a_validation_file_are_no_examples_of_classes(tmp_path: Path) -> None:
    rows = [{"text": f"text {n}", "label": "ab"[n % 2]} for n in range(10)]
    # whatever the class
    held = [{"text": "text 3", "label": "a"}, {"text": "text 4", "label": "b"}]
    found, warned = classes(
        DataSpec(write(tmp_path / "a.jsonl", rows), write(tmp_path / "b.jsonl", held)), tmp_path
    )
    assert [row.text for row in found.train] == [f"text {n}" for n in (0, 1, 2, 5, 6, 7, 8, 9)]
    assert warned == ["2 texts are left out because they are held out too"]
    with pytest.raises(UserError, match="all of it is held out too"):
        classes(DataSpec(*[write(tmp_path / "a.jsonl", rows)] * 2), tmp_path / "other")


def test_a_second_text_makes_it_another_one(tmp_path: Path) -> None:
    rows = [{"text": "text", "second": f"second {n}", "label": "ab"[n % 2]} for n in range(10)]
    found, warned = classes(
        DataSpec(write(tmp_path / "a.jsonl", rows), write(tmp_path / "b.jsonl", rows[:2])),
        tmp_path,
        pair="second",
    )
    assert len(found.train) == 8 and warned == [
        "2 texts are left out because they are held out too"
    ]


def test_the_same_text_again_is_held_out_with_it(tmp_path: Path) -> None:
    rows = [{"text": f"text {n // 2 % 20}", "label": "ab"[n % 2]} for n in range(80)]
    found, warned = classes(DataSpec(write(tmp_path / "a.jsonl", rows)), tmp_path)
    sides = [{row.text for row in part} for part in (found.train, found.held)]
    assert (
        sides[1]
        and not sides[0] & sides[1]
        and len(found.train) + len(found.held) == 80
        and not warned
    )


# ---- prompts --------------------------------------------------------------------------------------------------------

MODEL: Any = SimpleNamespace(
    tokenizer=TOKENIZER,
    network=SimpleNamespace(decoder_start_token_id=None),
    cfg=SimpleNamespace(max_position_embeddings=512),
)


def asking(number: int, turns: int = 5) -> list[dict[str, Any]]:
    return [{"prompt": row["messages"][:-1]} for row in by_turns(number, turns)]


def test_prompts_that_are_turns_of_one_chat_stand_on_one_side(tmp_path: Path) -> None:
    rows = [row for number in range(20) for row in asking(number)]
    data = DataSpec(write(tmp_path / "rows.jsonl", [rows[7 * n % 100] for n in range(100)]))
    ctx = Ctx(tmp_path)
    train, held = (prompts(data, part, MODEL, 8, ctx) for part in ("train", "validation"))
    sides = [{one.messages[0]["content"] for one in part} for part in (train, held)]
    assert (len(train), len(held)) == (90, 10) and not sides[0] & sides[1] and not ctx.warned


def test_problems_that_are_turns_of_one_chat_stand_on_one_side(tmp_path: Path) -> None:
    rows = [{**row, "answer": "1"} for number in range(20) for row in asking(number)]
    data = write(tmp_path / "rows.jsonl", [rows[7 * n % 100] for n in range(100)])
    sides = [
        {one.chat[0]["content"] for one in problems(data, part, 0, 0, CorpusConfig())}
        for part in ("train", "validation")
    ]  # type: ignore[arg-type]
    assert sides[1] and not sides[0] & sides[1]


def test_grpo_holds_out_the_turns_of_a_chat_together(tmp_path: Path) -> None:
    rows = [{**row, "answer": "1"} for number in range(20) for row in asking(number)]
    data = DataSpec(write(tmp_path / "rows.jsonl", [rows[7 * n % 100] for n in range(100)]))
    rewards = SimpleNamespace(uses=set, needed=lambda: {"answer"}, runs_tests=False)
    cfg = SimpleNamespace(seed=0, max_new_tokens=8)
    prompts = ProblemPrompts(cfg, Ctx(tmp_path), MODEL, rewards)  # type: ignore[arg-type]
    train = prompts.source(data, "train", 0)
    held = prompts.source(data, "validation", 0)
    sides = [{one.messages[0]["content"] for one in part} for part in (train, held)]
    assert (len(train), len(held)) == (90, 10) and not sides[0] & sides[1]


def test_prompts_that_are_left_out_are_counted(tmp_path: Path) -> None:
    one, other = (
        write(tmp_path / name, [{"prompt": f"question {n}"} for n in numbers])
        for name, numbers in (("a.jsonl", range(20)), ("b.jsonl", [*range(30, 49), 3, 50]))
    )
    ctx = Ctx(tmp_path)
    wanted = DataSpec(f"{one},{other}")
    found = prompts(wanted, "train", MODEL, 8, ctx)
    assert ctx.warned == ["1 prompt is left out because it is held out too"]
    assert "question 3" not in {one.text for one in found} and len(found) == 18 + 19 - 1
    few = write(tmp_path / "few.jsonl", [{"prompt": "question 3"}, {"prompt": "question 60"}])
    with pytest.raises(UserError, match="all of it is held out too") as error:
        prompts(DataSpec(f"{other},{few}"), "train", MODEL, 8, ctx)
    assert error.value.where == few


# ---- what `data show` says of it ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    import small_stages
    from ondevice.seam.select import load_backend

    folder = tmp_path_factory.mktemp("model")
    return str(
        small_stages.make(folder, load_backend("torch", device="cpu", dtype="float32")) / "policy"
    )


FORMS: dict[str, Any] = {
    "text": document,
    "chat": lambda n: chat(f"question {n}", "yes"),
    "preference": lambda n: {"prompt": f"question {n}", "chosen": "yes", "rejected": "no"},
    "judged": lambda n: {"prompt": f"question {n}", "completion": "yes", "label": True},
    "prompt": lambda n: {"prompt": f"question {n}"},
    "label": lambda n: {"text": f"text {n}", "label": "a"},
}


@pytest.mark.parametrize("form", FORMS)
def test_data_show_counts_what_is_held_out_too(form: Any, model: str, tmp_path: Path) -> None:
    data, held = (
        write(tmp_path / name, [FORMS[form](n) for n in numbers])
        for name, numbers in (("a.jsonl", range(10)), ("b.jsonl", (3, 4, 40)))
    )
    found = show(DataConfig(action="show", data=data, model=model, validation=held, form=form))
    assert found["used"] == 8 and not found["held_out"]
    assert found["skipped"] == {
        "held out too, so that it is not learned from": {"count": 2, "first": f"{data}:4"}
    }
    assert "  2 × held out too, so that it is not learned from (first: " in render(found)
    found = show(DataConfig(action="show", data=data, model=model, validation=data, form=form))
    assert found["used"] == 0 and "would refuse this data: all of it is held out too" in render(
        found
    )


def test_data_show_compares_long_documents_as_a_whole(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ondevice.data.plain_text._CHUNK", 64)
    (tmp_path / "a").mkdir()
    text = "".join(f"This is line {n} of it.\n" for n in range(40))
    (tmp_path / "a" / "one.txt").write_text(text)
    (tmp_path / "a" / "two.txt").write_text(
        text + "".join(f"And {n * n} more.\n" for n in range(90))
    )
    (tmp_path / "held.txt").write_text(text)
    held = str(tmp_path / "held.txt")
    found = show(DataConfig(action="show", data=str(tmp_path / "a"), model=model, validation=held))
    assert (found["rows"], found["used"]) == (2, 1) and all(
        "two.txt" in e["where"] for e in found["examples"]
    )
