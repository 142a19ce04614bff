"""Names and shapes of the tensors that a folder of each family holds, and what is checked when one is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from ondevice.common.errors import UserError
from ondevice.models.decoder_config import DecoderConfig
from ondevice.models.encoder_config import EncoderConfig
from ondevice.models.library_config import LibraryConfig
from ondevice.models.registry import ModelConfig
from ondevice.models.seq2seq_config import Seq2SeqConfig
from ondevice.seam.ops import Array, Params

SCORE = "score.weight"
"""The head of a reward or value model: one row a score."""
BITS = (4, 8)
"""What a weight of a quantised matrix may take."""
_SCORES = (SCORE, "classifier.weight")
Shapes = dict[str, tuple[int, ...]]


def shapes(cfg: ModelConfig) -> Shapes:
    """Every tensor of the model by its Hugging Face name, the table of tokens first; a tied head is left out, as files
    leave it out. A matrix is (outputs, inputs), also where its file has it transposed."""
    if isinstance(cfg, LibraryConfig):
        assert cfg.lib is not None
        return dict(cfg.lib.shapes)
    if isinstance(cfg, EncoderConfig):
        return _modern_shapes(cfg) if cfg.modern else _bert_shapes(cfg)
    if isinstance(cfg, Seq2SeqConfig):
        return _t5_shapes(cfg) if cfg.relative else _bart_shapes(cfg)
    return _gpt2_shapes(cfg) if cfg.model_type == "gpt2" else _decoder_shapes(cfg)


def table(cfg: ModelConfig) -> str:
    """The tensor that has a row for each token of the vocabulary, and stands before all others."""
    return next(iter(shapes(cfg)))


def judging(cfg: ModelConfig) -> Shapes:
    """What a judge has and a model that writes or fills masks has not: its head, BERT's pooler."""
    without = shapes(replace(cfg, num_labels=0))
    return {name: shape for name, shape in shapes(cfg).items() if name not in without}


def _decoder_shapes(cfg: DecoderConfig) -> Shapes:
    d, f, c = cfg.hidden_size, cfg.intermediate_size, cfg.head_dim
    q, kv = cfg.num_attention_heads * c, cfg.num_key_value_heads * c
    out: Shapes = {"model.embed_tokens.weight": (cfg.vocab_size, d)}
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


def _gpt2_shapes(cfg: DecoderConfig) -> Shapes:
    d, f = cfg.hidden_size, cfg.intermediate_size
    out: Shapes = {"transformer.wte.weight": (cfg.vocab_size, d),
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


def is_block_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Whether Muon may have it: matrices inside blocks, neither the embeddings nor the head."""
    return len(shape) == 2 and in_block(name)


def is_router(name: str) -> bool:
    """Whether the module says which experts read a token."""
    return any(part in ("gate", "router", "shared_expert_gate") for part in name.split("."))


def in_block(name: str) -> bool:
    return re.search(r"\.(layers?|block|h)\.\d+\.(?!.*relative_attention_bias)", name) is not None


def adds_to_stream(name: str) -> bool:
    """Whether it is the matrix by which a block's part adds to the stream that runs past it."""
    return in_block(name) and name.endswith(("o_proj.weight", "down_proj.weight", "output.dense.weight", "Wo.weight",
                                             "Attention.o.weight", ".wo.weight", "out_proj.weight", "fc2.weight",
                                             ".c_proj.weight"))


def is_between(name: str) -> bool:
    """Whether it is the matrix between an encoder's blocks and its head."""
    return name in ("head.dense.weight", "cls.predictions.transform.dense.weight")


def is_embedding(name: str) -> bool:
    return name.endswith(("embed_tokens.weight", "_embeddings.weight", "shared.weight", "embed_positions.weight",
                          ".wte.weight", ".wpe.weight"))


def matrices(cfg: ModelConfig, every: bool = False) -> dict[str, tuple[int, int]]:
    """Modules that are one matrix, by their names → (outputs, inputs). Without `every` those alone that a state goes
    through: no embeddings, and no head of scores."""
    if isinstance(cfg, LibraryConfig):
        assert cfg.lib is not None
        first = table(cfg)
        whole = {first.removesuffix(".weight"): cfg.lib.shapes[first]} if every else {}
        return {**whole, **cfg.lib.linears}  # type: ignore[dict-item]
    out = {}
    for name, shape in shapes(cfg).items():
        through = not (is_embedding(name) or name.endswith("relative_attention_bias.weight") or name in _SCORES)
        if len(shape) == 2 and name.endswith(".weight") and (every or through):
            out[name.removesuffix(".weight")] = (shape[0], shape[1])
    return out


def quantised(params: Mapping[str, Array]) -> list[str]:
    """The modules whose weights are packed, by their names."""
    return [name.removesuffix(".scales") for name in params if name.endswith(".scales")]


def take(params: Mapping[str, Array], cfg: ModelConfig, where: str, body: bool = False) -> Params:
    """The model's tensors out of a file's, in our order and our direction; of a quantised matrix its three parts.
    Raises UserError for one that is missing or misshapen; of a `body` the head may be missing.

    Left out: rotary buffers and masks of old files, the copy of a tied head, heads that this model does not use.
    """
    params = prefixed(params, cfg)
    params = {re.sub(r"LayerNorm\.(gamma|beta)$", _new_norm, name): p for name, p in params.items()}
    out: Params = {}
    for name, shape in shapes(cfg).items():
        if name not in params and body and is_head(name):
            continue
        if name not in params:
            told = cfg.raw.get("architectures")
            raise UserError(f"lacks the tensor {name}", where=where, hint="is the download whole?" + (
                f" config.json says that it is a {told[0]}" if isinstance(told, list) and told else ""))
        module, found = name.removesuffix(".weight"), params[name]
        if f"{module}.scales" in params:
            out |= _packed(params, module, shape, where)
            continue
        if is_transposed(name) and len(found.shape) == 2:
            found = found.swapaxes(0, 1)
        if tuple(found.shape) != shape:
            raise UserError(f"{name} has shape {tuple(found.shape)}, config.json says {shape}", where=where)
        out[name] = found
    extra = [n for n in params if n not in out and not _SPARE.search(n)]
    if extra:
        raise UserError(f"holds {extra[0]}, which a {cfg.model_type} model has not", where=where)
    return out


# What stands before all names but the head's, where a file is not of the body alone.
_BODY = {"bert": "bert.", "modernbert": "model.", "bart": "model.", "gpt2": "transformer."}


def prefixed(params: Mapping[str, Array], cfg: ModelConfig) -> Mapping[str, Array]:
    """The tensors of a file that holds a body alone (BertModel, BartModel, OpenAI's GPT-2) by the names that they have
    beside a head."""
    prefix = _BODY.get(cfg.model_type)
    if prefix is None or any(name.startswith(prefix) for name in params):
        return params
    named = {name if name in (SCORE, "lm_head.weight") else prefix + name: p for name, p in params.items()}
    if cfg.model_type == "bart" and "model.shared.weight" in named:  # its bias is 0 until someone sets it
        named.setdefault("final_logits_bias", named["model.shared.weight"][None, :, 0] * 0)
    return named


def is_head(name: str) -> bool:
    """Whether it is a part of what stands on an encoder's body."""
    return name.startswith(("cls.predictions.", "head.", "decoder.bias", "decoder.weight"))


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


# Not the model's own: rotary and position buffers and masks of old files, copies of tied heads (packed ones too), and
# what BERT's folders hold for other tasks than this model's.
_SPARE = re.compile(r"^lm_head\.|rotary_emb\.inv_freq$|\.attn\.(masked_)?bias$|embeddings\.position_ids$"
                    r"|^cls\.seq_relationship\.|^bert\.pooler\.|^cls\.predictions\.(bias$|decoder\.)|^decoder\.weight$"
                    r"|^(model\.)?(en|de)coder\.embed_tokens\.weight$"
                    # the first T5's files hold distances between source and target, which no version reads
                    r"|^decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight$")


def _new_norm(old: re.Match[str]) -> str:
    return "LayerNorm." + {"gamma": "weight", "beta": "bias"}[old[1]]


def _linear(name: str, rows: int, columns: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (rows, columns), **({f"{name}.bias": (rows,)} if bias else {})}


def _norm(name: str, width: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (width,), **({f"{name}.bias": (width,)} if bias else {})}


def _bert_shapes(cfg: EncoderConfig) -> Shapes:
    d, f, v = cfg.hidden_size, cfg.intermediate_size, cfg.vocab_size
    out: Shapes = {f"bert.embeddings.{kind}_embeddings.weight": (count, d) for kind, count in (
        ("word", v), ("position", cfg.max_position_embeddings), ("token_type", cfg.type_vocab_size))}
    out |= _norm("bert.embeddings.LayerNorm", d)
    for i in range(cfg.num_hidden_layers):
        p = f"bert.encoder.layer.{i}."
        for part in ("query", "key", "value"):
            out |= _linear(f"{p}attention.self.{part}", d, d)
        out |= _linear(p + "attention.output.dense", d, d) | _norm(p + "attention.output.LayerNorm", d)
        out |= _linear(p + "intermediate.dense", f, d)
        out |= _linear(p + "output.dense", d, f) | _norm(p + "output.LayerNorm", d)
    if cfg.num_labels:
        return out | _linear("bert.pooler.dense", d, d) | _linear("classifier", cfg.num_labels, d)
    out |= _linear("cls.predictions.transform.dense", d, d) | _norm("cls.predictions.transform.LayerNorm", d)
    if not cfg.tie_word_embeddings:
        return out | _linear("cls.predictions.decoder", v, d)
    return {**out, "cls.predictions.bias": (v,)}


def _modern_shapes(cfg: EncoderConfig) -> Shapes:
    d, f, v, norm = cfg.hidden_size, cfg.intermediate_size, cfg.vocab_size, cfg.norm_bias
    out: Shapes = {"model.embeddings.tok_embeddings.weight": (v, d), **_norm("model.embeddings.norm", d, norm)}
    for i in range(cfg.num_hidden_layers):
        p = f"model.layers.{i}."
        if i:  # what comes from the embeddings has been through a norm
            out |= _norm(p + "attn_norm", d, norm)
        out |= _linear(p + "attn.Wqkv", 3 * d, d, cfg.attention_bias) | _linear(p + "attn.Wo", d, d, cfg.attention_bias)
        out |= _norm(p + "mlp_norm", d, norm)
        out |= _linear(p + "mlp.Wi", 2 * f, d, cfg.mlp_bias) | _linear(p + "mlp.Wo", d, f, cfg.mlp_bias)
    out |= _norm("model.final_norm", d, norm) | _linear("head.dense", d, d, cfg.head_bias) | _norm("head.norm", d, norm)
    if cfg.num_labels:
        return out | _linear("classifier", cfg.num_labels, d)
    if not cfg.tie_word_embeddings:
        out["decoder.weight"] = (v, d)
    return {**out, "decoder.bias": (v,)}


def _t5_shapes(cfg: Seq2SeqConfig) -> Shapes:
    d, f, wide = cfg.hidden_size, cfg.intermediate_size, cfg.num_attention_heads * cfg.head_dim
    out: Shapes = {"shared.weight": (cfg.vocab_size, d)}
    for side, count, parts in (("encoder", cfg.num_hidden_layers, ("SelfAttention",)),
                               ("decoder", cfg.num_decoder_layers, ("SelfAttention", "EncDecAttention"))):
        for i in range(count):
            for n, part in enumerate(parts):
                p = f"{side}.block.{i}.layer.{n}."
                for matrix in "qkv":
                    out[f"{p}{part}.{matrix}.weight"] = (wide, d)
                out[f"{p}{part}.o.weight"] = (d, wide)
                if i == n == 0:  # the other blocks add what the first one knows of distances
                    out[f"{p}{part}.relative_attention_bias.weight"] = (
                        cfg.relative_attention_num_buckets, cfg.num_attention_heads)
                out[p + "layer_norm.weight"] = (d,)
            p = f"{side}.block.{i}.layer.{len(parts)}."
            for matrix in ("wi_0", "wi_1") if cfg.gated else ("wi",):
                out[f"{p}DenseReluDense.{matrix}.weight"] = (f, d)
            out |= {p + "DenseReluDense.wo.weight": (d, f), p + "layer_norm.weight": (d,)}
        out[f"{side}.final_layer_norm.weight"] = (d,)
    return out if cfg.tie_word_embeddings else {**out, "lm_head.weight": (cfg.vocab_size, d)}


def _bart_shapes(cfg: Seq2SeqConfig) -> Shapes:
    d, f = cfg.hidden_size, cfg.intermediate_size
    out: Shapes = {"model.shared.weight": (cfg.vocab_size, d)}
    for side, count, parts in (("encoder", cfg.num_hidden_layers, ("self_attn",)),
                               ("decoder", cfg.num_decoder_layers, ("self_attn", "encoder_attn"))):
        # the table begins with two rows that are no positions
        out[f"model.{side}.embed_positions.weight"] = (cfg.max_position_embeddings + 2, d)
        out |= _norm(f"model.{side}.layernorm_embedding", d)
        for i in range(count):
            p = f"model.{side}.layers.{i}."
            for part in parts:
                for matrix in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    out |= _linear(f"{p}{part}.{matrix}", d, d)
                out |= _norm(f"{p}{part}_layer_norm", d)
            out |= _linear(p + "fc1", f, d) | _linear(p + "fc2", d, f) | _norm(p + "final_layer_norm", d)
    return {**out, "final_logits_bias": (1, cfg.vocab_size)}
