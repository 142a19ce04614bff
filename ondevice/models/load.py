"""A model folder as Hugging Face lays it out: read with checks, written whole. Or an adapter's, in
PEFT's format.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ondevice.common.errors import UserError
from ondevice.data.chat_encoding import add_template
from ondevice.data.tokenizer import Tokenizer
from ondevice.hub import snapshot
from ondevice.models import peft
from ondevice.models.compute_type import for_use
from ondevice.models.encoder_config import EncoderConfig
from ondevice.models.external_config import LibraryConfig
from ondevice.models.generation_config import GENERATION, generation_of
from ondevice.models.lora import INHERITED, TRAINED, Pair, adapted_modules, lora_tensors
from ondevice.models.model import Adapter, Model, merged, require_generative, with_whole_tensors
from ondevice.models.model_folder import _need_folder, base_folder, is_adapter_folder, weight_files
from ondevice.models.network import network
from ondevice.models.peft_heads import resolve_copied_heads
from ondevice.models.registry import ModelConfig, load_config
from ondevice.models.seq2seq_config import Seq2SeqConfig
from ondevice.models.shapes import embedding_name, matrices, shapes
from ondevice.models.state_dict import from_file, quantised
from ondevice.models.tensor_files import read_tensors
from ondevice.models.tied_embeddings import tie_as_in_file
from ondevice.seam.ops import Params
from ondevice.seam.protocols import Backend


def load_model(
    name: str | Path,
    backend: Backend,
    *,
    dtype: str = "float32",
    merge: bool = True,
    backbone_only: bool = False,
) -> Model:
    """A model's folder, an adapter's, or the name of a model on the Hub. Weights come in `dtype`.
    An adapter is merged into its base, unless that is quantised or `merge` is off: then it stands
    beside it, float32. Of a `backbone_only` model, which is to have another head, an encoder's head
    may be missing.

    Raises UserError for a folder that is no checkpoint, or one that does not fit its config.
    """
    folder = snapshot.resolve(name)
    _need_folder(folder)
    if is_adapter_folder(folder):
        return _load_adapted(folder, backend, dtype, merge)
    cfg = load_config(folder)
    tokenizer = tokenizer_of(folder, cfg)
    return Model(
        *_read_whole(folder, backend, cfg, dtype, backbone_only),
        tokenizer,
        folder,
        generation=generation_of(folder),
    )


def tokenizer_of(folder: Path, cfg: ModelConfig) -> Tokenizer:
    """A folder's tokenizer. No encoder or encoder-decoder that is published has a chat template:
    the first judges a prompt with its answer behind it, the second reads a prompt and writes an
    answer as they are. Raises UserError where the tokenizer's own words are more than the model has
    rows for; tokens that were added beyond them are refused where a text needs one."""
    tokenizer = Tokenizer.load(folder).for_rows(cfg.vocab_size, folder)
    if isinstance(cfg, Seq2SeqConfig):
        name = "bare"
    elif isinstance(cfg, EncoderConfig):
        name = "pair"
    else:
        name = ""
    if name and tokenizer.chat_template is None:
        return add_template(tokenizer, name)
    return tokenizer


def labels(folder: Path) -> int:
    """How many scores a folder's model gives, 0 where it writes or fills masks; an adapter's base
    need not be there (a reward model's gives one)."""
    _need_folder(folder)
    if is_adapter_folder(folder):
        return int(peft.is_score_adapter(folder))
    return load_config(folder).num_labels


def read_params(
    folder: Path,
    backend: Backend,
    cfg: ModelConfig,
    dtype: str = "float32",
    backbone_only: bool = False,
) -> Params:
    """All weights of a model's folder. Raises UserError for a file that cannot be read or does not
    fit the config.
    """
    if isinstance(cfg, LibraryConfig):
        return _read_by_library(folder, backend, cfg, dtype)[1]
    said, found = tie_as_in_file(_read_files(folder, backend, dtype), cfg, backend, str(folder))
    if said != cfg:
        raise UserError("holds a head of its own, where this model's is tied", where=str(folder))
    return from_file(found, cfg, str(folder), backbone_only)


def _read_files(folder: Path, backend: Backend, dtype: str) -> Params:
    return {
        name: p
        for file in weight_files(folder)
        for name, p in read_tensors(file, backend, dtype).items()
    }


def _read_whole(
    folder: Path, backend: Backend, cfg: ModelConfig, dtype: str, backbone_only: bool = False
) -> tuple[ModelConfig, Params]:
    """The weights, and the config with what only they say."""
    if isinstance(cfg, LibraryConfig):
        return _read_by_library(folder, backend, cfg, dtype)
    cfg, found = tie_as_in_file(_read_files(folder, backend, dtype), cfg, backend, str(folder))
    return cfg, from_file(found, cfg, str(folder), backbone_only)


def _read_by_library(
    folder: Path, backend: Backend, cfg: LibraryConfig, dtype: str
) -> tuple[LibraryConfig, Params]:
    library, params = backend.open_library(folder, cfg.raw, dtype)
    return replace(cfg, lib=library), params


def read_trained(folder: Path, model: Model, backend: Backend) -> Params:
    """The parameters of `model` as `write` has left them: all of them, or its base with what was
    trained beside it.
    """
    if model.adapter is None:
        return read_params(folder, backend, model.cfg)
    found = peft.read(folder, backend)
    out = dict(model.params)
    for name in adapted_modules(model.params, TRAINED):  # what was inherited stands before it
        rank = model.params[f"{name}.lora_A.{TRAINED}"].shape[0]
        pair = found.pairs[name]
        scale = float(backend.numpy(model.params[f"{name}.lora_scale.{TRAINED}"]))
        newest = Pair(pair.a[-rank:], pair.b[:, -rank:], scale)
        out |= lora_tensors(name, newest, TRAINED, backend)
    for name in model.adapter.whole & model.adapter.trained:
        out[name] = found.whole[name]
    return out


def _load_adapted(folder: Path, backend: Backend, dtype: str, merge: bool) -> Model:
    base = base_folder(folder)
    whole, params = _read_whole(base, backend, load_config(base), dtype)
    whole, params, found = resolve_copied_heads(
        peft.read(folder, backend), whole, params, dtype, backend, str(folder)
    )
    cfg = _changed(whole, found.whole)
    tokenizer = _adapters_tokenizer(folder, base, cfg)
    known = matrices(cfg)
    adapters: Params = {}
    for name, pair in found.pairs.items():
        if known.get(name) != (pair.b.shape[0], pair.a.shape[1]):
            raise UserError(
                f"has an adapter of {name}, {pair.b.shape[0]} × {pair.a.shape[1]}, which the base "
                f"{base} has not",
                where=str(folder),
                hint="they do not belong together",
            )
        adapters |= lora_tensors(name, pair, INHERITED, backend)
    peft.need_all(found, known, [name for name in shapes(cfg) if name in params], str(folder))
    named, revision = snapshot.name_of(base)
    model = Model(
        cfg,
        {**with_whole_tensors(params, found.whole, cfg, str(folder)), **adapters},
        tokenizer,
        folder,
        Adapter(named, revision, frozenset(found.whole)),
        generation_of(folder),
    )
    if merge and not quantised(params):
        return merged(model, backend)
    return model


def _adapters_tokenizer(folder: Path, base: Path, cfg: ModelConfig) -> Tokenizer:
    """The adapter's tokenizer, or its base's. Texts end where the base says so too; where the
    adapter's folder is one that `write` has left, the end of text is the base's again
    (`with_end_told`)."""
    if not (folder / "tokenizer.json").is_file():
        return tokenizer_of(base, cfg)
    own = tokenizer_of(folder, cfg)
    if not (base / "tokenizer.json").is_file():
        return own
    before = tokenizer_of(base, cfg)
    word = before.named.get("eos_token")
    if (
        (folder / GENERATION).is_file()
        and word is not None
        and own.inner.token_to_id(word) is not None
    ):
        own = own.with_eos(word)
    return own.ending_as(before)


def _changed(cfg: ModelConfig, whole: Params) -> ModelConfig:
    """The base's config as the tensors that stand in place of the base's say: a head of scores,
    more tokens.
    """
    score = whole.get(f"{network(cfg).score}.weight")
    if score is not None:
        cfg = replace(cfg, num_labels=int(score.shape[0]))
    embeddings = whole.get(embedding_name(cfg))
    if embeddings is None:
        return cfg
    return replace(cfg, vocab_size=int(embeddings.shape[0]))


def load_for_use(name: str | Path, backend: Backend) -> Model:
    """A model that is used and neither trained nor written: its weights in the compute type. An
    adapter is merged into its base in float32 before. Raises UserError as `load_model`.
    """
    folder = snapshot.resolve(name)
    _need_folder(folder)
    if backend.dtype == "float32" or not is_adapter_folder(folder):
        return load_model(folder, backend, dtype=backend.dtype)
    return for_use(load_model(folder, backend), backend)


def load_generative(folder: str | Path, backend: Backend) -> Model:
    """A model that writes text, for use. Raises UserError as `load_model` and
    `require_generative`."""
    return require_generative(load_for_use(folder, backend))
