"""Sources: pure in the step, every target once an epoch with the right context, one denominator a
step.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_samples import TEXTS, real_data, small_tokenizer
from ondevice.common.errors import UserError
from ondevice.data.batches import ChatSource, TextSource, hold_out, tokenize_corpus
from ondevice.data.chat_encoding import ChatRow
from ondevice.data.plain_text import Part
from ondevice.data.rows import read
from ondevice.data.tokenizer import Tokenizer

EOS = 9
DTYPES = {
    "ids": "int32",
    "positions": "int32",
    "segments": "int32",
    "targets": "int32",
    "index": "int32",
    "weights": "float32",
    "denominator": "float32",
}


def chat_rows(count: int, seed: int = 0, longest: int = 30) -> list[ChatRow]:
    chance = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        length = int(chance.integers(2, longest))
        mask = chance.random(length) < 0.4
        mask[-1] = True
        rows.append(ChatRow(chance.integers(10, 1000, length).astype(np.int32), mask))
    return rows


def same(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> bool:
    return len(a) == len(b) and all(
        x.keys() == y.keys() and all(np.array_equal(x[key], y[key]) for key in x)
        for x, y in zip(a, b, strict=True)
    )


def check_form(batch: dict[str, Any], rows: int) -> None:
    for key, value in batch.items():
        assert str(value.dtype) == DTYPES[key], key
    assert batch["ids"].shape == batch["positions"].shape and batch["ids"].shape[0] == rows
    size = len(batch["targets"])
    assert places(batch).shape == batch["weights"].shape == (size,)
    assert places(batch).min() >= 0 and places(batch).max() < batch["ids"].size
    assert set(np.unique(batch["weights"])) <= {0.0, 1.0}
    if "segments" in batch:
        assert not batch["positions"][batch["segments"] == 0].any()


def places(batch: dict[str, Any]) -> np.ndarray:
    """The flat places of the targets: without an index every place in its order."""
    return batch.get("index", np.arange(batch["ids"].size))


def learned(batch: dict[str, Any]) -> list[tuple[tuple[int, ...], int]]:
    """(what attention may see, target) of every target."""
    width = batch["ids"].shape[1]
    pairs = []
    for place, target, weight in zip(
        places(batch), batch["targets"], batch["weights"], strict=True
    ):
        if not weight:
            continue
        row, column = divmod(int(place), width)
        seen = np.arange(width) <= column
        if "segments" in batch:
            assert batch["segments"][row, column] > 0, "a target in the padding"
            seen &= batch["segments"][row] == batch["segments"][row, column]
        context = batch["ids"][row][seen]
        if "segments" in batch:
            assert batch["positions"][row][seen].tolist() == list(range(len(context)))
        pairs.append((tuple(context.tolist()), int(target)))
    return pairs


def epoch(source: Any) -> list[dict[str, Any]]:
    count = source.batch_size
    assert source.rows % count == 0
    return [batch for step in range(source.rows // count) for batch in source.batch(step)]


# ---- chats ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("loss_on", ["assistant", "all"])
def test_every_target_once_with_its_own_chat_as_context(packing: bool, loss_on: Any) -> None:
    rows = chat_rows(40)
    source = ChatSource(
        rows, sequence_length=32, batch_size=1, seed=3, packing=packing, loss_on=loss_on
    )
    assert (source.truncated, source.skipped, source.examples) == (0, 0, 40)
    got: Counter[Any] = Counter()
    for batch in epoch(source):
        check_form(batch, 1)
        assert ("segments" in batch) == packing
        got.update(learned(batch))
    wanted = Counter(
        (tuple(row.ids[:n].tolist()), int(row.ids[n]))
        for row in rows
        for n in range(1, len(row.ids))
        if row.mask[n] or loss_on == "all"
    )
    assert got == wanted
    held_out: Counter[Any] = Counter()
    for batch in source.eval_batches():
        held_out.update(learned(batch))
    assert held_out == wanted


def test_packing_fills_rows() -> None:
    source = ChatSource(chat_rows(400), sequence_length=64, batch_size=1, packing=True)
    places = [batch["segments"] > 0 for batch in epoch(source)]
    assert np.mean(places) > 0.9
    assert max(int(batch["segments"].max()) for batch in epoch(source)) > 2


def test_long_chats_are_cut_and_counted_and_those_without_targets_skipped() -> None:
    def row(length: int, *targets: int) -> ChatRow:
        mask = np.zeros(length, np.bool_)
        mask[list(targets)] = True
        return ChatRow(np.arange(10, 10 + length, dtype=np.int32), mask)

    rows = [row(9, 8), row(10, 3, 9), row(30, 29), row(5), row(1, 0), row(20, 4)]
    source = ChatSource(rows, sequence_length=8, batch_size=1, packing=True)
    # the second and the third; the last one needs no more than its first five
    assert source.truncated == 2
    # the third after the cut, the fourth, and the one whose target has no context
    assert source.skipped == 3
    assert sorted(target for batch in epoch(source) for _, target in learned(batch)) == [13, 14, 18]
    with pytest.raises(UserError, match="no chat has a token to learn"):
        ChatSource([row(5), row(30, 29)], sequence_length=8, batch_size=1)


@pytest.mark.parametrize("packing", [True, False])
def test_chat_batches_depend_on_seed_and_step_alone(packing: bool) -> None:
    def source(seed: int = 5) -> ChatSource:
        return ChatSource(
            chat_rows(50),
            sequence_length=40,
            batch_size=6,
            seed=seed,
            packing=packing,
        )

    one, two = source(), source()
    steps = list(range(30))
    forward = {step: one.batch(step) for step in steps}
    backward = {step: two.batch(step) for step in reversed(steps)}
    assert all(same(forward[step], backward[step]) for step in steps)
    assert same(one.batch(7), forward[7])
    forward[7][0]["ids"][:] = 0
    assert not same(one.batch(7), forward[7])  # nobody else's arrays
    assert not all(same(source(6).batch(step), one.batch(step)) for step in steps)
    # epochs differ
    assert len({batch["ids"].tobytes() for step in steps for batch in one.batch(step, 3)}) == 60


def test_the_denominator_counts_the_targets_of_the_whole_step() -> None:
    source = ChatSource(chat_rows(50), sequence_length=40, batch_size=6, packing=True)
    for step in range(5):
        batches = source.batch(step, 2)
        total = sum(batch["weights"].sum() for batch in batches)
        assert len(batches) == 3 and all(batch["denominator"] == total for batch in batches)
        assert len({float(batch["weights"].sum()) for batch in batches}) > 1


def test_compiled_steps_see_few_shapes() -> None:
    source = ChatSource(chat_rows(2000), sequence_length=128, batch_size=8, packing=True)
    shapes = {
        (batch["ids"].shape, batch["targets"].shape)
        for step in range(40)
        for batch in source.batch(step)
    }
    assert len(shapes) <= 3


def test_evaluation_is_spread_over_the_data_and_of_one_shape() -> None:
    source = ChatSource(chat_rows(101), sequence_length=40, batch_size=4, packing=False)
    some = list(source.eval_batches(3))
    assert len(some) == 3 and all(batch["denominator"] == batch["weights"].sum() for batch in some)
    assert same(some, list(source.eval_batches(3)))
    assert {len(batch["ids"]) for batch in source.eval_batches()} == {4}


# ---- text -----------------------------------------------------------------------------------------------------------


def stream(length: int) -> np.ndarray[Any, Any]:
    tokens = np.random.default_rng(1).integers(10, 1000, length).astype(np.uint16)
    tokens[7::11] = EOS
    return tokens


@given(st.integers(2, 70), st.integers(1, 12), st.booleans())
def test_every_token_but_the_first_is_a_target_once(length: int, width: int, isolate: bool) -> None:
    tokens = stream(length)
    source = TextSource(
        tokens, sequence_length=width, batch_size=1, seed=2, isolate_documents=isolate, eos=EOS
    )
    batches = epoch(source)
    for batch in batches:
        check_form(batch, 1)
        assert batch["ids"].shape == (1, width) and len(batch["targets"]) == width
    assert sorted(target for batch in batches for _, target in learned(batch)) == sorted(
        tokens[1:].tolist()
    )
    assert sorted(t for batch in source.eval_batches() for _, t in learned(batch)) == sorted(
        tokens[1:].tolist()
    )


def test_windows_go_on_where_the_last_one_ended() -> None:
    tokens = stream(64)
    source = TextSource(tokens, sequence_length=9, batch_size=1)
    got = {
        context: target
        for batch in epoch(source)
        for context, target in learned(batch)
        if len(context) == 9
    }
    for start in range(0, 54, 9):
        assert got[tuple(tokens[start : start + 9].tolist())] == tokens[start + 9]


def test_isolated_documents_begin_at_the_end_token_before() -> None:
    tokens = np.array([11, 12, EOS, 21, 22, 23, EOS, 31, 32, EOS, 41], np.uint16)
    source = TextSource(tokens, sequence_length=10, batch_size=2, isolate_documents=True, eos=EOS)
    [batch] = source.eval_batches()
    assert batch["segments"].tolist() == [[1, 1, 2, 2, 2, 2, 3, 3, 3, 4], [0] * 10]
    assert batch["positions"].tolist() == [[0, 1, 0, 1, 2, 3, 0, 1, 2, 0], [0] * 10]
    pairs = learned(batch)
    assert ((11, 12), EOS) in pairs and ((EOS,), 21) in pairs and ((EOS, 21, 22, 23), EOS) in pairs
    assert batch["denominator"] == 10


def test_text_batches_depend_on_seed_and_step_alone() -> None:
    def source(seed: int = 0) -> TextSource:
        return TextSource(stream(500), sequence_length=8, batch_size=6, seed=seed)

    one, two = source(), source()
    steps = list(range(40))  # several epochs
    forward = {step: one.batch(step, 3) for step in steps}
    assert all(same(two.batch(step, 3), forward[step]) for step in reversed(steps))
    assert not same(source(1).batch(0, 3), forward[0])
    assert len({batch["ids"][0].tobytes() for step in range(8) for batch in forward[step]}) > 10
    last = [batch for step in steps for batch in forward[step] if not batch["weights"].all()]
    assert (
        all(
            batch["denominator"] == sum(b["weights"].sum() for b in forward[step])
            for step in steps
            for batch in forward[step]
        )
        and last
    )


def test_too_little_text_is_the_users_error() -> None:
    with pytest.raises(UserError, match="too little text"):
        TextSource(np.array([1], np.uint16), sequence_length=8, batch_size=1)


# ---- tokens on disk -------------------------------------------------------------------------------------------------


def test_the_corpus_is_tokenised_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = small_tokenizer()
    tokens = tokenize_corpus(TEXTS, tokenizer, tmp_path)
    wanted = [i for text in TEXTS for i in [*tokenizer.encode(text), tokenizer.eos_id]]
    assert tokens.tolist() == wanted and tokens.dtype == np.uint16 and isinstance(tokens, np.memmap)
    [file] = tmp_path.glob("[!.]*")
    keyed = tokenize_corpus(iter(TEXTS), tokenizer, tmp_path, key="a name")
    assert keyed.tolist() == wanted and len(list(tmp_path.glob("[!.]*"))) == 2

    def must_not(*_: Any) -> Any:
        raise AssertionError("tokenised again")

    monkeypatch.setattr(Tokenizer, "encode_batch", must_not)
    assert tokenize_corpus(iter(TEXTS), tokenizer, tmp_path).tolist() == wanted
    assert tokenize_corpus(iter(["not read"]), tokenizer, tmp_path, key="a name").tolist() == wanted
    with pytest.raises(AssertionError, match="again"):
        tokenize_corpus(TEXTS[1:], tokenizer, tmp_path)
    assert len(list(tmp_path.glob("[!.]*"))) == 2  # what failed leaves nothing


def test_documents_in_pieces_have_one_end(tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    parts = [Part.of("Anna lives\n", True), Part.of("in Rome.\n", False), "Ben too."]
    tokens = tokenize_corpus(parts, tokenizer, tmp_path)
    assert tokens.tolist() == [
        *tokenizer.encode("Anna lives\nin Rome.\n"),
        tokenizer.eos_id,
        *tokenizer.encode("Ben too."),
        tokenizer.eos_id,
    ]
    assert (
        tokenize_corpus(["Anna lives\n", *parts[1:]], tokenizer, tmp_path).tolist()
        != tokens.tolist()
    )
    with pytest.raises(UserError, match="no text"):
        tokenize_corpus([], tokenizer, tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "Anna lives in Rome.\n\n  And Ben?\n" * 9000,
        "Anna Ben " * 20_000,
        "x" * 150_000,
        "\n" * 70_000,
        " \n" * 40_000,
    ],
    ids=["lines", "one line", "one word", "line breaks", "white space"],
)
def test_long_documents_are_cut_without_a_trace(text: str, tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    tokens = tokenize_corpus([text], tokenizer, tmp_path)
    assert tokenizer.decode(tokens) == text
    if text.startswith("Anna"):
        assert tokens[:-1].tolist() == tokenizer.encode(text)


def test_text_that_names_the_end_token_does_not_end_a_document(tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    tokens = tokenize_corpus(["a<|endoftext|>b"], tokenizer, tmp_path)
    assert tokens.tolist().count(tokenizer.eos_id) == 1


def test_holding_out_cuts_at_a_document() -> None:
    tokens = stream(2000)
    train, validation = hold_out(tokens, 0.1, EOS)
    assert np.concatenate([train, validation]).tolist() == tokens.tolist()
    assert train[-1] == EOS and 150 < len(validation) < 300
    train, validation = hold_out(np.arange(100, 200), 0.1, EOS)
    assert len(validation) == 10
    with pytest.raises(UserError, match="hold a part"):
        hold_out(tokens[:3], 0.1, EOS)


@pytest.mark.slow
def test_a_real_text(tmp_path: Path) -> None:
    from ondevice.data.formats import texts
    from ondevice.data.tokenizer_training import train_tokenizer

    path = real_data("tinyshakespeare.txt")
    tokenizer = train_tokenizer(texts(read(path)), 512)
    tokens = tokenize_corpus(texts(read(path)), tokenizer, tmp_path)
    assert tokens[:-1].tolist() == tokenizer.encode(path.read_text())
