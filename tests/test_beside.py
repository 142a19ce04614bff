"""Chats and pairs that a stage learns from beside its own loss: which they are, and what they add."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import models
import ondevice as od
import small_stages
from gradients import by_name
from ondevice.config.corpus import CorpusConfig
from ondevice.config.preference import DPOConfig, GRPOConfig
from ondevice.data.batches import ChatSource
from ondevice.data.chat_encoding import ChatRow
from ondevice.data.completion_batches import Row
from ondevice.data.preference_batches import PairSource, TokenPair
from ondevice.datasets.chats_beside import chats_wanted, put_beside, sft_before
from ondevice.datasets.pairs_beside import kept_pairs
from ondevice.datasets.rewarded import Rewarded
from ondevice.models.decoder import Decoder
from ondevice.rl.micro_batches import micro_batches, repeat_per_token
from ondevice.rl.rollout import Sampled
from ondevice.runs.events import read
from ondevice.seam.select import load_backend
from ondevice.stages.dpo import pair_batch, sides_of
from ondevice.training.losses_beside import with_losses_beside
from ondevice.training.policy_losses import grpo_loss

torch = pytest.importorskip("torch")
TORCH = load_backend("torch", device="cpu", dtype="float32")
CFG = models.config("llama", hidden_size=16, num_labels=0)


def begun(run: Path, stage: str, **config: Any) -> Path:
    """The folder of a stage as its first event leaves it; returns its model's."""
    folder = run / stage
    (folder / "model").mkdir(parents=True)
    line = json.dumps({"t": 0, "event": "start", "step": 0, "stage": stage, "config": config})
    (folder / "events.jsonl").write_text(line + "\n")
    (folder / "lock").touch()
    return folder / "model"


def test_the_chats_are_those_of_the_stage_sft_that_the_model_is_from(tmp_path: Path) -> None:
    base = begun(tmp_path / "run", "pretrain", model="")
    tuned = begun(tmp_path / "run", "sft", model=str(base), data="mine.jsonl", sequence_length=40)
    rated = begun(tmp_path / "run", "dpo", model=str(tuned))
    other = begun(tmp_path / "later", "ppo", model=str(rated))
    found = sft_before(str(other))
    assert found is not None and found.path == tuned.parent
    assert sft_before(str(base)) is None
    wanted = chats_wanted(GRPOConfig(model=str(other), sft_coef=0.5), CorpusConfig())
    assert (wanted.sft.data, wanted.sft.sequence_length, wanted.why_not) == ("mine.jsonl", 40, "")


def test_a_model_from_elsewhere_has_none_and_never_the_built_in_ones(tmp_path: Path) -> None:
    corpus = CorpusConfig()
    plain = chats_wanted(DPOConfig(model=str(tmp_path), sft_coef=1.0), corpus)
    named = chats_wanted(DPOConfig(model=str(tmp_path), sft_coef=1.0, sft_data="builtin"), corpus)
    assert "no stage sft" in plain.why_not and "built-in" in named.why_not
    mine = begun(tmp_path / "run", "sft", model="x", data="mine.jsonl")
    asked = DPOConfig(model=str(mine), sft_coef=1.0, sft_data="builtin:tiny")
    assert "built-in" in chats_wanted(asked, corpus).why_not
    begun(tmp_path / "own", "sft", model="x", data="builtin")
    (tmp_path / "own" / "recipe.yaml").write_text("corpus: {people: 7}\n")
    own = DPOConfig(model=str(tmp_path / "own" / "sft" / "model"), sft_coef=1.0)
    found = chats_wanted(own, corpus)
    assert (found.sft.data, found.corpus.people, found.why_not) == ("builtin", 7, "")


def test_pairs_are_those_of_the_run_or_of_one_that_the_model_came_through(tmp_path: Path) -> None:
    tuned = begun(tmp_path / "run", "sft", model="x")
    rated = begun(tmp_path / "run", "dpo", model=str(tuned))
    cfg = GRPOConfig(model=str(rated), pair_coef=0.5)
    assert kept_pairs(cfg, tmp_path / "out") is None
    (tmp_path / "run" / "ratings.db").touch()
    found = kept_pairs(cfg, tmp_path / "out")
    assert found is not None and found.data == str(tmp_path / "run" / "ratings.db")
    assert kept_pairs(GRPOConfig(model=str(rated)), tmp_path / "out") is None


class Letters:
    """A tokenizer of single characters."""

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(map(chr, ids))


def ids_of(text: str) -> np.ndarray:
    return np.array(list(map(ord, text)), np.int32)


def test_what_the_rewards_judge_is_not_learned_beside_them() -> None:
    asked = [ids_of(text) for text in ("Quick: 3+4", "Add 12 and 7, please.")]
    rewarded = Rewarded(asked, Letters())  # type: ignore[arg-type]
    chats = []
    for prompt, reply in (("Quick: 49+38", "87"), ("Quick: who?", "Leo"), ("Add 1 and 99, ", "no")):
        ids = ids_of(prompt + reply)
        chats.append(ChatRow(ids, np.arange(len(ids)) >= len(prompt)))
    assert rewarded.chats(chats).tolist() == [True, False, False]
    rows = [Row(ids_of(text), ids_of("87")) for text in ("Add 1 and 1,000, please.", "Hello 7")]
    assert rewarded.rows(rows).tolist() == [True, False]
    assert not Rewarded([], Letters()).chats(chats).any()  # type: ignore[arg-type]


def test_chats_and_pairs_of_problems_alone_are_off_and_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """GRPO on the questions of the very chats and pairs that it is to learn beside."""
    files = small_stages.make(tmp_path, TORCH)
    chats = tmp_path / "chats.jsonl"
    pairs = tmp_path / "pairs.jsonl"
    problems = tmp_path / "problems.jsonl"
    with chats.open("w") as c, pairs.open("w") as d, problems.open("w") as p:
        for n in range(40):
            c.write(json.dumps({"prompt": f"Add {n} and 2.", "completion": str(n + 2)}) + "\n")
            pair = {"prompt": f"Add {n} and 3.", "chosen": f"{n + 3}", "rejected": "no"}
            d.write(json.dumps(pair) + "\n")
            p.write(json.dumps({"prompt": f"Add {n} and 5.", "answer": str(n + 5)}) + "\n")
    more: dict[str, Any] = {"data": str(problems), "steps": 2}
    more |= {"sft_coef": 0.5, "sft_data": str(chats), "sft_batch": 2}
    more |= {"pair_coef": 0.5, "pair_data": str(pairs), "pair_batch": 2}
    od.grpo(**small_stages.settings(files, "grpo", tmp_path / "run", "torch", **more))
    told = " ".join(capsys.readouterr().err.split())
    assert "no chats are learned beside (all of" in told
    assert "no pairs are learned beside (all of" in told
    assert "ask what the rewards judge" in told and "answer what the rewards judge" in told


def test_what_is_off_is_said_and_no_setting_of_it_matters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model from elsewhere: with weights for chats and pairs it learns what it learns without."""
    files = small_stages.make(tmp_path, TORCH)
    plain = {"sft_coef": 0.0, "sft_batch": 16, "sft_data": ""}
    both = {**plain, "pair_coef": 0.0, "pair_batch": 8, "pair_data": "", "steps": 2}
    fields = small_stages.settings(files, "grpo", tmp_path / "without", "torch", **both)
    od.grpo(**fields)
    assert "beside" not in capsys.readouterr().err
    off = {**fields, "out": str(tmp_path / "off"), "sft_coef": 0.5, "pair_coef": 0.5}
    od.grpo(**off)
    told = " ".join(capsys.readouterr().err.split())
    assert "no chats are learned beside" in told and "no pairs are learned beside" in told
    curves = []
    for name in ("without", "off"):
        events = read(tmp_path / name / "grpo" / "events.jsonl")
        curves.append([e["loss"] for e in events if e["event"] == "step"])
    assert curves[0] == curves[1] and len(curves[0]) == 2


def test_the_sum_is_that_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """GRPO with chats and pairs in two micro-batches of unequal rows: the gradient is the one that
    transformers' model gives for the three sums, each row by itself and divided as a whole."""
    transformers = pytest.importorskip("transformers")
    weights, rng = models.weights(CFG), np.random.default_rng(3)

    def row() -> Row:
        sizes = rng.integers(2, 8), rng.integers(1, 7)
        return Row(*(rng.integers(3, CFG.vocab_size, size) for size in sizes))

    rollout = [row() for _ in range(7)]
    gains = rng.normal(size=7)
    sampled = [Sampled(r.prompt, r.completion.tolist(), True, "") for r in rollout]
    tokens = float(sum(len(r.completion) for r in rollout))
    per_token = {
        "advantages": repeat_per_token(gains, sampled),
        "scale": repeat_per_token(np.ones(7), sampled),
    }
    made = [batch for batch, _ in micro_batches(sampled, range(7), 4, per_token)]
    chats = [row() for _ in range(5)]
    rows = []
    for one in chats:
        ids = np.concatenate([one.prompt, one.completion]).astype(np.int32)
        rows.append(ChatRow(ids, np.arange(len(ids)) >= len(one.prompt)))
    source = ChatSource(rows, sequence_length=16, batch_size=5, packing=False)
    put_beside(made, source.batch(0, 3), "sft.")
    pairs = []
    for _ in range(3):
        chosen = row()
        pairs.append(TokenPair(chosen, Row(chosen.prompt, row().completion)))
    reference = rng.normal(-9, 2, (2, 3)).astype(np.float32)
    make = partial(pair_batch, sides=sides_of(pairs), reference=reference)
    kept = PairSource(pairs, batch_size=3, seed=0, make=make)
    put_beside(made, kept.batch(0, 2), "pair.")
    for batch in made:
        batch["denominator"] = np.float32(tokens)
    loss = with_losses_beside(
        partial(grpo_loss, model=Decoder(CFG), clip_low=0.2, clip_high=0.2),
        model=Decoder(CFG),
        sft_coef=0.7,
        pair_coef=0.4,
        pair_beta=0.3,
    )
    total: dict[str, Any] = {}
    for batch in made:
        grads = by_name(TORCH, lambda p, b: loss(TORCH.ops, p, b)[0], weights, batch)[1]
        total = {name: total.get(name, 0) + grad for name, grad in grads.items()}

    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**CFG.to_json()))
    model.load_state_dict({n: torch.tensor(w) for n, w in weights.items()}, strict=False)

    def logps(one: Row) -> Any:
        ids = torch.tensor(np.concatenate([one.prompt, one.completion]).astype(np.int64))[None]
        logits = model(ids).logits[0, len(one.prompt) - 1 : -1]
        wanted = torch.tensor(one.completion.astype(np.int64))[:, None]
        return torch.log_softmax(logits, -1).gather(1, wanted)[:, 0]

    learned = sum(len(one.completion) for one in chats)
    expected = sum(-gain * logps(one).sum() for gain, one in zip(gains, rollout, strict=True))
    expected = expected / tokens
    expected = expected - 0.7 * sum(logps(one).sum() for one in chats) / learned
    for n, pair in enumerate(pairs):
        apart = logps(pair.chosen).sum() - logps(pair.rejected).sum()
        known = float(reference[0, n] - reference[1, n])
        sigmoid = torch.nn.functional.logsigmoid(0.3 * (apart - known))
        expected = expected - 0.4 * sigmoid / len(pairs)
    expected.backward()
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(total[name], parameter.grad.numpy(), rtol=1e-3, atol=2e-6)
