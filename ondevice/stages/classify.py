"""Fine-tuning to tell texts apart: a body, pre-trained, under a new head of one score a class; saved as
…ForSequenceClassification with the names of the classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ondevice.config.stages import ClassifyConfig
from ondevice.context import Context, Made
from ondevice.data import packing
from ondevice.data.completions import text_batch
from ondevice.data.packing import Batch
from ondevice.data.sources import RowSource
from ondevice.data.tokenizer import Tokenizer
from ondevice.data.truncation import cut_where, truncated
from ondevice.errors import UserError
from ondevice.loop import fit, held_out_figures
from ondevice.losses import classification_loss
from ondevice.models.folder import Model, load_model
from ondevice.models.heads import with_head
from ondevice.rating_stats import wilson
from ondevice.stages import material
from ondevice.stages.wanted import Wanted


def run(cfg: ClassifyConfig, ctx: Context) -> Made:
    body = load_model(cfg.model, ctx.backend, body=True)
    if cfg.sequence_length > body.cfg.max_position_embeddings:
        raise UserError(f"the model's context holds {body.cfg.max_position_embeddings} tokens",
                        where="sequence_length", hint="give as many or fewer")
    found = material.labelled(Wanted.of(cfg), cfg.text, cfg.label, ctx)
    names = tuple(sorted({name for _, name in found.train}))
    if len(names) < 2:
        raise UserError(f"all rows are of the class {names[0]!r}", where=cfg.data, hint="give rows of two or more")
    model = with_head(body, ctx.backend, cfg.seed, len(names), names)
    rows = partial(LabelledSource, model=model, names=names, width=cfg.sequence_length, batch_size=cfg.batch_size,
                   seed=cfg.seed)
    source, held = rows(found.train, accumulate=cfg.accumulate), rows(found.held)
    if source.cut + held.cut:
        ctx.warn(f"{source.cut + held.cut} texts are cut {cut_where(body.tokenizer)}, to {cfg.sequence_length} tokens")
    ctx.events.emit("data", texts=len(found.train), held_texts=len(found.held), classes=len(names), cut=source.cut)
    ctx.say(f"{ctx.name}: {len(found.train):,} texts of {len(names)} classes to learn from, {len(found.held):,} held "
            "out")
    loss = partial(classification_loss, model=model.network, checkpoint=cfg.checkpointing)
    params = fit(model, loss, source, held, ctx, cfg)
    everything = held_out_figures(loss, Whole(held), ctx, cfg)(params)
    right = round(everything["accuracy"] * len(found.held))
    share = wilson(right, len(found.held))
    likeliest = Counter(name for _, name in found.held).most_common(1)[0][1] / len(found.held)
    return Made(model.with_params(params), {"classes": {
        "accuracy": share.share, "low": share.low, "high": share.high, "texts": len(found.held), "names": list(names),
        "most_frequent": likeliest}})


class LabelledSource(RowSource):
    """Texts with their classes in an order of their own each epoch. `cut`: how many were longer than `width`."""

    def __init__(self, rows: Sequence[tuple[str, str]], *, model: Model, names: Sequence[str], width: int,
                 batch_size: int, seed: int, accumulate: int = 1) -> None:
        self.reads, number = model.network.reads, {name: n for n, name in enumerate(names)}
        whole = text_ids([text for text, _ in rows], model.tokenizer, self.reads)
        self.cut = sum(len(ids) > width for ids in whole)
        self._texts = [truncated(ids, width, model.tokenizer) for ids in whole]
        self._classes = np.array([number[name] for _, name in rows], np.int32)
        super().__init__(len(rows), batch_size, accumulate, seed, "labelled")

    def _collate(self, group: list[tuple[int, int]]) -> Batch:
        chosen = [row for _, row in group]
        batch = text_batch([self._texts[i] for i in chosen], self.batch_size, self.reads)
        batch |= packing.pad_targets(self._classes[chosen], batch["read"][:len(chosen)], self.batch_size)
        del batch["index"]  # a text is read at `read`
        return batch


class Whole:
    """All of a source's rows, whatever the limit."""

    def __init__(self, source: LabelledSource) -> None:
        self.eval_batches = lambda limit: source.eval_batches(None)


def text_ids(texts: Sequence[str], tokenizer: Tokenizer, reads: str) -> list[NDArray[np.int32]]:
    """Texts as they are judged: between the tokens that open and close one for who reads the `first` token, closed by
    the end token for who reads the `last`."""
    opening = [tokenizer.cls_id] if reads == "first" else []
    closing = [tokenizer.sep_id if reads == "first" else tokenizer.eos_id]
    return [np.array([*opening, *ids, *closing], np.int32) for ids in tokenizer.encode_batch(texts)]
