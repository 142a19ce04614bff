"""Stories to order: what is asked of a text can be checked on it, follows from it alone, and is
read by every stage that rows are for."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest

from ondevice.common.errors import UserError
from ondevice.config.corpus import CorpusConfig
from ondevice.data.builtin.stories import story
from ondevice.data.builtin.world import make_world
from ondevice.data.formats import to_chat, to_prompt
from ondevice.data.mixture import is_there, sources
from ondevice.data.orders import COMMON, LEAST_WORDS, MOST_WORDS, order_of
from ondevice.data.rows import Reading, read
from ondevice.datasets.spec import data_digest
from ondevice.publishing.history import _hub_repos
from ondevice.publishing.public_names import source_name, sources_value
from ondevice.rewards.problems import file_problems
from ondevice.rewards.scorer import Rewards

REWARDS = ("words", "begins", "ends", "word_count", "finished")


def stories(count: int, seed: int = 0) -> list[str]:
    """Little stories of the built-in corpus, made longer two by two."""
    random, world = Random(seed), make_world(CorpusConfig())
    return [f"{story(random, world)} {story(random, world)}" for _ in range(count)]


def test_every_order_is_fulfilled_by_its_own_text() -> None:
    made = [order for text in stories(200) if (order := order_of(text))]
    assert len(made) > 150
    kinds = {name for order in made for name in order.columns}
    assert kinds == {"begins", "words", "ends", "word_count"}
    for order in made:
        names = tuple(name for name in REWARDS if name in order.columns or name == "finished")
        with Rewards(names) as rewards:
            columns = {name: [value] for name, value in order.columns.items()}
            scores = rewards.score(
                [order.prompt], [order.completion], {**columns, "truncated": [False]}
            )
        assert {name: float(values[0]) for name, values in scores.by_name.items()} == dict.fromkeys(
            names, 1.0
        ), order
        for name, value in order.columns.items():
            for part in value if name == "words" else [value] if isinstance(value, str) else []:
                assert part in order.prompt


def test_an_order_follows_from_its_text_alone() -> None:
    for text in stories(5):
        assert order_of(text) == order_of(f"\n {text}\n") is not None
    prompts = {order.prompt for order in filter(None, map(order_of, stories(40)))}
    assert len(prompts) > 30


def test_words_to_use_are_neither_common_nor_quoted() -> None:
    for order in filter(None, map(order_of, stories(100))):
        quoted = (
            f"{order.columns.get('begins', '')} {order.columns.get('ends', '')}".lower().split()
        )
        for word in order.columns.get("words", ()):
            assert word.lower() not in COMMON and word.lower() not in quoted


WHOLE = "The cat sat by the river and the moon was bright over the quiet hills of the valley. " * 3


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Too short.",
        WHOLE.strip()[:-1],
        "word " * (LEAST_WORDS - 1) + ".",
        "a " * MOST_WORDS + "b.",
    ],
)
def test_what_is_no_whole_story_makes_no_order(text: str) -> None:
    assert order_of(text) is None


def test_quotation_marks_are_not_quoted() -> None:
    text = f'"Hello," said Tom. {WHOLE}"Bye," he said.'
    order = order_of(text)
    assert order is not None and not {"begins", "ends"} & set(order.columns)
    assert order.prompt.count('"') == 0


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_of_orders_are_chats_prompts_and_problems(tmp_path: Path) -> None:
    file = write(tmp_path / "s.jsonl", [{"text": text, "id": 3} for text in stories(20)])
    rows = read(f"orders:{file}")
    found = list(rows)
    assert len(found) == 20 and set(rows.unused) == {"id"} and rows.telling() == ""
    for row, where in found:
        assert where.startswith(f"{file}:")
        assert [m["role"] for m in to_chat(row)["messages"]] == ["user", "assistant"]
        messages, known = to_prompt(row)
        assert len(messages) == 1 and known["kind"] == "order"
    problems = list(
        file_problems(
            f"orders:{file}", lambda rows: rows.check(), uses=set(REWARDS), answered=False
        )
    )
    assert problems and all(problem.prompt and not problem.answer for problem in problems)


def test_limit_counts_orders_and_what_is_left_out_is_told(tmp_path: Path) -> None:
    texts = [text for pair in zip(["short."] * 6, stories(6), strict=True) for text in pair]
    file = write(tmp_path / "s.jsonl", [{"story": text, "mood": "sad"} for text in texts])
    rows = read(f"orders:{file}", limit=3, reading=Reading(("text=story",)))
    assert len(list(rows)) == 3
    assert rows.notes == [
        "3 texts make no order (an order needs 20 to 600 words and a sentence at the end)"
    ]
    assert list(rows.unused) == ["mood"]


def test_what_has_no_orders_is_refused_in_a_line(tmp_path: Path) -> None:
    short = write(tmp_path / "s.jsonl", [{"text": "No."}] * 3)
    other = write(tmp_path / "o.jsonl", [{"body": WHOLE}] * 3)
    with pytest.raises(UserError, match="none of 3 texts makes an order"):
        list(read(f"orders:{short}"))
    with pytest.raises(UserError, match=r"has no text to make an order of .*none of the 3 rows"):
        list(read(f"orders:{other}"))
    with pytest.raises(UserError, match="no such file") as caught:
        read("orders:builtin")
    assert "orders are made of the texts of a file" in caught.value.hint
    for name in ("orders:hub:me//x", "orders:gym:chain_sum"):
        with pytest.raises(UserError):
            read(name)


def test_its_name_is_a_source_like_any_other(tmp_path: Path) -> None:
    file = write(tmp_path / "s.jsonl", [{"text": WHOLE}])
    name = f"orders:{file}"
    assert is_there(name) and is_there("orders:hub:a/b") and not is_there("orders:nowhere.jsonl")
    assert [tuple(one) for one in sources(f"{name}:2,hub:a/b:1")] == [(name, 2.0), ("hub:a/b", 1.0)]
    digest = partial(data_digest, validation="", default=CorpusConfig())
    first = digest(name)
    assert first != digest(str(file))
    file.write_text(json.dumps({"text": WHOLE + "More."}) + "\n")
    assert digest(name) != first
    assert source_name(name) == "orders of s.jsonl" and sources_value(name) == "orders:s.jsonl"
    assert source_name("orders:hub:a/b:train") == "orders of a/b:train"
    assert _hub_repos("orders:hub:a/b:train[:5],hub:c/d") == ["a/b", "c/d"]
