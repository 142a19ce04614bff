"""A stage's own few shapes: fewer than the general ones, no more padding, the same figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import models
from gradients import by_name
from ondevice.data.completion_batches import Row, general_width
from ondevice.data.few_shapes import FewShapes, Widths, needed
from ondevice.data.packing import Batch
from ondevice.data.padding_free import layout
from ondevice.data.preference_batches import PairSource, TokenPair
from ondevice.data.shared_prompts import answer_batch, cut_rows
from ondevice.inference.slots import places
from ondevice.models.network import network
from ondevice.models.tables import with_tables
from ondevice.rl.prompt_widths import PromptWidths, whole_room
from ondevice.seam.protocols import Backend, OptimSettings
from ondevice.seam.select import load_backend
from ondevice.stages.dpo import pair_batch, sides_of
from ondevice.training.preference_losses import preference_loss

STEPS = 200
EACH = 8  # pairs per step


def drawn_pairs(count: int, longest: int = 96) -> list[TokenPair]:
    """Prompts and answers of very different lengths, each pair with a prompt of its own."""
    rng = np.random.default_rng(0)

    def text(low: int) -> np.ndarray[Any, Any]:
        return rng.integers(3, 97, int(rng.integers(low, longest))).astype(np.int32)

    pairs = []
    for _ in range(count):
        prompt = text(13)
        pairs.append(TokenPair(Row(prompt, text(9)), Row(prompt, text(9))))
    return pairs


def source_of(pairs: Sequence[TokenPair], few: bool, each: int = EACH, **more: Any) -> PairSource:
    sides = sides_of(pairs)

    def groups(size: int) -> Iterator[list[Row]]:
        for numbers in source.numbers(size // 2):
            filled = [*numbers, *[numbers[0]] * (size // 2 - len(numbers))]
            yield [side[i] for side in sides for i in filled]

    make = partial(
        pair_batch,
        sides=sides,
        reference=np.zeros((2, len(pairs)), np.float32),
        shared=True,
        few=FewShapes(groups) if few else None,
    )
    source = PairSource(pairs, batch_size=each, seed=0, make=make, **more)
    return source


def shape_of(batch: Batch) -> Any:
    return tuple(sorted((name, x.shape) for name, x in batch.items()))


def places_of(batch: Batch) -> int:
    return int(batch["ids"].size + batch.get("prompt_ids", np.zeros(0)).size)


def counted(source: PairSource, micro_batch: int) -> tuple[int, int]:
    """(shapes, places) of all batches of the stage."""
    shapes: Counter[Any] = Counter()
    places = 0
    for step in range(STEPS):
        for batch in source.batch(step, micro_batch):
            shapes[shape_of(batch)] += 1
            places += places_of(batch)
    return len(shapes), places


@pytest.mark.parametrize(("micro_batch", "most"), [(8, 2), (3, 2), (2, 2), (1, 4)])
def test_a_stage_of_ragged_pairs_has_few_shapes_and_no_more_padding(
    micro_batch: int, most: int
) -> None:
    pairs = drawn_pairs(EACH * 100)
    usual, padded = counted(source_of(pairs, few=False), micro_batch)
    shapes, places = counted(source_of(pairs, few=True), micro_batch)
    assert shapes <= most < usual, (shapes, usual)
    assert places <= padded, (places, padded)


def test_scored_rows_have_few_shapes_and_no_more_padding() -> None:
    rows = [side for pair in drawn_pairs(500) for side in (pair.chosen, pair.rejected)]

    def groups(size: int) -> Iterator[list[Row]]:
        for first in range(0, len(rows), 300):
            part = rows[first : first + 300]
            for group in cut_rows(part, size):
                yield [part[i] for i in group]

    shapes, places = set(), [0, 0]
    few = FewShapes(groups)
    for some in groups(16):
        batch = answer_batch(some, 16, few=few)
        shapes.add(shape_of(batch))
        places[0] += places_of(batch)
        places[1] += places_of(answer_batch(some, 16))
    assert len(shapes) <= 3
    assert places[0] <= places[1]


def test_the_shapes_follow_from_the_data_alone() -> None:
    pairs = drawn_pairs(EACH * 10)
    forward, backward = source_of(pairs, few=True), source_of(pairs, few=True)
    some = [shape_of(b) for step in range(12) for b in forward.batch(step, 4)]
    last = [[shape_of(b) for b in backward.batch(step, 4)] for step in reversed(range(12))]
    assert some == [shape for step in reversed(last) for shape in step]


def test_rows_that_are_alike_stay_as_they_are() -> None:
    """Nothing is padded in general: there is nothing to choose."""
    text = np.arange(3, 67, dtype=np.int32)
    rows = [Row(text, text), Row(text, text)] * 4
    few = FewShapes(lambda size: [rows] * 3)
    for share in (rows, rows[:7]):
        assert shape_of(answer_batch(share, 8, few=few)) == shape_of(answer_batch(share, 8))


def test_a_batch_that_is_larger_than_all_that_were_known_takes_the_general_way() -> None:
    known, longer = drawn_pairs(EACH * 8, 60), drawn_pairs(2, 96)
    numbers = [[n, n + 1] for n in range(0, len(known), 2)]
    few = FewShapes(lambda size: [both(known, some) for some in numbers])
    ways = {shape_of(answer_batch(both(known, some), 4, few=few)) for some in numbers}
    assert len(ways) < len({shape_of(answer_batch(both(known, some), 4)) for some in numbers})
    rows = both(longer, [0, 1])
    assert shape_of(answer_batch(rows, 4, few=few)) == shape_of(answer_batch(rows, 4))
    assert shape_of(answer_batch(rows, 4, few=few)) not in ways
    # nor is anything chosen for a stage without batches
    assert FewShapes(lambda size: []).layout(rows, 4, 1, lambda rows: (0.0, 0.0)) is None


def both(pairs: Sequence[TokenPair], numbers: Sequence[int]) -> list[Row]:
    chosen = [pairs[n].chosen for n in numbers]
    return chosen + [pairs[n].rejected for n in numbers]


def test_what_a_batch_needs_leaves_a_token_and_a_place_empty() -> None:
    full = [Row([3] * 16, [5] * 9), Row([4] * 16, [6] * 9)]
    least = needed(full, layout(full, 2, 1))
    assert least.tokens > 48 and 2 * least.width > 48


def test_the_loss_and_its_gradients_are_the_same(backend: Backend) -> None:
    cfg = models.config("llama")
    net = network(cfg)
    loss = partial(preference_loss, model=net, kind="sigmoid", beta=0.1)
    pairs = drawn_pairs(EACH * 8)
    ways = [source_of(pairs, few).batch(0, 2) for few in (False, True)]
    assert all("slots" in batch for batch in ways[1])
    assert [shape_of(batch) for batch in ways[0]] != [shape_of(batch) for batch in ways[1]]
    sums: list[Any] = []
    for batches in ways:
        total: Counter[str] = Counter()
        for batch in batches:
            value, grads = by_name(
                backend, lambda p, b: loss(backend.ops, p, b)[0], models.weights(cfg), batch
            )
            sums.append(value)
            for name, grad in grads.items():
                total[name] = total[name] + grad
        sums.append(total)
    half = len(sums) // 2
    np.testing.assert_allclose(sums[half : 2 * half - 1], sums[: half - 1], rtol=1e-5)
    for name, grad in sums[half - 1].items():
        np.testing.assert_allclose(sums[-1][name], grad, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.slow
@pytest.mark.compiled
def test_mlx_traces_a_ragged_stage_as_often_as_it_has_shapes() -> None:
    """Twice the gradient of micro-batches of two pairs, and once the update of every tensor."""
    pytest.importorskip("mlx.core")
    backend = load_backend("mlx", device="cpu", dtype="float32")
    cfg = models.config("llama")
    net = network(cfg)
    params = {n: backend.array(w) for n, w in models.weights(cfg).items()}
    loss = partial(preference_loss, model=net, kind="sigmoid", beta=0.1)
    trainer = backend.trainer(loss, params, {}, OptimSettings(), compile="always")
    source = source_of(drawn_pairs(EACH * 100), few=True)
    for step in range(25):
        batches = [with_tables(net, backend.ops, batch) for batch in source.batch(step, 2)]
        assert np.isfinite(trainer.step(batches, 1e-3)["loss"])
    assert trainer.traces() <= 3


def widths_of(lengths: Sequence[int]) -> tuple[set[int], int]:
    """(the widths of such rows, their places)."""
    widths = Widths(lengths)
    found = [widths.of(length) for length in lengths]
    assert all(width >= length for width, length in zip(found, lengths, strict=True))
    return set(found), sum(found)


@pytest.mark.parametrize("longest", [96, 117, 900])
def test_prompts_have_fewer_widths_and_no_more_padding(longest: int) -> None:
    lengths = [int(n) for n in np.random.default_rng(longest).integers(14, longest + 1, 400)]
    usual = [general_width(length) for length in lengths]
    widths, places = widths_of(lengths)
    assert len(widths) < len(set(usual))
    assert places <= sum(usual)
    assert Widths(lengths).of(longest + 100) == general_width(longest + 100)


def test_what_is_saved_elsewhere_may_be_taken_for_fewer_widths() -> None:
    lengths = [int(n) for n in np.random.default_rng(0).integers(14, 95, 200)]
    usual = sum(general_width(length) for length in lengths)
    twice = Widths(lengths, instead=2)  # one row in place of two
    assert {twice.of(length) for length in lengths} == {94}
    assert twice.saved == pytest.approx(2 * usual / 200 - 94)
    spared = Widths(lengths, spare=twice.saved / 2)
    found = [spared.of(length) for length in lengths]
    assert len(set(found)) < len({Widths(lengths).of(length) for length in lengths})
    assert sum(found) * 2 + 94 * 200 <= 4 * usual


def test_prompts_that_are_alike_have_the_general_width() -> None:
    for lengths in ([40] * 5, [33, 40], []):
        assert Widths(lengths).of(40) == general_width(40)


def test_the_prompts_of_rollouts_are_looked_at_as_they_are_read_together() -> None:
    steps = [[20, 90, 30, 40], [22, 33, 80, 24], [10, 12, 14, 70]]
    looked: list[int] = []

    def lengths_of(number: int) -> list[int]:
        looked.append(number)
        return steps[number]

    widths = PromptWidths(lengths_of, 12, 4, 8)
    assert {widths.together(4).of(max(step)) for step in steps} == {
        Widths([90, 80, 70]).of(max(step)) for step in steps
    }
    assert [widths.together(1).of(n) for n in steps[1]] == [
        Widths([n for step in steps for n in step]).of(n) for n in steps[1]
    ]
    assert looked == [0, 1, 2]
    # two micro-batches of half a group: scored together they read a prompt once
    assert widths.scored(4).saved > 0
    assert widths.learned(4, 1, with_scores=False).saved >= 0
    assert widths.learned(4, 1, with_scores=True).saved >= -widths.scored(4).saved / 2
    assert looked == [0, 1, 2]


def test_a_small_cache_has_one_size_and_a_large_one_grows() -> None:
    decoder: Any = SimpleNamespace(network=network(models.config("llama")))
    assert whole_room(decoder, 90, 64) == places(96 + 64 + 1)
    assert whole_room(decoder, 90, 4096) == 0
    # what is written goes on from a token of its own, beside the prompt
    beside: Any = SimpleNamespace(network=network(models.seq2seq_config("t5")))
    assert whole_room(beside, 90, 64) < whole_room(decoder, 90, 64)
