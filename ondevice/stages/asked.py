"""Prompts that a model is to answer: the built-in corpus's, or a person's, as token ids with what is known of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ondevice.context import Context
from ondevice.data.chat import prompt_ids
from ondevice.data.formats import BadRow, to_prompt
from ondevice.data.tokenizer import Tokenizer
from ondevice.errors import UserError
from ondevice.models.folder import Model
from ondevice.stages import material


@dataclass(frozen=True)
class Asked:
    """A conversation that ends with the user. `known`: what the data says of it (`answer`, `kind`, …)."""

    messages: list[dict[str, Any]]
    ids: list[int]
    known: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """What the user said last."""
        return str(self.messages[-1]["content"])


Part = Literal["train", "validation", "all"]


def prompts(data: str, part: Part, model: Model, room: int, ctx: Context) -> list[Asked]:
    """The prompts of `data`; those that leave no `room` tokens for an answer are left out and counted. Of a person's
    own prompts the last tenth is `validation`; `all` of the built-in ones is their train split. Raises UserError for
    data without any, as for a model without a chat template."""
    need_template(model)
    corpus = material.corpus_of(data, ctx.corpus)
    if corpus is not None:
        from ondevice.data.builtin import build

        rows = [([{"role": "user", "content": row["prompt"]}], {k: v for k, v in row.items() if k != "prompt"})
                for row in build(corpus).prompts("validation" if part == "validation" else "train")]
    else:
        rows = material.converted(data, to_prompt, ctx)
        held = min(max(1, int(len(rows) * material.HELD_PART)), material.HELD_MOST)
        if part != "all" and len(rows) <= held:
            raise UserError("holds one prompt only", where=data, hint="give more: some are held out")
        rows = {"train": rows[:-held], "validation": rows[-held:], "all": rows}[part]
    return fitting(rows, model, room, data, ctx)


def fitting(rows: Sequence[tuple[list[dict[str, Any]], Mapping[str, Any]]], model: Model, room: int, where: str,
            ctx: Context) -> list[Asked]:
    """Rows as ids, without those that leave no room for an answer. Raises UserError where none is left."""
    found = [Asked(messages, _ids(messages, model.tokenizer), known) for messages, known in rows]
    fit = [asked for asked in found if len(asked.ids) + room <= model.cfg.max_position_embeddings]
    if not fit:
        raise UserError(f"none of {len(found)} prompts leaves room for {room} tokens of an answer", where=where,
                        hint=f"the context holds {model.cfg.max_position_embeddings}; lower max_new_tokens")
    if len(fit) < len(found):
        ctx.warn(f"{len(found) - len(fit)} of {len(found)} prompts leave no room for an answer and are left out")
    return fit


def need_template(model: Model) -> None:
    """Raises UserError for a model that was never taught to answer."""
    if model.tokenizer.chat_template is None:
        raise UserError("the model has no chat template", where=str(model.folder), hint="ondevice sft gives it one")


def _ids(messages: list[dict[str, Any]], tokenizer: Tokenizer) -> list[int]:
    try:
        return prompt_ids(messages, tokenizer)
    except BadRow as error:
        raise UserError(str(error), where="data") from error
