"""Small random models of each family, shared by the tests: config, weights and batches in numpy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ondevice.models.decoder_config import DecoderConfig
from ondevice.models.encoder_config import EncoderConfig
from ondevice.models.registry import ModelConfig
from ondevice.models.seq2seq_config import Seq2SeqConfig
from ondevice.models.shapes import shapes

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama-gqa-tied": {
        "model_type": "llama",
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "llama3-rope": {
        "model_type": "llama",
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "llama-linear-bias": {
        "model_type": "llama",
        "attention_bias": True,
        "mlp_bias": True,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    },
    "mistral-window": {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 6},
    "qwen2": {"model_type": "qwen2", "num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 12},
    "smollm3": {
        "model_type": "smollm3",
        "num_key_value_heads": 2,
        "num_hidden_layers": 3,
        "no_rope_layers": [1, 0, 1],
    },
    # a width whose root bfloat16 holds: mlx-lm rounds it so, whatever the type
    "gemma3": {
        "model_type": "gemma3_text",
        "num_key_value_heads": 1,
        "hidden_size": 64,
        "head_dim": 12,
        "num_hidden_layers": 3,
        "sliding_window": 6,
        "sliding_window_pattern": 2,
        "query_pre_attn_scalar": 20,
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
    },
    "gpt2": {"model_type": "gpt2", "intermediate_size": None},
}


ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {"model_type": "bert"},
    "bert-untied": {"model_type": "bert", "tie_word_embeddings": False, "type_vocab_size": 1},
    "modernbert": {
        "model_type": "modernbert",
        "local_attention": 8,
        "global_attn_every_n_layers": 2,
    },
    "modernbert-biases": {
        "model_type": "modernbert",
        "local_attention": 6,
        "attention_bias": True,
        "mlp_bias": True,
        "norm_bias": True,
        "classifier_bias": True,
        "tie_word_embeddings": False,
        "global_rope_theta": 5000.0,
        "num_hidden_layers": 3,
    },
}


def encoder_config(name: str, **changes: Any) -> EncoderConfig:
    raw = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        **ENCODERS[name],
    }
    return replace(EncoderConfig.parse(raw), raw={}, **changes)


def masked_batch(
    cfg: EncoderConfig, rows: int = 3, tokens: int = 20, seed: int = 1
) -> dict[str, np.ndarray]:
    """Two examples a row and padding; some places of each are targets."""
    rng = np.random.default_rng(seed)
    out = batch(cfg, rows, tokens, seed, segments=True)
    out["positions"] = np.where(out["segments"] > 0, out["positions"], 0).astype(np.int32)
    index = np.flatnonzero((out["segments"] > 0) & (rng.random((rows, tokens)) < 0.4)).astype(
        np.int32
    )
    return out | {
        "index": index,
        "targets": rng.integers(3, cfg.vocab_size, len(index)).astype(np.int32),
        "weights": np.ones(len(index), np.float32),
        "denominator": np.float32(len(index)),
    }


SEQ2SEQ: dict[str, dict[str, Any]] = {
    "t5": {
        "model_type": "t5",
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 20,
    },
    "t5-v1.1": {
        "model_type": "t5",
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "d_kv": 12,
        "num_decoder_layers": 3,
    },
    "mt5": {"model_type": "mt5", "feed_forward_proj": "gated-gelu"},
    "bart": {"model_type": "bart"},
}


def seq2seq_config(name: str, **changes: Any) -> Seq2SeqConfig:
    raw: dict[str, Any] = {
        "vocab_size": 97,
        "d_model": 32,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
    }
    if name == "bart":
        raw |= {"max_position_embeddings": 64, "decoder_start_token_id": 5}
        raw |= {
            f"{side}_{what}": n
            for side in ("encoder", "decoder")
            for what, n in (("layers", 2), ("ffn_dim", 48), ("attention_heads", 4))
        }
    else:
        raw |= {
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": 2,
            "num_heads": 4,
            "n_positions": 64,
            "decoder_start_token_id": 1,
        }
    return replace(Seq2SeqConfig.parse({**raw, **SEQ2SEQ[name]}), raw={}, **changes)


def config(name: str, **changes: Any) -> DecoderConfig:
    raw = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        **FAMILIES[name],
    }
    return replace(DecoderConfig.parse(raw), raw={}, **changes)


def weights(cfg: ModelConfig, seed: int = 0, std: float = 0.15) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    out = {}
    for name, shape in shapes(cfg).items():
        draw = rng.standard_normal(shape).astype(np.float32) * np.float32(std)
        # norms around 1; Gemma's are kept around 0
        is_norm = (
            len(shape) == 1 and name.endswith("weight") and not getattr(cfg, "norm_shift", 0.0)
        )
        out[name] = draw + np.float32(1.0) if is_norm else draw
    return out


def batch(
    cfg: ModelConfig, rows: int = 3, tokens: int = 20, seed: int = 1, segments: bool = False
) -> dict[str, np.ndarray]:
    """Next-token targets at every position but a row's last; with `segments`, two examples a row
    and padding.
    """
    rng = np.random.default_rng(seed)
    ids = rng.integers(3, cfg.vocab_size, (rows, tokens)).astype(np.int32)
    positions = np.tile(np.arange(tokens, dtype=np.int32), (rows, 1))
    out = {"ids": ids, "positions": positions}
    wanted = np.ones((rows, tokens), bool)
    wanted[:, -1] = False
    if segments:
        cut, end = tokens // 3, tokens - 3
        seg = np.zeros((rows, tokens), np.int32)
        seg[:, :cut], seg[:, cut:end] = 1, 2
        positions[:, cut:] -= cut
        wanted[:, cut - 1] = wanted[:, end - 1 :] = False
        out["segments"] = seg
    index = np.flatnonzero(wanted).astype(np.int32)
    out |= {
        "index": index,
        "targets": ids.reshape(-1)[index + 1].astype(np.int32),
        "weights": np.ones(len(index), np.float32),
        "denominator": np.float32(len(index)),
    }
    return out
