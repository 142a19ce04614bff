"""`ondevice export`: a model written for other programs, then loaded again and compared with the
model itself.

What is compared is logits on a fixed prompt, by our own forward pass in float32 on what the written
files hold; where precision is lost, perplexity too. The folder is whole, and as near as its type
allows, or it is not there.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ondevice.common import disk
from ondevice.common.distribution import install_hint
from ondevice.common.errors import UserError
from ondevice.common.files import whole_folder
from ondevice.common.progress import size
from ondevice.common.sanitize import sanitize
from ondevice.config.corpus import CorpusConfig
from ondevice.config.hub import ExportConfig
from ondevice.datasets.spec import corpus_of, plain_texts
from ondevice.evaluation.held_out import builtin_exam
from ondevice.exports import gguf_file, mlx_adapter
from ondevice.exports.compare import Gap, gap, logits, perplexity, prompt_of, with_library
from ondevice.exports.gguf_words import Words, words_of
from ondevice.exports.modelfile import modelfile, trims
from ondevice.models.convert import quantised_model
from ondevice.models.decoder_config import DecoderConfig
from ondevice.models.load import load_model
from ondevice.models.model import Model, merged
from ondevice.models.network import is_generative, supports_packing
from ondevice.models.save import write, write_model
from ondevice.models.shapes import matrices, shapes
from ondevice.models.state_dict import quantised
from ondevice.runs.resolve import find_model
from ondevice.seam.protocols import Backend
from ondevice.seam.select import load_backend

_BESIDE = ("README.md", "LICENSE", "LICENCE", "NOTICE")
_LIMITS = {
    "float32": 1e-5,
    "f32": 1e-5,
    "float16": 0.05,
    "f16": 0.05,
    "bfloat16": 0.2,
    "q8_0": 0.2,
    "peft": 1e-4,
    "mlx-adapter": 1e-4,
}
"""By how much logits may differ, as a share of the largest one: a tensor that is wrong or in the
wrong place differs by more. What 4 bits do to a model has no bound; perplexity tells."""

_READ = 1e-3
"""The same between our reading of a folder and its library's, both in float32."""

ExportedModel = tuple[Model, list[str]]


def export(cfg: ExportConfig) -> dict[str, Any]:
    """Returns {"path", "to", "dtype", "files", "bytes", "largest_difference", "same_token",
    "places", "perplexity_before", "perplexity_after", "notes"}. Raises UserError for what the form
    cannot hold, and leaves nothing behind then."""
    cfg.check()
    folder = find_model(cfg.model)
    out = Path(os.path.expanduser(cfg.out or f"{name_of(folder)}-{cfg.to}"))
    _need_free(out)
    backend = load_backend(cfg.backend, "cpu", "float32")
    if mlx_adapter.is_folder(folder):
        model = mlx_adapter.read(folder, backend)
    else:
        model = load_model(folder, backend, merge=False)
    if not supports_packing(model.cfg):
        raise UserError(
            f"a {model.cfg.model_type} model has one form here, its library's",
            where=str(folder),
            hint="take the folder as it is",
        )
    if cfg.data != ExportConfig.data and not _measures(model):
        raise UserError(
            "has no effect: the model gives a text no probability, and so no perplexity is measured",
            where="data",
            hint="leave it out",
        )
    _need_room(cfg, model, out)
    read = _as_the_library_reads(model, backend)
    with whole_folder(out.absolute(), replacing=False) as aside:
        back, notes = _FORMS[cfg.to](cfg, model, backend, aside, name_of(folder))
        text = prompt_of(back)  # whose context may be the shorter one
        distance = gap(logits(model, backend, text), logits(back, backend, text))
        _need_near(distance, cfg)
        perplexities = {}
        if cfg.rounds and _measures(model):
            perplexities = _perplexities(cfg, model, back, backend)
        files = _sizes(aside)
    return {
        "path": str(out),
        "to": cfg.to,
        "dtype": cfg.written_type,
        "files": list(files),
        "bytes": sum(files.values()),
        "largest_difference": distance.largest,
        "same_token": distance.same,
        "places": distance.places,
        **perplexities,
        "notes": [*notes, read],
    }


def _need_free(out: Path) -> None:
    """Raises UserError for a place where no new folder can stand."""
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise UserError("is there already", where=str(out), hint="give another --out")
    nearest = next(parent for parent in out.absolute().parents if parent.exists())
    if not nearest.is_dir():
        raise UserError("would stand below a file", where=str(out), hint="give another --out")


_BYTES = {"float32": 4.0, "f32": 4.0, "q8_0": 34 / 32}
"""That a number takes where it is not two; in q8_0 with its block's scale."""


def _need_room(cfg: ExportConfig, model: Model, out: Path) -> None:
    """Raises DiskFull where what is written has no room."""
    if model.adapter is not None and cfg.to in ("peft", "mlx-adapter"):
        needed = float(disk.space_of(model.folder))
    else:
        each = _BYTES.get(cfg.written_type, 2.0)
        if cfg.to == "mlx" and not cfg.dtype:
            each = cfg.bits / 8 + 4 / cfg.group_size
        needed = each * sum(math.prod(shape) for shape in shapes(model.cfg).values())
    disk.need_room(out, needed, f"the model as {cfg.to}")


def _sizes(folder: Path) -> dict[str, int]:
    """The files in a folder, by their paths in it, and their sizes."""
    sizes = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            sizes[str(path.relative_to(folder))] = path.stat().st_size
    return sizes


def render(result: Mapping[str, Any]) -> str:
    lines = [
        f"{result['path']}  {size(result['bytes'])}, {len(result['files'])} files",
        f"read back and compared on {result['places']} places of a fixed prompt: largest difference of a logit "
        f"{result['largest_difference']:.3g}, the likeliest is the same at {result['same_token']}",
    ]
    if "perplexity_before" in result:
        lines.append(
            f"perplexity: {result['perplexity_before']:.4g} before, {result['perplexity_after']:.4g} after"
        )
    lines += [f"note: {text}" for text in result["notes"]]
    return "\n".join(lines)


def name_of(folder: Path) -> str:
    """What a model's folder is called: of a stage's `model` its run and its stage."""
    parts = folder.resolve().parts
    name = parts[-1]
    if len(parts) > 3 and name == "model":
        name = "-".join(parts[-3:-1])
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model"


def _gguf(
    cfg: ExportConfig, model: Model, backend: Backend, aside: Path, name: str
) -> ExportedModel:
    _need("gguf", "export")
    model = _whole(model, backend)
    own = gguf_file.config_of(model.cfg, str(model.folder))
    words = words_of(model.tokenizer, own.vocab_size, str(model.folder))
    file = aside / f"{name}-{cfg.written_type.upper()}.gguf"
    kept = gguf_file.write(file, model, backend, words, cfg.written_type, name)
    context = gguf_file.context_of(own)
    text, with_template = modelfile(
        file.name, model.tokenizer, context, words.opens, model.generation
    )
    (aside / "Modelfile").write_text(text, encoding="utf-8")
    notes = [_splitting(words)]
    if context < own.max_position_embeddings:
        notes.append(
            f"llama.cpp knows no window in this family: the context is the window, {context} tokens"
        )
    if kept:
        notes.append(f"{kept} matrices stay float16: their rows are not a whole number of 32")
    if not with_template:
        notes.append(
            "the chat template could not be put into the Modelfile: Ollama looks for one that it knows"
        )
    elif model.tokenizer.chat_template is not None and trims(model.tokenizer):
        notes.append(
            "the chat template takes white space off the ends of messages: Ollama leaves it where it is"
        )
    return gguf_file.read(file, model, backend), notes


def _splitting(words: Words) -> str:
    """How llama.cpp splits text into words, and where that differs."""
    if not words.differs:
        return f"splits text as llama.cpp's {words.pre!r}"
    shown = "; ".join(sanitize(repr(t), newlines=False, limit=60) for t in words.differs)
    return (
        f"llama.cpp splits text by {words.pre!r}, which is nearest: other tokens, of the same text, "
        f"in {shown}"
    )


def _hf(cfg: ExportConfig, model: Model, backend: Backend, aside: Path, name: str) -> ExportedModel:
    whole = _whole(model, backend)
    write_model(
        aside,
        backend,
        whole.cfg,
        whole.params,
        whole.tokenizer,
        dtype=cfg.written_type,
        generation=model.generation,
    )
    for name_beside in _BESIDE:
        file = model.folder / name_beside
        if file.is_file():
            shutil.copyfile(file, aside / file.name)
    return load_model(aside, backend), []


def _mlx(
    cfg: ExportConfig, model: Model, backend: Backend, aside: Path, name: str
) -> ExportedModel:
    whole = model
    if model.adapter is not None:
        whole = _whole(model, backend)
    packed, dtype = quantised_model(whole, cfg.bits, cfg.group_size, backend)
    write(aside, backend, packed, dtype=dtype)
    kept = len(matrices(whole.cfg, every=True)) - len(quantised(packed.params))
    notes = []
    if kept:
        notes.append(
            f"{kept} matrices stay {dtype}: their rows are not a whole number of {cfg.group_size}"
        )
    scaling: Mapping[str, Any] = {}
    if isinstance(whole.cfg, DecoderConfig):
        scaling = whole.cfg.rope_scaling or {}
    if scaling.get("rope_type") == "longrope":
        notes.append(
            "mlx-lm takes the long factors of longrope for every text: short ones differ there"
        )
    return load_model(aside, backend), notes


def _peft(
    cfg: ExportConfig, model: Model, backend: Backend, aside: Path, name: str
) -> ExportedModel:
    if model.adapter is None:
        raise UserError(
            "is not an adapter", where=str(model.folder), hint="--to hf writes whole models"
        )
    write(aside, backend, model)
    return load_model(aside, backend, merge=False), [_needs_base(model)]


def _mlx_adapter(
    cfg: ExportConfig, model: Model, backend: Backend, aside: Path, name: str
) -> ExportedModel:
    mlx_adapter.write(aside, backend, model)
    return mlx_adapter.read(aside, backend), [_needs_base(model)]


def _needs_base(model: Model) -> str:
    assert model.adapter is not None
    return f"its base is {model.adapter.base}"


def _whole(model: Model, backend: Backend) -> Model:
    """The model without adapters beside its weights, and unpacked."""
    if model.adapter is not None or quantised(model.params):
        return merged(model, backend)
    return model


_FORMS: dict[str, Callable[[ExportConfig, Model, Backend, Path, str], ExportedModel]] = {
    "hf": _hf,
    "gguf": _gguf,
    "mlx": _mlx,
    "peft": _peft,
    "mlx-adapter": _mlx_adapter,
}


def _measures(model: Model) -> bool:
    """Whether a text as such has a probability under the model."""
    return is_generative(model.cfg) and model.network.decoder_start_token_id is None


def _perplexities(
    cfg: ExportConfig, model: Model, back: Model, backend: Backend
) -> dict[str, float]:
    corpus = corpus_of(cfg.data, CorpusConfig())
    if corpus is None:
        documents = plain_texts(cfg.data)
    else:
        documents = list(builtin_exam(corpus).documents)
    return {
        "perplexity_before": perplexity(model, backend, documents),
        "perplexity_after": perplexity(back, backend, documents),
    }


def _as_the_library_reads(model: Model, backend: Backend) -> str:
    """What is said of how transformers reads the model's folder, or its base's. Raises UserError
    where it computes something else: whatever were written would be another model."""
    base = model
    if model.adapter is not None:
        base = load_model(model.adapter.base, backend)
    folder = base.folder
    distance, why = with_library(folder, base.tokenizer, base, backend)
    if distance is None:
        return f"how the folder is read was not compared with transformers: {why}"
    if not distance.share <= _READ:
        raise UserError(
            f"is read here otherwise than transformers does, by {distance.largest:.3g} in a logit: nothing "
            "was written",
            where=str(folder),
            hint="please report it, with its config.json",
        )
    return f"the folder is read as transformers does: largest difference of a logit {distance.largest:.2g}"


def _need_near(distance: Gap, cfg: ExportConfig) -> None:
    """Raises UserError where what was written computes something else."""
    what = cfg.written_type or cfg.to
    limit = _LIMITS.get(what, math.inf)
    if not distance.share <= limit or distance.largest == math.inf:
        raise UserError(
            f"what was written differs by {distance.largest:.3g} in a logit, more than {what} explains: "
            "nothing was kept",
            where="dtype",
            hint="take a type with more bits",
        )


def _need(package: str, extra: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f"the package {package} is not installed", where="to", hint=install_hint(extra)
        )
