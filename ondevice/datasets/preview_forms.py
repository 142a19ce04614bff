"""What a preview counts and shows of rows, one function per form: text, label, chat, preference,
judged, prompt.

Each function takes rows, reads them as the stage of that form does, and writes to `Counts` what
became of them.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ondevice.config.stages import PretrainConfig
from ondevice.data.batches import fitted_length
from ondevice.data.chat_encoding import ChatRow, encode_chat, encode_chats, prompt_ids
from ondevice.data.completion_batches import Row as CompletionRow
from ondevice.data.completion_batches import counted_answers, fitted_row
from ondevice.data.formats import Unlabelled, to_chat, to_label, to_prompt, to_text
from ondevice.data.messages import BadRow, Row
from ondevice.data.plain_text import Part
from ondevice.data.preference_batches import TokenPair, to_tokens
from ondevice.data.preference_formats import to_judged, to_pair
from ondevice.data.row_keys import Record
from ondevice.data.special_token_text import Spelt, separated
from ondevice.data.special_token_text import shown as shown_text
from ondevice.data.token_cache import ChatRows
from ondevice.data.tokenizer import Tokenizer
from ondevice.datasets.objectives import most_of, source_of
from ondevice.datasets.split import key_of
from ondevice.datasets.text_inputs import text_inputs
from ondevice.models.model import Model
from ondevice.models.network import objective

HELD_TOO = "held out too, so that it is not learned from"

Pieces = list[tuple[str, bool]]
"""Text, and whether it is learned."""
Records = Iterable[tuple[Record, str]]
"""Rows with their places."""


@dataclass
class Counts:
    """What became of the rows. `skipped`: reason → [how many, where the first one is]; `bad` of
    them a stage holds against the data."""

    used: int = 0
    bad: int = 0
    parts: int = 0  # of documents that go on in the next row
    cut: int = 0
    tokens: int = 0
    learned: int = 0
    skipped: dict[str, list[Any]] = field(default_factory=dict)
    examples: list[dict[str, Any]] = field(default_factory=list)
    most_examples: int = 0
    spelt: Spelt | None = None
    separator: str = ""
    held: set[int] = field(default_factory=set)  # hashes of what is held out
    gathers: bool = False  # them
    lengths: array[int] = field(default_factory=lambda: array("q"))
    """Tokens of a stage's row that each row takes which is learned from."""

    def held_out(self, key: int, where: str) -> bool:
        """Whether what is called so is held out, and so not learned from; it is counted."""
        if self.gathers:
            self.held.add(key)
        elif key in self.held:
            self.skip(HELD_TOO, where, False)
        return self.gathers or key in self.held

    def skip(self, reason: str, where: str, bad: bool = True) -> None:
        """Counts a row that is not learned from. `bad`: the data is at fault."""
        self.bad += bad
        self.skipped.setdefault(reason, [0, where])[0] += 1

    def use(self, tokens: int, learned: int, cut: bool, length: int = 0) -> None:
        """Counts a row that is learned from, which takes `length` tokens of a stage's row."""
        self.used += 1
        self.lengths.append(length or tokens)
        self.cut += cut
        self.tokens += tokens
        self.learned += learned

    @property
    def wants_example(self) -> bool:
        """Whether fewer examples are there than are to be shown."""
        return len(self.examples) < self.most_examples


Count = Callable[[Records, Model, int, Counts], None]
"""Counts rows of one form, of at most so many tokens each."""


def counter_of(form: str, columns: Mapping[str, str]) -> Count:
    """What counts rows of a form. `columns`: the names of the columns of text and label."""
    if form == "label":
        return partial(_labelled, columns=columns)
    return _FORMS[form]


def pieces(ids: NDArray[np.int32], learned: NDArray[np.bool_], tokenizer: Tokenizer) -> Pieces:
    """Runs of tokens that are learned, or not, as text with the special tokens in it."""
    changes = np.flatnonzero(np.diff(learned)) + 1
    borders = [0, *changes.tolist(), len(ids)]
    parts: Pieces = []
    for start, end in zip(borders, borders[1:], strict=False):
        if end > start:
            parts.append((shown_text(ids[start:end], tokenizer), bool(learned[start])))
    return parts


# Text


class _Document:
    """What is known of a document once some parts of it were read."""

    def __init__(self) -> None:
        self.tokens = 0
        self.learned = 0
        self.examples: list[dict[str, Any]] = []
        self._hash = hashlib.blake2b(digest_size=8)

    def take(self, ids: NDArray[np.int32]) -> None:
        self._hash.update(ids.tobytes())

    @property
    def key(self) -> int:
        return int.from_bytes(self._hash.digest(), "little")


def _texts(rows: Records, model: Model, length: int, counts: Counts) -> None:
    document = _Document()
    goes_on = False
    for text, where in _documents(rows, counts):
        more = isinstance(text, Part) and text.more
        ids = _text_ids(text, goes_on, more, model.tokenizer)
        document.take(ids)
        if not counts.gathers:
            _count_text(document, ids, where, model, length, counts)
        counts.parts += more
        if not more:
            _finish(document, where, counts)
            document = _Document()
        goes_on = more
    if goes_on:  # of the last document not all was read
        _finish(document, "", counts)


def _text_ids(text: str, goes_on: bool, more: bool, tokenizer: Tokenizer) -> NDArray[np.int32]:
    """Tokens of a document or a part of one: `goes_on` from the part before, `more` follows."""
    if goes_on:
        said = list(tokenizer.encode(text))
    else:
        said = list(tokenizer.encode_document(text))
    if not more:
        said.append(tokenizer.eos_id)
    return np.array(said, np.int32)


def _count_text(
    document: _Document,
    ids: NDArray[np.int32],
    where: str,
    model: Model,
    length: int,
    counts: Counts,
) -> None:
    """Adds a part's tokens to its document, and an example while there is room for one."""
    seen, learned, targets = _pretrained(ids, model, length)
    # what opens and closes a row may be written too
    document.tokens += max(len(ids), targets)
    document.learned += targets
    if len(counts.examples) + len(document.examples) < counts.most_examples:
        document.examples.append({"where": where, "tokens": pieces(seen, learned, model.tokenizer)})


def _finish(document: _Document, where: str, counts: Counts) -> None:
    if not counts.held_out(document.key, where):
        counts.use(document.tokens, document.learned, False)
        counts.examples += document.examples


def _documents(rows: Records, counts: Counts) -> Iterator[tuple[str, str]]:
    for text, where in _convert(rows, to_text, counts):
        for document in separated([text], counts.separator):
            if counts.spelt is not None:
                counts.spelt.look(document)
            yield document, where


def _pretrained(
    ids: NDArray[np.int32], model: Model, length: int
) -> tuple[NDArray[np.int32], NDArray[np.bool_], int]:
    """Tokens of a text as the model learns it, which of them are learned, and how many are in all:
    every token, what is hidden, or what is written after a text with holes. Of the last two the
    text's first row is shown."""
    if objective(model.cfg) == "causal" or len(ids) < 2:
        return ids, np.ones(len(ids), np.bool_), len(ids)
    cfg = PretrainConfig(sequence_length=most_of(model, length), batch_size=16)
    batches = source_of(cfg, model)(ids).eval_batches(None)
    batch = next(batches)
    real = batch["weights"] > 0
    targets = int(real.sum())
    for later in batches:
        targets += int((later["weights"] > 0).sum())
    if "source_ids" in batch:
        return *_read_and_written(batch, real), targets
    return *_with_hidden(batch, real), targets


def _read_and_written(
    batch: Mapping[str, NDArray[Any]], real: NDArray[np.bool_]
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """(tokens, which are learned) of the first row of an encoder-decoder: the text with holes, then
    what is written for them."""
    first = real & (batch["index"] < batch["ids"].shape[1])
    read = batch["source_ids"][0, : batch["source_lengths"][0]]
    written = batch["targets"][first]
    ids = np.concatenate([read, written])
    return ids, np.arange(len(ids)) >= len(read)


def _with_hidden(
    batch: Mapping[str, NDArray[Any]], real: NDArray[np.bool_]
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """(tokens, which are hidden and so learned) of the first row of an encoder."""
    learned = np.zeros(batch["ids"].shape, np.bool_)
    learned.reshape(-1)[batch["index"][real]] = True
    kept = batch["segments"][0] > 0
    return batch["ids"][0][kept], learned[0][kept]


# Label


def _labelled(
    rows: Records, model: Model, length: int, counts: Counts, *, columns: Mapping[str, str]
) -> None:
    for row, where in rows:
        try:
            labelled = to_label(row, **columns)
        except Unlabelled as error:
            row.bad = True
            counts.skip(str(error), where, False)
            continue
        except BadRow as error:
            row.bad = True
            counts.skip(str(error), where)
            continue
        if counts.held_out(key_of([labelled.text, labelled.pair]), where):
            continue
        (ids,), _, cut = text_inputs([labelled], model, length)
        counts.use(len(ids), 1, bool(cut))
        if counts.wants_example:
            shown = pieces(ids, np.zeros(len(ids), np.bool_), model.tokenizer)
            shown.append((f" {labelled.label}", True))
            counts.examples.append({"where": where, "tokens": shown})


# Chat


def _chats(rows: Records, model: Model, length: int, counts: Counts) -> None:
    """One chat at a time where it is shown, a thousand at once where it is only counted."""
    tokenizer = model.tokenizer
    count = _count_chats
    if model.network.decoder_start_token_id is not None:
        count = _count_answers
    learned = _learned_from(_convert(rows, to_chat, counts), _messages, counts)
    for chat, where in islice(learned, counts.most_examples):
        try:
            count(encode_chat(chat["messages"], tokenizer), where, tokenizer, length, counts)
        except BadRow as error:
            counts.skip(str(error), where)
    counts.most_examples = 0
    places: list[str] = []

    def messages() -> Iterator[Any]:
        for chat, where in learned:
            places.append(where)
            yield chat["messages"]

    def reject(number: int, reason: str) -> None:
        counts.skip(reason, places[number])

    count(encode_chats(messages(), tokenizer, reject=reject), "", tokenizer, length, counts)


def _count_chats(
    chats: Iterable[ChatRow], where: str, tokenizer: Tokenizer, length: int, counts: Counts
) -> None:
    for row in chats:
        kept, cut = fitted_length(row.mask, length)
        if not kept:
            reason = "nothing of an answer is within sequence_length" if cut else _NO_ANSWER
            counts.skip(reason, where, False)
            continue
        counts.use(kept, int(row.mask[:kept].sum()), cut, kept - 1)
        if counts.wants_example:
            # all of it where nothing is cut: what follows the last target is left out of the row,
            # but is worth a look
            end = kept if cut else len(row.ids)
            shown = pieces(row.ids[:end], row.mask[:end], tokenizer)
            counts.examples.append({"where": where, "tokens": shown})


_NO_ANSWER = "no answer to learn"


def _count_answers(
    chats: Iterable[ChatRow], where: str, tokenizer: Tokenizer, length: int, counts: Counts
) -> None:
    """Answers whose prompts are read beside them, by the rule of `CompletionSource`."""
    for chat in chats:
        answers, skipped = counted_answers(ChatRows.of([chat]))
        for _ in range(skipped):
            counts.skip(f"{_NO_ANSWER}, or nothing before it", where, False)
        for answer in answers:
            row = fitted_row(answer, length, tokenizer)
            longer = max(len(row.prompt), len(row.completion))
            counts.use(row.length, len(row.completion), row.length < answer.length, longer)
            if counts.wants_example:
                counts.examples.append({"where": where, "tokens": _side(row, tokenizer)})


# Preference, judged


def _pairs(rows: Records, model: Model, length: int, counts: Counts, judged: bool = False) -> None:
    tokenizer = model.tokenizer
    converted = _convert(rows, to_judged if judged else to_pair, counts)
    for pair, where in _learned_from(converted, _prompt_of_pair, counts):
        try:
            token_pair = to_tokens(pair, tokenizer)
        except BadRow as error:
            counts.skip(str(error), where)
            continue
        places = token_pair.places(model.network.decoder_start_token_id)
        if places > length:
            counts.skip(f"longer than {length} tokens", where, False)
            continue
        sides = _sides(token_pair, judged)
        tokens = 0
        learned = 0
        for side in sides.values():
            tokens += side.length
            learned += len(side.completion)
        counts.use(tokens, learned, False, places)
        if counts.wants_example:
            shown: dict[str, Any] = {"where": where}
            for name, side in sides.items():
                shown[name] = _side(side, tokenizer)
            counts.examples.append(shown)


def _sides(pair: TokenPair, judged: bool) -> dict[str, CompletionRow]:
    if not judged:
        return {"chosen": pair.chosen, "rejected": pair.rejected}
    if pair.label > 0:
        return {"good": pair.chosen}
    return {"bad": pair.chosen}


def _side(row: CompletionRow, tokenizer: Tokenizer) -> Pieces:
    """A prompt with its completion, which is learned."""
    ids = np.array([*row.prompt, *row.completion], np.int32)
    return pieces(ids, np.arange(row.length) >= len(row.prompt), tokenizer)


# Prompt


def _prompts(rows: Records, model: Model, length: int, counts: Counts) -> None:
    tokenizer = model.tokenizer
    converted = _convert(rows, to_prompt, counts)
    for (messages, _), where in _learned_from(converted, _messages_of_prompt, counts):
        try:
            ids = np.array(prompt_ids(messages, tokenizer), np.int32)
        except BadRow as error:
            counts.skip(str(error), where)
            continue
        counts.use(len(ids), 0, False)
        if counts.wants_example:
            shown = pieces(ids, np.zeros(len(ids), np.bool_), tokenizer)
            counts.examples.append({"where": where, "tokens": shown})


_FORMS: dict[str, Count] = {
    "text": _texts,
    "chat": _chats,
    "preference": _pairs,
    "judged": partial(_pairs, judged=True),
    "prompt": _prompts,
}


# All forms


def _convert(
    rows: Records, make: Callable[[Row], Any], counts: Counts
) -> Iterator[tuple[Any, str]]:
    """Rows as their form has them; those that are not of it are counted as bad."""
    for row, where in rows:
        try:
            example = make(row)
        except BadRow as error:
            row.bad = True
            counts.skip(str(error), where)
            continue
        # of a text each document is looked at
        if counts.spelt is not None and not isinstance(example, str):
            counts.spelt.look(example)
        yield example, where


def _learned_from(
    converted: Iterable[tuple[Any, str]], said: Callable[[Any], Any], counts: Counts
) -> Iterator[tuple[Any, str]]:
    """Those of which what is `said` is not held out."""
    for one, where in converted:
        if not counts.held_out(key_of(said(one)), where):
            yield one, where


def _messages(chat: Mapping[str, Any]) -> Any:
    return chat["messages"]


def _prompt_of_pair(pair: Mapping[str, Any]) -> Any:
    return pair["prompt"]


def _messages_of_prompt(prompt: tuple[Any, Any]) -> Any:
    return prompt[0]
