"""Stage 2: instruction tuning on chats.

The loss is on the assistant's tokens, the stop token included; packed examples do not see each
other. A chat that is too long is cut and counted, one without a target is left out and counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ondevice.common.errors import UserError
from ondevice.config.finetuning import SFTConfig
from ondevice.data.batches import learned_lengths
from ondevice.data.chat_encoding import ChatRow, add_template
from ondevice.data.completion_batches import answers_of
from ondevice.data.context import DataContext
from ondevice.data.mixture import is_generated
from ondevice.datasets import text_and_chats
from ondevice.datasets.objectives import _where_cut, check_rows_of, rows_of
from ondevice.datasets.spec import DataSpec
from ondevice.datasets.text_and_chats import Chats
from ondevice.inference.fixed_prompts import Offered, held_prompts, sampler
from ondevice.models.model import Model, require_generative
from ondevice.models.network import supports_packing
from ondevice.models.shapes import shapes
from ondevice.runs.context import Context
from ondevice.seam.protocols import Backend
from ondevice.stages.settled import settle
from ondevice.stages.tuning import load_start, with_adapter
from ondevice.training.defaults import DataFacts
from ondevice.training.loop import fit
from ondevice.training.losses import causal_lm_loss

_LOOKED_AT = 10_000  # rows of which empty answers are counted


def run(cfg: SFTConfig, ctx: Context) -> Model:
    model = with_adapter(start_model(cfg, ctx.backend), cfg, ctx)
    found = read(cfg, model, ctx.data)
    cfg = settle(cfg, model, partial(facts, cfg, model, found), ctx)
    data = sources(cfg, model, found, ctx.data)
    source, heldout = data.train, data.held
    chats = source.examples - data.replayed
    ctx.events.emit(
        "data",
        chats=chats,
        replayed=data.replayed,
        held_chats=heldout.examples,
        cut=source.truncated + heldout.truncated,
        left_out=source.skipped + heldout.skipped,
    )
    beside = f" beside {data.replayed:,} rows of plain text" if data.replayed else ""
    ctx.tell(f"{chats:,} chats to learn from{beside}, {heldout.examples:,} held out")
    loss = partial(causal_lm_loss, model=model.network, checkpoint=cfg.checkpointing)
    params = fit(
        model,
        loss,
        source,
        heldout,
        ctx,
        cfg,
        sample=sampler(model, ctx, cfg, partial(_held_questions, found, model)),
        restart=lambda: start_model(cfg, ctx.backend).params,
    )
    return model.with_params(params)


def start_model(cfg: SFTConfig, backend: Backend) -> Model:
    """The model that the stage begins from, with its chat template. Raises UserError for one that
    cannot be tuned so.
    """
    return with_template(require_generative(load_start(cfg.model, cfg, backend)), cfg, backend)


def _held_questions(chats: Chats, model: Model) -> Iterator[Offered]:
    """Held-out chats up to their first answer."""
    if model.network.decoder_start_token_id is not None:
        return iter(())
    learned = (row for row in chats.held if row.mask.any())
    return held_prompts((row.ids[: row.mask.argmax()].tolist() for row in learned), model.tokenizer)


class ChatSources(NamedTuple):
    """Batches to learn from and held-out ones; `replayed` rows of the first are plain text."""

    train: Any
    held: Any
    replayed: int


def read(cfg: SFTConfig, model: Model, ctx: DataContext) -> Chats:
    """The chats that the settings name. Raises UserError for settings that the model cannot keep,
    and for data as `chats` does.
    """
    # what the architecture cannot do is refused before anything that a number could mend
    check_rows_of(cfg, model)
    chats = text_and_chats.chats(DataSpec.of(cfg), model.tokenizer, ctx, whole=cfg.loss_on == "all")
    if cfg.packing and not supports_packing(model.cfg):
        ctx.tell(
            f"each chat has a row of its own: a {model.cfg.model_type} model's rows cannot be packed"
        )
    _tell_of_empty_answers(chats.train[:_LOOKED_AT], model.tokenizer.is_special, ctx)
    return chats


def facts(cfg: SFTConfig, model: Model, chats: Chats) -> DataFacts:
    """What of the chats to learn from the settings follow from: where the prompt is read beside the
    answer, the longer of the two. Raises UserError where nothing of them is to be learned.
    """
    if model.network.decoder_start_token_id is None:
        lengths = learned_lengths(chats.train, cfg.loss_on)
    else:
        answers = answers_of(chats.train)
        sizes = (max(len(row.prompt), len(row.completion)) for row in answers)
        lengths = np.fromiter(sizes, np.int64, len(answers))
    if not len(lengths):
        raise UserError(
            "no chat has a token to learn",
            where="data",
            hint="none has a message of the assistant's that is to be learned",
        )
    return DataFacts(lengths, "chats", builtin=is_generated(cfg.data))


def sources(cfg: SFTConfig, model: Model, chats: Chats, ctx: DataContext) -> ChatSources:
    """The batches of the chats. Raises UserError where nothing of them is learned."""
    rows = rows_of(cfg, model)
    train = chats.train
    if cfg.replay:
        train = text_and_chats.with_replay(
            cfg.replay,
            cfg.replay_share,
            cfg.sequence_length,
            chats.train,
            cfg.seed,
            model.tokenizer,
            ctx,
        )
    both = ChatSources(rows(train), rows(chats.held), len(train) - len(chats.train))
    for name, part in (("training", both.train), ("held-out", both.held)):
        if part.truncated or part.skipped:
            ctx.warn(
                f"{name} chats: {part.truncated} cut at {cfg.sequence_length} tokens{_where_cut(part, model)}, "
                f"{part.skipped} left out because nothing of the answer remained"
            )
    return both


def _tell_of_empty_answers(
    rows: Sequence[ChatRow], special: NDArray[np.bool_], ctx: DataContext
) -> None:
    """Warns where more than one chat in a hundred teaches special tokens alone: to stop without a
    word.
    """
    empty = 0
    for row in rows:
        learned = row.ids[row.mask]
        if len(learned) and special[learned].all():
            empty += 1
    if empty > 0.01 * len(rows):
        ctx.warn(
            f"{empty} of {len(rows)} chats have empty answers: of them the stop token alone is learned"
        )


def with_template(model: Model, cfg: SFTConfig, backend: Backend) -> Model:
    """The model with the chat template that `cfg` names, its special tokens and their embeddings
    with it.

    Raises UserError where there is no template at all.
    """
    if not cfg.chat_template:
        if model.tokenizer.chat_template is None:
            raise UserError(
                "the model has no chat template",
                where=str(model.folder),
                hint="give --chat-template chatml",
            )
        return model
    tokenizer = add_template(model.tokenizer, cfg.chat_template)
    if tokenizer.vocab_size <= model.cfg.vocab_size:
        return replace(model, tokenizer=tokenizer)
    if not supports_packing(model.cfg):
        raise UserError(
            f"needs new tokens, for which a {model.cfg.model_type} model has no room here",
            where="chat_template",
            hint="take plain, which needs none",
        )
    if cfg.adapter != "none":
        raise UserError(
            "needs new tokens, for which an adapter's base has no room",
            where="chat_template",
            hint="take plain, which needs none, or train all weights",
        )
    return grow_vocabulary(replace(model, tokenizer=tokenizer), backend)


def grow_vocabulary(model: Model, backend: Backend) -> Model:
    """Rows for new tokens: the mean of the old rows, so that no new token begins likelier than the
    average one.
    """
    size = model.tokenizer.vocab_size
    cfg, params = replace(model.cfg, vocab_size=size), dict(model.params)
    for name, shape in shapes(cfg).items():
        old = backend.numpy(params[name])
        for axis in (
            axis
            for axis, (wanted, had) in enumerate(zip(shape, old.shape, strict=True))
            if wanted > had
        ):
            rows = np.repeat(old.mean(axis, keepdims=True), shape[axis] - old.shape[axis], axis)
            params[name] = backend.array(np.concatenate([old, rows], axis).astype(np.float32))
    return replace(model, params=params, cfg=cfg)
