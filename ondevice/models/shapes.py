"""Every tensor of an architecture by its Hugging Face name, with its shape."""

from __future__ import annotations

from dataclasses import replace

from ondevice.models.decoder_config import DecoderConfig
from ondevice.models.encoder_config import EncoderConfig
from ondevice.models.external_config import LibraryConfig
from ondevice.models.registry import ModelConfig
from ondevice.models.seq2seq_config import Seq2SeqConfig
from ondevice.models.tensor_names import is_embedding

SCORE = "score.weight"
"""The head of a reward or value model: one row a score."""
_SCORES = (SCORE, "classifier.weight")
Shapes = dict[str, tuple[int, ...]]


def shapes(cfg: ModelConfig) -> Shapes:
    """Every tensor of the model by its Hugging Face name, the table of tokens first; a tied head is
    left out, as files leave it out. A matrix is (outputs, inputs), also where its file has it
    transposed."""
    if isinstance(cfg, LibraryConfig):
        assert cfg.lib is not None
        return dict(cfg.lib.shapes)
    if isinstance(cfg, EncoderConfig):
        if cfg.modern:
            return _modern_shapes(cfg)
        return _bert_shapes(cfg)
    if isinstance(cfg, Seq2SeqConfig):
        if cfg.relative:
            return _t5_shapes(cfg)
        return _bart_shapes(cfg)
    if cfg.model_type == "gpt2":
        return _gpt2_shapes(cfg)
    return _decoder_shapes(cfg)


def embedding_name(cfg: ModelConfig) -> str:
    """The tensor that has a row for each token of the vocabulary, and stands before all others."""
    return next(iter(shapes(cfg)))


def score_head_shapes(cfg: ModelConfig) -> Shapes:
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
            out |= {
                p + "pre_feedforward_layernorm.weight": (d,),
                p + "post_feedforward_layernorm.weight": (d,),
            }
        for name, (rows, columns) in (
            ("gate_proj", (f, d)),
            ("up_proj", (f, d)),
            ("down_proj", (d, f)),
        ):
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
    out: Shapes = {
        "transformer.wte.weight": (cfg.vocab_size, d),
        "transformer.wpe.weight": (cfg.max_position_embeddings, d),
    }
    for i in range(cfg.num_hidden_layers):
        p = f"transformer.h.{i}."
        for name, size in (
            ("ln_1", (d,)),
            ("attn.c_attn", (3 * d, d)),
            ("attn.c_proj", (d, d)),
            ("ln_2", (d,)),
            ("mlp.c_fc", (f, d)),
            ("mlp.c_proj", (d, f)),
        ):
            out |= {f"{p}{name}.weight": size, f"{p}{name}.bias": size[:1]}
    out |= {"transformer.ln_f.weight": (d,), "transformer.ln_f.bias": (d,)}
    if cfg.num_labels:
        out[SCORE] = (cfg.num_labels, d)
    elif not cfg.tie_word_embeddings:
        out["lm_head.weight"] = (cfg.vocab_size, d)
    return out


def matrices(cfg: ModelConfig, every: bool = False) -> dict[str, tuple[int, int]]:
    """Modules that are one matrix, by their names → (outputs, inputs). Without `every` those alone
    that a state goes through: no embeddings, and no head of scores."""
    if isinstance(cfg, LibraryConfig):
        assert cfg.lib is not None
        first = embedding_name(cfg)
        if every:
            whole = {first.removesuffix(".weight"): cfg.lib.shapes[first]}
        else:
            whole = {}
        return {**whole, **cfg.lib.linears}  # type: ignore[dict-item]
    out = {}
    for name, shape in shapes(cfg).items():
        through = not (
            is_embedding(name) or name.endswith("relative_attention_bias.weight") or name in _SCORES
        )
        if len(shape) == 2 and name.endswith(".weight") and (every or through):
            out[name.removesuffix(".weight")] = (shape[0], shape[1])
    return out


def _linear(name: str, rows: int, columns: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (rows, columns), **({f"{name}.bias": (rows,)} if bias else {})}


def _norm(name: str, width: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (width,), **({f"{name}.bias": (width,)} if bias else {})}


def _bert_shapes(cfg: EncoderConfig) -> Shapes:
    d, f, v = cfg.hidden_size, cfg.intermediate_size, cfg.vocab_size
    out: Shapes = {
        f"bert.embeddings.{kind}_embeddings.weight": (count, d)
        for kind, count in (
            ("word", v),
            ("position", cfg.max_position_embeddings),
            ("token_type", cfg.type_vocab_size),
        )
    }
    out |= _norm("bert.embeddings.LayerNorm", d)
    for i in range(cfg.num_hidden_layers):
        p = f"bert.encoder.layer.{i}."
        for part in ("query", "key", "value"):
            out |= _linear(f"{p}attention.self.{part}", d, d)
        out |= _linear(p + "attention.output.dense", d, d) | _norm(
            p + "attention.output.LayerNorm", d
        )
        out |= _linear(p + "intermediate.dense", f, d)
        out |= _linear(p + "output.dense", d, f) | _norm(p + "output.LayerNorm", d)
    if cfg.num_labels:
        return out | _linear("bert.pooler.dense", d, d) | _linear("classifier", cfg.num_labels, d)
    out |= _linear("cls.predictions.transform.dense", d, d) | _norm(
        "cls.predictions.transform.LayerNorm", d
    )
    if not cfg.tie_word_embeddings:
        return out | _linear("cls.predictions.decoder", v, d)
    return {**out, "cls.predictions.bias": (v,)}


def _modern_shapes(cfg: EncoderConfig) -> Shapes:
    d, f, v, norm = cfg.hidden_size, cfg.intermediate_size, cfg.vocab_size, cfg.norm_bias
    out: Shapes = {
        "model.embeddings.tok_embeddings.weight": (v, d),
        **_norm("model.embeddings.norm", d, norm),
    }
    for i in range(cfg.num_hidden_layers):
        p = f"model.layers.{i}."
        if i:  # what comes from the embeddings has been through a norm
            out |= _norm(p + "attn_norm", d, norm)
        out |= _linear(p + "attn.Wqkv", 3 * d, d, cfg.attention_bias) | _linear(
            p + "attn.Wo", d, d, cfg.attention_bias
        )
        out |= _norm(p + "mlp_norm", d, norm)
        out |= _linear(p + "mlp.Wi", 2 * f, d, cfg.mlp_bias) | _linear(
            p + "mlp.Wo", d, f, cfg.mlp_bias
        )
    out |= (
        _norm("model.final_norm", d, norm)
        | _linear("head.dense", d, d, cfg.head_bias)
        | _norm("head.norm", d, norm)
    )
    if cfg.num_labels:
        return out | _linear("classifier", cfg.num_labels, d)
    if not cfg.tie_word_embeddings:
        out["decoder.weight"] = (v, d)
    return {**out, "decoder.bias": (v,)}


def _t5_shapes(cfg: Seq2SeqConfig) -> Shapes:
    d, f, wide = cfg.hidden_size, cfg.intermediate_size, cfg.num_attention_heads * cfg.head_dim
    out: Shapes = {"shared.weight": (cfg.vocab_size, d)}
    for side, count, parts in (
        ("encoder", cfg.num_hidden_layers, ("SelfAttention",)),
        ("decoder", cfg.num_decoder_layers, ("SelfAttention", "EncDecAttention")),
    ):
        for i in range(count):
            for n, part in enumerate(parts):
                p = f"{side}.block.{i}.layer.{n}."
                for matrix in "qkv":
                    out[f"{p}{part}.{matrix}.weight"] = (wide, d)
                out[f"{p}{part}.o.weight"] = (d, wide)
                if i == n == 0:  # the other blocks add what the first one knows of distances
                    out[f"{p}{part}.relative_attention_bias.weight"] = (
                        cfg.relative_attention_num_buckets,
                        cfg.num_attention_heads,
                    )
                out[p + "layer_norm.weight"] = (d,)
            p = f"{side}.block.{i}.layer.{len(parts)}."
            for matrix in ("wi_0", "wi_1") if cfg.gated else ("wi",):
                out[f"{p}DenseReluDense.{matrix}.weight"] = (f, d)
            out |= {p + "DenseReluDense.wo.weight": (d, f), p + "layer_norm.weight": (d,)}
        out[f"{side}.final_layer_norm.weight"] = (d,)
    if cfg.tie_word_embeddings:
        return out
    return {**out, "lm_head.weight": (cfg.vocab_size, d)}


def _bart_shapes(cfg: Seq2SeqConfig) -> Shapes:
    d, f = cfg.hidden_size, cfg.intermediate_size
    out: Shapes = {"model.shared.weight": (cfg.vocab_size, d)}
    for side, count, parts in (
        ("encoder", cfg.num_hidden_layers, ("self_attn",)),
        ("decoder", cfg.num_decoder_layers, ("self_attn", "encoder_attn")),
    ):
        # the table begins with two rows that are no positions
        out[f"model.{side}.embed_positions.weight"] = (cfg.max_position_embeddings + 2, d)
        out |= _norm(f"model.{side}.layernorm_embedding", d)
        for i in range(count):
            p = f"model.{side}.layers.{i}."
            for part in parts:
                for matrix in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    out |= _linear(f"{p}{part}.{matrix}", d, d)
                out |= _norm(f"{p}{part}_layer_norm", d)
            out |= (
                _linear(p + "fc1", f, d)
                | _linear(p + "fc2", d, f)
                | _norm(p + "final_layer_norm", d)
            )
    return {**out, "final_logits_bias": (1, cfg.vocab_size)}
