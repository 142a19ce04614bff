"""Prompts that a model is to answer: the built-in corpus's, or a person's, as token ids with what is known of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import numpy as np

from ondevice.context import Context
from ondevice.data.builtin.splits import Split
from ondevice.data.chat import prompt_ids
from ondevice.data.formats import BadRow, to_prompt
from ondevice.data.mixture import Lazy, mixture, one_after_another
from ondevice.data.stored import JsonLines, place_of
from ondevice.errors import UserError
from ondevice.models.folder import Model
from ondevice.stages import material
from ondevice.stages.material import Wanted


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


def prompts(wanted: Wanted, part: Part, model: Model, room: int, ctx: Context) -> Sequence[Asked]:
    """The prompts of all sources; those that leave no `room` tokens for an answer are left out and counted. Of a
    person's own prompts the last tenth of a source is `validation`; `all` of the built-in ones is their train split.
    Raises UserError for data without any, as for a model without a chat template."""
    need_template(model)

    def rows(one: Wanted) -> Sequence[Asked]:
        corpus = material.corpus_of(one.data, ctx.corpus)
        if corpus is None:
            found = stored(one, lambda: read(one), "prompts", model, room, ctx)
            return found if part == "all" else material.last_held(found, one.data, "prompt")[part == "validation"]
        from ondevice.data.builtin import build

        split: Split = "validation" if part == "validation" else "train"
        made = islice(build(corpus).prompts(split), (split == "train" and one.limit) or None)
        told = (from_user(row["prompt"], {k: v for k, v in row.items() if k != "prompt"}, model) for row in made)
        return stored(one, lambda: told, f"{split} prompts", model, room, ctx)

    def read(one: Wanted) -> Iterator[Asked]:
        def to_asked(row: Any) -> Asked:
            messages, known = to_prompt(row)
            return Asked(messages, prompt_ids(messages, model.tokenizer), known)
        return (asked for _, asked in material.taken(one, to_asked, ctx))

    parts = [rows(one) for one in wanted.alone()]
    return one_after_another(parts) if part == "validation" else mixture(parts, wanted.weights, wanted.seed)


def from_user(text: str, known: Mapping[str, Any], model: Model) -> Asked:
    """A conversation of one message. Raises BadRow where the template refuses it."""
    messages = [{"role": "user", "content": text}]
    return Asked(messages, prompt_ids(messages, model.tokenizer), known)


def stored(wanted: Wanted, rows: Callable[[], Iterable[Asked]], name: str, model: Model, room: int,
           ctx: Context) -> Sequence[Asked]:
    """The prompts of one source on the disk, without those that leave no room for an answer. `rows` are asked for, one
    at a time, where a process before this one has not left them; `name` tells them from others of the same source.
    Raises UserError where none is left."""
    most = model.cfg.max_position_embeddings - room
    left_out = 0

    def fitting() -> Iterator[list[Any]]:
        nonlocal left_out
        try:
            for asked in rows():
                if len(asked.ids) <= most:
                    yield [asked.messages, asked.ids, dict(asked.known)]
                else:
                    left_out += 1
        except BadRow as error:
            raise UserError(str(error), where=wanted.data) from error

    place = place_of(ctx.folder.path / "data", "prompts", model.tokenizer, f"{name} {most} {wanted.key(ctx.corpus)}")
    lines = JsonLines.stored(material.reused(place, wanted, ctx), fitting)
    if not lines:
        raise UserError(f"none of {left_out} prompts leaves room for {room} tokens of an answer", where=wanted.data,
                        hint=f"the context holds {model.cfg.max_position_embeddings}; lower max_new_tokens")
    if left_out:
        ctx.warn(f"{left_out} of {len(lines) + left_out} prompts leave no room for an answer and are left out")
    return Lazy(lambda n: Asked(*lines[n]), np.arange(len(lines)))


def need_template(model: Model) -> None:
    """Raises UserError for a model that was never taught to answer."""
    if model.tokenizer.chat_template is None:
        raise UserError("the model has no chat template", where=str(model.folder), hint="ondevice sft gives it one")
