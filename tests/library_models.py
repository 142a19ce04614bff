"""Small random models of architectures that are not ours, in folders that transformers writes. No
test by itself.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_samples import small_tokenizer

_COMMON: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
_QWEN = {
    "model_type": "qwen3_moe",
    "head_dim": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
_LFM = {
    "model_type": "lfm2",
    "conv_L_cache": 3,
    "conv_bias": False,
    "block_dim": 32,
    "block_ff_dim": 48,
    "block_multiple_of": 8,
    "block_auto_adjust_ff_dim": False,
    "block_ffn_dim_multiplier": 1.0,
    "norm_eps": 1e-5,
    "full_attn_idxs": [1],
    "layer_types": ["conv", "full_attention", "conv"],
    "num_hidden_layers": 3,
    "rope_theta": 10000.0,
}
_GRANITE = {
    "model_type": "granitemoehybrid",
    "layer_types": ["mamba", "attention"],
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "shared_intermediate_size": 32,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_chunk_size": 16,
    "mamba_proj_bias": False,
    "mamba_conv_bias": True,
    "logits_scaling": 4.0,
    "embedding_multiplier": 2.0,
    "residual_multiplier": 0.5,
    "attention_multiplier": 0.3,
    "position_embedding_type": "nope",
    "rope_theta": 10000.0,
    "attention_bias": False,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
LIBRARY: dict[str, dict[str, Any]] = {"experts": _QWEN, "hybrid": _LFM, "both": _GRANITE}
"""A mixture of experts; convolutions beside attention; a mixture of experts with Mamba beside
attention, and logits that are divided."""

OTHERS: dict[str, dict[str, Any]] = {
    "mixtral": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "rope_theta": 1e4,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "head_dim": 8,
    },
    "olmoe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "norm_topk_prob": False,
        "rope_theta": 1e4,
    },
    "jamba": {
        "num_experts": 2,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 8,
        "mamba_dt_rank": 8,
        "use_mamba_kernels": False,
    },
    "falcon_h1": {
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_d_state": 16,
        "mamba_n_groups": 1,
        "mamba_chunk_size": 16,
        "lm_head_multiplier": 0.5,
        "head_dim": 8,
        "rope_theta": 1e4,
    },
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 16, "n_groups": 1, "chunk_size": 16},
    "cohere": {"logit_scale": 0.3, "rope_theta": 1e4},
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8},
}
"""What is looked at in passing: by `model_type`."""


def write(folder: Path, kind: str, seed: int = 0) -> Path:
    """A folder as transformers writes it, with the small tokenizer."""
    import torch

    transformers = pytest.importorskip("transformers", reason="transformers writes the folder")
    tokenizer = small_tokenizer()
    own = LIBRARY[kind] if kind in LIBRARY else {"model_type": kind, **OTHERS[kind]}
    raw = {
        **_COMMON,
        **own,
        "vocab_size": tokenizer.vocab_size,
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }
    config = transformers.AutoConfig.for_model(**raw)
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim >= 2:
                p.normal_(0, 0.15)
    model.save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**written, **raw}), encoding="utf-8")
    tokenizer.save(folder)
    return folder
