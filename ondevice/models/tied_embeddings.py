"""Tensors that a file may hold twice: heads and tables that a config says are one. Where the copies
differ, the file is believed, as transformers 5 believes it: they are two tensors, or the folder is
refused; none of them is dropped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ondevice.common.errors import UserError
from ondevice.models.encoder_config import EncoderConfig
from ondevice.models.external_config import LibraryConfig
from ondevice.models.registry import ModelConfig
from ondevice.models.seq2seq_config import Seq2SeqConfig
from ondevice.models.state_dict import prefixed
from ondevice.seam.ops import Array, Params
from ondevice.seam.protocols import Backend

_BERT = "cls.predictions.decoder"
_BIAS = "cls.predictions.bias"  # a tied BERT's; untied, it has another name


def tie_as_in_file(
    params: Params, cfg: ModelConfig, backend: Backend, where: str
) -> tuple[ModelConfig, Params]:
    """(the config, untied where the file's head is no copy of its table of tokens, the tensors with
    all that an untied head is). Raises UserError for two tensors that differ and that are one in
    every model of the family."""
    if isinstance(cfg, LibraryConfig) or cfg.num_labels:
        return cfg, params
    params = dict(prefixed(params, cfg))
    for copy in _copies(cfg):
        if differ(params, copy, embedding_module(cfg), backend):
            raise UserError(
                f"{copy} and {embedding_module(cfg)} are two in the file, and one in a {cfg.model_type} model",
                where=where,
                hint="is it a folder of another architecture?",
            )
    module = head_module(cfg)
    if (
        cfg.tie_word_embeddings
        and module
        and (
            differ(params, module, embedding_module(cfg), backend)
            or (
                module == _BERT and _unlike(params.get(f"{_BERT}.bias"), params.get(_BIAS), backend)
            )
        )
    ):
        cfg = replace(cfg, tie_word_embeddings=False)
        params = {**copied(params, module, embedding_module(cfg)), **params}
    if module == _BERT and not cfg.tie_word_embeddings and _BIAS in params:
        params.setdefault(f"{_BERT}.bias", params[_BIAS])
    return cfg, params


def untie_head(cfg: ModelConfig, params: Params) -> tuple[ModelConfig, Params]:
    """A tied model with a head of its own that is, so far, a copy of its table of tokens."""
    return replace(cfg, tie_word_embeddings=False), {
        **params,
        **copied(params, head_module(cfg), embedding_module(cfg)),
    }


def head_module(cfg: ModelConfig) -> str:
    """The module that makes logits where it is not tied; empty where the family has none."""
    if isinstance(cfg, EncoderConfig):
        if cfg.modern:
            return "decoder"
        return _BERT
    if isinstance(cfg, Seq2SeqConfig) and not cfg.relative:
        return ""
    return "lm_head"


def embedding_module(cfg: ModelConfig) -> str:
    """The module that has a row for each token of the vocabulary."""
    if isinstance(cfg, EncoderConfig):
        if cfg.modern:
            return "model.embeddings.tok_embeddings"
        return "bert.embeddings.word_embeddings"
    if isinstance(cfg, Seq2SeqConfig):
        if cfg.relative:
            return "shared"
        return "model.shared"
    if cfg.model_type == "gpt2":
        return "transformer.wte"
    return "model.embed_tokens"


def _copies(cfg: ModelConfig) -> list[str]:
    """Modules that are the table in every model of the family, whatever its config says."""
    if not isinstance(cfg, Seq2SeqConfig):
        return []
    if cfg.relative:
        return ["encoder.embed_tokens", "decoder.embed_tokens"]
    return ["model.encoder.embed_tokens", "model.decoder.embed_tokens", "lm_head"]


def differ(params: Mapping[str, Array], one: str, other: str, backend: Backend) -> bool:
    """Whether both modules have a matrix, packed or not, and these are not the same to the last
    bit.
    """
    if f"{one}.weight" not in params or f"{other}.weight" not in params:
        return False
    pairs = [
        [params.get(f"{name}.{part}") for name in (one, other)]
        for part in ("weight", "scales", "biases")
    ]
    return any((a is None) != (b is None) or _unlike(a, b, backend) for a, b in pairs)


def _unlike(one: Array | None, other: Array | None, backend: Backend) -> bool:
    """Whether both are there and differ."""
    return (
        one is not None
        and other is not None
        and (
            tuple(one.shape) != tuple(other.shape)
            or not np.array_equal(backend.numpy(one), backend.numpy(other))
        )
    )


def copied(params: Mapping[str, Array], one: str, other: str) -> Params:
    """The matrix of the module `other`, packed or not, under the name of `one`."""
    return {
        f"{one}.{part}": params[f"{other}.{part}"]
        for part in ("weight", "scales", "biases")
        if f"{other}.{part}" in params
    }
