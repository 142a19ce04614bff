"""A head that a config says is tied, beside one of its own in the file: transformers' logits, never
the table's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import library_models
import models
from data_samples import small_tokenizer
from ondevice.common.errors import UserError
from ondevice.models.load import load_model
from ondevice.models.save import write
from ondevice.models.shapes import shapes
from ondevice.models.state_dict import to_file
from ondevice.seam.protocols import Backend
from ondevice.seam.select import load_backend

IDS = np.random.default_rng(0).integers(3, 90, (2, 24)).astype(np.int32)
TIED = {
    "llama-gqa-tied": "lm_head.weight",
    "gemma3": "lm_head.weight",
    "gpt2": "lm_head.weight",
    "bert": "cls.predictions.decoder.weight",
    "modernbert": "decoder.weight",
    "t5": "lm_head.weight",
}


def config(family: str) -> Any:
    make = (
        models.config
        if family in models.FAMILIES
        else (models.encoder_config if family in models.ENCODERS else models.seq2seq_config)
    )
    return make(family, vocab_size=small_tokenizer().vocab_size)


def folder_with(
    folder: Path, family: str, backend: Backend, head: Any, **more: Any
) -> tuple[Path, str]:
    """A tied model's folder, whose file holds the head `head` makes of the table too, and further
    tensors.
    """
    cfg = config(family)
    params = {n: backend.array(w) for n, w in models.weights(cfg).items()}
    table = next(iter(shapes(cfg)))
    found = to_file(params)
    if family == "gpt2":  # as transformers writes it where a head stands beside
        found = {f"transformer.{n}": p for n, p in found.items()}
    folder.mkdir()
    backend.save(
        folder / "model.safetensors",
        {
            **found,
            **more,
            TIED.get(family, "lm_head.weight"): backend.array(
                np.ascontiguousarray(head(backend.numpy(params[table])))
            ),
        },
        {},
    )
    (folder / "config.json").write_text(json.dumps(cfg.to_json()))
    small_tokenizer().save(folder)
    return folder, table


def logits(model: Any, backend: Backend) -> np.ndarray:
    positions = np.tile(np.arange(IDS.shape[1], dtype=np.int32), (2, 1))
    batch = {"ids": IDS, "positions": positions, "segments": np.ones_like(IDS)}
    if hasattr(model.cfg, "decoder_start_token_id"):
        batch = {
            "ids": IDS,
            "positions": positions,
            "source_ids": IDS,
            "source_lengths": np.full(2, 24, np.int32),
        }
    elif not hasattr(model.cfg, "type_vocab_size"):
        batch.pop("segments")
    ops = backend.ops
    hidden = model.network.hidden(
        ops, model.params, {n: backend.array(x) for n, x in batch.items()}
    )
    return np.array(backend.numpy(model.network.head.logits(ops, model.params, hidden)))


def theirs(folder: Path) -> np.ndarray:
    import torch
    import transformers

    kind = json.loads((folder / "config.json").read_text())["architectures"][0]
    made = getattr(transformers, kind).from_pretrained(folder, attn_implementation="eager").eval()
    ids = torch.tensor(IDS).long()
    with torch.no_grad():
        return np.array(
            (
                made(input_ids=ids, decoder_input_ids=ids) if "T5" in kind else made(input_ids=ids)
            ).logits.numpy()
        )


@pytest.mark.parametrize("family", TIED)
def test_another_head_is_the_head(family: str, backend: Backend, tmp_path: Path) -> None:
    """And still is in what is written."""
    pytest.importorskip("transformers")
    folder, table = folder_with(tmp_path / "model", family, backend, lambda w: w[::-1] * 0.7)
    model = load_model(folder, backend)
    assert not model.cfg.tie_word_embeddings  # type: ignore[union-attr]
    got = logits(model, backend)
    np.testing.assert_allclose(got, theirs(folder), rtol=1e-4, atol=1e-4)
    (tmp_path / "again").mkdir()
    write(tmp_path / "again", backend, model)
    assert np.array_equal(logits(load_model(tmp_path / "again", backend), backend), got)
    np.testing.assert_allclose(theirs(tmp_path / "again"), got, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", TIED)
def test_a_copy_of_the_table_is_no_head(family: str, backend: Backend, tmp_path: Path) -> None:
    folder, _ = folder_with(tmp_path / "model", family, backend, lambda w: w)
    model = load_model(folder, backend)
    assert model.cfg.tie_word_embeddings and TIED[family] not in model.params  # type: ignore[union-attr]


def test_another_bias_of_a_tied_berts_head_counts(backend: Backend, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    bias = np.random.default_rng(1).standard_normal(small_tokenizer().vocab_size).astype(np.float32)
    folder, _ = folder_with(
        tmp_path / "model",
        "bert",
        backend,
        lambda w: w,
        **{"cls.predictions.decoder.bias": backend.array(bias)},
    )
    np.testing.assert_allclose(
        logits(load_model(folder, backend), backend), theirs(folder), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("t5", "encoder.embed_tokens.weight"),
        ("bart", "model.decoder.embed_tokens.weight"),
        ("bart", "lm_head.weight"),
    ],
)
def test_tables_that_are_one_in_every_model_of_a_family(
    family: str, name: str, tmp_path: Path
) -> None:
    backend = load_backend("torch", device="cpu", dtype="float32")
    cfg = config(family)
    table = models.weights(cfg)[next(iter(shapes(cfg)))]
    folder, _ = folder_with(
        tmp_path / "model", family, backend, lambda w: w, **{name: backend.array(table * 2)}
    )
    if name == "lm_head.weight":  # the same name that holds the copy
        params = backend.load(folder / "model.safetensors", None)
        backend.save(folder / "model.safetensors", {**params, name: backend.array(table * 2)}, {})
    with pytest.raises(UserError, match="are two in the file"):
        load_model(folder, backend)


@pytest.mark.slow
def test_a_librarys_model_keeps_its_head_or_is_refused(tmp_path: Path) -> None:
    """transformers unties it; mlx-lm would drop it without a word."""
    pytest.importorskip("transformers")
    torch, mlx = (load_backend(name, device="cpu", dtype="float32") for name in ("torch", "mlx"))
    folder = library_models.write(tmp_path / "model", "both")
    held = torch.load(folder / "model.safetensors")
    table = held["model.embed_tokens.weight"]
    for head, fits in ((table * 1, True), (table * 2, False)):
        torch.save(folder / "model.safetensors", {**held, "lm_head.weight": head}, {})
        found = logits(load_model(folder, torch), torch)
        np.testing.assert_allclose(found, theirs(folder), rtol=1e-3, atol=1e-3)
        if fits:
            load_model(folder, mlx)
        else:
            with pytest.raises(UserError, match="a head apart from its embeddings"):
                load_model(folder, mlx)
