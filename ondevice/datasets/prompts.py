"""Prompts that a model is to answer: the built-in corpus's, or a person's, as token ids with what
is known of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from ondevice.common.errors import UserError
from ondevice.data.builtin.corpus import build
from ondevice.data.builtin.splits import Split
from ondevice.data.chat_encoding import prompt_ids
from ondevice.data.completion_batches import context_length
from ondevice.data.context import DataContext
from ondevice.data.formats import to_prompt
from ondevice.data.messages import BadRow
from ondevice.data.mixture import Lazy, epoch_order, mixture, one_after_another
from ondevice.data.token_cache import JsonLines, place_of
from ondevice.data.tokenizer import Tokenizer
from ondevice.datasets.spec import DataSpec, corpus_of, placed_rows, reuse_cached
from ondevice.datasets.split import last_together, left_to_learn, prompt_keys
from ondevice.models.model import Model, require_chat_template


@dataclass(frozen=True)
class Prompt:
    """A conversation that ends with the user. `known`: what the data says of it (`answer`, `kind`,
    …).
    """

    messages: list[dict[str, Any]]
    ids: list[int]
    known: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """What the user said last."""
        return str(self.messages[-1]["content"])


_OPENED = re.compile(r"<think>\s*\Z")
LAST = 32
"""Ids at a prompt's end that are looked at."""


def thought_opening(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """What the end of a prompt opens of a thought, as templates of reasoning models do (`<think>`
    and a new line); empty where it opens none. It belongs to what the model writes then, wherever
    that is judged."""
    opening = _OPENED.search(tokenizer.decode(ids[-LAST:], skip_special=False))
    if opening:
        return opening[0]
    return ""


Part = Literal["train", "validation", "all"]


class Prompts(Sequence[Prompt]):
    """Prompts on the disk. `keys` (N, 2) uint64: alike in turns of one chat; alike where the
    conversations are.
    """

    def __init__(self, lines: JsonLines, order: NDArray[np.int64]) -> None:
        self._lines, self._order = lines, order

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, at: int) -> Prompt: ...
    @overload
    def __getitem__(self, at: slice) -> Prompts: ...
    def __getitem__(self, at: int | slice) -> Prompt | Prompts:
        if isinstance(at, slice):
            return Prompts(self._lines, self._order[at])
        return Prompt(*self._lines[int(self._order[at])])

    @property
    def keys(self) -> NDArray[np.uint64]:
        return self._lines.keys[self._order]

    def only(self, which: NDArray[Any]) -> Prompts:
        """Those of which `which` is true, or the numbers."""
        return Prompts(self._lines, self._order[which])


def prompts(
    wanted: DataSpec, part: Part, model: Model, room: int, ctx: DataContext
) -> Sequence[Prompt]:
    """The prompts of all sources; those that leave no `room` tokens for an answer are left out and
    counted. Of a person's own prompts the last tenth of a source is `validation`; `all` of the
    built-in ones is their train split. What is held out is not in train, wherever it stands. `all`
    are asked once each. Raises UserError for data without any, as for a model without a chat
    template."""
    require_chat_template(model)
    wanted = wanted.for_template(model.tokenizer)

    def rows(one: DataSpec, part: Part) -> Prompts:
        corpus = corpus_of(one.data, ctx.corpus)
        if corpus is None:

            def own(one: DataSpec) -> Prompts:
                return stored_prompts(one, lambda: read(one), "prompts", model, room, ctx)

            if part == "all":
                return own(one)
            warn = ctx.warn if part == "train" else None  # the other part says it no second time
            parts: tuple[Prompts, Prompts] = one.in_two(
                own, partial(last_prompts, what="prompt", warn=warn)
            )
            return parts[part == "validation"]
        split: Split = "validation" if part == "validation" else "train"
        built = islice(build(corpus).prompts(split), (split == "train" and one.limit) or None)
        from_corpus = (
            from_user(row["prompt"], {k: v for k, v in row.items() if k != "prompt"}, model)
            for row in built
        )
        return stored_prompts(one, lambda: from_corpus, f"{split} prompts", model, room, ctx)

    def read(one: DataSpec) -> Iterator[Prompt]:
        def to_asked(row: Any) -> Prompt:
            messages, known = to_prompt(row)
            return Prompt(messages, prompt_ids(messages, model.tokenizer), known)

        return (prompt for _, prompt in placed_rows(one, to_asked, ctx))

    if part == "validation":
        return one_after_another([rows(one, part) for one in wanted.alone()])
    parts = [rows(one, part) for one in wanted.alone()]
    if part == "train":
        parts = without_heldout(
            parts, [rows(one, "validation") for one in wanted.alone()], wanted, "prompt", ctx
        )
        return mixture(parts, wanted.weights, wanted.seed)
    order = epoch_order([len(rows) for rows in parts], wanted.weights, wanted.seed)
    once = np.sort(np.unique(order, return_index=True)[1])
    return Lazy.over(parts, order[once])


def last_prompts(
    rows: Prompts, where: str, what: str, warn: Callable[[str], None] | None
) -> tuple[Prompts, Prompts]:
    """About the last tenth of the prompts is held out, turns of one chat together. Raises UserError
    as `last_together`."""
    chosen, _ = last_together(rows.keys[:, 0], where, what, warn=warn)
    return rows.only(~chosen), rows.only(chosen)


def without_heldout(
    train: Sequence[Prompts],
    heldout: Sequence[Prompts],
    wanted: DataSpec,
    what: str,
    ctx: DataContext,
) -> list[Prompts]:
    """`train` without what is held out of any source, which is counted. Raises UserError
    where nothing is left of one."""
    left = left_to_learn(
        [part.keys[:, 1] for part in train],
        [part.keys[:, 1] for part in heldout],
        wanted.data,
        what,
        ctx.warn,
    )
    return [part.only(which) for part, which in zip(train, left, strict=True)]


def from_user(text: str, known: Mapping[str, Any], model: Model) -> Prompt:
    """A conversation of one message. Raises BadRow where the template refuses it."""
    messages = [{"role": "user", "content": text}]
    return Prompt(messages, prompt_ids(messages, model.tokenizer), known)


def stored_prompts(
    wanted: DataSpec,
    rows: Callable[[], Iterable[Prompt]],
    name: str,
    model: Model,
    room: int,
    ctx: DataContext,
) -> Prompts:
    """The prompts of one source on the disk, without those that leave no room for an answer. `rows`
    are asked for, one at a time, where a process before this one has not left them; `name` tells
    them from others of the same source. Raises UserError where none is left."""
    context, start = model.cfg.max_position_embeddings, model.network.decoder_start_token_id

    def fitting() -> Iterator[list[Any]]:
        fit = left_out = 0
        try:
            for prompt in rows():
                if context_length(len(prompt.ids), room, start) <= context:
                    fit += 1
                    yield [prompt.messages, prompt.ids, dict(prompt.known)]
                else:
                    left_out += 1
        except BadRow as error:
            raise UserError(str(error), where=wanted.data) from error
        if not fit:
            raise UserError(
                f"none of {left_out} prompts leaves room for {room} tokens of an answer",
                where=wanted.data,
                hint=f"the context holds {context}; lower max_new_tokens",
            )
        if left_out:
            ctx.warn(
                f"{left_out} of {fit + left_out} prompts leave no room for an answer and are left out"
            )

    place = place_of(
        ctx.cache,
        "prompts",
        model.tokenizer,
        f"{name} {context} {room} {start} {wanted.key(ctx.corpus)}",
    )
    lines = JsonLines.stored(
        reuse_cached(place, wanted, ctx), fitting, lambda row: prompt_keys(row[0])
    )
    return Prompts(lines, np.arange(len(lines)))
