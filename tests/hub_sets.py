"""Data sets and a model in the form in which they are on the Hub, small: the files and their names,
the card, columns and types of TinyStories, smol-smoltalk, GSM8K and SmolLM2. No test by itself.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

import models
from hub_server import HubServer
from ondevice.config.corpus import CorpusConfig
from ondevice.data import hub_datasets, hub_stream
from ondevice.data.builtin.stories import story
from ondevice.data.builtin.world import make_world
from ondevice.data.chat_encoding import add_template
from ondevice.data.tokenizer_training import train_tokenizer
from ondevice.models.registry import parse_config

SHARDS = ("2d5a1467fff1081b", "5852b56a2bd28fd9", "a26307300439e943", "d243063613e5a057")
"""The ends of the names of TinyStories' four files to learn from."""
VALIDATION = "869c898b519ad725"
SMOLLM2: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "silu",
    "hidden_size": 576,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.1",
    "use_cache": True,
    "vocab_size": 49152,
}
"""config.json of SmolLM2-135M."""
SMALL = {"hidden_size": 36, "intermediate_size": 48, "num_hidden_layers": 2}
ENDOFTEXT = "<|endoftext|>"


def stories(count: int, seed: int) -> list[str]:
    """Stories of the built-in corpus, each two in one; no two alike."""
    random, world = Random(seed), make_world(CorpusConfig())
    found: dict[str, None] = {}
    while len(found) < count:
        found[f"{story(random, world)}\n\n{story(random, world)}"] = None
    return list(found)


def parquet(**columns: Any) -> bytes:
    """A file with these columns, in groups of 20 rows."""
    import pyarrow
    from pyarrow import parquet

    out = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), out, row_group_size=20)
    return out.getvalue()


def card(**head: Any) -> bytes:
    import yaml

    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\nA card.\n".encode()


def add_tinystories(server: HubServer, train: int, validation: int) -> None:
    """roneneldan/TinyStories, `train` stories in all: its Parquet files stand in `data`, beside
    texts and an archive that are not to be read."""
    told = stories(train + validation, 3)
    files = {
        "README.md": card(
            license="cdla-sharing-1.0", task_categories=["text-generation"], language=["en"]
        ),
        "TinyStories-train.txt": f"Not to be read.\n{ENDOFTEXT}\n".encode() * 9,
        "TinyStories-valid.txt": b"Not to be read.\n",
        "TinyStoriesV2-GPT4-train.txt": b"Not to be read.\n",
        "TinyStories_all_data.tar.gz": b"\x1f\x8b",
        "Evaluation prompts.yaml": b"prompts: []\n",
        "MLP_input_output.npy": b"\x93NUMPY",
    }
    each = train // len(SHARDS)
    for n, end in enumerate(SHARDS):
        part = told[n * each : (n + 1) * each]
        files[f"data/train-{n:05}-of-{len(SHARDS):05}-{end}.parquet"] = parquet(text=part)
    files[f"data/validation-00000-of-00001-{VALIDATION}.parquet"] = parquet(text=told[train:])
    server.add("roneneldan/TinyStories", files, "dataset", private=False)


def add_smoltalk(server: HubServer, train: int, test: int) -> None:
    """HuggingFaceTB/smol-smoltalk: chats of several turns, some with a system prompt."""

    def rows(count: int, seed: int) -> dict[str, Any]:
        random = Random(seed)
        chats = []
        for n in range(count):
            chat = [{"content": "Be brief.", "role": "system"}] if n % 3 == 0 else []
            for turn in range(1 + n % 2):
                asked = f"What is red, {random.choice(('Anna', 'Ben', 'Carla'))} {seed}-{n}-{turn}?"
                chat.append({"content": asked, "role": "user"})
                chat.append({"content": "Red apples are red.", "role": "assistant"})
            chats.append(chat)
        sources = ["smol-magpie-ultra-short", "everyday-conversations"] * count
        return {"messages": chats, "source": sources[:count]}

    features = [
        {
            "name": "messages",
            "list": [{"name": name, "dtype": "string"} for name in ("content", "role")],
        },
        {"name": "source", "dtype": "string"},
    ]
    counts = {"train": train, "test": test}
    splits = [
        {"name": name, "num_bytes": 400.5 * count, "num_examples": count}
        for name, count in counts.items()
    ]
    paths = [{"split": name, "path": f"data/{name}-*"} for name in ("train", "test")]
    files = {
        "README.md": card(
            license="apache-2.0",
            language=["en"],
            dataset_info={"features": features, "splits": splits},
            configs=[{"config_name": "default", "data_files": paths}],
        ),
        "data/test-00000-of-00001.parquet": parquet(**rows(test, 5)),
    }
    for n in range(2):
        files[f"data/train-{n:05}-of-00002.parquet"] = parquet(**rows(train // 2, 6 + n))
    server.add("HuggingFaceTB/smol-smoltalk", files, "dataset", private=False)


def add_gsm8k(server: HubServer, train: int, test: int) -> None:
    """openai/gsm8k with its two configs; an answer has its steps, and ends in `#### 42`."""

    def rows(count: int, seed: int) -> dict[str, Any]:
        random = Random(seed)
        questions, answers = [], []
        for n in range(count):
            a, b = random.randint(2, 40), random.randint(2, 40)
            questions.append(f"Anna has {a} apples and Ben has {b}, in row {seed}-{n}. How many?")
            answers.append(f"They have {a}+{b} = <<{a}+{b}={a + b}>>{a + b} apples.\n#### {a + b}")
        return {"question": questions, "answer": answers}

    configs, files = [], {}
    for name in ("main", "socratic"):
        paths = [{"split": split, "path": f"{name}/{split}-*"} for split in ("train", "test")]
        configs.append({"config_name": name, "data_files": paths})
        for seed, (split, count) in enumerate((("train", train), ("test", test))):
            files[f"{name}/{split}-00000-of-00001.parquet"] = parquet(**rows(count, seed))
    files["README.md"] = card(license=["mit"], language=["en"], configs=configs)
    server.add("openai/gsm8k", files, "dataset", private=False)


def add_smollm2(server: HubServer, scratch: Path) -> None:
    """HuggingFaceTB/SmolLM2-135M, the base model: the tokens of ChatML and no chat template."""
    texts = stories(20, 9) + ["Anna has 12 + 34 = 46 apples, and Ben is red.\n#### 46"] * 5
    tokenizer = add_template(train_tokenizer(texts, 450), "chatml")
    tokenizer.save(scratch)
    settings = json.loads((scratch / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    config = {**SMOLLM2, **SMALL, "vocab_size": tokenizer.vocab_size}
    config |= {"bos_token_id": tokenizer.eos_id, "eos_token_id": tokenizer.eos_id}
    weights = models.weights(parse_config(config), 1)
    files = {
        "README.md": card(library_name="transformers", license="apache-2.0", language=["en"]),
        "config.json": json.dumps(config).encode(),
        "generation_config.json": json.dumps({"eos_token_id": tokenizer.eos_id}).encode(),
        "tokenizer.json": (scratch / "tokenizer.json").read_bytes(),
        "tokenizer_config.json": json.dumps(settings).encode(),
        "model.safetensors": save({n: np.asarray(w) for n, w in weights.items()}),
    }
    server.add("HuggingFaceTB/SmolLM2-135M", files, private=False)


def read_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data sets of the Hub are read by what stands for the library datasets here."""

    def answers(asked: bytes, *_: Any) -> Iterator[tuple[bytes, bytes]]:
        yield from hub_stream.parts_of(json.loads(asked))

    monkeypatch.setattr(hub_datasets, "answers", answers)
