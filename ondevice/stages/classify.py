"""Fine-tuning to tell texts apart: a body, pre-trained, under a new head of one score a class;
saved as …ForSequenceClassification with the names of the classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from ondevice.common.errors import UserError
from ondevice.common.intervals import wilson
from ondevice.config.finetuning import ClassifyConfig
from ondevice.data import packing
from ondevice.data.batches import RowSource
from ondevice.data.class_labels import (
    LabelledText,
    in_order,
    is_integer,
    missing_numbers,
    same_classes,
)
from ondevice.data.completion_batches import text_batch
from ondevice.data.mixture import is_generated
from ondevice.data.packing import Batch
from ondevice.data.truncation import cut_where
from ondevice.datasets import text_and_chats
from ondevice.datasets.objectives import check_length
from ondevice.datasets.spec import DataSpec
from ondevice.datasets.text_inputs import text_inputs
from ondevice.models.base_config import MULTI_LABEL
from ondevice.models.compute_type import cast_once
from ondevice.models.load import load_model
from ondevice.models.model import Model
from ondevice.models.score_head import names_of, need_scores, with_head
from ondevice.runs.context import Context, StageResult
from ondevice.seam.ops import Params
from ondevice.seam.protocols import Backend
from ondevice.stages.settled import settle
from ondevice.training.defaults import DataFacts
from ondevice.training.heldout_metrics import heldout_metrics
from ondevice.training.loop import fit
from ondevice.training.losses import classification_loss


def run(cfg: ClassifyConfig, ctx: Context) -> StageResult:
    model = load_model(cfg.model, ctx.backend, backbone_only=True)
    need_scores(model)
    check_length(cfg, model, model.cfg.max_position_embeddings)
    texts = text_and_chats.labelled_texts(DataSpec.of(cfg), cfg.text, cfg.label, ctx.data, cfg.pair)
    model, numbers = _numbered(model, texts.train, cfg, ctx)
    names = names_of(model)
    cfg = settle(cfg, model, partial(facts, cfg, model, texts.train), ctx)
    rows = partial(
        LabelledSource,
        model=model,
        numbers=numbers,
        width=cfg.sequence_length,
        batch_size=cfg.batch_size,
        seed=cfg.seed,
    )
    source, heldout = rows(texts.train), rows(texts.held)
    if source.cut + heldout.cut:
        ctx.warn(
            f"{source.cut + heldout.cut} texts are cut {cut_where(model.tokenizer)}, to {cfg.sequence_length} tokens"
        )
    ctx.events.emit(
        "data",
        texts=len(texts.train),
        held_texts=len(texts.held),
        classes=len(names),
        cut=source.cut,
    )
    ctx.tell(
        f"{len(texts.train):,} texts of {len(names)} classes to learn from, {len(texts.held):,} held "
        "out"
    )
    loss = partial(classification_loss, model=model.network, checkpoint=cfg.checkpointing)
    params = fit(
        model,
        loss,
        source,
        heldout_metrics(model.network, loss, heldout, ctx, cfg, "texts"),
        ctx,
        cfg,
        restart=lambda: _start_params(cfg, in_order(numbers), ctx.backend),
    )
    measure = heldout_metrics(model.network, loss, Whole(heldout), ctx, cfg)
    everything = measure(cast_once(model, params, ctx.backend))
    right = round(everything["accuracy"] * len(texts.held))
    share = wilson(right, len(texts.held))
    likeliest = Counter(row.label for row in texts.held).most_common(1)[0][1] / len(texts.held)
    return StageResult(
        model.with_params(params),
        {
            "classes": {
                "accuracy": share.share,
                "low": share.low,
                "high": share.high,
                "texts": len(texts.held),
                "names": list(names),
                "most_frequent": likeliest,
            }
        },
    )


def facts(cfg: ClassifyConfig, model: Model, rows: Sequence[LabelledText]) -> DataFacts:
    """What of the texts to learn from the settings follow from."""
    inputs = text_inputs(rows, model, model.cfg.max_position_embeddings)
    lengths = np.array([len(ids) for ids in inputs.ids], np.int64)
    return DataFacts(lengths, "texts", builtin=is_generated(cfg.data))


def _start_params(cfg: ClassifyConfig, classes: tuple[str, ...], backend: Backend) -> Params:
    """The parameters that the stage begins from."""
    body = load_model(cfg.model, backend, backbone_only=True)
    if _why_new_head(body, classes) is None:
        return body.params
    return with_head(body, backend, cfg.seed, len(classes), classes).params


def _numbered(
    body: Model, rows: Sequence[LabelledText], cfg: ClassifyConfig, ctx: Context
) -> tuple[Model, dict[str, int]]:
    """(the model that is trained, the number of its score for each class of the rows). Raises
    UserError where all rows are of one class."""
    if len(there := {row.label for row in rows}) < 2:
        raise UserError(
            f"all rows are of the class {min(there)!r}",
            where=cfg.data,
            hint="give rows of two or more",
        )
    names = in_order(row.label for row in rows)
    if missing := missing_numbers(names):
        ctx.tell(
            f"no row is of the class {missing[0]}: the score of number {missing[0]} is that of the "
            f"class {names[missing[0]]}, as the model's config.json says"
        )
    model = with_classes(body, names, cfg.seed, ctx)
    known = same_classes(names_of(model), names)
    assert known is not None  # the model's head was made or chosen for them
    return model, {label: names_of(model).index(name) for label, name in known.items()}


def with_classes(body: Model, names: tuple[str, ...], seed: int, ctx: Context) -> Model:
    """The body under its own head, where that tells these very classes apart, else under a new one;
    what becomes of a head that is there is said."""
    why = _why_new_head(body, names)
    if why is not None:
        if why:
            ctx.warn(f"a new head takes the place of that of {body.folder}: {why}")
        return with_head(body, ctx.backend, seed, len(names), names)
    same = same_classes(names_of(body), names)
    assert same is not None
    if not body.cfg.label_names and not all(map(is_integer, names)):
        # it has numbers, the data names for them
        named = {number: name for name, number in same.items()}
        body = replace(
            body, cfg=replace(body.cfg, label_names=tuple(named[one] for one in names_of(body)))
        )
    ctx.tell(
        f"the head of {body.folder} goes on, its classes in its order: {_listed(names_of(body))}"
    )
    return body


def _why_new_head(body: Model, names: tuple[str, ...]) -> str | None:
    """Why the body gets a new head, empty where it has none of classes; None: its own goes on."""
    if not body.cfg.num_labels:
        return ""
    if body.cfg.num_labels == 1:
        return "it is a reward model"
    if body.cfg.problem_type == MULTI_LABEL:
        return "it gives one text several classes"
    if len(names) == len(names_of(body)) and same_classes(names_of(body), names):
        return None
    return f"it tells {_listed(names_of(body))} apart, the data {_listed(names)}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + ", …" * (len(names) > 8)


class LabelledSource(RowSource):
    """Texts with their classes in an order of their own each epoch. `cut`: how many were longer
    than `width`.
    """

    def __init__(
        self,
        rows: Sequence[LabelledText],
        *,
        model: Model,
        numbers: Mapping[str, int],
        width: int,
        batch_size: int,
        seed: int,
    ) -> None:
        self.reads = model.network.pooling
        self._texts, self._types, self.cut = text_inputs(rows, model, width)
        self._classes = np.array([numbers[row.label] for row in rows], np.int32)
        super().__init__(len(rows), batch_size, seed, "labelled")

    def _collate(self, group: list[tuple[int, int]], size: int) -> Batch:
        chosen = [row for _, row in group]
        if self._types is None:
            types = None
        else:
            types = [self._types[i] for i in chosen]
        batch = text_batch([self._texts[i] for i in chosen], size, self.reads, types)
        batch |= packing.pad_targets(self._classes[chosen], batch["read"][: len(chosen)], size)
        del batch["index"]  # a text is read at `read`
        return batch


class Whole:
    """All of a source's rows, whatever the limit."""

    def __init__(self, source: LabelledSource) -> None:
        self.eval_batches = lambda limit, micro_batch=None: source.eval_batches(None, micro_batch)
