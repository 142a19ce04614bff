"""Small random models of each family, shared by the tests: config, weights and batches in numpy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ondevice.models.architectures import ModelConfig
from ondevice.models.config import DecoderConfig
from ondevice.models.encoder_config import EncoderConfig
from ondevice.models.names import shapes

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama-gqa-tied": {"model_type": "llama", "num_key_value_heads": 2, "tie_word_embeddings": True},
    "llama3-rope": {"model_type": "llama", "rope_theta": 500000.0, "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32}},
    "llama-linear-bias": {"model_type": "llama", "attention_bias": True, "mlp_bias": True,
                          "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "mistral-window": {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 6},
    "qwen2": {"model_type": "qwen2", "num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 12},
}


ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {"model_type": "bert"},
    "bert-untied": {"model_type": "bert", "tie_word_embeddings": False, "type_vocab_size": 1},
    "modernbert": {"model_type": "modernbert", "local_attention": 8, "global_attn_every_n_layers": 2},
    "modernbert-biases": {"model_type": "modernbert", "local_attention": 6, "attention_bias": True, "mlp_bias": True,
                          "norm_bias": True, "classifier_bias": True, "tie_word_embeddings": False,
                          "global_rope_theta": 5000.0, "num_hidden_layers": 3},
}


def encoder_config(name: str, **changes: Any) -> EncoderConfig:
    raw = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
           "num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0, **ENCODERS[name]}
    return replace(EncoderConfig.parse(raw), raw={}, **changes)


def masked_batch(cfg: EncoderConfig, rows: int = 3, tokens: int = 20, seed: int = 1) -> dict[str, np.ndarray]:
    """Two examples a row and padding; some places of each are targets."""
    rng = np.random.default_rng(seed)
    out = batch(cfg, rows, tokens, seed, segments=True)
    out["positions"] = np.where(out["segments"] > 0, out["positions"], 0).astype(np.int32)
    index = np.flatnonzero((out["segments"] > 0) & (rng.random((rows, tokens)) < 0.4)).astype(np.int32)
    return out | {"index": index, "targets": rng.integers(3, cfg.vocab_size, len(index)).astype(np.int32),
                  "weights": np.ones(len(index), np.float32), "denominator": np.float32(len(index))}


def config(name: str, **changes: Any) -> DecoderConfig:
    raw = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
           "num_attention_heads": 4, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
           "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, **FAMILIES[name]}
    return replace(DecoderConfig.parse(raw), raw={}, **changes)


def weights(cfg: ModelConfig, seed: int = 0, std: float = 0.15) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    out = {}
    for name, shape in shapes(cfg).items():
        draw = rng.standard_normal(shape).astype(np.float32) * np.float32(std)
        out[name] = draw + np.float32(1.0) if name.lower().endswith("norm.weight") else draw
    return out


def batch(cfg: ModelConfig, rows: int = 3, tokens: int = 20, seed: int = 1,
          segments: bool = False) -> dict[str, np.ndarray]:
    """Next-token targets at every position but a row's last; with `segments`, two examples a row and padding."""
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
        wanted[:, cut - 1] = wanted[:, end - 1:] = False
        out["segments"] = seg
    index = np.flatnonzero(wanted).astype(np.int32)
    out |= {"index": index, "targets": ids.reshape(-1)[index + 1].astype(np.int32),
            "weights": np.ones(len(index), np.float32), "denominator": np.float32(len(index))}
    return out
