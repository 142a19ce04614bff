"""Writes a model as an ordinary Hugging Face folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ondevice.data.chat_template import turn_end
from ondevice.data.tokenizer import Tokenizer
from ondevice.models import peft
from ondevice.models.decoder_config import DecoderConfig
from ondevice.models.encoder_config import EncoderConfig
from ondevice.models.external_config import LibraryConfig
from ondevice.models.generation_config import GENERATION
from ondevice.models.lora import concat_all_lora
from ondevice.models.model import Model
from ondevice.models.network import is_generative
from ondevice.models.registry import ModelConfig
from ondevice.models.seq2seq_config import Seq2SeqConfig
from ondevice.models.shapes import matrices
from ondevice.models.state_dict import quantised, to_file
from ondevice.seam.ops import Params
from ondevice.seam.protocols import Backend

SHARD_BYTES = 5 * 10**9
_WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}


def write(
    folder: Path, backend: Backend, model: Model, *, dtype: str = "float32", card: str = ""
) -> None:
    """Fills an existing, empty folder with the model, or with its adapter alone."""
    if model.adapter is None:
        write_model(
            folder,
            backend,
            model.cfg,
            model.params,
            model.tokenizer,
            dtype=dtype,
            card=card,
            generation=model.generation,
        )
        return
    peft.write(
        folder,
        backend,
        concat_all_lora(model.params, backend),
        {name: model.params[name] for name in sorted(model.adapter.whole)},
        base=model.adapter.base,
        revision=model.adapter.revision,
        task=_task(model.cfg),
        tied=model.cfg.tie_word_embeddings,
        modules=matrices(model.cfg),
    )
    goes_on = is_generative(model.cfg) and model.network.decoder_start_token_id is None
    (with_end_told(model.tokenizer) if goes_on else model.tokenizer).save(folder)
    if is_generative(model.cfg):
        _write_generation(folder, model.generation, _special(model.cfg, model.tokenizer))
    if card:
        (folder / "README.md").write_text(card, encoding="utf-8")


def _task(cfg: ModelConfig) -> str:
    if cfg.num_labels:
        return peft.JUDGES
    if isinstance(cfg, Seq2SeqConfig):
        return peft.ANSWERS
    return peft.WRITES


def write_model(
    folder: Path,
    backend: Backend,
    cfg: ModelConfig,
    params: Params,
    tokenizer: Tokenizer,
    *,
    dtype: str = "float32",
    card: str = "",
    generation: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Fills an existing, empty folder: config.json, weights (sharded above 5 GB), tokenizer,
    generation_config.json, which says of `generation` what is no token's id and no version."""
    if isinstance(cfg, DecoderConfig) and cfg.num_labels:
        tokenizer = tokenizer.padded_apart()
    special = _special(cfg, tokenizer)
    cfg = replace(cfg, **special)
    if isinstance(cfg, Seq2SeqConfig):
        special["decoder_start_token_id"] = cfg.decoder_start_token_id
    if isinstance(cfg, LibraryConfig):
        assert cfg.lib is not None
        cfg.lib.save(folder, params, dtype)  # first: it writes a config.json of its own
    else:
        _write_weights(folder, backend, to_file(params), dtype)
    _write_json(folder / "config.json", {**cfg.to_json(dtype), **_quantisation(params, cfg)})
    _write_generation(folder, generation, special)
    tokenizer.save(folder)
    if card:
        (folder / "README.md").write_text(card, encoding="utf-8")


def _special(cfg: ModelConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """The ids of special tokens as config.json and generation_config.json have them; several that
    end a text as a tuple."""
    if isinstance(cfg, EncoderConfig):
        return {
            "bos_token_id": tokenizer.cls_id,
            "pad_token_id": tokenizer.pad_id,
            "eos_token_id": tokenizer.sep_id,
        }
    return {
        "bos_token_id": tokenizer.bos_id,
        "pad_token_id": tokenizer.pad_id,
        "eos_token_id": tokenizer.stop_ids if len(tokenizer.stop_ids) > 1 else tokenizer.eos_id,
    }


def _write_generation(
    folder: Path, generation: Mapping[str, Any], special: Mapping[str, Any]
) -> None:
    kept = {
        k: v
        for k, v in generation.items()
        if k not in ("transformers_version", "_from_model_config", *special)
    }
    _write_json(
        folder / GENERATION,
        {
            **kept,
            **{
                k: list(v) if isinstance(v, tuple) else v
                for k, v in special.items()
                if v is not None
            },
        },
    )


def _write_weights(folder: Path, backend: Backend, params: Params, dtype: str) -> None:
    shards = _shards(params, dtype)
    if len(shards) == 1:
        backend.save(folder / "model.safetensors", params, {}, dtype)
        return
    weight_map: dict[str, str] = {}
    for i, names in enumerate(shards, 1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        backend.save(folder / file, {n: params[n] for n in names}, {}, dtype)
        weight_map |= dict.fromkeys(names, file)
    total = sum(_bytes(n, p.shape, params, dtype) for n, p in params.items())
    _write_json(
        folder / "model.safetensors.index.json",
        {"metadata": {"total_size": total}, "weight_map": weight_map},
    )


def _shards(params: Mapping[str, Any], dtype: str) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, p in params.items():
        size += _bytes(name, p.shape, params, dtype)
        if size > SHARD_BYTES and shards[-1]:
            shards.append([])
            size = _bytes(name, p.shape, params, dtype)
        shards[-1].append(name)
    return shards


def _quantisation(params: Params, cfg: ModelConfig) -> dict[str, Any]:
    """What config.json says of packed weights, as mlx-lm reads it."""
    packed = quantised(params)
    if not packed:
        return {}
    width, name = matrices(cfg, every=True)[packed[0]][1], packed[0]
    format = {
        "group_size": width // params[f"{name}.scales"].shape[1],
        "bits": 32 * params[f"{name}.weight"].shape[1] // width,
        "mode": "affine",
    }
    return {"quantization": format, "quantization_config": format}


def _bytes(name: str, shape: tuple[int, ...], params: Mapping[str, Any], dtype: str) -> int:
    packed = f"{name.removesuffix('.weight')}.scales" in params
    if packed and name.endswith(".weight"):
        count = 4
    else:
        count = _WIDTH[dtype]
    for n in shape:
        count *= n
    return count


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def with_end_told(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer as an adapter's folder has it: with the token that ends a turn as its end of
    text. transformers takes the settings of generation from the base, which may know nothing of the
    turns that were learned; whoever passes on the tokenizer's end of text stops where the adapter
    does."""
    end = turn_end(tokenizer)
    if end is None:
        word = None
    else:
        word = tokenizer.inner.id_to_token(end)
    if word is None or end == tokenizer.eos_id:
        return tokenizer
    return tokenizer.with_eos(word)
