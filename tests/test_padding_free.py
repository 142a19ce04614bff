"""Ragged rows as tokens without padding: the same losses and gradients, fewer places, few shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest

import models
from gradients import by_name
from ondevice.data import shared_prompts
from ondevice.data.completion_batches import Row
from ondevice.data.packing import Batch
from ondevice.data.padding_free import layout, padding_free_batch
from ondevice.data.preference_batches import TokenPair
from ondevice.data.shared_prompts import (
    NO_SHARING,
    answer_batch,
    cut_rows,
    judged_batch,
    room_for,
)
from ondevice.models.network import network
from ondevice.models.score_head import scalar_head
from ondevice.models.tables import with_tables
from ondevice.seam.protocols import Backend, OptimSettings
from ondevice.seam.select import load_backend
from ondevice.stages.dpo import pair_batch, sides_of
from ondevice.training.policy_losses import grpo_loss
from ondevice.training.preference_losses import preference_loss


@pytest.fixture
def keep_padding(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Says whether rows are to keep their padding, else that none does."""

    def choose(padded: bool) -> None:
        costs = 0.0 if padded else 1e9
        monkeypatch.setattr(shared_prompts, "_padded_cost", lambda *_: costs)

    return choose


def drawn(rng: np.random.Generator, prompts: Sequence[int], answers: Any) -> list[Row]:
    """Prompts of these lengths, each with answers of these lengths."""
    rows = []
    for length, several in zip(prompts, answers, strict=True):
        prompt = rng.integers(3, 97, length).astype(np.int32)
        rows += [Row(prompt, rng.integers(3, 97, n).astype(np.int32)) for n in several]
    return rows


def ragged() -> list[Row]:
    """Answers of one token and of many, some longer than the windows of mistral and gemma3."""
    rng = np.random.default_rng(3)
    return drawn(rng, [21, 5, 19, 2], [(1, 9, 30), (7, 2), (12, 12, 3), (24,)])


def one_of_each() -> list[Row]:
    """No two rows have the same prompt."""
    return drawn(np.random.default_rng(4), [3, 30, 9, 1, 14], [(5,), (2,), (31,), (1,), (8,)])


ROWS = {"prompts once": ragged, "whole rows": one_of_each}


@pytest.mark.parametrize("which", ROWS)
def test_every_token_stands_once_and_predicts_the_next(which: str) -> None:
    rows = ROWS[which]()
    found = layout(rows, len(rows) + 2, 1)
    assert (found.prompts is not None) == (which == "prompts once")
    batch = padding_free_batch(rows, found)
    ids, positions, slots = batch["ids"][0], batch["positions"][0], batch["slots"]
    tables = [batch["prompt_places"]] if found.prompts else []
    places = np.concatenate([x.reshape(-1) for x in [*tables, batch["places"]]])
    used = []
    target = 0
    for r, row in enumerate(rows):
        text = np.concatenate([row.prompt, row.completion])
        at = batch["places"][r]
        if found.prompts:
            before = batch["prompt_places"][batch["prompt_of"][r]][: len(row.prompt)]
            assert batch["prompt_lengths"][batch["prompt_of"][r]] == len(row.prompt)
            at = np.append(before, at)
        at = at[: len(text) - 1]
        np.testing.assert_array_equal(ids[at], text[:-1])
        np.testing.assert_array_equal(positions[at], np.arange(len(text) - 1))
        np.testing.assert_array_equal(places[slots[at]], at)
        learned = slice(target, target + len(row.completion))
        np.testing.assert_array_equal(batch["targets"][learned], row.completion)
        np.testing.assert_array_equal(batch["index"][learned], at[len(row.prompt) - 1 :])
        assert batch["member"][r, learned].all()
        target += len(row.completion)
        used.append(at)
    nothing = np.setdiff1d(np.arange(found.tokens), np.concatenate(used))
    assert len(nothing) == found.tokens - found.used > 0
    empty = np.setdiff1d(np.arange(places.size), slots[np.concatenate(used)])
    assert set(places[empty]) <= set(nothing) and set(slots[nothing]) <= set(empty)
    assert batch["weights"].sum() == target == batch["member"].sum()


def learned(rows: Sequence[Row]) -> dict[str, list[np.ndarray]]:
    rng = np.random.default_rng(1)
    return {
        "advantages": [np.full(len(r.completion), rng.normal(), np.float32) for r in rows],
        "scale": [np.ones(len(r.completion), np.float32) for r in rows],
    }


FAST = ("qwen3", "mistral-window")
FAMILIES = [
    family if family in FAST else pytest.param(family, marks=pytest.mark.slow)
    for family in models.FAMILIES
]


@pytest.mark.parametrize("which", ROWS)
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_padded_rows(
    backend: Backend, family: str, which: str, keep_padding: Callable[[bool], None]
) -> None:
    cfg = models.config(family)
    rows = ROWS[which]()
    loss = partial(grpo_loss, model=network(cfg), clip_low=0.2, clip_high=0.2, checkpoint=True)

    def value(params: Any, batch: Any) -> Any:
        return loss(backend.ops, params, batch)[0]

    found = []
    for prompt_rows in (NO_SHARING, 1):
        keep_padding(not prompt_rows)
        batch = answer_batch(rows, len(rows) + 1, learned(rows), None, prompt_rows)
        assert ("slots" in batch) == bool(prompt_rows)
        batch["denominator"] = np.float32(20.0)
        found.append(by_name(backend, value, models.weights(cfg), batch))
    (want, slopes), (got, others) = found
    assert got == pytest.approx(want, rel=1e-5)
    top = max(np.abs(slope).max() for slope in slopes.values())
    for name, slope in slopes.items():
        np.testing.assert_allclose(others[name], slope, rtol=1e-5, atol=1e-5 * top, err_msg=name)


def test_a_judge_reads_the_last_token_of_each(
    backend: Backend, keep_padding: Callable[[bool], None]
) -> None:
    cfg = models.config("llama", num_labels=1)
    params = {n: backend.array(w) for n, w in models.weights(cfg).items()}
    rows = ragged()
    scores = []
    for padded in (True, False):
        keep_padding(padded)
        batch = judged_batch(rows, len(rows), "last", 1)
        assert ("slots" in batch) != padded
        arrays = {n: backend.array(x) for n, x in batch.items()}
        hidden = network(cfg).hidden(backend.ops, params, arrays, at=arrays["read"])
        scores.append(backend.numpy(scalar_head(backend.ops, params, network(cfg), hidden)))
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-5, atol=1e-6)


# ---- places and shapes ----------------------------------------------------------------------------------------------


def pairs_of_steps(steps: int, each: int = 8) -> Iterator[Batch]:
    """Batches of pairs with prompts and answers of 13 to 117 tokens."""
    rng = np.random.default_rng(0)
    for _ in range(steps):
        pairs = []
        for _ in range(each):
            chosen, rejected = drawn(rng, rng.integers(13, 118, 1), [rng.integers(13, 118, 2)])
            pairs.append(TokenPair(chosen, rejected))
        sides = sides_of(pairs)
        reference = np.zeros((2, each), np.float32)
        batch = pair_batch(range(each), pairs, each, sides=sides, reference=reference, shared=True)
        del batch["losses"]
        yield batch | {"denominator": np.float32(each)}


def rollouts_of_steps(steps: int) -> Iterator[Batch]:
    """Four prompts, eight completions of each with lengths that are geometric up to 64."""
    rng = np.random.default_rng(0)
    for _ in range(steps):
        lengths = np.minimum(1 + rng.geometric(1 / 24, (4, 8)), 64)
        rows = drawn(rng, rng.integers(13, 118, 4), lengths)
        yield answer_batch(rows, room_for(rows, 32, None, 1), learned(rows))


def shapes_of(batches: Iterator[Batch]) -> tuple[set[Any], int]:
    """(the shapes of all batches, their places)."""
    shapes = set()
    places = 0
    for batch in batches:
        shapes.add(tuple(sorted((name, x.shape) for name, x in batch.items())))
        places += batch["ids"].size + batch.get("prompt_ids", np.zeros(0)).size
    return shapes, places


@pytest.mark.parametrize("steps", [pairs_of_steps, rollouts_of_steps])
def test_ragged_batches_have_few_shapes_and_little_padding(
    steps: Any, keep_padding: Callable[[bool], None]
) -> None:
    shapes, places = shapes_of(steps(200))
    keep_padding(True)
    padded_shapes, padded = shapes_of(steps(200))
    assert len(shapes) <= 6 < len(padded_shapes), (len(shapes), len(padded_shapes))
    assert places < 0.75 * padded, (places, padded)


@pytest.mark.slow
@pytest.mark.compiled
def test_mlx_traces_few_kinds_of_ragged_pairs() -> None:
    """Of a step's gradient and of its update, over 200 steps."""
    pytest.importorskip("mlx.core")
    backend = load_backend("mlx", device="cpu", dtype="float32")
    cfg = models.config("llama")
    net = network(cfg)
    params = {n: backend.array(w) for n, w in models.weights(cfg).items()}
    loss = partial(preference_loss, model=net, kind="sigmoid", beta=0.1)
    trainer = backend.trainer(loss, params, {}, OptimSettings(), compile="always")
    for batch in pairs_of_steps(200):
        out = trainer.step([with_tables(net, backend.ops, batch)], 1e-3)
        assert np.isfinite(out["loss"])
    assert trainer.traces() <= 6


def test_rows_of_like_lengths_keep_their_padding() -> None:
    rng = np.random.default_rng(0)
    rows = drawn(rng, [40] * 4, [(64,) * 4] * 4)
    assert "slots" not in answer_batch(rows, 16)


def test_alike_batches_are_cut_where_sorting_gains_little() -> None:
    """Ragged answers: sorted by length each batch would have other shapes."""
    rng = np.random.default_rng(0)
    rows = drawn(rng, rng.integers(13, 118, 32), rng.integers(13, 118, (32, 2)))
    parts = cut_rows(rows, 16)
    assert np.concatenate(parts).tolist() == list(range(64))
    assert len({answer_batch([rows[i] for i in part], 16)["ids"].shape for part in parts}) <= 2


def test_who_has_padding() -> None:
    """Where each answer is to have a row of its own."""
    rows = ragged()
    assert "slots" not in answer_batch(rows, len(rows), prompt_rows=NO_SHARING)
    assert "slots" not in answer_batch(rows, len(rows), start=0)
