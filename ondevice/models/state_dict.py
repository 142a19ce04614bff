"""A file's tensors as a model takes them, and a model's as a file has them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ondevice.common.errors import UserError
from ondevice.models.registry import ModelConfig
from ondevice.models.shapes import SCORE, shapes
from ondevice.seam.ops import Array, Params

BITS = (4, 8)
"""What a weight of a quantised matrix may take."""


def is_transposed(name: str) -> bool:
    """Whether a file holds this matrix as (inputs, outputs): GPT-2's blocks' do."""
    return name.startswith("transformer.h.") and ".c_" in name and name.endswith(".weight")


def quantised(params: Mapping[str, Array]) -> list[str]:
    """The modules whose weights are packed, by their names."""
    return [name.removesuffix(".scales") for name in params if name.endswith(".scales")]


def from_file(
    params: Mapping[str, Array], cfg: ModelConfig, where: str, backbone_only: bool = False
) -> Params:
    """The model's tensors out of a file's, in our order and our direction; of a quantised matrix
    its three parts. Raises UserError for one that is missing or misshapen; with `backbone_only` the
    head may be missing.

    Left out: rotary buffers and masks of old files, the copy of a tied head, heads that this model
    does not use.
    """
    params = _with_new_norms(prefixed(params, cfg))
    out: Params = {}
    for name, shape in shapes(cfg).items():
        if name not in params and backbone_only and is_head(name):
            continue
        if name not in params:
            hint = "is the download whole?" + _architecture_of(cfg)
            raise UserError(f"lacks the tensor {name}", where=where, hint=hint)
        module = name.removesuffix(".weight")
        found = params[name]
        if f"{module}.scales" in params:
            out |= _packed(params, module, shape, where)
            continue
        if is_transposed(name) and len(found.shape) == 2:
            found = found.swapaxes(0, 1)
        if tuple(found.shape) != shape:
            raise UserError(
                f"{name} has shape {tuple(found.shape)}, config.json says {shape}", where=where
            )
        out[name] = found
    for name in params:
        if name not in out and not _SPARE.search(name):
            raise UserError(f"holds {name}, which a {cfg.model_type} model has not", where=where)
    return out


def _with_new_norms(params: Mapping[str, Array]) -> Params:
    """The tensors, those of norms by the names that files have them by today."""
    return {re.sub(r"LayerNorm\.(gamma|beta)$", _new_norm, name): p for name, p in params.items()}


def _architecture_of(cfg: ModelConfig) -> str:
    """For people: what config.json says the model is; empty where it says nothing."""
    named = cfg.raw.get("architectures")
    if isinstance(named, list) and named:
        return f" config.json says that it is a {named[0]}"
    return ""


# What stands before all names but the head's, where a file is not of the body alone.
_BODY = {"bert": "bert.", "modernbert": "model.", "bart": "model.", "gpt2": "transformer."}


def prefixed(params: Mapping[str, Array], cfg: ModelConfig) -> Mapping[str, Array]:
    """The tensors of a file that holds a body alone (BertModel, BartModel, OpenAI's GPT-2) by the
    names that they have beside a head."""
    prefix = _BODY.get(cfg.model_type)
    if prefix is None or any(name.startswith(prefix) for name in params):
        return params
    named: Params = {}
    for name, tensor in params.items():
        if name not in (SCORE, "lm_head.weight"):
            name = prefix + name
        named[name] = tensor
    if cfg.model_type == "bart" and "model.shared.weight" in named:
        # its bias is 0 until someone sets it
        named.setdefault("final_logits_bias", named["model.shared.weight"][None, :, 0] * 0)
    return named


def is_head(name: str) -> bool:
    """Whether it is a part of what stands on an encoder's body."""
    return name.startswith(("cls.predictions.", "head.", "decoder.bias", "decoder.weight"))


def _packed(params: Mapping[str, Array], module: str, shape: tuple[int, ...], where: str) -> Params:
    """The parts of a matrix that is quantised as MLX does it. Raises UserError for another way."""
    parts: Params = {}
    for part in ("weight", "scales", "biases"):
        name = f"{module}.{part}"
        if name not in params:
            raise UserError(
                f"lacks the tensor {name}",
                where=where,
                hint="only affine quantisation is known here",
            )
        parts[name] = params[name]
    weight, scales, biases = [tuple(tensor.shape) for tensor in parts.values()]
    bits = 32 * weight[-1] / shape[-1]
    groups = scales[-1]
    if bits not in BITS:
        raise UserError(
            f"{module} is quantised to {bits:g} bits",
            where=where,
            hint=f"known: {', '.join(map(str, BITS))}",
        )
    fits = (
        len(shape) == 2
        and weight[0] == scales[0] == shape[0]
        and scales == biases
        and shape[1] % groups == 0
    )
    if not fits:
        raise UserError(
            f"{module} has shapes {weight}, {scales}, {biases}, config.json says {shape}",
            where=where,
        )
    return parts


def transposed(params: Mapping[str, Array]) -> Params:
    """The tensors in the direction that a file has them in, or back."""
    out: Params = {}
    for name, tensor in params.items():
        if is_transposed(name) and len(tensor.shape) == 2:
            tensor = tensor.swapaxes(0, 1)
        out[name] = tensor
    return out


def to_file(params: Mapping[str, Array]) -> Params:
    """The tensors as a file has them. GPT-2's stand there without the prefix, as in OpenAI's own:
    mlx-lm knows no other names; transformers knows both, where no head stands beside them."""
    tensors = transposed(params)
    if "lm_head.weight" in params or SCORE in params:
        return tensors
    return {name.removeprefix("transformer."): p for name, p in tensors.items()}


# Not the model's own: rotary and position buffers and masks of old files, copies of tied heads
# (packed ones too), and what BERT's folders hold for other tasks than this model's.
_SPARE = re.compile(
    r"^lm_head\.|rotary_emb\.inv_freq$|\.attn\.(masked_)?bias$|embeddings\.position_ids$"
    r"|^cls\.seq_relationship\.|^bert\.pooler\.|^cls\.predictions\.(bias$|decoder\.)|^decoder\.weight$"
    r"|^(model\.)?(en|de)coder\.embed_tokens\.weight$"
    # the first T5's files hold distances between source and target, which no
    # version reads
    r"|^decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight$"
)


def _new_norm(old: re.Match[str]) -> str:
    return "LayerNorm." + {"gamma": "weight", "beta": "bias"}[old[1]]
