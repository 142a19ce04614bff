"""A decoder as one GGUF file, for llama.cpp and what is built on it; and the weights of such a file
read back.

Names, keys and what is kept in which type are those of llama.cpp's own converter. Matrices are
float16, float32 or Q8_0 (32 weights share a scale); what has one dimension is float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ondevice.common.errors import UserError
from ondevice.exports.gguf_words import Words, template_of
from ondevice.models.decoder_config import DecoderConfig
from ondevice.models.model import Model
from ondevice.models.registry import ModelConfig
from ondevice.models.rope import frequencies
from ondevice.models.state_dict import from_file
from ondevice.seam.ops import Params
from ondevice.seam.protocols import Backend

Floats = NDArray[np.float32]

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""`model_type` → llama.cpp's name. Mistral is a Llama there, without its window."""
_BLOCK = 32  # weights that share a scale in Q8_0


def config_of(cfg: ModelConfig, where: str) -> DecoderConfig:
    """The config. Raises UserError for a model that llama.cpp would compute otherwise, or not at
    all.
    """
    if not isinstance(cfg, DecoderConfig) or cfg.model_type not in ARCHITECTURES:
        raise UserError(
            f"{cfg.model_type} is not written as GGUF here",
            where=where,
            hint=f"known: {', '.join(ARCHITECTURES)}; --to hf writes any model",
        )
    if cfg.num_labels:
        raise UserError(
            "is a reward model or a classifier: llama.cpp has no such head",
            where=where,
            hint="--to hf; transformers and TRL load it",
        )
    if cfg.hidden_act not in ("silu", "swish"):
        raise UserError(
            f"llama.cpp's {ARCHITECTURES[cfg.model_type]} knows no {cfg.hidden_act}", where=where
        )
    if cfg.model_type != "llama" and (
        cfg.output_bias or cfg.mlp_bias or (cfg.model_type == "qwen3" and cfg.qkv_bias)
    ):
        raise UserError(
            f"llama.cpp's {ARCHITECTURES[cfg.model_type]} has no such biases", where=where
        )
    if cfg.model_type == "qwen2" and cfg.head_dim * cfg.num_attention_heads != cfg.hidden_size:
        raise UserError(
            "llama.cpp's qwen2 has heads that are as wide together as the model", where=where
        )
    if cfg.rope_scaling and _kind(cfg) == "llama3" and ARCHITECTURES[cfg.model_type] != "llama":
        raise UserError("llama.cpp knows this rope scaling in Llama alone", where=where)
    if cfg.rope_scaling and _kind(cfg) in ("yarn", "longrope"):
        raise UserError(
            f"rope scaling {_kind(cfg)} is not written as GGUF here",
            where=where,
            hint="--to hf writes any model; llama.cpp's own converter reads that folder",
        )
    return cfg


def context_of(cfg: DecoderConfig) -> int:
    """Tokens for which llama.cpp computes what the model does: it knows no window in these
    families, and within one there is none."""
    windows = filter(None, cfg.windows)
    return min([*windows, cfg.max_position_embeddings])


def write(file: Path, model: Model, backend: Backend, words: Words, dtype: str, name: str) -> int:
    """`dtype`: f32, f16 or q8_0. Returns how many matrices stay float16 in a q8_0 file, since their
    rows are no whole number of blocks."""
    import gguf  # 180 ms

    cfg = config_of(model.cfg, str(model.folder))
    writer = gguf.GGUFWriter(file, ARCHITECTURES[cfg.model_type])
    _describe(writer, cfg, dtype, name)
    _spell(writer, words, template_of(model.tokenizer), cfg)
    names = gguf.get_tensor_name_map(_architecture(cfg), cfg.num_hidden_layers)
    kept = 0
    for own, p in model.params.items():
        value = _turned(own, backend.numpy(p).astype(np.float32), cfg, undo=False)
        kind = _type(value.shape, dtype)
        kept += dtype == "q8_0" and kind == "F16"
        theirs = names.get_name(own, try_suffixes=(".weight", ".bias"))
        assert theirs is not None, own
        _add(writer, theirs, value, kind)
    if cfg.rope_scaling and _kind(cfg) == "llama3":
        # llama.cpp divides its own frequencies by these
        plain = frequencies(cfg.head_dim, cfg.rope_theta, None)
        scaled = frequencies(cfg.head_dim, cfg.rope_theta, cfg.rope_scaling)
        _add(writer, "rope_freqs.weight", (plain / scaled).astype(np.float32), "F32")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return kept


def read(file: Path, model: Model, backend: Backend) -> Model:
    """The model as the file has it: weights unpacked to float32 and the sizes that it states; the
    tokenizer is `model`'s."""
    import gguf  # 180 ms

    assert isinstance(model.cfg, DecoderConfig)
    reader = gguf.GGUFReader(file)
    cfg = _stated(reader, model.cfg)
    names = gguf.get_tensor_name_map(_architecture(cfg), cfg.num_hidden_layers)
    ours = {names.get_name(own, try_suffixes=(".weight", ".bias")): own for own in model.params}
    params: Params = {}
    for tensor in reader.tensors:
        if tensor.name in ours:
            value = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            own = ours[tensor.name]
            params[own] = backend.array(np.ascontiguousarray(_turned(own, value, cfg, undo=True)))
    return replace(model, cfg=cfg, params=from_file(params, cfg, str(file)))


def _describe(writer: Any, cfg: DecoderConfig, dtype: str, name: str) -> None:
    """What the model is, as the keys of its architecture."""
    import gguf  # 180 ms

    kinds = gguf.LlamaFileType
    writer.add_name(name)
    writer.add_file_type(
        {"f32": kinds.ALL_F32, "f16": kinds.MOSTLY_F16, "q8_0": kinds.MOSTLY_Q8_0}[dtype]
    )
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(cfg.vocab_size)
    writer.add_block_count(cfg.num_hidden_layers)
    writer.add_context_length(context_of(cfg))
    writer.add_embedding_length(cfg.hidden_size)
    writer.add_feed_forward_length(cfg.intermediate_size)
    writer.add_head_count(cfg.num_attention_heads)
    writer.add_head_count_kv(cfg.num_key_value_heads)
    writer.add_key_length(cfg.head_dim)
    writer.add_value_length(cfg.head_dim)
    writer.add_layer_norm_rms_eps(cfg.rms_norm_eps)
    writer.add_rope_dimension_count(cfg.head_dim)
    writer.add_rope_freq_base(cfg.rope_theta)
    if cfg.rope_scaling and _kind(cfg) == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(cfg.rope_scaling["factor"]))


def _spell(writer: Any, words: Words, template: str | None, cfg: DecoderConfig) -> None:
    """The tokenizer and the chat template."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(words.pre)
    writer.add_token_list(words.tokens)
    writer.add_token_types(words.kinds)
    writer.add_token_merges(words.merges)
    for what, i in words.ids.items():
        getattr(writer, f"add_{what}_token_id")(i)
    writer.add_add_bos_token(words.opens)
    writer.add_add_eos_token(False)
    if template is not None:
        writer.add_chat_template(template)


def _stated(reader: Any, cfg: DecoderConfig) -> DecoderConfig:
    """The config with the sizes that the file states."""
    arch = ARCHITECTURES[cfg.model_type]

    def field(key: str) -> Any:
        return reader.fields[f"{arch}.{key}"].contents()

    return replace(
        cfg,
        vocab_size=field("vocab_size"),
        num_hidden_layers=field("block_count"),
        max_position_embeddings=field("context_length"),
        hidden_size=field("embedding_length"),
        intermediate_size=field("feed_forward_length"),
        num_attention_heads=field("attention.head_count"),
        num_key_value_heads=field("attention.head_count_kv"),
        head_dim=field("attention.key_length"),
        rms_norm_eps=float(field("attention.layer_norm_rms_epsilon")),
        rope_theta=float(field("rope.freq_base")),
        windows=(),
        rope_scaling=_stated_scaling(reader, cfg),
    )


def _stated_scaling(reader: Any, cfg: DecoderConfig) -> dict[str, Any] | None:
    factor = reader.fields.get(f"{ARCHITECTURES[cfg.model_type]}.rope.scaling.factor")
    if factor:
        return {"rope_type": "linear", "factor": factor.contents()}
    if any(tensor.name == "rope_freqs.weight" for tensor in reader.tensors):
        return cfg.rope_scaling
    return None


def _turned(name: str, value: Floats, cfg: DecoderConfig, undo: bool) -> Floats:
    """llama.cpp's Llama rotates neighbours (2i, 2i + 1) where Hugging Face's rotates i and i + C/2:
    the rows of queries and keys stand in that order there."""
    if ARCHITECTURES[cfg.model_type] != "llama" or ".self_attn." not in name:
        return value
    heads = {"q_proj": cfg.num_attention_heads, "k_proj": cfg.num_key_value_heads}.get(
        name.split(".")[-2]
    )
    if heads is None:
        return value
    halves = (2, cfg.head_dim // 2)
    if undo:
        halves = (cfg.head_dim // 2, 2)
    return value.reshape(heads, *halves, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)


def _type(shape: tuple[int, ...], dtype: str) -> str:
    if len(shape) == 1 or dtype == "f32":
        return "F32"
    if dtype == "q8_0" and shape[-1] % _BLOCK == 0:
        return "Q8_0"
    return "F16"


def _add(writer: Any, name: str, value: Floats, kind: str) -> None:
    import gguf  # 180 ms

    if kind == "F16":
        largest = float(np.abs(value).max(initial=0))
        if largest > float(np.finfo(np.float16).max):
            raise UserError(
                f"{name} holds numbers that float16 cannot", where="dtype", hint="take --dtype f32"
            )
    if kind == "Q8_0":
        packed = gguf.quants.quantize(value, gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    elif kind == "F16":
        writer.add_tensor(name, np.ascontiguousarray(value, np.float16))
    else:
        writer.add_tensor(name, np.ascontiguousarray(value, np.float32))


def _architecture(cfg: DecoderConfig) -> Any:
    import gguf  # 180 ms

    return getattr(gguf.MODEL_ARCH, ARCHITECTURES[cfg.model_type].upper())


def _kind(cfg: DecoderConfig) -> str:
    scaling: Mapping[str, Any] = cfg.rope_scaling or {}
    return str(scaling.get("rope_type", scaling.get("type")))
