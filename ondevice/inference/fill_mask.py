"""Guessing what is hidden in a text: the likeliest tokens at each mask of an encoder's, with their
probabilities; what an encoder-decoder writes there is found in `inference/infill.py`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ondevice.common.errors import UserError
from ondevice.config.use import FillConfig
from ondevice.data.completion_batches import text_batch
from ondevice.data.tokenizer import Tokenizer
from ondevice.inference.chat import read_input
from ondevice.inference.infill import WRITTEN, fill_gaps, parts_around
from ondevice.models.load import load_for_use
from ondevice.models.model import Model
from ondevice.models.network import is_masked_lm, objective
from ondevice.runs.resolve import find_model
from ondevice.seam.ops import Array, Params
from ondevice.seam.protocols import Backend
from ondevice.seam.use_type import load_backend_for_use


def fill(cfg: FillConfig) -> dict[str, Any]:
    """{"text": with the likeliest tokens put in, "masks": for each the candidates [{"token",
    "probability"}]}; a token of an encoder-decoder's may be several, or none. They are a model's:
    make them inert before showing them. Raises UserError for a model that fills no masks, a text
    without one, or one that is too long."""
    cfg.check()
    text = read_input(lambda: cfg.text or sys.stdin.read())
    backend = load_backend_for_use(cfg.backend, cfg.device, cfg.dtype)
    model = load_for_use(find_model(cfg.model), backend)
    if not is_masked_lm(model.cfg) and objective(model.cfg) not in ("spans", "infilling"):
        raise UserError(
            "fills no masks",
            where=str(model.folder),
            hint="take an encoder's or an encoder-decoder's folder of init or pretrain",
        )
    if len(parts_around(text, model.tokenizer)) == 1:
        raise UserError(
            "hides nothing", where="text", hint=f'write {WRITTEN}, as in "The {WRITTEN} bird"'
        )
    if not is_masked_lm(model.cfg):
        return fill_gaps(model, backend, text, cfg.top)
    ids = mask_ids(text, model.tokenizer)
    if len(ids) > model.cfg.max_position_embeddings:
        raise UserError(
            f"has {len(ids)} tokens, the model's context holds {model.cfg.max_position_embeddings}",
            where="text",
            hint="shorten it",
        )
    [probabilities] = guesses(model, model.params, backend, [ids])
    best = np.argsort(-probabilities, -1, kind="stable")[:, : cfg.top]
    masks = []
    for row, top in zip(probabilities, best, strict=True):
        candidates = []
        for i in top:
            token = model.tokenizer.decode([i], skip_special=False)
            candidates.append({"token": token, "probability": float(row[i])})
        masks.append(candidates)
    return {"text": filled(ids, best[:, 0], model.tokenizer), "masks": masks}


def render(found: Mapping[str, Any]) -> str:
    """The text with the likeliest tokens, then a line of candidates a mask."""
    lines = [found["text"]]
    for number, candidates in enumerate(found["masks"], 1):
        words = []
        for one in candidates:
            token = one["token"].strip() or repr(one["token"])
            words.append(f"{token} {one['probability']:.1%}")
        shown = ", ".join(words) or "the text around it was written otherwise"
        lines.append(f"{WRITTEN} {number}: {shown}")
    return "\n".join(lines)


def mask_ids(text: str, tokenizer: Tokenizer) -> list[int]:
    """The text between the tokens that open and close one. Raises UserError for a tokenizer without
    a mask.
    """
    if tokenizer.mask_id is None:
        raise UserError(
            "the tokenizer has no mask token", where="tokenizer_config.json", hint="give mask_token"
        )
    ids = [tokenizer.cls_id]
    for number, part in enumerate(parts_around(text, tokenizer)):
        if number > 0:
            ids.append(tokenizer.mask_id)
        ids += tokenizer.encode(part)
    return [*ids, tokenizer.sep_id]


def guesses(
    model: Model, params: Params, backend: Backend, texts: Sequence[Sequence[int]]
) -> list[NDArray[np.float32]]:
    """(masks, V) probabilities for each text's masks; special tokens are no guesses."""
    network = model.network
    ops = backend.ops
    batch = text_batch(texts, len(texts), "first")
    index = np.flatnonzero(batch["ids"] == model.tokenizer.mask_id).astype(np.int32)

    def probabilities(params: Params, batch: Mapping[str, Array], index: Array) -> Array:
        hidden = network.hidden(ops, params, batch, at=index)
        z = network.head.logits(ops, params, hidden)
        return ops.softmax(z[:, : model.tokenizer.vocab_size], -1)

    run = backend.inference_fn(probabilities, compile="never")
    found = backend.numpy(run(params, batch, index)).copy()
    found[:, model.tokenizer.is_special] = 0
    row_of = index // batch["ids"].shape[1]
    return [found[row_of == r] for r in range(len(texts))]


def filled(ids: Sequence[int], tokens: NDArray[np.integer[Any]], tokenizer: Tokenizer) -> str:
    """The text with `tokens` in place of its masks."""
    whole = np.array(ids)
    whole[whole == tokenizer.mask_id] = tokens
    return tokenizer.decode(whole.tolist())


def fill_all(model: Model, params: Params, backend: Backend, texts: Sequence[str]) -> list[str]:
    """Each text with the likeliest token at each of its masks; as it is where it has none or is too
    long.
    """
    able: dict[int, list[int]] = {}
    for n, text in enumerate(texts):
        ids = mask_ids(text, model.tokenizer)
        if model.tokenizer.mask_id in ids and len(ids) <= model.cfg.max_position_embeddings:
            able[n] = ids
    done = list(texts)
    if not able:
        return done
    found = guesses(model, params, backend, list(able.values()))
    for (n, ids), probabilities in zip(able.items(), found, strict=True):
        done[n] = filled(ids, probabilities.argmax(-1), model.tokenizer)
    return done
