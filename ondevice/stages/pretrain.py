"""Stage 1: a model learns from plain text, packed into rows: to predict the next token (a decoder),
to guess from both sides what is hidden (an encoder), or to write what is hidden or the text as it
was (an encoder-decoder)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ondevice.common.errors import UserError
from ondevice.config.stages import PretrainConfig
from ondevice.data.batches import TextSource
from ondevice.data.context import DataContext
from ondevice.data.documents import document_lengths
from ondevice.data.mixture import is_generated
from ondevice.datasets import text_and_chats
from ondevice.datasets.objectives import check_length, most_of, source_of
from ondevice.datasets.spec import DataSpec
from ondevice.inference.fixed_prompts import CONTINUED, Offered, encode_prompt, sampler
from ondevice.models.load import load_model
from ondevice.models.model import Model
from ondevice.models.network import objective, supports_packing
from ondevice.runs.context import Context
from ondevice.seam.protocols import Backend
from ondevice.stages.settled import settle
from ondevice.stages.summary import bytes_per_token
from ondevice.training.defaults import DataFacts
from ondevice.training.heldout_metrics import heldout_metrics
from ondevice.training.loop import fit
from ondevice.training.losses import causal_lm_loss

_LOOKED_AT = 1 << 14  # held-out tokens in which documents begin that are to be continued
_BEGINNING = 12  # tokens of these


def run(cfg: PretrainConfig, ctx: Context) -> Model:
    model = start_model(cfg, ctx.backend)
    found = read(cfg, model, ctx.data)
    cfg = settle(cfg, model, partial(facts, cfg, model, found), ctx)
    data = sources(cfg, model, found, ctx.data)
    sizes: dict[str, Any] = {}
    if isinstance(data.held, TextSource):  # every token is a target: a loss is bits per byte
        sizes["held_bytes_per_token"] = bytes_per_token(
            data.held.eval_batches(cfg.eval_batches), model.tokenizer
        )
    ctx.events.emit("data", tokens=data.tokens, held_tokens=data.held_tokens, **sizes)
    ctx.tell(f"{data.tokens:,} tokens to learn from, {data.held_tokens:,} held out")
    loss = partial(causal_lm_loss, model=model.network, checkpoint=cfg.checkpointing)
    figures = heldout_metrics(model.network, partial(loss, accuracy=not sizes), data.held, ctx, cfg)
    params = fit(
        model,
        loss,
        data.train,
        figures,
        ctx,
        cfg,
        sample=sampler(model, ctx, cfg, partial(_held_beginnings, found[1], model)),
        restart=lambda: start_model(cfg, ctx.backend).params,
    )
    return model.with_params(params)


def _held_beginnings(held: text_and_chats.Tokens, model: Model) -> Iterator[Offered]:
    """The beginnings of held-out documents, to be continued."""
    if model.network.decoder_start_token_id is not None:
        return
    tokenizer = model.tokenizer
    tokens = np.asarray(held[:_LOOKED_AT])
    starts = [0, *(np.flatnonzero(tokens == tokenizer.eos_id) + 1).tolist()]
    for start, end in zip(starts, [*starts[1:], len(tokens) + 1], strict=True):
        if end - start > 2 * _BEGINNING:
            text = tokenizer.decode(tokens[start : start + _BEGINNING].tolist())
            prompt = f"{text.strip()}{CONTINUED}"
            yield prompt, encode_prompt(prompt, tokenizer)


def start_model(cfg: PretrainConfig, backend: Backend) -> Model:
    """The model that the stage begins from. Raises UserError for one that cannot be pre-trained, or
    not so.
    """
    model = load_model(cfg.model, backend)
    _check(cfg, model)
    return model


class TextSources(NamedTuple):
    """Batches to learn from and held-out ones, and how many tokens these are of."""

    train: Any
    held: Any
    tokens: int
    held_tokens: int


Streams = tuple[text_and_chats.Tokens, text_and_chats.Tokens]
"""Tokens to learn from and tokens held out."""


def read(cfg: PretrainConfig, model: Model, ctx: DataContext) -> Streams:
    """The text that the settings name. Raises UserError for data as `texts` does."""
    return text_and_chats.token_streams(
        DataSpec.of(cfg), model.tokenizer, ctx, cfg.separator, cfg.most_tokens
    )


def facts(cfg: PretrainConfig, model: Model, streams: Streams) -> DataFacts:
    """What of the text to learn from the settings follow from."""
    lengths = document_lengths(streams[0], model.tokenizer.eos_id)
    return DataFacts(lengths, "documents", builtin=is_generated(cfg.data))


def sources(cfg: PretrainConfig, model: Model, streams: Streams, ctx: DataContext) -> TextSources:
    """The batches of the text. Raises UserError where there is too little of it."""
    train, heldout = streams
    rows = source_of(cfg, model)
    measured = rows(heldout)
    return TextSources(rows(train), measured, len(train), len(heldout))


def _check(cfg: PretrainConfig, model: Model) -> None:
    if not supports_packing(model.cfg):
        raise UserError(
            f"a {model.cfg.model_type} model can be tuned, not pre-trained here",
            where=cfg.model,
            hint="ondevice sft, dpo and grpo take it",
        )
    if model.cfg.num_labels:
        raise UserError(
            "is a reward model or a classifier",
            where=cfg.model,
            hint="take the model that it began as",
        )
    if cfg.objective not in ("auto", objective(model.cfg)):
        raise UserError(
            f"{model.cfg.model_type} is not made for {cfg.objective!r}",
            where="objective",
            hint=f"leave it at auto, or give {objective(model.cfg)}",
        )
    for name, usual, known in (
        ("whole_words", False, ("masked",)),
        ("mean_span", 3.0, ("spans", "infilling")),
        ("mask_share", 0.0, ("masked", "spans", "infilling")),
        ("isolate_documents", False, ("causal", "masked")),
    ):
        if getattr(cfg, name) != usual and objective(model.cfg) not in known:
            raise UserError(
                f"means nothing where {objective(model.cfg)} is the objective",
                where=name,
                hint=f"leave it out; it is for {' and '.join(known)}",
            )
    check_length(cfg, model, most_of(model, model.cfg.max_position_embeddings))
