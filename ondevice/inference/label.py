"""Which class a text is of, by a classifier: of one text, and how often rightly where the class is
known.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ondevice.common.errors import UserError
from ondevice.common.intervals import wilson
from ondevice.config.corpus import CorpusConfig
from ondevice.config.evaluation import EvalConfig
from ondevice.config.use import LabelConfig
from ondevice.data.builtin.corpus import build
from ondevice.data.class_labels import LabelledText, same_classes
from ondevice.data.completion_batches import group_by_length, text_batch
from ondevice.data.formats import to_label
from ondevice.data.rows import Reading
from ondevice.data.truncation import cut_where
from ondevice.datasets.spec import check_rejected, convert_rows, corpus_of, open_rows
from ondevice.datasets.text_inputs import text_inputs
from ondevice.inference.chat import read_input
from ondevice.models.base_config import MULTI_LABEL, REGRESSION
from ondevice.models.load import load_for_use
from ondevice.models.model import Model
from ondevice.models.score_head import class_scores, names_of
from ondevice.runs.resolve import find_classifier
from ondevice.seam.ops import Array, Params
from ondevice.seam.protocols import Backend
from ondevice.seam.use_type import load_backend_for_use

ROWS = 32


def label(cfg: LabelConfig) -> dict[str, Any]:
    """{"label": the likeliest class, "classes": [{"label", "probability"}], likeliest first}. Names
    of classes are a folder's: make them inert before showing them. Raises UserError for a model
    that tells no classes apart, and for an empty text; one that is too long is cut, at its end
    unless the tokenizer says the beginning, and stderr says so."""
    cfg.check()
    text = read_input(lambda: cfg.text or sys.stdin.read())
    if not text.strip():
        raise UserError(
            "is empty", where="text", hint="write something after the model, or send it to stdin"
        )
    backend = load_backend_for_use(cfg.backend, cfg.device, cfg.dtype)
    model = need_classes(load_for_use(find_classifier(cfg.model), backend))
    pair = read_input(lambda: cfg.pair) or None
    [found] = probabilities(model, backend, [LabelledText(text, "", pair)])
    order: list[int] = np.argsort(-found, kind="stable")[: cfg.top].tolist()
    names = names_of(model)
    classes = [{"label": names[i], "probability": float(found[i])} for i in order]
    return {"label": names[order[0]], "classes": classes}


def render(found: Mapping[str, Any]) -> str:
    """The likeliest class, then all that were asked for with their probabilities."""
    lines = [found["label"]]
    for one in found["classes"]:
        lines.append(f"{one['probability']:6.1%}  {one['label']}")
    return "\n".join(lines)


def classified(cfg: EvalConfig, model: Model, backend: Backend) -> dict[str, Any]:
    """{"accuracy", "interval" (Wilson's 95 %), "texts", "most_frequent" (what its share alone would
    be right in), "by_class": {class: [right, texts]}, "unlabelled" (rows without a class),
    "read_as": {class of the rows: the model's name for it, where that is another}} of rows of text
    and label. Raises UserError for data without them, for a class that the model does not know, and
    for a model that gives one text several classes."""
    names = names_of(need_classes(model))
    if model.cfg.problem_type == MULTI_LABEL:
        raise UserError(
            "gives a text several classes: a share of texts with the right one says nothing of it",
            where=str(model.folder),
            hint="ondevice label tells each class's probability",
        )
    rows, unlabelled = _rows(cfg)
    labels = [row.label for row in rows]
    known = same_classes(names, labels)
    if known is None:
        unknown = sorted(set(labels) - set(names))
        shown = list(names[:8])
        if len(names) > 8:
            shown.append("…")
        raise UserError(
            f"has the class {unknown[0]!r}, which the model does not know",
            where=cfg.data,
            hint=f"known: {', '.join(shown)}",
        )
    guessed = probabilities(model, backend, rows).argmax(-1)
    counts = {name: [0, 0] for name in names}
    right = 0
    for label, guess in zip(labels, guessed, strict=True):
        name = known[label]
        hit = names[int(guess)] == name
        right += hit
        counts[name][0] += hit
        counts[name][1] += 1
    share = wilson(right, len(rows))
    most_frequent = Counter(labels).most_common(1)[0][1]
    found: dict[str, Any] = {
        "accuracy": share.share,
        "interval": [share.low, share.high],
        "texts": len(rows),
        "most_frequent": most_frequent / len(rows),
        "by_class": {name: counted for name, counted in counts.items() if counted[1]},
    }
    if unlabelled:
        found["unlabelled"] = unlabelled
    read_as = {label: name for label, name in known.items() if label != name}
    if read_as:
        found["read_as"] = read_as
    return found


def _rows(cfg: EvalConfig) -> tuple[list[LabelledText], int]:
    """(those of the file, or the held-out requests of the built-in corpus and what kind of task
    each is; how many have no class)."""
    corpus = corpus_of(cfg.data, CorpusConfig())
    if corpus is not None:
        return _builtin_rows(cfg, corpus), 0
    rows = open_rows(cfg.data, cfg.limit, "test", Reading.of(cfg))
    convert = partial(to_label, text=cfg.text, label=cfg.label, pair=cfg.pair)
    found = [row for _, row in convert_rows(rows, convert)]
    check_rejected(rows)
    if not found:
        raise UserError(
            "no row to learn from or to judge by", where=cfg.data, hint="rows of text and label"
        )
    return found, rows.unlabelled


def _builtin_rows(cfg: EvalConfig, corpus: CorpusConfig) -> list[LabelledText]:
    if cfg.pair:
        raise UserError("the built-in corpus has no second text", where="pair", hint="leave it out")
    rows = []
    for chat in islice(build(corpus).chats("heldout"), cfg.limit or None):
        rows.append(LabelledText(chat["messages"][0]["content"], chat["kind"]))
    return rows


def need_classes(model: Model) -> Model:
    """Raises UserError for a model that tells no classes apart."""
    if model.cfg.problem_type == REGRESSION:
        raise UserError(
            "gives numbers, not classes",
            where=str(model.folder),
            hint="its problem_type is regression: take a classifier",
        )
    if model.cfg.num_labels < 2:
        raise UserError(
            "tells no classes apart",
            where=str(model.folder),
            hint="ondevice classify makes one that does",
        )
    return model


def probabilities(
    model: Model, backend: Backend, texts: Sequence[LabelledText]
) -> NDArray[np.float32]:
    """(texts, classes), each text's together 1; of a model that gives one text several classes each
    by itself, as transformers' pipeline has them."""
    network = model.network
    ops = backend.ops
    width = model.cfg.max_position_embeddings
    ids, types, cut = text_inputs(texts, model, width)
    if cut:
        print(
            f"{cut} of {len(texts)} texts are cut {cut_where(model.tokenizer)}, to {width} tokens",
            file=sys.stderr,
        )

    def fn(params: Params, batch: Mapping[str, Array]) -> Array:
        hidden = network.hidden(ops, params, batch, at=batch["read"])
        scores = class_scores(ops, params, network, hidden)
        if model.cfg.problem_type == MULTI_LABEL:
            return 0.5 + 0.5 * ops.tanh(0.5 * scores)  # the sigmoid
        return ops.softmax(scores, -1)

    run = backend.inference_fn(fn, compile="never" if len(texts) == 1 else "auto")
    out = np.zeros((len(texts), model.cfg.num_labels), np.float32)
    batches = list(group_by_length([len(row) for row in ids], ROWS))

    def of_batch(places: NDArray[np.int64]) -> list[list[float]]:
        if types is None:
            of_texts = None
        else:
            of_texts = [types[i] for i in places]
        batch = text_batch([ids[i] for i in places], len(places), network.pooling, of_texts)
        found = backend.numpy(run(model.params, model.with_tables(backend, batch)))
        return found.astype(np.float32).tolist()  # type: ignore[no-any-return]

    for places, found in zip(batches, backend.group.spread(batches, of_batch), strict=True):
        out[places] = found
    return out
