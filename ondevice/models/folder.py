"""A model folder as Hugging Face lays it out: read with checks, written whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ondevice.backend import Backend, Params
from ondevice.data.tokenizer import Tokenizer
from ondevice.errors import UserError
from ondevice.models.architectures import ModelConfig, load_config
from ondevice.models.decoder import Decoder
from ondevice.models.encoder import Encoder
from ondevice.models.encoder_config import EncoderConfig
from ondevice.models.names import take
from ondevice.models.network import network, writes
from ondevice.models.seq2seq import Seq2Seq
from ondevice.models.seq2seq_config import Seq2SeqConfig

SHARD_BYTES = 5 * 10**9
_WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Model:
    """A network's shape with its weights on a device. `params` are keyed by the file's tensor names."""

    cfg: ModelConfig
    params: Params
    tokenizer: Tokenizer
    folder: Path

    @property
    def network(self) -> Decoder | Encoder | Seq2Seq:
        return network(self.cfg)

    def with_params(self, params: Params) -> Model:
        return replace(self, params=params)


def load_model(folder: str | Path, backend: Backend) -> Model:
    """Weights in float32. Raises UserError for a folder that is no checkpoint, or one that does not fit its config."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError("is a file, no folder" if folder.exists() else "there is no such folder", where=str(folder),
                        hint="give a Hugging Face model folder")
    cfg = load_config(folder)
    tokenizer = Tokenizer.load(folder)
    if tokenizer.vocab_size > cfg.vocab_size:
        raise UserError(f"the tokenizer has {tokenizer.vocab_size} tokens, the model {cfg.vocab_size}",
                        where=str(folder), hint="they do not belong together")
    found: Params = {}
    for file in weight_files(folder):
        try:
            found |= backend.load(file)
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(f"cannot be read: {error}", where=str(file), hint="is the download whole?") from error
        except Exception as error:  # safetensors raises a class of its own, derived from Exception only
            if type(error).__name__ != "SafetensorError":
                raise
            raise UserError(f"cannot be read: {error}", where=str(file), hint="is the download whole?") from error
    if isinstance(cfg, Seq2SeqConfig) and own_head(found, backend):
        cfg = replace(cfg, tie_word_embeddings=False)
    return Model(cfg, take(found, cfg, str(folder)), tokenizer, folder)


def own_head(found: Params, backend: Backend) -> bool:
    """Whether a T5's file holds a head that is no copy of the embeddings: transformers 5 says of each T5 that it is
    tied, and unties it where the file shows otherwise."""
    pair = [found.get(name) for name in ("lm_head.weight", "shared.weight")]
    head, table = (None if p is None else backend.numpy(p) for p in pair)
    return head is not None and table is not None and not np.array_equal(head, table)


def load_writer(folder: str | Path, backend: Backend) -> Model:
    """A model that writes text. Raises UserError as `load_model` and `writer`."""
    return writer(load_model(folder, backend))


def writer(model: Model) -> Model:
    """The model. Raises UserError for one that fills masks or judges."""
    if not writes(model.cfg):
        what = "is a reward model or a classifier" if model.cfg.num_labels else "fills masks"
        raise UserError(f"{what}: it writes no text", where=str(model.folder),
                        hint="take the folder of init, pretrain, sft, dpo, ppo or grpo of a model that does")
    return model


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, by its index where there is one."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise UserError("holds no index of weights", where=str(index), hint="is the download whole?") from error
        for name in names:
            if Path(name).name != name:
                raise UserError(f"names {name!r}, which is outside the folder", where=str(index))
    else:
        names = ["model.safetensors"]
    for name in names:
        if not (folder / name).is_file():
            pickled = next(folder.glob("*.bin"), None)
            hint = "pickled weights are not read: convert them to safetensors" if pickled else "is the download whole?"
            raise UserError(f"{name} is missing", where=str(folder), hint=hint)
    return [folder / name for name in names]


def write_model(folder: Path, backend: Backend, cfg: ModelConfig, params: Params, tokenizer: Tokenizer, *,
                dtype: str = "float32", card: str = "") -> None:
    """Fills an existing, empty folder: config.json, weights (sharded above 5 GB), tokenizer, generation_config.json."""
    special: dict[str, Any] = {
        "bos_token_id": tokenizer.bos_id, "pad_token_id": tokenizer.pad_id,
        "eos_token_id": tokenizer.stop_ids if len(tokenizer.stop_ids) > 1 else tokenizer.eos_id}
    if isinstance(cfg, EncoderConfig):
        special |= {"bos_token_id": tokenizer.cls_id, "eos_token_id": tokenizer.sep_id}
    cfg = replace(cfg, **special)
    if isinstance(cfg, Seq2SeqConfig):
        special["decoder_start_token_id"] = cfg.decoder_start_token_id
    _write_json(folder / "config.json", cfg.to_json(dtype))
    _write_json(folder / "generation_config.json",
                {k: list(v) if isinstance(v, tuple) else v for k, v in special.items() if v is not None})
    tokenizer.save(folder)
    if card:
        (folder / "README.md").write_text(card, encoding="utf-8")
    shards = _shards(params, dtype)
    if len(shards) == 1:
        backend.save(folder / "model.safetensors", params, {}, dtype)
        return
    weight_map: dict[str, str] = {}
    for i, names in enumerate(shards, 1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        backend.save(folder / file, {n: params[n] for n in names}, {}, dtype)
        weight_map |= dict.fromkeys(names, file)
    total = sum(_bytes(p.shape, dtype) for p in params.values())
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def _shards(params: Mapping[str, Any], dtype: str) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, p in params.items():
        size += _bytes(p.shape, dtype)
        if size > SHARD_BYTES and shards[-1]:
            shards.append([])
            size = _bytes(p.shape, dtype)
        shards[-1].append(name)
    return shards


def _bytes(shape: tuple[int, ...], dtype: str) -> int:
    count = _WIDTH[dtype]
    for n in shape:
        count *= n
    return count


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
