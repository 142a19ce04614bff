"""Everything that the preference and reasoning stages begin from, as small as it can be. No test by
itself.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import models
from data_samples import small_tokenizer
from device import DEVICE
from ondevice.models.decoder_config import DecoderConfig
from ondevice.models.save import write_model
from ondevice.models.shapes import SCORE, shapes
from ondevice.seam.protocols import Backend

CONTEXT = 60  # no power of 2 nor near one: batches are padded to more than it
WORDS = [
    "Anna",
    "Ben",
    "Carla",
    "Rome",
    "Oslo",
    "red",
    "green",
    "pears",
    "apples",
    "12",
    "34",
    "46",
]
LOOP: dict[str, Any] = {
    "learning_rate": 3e-3,
    "warmup_steps": 2,
    "schedule": "constant",
    "eval_every": 0,
    "save_every": 2,
    "device": DEVICE,
}
STAGES: dict[str, dict[str, Any]] = {
    "reward": {
        "batch_size": 8,
        "micro_batch": 4,
        "sequence_length": CONTEXT,
        "steps": 12,
        "eval_batches": 1,
    },
    "dpo": {
        "batch_size": 8,
        "micro_batch": 4,
        "sequence_length": CONTEXT,
        "steps": 12,
        "eval_batches": 1,
        "sft_batch": 4,
        "sft_coef": 0.1,
    },
    "ppo": {
        "prompts": 4,
        "max_new_tokens": 8,
        "epochs": 2,
        "minibatches": 2,
        "micro_batch": 2,
        "sft_batch": 4,
        "steps": 6,
        "sft_coef": 0.1,
        "target_kl": 0.02,
        "kl_coef": 0.1,
    },
    "grpo": {
        "prompts": 3,
        "group_size": 4,
        "max_new_tokens": 8,
        "updates": 2,
        "micro_batch": 5,
        "beta": 0.05,
        "steps": 6,
        "rewards": ("length", "truncated"),
        "sft_batch": 4,
        "sft_coef": 0.1,
        "pair_batch": 4,
        "pair_coef": 0.1,
    },
}


def config(**changes: Any) -> DecoderConfig:
    return models.config(
        "llama", vocab_size=small_tokenizer().vocab_size, max_position_embeddings=CONTEXT, **changes
    )


def weights(cfg: DecoderConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Random ones, under which a text stops now and then."""
    out = models.weights(cfg, seed)
    if "lm_head.weight" in out:
        for stop in small_tokenizer().stop_ids:
            out["lm_head.weight"][stop] *= 8
    return out


def write(folder: Path, backend: Backend, cfg: DecoderConfig, seed: int = 0) -> Path:
    folder.mkdir(parents=True)
    made = {n: backend.array(w) for n, w in weights(cfg, seed).items()}
    write_model(folder, backend, cfg, made, small_tokenizer())
    return folder


def make(folder: Path, backend: Backend) -> Path:
    """A folder with a policy, a reward model, prompts with answers, pairs and chats."""
    write(folder / "policy", backend, config())
    judge = replace(config(), num_labels=1)
    assert SCORE in shapes(judge)
    write(folder / "judge", backend, judge, seed=5)
    rng = random.Random(0)
    asked = [" ".join(rng.choices(WORDS, k=rng.randint(1, 4))) + f" {n}" for n in range(30)]
    lines = {
        "prompts": [{"prompt": text, "answer": str(n)} for n, text in enumerate(asked)],
        "pairs": [
            {
                "prompt": text,
                **{
                    side: " ".join(rng.choices(WORDS, k=rng.randint(1, 3 + n % 3)))
                    for side in ("chosen", "rejected")
                },
            }
            for n, text in enumerate(asked)
        ],
        "chats": [
            {
                "messages": [
                    {"role": "user", "content": text},
                    {"role": "assistant", "content": rng.choice(WORDS)},
                ]
            }
            for text in asked
        ],
    }
    for name, rows in lines.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def alone(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields without chats and pairs beside the stage's own data."""
    return {name: x for name, x in fields.items() if not name.startswith(("sft_", "pair_"))}


def settings(files: Path, stage: str, out: Path, backend: str, **changes: Any) -> dict[str, Any]:
    """The fields of a stage, as the Python API takes them."""
    own = {
        "reward": {"data": files / "pairs.jsonl"},
        "dpo": {"data": files / "pairs.jsonl", "sft_data": files / "chats.jsonl"},
        "ppo": {
            "reward_model": files / "judge",
            "data": files / "prompts.jsonl",
            "sft_data": files / "chats.jsonl",
        },
        "grpo": {
            "data": files / "prompts.jsonl",
            "sft_data": files / "chats.jsonl",
            "pair_data": files / "pairs.jsonl",
        },
    }[stage]
    plain = {
        name: str(path) for name, path in {"model": files / "policy", "out": out, **own}.items()
    }
    return {**plain, **LOOP, **STAGES[stage], "backend": backend, **changes}
