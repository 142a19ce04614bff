"""A model folder as Hugging Face lays it out: read with checks, written whole. Or an adapter's, in PEFT's format."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ondevice.common.errors import UserError
from ondevice.common.json_files import read_json
from ondevice.data.chat_encoding import add_template
from ondevice.data.chat_template import turn_end
from ondevice.data.tokenizer import Tokenizer
from ondevice.hub import snapshot
from ondevice.models import peft
from ondevice.models.decoder import Decoder
from ondevice.models.decoder_config import DecoderConfig
from ondevice.models.encoder import Encoder
from ondevice.models.encoder_config import EncoderConfig
from ondevice.models.generation_settings import generation_settings
from ondevice.models.library import LibraryNetwork
from ondevice.models.library_config import LibraryConfig
from ondevice.models.lora import INHERITED, TRAINED, Pair, adapted, all_stacked, is_adapter, placed
from ondevice.models.network import network, writes
from ondevice.models.peft_heads import settled
from ondevice.models.quant import dequantised
from ondevice.models.registry import ModelConfig, load_config
from ondevice.models.seq2seq import Seq2Seq
from ondevice.models.seq2seq_config import Seq2SeqConfig
from ondevice.models.tensor_files import read_tensors
from ondevice.models.tensor_names import judging, matrices, quantised, shapes, table, take, to_file
from ondevice.models.tied_embeddings import as_the_file_ties
from ondevice.seam.ops import Params
from ondevice.seam.protocols import Backend

GENERATION = "generation_config.json"
SHARD_BYTES = 5 * 10**9
_WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Adapter:
    """What a model has beside a base that stays as it is. `base` is its folder or its name on the Hub, `whole` the
    tensors that stand in place of the base's, `trained` those that training changes."""

    base: str
    revision: str | None = None
    whole: frozenset[str] = frozenset()
    trained: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Model:
    """A network's shape with its weights on a device. `params` are keyed by the file's tensor names; with an `adapter`,
    its tensors stand beside the weights (`lora.py`). `generation`: what generation_config.json says."""

    cfg: ModelConfig
    params: Params
    tokenizer: Tokenizer
    folder: Path
    adapter: Adapter | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)

    @property
    def network(self) -> Decoder | Encoder | Seq2Seq | LibraryNetwork:
        return network(self.cfg)

    def with_params(self, params: Params) -> Model:
        return replace(self, params=params)

    @property
    def size(self) -> int:
        """How many numbers it is made of, adapters among them; what is packed counts unpacked."""
        low = (p.shape for name, p in self.params.items() if ".lora_A." in name or ".lora_B." in name)
        return sum(math.prod(shape) for shape in (*shapes(self.cfg).values(), *low))

    def trains(self, name: str) -> bool:
        """Whether training changes this tensor."""
        return self.adapter is None or name in self.adapter.trained


def load_model(name: str | Path, backend: Backend, *, dtype: str = "float32", merge: bool = True,
               body: bool = False) -> Model:
    """A model's folder, an adapter's, or the name of a model on the Hub. Weights come in `dtype`. An adapter is merged
    into its base, unless that is quantised or `merge` is off: then it stands beside it, float32. Of a `body`, which is
    to have another head, an encoder's head may be missing.

    Raises UserError for a folder that is no checkpoint, or one that does not fit its config.
    """
    folder = snapshot.resolve(name)
    _need_folder(folder)
    if is_adapter_folder(folder):
        return _load_adapted(folder, backend, dtype, merge)
    cfg = load_config(folder)
    tokenizer = tokenizer_of(folder, cfg)
    return Model(*_read_whole(folder, backend, cfg, dtype, body), tokenizer, folder, generation=generation_of(folder))


def tokenizer_of(folder: Path, cfg: ModelConfig) -> Tokenizer:
    """A folder's tokenizer. No encoder or encoder-decoder that is published has a chat template: the first judges a
    prompt with its answer behind it, the second reads a prompt and writes an answer as they are. Raises UserError where
    the tokenizer's own words are more than the model has rows for; tokens that were added beyond them are refused where
    a text needs one."""
    tokenizer = Tokenizer.load(folder).for_rows(cfg.vocab_size, folder)
    name = "bare" if isinstance(cfg, Seq2SeqConfig) else "pair" if isinstance(cfg, EncoderConfig) else ""
    return add_template(tokenizer, name) if name and tokenizer.chat_template is None else tokenizer


def is_adapter_folder(folder: Path) -> bool:
    return (folder / peft.CONFIG).is_file() and not (folder / "config.json").is_file()


def labels(folder: Path) -> int:
    """How many scores a folder's model gives, 0 where it writes or fills masks; an adapter's base need not be there (a
    reward model's gives one)."""
    _need_folder(folder)
    return int(peft.judges(folder)) if is_adapter_folder(folder) else load_config(folder).num_labels


def whole_folder(folder: Path) -> Path:
    """The folder itself, or of an adapter's its base."""
    return base_folder(folder) if is_adapter_folder(folder) else folder


def base_folder(folder: Path) -> Path:
    """Where the base of an adapter is. Raises UserError where it is not to be had."""
    base = peft.base_of(folder)
    try:
        found = snapshot.resolve(base)
    except UserError as error:
        raise UserError(f"its base model {base} is not here: {error.message}", where=str(folder),
                        hint=error.hint) from error
    if not (found / "config.json").is_file():
        raise UserError(f"its base model {base} is not here", where=str(folder),
                        hint=f"put it there, or name its folder in {peft.CONFIG}: base_model_name_or_path")
    return found


def read_params(folder: Path, backend: Backend, cfg: ModelConfig, dtype: str = "float32",
                body: bool = False) -> Params:
    """All weights of a model's folder. Raises UserError for a file that cannot be read or does not fit the config."""
    if isinstance(cfg, LibraryConfig):
        return _read_by_library(folder, backend, cfg, dtype)[1]
    said, found = as_the_file_ties(_read_files(folder, backend, dtype), cfg, backend, str(folder))
    if said != cfg:
        raise UserError("holds a head of its own, where this model's is tied", where=str(folder))
    return take(found, cfg, str(folder), body)


def _read_files(folder: Path, backend: Backend, dtype: str) -> Params:
    return {name: p for file in weight_files(folder) for name, p in read_tensors(file, backend, dtype).items()}


def _read_whole(folder: Path, backend: Backend, cfg: ModelConfig, dtype: str,
                body: bool = False) -> tuple[ModelConfig, Params]:
    """The weights, and the config with what only they say."""
    if isinstance(cfg, LibraryConfig):
        return _read_by_library(folder, backend, cfg, dtype)
    cfg, found = as_the_file_ties(_read_files(folder, backend, dtype), cfg, backend, str(folder))
    return cfg, take(found, cfg, str(folder), body)


def _read_by_library(folder: Path, backend: Backend, cfg: LibraryConfig, dtype: str) -> tuple[LibraryConfig, Params]:
    library, params = backend.open_library(folder, cfg.raw, dtype)
    return replace(cfg, lib=library), params


def read_trained(folder: Path, model: Model, backend: Backend) -> Params:
    """The parameters of `model` as `write` has left them: all of them, or its base with what was trained beside it."""
    if model.adapter is None:
        return read_params(folder, backend, model.cfg)
    found, out = peft.read(folder, backend), dict(model.params)
    for name in adapted(model.params, TRAINED):  # what was inherited stands before it
        rank, pair = model.params[f"{name}.lora_A.{TRAINED}"].shape[0], found.pairs[name]
        scale = float(backend.numpy(model.params[f"{name}.lora_scale.{TRAINED}"]))
        out |= placed(name, Pair(pair.a[-rank:], pair.b[:, -rank:], scale), TRAINED, backend)
    return out | {name: found.whole[name] for name in model.adapter.whole & model.adapter.trained}


def _load_adapted(folder: Path, backend: Backend, dtype: str, merge: bool) -> Model:
    base = base_folder(folder)
    whole, params = _read_whole(base, backend, load_config(base), dtype)
    whole, params, found = settled(peft.read(folder, backend), whole, params, dtype, backend, str(folder))
    cfg = _changed(whole, found.whole)
    tokenizer = _adapters_tokenizer(folder, base, cfg)
    known = matrices(cfg)
    adapters: Params = {}
    for name, pair in found.pairs.items():
        if known.get(name) != (pair.b.shape[0], pair.a.shape[1]):
            raise UserError(f"has an adapter of {name}, {pair.b.shape[0]} × {pair.a.shape[1]}, which the base "
                            f"{base} has not", where=str(folder), hint="they do not belong together")
        adapters |= placed(name, pair, INHERITED, backend)
    named, revision = snapshot.name_of(base)
    model = Model(cfg, {**take_whole(params, found.whole, cfg, str(folder)), **adapters}, tokenizer, folder,
                  Adapter(named, revision, frozenset(found.whole)), generation_of(folder))
    return merged(model, backend) if merge and not quantised(params) else model


def _adapters_tokenizer(folder: Path, base: Path, cfg: ModelConfig) -> Tokenizer:
    """The adapter's tokenizer, or its base's. Texts end where the base says so too; where the adapter's folder is one
    that `write` has left, the end of text is the base's again (`_told_end`)."""
    if not (folder / "tokenizer.json").is_file():
        return tokenizer_of(base, cfg)
    own = tokenizer_of(folder, cfg)
    if not (base / "tokenizer.json").is_file():
        return own
    before = tokenizer_of(base, cfg)
    word = before.named.get("eos_token")
    if (folder / GENERATION).is_file() and word is not None and own.inner.token_to_id(word) is not None:
        own = own.with_eos(word)
    return own.ending_as(before)


def _told_end(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer as an adapter's folder has it: with the token that ends a turn as its end of text. transformers
    takes the settings of generation from the base, which may know nothing of the turns that were learned; whoever
    passes on the tokenizer's end of text stops where the adapter does."""
    end = turn_end(tokenizer)
    word = None if end is None else tokenizer.inner.id_to_token(end)
    return tokenizer if word is None or end == tokenizer.eos_id else tokenizer.with_eos(word)


def generation_of(folder: Path) -> dict[str, Any]:
    """What generation_config.json of a model's folder says, of an adapter's its base's under its own. Raises UserError
    for a file that cannot be read, and where an adapter's base is not to be had."""
    base = whole_folder(folder)
    return {**generation_settings(base), **({} if folder == base else read_json(folder / GENERATION))}


def _changed(cfg: ModelConfig, whole: Params) -> ModelConfig:
    """The base's config as the tensors that stand in place of the base's say: a head of scores, more tokens."""
    score = whole.get(f"{network(cfg).score}.weight")
    if score is not None:
        cfg = replace(cfg, num_labels=int(score.shape[0]))
    embeddings = whole.get(table(cfg))
    return cfg if embeddings is None else replace(cfg, vocab_size=int(embeddings.shape[0]))


def take_whole(params: Params, whole: Params, cfg: ModelConfig, where: str) -> Params:
    """A base's `params` with the tensors `whole` in place of theirs, without those that a model of `cfg` has not.
    Raises UserError for one of `whole` that it has not, or one that it lacks."""
    wanted = shapes(cfg)
    for name, p in whole.items():
        if name not in wanted:
            raise UserError(f"holds {name}, which its base has not", where=where)
        if tuple(p.shape) != wanted[name]:
            raise UserError(f"{name} has shape {tuple(p.shape)}, its base says {wanted[name]}", where=where)
    missing = [name for name in judging(cfg) if name not in params and name not in whole]
    if missing:
        raise UserError(f"lacks the tensor {missing[0]}", where=where, hint="is the download whole?")
    replaced = {name.removesuffix(".weight") for name in whole}  # of one that was packed, nothing else is left
    return {**{name: p for name, p in of_model(params, cfg).items() if is_adapter(name)
               or not name.endswith((".scales", ".biases")) or name.rpartition(".")[0] not in replaced}, **whole}


def of_model(params: Params, cfg: ModelConfig) -> Params:
    """Those of another model's tensors that stand in one of `cfg` too, with what quantises them and their adapters."""
    modules = {name.removesuffix(".weight") for name in shapes(cfg)}
    return {name: p for name, p in params.items()
            if name in modules or name.rpartition(".")[0] in modules or is_adapter(name)}


def merged(model: Model, backend: Backend) -> Model:
    """The model with whole weights: its adapters are added to them in float32, on the host; what is quantised is
    unpacked."""
    deltas, params = all_stacked(model.params, backend), dict[str, Any]()
    known = matrices(model.cfg, every=True)
    packed = set(quantised(model.params))
    for name, p in model.params.items():
        module, _, part = name.rpartition(".")
        if is_adapter(name) or (module in packed and part in ("scales", "biases")):
            continue
        if part == "weight" and (module in deltas or module in packed):
            weight = dequantised(model.params, module, known[module][1], backend) if module in packed \
                else backend.numpy(p)
            p = backend.array(weight + deltas[module].delta if module in deltas else weight)
        params[name] = p
    return replace(model, params=params, adapter=None)


def _need_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise UserError("is a file, no folder" if folder.exists() else "there is no such folder", where=str(folder),
                        hint="give a Hugging Face model folder")




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


def write(folder: Path, backend: Backend, model: Model, *, dtype: str = "float32", card: str = "") -> None:
    """Fills an existing, empty folder with the model, or with its adapter alone."""
    if model.adapter is None:
        write_model(folder, backend, model.cfg, model.params, model.tokenizer, dtype=dtype, card=card,
                    generation=model.generation)
        return
    peft.write(folder, backend, all_stacked(model.params, backend),
               {name: model.params[name] for name in sorted(model.adapter.whole)}, base=model.adapter.base,
               revision=model.adapter.revision, task=_task(model.cfg), tied=model.cfg.tie_word_embeddings,
               modules=matrices(model.cfg))
    goes_on = writes(model.cfg) and model.network.start is None
    (_told_end(model.tokenizer) if goes_on else model.tokenizer).save(folder)
    if writes(model.cfg):
        _write_generation(folder, model.generation, _special(model.cfg, model.tokenizer))
    if card:
        (folder / "README.md").write_text(card, encoding="utf-8")


def _task(cfg: ModelConfig) -> str:
    if cfg.num_labels:
        return peft.JUDGES
    return peft.ANSWERS if isinstance(cfg, Seq2SeqConfig) else peft.WRITES


def write_model(folder: Path, backend: Backend, cfg: ModelConfig, params: Params, tokenizer: Tokenizer, *,
                dtype: str = "float32", card: str = "", generation: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Fills an existing, empty folder: config.json, weights (sharded above 5 GB), tokenizer, generation_config.json,
    which says of `generation` what is no token's id and no version."""
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
    """The ids of special tokens as config.json and generation_config.json have them; several that end a text as a
    tuple."""
    if isinstance(cfg, EncoderConfig):
        return {"bos_token_id": tokenizer.cls_id, "pad_token_id": tokenizer.pad_id, "eos_token_id": tokenizer.sep_id}
    return {"bos_token_id": tokenizer.bos_id, "pad_token_id": tokenizer.pad_id,
            "eos_token_id": tokenizer.stop_ids if len(tokenizer.stop_ids) > 1 else tokenizer.eos_id}


def _write_generation(folder: Path, generation: Mapping[str, Any], special: Mapping[str, Any]) -> None:
    kept = {k: v for k, v in generation.items() if k not in ("transformers_version", "_from_model_config", *special)}
    _write_json(folder / GENERATION,
                {**kept, **{k: list(v) if isinstance(v, tuple) else v for k, v in special.items() if v is not None}})


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
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


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
    format = {"group_size": width // params[f"{name}.scales"].shape[1],
              "bits": 32 * params[f"{name}.weight"].shape[1] // width, "mode": "affine"}
    return {"quantization": format, "quantization_config": format}


def _bytes(name: str, shape: tuple[int, ...], params: Mapping[str, Any], dtype: str) -> int:
    packed = f"{name.removesuffix('.weight')}.scales" in params
    count = 4 if packed and name.endswith(".weight") else _WIDTH[dtype]
    for n in shape:
        count *= n
    return count


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
