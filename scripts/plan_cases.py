"""The cases by which `plan_accuracy.py` compares plans with measurements: models of four sizes, data,
and the settings of each stage.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from ondevice.config.corpus import CorpusConfig
from ondevice.config.load import from_mapping
from ondevice.config.stages import InitConfig
from ondevice.data.builtin.corpus import build
from ondevice.data.tokenizer import Tokenizer
from ondevice.data.tokenizer_training import SENTINELS, train_tokenizer
from ondevice.datasets.preference_pairs import builtin_pairs
from ondevice.models.initial_config import model_config
from ondevice.models.registry import ModelConfig
from ondevice.models.save import write_model
from ondevice.models.shapes import embedding_name
from ondevice.seam.protocols import Backend
from ondevice.stages.init import initial_weights

CORPUS = CorpusConfig(document_bytes=400_000, chat_count=1500, prompt_count=300, problem_count=200)
SIZES: dict[str, dict[str, int]] = {
    "tiny": {
        "vocab_size": 400,
        "hidden_size": 32,
        "intermediate_size": 64,
        "layers": 2,
        "heads": 2,
    },
    "1M": {
        "vocab_size": 1024,
        "hidden_size": 128,
        "intermediate_size": 384,
        "layers": 4,
        "heads": 4,
    },
    "10M": {
        "vocab_size": 8192,
        "hidden_size": 320,
        "intermediate_size": 864,
        "layers": 6,
        "heads": 5,
    },
    "30M": {
        "vocab_size": 8192,
        "hidden_size": 512,
        "intermediate_size": 1376,
        "layers": 8,
        "heads": 8,
    },
    # SmolLM2-135M
    "135M": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "layers": 30,
        "heads": 9,
        "kv": 3,
    },
}
ROWS = {"tiny": 4, "1M": 16, "10M": 8, "30M": 8, "135M": 2}  # of a step
WRITTEN = {"tiny": 8, "1M": 48, "10M": 32, "30M": 32, "135M": 16}
SAMPLED = 64
"""Prompts between two events of the stage `sample`."""
SEEN: Mapping[str, tuple[str, ...]] = {
    "torch 1M": (),
    "mlx 1M": (),
    "torch 10M": (
        *("pretrain", "sft", "reward", "dpo", "masked", "classify", "sample", "grpo"),
        "dpo, lora",
    ),
    "mlx 10M": (),
    "torch 30M": ("dpo, lora",),
    "torch 135M": ("pretrain",),
}
"""Cases that were at hand when the formulas of a plan or the constants of `costs.py` were chosen: what
a plan says of them it does not foretell. None named: all of that size."""


@dataclass(frozen=True)
class Case:
    """`fields` of the stage; `name` says what is special of it, `kind` which of the size's models
    it begins from: "" a decoder, "-bert" an encoder, "-t5" an encoder-decoder."""

    name: str
    stage: str
    size: str
    fields: dict[str, Any] = field(default_factory=dict)
    kind: str = ""


def is_seen(key: str) -> bool:
    """Whether a case ("torch 10M sft") was looked at when the formulas or their constants were chosen."""
    backend, size, name = key.split(maxsplit=2)
    seen = SEEN.get(f"{backend} {size}")
    return seen is not None and (not seen or name in seen)


def cases(size: str, folder: Path) -> Iterable[Case]:
    """Every case of one size, whose models and data lie in `folder`."""
    rows, written = ROWS[size], WRITTEN[size]
    text = {"sequence_length": 256, "batch_size": rows, "data": str(folder / "text.txt")}
    chats = {**text, "data": str(folder / "chats.jsonl")}
    pairs = {**text, "data": str(folder / "pairs.jsonl")}
    asked = {"data": str(folder / "prompts.jsonl"), "prompts": rows, "max_new_tokens": written}
    low = {"adapter": "lora"}
    yield Case("pretrain", "pretrain", size, text)
    yield Case("pretrain, Muon", "pretrain", size, {**text, "optimizer": "muon"})
    yield Case("pretrain, recomputed", "pretrain", size, {**text, "checkpointing": True})
    yield Case("pretrain, two micro-batches", "pretrain", size, {**text, "micro_batch": rows // 2})
    yield Case("sft", "sft", size, chats)
    yield Case("sft, a chat a row", "sft", size, {**chats, "packing": False})
    yield Case("lora", "sft", size, {**chats, **low})
    yield Case("reward", "reward", size, pairs)
    yield Case("dpo", "dpo", size, pairs)
    yield Case("dpo, lora", "dpo", size, {**pairs, **low})
    yield Case("masked", "pretrain", size, text, kind="-bert")
    texts = {**text, "data": str(folder / "texts.jsonl"), "batch_size": 4 * rows}
    yield Case("classify", "classify", size, texts, kind="-bert")
    yield Case("classify, decoder", "classify", size, texts)
    yield Case("spans", "pretrain", size, text, kind="-t5")
    yield Case("sample", "sample", size, {**asked, "prompts": 3 * SAMPLED})
    reward = str(folder / f"{size}-judge")
    yield Case("ppo", "ppo", size, {**asked, "prompts": 2 * rows, "reward_model": reward})
    grpo = {**asked, "group_size": 8, "reward_file": str(folder / "reward.py")}
    yield Case("grpo", "grpo", size, {**grpo, "prompts": max(1, rows // 4)})


def write_material(folder: Path) -> None:
    """The data of all cases, of the built-in corpus: files of a person's own, so that no stage takes
    that corpus's exam."""
    folder.mkdir(parents=True, exist_ok=True)
    corpus = build(CORPUS)
    (folder / "text.txt").write_text("\n\n".join(corpus.documents("train")), encoding="utf-8")
    chats = ({"messages": chat["messages"]} for chat in corpus.chats("train"))
    _write_rows(folder / "chats.jsonl", chats)
    _write_rows(folder / "pairs.jsonl", islice(builtin_pairs(CORPUS), 400))
    asked = ({"prompt": row["prompt"], "answer": row["answer"]} for row in corpus.problems("train"))
    _write_rows(folder / "prompts.jsonl", asked)
    texts = (
        {"text": chat["messages"][0]["content"], "label": str(n % 4)}
        for n, chat in enumerate(corpus.chats("train"))
    )
    _write_rows(folder / "texts.jsonl", texts)
    (folder / "reward.py").write_text(REWARD, encoding="utf-8")


REWARD = """
def spread(prompts, completions, **columns):
    return [sum(map(ord, text)) % 7 / 7 for text in completions]
"""  # no group without a spread, of which nothing would be computed


def _write_rows(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    lines = []
    for row in rows:
        lines.append(json.dumps({name: row[name] for name in row if name != "by"}))
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_models(folder: Path, size: str, kinds: Iterable[str], backend: Backend) -> None:
    """Models of random weights: a decoder, "-judge" a reward model, and those of `Case`. No text that
    they write stops."""
    shape = SIZES[size]
    texts, words = list(build(CORPUS).documents("train")), min(1024, shape["vocab_size"])
    for kind in kinds:
        place = folder / f"{size}{kind}"
        if (place / "config.json").is_file():
            continue
        tokenizer = train_tokenizer(
            texts, words, fills=kind == "-bert", sentinels=SENTINELS if kind == "-t5" else 0
        )
        cfg = _shape(shape, kind, tokenizer)
        place.mkdir(parents=True)
        weights = initial_weights(InitConfig(), cfg)
        for stop in tokenizer.stop_ids:
            weights[embedding_name(cfg)][stop] = 0.0
        params = {key: backend.array(array) for key, array in weights.items()}
        write_model(place, backend, cfg, params, tokenizer)


def _shape(shape: dict[str, int], kind: str, tokenizer: Tokenizer) -> ModelConfig:
    family = {"-bert": "bert", "-t5": "t5"}.get(kind, "llama")
    grouped = shape["heads"] if kind in ("-bert", "-t5") else shape.get("kv", shape["heads"])
    settings = {
        "family": family,
        "hidden_size": shape["hidden_size"],
        "intermediate_size": shape["intermediate_size"],
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"],
        "num_key_value_heads": grouped,
        "tie_word_embeddings": True,
    }
    cfg = model_config(from_mapping(InitConfig, settings), tokenizer)
    return replace(cfg, vocab_size=shape["vocab_size"], num_labels=1 if kind == "-judge" else 0)


def kinds_of(case: Case) -> set[str]:
    """The models that a case needs."""
    return {case.kind, *(["-judge"] if case.stage == "ppo" else [])}


def model_of(case: Case, folder: Path) -> Path:
    return folder / f"{case.size}{case.kind}"
