"""The standard cases: one step of each stage on random data, by the stage's own loss, batches and
decoding.

Random weights cost as much as trained ones. Chosen: shapes that people train (`SHAPES`), rows of
`LENGTH` tokens, AdamW, adapters of rank 16 in `sft`. Left out: what a stage does between its steps
(measuring, saving), and rewards, which are a person's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ondevice.common.rng import generator as random_of
from ondevice.config.preference import GRPOConfig, PPOConfig, RewardConfig
from ondevice.config.stages import InitConfig, PretrainConfig
from ondevice.data.completion_batches import Row, completion_batch
from ondevice.data.packing import Batch, set_denominator
from ondevice.data.preference_batches import TokenPair
from ondevice.data.tokenizer import Tokenizer
from ondevice.data.tokenizer_training import train_tokenizer
from ondevice.inference.generator import Generator
from ondevice.inference.next_token import Sampling
from ondevice.models.lora import init_lora
from ondevice.models.model import Model
from ondevice.models.registry import parse_config
from ondevice.models.score_head import with_head
from ondevice.models.shapes import shapes
from ondevice.models.tensor_names import is_block_matrix
from ondevice.seam.ops import Loss, Params
from ondevice.seam.protocols import Backend, Trainer
from ondevice.stages.dpo import pair_batch, sides_of
from ondevice.stages.init import initial_weights
from ondevice.stages.reward import score_batch
from ondevice.training.losses import causal_lm_loss
from ondevice.training.optimizer_settings import optim_settings
from ondevice.training.policy_losses import grpo_loss, ppo_loss
from ondevice.training.preference_losses import preference_loss, reward_loss
from ondevice.training.sequence_logprobs import Scorer

LENGTH = 256  # tokens of a row
PROMPT = 64  # tokens of a prompt
WRITTEN = 64  # tokens of a completion
RANK = 16
RATE = 1e-4
SHAPES: dict[str, dict[str, int]] = {
    "10M": {
        "vocab_size": 8192,
        "hidden_size": 320,
        "intermediate_size": 864,
        "num_hidden_layers": 6,
        "num_attention_heads": 5,
        "num_key_value_heads": 5,
    },
    # SmolLM2-135M
    "135M": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
}


@dataclass(frozen=True)
class Case:
    """`work(rows)` does the case's work once with so many rows and returns the tokens that count."""

    stage: str
    what: str
    work: Callable[[int], int]
    most_rows: int = 16


def random_model(size: str, backend: Backend) -> Model:
    """A model of this one of `SHAPES`, with random weights."""
    raw: dict[str, Any] = {
        "model_type": "llama",
        "max_position_embeddings": 2 * LENGTH,
        "tie_word_embeddings": True,
        **SHAPES[size],
    }
    cfg = parse_config(raw)
    weights = initial_weights(InitConfig(), cfg)
    params = {name: backend.array(array) for name, array in weights.items()}
    return Model(cfg, params, _tokenizer(), Path(size))


def _tokenizer() -> Tokenizer:
    """One of few tokens: what is drawn is random anyway."""
    return train_tokenizer(["one two three four five six seven eight nine ten"] * 3, 300)


def cases(model: Model, backend: Backend) -> Iterator[Case]:
    """Every case of one model, each made when it is asked for, so that only one is in memory."""
    yield Case("pretrain", "all weights", _pretraining(model, backend))
    yield Case("sft", "an adapter", _tuning(model, backend))
    yield Case("reward", "pairs", _reward(model, backend), 8)
    yield Case("dpo", "pairs", _dpo(model, backend), 8)
    yield Case("ppo", "rollout, scores, one update", _ppo(model, backend))
    yield Case("grpo", "rollout, one update", _grpo(model, backend))
    yield Case("generate", "one row at a time", _generating(model, backend), 1)
    yield Case("generate", "many rows together", _generating(model, backend), 64)


# ---- data -----------------------------------------------------------------------------------------------------------


def _ids(model: Model, count: int, name: str) -> np.ndarray:
    """(count,) random tokens that the tokenizer knows."""
    drawn = random_of(0, "benchmark", name)
    return drawn.integers(3, model.tokenizer.vocab_size, count).astype(np.int32)


def _completion_rows(model: Model, count: int, name: str) -> list[Row]:
    rows = []
    for n in range(count):
        ids = _ids(model, PROMPT + WRITTEN, f"{name} {n}")
        rows.append(Row(ids[:PROMPT], ids[PROMPT:]))
    return rows


def _text_batch(model: Model, rows: int) -> Batch:
    """Full rows of plain text, every token a target."""
    ids = _ids(model, rows * (LENGTH + 1), "text").reshape(rows, LENGTH + 1)
    batch: Batch = {
        "ids": ids[:, :-1].copy(),
        "positions": np.tile(np.arange(LENGTH, dtype=np.int32), (rows, 1)),
        "targets": ids[:, 1:].reshape(-1).copy(),
        "index": np.arange(rows * LENGTH, dtype=np.int32),
        "weights": np.ones(rows * LENGTH, np.float32),
    }
    return set_denominator([batch])[0]


def _pairs(model: Model, count: int) -> list[TokenPair]:
    chosen = _completion_rows(model, count, "chosen")
    rejected = _completion_rows(model, count, "rejected")
    made = []
    for one, other in zip(chosen, rejected, strict=True):
        made.append(TokenPair(one, Row(one.prompt, other.completion)))
    return made


# ---- stages ---------------------------------------------------------------------------------------------------------


def _trainer(backend: Backend, loss: Loss, trained: Params, frozen: Params) -> Trainer:
    settings = optim_settings(PretrainConfig(learning_rate=RATE), trained)
    return backend.trainer(loss, trained, frozen, settings)


def _pretraining(model: Model, backend: Backend) -> Callable[[int], int]:
    trainer = _trainer(backend, partial(causal_lm_loss, model=model.network), model.params, {})

    def work(rows: int) -> int:
        trainer.step([model.with_tables(backend, _text_batch(model, rows))], RATE)
        return rows * LENGTH

    return work


def _tuning(model: Model, backend: Backend) -> Callable[[int], int]:
    modules = {}
    for name, shape in shapes(model.cfg).items():
        if is_block_matrix(name, shape):
            modules[name.removesuffix(".weight")] = (shape[0], shape[1])
    adapter = init_lora(modules, RANK, 2.0, 0, "benchmark", backend)
    scales = {name: p for name, p in adapter.items() if ".lora_scale." in name}
    trained = {name: p for name, p in adapter.items() if name not in scales}
    base = {name: backend.ops.cast(p, backend.dtype) for name, p in model.params.items()}
    loss = partial(causal_lm_loss, model=model.network)
    trainer = _trainer(backend, loss, trained, {**base, **scales})

    def work(rows: int) -> int:
        trainer.step([model.with_tables(backend, _text_batch(model, rows))], RATE)
        return rows * LENGTH

    return work


def _reward(model: Model, backend: Backend) -> Callable[[int], int]:
    judge = with_head(model, backend, 0)
    trainer = _trainer(backend, partial(reward_loss, model=judge.network), judge.params, {})

    def work(rows: int) -> int:
        pairs = _pairs(model, rows)
        batch = score_batch(range(rows), pairs, rows, cfg=RewardConfig())
        batch["denominator"] = np.asarray(rows, np.float32)
        trainer.step([model.with_tables(backend, batch)], RATE)
        return 2 * rows * (PROMPT + WRITTEN)

    return work


def _dpo(model: Model, backend: Backend) -> Callable[[int], int]:
    loss = partial(preference_loss, model=model.network, kind="sigmoid", beta=0.1)
    trainer = _trainer(backend, loss, model.params, {})

    def work(rows: int) -> int:
        pairs = _pairs(model, rows)
        sides = sides_of(pairs)
        reference = np.full((2, rows), -2.0 * WRITTEN, np.float32)
        batch = pair_batch(range(rows), pairs, rows, sides=sides, reference=reference)
        del batch["losses"]
        batch["denominator"] = np.asarray(rows, np.float32)
        trainer.step([model.with_tables(backend, batch)], RATE)
        return 2 * rows * (PROMPT + WRITTEN)

    return work


def _write(
    model: Model, params: Params, writer: Generator, prompts: int, samples: int
) -> list[Row]:
    """Completions of random prompts, none of which stops before its limit."""
    asked = [_ids(model, PROMPT, f"prompt {n}").tolist() for n in range(prompts)]
    found = writer.run(params, asked, samples=samples, batch_size=prompts * samples)
    return [Row(asked[n // samples], done.ids) for n, done in enumerate(found)]


def _writer(model: Model, backend: Backend) -> Generator:
    writer = Generator(model, backend, Sampling(WRITTEN, 1.0))
    writer.stop_ids = set()
    return writer


def _grpo(model: Model, backend: Backend) -> Callable[[int], int]:
    cfg = GRPOConfig()
    loss = partial(grpo_loss, model=model.network, clip_low=cfg.clip, clip_high=cfg.clip_high)
    trainer = _trainer(backend, loss, model.params, {})
    writer = _writer(model, backend)

    def work(rows: int) -> int:
        group = min(cfg.group_size, rows)
        completions = _write(model, trainer.params(), writer, max(1, rows // group), group)
        tokens = {"advantages": [np.ones(len(row.completion), np.float32) for row in completions]}
        batch = set_denominator([completion_batch(completions, len(completions), tokens)])[0]
        batch["scale"] = batch["weights"]
        trainer.step([model.with_tables(backend, batch)], RATE)
        return len(completions) * WRITTEN

    return work


def _ppo(model: Model, backend: Backend) -> Callable[[int], int]:
    cfg = PPOConfig()
    value = with_head(model, backend, 0)
    params = {**model.params, **{f"value.{name}": p for name, p in value.params.items()}}
    loss = partial(
        ppo_loss,
        model=model.network,
        clip=cfg.clip,
        value_clip=cfg.value_clip,
        value_coef=cfg.value_coef,
    )
    trainer = _trainer(backend, loss, params, {})
    writer = _writer(model, backend)
    scorer, critic = Scorer(model, backend), Scorer(value, backend)

    def work(rows: int) -> int:
        now = trainer.params()
        completions = _write(model, now, writer, rows, 1)
        scorer.batch_size = critic.batch_size = rows
        own = scorer.logprobs(now, completions)
        scorer.logprobs(now, completions)  # the reference's
        values = critic.values(value.params, completions)
        critic.scores(value.params, [_text(row) for row in completions])
        tokens = {
            "old_logps": own,
            "old_values": values,
            "advantages": [np.ones(len(row.completion), np.float32) for row in completions],
            "returns": values,
        }
        batch = set_denominator([completion_batch(completions, rows, tokens)])[0]
        trainer.step([model.with_tables(backend, batch)], RATE)
        return rows * WRITTEN

    return work


def _text(row: Row) -> np.ndarray:
    return np.concatenate([row.prompt, row.completion]).astype(np.int32)


def _generating(model: Model, backend: Backend) -> Callable[[int], int]:
    params = {name: backend.ops.cast(p, backend.dtype) for name, p in model.params.items()}
    writer = _writer(model, backend)

    def work(rows: int) -> int:
        return sum(len(row.completion) for row in _write(model, params, writer, rows, 1))

    return work
