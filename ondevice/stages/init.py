"""Stage 0: a tokenizer and a model of random weights.

The weights are drawn on the host, tensor by tensor, keyed by (seed, name): seed 0 is one model on
both backends. `fan_in`: linear layers N(0, 1/inputs) (LeCun 1998), what blocks add to the stream
divided by sqrt(2 · layers) (Radford 2019, GPT-2), embeddings N(0, embedding_std), head N(0,
initializer_range). `normal`: every matrix N(0, initializer_range) as Hugging Face's Llama, blocks'
outputs divided as above. Norms begin at 1, biases at 0.
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np

from ondevice.common.rng import normal
from ondevice.config.stages import InitConfig
from ondevice.data.builtin.corpus import build
from ondevice.data.context import DataContext
from ondevice.data.tokenizer import Tokenizer
from ondevice.data.tokenizer_training import SENTINELS, train_tokenizer
from ondevice.datasets import text_and_chats
from ondevice.datasets.spec import DataSpec, builtin_in
from ondevice.models.encoder_config import ENCODERS
from ondevice.models.external_config import LibraryConfig
from ondevice.models.initial_config import model_config
from ondevice.models.model import Model
from ondevice.models.registry import ModelConfig
from ondevice.models.shapes import shapes
from ondevice.models.tensor_names import adds_to_stream, in_block, is_between, is_embedding
from ondevice.runs.context import Context


def run(cfg: InitConfig, ctx: Context) -> Model:
    tokenizer = _tokenizer(cfg, ctx.data)
    shape = model_config(cfg, tokenizer)
    ctx.tell_foreseen()
    params = {name: ctx.backend.array(w) for name, w in initial_weights(cfg, shape).items()}
    return Model(shape, params, tokenizer, ctx.folder.model)


def _tokenizer(cfg: InitConfig, ctx: DataContext) -> Tokenizer:
    if cfg.tokenizer:
        return Tokenizer.load(Path(cfg.tokenizer))
    corpus = builtin_in(cfg.data, ctx.corpus)
    words = text_and_chats.texts(DataSpec.of(cfg), ctx)
    if corpus is not None:  # the words of instructions are to be whole tokens too
        words = chain(
            words, (m["content"] for chat in build(corpus).chats("train") for m in chat["messages"])
        )
    return train_tokenizer(
        words,
        cfg.vocab_size,
        fills=cfg.family in (*ENCODERS, "bart"),
        sentinels=SENTINELS if cfg.family == "t5" else 0,
    )


def initial_weights(cfg: InitConfig, shape: ModelConfig) -> dict[str, np.ndarray]:
    """Tensor name → float32 array; see the head of this file for the scheme."""
    return {name: _draw(cfg, shape, name, size) for name, size in shapes(shape).items()}


def _draw(cfg: InitConfig, shape: ModelConfig, name: str, size: tuple[int, ...]) -> np.ndarray:
    if len(size) == 1 or name.endswith("bias"):
        return np.full(size, 0.0 if name.endswith("bias") else 1.0, np.float32)
    assert not isinstance(shape, LibraryConfig)
    std = cfg.initializer_range
    if cfg.init == "fan_in" and (in_block(name) or is_between(name)):
        std = size[1] ** -0.5
    elif cfg.init == "fan_in" and is_embedding(name) and not shape.tie_word_embeddings:
        std = cfg.embedding_std
    if name.endswith("Attention.q.weight"):  # T5's scores are not scaled: its queries begin smaller
        std /= shape.head_dim**0.5
    if adds_to_stream(name):
        std /= (2 * shape.num_hidden_layers) ** 0.5
    return normal(cfg.seed, name, size, std)
