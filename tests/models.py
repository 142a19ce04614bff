"""Small random models of each family, shared by the tests: config, weights and batches in numpy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ondevice.models.config import DecoderConfig
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
    "smollm3": {"model_type": "smollm3", "num_key_value_heads": 2, "num_hidden_layers": 3,
                "no_rope_layers": [1, 0, 1]},
    # a width whose root bfloat16 holds: mlx-lm rounds it so, whatever the type
    "gemma3": {"model_type": "gemma3_text", "num_key_value_heads": 1, "hidden_size": 64, "head_dim": 12,
               "num_hidden_layers": 3, "sliding_window": 6, "sliding_window_pattern": 2, "query_pre_attn_scalar": 20,
               "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "gpt2": {"model_type": "gpt2", "intermediate_size": None},
}


def config(name: str, **changes: Any) -> DecoderConfig:
    raw = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
           "num_attention_heads": 4, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
           "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, **FAMILIES[name]}
    return replace(DecoderConfig.parse(raw), raw={}, **changes)


def weights(cfg: DecoderConfig, seed: int = 0, std: float = 0.15) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    out = {}
    for name, shape in shapes(cfg).items():
        draw = rng.standard_normal(shape).astype(np.float32) * np.float32(std)
        # norms around 1; Gemma's are kept around 0
        norm = len(shape) == 1 and name.endswith("weight") and not cfg.norm_shift
        out[name] = draw + np.float32(1.0) if norm else draw
    return out


def batch(cfg: DecoderConfig, rows: int = 3, tokens: int = 20, seed: int = 1,
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
