"""Rows for each pre-training objective and for instruction tuning, from what --data means."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from ondevice.common.errors import UserError
from ondevice.config.auto import is_auto
from ondevice.config.finetuning import ClassifyConfig, SFTConfig
from ondevice.config.stages import PretrainConfig
from ondevice.data.batches import ChatSource, TextSource
from ondevice.data.chat_encoding import ChatRow
from ondevice.data.completion_batches import CompletionSource, counted_answers
from ondevice.data.masked_lm import MaskedSource
from ondevice.data.span_corruption import CorruptedSource, span_corruption, text_infilling
from ondevice.data.token_cache import ChatRows
from ondevice.data.truncation import cut_where
from ondevice.models.model import Model
from ondevice.models.network import objective, supports_packing


def most_of(model: Model, length: int) -> int:
    """At most `length`: the tokens of a text that a row can hold. What writes a text whole writes
    what opens and what closes it too."""
    return min(
        length, model.cfg.max_position_embeddings - 2 * (objective(model.cfg) == "infilling")
    )


def source_of(cfg: PretrainConfig, model: Model) -> Callable[..., Any]:
    """What makes batches of a stream of tokens, by the model's objective."""
    return SOURCES[objective(model.cfg)](cfg, model)


def _causal(cfg: PretrainConfig, model: Model) -> Callable[..., Any]:
    return partial(
        TextSource,
        sequence_length=cfg.sequence_length,
        batch_size=cfg.batch_size,
        seed=cfg.seed,
        isolate_documents=cfg.isolate_documents,
        eos=model.tokenizer.eos_id,
    )


def _masked(cfg: PretrainConfig, model: Model) -> Callable[..., Any]:
    share = cfg.mask_share or (0.3 if model.cfg.model_type == "modernbert" else 0.15)
    return partial(
        MaskedSource,
        tokenizer=model.tokenizer,
        sequence_length=cfg.sequence_length,
        batch_size=cfg.batch_size,
        seed=cfg.seed,
        share=share,
        whole_words=cfg.whole_words,
    )


def _corrupted(
    make: Callable[..., Any], usual: float
) -> Callable[[PretrainConfig, Model], Callable[..., Any]]:
    def source(cfg: PretrainConfig, model: Model) -> Callable[..., Any]:
        assert model.network.decoder_start_token_id is not None
        corrupt = make(model.tokenizer, cfg.mask_share or usual, cfg.mean_span)
        return partial(
            CorruptedSource,
            corrupt=corrupt,
            start=model.network.decoder_start_token_id,
            batch_size=cfg.batch_size,
            sequence_length=cfg.sequence_length,
            longest=model.cfg.max_position_embeddings,
            seed=cfg.seed,
        )

    return source


# What a model is made for → a function of a stream of tokens that makes the source of its batches.
SOURCES: dict[str, Callable[[PretrainConfig, Model], Callable[..., Any]]] = {
    "causal": _causal,
    "masked": _masked,
    "spans": _corrupted(span_corruption, 0.15),
    "infilling": _corrupted(text_infilling, 0.3),
}


def check_rows_of(cfg: SFTConfig, model: Model) -> None:
    """Raises UserError for settings that the architecture cannot keep, and for rows that are longer
    than its context.
    """
    if model.network.decoder_start_token_id is not None:
        for name, usual in (("loss_on", "assistant"), ("replay", "")):
            if getattr(cfg, name) != usual:
                raise UserError(
                    "an encoder-decoder learns answers alone", where=name, hint="leave it out"
                )
    check_length(cfg, model, model.cfg.max_position_embeddings)


def check_length(cfg: SFTConfig | ClassifyConfig | PretrainConfig, model: Model, room: int) -> None:
    """Raises UserError where a row that a person asks for is longer than `room`."""
    if not is_auto(cfg, "sequence_length") and cfg.sequence_length > room:
        raise UserError(
            f"the model's context holds {model.cfg.max_position_embeddings} tokens",
            where="sequence_length",
            hint=f"give {room} or fewer",
        )


def rows_of(cfg: SFTConfig, model: Model) -> Callable[..., Any]:
    """What makes batches of chats: of whole chats where the prompt goes on, of answers where it is
    read beside them."""
    common: dict[str, Any] = {
        "sequence_length": cfg.sequence_length,
        "batch_size": cfg.batch_size,
        "seed": cfg.seed,
    }
    start = model.network.decoder_start_token_id
    if start is None:
        return partial(
            ChatSource,
            **common,
            packing=cfg.packing and supports_packing(model.cfg),
            loss_on=cfg.loss_on,
        )

    def source(chats: Iterable[ChatRow]) -> CompletionSource:
        answers, skipped = counted_answers(ChatRows.of(chats))
        return CompletionSource(
            answers,
            **common,
            start=start,
            tokenizer=model.tokenizer,
            skipped=skipped,
        )

    return source


def _where_cut(source: Any, model: Model) -> str:
    """Of prompts that are read beside their answers: at which end they are cut."""
    if model.network.decoder_start_token_id is None or not source.truncated:
        return ""
    return (
        f" (the prompts of {source.cut_prompts} {cut_where(model.tokenizer)}, answers at the end)"
    )
