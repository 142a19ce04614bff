"""Answers that share a prompt: log-probabilities and gradients are those of a row for each answer,
whatever the architecture, and however rows are cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import models
import ondevice as od
import small_stages
from gradients import by_name, on_device
from ondevice.data.completion_batches import Row
from ondevice.data.shared_prompts import NO_SHARING, answer_batch, cut_rows, judged_batch
from ondevice.models.decoder import Decoder
from ondevice.models.external_library import LibraryNetwork
from ondevice.models.network import network
from ondevice.models.registry import ModelConfig
from ondevice.models.score_head import scalar_head
from ondevice.models.tables import with_tables
from ondevice.runs import device_batch
from ondevice.runs.events import read
from ondevice.seam.protocols import Backend
from ondevice.seam.select import load_backend
from ondevice.training.policy_losses import grpo_loss
from ondevice.training.sequence_logprobs import Scorer

FAMILIES = [*models.FAMILIES, *models.SEQ2SEQ]


def config(family: str) -> ModelConfig:
    if family in models.SEQ2SEQ:
        return models.seq2seq_config(family)
    return models.config(family)


def group(prompts: Sequence[int], answers: Sequence[Sequence[int]]) -> list[Row]:
    """Prompts of these lengths, each with answers of these lengths; some answers are alike in their
    first tokens, as those of a group are.
    """
    rng = np.random.default_rng(3)
    rows = []
    for length, several in zip(prompts, answers, strict=True):
        prompt = rng.integers(3, 97, length).tolist()
        first = rng.integers(3, 97, 2)
        for n in several:
            own = np.append(first, rng.integers(3, 97, n))[:n]
            rows.append(Row(prompt, own.astype(np.int32)))
    return rows


# an answer of one token, one longer than the windows of mistral and gemma3, prompts of many lengths
ROWS = group([21, 5, 19], [(1, 9, 12), (7, 2), (12, 12, 3)])


def learned(rows: Sequence[Row]) -> dict[str, list[np.ndarray]]:
    rng = np.random.default_rng(1)
    return {
        "advantages": [np.full(len(r.completion), rng.normal(), np.float32) for r in rows],
        "scale": [np.ones(len(r.completion), np.float32) for r in rows],
        "ref_logps": [rng.normal(-4, 0.3, len(r.completion)).astype(np.float32) for r in rows],
    }


def batch_of(cfg: ModelConfig, size: int, prompt_rows: int) -> dict[str, np.ndarray]:
    start = network(cfg).decoder_start_token_id
    batch = answer_batch(ROWS, size, learned(ROWS), start, prompt_rows)
    batch["denominator"] = np.float32(20.0)
    return batch


def is_shared(batch: Any) -> bool:
    return "prompt_of" in batch or "source_of" in batch


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_a_row_for_each_answer(
    backend: Backend, family: str, checkpoint: bool
) -> None:
    cfg = config(family)
    apart = batch_of(cfg, 8, NO_SHARING)
    shared = batch_of(cfg, 9, 4)  # rows of prompts and of answers beside those that are there
    assert is_shared(shared) and not is_shared(apart)
    loss = partial(
        grpo_loss,
        model=network(cfg),
        clip_low=0.2,
        clip_high=0.2,
        beta=0.1,
        temperature=0.8,
        checkpoint=checkpoint,
    )

    def value(params: Any, batch: Any) -> Any:
        return loss(backend.ops, params, batch)[0]

    weights = models.weights(cfg)
    want, slopes = by_name(backend, value, weights, apart)
    got, found = by_name(backend, value, weights, shared)
    assert got == pytest.approx(want, rel=1e-5)
    top = max(np.abs(slope).max() for slope in slopes.values())
    for name, slope in slopes.items():
        np.testing.assert_allclose(found[name], slope, rtol=1e-5, atol=1e-5 * top, err_msg=name)


@pytest.mark.slow
@pytest.mark.compiled
@pytest.mark.parametrize("family", ["mistral-window", "t5"])
def test_compiled_they_are_the_same(backend: Backend, family: str) -> None:
    cfg = config(family)
    loss = partial(grpo_loss, model=network(cfg), clip_low=0.2, clip_high=0.2)

    def value(params: Any, batch: Any) -> Any:
        return loss(backend.ops, params, batch)[0]

    batch = batch_of(cfg, 8, 1)
    assert is_shared(batch)
    want, slopes = by_name(backend, value, models.weights(cfg), batch)
    got, found = by_name(backend, value, models.weights(cfg), batch, compiled=True)
    assert got == pytest.approx(want, rel=1e-5)
    for name, slope in slopes.items():
        np.testing.assert_allclose(found[name], slope, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_torch_compiles_them_as_one_graph() -> None:
    torch = pytest.importorskip("torch")
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    backend = load_backend("torch", device="cpu", dtype="float32")
    cfg = config("qwen3")
    params = {n: backend.array(w) for n, w in models.weights(cfg).items()}
    counter = CompileCounter()
    model = network(cfg)

    def states(params: Any, batch: Any) -> Any:
        return model.hidden(backend.ops, params, batch, at=batch["index"])

    compiled = torch.compile(states, backend=counter, fullgraph=True)
    batch = with_tables(model, backend.ops, on_device(backend, batch_of(cfg, 8, 1)))
    assert is_shared(batch)
    want, got = (backend.numpy(fn(params, batch)) for fn in (states, compiled))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    assert counter.frame_count == 1


@pytest.mark.parametrize("window", [0, 4])
def test_attention_after_a_prefix_is_that_of_the_whole_text(backend: Backend, window: int) -> None:
    """Prefixes of 0, 3 and all 7 places before five queries; heads in groups."""
    rng = np.random.default_rng(0)
    lengths, own, room = np.array([0, 3, 7], np.int32), 5, 7
    q = rng.standard_normal((3, 4, own, 8)).astype(np.float32)
    k, v = (rng.standard_normal((3, 2, room + own, 8)).astype(np.float32) for _ in range(2))
    ops = backend.ops
    arrays = on_device(backend, {"q": q, "k": k, "v": v, "lengths": lengths})
    got = ops.attention(
        arrays["q"], arrays["k"], arrays["v"], scale=0.5, window=window, prefix=arrays["lengths"]
    )
    for row, length in enumerate(lengths):
        there = np.r_[:length, room : room + own]
        keys, values = k[row][:, there], v[row][:, there]
        for head in range(4):
            scores = 0.5 * q[row, head] @ keys[head // 2].T
            at = np.arange(own)[:, None] + length
            seen = np.arange(length + own) <= at
            if window:
                seen &= np.arange(length + own) > at - window
            weights = np.where(seen, np.exp(scores), 0)
            want = weights / weights.sum(1, keepdims=True) @ values[head // 2]
            np.testing.assert_allclose(backend.numpy(got)[row, head], want, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("family", ["mistral-window", "gpt2", "bart"])
def test_a_scorer_gives_the_same_log_probabilities(
    backend: Backend, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = config(family)
    params = {n: backend.array(w) for n, w in models.weights(cfg).items()}
    scored = []
    for size, shares in ((8, False), (8, True), (3, True)):
        monkeypatch.setattr(type(network(cfg)), "shares_prompts", shares)
        scorer = Scorer(Small(cfg), backend, batch_size=size)  # type: ignore[arg-type]
        scored.append(scorer.logprobs(params, ROWS))
    for other in scored[1:]:
        for want, got in zip(scored[0], other, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


class Small:
    """What a scorer asks of a model."""

    def __init__(self, cfg: ModelConfig) -> None:
        self.network = network(cfg)


@pytest.mark.parametrize("family", ["mistral-window", "gemma3"])
def test_a_judge_reads_the_last_token_of_each(backend: Backend, family: str) -> None:
    cfg = models.config(family, num_labels=1)
    params = {n: backend.array(w) for n, w in models.weights(cfg).items()}
    scores = []
    for prompt_rows in (NO_SHARING, 4):
        batch = judged_batch(ROWS, 9, "last", prompt_rows)
        assert is_shared(batch) == bool(prompt_rows)
        arrays = on_device(backend, batch)
        hidden = network(cfg).hidden(backend.ops, params, arrays, at=arrays["read"])
        found = scalar_head(backend.ops, params, network(cfg), hidden)
        scores.append(backend.numpy(found)[: len(ROWS)])
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-5, atol=1e-6)


# ---- how rows are cut -----------------------------------------------------------------------------------------------


def test_answers_of_a_prompt_stay_together() -> None:
    """Long prompts, whose answers have lengths that would part them."""
    rows = group([40, 41, 42], [(3, 9, 14, 20), (4, 8, 15, 21), (2, 7, 16, 22)])
    together = cut_rows(rows, 4)
    assert [{len(rows[i].prompt) for i in part} for part in together] == [{40}, {41}, {42}]
    by_length = cut_rows(rows, 4, prompt_rows=NO_SHARING)
    assert [rows[i].length for part in by_length for i in part] == sorted(r.length for r in rows)
    for parts in (together, by_length):
        assert sorted(np.concatenate(parts).tolist()) == list(range(12))


def test_short_prompts_do_not_part_answers_of_like_lengths() -> None:
    """One place of a prompt more costs less than an answer padded to the longest."""
    rows = group([2, 2, 2, 2], [(2, 200), (3, 201), (2, 202), (3, 203)])
    lengths = [sorted(len(rows[i].completion) for i in part) for part in cut_rows(rows, 4)]
    assert lengths == [[2, 2, 3, 3], [200, 201, 202, 203]]


def test_a_prompt_is_shared_where_that_saves_places() -> None:
    one = group([40], [(9, 9, 9, 9)])
    assert is_shared(answer_batch(one, 4))
    assert not is_shared(answer_batch(one, 4, prompt_rows=NO_SHARING))
    assert not is_shared(answer_batch(group([40, 41], [(9,), (9,)]), 2))  # no two have the same
    assert not is_shared(answer_batch(group([1], [(120, 120)]), 2))  # nothing to save


def test_a_micro_batch_has_room_for_the_prompt_in_each_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a machine for 600 tokens at once: eight rows are 960, five of them 768."""
    rows = group([400], [(64,) * 8])

    def cut(micro_batch: int | None) -> list[dict[str, np.ndarray]]:
        size = micro_batch or len(rows)
        return [answer_batch([rows[i] for i in part], size) for part in cut_rows(rows, size)]

    def chosen(model: Any, backend: Any, count: int, tokens: int, *, checkpointing: bool) -> int:
        return max(1, min(count, 600 * count // tokens))

    monkeypatch.setattr(device_batch, "choose_micro_batch", chosen)
    nothing: Any = None
    found = device_batch.fitting_micro_batch(nothing, nothing, len(rows), cut, checkpointing=False)
    assert found == 2
    tokens = [batch["ids"].size + batch["prompt_ids"].size for batch in cut(found)]
    assert tokens == [576] * 4


def test_who_shares_nothing() -> None:
    """Texts that are read from both sides, and models that another library runs."""
    assert not network(models.encoder_config("bert")).shares_prompts
    assert not LibraryNetwork.__dataclass_fields__["shares_prompts"].default


def test_where_rotation_follows_from_a_whole_texts_length_nothing_is_shared() -> None:
    scaling = {
        "rope_type": "longrope",
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
        "factor": 2.0,
        "original_max_position_embeddings": 32,
    }
    assert Decoder(models.config("llama")).shares_prompts
    cfg = models.config("llama", rope_scaling=scaling, max_position_embeddings=64)
    assert not Decoder(cfg).shares_prompts


# ---- stages ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_stages.make(
        tmp_path_factory.mktemp("files"), load_backend("torch", device="cpu", dtype="float32")
    )


# And the order of two rewards that differ by roundings alone, as at the start of a policy.
MEASURED = ("t", "seconds", "tokens_per_second", "memory_bytes", "groups", "pair_accuracy")


def steps_of(files: Path, stage: str, out: Path, backend: str, **changes: Any) -> list[Any]:
    getattr(od, stage)(**small_stages.settings(files, stage, out, backend, **changes))
    found = []
    for event in read(out / stage / "events.jsonl"):
        if event["event"] == "step":
            found.append(
                {
                    name: x
                    for name, x in event.items()
                    if name not in MEASURED and not name.endswith("_seconds")
                }
            )
    return found


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("grpo", {"updates": 1, "beta": 0.05}),
        pytest.param("grpo", {"updates": 2, "beta": 0.0}, marks=pytest.mark.slow),
        pytest.param(
            "grpo",
            {"updates": 1, "beta": 0.0, "loss_type": "bnpo", "partition": 5},
            marks=pytest.mark.slow,
        ),
        ("dpo", {"batch_size": 7}),
        pytest.param("dpo", {"batch_size": 7, "loss_type": "kto"}, marks=pytest.mark.slow),
        ("reward", {"batch_size": 7, "center": 0.1}),
    ],
)
@pytest.mark.parametrize("micro_batch", [3, pytest.param(64, marks=pytest.mark.slow)])
def test_a_stage_learns_the_same(
    files: Path,
    tmp_path: Path,
    backend_name: str,
    stage: str,
    changes: dict[str, Any],
    micro_batch: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All figures of the first update, and of later ones what is left of rounding after one by
    AdamW.
    """
    fields = {**changes, "steps": 2, "micro_batch": micro_batch, "save_every": 0}
    shared = steps_of(files, stage, tmp_path / "shared", backend_name, **fields)
    assert "completions of one prompt are computed with it once" in capsys.readouterr().err
    monkeypatch.setattr(Decoder, "shares_prompts", False)
    apart = steps_of(files, stage, tmp_path / "apart", backend_name, **fields)
    assert "each completion is computed with a prompt of its own" in capsys.readouterr().err
    first = 5e-6 if changes.get("updates", 1) == 1 else 1e-3
    for one, other, within in zip(apart, shared, (first, 1e-3), strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            # at the start both sides of a pair are as likely as the reference says
            if isinstance(value, int | float) and name != "accuracy":
                assert other[name] == pytest.approx(value, rel=within, abs=within), name
