"""Names and shapes of the tensors that a folder of each family holds, and what is checked when one is read."""

from __future__ import annotations

from collections.abc import Mapping

from ondevice.backend import Array, Params
from ondevice.errors import UserError
from ondevice.models.config import DecoderConfig

SCORE = "score.weight"
"""The head of a reward or value model: one row a score."""


def shapes(cfg: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the model by its Hugging Face name; a tied head is left out, as files leave it out."""
    d, f, c = cfg.hidden_size, cfg.intermediate_size, cfg.head_dim
    q, kv = cfg.num_attention_heads * c, cfg.num_key_value_heads * c
    out: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (cfg.vocab_size, d)}
    for i in range(cfg.num_hidden_layers):
        p = f"model.layers.{i}."
        out[p + "input_layernorm.weight"] = (d,)
        for name, rows in (("q_proj", q), ("k_proj", kv), ("v_proj", kv)):
            out[f"{p}self_attn.{name}.weight"] = (rows, d)
            if cfg.qkv_bias:
                out[f"{p}self_attn.{name}.bias"] = (rows,)
        if cfg.qk_norm:
            out |= {p + "self_attn.q_norm.weight": (c,), p + "self_attn.k_norm.weight": (c,)}
        out[p + "self_attn.o_proj.weight"] = (d, q)
        if cfg.output_bias:
            out[p + "self_attn.o_proj.bias"] = (d,)
        out[p + "post_attention_layernorm.weight"] = (d,)
        for name, (rows, columns) in (("gate_proj", (f, d)), ("up_proj", (f, d)), ("down_proj", (d, f))):
            out[f"{p}mlp.{name}.weight"] = (rows, columns)
            if cfg.mlp_bias:
                out[f"{p}mlp.{name}.bias"] = (rows,)
    out["model.norm.weight"] = (d,)
    if cfg.num_labels:
        out[SCORE] = (cfg.num_labels, d)
    elif not cfg.tie_word_embeddings:
        out["lm_head.weight"] = (cfg.vocab_size, d)
    return out


def sub(named: Mapping[str, Array], prefix: str) -> Params:
    """What stands under `prefix`, by relative names."""
    return {name[len(prefix):]: x for name, x in named.items() if name.startswith(prefix)}


def is_block_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Whether Muon may have it: matrices inside blocks, neither the embeddings nor the head."""
    return len(shape) == 2 and name.removeprefix("value.").startswith("model.layers.")


def take(params: Mapping[str, Array], cfg: DecoderConfig, where: str) -> Params:
    """The model's tensors out of a file's, in our order. Raises UserError for one that is missing or misshapen.

    Left out: rotary buffers of old files, and the copy of a tied head.
    """
    out: Params = {}
    for name, shape in shapes(cfg).items():
        if name not in params:
            raise UserError(f"lacks the tensor {name}", where=where, hint="is the download whole?")
        if tuple(params[name].shape) != shape:
            raise UserError(f"{name} has shape {tuple(params[name].shape)}, config.json says {shape}", where=where)
        out[name] = params[name]
    extra = [n for n in params if n not in out and n != "lm_head.weight" and not n.endswith("rotary_emb.inv_freq")]
    if extra:
        raise UserError(f"holds {extra[0]}, which a {cfg.model_type} model has not", where=where)
    return out
