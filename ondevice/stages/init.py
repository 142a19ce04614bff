"""Stage 0: a tokenizer and a model of random weights.

The weights are drawn on the host, tensor by tensor, keyed by (seed, name): seed 0 is one model on
both backends. `fan_in`: linear layers N(0, 1/inputs) (LeCun 1998), what blocks add to the stream
divided by sqrt(2 · layers) (Radford 2019, GPT-2), embeddings N(0, embedding_std), head N(0,
initializer_range). `normal`: every matrix N(0, initializer_range) as Hugging Face's Llama, blocks'
outputs divided as above. Norms begin at 1, biases at 0.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ondevice.common.errors import UserError
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
from ondevice.models.model import Model
from ondevice.models.registry import ModelConfig, parse_config
from ondevice.models.seq2seq_config import SEQ2SEQ
from ondevice.models.shapes import shapes
from ondevice.models.tensor_names import adds_to_stream, in_block, is_between, is_embedding
from ondevice.runs.context import Context


def run(cfg: InitConfig, ctx: Context) -> Model:
    tokenizer = _tokenizer(cfg, ctx.data)
    shape = model_config(cfg, tokenizer)
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


def model_config(cfg: InitConfig, tokenizer: Tokenizer) -> ModelConfig:
    """Raises UserError for a setting that the family has not."""
    raw: dict[str, Any] = {
        "model_type": cfg.family,
        "vocab_size": tokenizer.vocab_size,
        "hidden_size": cfg.hidden_size,
        "intermediate_size": cfg.intermediate_size,
        "num_hidden_layers": cfg.num_hidden_layers,
        "num_attention_heads": cfg.num_attention_heads,
        "max_position_embeddings": cfg.max_position_embeddings,
        "tie_word_embeddings": cfg.tie_word_embeddings or cfg.family == "bart",
        "initializer_range": cfg.initializer_range,
    }
    part: Callable[[InitConfig, Tokenizer], dict[str, Any]]
    if cfg.family in ENCODERS:
        part = _encoder_part
    elif cfg.family in SEQ2SEQ:
        part = _seq2seq_part
    else:
        part = _decoder_part
    return parse_config(raw | part(cfg, tokenizer))


def _decoder_part(cfg: InitConfig, _: Tokenizer) -> dict[str, Any]:
    raw: dict[str, Any] = {
        "num_key_value_heads": cfg.num_key_value_heads,
        "rope_theta": cfg.rope_theta,
        "rms_norm_eps": cfg.rms_norm_eps,
    }
    if cfg.head_dim:
        raw["head_dim"] = cfg.head_dim
    if cfg.sliding_window:
        if cfg.family != "mistral":
            raise UserError(
                f"{cfg.family} has no window", where="sliding_window", hint="take --family mistral"
            )
        raw["sliding_window"] = cfg.sliding_window
    elif cfg.family == "mistral":
        raw["sliding_window"] = None  # transformers would fill in 4096
    return raw


def _encoder_part(cfg: InitConfig, _: Tokenizer) -> dict[str, Any]:
    _without_groups(cfg)
    _without(cfg, "head_dim", "rms_norm_eps")
    if cfg.family == "modernbert":
        reach = cfg.sliding_window or 2 * cfg.max_position_embeddings
        return {
            "local_attention": reach,
            "global_rope_theta": cfg.rope_theta,
            "local_rope_theta": cfg.rope_theta,
        }
    _without(cfg, "sliding_window", "rope_theta")
    return {}


def _seq2seq_part(cfg: InitConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """As many blocks on either side."""
    _without_groups(cfg)
    _without(cfg, "sliding_window", "rope_theta")
    if cfg.family == "t5":
        # untied it is T5 v1.1, whose feed-forward part is gated
        return {
            "d_model": cfg.hidden_size,
            "d_ff": cfg.intermediate_size,
            "num_layers": cfg.num_hidden_layers,
            "num_heads": cfg.num_attention_heads,
            "n_positions": cfg.max_position_embeddings,
            "layer_norm_epsilon": cfg.rms_norm_eps,
            "d_kv": cfg.head_dim or cfg.hidden_size // cfg.num_attention_heads,
            "feed_forward_proj": "relu" if cfg.tie_word_embeddings else "gated-gelu",
            "pad_token_id": tokenizer.pad_id,
            "decoder_start_token_id": tokenizer.pad_id,
        }
    _without(cfg, "head_dim", "rms_norm_eps")
    return {
        "d_model": cfg.hidden_size,
        "decoder_start_token_id": tokenizer.eos_id,
        "init_std": cfg.initializer_range,
        **{
            f"{side}_{name}": value
            for side in ("encoder", "decoder")
            for name, value in (
                ("ffn_dim", cfg.intermediate_size),
                ("layers", cfg.num_hidden_layers),
                ("attention_heads", cfg.num_attention_heads),
            )
        },
    }


def _without(cfg: InitConfig, *names: str) -> None:
    """Raises UserError for a setting that the family has not."""
    for name in names:
        if getattr(cfg, name) != getattr(InitConfig, name):
            raise UserError(f"{cfg.family} has none", where=name, hint="leave it out")


def _without_groups(cfg: InitConfig) -> None:
    if cfg.num_key_value_heads != cfg.num_attention_heads:
        raise UserError(
            f"{cfg.family} has as many as num_attention_heads",
            where="num_key_value_heads",
            hint=f"give {cfg.num_attention_heads}",
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
