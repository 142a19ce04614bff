"""Which class a text is of, by a classifier: of one text, and how often rightly where the class is known."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ondevice.backend import Array, Backend, Params, load_backend
from ondevice.config.corpus import CorpusConfig
from ondevice.config.use import EvalConfig, LabelConfig
from ondevice.data.builtin import build
from ondevice.data.completions import like_lengths, text_batch
from ondevice.data.formats import BadRow, to_label
from ondevice.data.readers import read
from ondevice.data.truncation import truncated
from ondevice.errors import UserError
from ondevice.models.folder import Model, load_model
from ondevice.models.heads import class_scores
from ondevice.rating_stats import wilson
from ondevice.stages.classify import text_ids
from ondevice.stages.wanted import corpus_of
from ondevice.talk import find_classifier, given

ROWS = 32


def label(cfg: LabelConfig) -> dict[str, Any]:
    """{"label": the likeliest class, "classes": [{"label", "probability"}], likeliest first}. Names of classes are a
    folder's: make them inert before showing them. Raises UserError for a model that tells no classes apart, and for an
    empty text; one that is too long is cut at its end."""
    cfg.check()
    text = given(lambda: cfg.text or sys.stdin.read())
    if not text.strip():
        raise UserError("is empty", where="text", hint="write something after the model, or send it to stdin")
    backend = load_backend(cfg.backend, cfg.device, cfg.dtype)
    model = need_classes(load_model(find_classifier(cfg.model), backend))
    found = probabilities(model, backend, [text])[0]
    order = np.argsort(-found, kind="stable")[:cfg.top]
    names = names_of(model)
    return {"label": names[int(order[0])],
            "classes": [{"label": names[int(i)], "probability": float(found[i])} for i in order]}


def render(found: Mapping[str, Any]) -> str:
    """The likeliest class, then all that were asked for with their probabilities."""
    return "\n".join([found["label"], *(f"{one['probability']:6.1%}  {one['label']}" for one in found["classes"])])


def classified(cfg: EvalConfig, model: Model, backend: Backend) -> dict[str, Any]:
    """{"accuracy", "interval" (Wilson's 95 %), "texts", "most_frequent" (what its share alone would be right in),
    "by_class": {class: [right, texts]}} of rows of text and label. Raises UserError for data without them, or a class
    that the model does not know."""
    names = names_of(need_classes(model))
    rows = _rows(cfg)
    if unknown := {name for _, name in rows} - set(names):
        raise UserError(f"has the class {min(unknown)!r}, which the model does not know", where=cfg.data,
                        hint=f"known: {', '.join(names[:8])}{', …' * (len(names) > 8)}")
    guessed = probabilities(model, backend, [text for text, _ in rows]).argmax(-1)
    by_class = {name: [0, 0] for name in names}
    for (_, name), guess in zip(rows, guessed, strict=True):
        by_class[name][0] += names[int(guess)] == name
        by_class[name][1] += 1
    share = wilson(sum(right for right, _ in by_class.values()), len(rows))
    return {"accuracy": share.share, "interval": [share.low, share.high], "texts": len(rows),
            "most_frequent": Counter(name for _, name in rows).most_common(1)[0][1] / len(rows),
            "by_class": {name: counts for name, counts in by_class.items() if counts[1]}}


def _rows(cfg: EvalConfig) -> list[tuple[str, str]]:
    """Those of the file, or the held-out requests of the built-in corpus and what kind of task each is."""
    corpus = corpus_of(cfg.data, CorpusConfig())
    if corpus is not None:
        held = islice(build(corpus).chats("heldout"), cfg.limit or None)
        return [(chat["messages"][0]["content"], chat["kind"]) for chat in held]
    found = []
    for row, where in islice(read(cfg.data), cfg.limit or None):
        try:
            found.append(to_label(row, cfg.text, cfg.label))
        except BadRow as error:
            raise UserError(str(error), where=where) from error
    if not found:
        raise UserError("no row to learn from or to judge by", where=cfg.data, hint="rows of text and label")
    return found


def need_classes(model: Model) -> Model:
    """Raises UserError for a model that tells no classes apart."""
    if model.cfg.num_labels < 2:
        raise UserError("tells no classes apart", where=str(model.folder), hint="ondevice classify makes one that does")
    return model


def names_of(model: Model) -> tuple[str, ...]:
    return model.cfg.label_names or tuple(map(str, range(model.cfg.num_labels)))


def probabilities(model: Model, backend: Backend, texts: Sequence[str]) -> NDArray[np.float32]:
    """(texts, classes)."""
    network, ops, width = model.network, backend.ops, model.cfg.max_position_embeddings
    whole = [truncated(ids, width, model.tokenizer) for ids in text_ids(texts, model.tokenizer, network.reads)]

    def fn(params: Params, batch: Mapping[str, Array]) -> Array:
        return ops.softmax(class_scores(ops, params, network, network.hidden(ops, params, batch, at=batch["read"])), -1)
    run = backend.evaluate(fn, compile="never" if len(texts) == 1 else "auto")
    out = np.zeros((len(texts), model.cfg.num_labels), np.float32)
    for group in like_lengths([len(ids) for ids in whole], ROWS):
        batch = text_batch([whole[i] for i in group], len(group), network.reads)
        out[group] = backend.numpy(run(model.params, batch))
    return out
