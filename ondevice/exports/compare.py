"""How far what was written is from the model: logits on a fixed prompt, perplexity on held-out
text.
"""

from __future__ import annotations

import importlib.util
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ondevice.common.errors import UserError
from ondevice.common.json_files import read_json
from ondevice.data.batches import TextSource, tokenize_corpus
from ondevice.data.tokenizer import Tokenizer
from ondevice.models.decoder_config import DecoderConfig
from ondevice.models.encoder_config import EncoderConfig
from ondevice.models.external_config import LibraryConfig
from ondevice.models.model import Model
from ondevice.models.seq2seq_config import Seq2SeqConfig
from ondevice.models.state_dict import quantised
from ondevice.seam.protocols import Backend
from ondevice.seam.select import load_backend
from ondevice.training.losses import causal_lm_loss

PROMPT = (
    'The cat sat by the window and looked at the rain. "Where is Anna?" it asked; nobody knew.\n'
    "12 + 30 = 42, and 7 * 6 is the same.\n"
)
TOKENS = 64  # of the prompt, at most
ROWS = 8
MOST = 4096  # tokens that perplexity is measured on: it tells two forms of one model apart, and is no exam

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Gap:
    """`largest` difference of two arrays of logits, that as a share of the largest logit, and at
    how many of `places` the likeliest token is the same."""

    largest: float
    share: float
    same: int
    places: int


def gap(one: Floats, other: Floats) -> Gap:
    """Of two arrays (T, V); not finite where one of them is not."""
    largest = math.inf
    if np.isfinite(other).all():
        largest = float(np.abs(one - other).max())
    return Gap(
        largest,
        largest / max(float(np.abs(one).max()), 1e-6),
        int((one.argmax(-1) == other.argmax(-1)).sum()),
        len(one),
    )


def logits(model: Model, backend: Backend, text: Sequence[int]) -> Floats:
    """(T, V) float32 that the model gives at each place of the ids `text`; of a judge its scores
    (T, labels).
    """
    net, ops = model.network, backend.ops
    ids = np.array([text], np.int32)
    batch = {"ids": ids, "positions": np.arange(ids.shape[1], dtype=np.int32)[None]}
    if isinstance(model.cfg, EncoderConfig):
        batch["segments"] = np.ones_like(ids)
    if isinstance(model.cfg, Seq2SeqConfig):  # it reads the prompt, and writes it once more
        batch |= {"source_ids": ids, "source_lengths": np.array([ids.shape[1]], np.int32)}
    at = np.arange(ids.shape[1], dtype=np.int32)

    def fn(params, batch, at):  # type: ignore[no-untyped-def]
        x = net.hidden(ops, params, batch, at=at)
        if model.cfg.num_labels:
            return ops.cast(ops.linear(params, net.score, x), "float32")
        return net.head.logits(ops, params, x)

    run = backend.inference_fn(fn, compile="off")
    values: Floats = backend.numpy(run(model.params, model.with_tables(backend, batch), at))
    return values


def prompt_of(model: Model) -> list[int]:
    """The fixed prompt's ids, as many as the context holds."""
    return model.tokenizer.encode(PROMPT)[: min(TOKENS, model.cfg.max_position_embeddings)]


def perplexity(model: Model, backend: Backend, documents: Sequence[str]) -> float:
    """e to the mean of -log p of a token, over `MOST` tokens of the documents at most."""
    with tempfile.TemporaryDirectory() as cache:
        tokens = tokenize_corpus(documents, model.tokenizer, Path(cache))
        width = min(256, model.cfg.max_position_embeddings, len(tokens) - 1)
        source = TextSource(
            tokens, sequence_length=width, batch_size=ROWS, eos=model.tokenizer.eos_id
        )
        loss = partial(causal_lm_loss, model=model.network)
        run = backend.inference_fn(lambda p, b: loss(backend.ops, p, b)[1]["loss"])
        nats = count = 0.0
        for batch in source.eval_batches(max(1, MOST // (width * ROWS))):
            part, seen = run(model.params, model.with_tables(backend, batch))
            nats, count = nats + float(backend.numpy(part)), count + float(backend.numpy(seen))
    return math.exp(nats / max(count, 1.0))


def with_library(
    folder: Path, tokenizer: Tokenizer, mine: Model, backend: Backend
) -> tuple[Gap | None, str]:
    """(how far a folder, as it is read here, is from how transformers reads it; why the two were
    not compared). An export is compared with our own reading: this tells whether that is right.
    `mine` is the folder's model."""
    if not isinstance(mine.cfg, DecoderConfig) or mine.cfg.num_labels:
        return None, "only models that go on with a text are"
    if quantised(mine.params):
        return None, "its weights are packed"
    for name in ("torch", "transformers"):
        if importlib.util.find_spec(name) is None:
            return None, f"{name} is not installed"
    raw = read_json(folder / "config.json")
    other = load_backend("torch", "cpu", "float32")
    try:
        library, params = other.open_library(folder, raw, "float32")
    except UserError as error:
        return None, error.message
    theirs = Model(replace(LibraryConfig.parse(raw), lib=library), params, tokenizer, folder)
    text = prompt_of(mine)
    return gap(logits(theirs, other, text), logits(mine, backend, text)), ""
