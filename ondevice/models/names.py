"""Names and shapes of the tensors that a folder of each family holds, and what is checked when one is read."""

from __future__ import annotations

from collections.abc import Mapping

from ondevice.backend import Array, Params
from ondevice.errors import UserError
from ondevice.models.config import DecoderConfig

SCORE = "score.weight"
"""The head of a reward or value model: one row a score."""
BITS = (4, 8)
"""What a weight of a quantised matrix may take."""
_TABLES = ("embed_tokens", ".wte", ".wpe")
_BUFFERS = ("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")


def shapes(cfg: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the model by its Hugging Face name; a tied head is left out, as files leave it out. A matrix is
    (outputs, inputs), also where its file has it transposed."""
    if cfg.model_type == "gpt2":
        return _gpt2(cfg)
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
        if cfg.sandwich:
            out |= {p + "pre_feedforward_layernorm.weight": (d,), p + "post_feedforward_layernorm.weight": (d,)}
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


def _gpt2(cfg: DecoderConfig) -> dict[str, tuple[int, ...]]:
    d, f = cfg.hidden_size, cfg.intermediate_size
    out: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (cfg.vocab_size, d),
                                       "transformer.wpe.weight": (cfg.max_position_embeddings, d)}
    for i in range(cfg.num_hidden_layers):
        p = f"transformer.h.{i}."
        for name, size in (("ln_1", (d,)), ("attn.c_attn", (3 * d, d)), ("attn.c_proj", (d, d)), ("ln_2", (d,)),
                           ("mlp.c_fc", (f, d)), ("mlp.c_proj", (d, f))):
            out |= {f"{p}{name}.weight": size, f"{p}{name}.bias": size[:1]}
    out |= {"transformer.ln_f.weight": (d,), "transformer.ln_f.bias": (d,)}
    if cfg.num_labels:
        out[SCORE] = (cfg.num_labels, d)
    elif not cfg.tie_word_embeddings:
        out["lm_head.weight"] = (cfg.vocab_size, d)
    return out


def is_transposed(name: str) -> bool:
    """Whether a file holds this matrix as (inputs, outputs): GPT-2's blocks' do."""
    return name.startswith("transformer.h.") and ".c_" in name and name.endswith(".weight")


def sub(named: Mapping[str, Array], prefix: str) -> Params:
    """What stands under `prefix`, by relative names."""
    return {name[len(prefix):]: x for name, x in named.items() if name.startswith(prefix)}


def is_block_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Whether Muon may have it: matrices inside blocks, neither the embeddings nor the head."""
    return len(shape) == 2 and name.removeprefix("value.").startswith(("model.layers.", "transformer.h."))


def matrices(cfg: DecoderConfig, every: bool = False) -> dict[str, tuple[int, int]]:
    """Modules that are one matrix, by their names → (outputs, inputs). Without `every` those alone that a state goes
    through: no embeddings, and no head of scores."""
    out = {}
    for name, shape in shapes(cfg).items():
        module = name.removesuffix(".weight")
        if len(shape) == 2 and (every or not (module.endswith(_TABLES) or name == SCORE)):
            out[module] = (shape[0], shape[1])
    return out


def quantised(params: Mapping[str, Array]) -> list[str]:
    """The modules whose weights are packed, by their names."""
    return [name.removesuffix(".scales") for name in params if name.endswith(".scales")]


def take(params: Mapping[str, Array], cfg: DecoderConfig, where: str) -> Params:
    """The model's tensors out of a file's, in our order and our direction; of a quantised matrix its three parts.
    Raises UserError for one that is missing or misshapen.

    Left out: rotary buffers and masks of old files, and the copy of a tied head.
    """
    if cfg.model_type == "gpt2" and "wte.weight" in params:  # as OpenAI's own file has them
        params = {name if name == SCORE else f"transformer.{name}": p for name, p in params.items()}
    out: Params = {}
    for name, shape in shapes(cfg).items():
        if name not in params:
            raise UserError(f"lacks the tensor {name}", where=where, hint="is the download whole?")
        module, found = name.removesuffix(".weight"), params[name]
        if f"{module}.scales" in params:
            out |= _packed(params, module, shape, where)
            continue
        if is_transposed(name) and len(found.shape) == 2:
            found = found.swapaxes(0, 1)
        if tuple(found.shape) != shape:
            raise UserError(f"{name} has shape {tuple(found.shape)}, config.json says {shape}", where=where)
        out[name] = found
    extra = [n for n in params if n not in out and not n.startswith("lm_head.") and not n.endswith(_BUFFERS)]
    if extra:
        raise UserError(f"holds {extra[0]}, which a {cfg.model_type} model has not", where=where)
    return out


def _packed(params: Mapping[str, Array], module: str, shape: tuple[int, ...], where: str) -> Params:
    """The parts of a matrix that is quantised as MLX does it. Raises UserError for another way."""
    parts = {f"{module}.{part}": params.get(f"{module}.{part}") for part in ("weight", "scales", "biases")}
    missing = [name for name, p in parts.items() if p is None]
    if missing:
        raise UserError(f"lacks the tensor {missing[0]}", where=where, hint="only affine quantisation is known here")
    weight, scales, biases = (tuple(p.shape) for p in parts.values() if p is not None)
    bits = 32 * weight[-1] / shape[-1]
    groups = scales[-1]
    if bits not in BITS:
        raise UserError(f"{module} is quantised to {bits:g} bits", where=where,
                        hint=f"known: {', '.join(map(str, BITS))}")
    if len(shape) != 2 or weight[0] != shape[0] or scales != biases or scales[0] != shape[0] or shape[1] % groups:
        raise UserError(f"{module} has shapes {weight}, {scales}, {biases}, config.json says {shape}", where=where)
    return {name: p for name, p in parts.items() if p is not None}


def turned(params: Mapping[str, Array]) -> Params:
    """The tensors in the direction that a file has them in, or back."""
    return {name: p.swapaxes(0, 1) if is_transposed(name) and len(p.shape) == 2 else p for name, p in params.items()}


def to_file(params: Mapping[str, Array]) -> Params:
    """The tensors as a file has them. GPT-2's stand there without the prefix, as in OpenAI's own: mlx-lm knows no other
    names; transformers knows both, where no head stands beside them."""
    bare = "lm_head.weight" not in params and SCORE not in params
    return {name.removeprefix("transformer.") if bare else name: p for name, p in turned(params).items()}
