"""One material for all sides of a row: a model's folder, a stream of tokens, chats and prompts."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from job import GROUP_SIZE, Job, Size

from ondevice.config.stages import InitConfig
from ondevice.data.batches import TextSource
from ondevice.data.tokenizer import Tokenizer
from ondevice.data.tokenizer_training import train_tokenizer
from ondevice.models.convert import quantize
from ondevice.models.initial_config import model_config
from ondevice.models.load import load_model
from ondevice.models.save import write_model
from ondevice.seam.select import load_backend
from ondevice.stages.init import initial_weights

HELD_CHATS = 4
TRAINED_WORDS = 4096  # tokens that the invented language fills; a model may have more rows


def words() -> list[str]:
    """Words of an invented language, the commonest first."""
    draw = random.Random(0)
    found = []
    for _ in range(4000):
        syllables = []
        for _ in range(draw.randint(1, 4)):
            syllables.append(draw.choice("bdfgklmnprstvz") + draw.choice("aeiou"))
        found.append("".join(syllables))
    return list(dict.fromkeys(found))


def sentences(seed: str, low: int, high: int) -> Iterator[str]:
    draw = random.Random(seed)
    known = words()
    while True:
        chosen = []
        for _ in range(draw.randint(low, high)):
            chosen.append(known[min(int(draw.expovariate(1 / 300)), len(known) - 1)])
        yield " ".join(chosen) + "."


def texts_of(tokenizer: Tokenizer, seed: str, count: int, size: tuple[int, int]) -> Iterator[str]:
    """Texts of about `count` tokens each; 0: of `size` words."""
    if not count:
        yield from sentences(seed, *size)
        return
    for text in sentences(seed, count, count):
        yield tokenizer.decode(tokenizer.encode(text)[:count])


def prepare(job: Job, model: Path | None = None) -> None:
    """`model`: a folder to use in place of random weights."""
    folder = job.file("")
    folder.mkdir(parents=True)
    text = sentences("text", 20, 60)
    documents = [next(text) for _ in range(2000 if job.small else 6000)]
    if model is not None:
        job.model.symlink_to(model.absolute(), target_is_directory=True)
    else:
        _random_model(job, documents)
    if job.shape.bits:
        quantize(job.model, job.quantised, job.shape.bits, GROUP_SIZE)
    tokenizer = load_model(job.model, load_backend(job.backend, "cpu")).tokenizer
    _write_rows(job, tokenizer, documents)
    _write_chats(job, tokenizer, "chats.jsonl", 2 * job.steps * job.shape.chats)
    # a stage wants some that it does not learn from: they are measured at its ends, which are left out
    _write_chats(job, tokenizer, "held_chats.jsonl", HELD_CHATS)
    prompts = []
    for i, document in enumerate(documents[: max(64, job.shape.generated)]):
        prompts.append(tokenizer.encode(document)[: 8 + i % 17])
    job.file("prompts.json").write_text(json.dumps(prompts))


def _random_model(job: Job, documents: list[str]) -> None:
    backend = load_backend(job.backend, "cpu")
    shape = job.shape
    tokenizer = train_tokenizer(documents, min(shape.vocab_size, TRAINED_WORDS))
    cfg = init_config(shape)
    decoder = replace(model_config(cfg, tokenizer), vocab_size=shape.vocab_size)
    params = {n: backend.array(w) for n, w in initial_weights(cfg, decoder).items()}
    job.model.mkdir()
    write_model(job.model, backend, decoder, params, tokenizer, dtype=shape.dtype)


def init_config(shape: Size) -> InitConfig:
    return InitConfig(
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        tie_word_embeddings=shape.tie_word_embeddings,
        max_position_embeddings=max(1024, shape.length),
    )


def _write_rows(job: Job, tokenizer: Tokenizer, documents: list[str]) -> None:
    """The stream, and its rows in the order in which our source deals them: peers read these."""
    shape = job.shape
    ids: list[int] = []
    for document in tokenizer.encode_batch(documents):
        ids += [*document, tokenizer.eos_id]
    stream = np.resize(np.array(ids, np.int32), job.steps * shape.rows * shape.length + 1)
    np.save(job.file("tokens.npy"), stream)
    source = TextSource(stream, sequence_length=shape.length, batch_size=shape.rows)
    rows = []
    for step in range(job.steps):
        batch = source.batch(step)[0]
        last = batch["targets"].reshape(batch["ids"].shape)[:, -1:]
        rows.append(np.concatenate([batch["ids"], last], 1))
    np.save(job.file("rows.npy"), np.concatenate(rows))


def _write_chats(job: Job, tokenizer: Tokenizer, name: str, count: int) -> None:
    shape = job.shape
    size = shape.chat_words
    asked = texts_of(tokenizer, f"{name} asked", shape.chat_tokens // 6, size)
    answered = texts_of(tokenizer, f"{name} answered", shape.chat_tokens, size)
    chats: list[Any] = []
    for _ in range(count):
        user = {"role": "user", "content": next(asked)}
        chats.append({"messages": [user, {"role": "assistant", "content": next(answered)}]})
    write_lines(job.file(name), chats)


def write_lines(file: Path, rows: list[Any]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
