"""What a config.json says is honoured or refused by name: published configs load, fields that
nobody knows do not.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import models
from data_samples import small_tokenizer
from ondevice.common.errors import UserError
from ondevice.config.stages import InitConfig
from ondevice.models.config_fields import HARMLESS, Fields
from ondevice.models.decoder import decoder_of
from ondevice.models.decoder_config import DecoderConfig
from ondevice.models.initial_config import model_config
from ondevice.models.registry import parse_config
from ondevice.models.state_dict import transposed
from ondevice.seam.protocols import Backend

KINDS = (
    "Llama",
    "Mistral",
    "Qwen2",
    "Qwen3",
    "SmolLM3",
    "Gemma3Text",
    "GPT2",
    "Bert",
    "ModernBert",
    "T5",
    "MT5",
    "Bart",
)
PUBLISHED: dict[str, dict[str, Any]] = {
    "SmolLM2-135M-Instruct": {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
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
        "pad_token_id": 2,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_interleaved": False,
        "rope_scaling": None,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
        "transformers_version": "4.42.3",
        "use_cache": True,
        "vocab_size": 49152,
    },
    "Qwen2.5-0.5B": {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151643,
        "hidden_act": "silu",
        "hidden_size": 896,
        "initializer_range": 0.02,
        "intermediate_size": 4864,
        "max_position_embeddings": 32768,
        "max_window_layers": 24,
        "model_type": "qwen2",
        "num_attention_heads": 14,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.40.1",
        "use_cache": True,
        "use_mrope": False,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "gpt2": {
        "activation_function": "gelu_new",
        "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.1,
        "bos_token_id": 50256,
        "embd_pdrop": 0.1,
        "eos_token_id": 50256,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05,
        "model_type": "gpt2",
        "n_ctx": 1024,
        "n_embd": 768,
        "n_head": 12,
        "n_layer": 12,
        "n_positions": 1024,
        "resid_pdrop": 0.1,
        "summary_activation": None,
        "summary_first_dropout": 0.1,
        "summary_proj_to_labels": True,
        "summary_type": "cls_index",
        "summary_use_proj": True,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
        "vocab_size": 50257,
    },
    "bert-base-multilingual-cased": {
        "architectures": ["BertForMaskedLM"],
        "attention_probs_dropout_prob": 0.1,
        "directionality": "bidi",
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": 768,
        "initializer_range": 0.02,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512,
        "model_type": "bert",
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "pad_token_id": 0,
        "pooler_fc_size": 768,
        "pooler_num_attention_heads": 12,
        "pooler_num_fc_layers": 3,
        "pooler_size_per_head": 128,
        "pooler_type": "first_token_transform",
        "position_embedding_type": "absolute",
        "transformers_version": "4.9.0.dev0",
        "type_vocab_size": 2,
        "use_cache": True,
        "vocab_size": 119547,
    },
    "ModernBERT-base": {
        "architectures": ["ModernBertForMaskedLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 50281,
        "classifier_activation": "gelu",
        "classifier_bias": False,
        "classifier_dropout": 0.0,
        "classifier_pooling": "mean",
        "cls_token_id": 50281,
        "decoder_bias": True,
        "deterministic_flash_attn": False,
        "embedding_dropout": 0.0,
        "eos_token_id": 50282,
        "global_attn_every_n_layers": 3,
        "global_rope_theta": 160000.0,
        "gradient_checkpointing": False,
        "hidden_activation": "gelu",
        "hidden_size": 768,
        "initializer_cutoff_factor": 2.0,
        "initializer_range": 0.02,
        "intermediate_size": 1152,
        "layer_norm_eps": 1e-05,
        "local_attention": 128,
        "local_rope_theta": 10000.0,
        "max_position_embeddings": 8192,
        "mlp_bias": False,
        "mlp_dropout": 0.0,
        "model_type": "modernbert",
        "norm_bias": False,
        "norm_eps": 1e-05,
        "num_attention_heads": 12,
        "num_hidden_layers": 22,
        "pad_token_id": 50283,
        "position_embedding_type": "absolute",
        "sep_token_id": 50282,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "transformers_version": "4.47.0.dev0",
        "vocab_size": 50368,
    },
    "flan-t5-small": {
        "architectures": ["T5ForConditionalGeneration"],
        "d_ff": 1024,
        "d_kv": 64,
        "d_model": 512,
        "decoder_start_token_id": 0,
        "dropout_rate": 0.1,
        "eos_token_id": 1,
        "feed_forward_proj": "gated-gelu",
        "initializer_factor": 1.0,
        "is_encoder_decoder": True,
        "layer_norm_epsilon": 1e-06,
        "model_type": "t5",
        "n_positions": 512,
        "num_decoder_layers": 8,
        "num_heads": 6,
        "num_layers": 8,
        "output_past": True,
        "pad_token_id": 0,
        "relative_attention_max_distance": 128,
        "relative_attention_num_buckets": 32,
        "task_specific_params": {"summarization": {"num_beams": 4, "prefix": "summarize: "}},
        "tie_word_embeddings": False,
        "transformers_version": "4.23.1",
        "use_cache": True,
        "vocab_size": 32128,
    },
    "bart-large-cnn": {
        "_num_labels": 3,
        "activation_dropout": 0.0,
        "activation_function": "gelu",
        "add_final_layer_norm": False,
        "architectures": ["BartForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "classif_dropout": 0.0,
        "classifier_dropout": 0.0,
        "d_model": 1024,
        "decoder_attention_heads": 16,
        "decoder_ffn_dim": 4096,
        "decoder_layerdrop": 0.0,
        "decoder_layers": 12,
        "decoder_start_token_id": 2,
        "dropout": 0.1,
        "early_stopping": True,
        "encoder_attention_heads": 16,
        "encoder_ffn_dim": 4096,
        "encoder_layerdrop": 0.0,
        "encoder_layers": 12,
        "eos_token_id": 2,
        "force_bos_token_to_be_generated": True,
        "forced_bos_token_id": 0,
        "forced_eos_token_id": 2,
        "gradient_checkpointing": False,
        "id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"},
        "init_std": 0.02,
        "is_encoder_decoder": True,
        "label2id": {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2},
        "length_penalty": 2.0,
        "max_length": 142,
        "max_position_embeddings": 1024,
        "min_length": 56,
        "model_type": "bart",
        "no_repeat_ngram_size": 3,
        "normalize_before": False,
        "num_beams": 4,
        "num_hidden_layers": 12,
        "output_past": True,
        "pad_token_id": 1,
        "prefix": " ",
        "scale_embedding": False,
        "task_specific_params": {"summarization": {"max_length": 142}},
        "transformers_version": "4.7.0.dev0",
        "use_cache": True,
        "vocab_size": 50264,
    },
    "gemma-3-1b-it": {
        "architectures": ["Gemma3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": None,
        "bos_token_id": 2,
        "cache_implementation": "hybrid",
        "eos_token_id": [1, 106],
        "final_logit_softcapping": None,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 1152,
        "initializer_range": 0.02,
        "intermediate_size": 6912,
        "max_position_embeddings": 32768,
        "model_type": "gemma3_text",
        "num_attention_heads": 4,
        "num_hidden_layers": 26,
        "num_key_value_heads": 1,
        "pad_token_id": 0,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.50.0.dev0",
        "use_cache": True,
        "vocab_size": 262144,
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_load(name: str) -> None:
    cfg = parse_config(PUBLISHED[name])
    assert parse_config(cfg.to_json()) == cfg  # and what is written of them


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("whole", [False, True], ids=["what differs", "everything"])
def test_configs_as_transformers_writes_them_load(name: str, whole: bool) -> None:
    transformers = pytest.importorskip("transformers")
    made = getattr(transformers, f"{name}Config")()
    raw = json.loads(made.to_json_string(use_diff=not whole))
    cfg = parse_config({**json.loads(made.to_json_string(use_diff=False)), **raw})
    assert cfg.vocab_size == made.vocab_size and parse_config(cfg.to_json()) == cfg


ASKED_ONLY = {
    "layer_norm_eps": "ModernBERT's folders have it, and its own code reads norm_eps",
    "hidden_act": "Gemma 3 has it as hidden_activation",
    "original_max_position_embeddings": "it stands beside a scaling",
}
ODD: tuple[Any, ...] = (
    True,
    False,
    7,
    0.5,
    3,
    -1,
    "gelu",
    "x",
    [1, 2],
    ["full_attention"] * 2,
    {"a": 1},
)


@pytest.mark.parametrize("name", [*models.FAMILIES, *PUBLISHED])
def test_whatever_a_reader_asks_a_config_for_makes_a_difference(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A field that is asked for and dropped would be hidden from the account: found here without
    its name.
    """
    asked: set[str] = set()
    note = Fields._note

    def noting(self: Fields, field: str) -> None:
        asked.update({field, self._names.get(field, field)})
        note(self, field)

    raw = models.config(name).to_json() if name in models.FAMILIES else PUBLISHED[name]
    monkeypatch.setattr(Fields, "_note", noting)
    alone = replace(parse_config(raw), raw={})
    for field in sorted(asked - set(HARMLESS) - set(ASKED_ONLY)):

        def differs(value: Any, field: str = field) -> bool:
            try:
                return bool(replace(parse_config({**raw, field: value}), raw={}) != alone)
            except UserError:
                return True

        assert any(differs(value) for value in ODD), f"{field} is asked for and dropped"


@pytest.mark.parametrize(
    "name", ["llama", "bert-base-multilingual-cased", "ModernBERT-base", "flan-t5-small"]
)
@pytest.mark.parametrize(
    "field", ["architectures", "layer_types", "id2label", "eos_token_id", "rope_scaling"]
)
def test_a_field_of_the_wrong_kind_is_no_crash(name: str, field: str) -> None:
    raw = models.config(name).to_json() if name in models.FAMILIES else PUBLISHED[name]
    for value in (True, 7, 0.5, "x", [1], [{}], {"a": 1}):
        with contextlib.suppress(UserError):
            parse_config({**raw, field: value})


@pytest.mark.parametrize(
    ("family", "field", "value"),
    [
        ("llama", "logits_scaling", 8.0),
        ("llama", "clip_qkv", 6.0),
        ("mistral-window", "embedding_multiplier", 12.0),
        ("qwen3", "use_mrope", True),
        ("llama", "query_pre_attn_scalar", 144),
        ("gpt2", "alibi", True),
        ("llama", "partial_rotary_factor", 0.5),
        ("qwen2", "layer_types", ["full_attention", "chunked_attention"]),
        ("llama", "pruned_heads", {"0": [1]}),
        ("llama", "is_encoder_decoder", True),
        ("gemma3", "attn_logit_softcapping", 50.0),
        ("bert", "embedding_size", 128),
        ("bert", "rotary_value", True),
        ("modernbert", "norm_kind", "rms"),
        ("t5", "hidden_size", 96),
        ("bart", "intermediate_size", 96),
        ("t5", "dense_act_fn", "silu"),
        ("t5", "num_experts", 8),
        ("bart", "normalize_before", True),
    ],
)
def test_a_field_that_could_change_the_numbers_is_refused_by_name(
    family: str, field: str, value: Any
) -> None:
    raw = (
        models.config(family).to_json()
        if family in models.FAMILIES
        else PUBLISHED[
            {
                "bert": "bert-base-multilingual-cased",
                "modernbert": "ModernBERT-base",
                "t5": "flan-t5-small",
                "bart": "bart-large-cnn",
            }[family]
        ]
    )
    with pytest.raises(UserError) as caught:
        parse_config({**raw, field: value})
    assert caught.value.where == field
    parse_config({**raw, field: None})  # which says nothing


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        (
            "llama",
            {
                "rope_scaling": {
                    "type": "yarn",
                    "factor": 16.0,
                    "original_max_position_embeddings": 8,
                    "finetuned": True,
                },
                "rope_parameters": None,
            },
        ),
        (
            "llama",
            {
                "unsloth_version": "2024.9",
                "unsloth_fixed": True,
                "max_sequence_length": 128,
                "pretraining_tp": 2,
            },
        ),
        (
            "gpt2",
            {"n_special": 0, "predict_special_tokens": True, "_num_labels": 1, "output_past": True},
        ),
        ("qwen2", {"use_mrope": False, "max_window_layers": 21, "use_sliding_window": False}),
    ],
)
def test_lines_of_published_folders_that_change_nothing(
    family: str, fields: dict[str, Any]
) -> None:
    parse_config({**models.config(family).to_json(), **fields})


@pytest.mark.parametrize(
    "family", ["llama", "mistral", "qwen2", "qwen3", "bert", "modernbert", "t5", "bart"]
)
def test_what_init_makes_is_read(family: str) -> None:
    made = model_config(
        InitConfig(family=family, hidden_size=32, num_attention_heads=2, num_key_value_heads=2),
        small_tokenizer(),
    )
    assert parse_config(made.to_json()) == made


# rotary positions

FACTORS = {"short_factor": [1.0, 1.1, 1.3, 2.0], "long_factor": [1.5, 2.5, 4.0, 6.0]}
SCALED: dict[str, dict[str, Any]] = {
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    "yarn as Qwen writes it": {
        "type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn without an original": {"rope_type": "yarn", "factor": 2.0},
    "yarn, all settings": {
        "rope_type": "yarn",
        "factor": 40.0,
        "original_max_position_embeddings": 32,
        "mscale": 0.7,
        "mscale_all_dim": 1.0,
        "beta_fast": 16,
        "beta_slow": 2,
        "truncate": False,
    },
    "yarn, its own factor": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "attention_factor": 0.8,
    },
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "longrope": {"rope_type": "longrope", "original_max_position_embeddings": 32, **FACTORS},
    "longrope, a factor": {
        "rope_type": "longrope",
        "original_max_position_embeddings": 32,
        "factor": 8.0,
        **FACTORS,
    },
    "longrope, its own factor": {
        "rope_type": "longrope",
        "original_max_position_embeddings": 32,
        "attention_factor": 1.3,
        **FACTORS,
    },
}


def scaled(which: str, **changes: Any) -> DecoderConfig:
    raw = {
        **models.config("llama").to_json(),
        "rope_parameters": None,
        "rope_theta": 10000.0,
        "rope_scaling": SCALED[which],
        **changes,
    }
    return DecoderConfig.parse(raw)


@pytest.mark.parametrize("tokens", [24, 40], ids=["within", "beyond"])
@pytest.mark.parametrize("which", SCALED)
def test_scaled_positions_are_transformers(which: str, tokens: int, backend: Backend) -> None:
    """Logits of texts within and beyond the original context."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    cfg = scaled(which)
    weights = models.weights(cfg)
    raw = {k: v for k, v in cfg.to_json().items() if v is not None}
    theirs = (
        transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(**raw), attn_implementation="eager"
        )
        .float()
        .eval()
    )
    theirs.load_state_dict({n: torch.tensor(w) for n, w in transposed(weights).items()})
    ids = np.random.default_rng(3).integers(3, cfg.vocab_size, (2, tokens)).astype(np.int32)
    with torch.no_grad():
        want = theirs(input_ids=torch.tensor(ids).long()).logits.numpy()
    net, params = decoder_of(cfg), {n: backend.array(w) for n, w in weights.items()}
    positions = np.tile(np.arange(tokens, dtype=np.int32), (2, 1))
    hidden = net.hidden(
        backend.ops, params, {"ids": backend.array(ids), "positions": backend.array(positions)}
    )
    np.testing.assert_allclose(
        backend.numpy(net.head.logits(backend.ops, params, hidden)), want, rtol=1e-4, atol=1e-4
    )


def test_a_row_is_long_or_short_by_itself(backend: Backend) -> None:
    """LongRoPE takes other angles for texts beyond the original context: what stands beside a text
    changes nothing.
    """
    cfg = scaled("longrope")
    net, params = decoder_of(cfg), {n: backend.array(w) for n, w in models.weights(cfg).items()}
    ids = np.random.default_rng(3).integers(3, cfg.vocab_size, (2, 40)).astype(np.int32)
    positions = np.tile(np.arange(40, dtype=np.int32), (2, 1))
    positions[0, 20:] = 0  # padding
    both = net.hidden(
        backend.ops, params, {"ids": backend.array(ids), "positions": backend.array(positions)}
    )
    alone = net.hidden(
        backend.ops,
        params,
        {"ids": backend.array(ids[:1, :20]), "positions": backend.array(positions[:1, :20])},
    )
    np.testing.assert_allclose(
        backend.numpy(both)[0, :20], backend.numpy(alone)[0], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("rope", "said"),
    [
        ({"rope_type": "su"}, "'su'"),
        ({"rope_type": "yarn"}, "factor is None"),
        ({"rope_type": "yarn", "factor": 2.0, "llama_4_scaling_beta": 0.1}, "llama_4_scaling_beta"),
        ({"rope_type": "linear", "factor": "2"}, "factor is '2'"),
        ({"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}, "not a list of 4"),
        ({"rope_type": "default", "mrope_section": [2, 1, 1]}, "mrope_section"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "all of it is here"),
    ],
)
def test_other_scaling_is_refused_when_the_config_is_read(rope: dict[str, Any], said: str) -> None:
    for name in ("rope_scaling", "rope_parameters"):
        raw = {
            **models.config("llama").to_json(),
            "rope_scaling": None,
            "rope_parameters": None,
            name: rope,
        }
        with pytest.raises(UserError, match=said.replace("[", r"\[")):
            parse_config(raw)


@pytest.mark.parametrize("name", ["num_hidden_layers", "max_position_embeddings", "vocab_size"])
def test_numbers_that_no_model_has_are_refused_before_anything_is_listed(name: str) -> None:
    raw = {**models.config("llama").to_json(), name: 10**12}
    with pytest.raises(UserError) as caught:
        parse_config(raw)
    assert caught.value.where == name and "more than" in str(caught.value)
