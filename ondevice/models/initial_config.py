"""The config.json of a model that a stage `init` makes: the settings under the names of each family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ondevice.common.errors import UserError
from ondevice.config.stages import InitConfig
from ondevice.data.tokenizer import Tokenizer
from ondevice.models.encoder_config import ENCODERS
from ondevice.models.registry import ModelConfig, parse_config
from ondevice.models.seq2seq_config import SEQ2SEQ


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
