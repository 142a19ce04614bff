"""What a stage will learn from, by a sample: how many rows, how long, encoded as the stage encodes
them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ondevice.common.clock import ticks
from ondevice.config.corpus import CorpusConfig
from ondevice.config.finetuning import ClassifyConfig, SFTConfig
from ondevice.config.preference import PairsConfig, SampleConfig
from ondevice.config.stages import StageConfig
from ondevice.data.builtin.corpus import Corpus, build
from ondevice.data.chat_encoding import ChatRow, encode_chats, prompt_ids
from ondevice.data.formats import to_chat, to_label, to_prompt, to_text
from ondevice.data.messages import BadRow
from ondevice.data.preference_batches import TokenPair, to_tokens
from ondevice.data.preference_formats import to_pair
from ondevice.data.token_cache import ChatRows
from ondevice.data.tokenizer import Tokenizer
from ondevice.datasets.preference_pairs import BUILTIN_PAIRS, builtin_pairs, read_pairs
from ondevice.datasets.spec import DataSpec, corpus_of
from ondevice.planning.row_sample import MOST_ROWS, RowSample, sample_rows
from ondevice.planning.source_facts import (
    DataFacts,
    Encoded,
    all_examples,
    converted,
    encoded_rows,
    encoded_sources,
    together,
    tokens_of,
)
from ondevice.preferences.sqlite_store import FILE

Example = TypeVar("Example")

_SAMPLE_BYTES, _SAMPLE_ROWS = 200_000, 400  # of the built-in corpus that is looked at
_MOST_CHARACTERS = 400_000  # of texts that are encoded
_UNKNOWN_PROMPT = 48  # tokens, where no prompt can be looked at


def text_facts(cfg: Any, tokenizer: Tokenizer, corpus: CorpusConfig) -> DataFacts:
    """Running text, in tokens."""

    def own(rows: RowSample) -> Encoded:
        return _texts(converted(rows.rows, to_text), rows, tokenizer)

    def builtin(built: CorpusConfig) -> Encoded:
        small = replace(built, document_bytes=min(built.document_bytes, _SAMPLE_BYTES))
        texts = list(build(small).documents("train"))
        share = built.document_bytes / max(sum(len(text.encode()) for text in texts), 1)
        found = _texts(texts, RowSample(count=len(texts) * share), tokenizer)
        found.size = sum(map(len, texts)) * share
        found.exact = False
        if found.count:
            found.held = found.count * built.validation_share
        else:
            found.held = 0.0
        return found

    parts = encoded_sources(cfg, corpus, own, builtin)
    tokens = [_all_tokens(part) for part in parts]
    facts = together(cfg, parts, tokens, "tokens")
    ids = [part.examples[0] for part in parts if part.examples]
    return replace(facts, examples=[np.concatenate(ids)] if ids else [])


def _texts(texts: Iterable[str], rows: RowSample, tokenizer: Tokenizer) -> Encoded:
    """One example: the tokens of the texts, one after the other, each closed by the end token."""
    taken: list[str] = []
    left = _MOST_CHARACTERS
    for text in texts:
        if left <= 0:
            break
        taken.append(text[:left])
        left -= len(taken[-1])
    ids: list[int] = []
    for encoded in tokenizer.encode_batch(taken):
        ids += [*encoded, tokenizer.eos_id]
    characters = sum(map(len, taken))
    size = rows.size
    if size is None and rows.count is not None and taken:
        size = characters / len(taken) * rows.count
    if ids:
        examples = [np.array(ids, np.int32)]
    else:
        examples = []
    return Encoded(examples, rows.count, False, characters, size)


def _all_tokens(part: Encoded) -> float | None:
    if not part.examples or part.size is None:
        return None
    return float(len(part.examples[0]) * part.size / max(part.characters, 1))


def chat_facts(cfg: SFTConfig, tokenizer: Tokenizer, corpus: CorpusConfig) -> DataFacts:
    """Chats as rows of ids and masks."""

    def encoded(chats: Iterable[Any]) -> list[ChatRow]:
        return list(encode_chats(chats, tokenizer, reject=lambda number, why: None))

    def own(rows: RowSample) -> Encoded:
        chats = [chat["messages"] for chat in converted(rows.rows, to_chat)]
        began = ticks()
        found = encoded_rows(encoded(chats), len(rows.rows), rows, _written(chats))
        found.seconds = ticks() - began
        return found

    def builtin(built: CorpusConfig) -> Encoded:
        small = replace(built, chat_count=min(built.chat_count, _SAMPLE_ROWS))
        chats = [chat["messages"] for chat in build(small).chats("train")]
        rows = RowSample(count=built.chat_count)
        began = ticks()
        found = encoded_rows(encoded(chats), len(chats), rows, _written(chats))
        found.seconds = ticks() - began
        found.held = built.chat_count * built.validation_share
        return found

    parts = encoded_sources(cfg, corpus, own, builtin)
    tokens = [tokens_of(part, lambda row: len(row.ids)) for part in parts]
    facts = together(cfg, parts, tokens, "chats")
    return replace(facts, examples=all_examples(parts))


def label_facts(cfg: ClassifyConfig, tokenizer: Tokenizer, corpus: CorpusConfig) -> DataFacts:
    """Texts to be told apart, each as its ids."""

    def encoded(texts: Sequence[str]) -> list[list[int]]:
        return [list(ids) for ids in tokenizer.encode_batch(list(texts))]

    def own(rows: RowSample) -> Encoded:
        labelled = converted(rows.rows, lambda row: to_label(row, cfg.text, cfg.label, cfg.pair))
        texts = []
        for one in labelled:
            text = one.text
            if one.pair:
                text = f"{text} {one.pair}"
            texts.append(text)
        return encoded_rows(encoded(texts), len(rows.rows), rows, sum(map(len, texts)))

    def builtin(built: CorpusConfig) -> Encoded:
        small = replace(built, chat_count=min(built.chat_count, _SAMPLE_ROWS))
        texts = [chat["messages"][0]["content"] for chat in build(small).chats("train")]
        rows = RowSample(count=built.chat_count)
        characters = sum(map(len, texts))
        found = encoded_rows(encoded(texts), len(texts), rows, characters)
        found.held = built.chat_count * built.validation_share
        return found

    parts = encoded_sources(cfg, corpus, own, builtin)
    tokens = [tokens_of(part, len) for part in parts]
    return replace(together(cfg, parts, tokens, "texts"), examples=all_examples(parts))


def prompt_facts(
    cfg: StageConfig, tokenizer: Tokenizer, corpus: CorpusConfig, *, problems: bool = False
) -> DataFacts:
    """Prompts as their ids; `problems`: those of the built-in corpus that are reasoned about."""

    def encoded(asked: Iterable[Any]) -> list[list[int]]:
        return _accepted(asked, lambda messages: prompt_ids(messages, tokenizer))

    def own(rows: RowSample) -> Encoded:
        asked = [messages for messages, _ in converted(rows.rows, to_prompt)]
        return encoded_rows(encoded(asked), len(rows.rows), rows, _written(asked))

    def builtin(built: CorpusConfig) -> Encoded:
        if problems:
            count = built.problem_count
        else:
            count = built.prompt_count
        texts = _builtin_prompts(built, problems)
        asked = [[{"role": "user", "content": text}] for text in texts]
        rows = RowSample(count=count)
        began = ticks()
        found = encoded_rows(encoded(asked), len(asked), rows, _written(asked))
        found.seconds = ticks() - began
        if problems:
            found.held = built.held_problem_count
        else:
            found.held = built.held_prompt_count
        return found

    parts = encoded_sources(cfg, corpus, own, builtin)
    tokens = [tokens_of(part, len) for part in parts]
    if problems:
        kind = "problems"
    else:
        kind = "prompts"
    facts = together(cfg, parts, tokens, kind)
    if isinstance(cfg, SampleConfig) and facts.rows is not None:
        rows = facts.rows + facts.held  # all of them are asked
        facts = replace(facts, rows=min(rows, cfg.prompts or rows), held=0.0)
    return replace(facts, examples=all_examples(parts))


def _builtin_prompts(built: CorpusConfig, problems: bool) -> list[str]:
    corpus: Corpus = build(
        replace(
            built,
            chat_count=min(built.chat_count, _SAMPLE_ROWS),
            prompt_count=min(built.prompt_count, _SAMPLE_ROWS),
            problem_count=min(built.problem_count, _SAMPLE_ROWS),
        )
    )
    rows: Iterator[dict[str, str]]
    if problems:
        rows = corpus.problems("train")
    else:
        rows = corpus.prompts("train")
    return [row["prompt"] for row in islice(rows, MOST_ROWS)]


def unknown_prompts(tokens: int = _UNKNOWN_PROMPT) -> list[list[int]]:
    """Stand for prompts that cannot be looked at."""
    return [[1 + n] * tokens for n in range(MOST_ROWS)]


def pair_facts(
    cfg: PairsConfig, tokenizer: Tokenizer, corpus: CorpusConfig, run: Path
) -> DataFacts:
    """Pairs as two completions of one prompt. Of a ratings.db all are read."""

    def encoded(rows: Iterable[dict[str, Any]]) -> list[TokenPair]:
        return _accepted(rows, lambda row: to_tokens(row, tokenizer))

    def own(rows: RowSample) -> Encoded:
        pairs = list(converted(rows.rows, to_pair))
        return encoded_rows(encoded(pairs), len(rows.rows), rows, _pair_text(pairs))

    def builtin(built: CorpusConfig) -> Encoded:
        small = replace(built, chat_count=min(built.chat_count, _SAMPLE_ROWS))
        pairs = builtin_pairs(small)
        count = min(built.chat_count, BUILTIN_PAIRS)
        rows = RowSample(count=count)
        return encoded_rows(encoded(pairs), len(pairs), rows, _pair_text(pairs))

    data = cfg.data or str(run / FILE)
    if _votes(data):
        rated = list(read_pairs(data))
        looked = rated[:MOST_ROWS]
        part = encoded_rows(encoded(looked), len(looked), RowSample(count=len(rated)), 0)
        part.characters = _pair_text(looked)
        parts = [part]
    else:
        parts = encoded_sources(cfg, corpus, own, builtin)
    for part in parts:
        if part.held is None:
            share: float = 0
            if not cfg.validation:
                share = cfg.held_share
            part.held = (part.count or 0.0) * share
            if part.count is not None:
                part.count = part.count - part.held
    tokens = [tokens_of(part, lambda p: p.chosen.length + p.rejected.length) for part in parts]
    return replace(together(cfg, parts, tokens, "pairs"), examples=all_examples(parts))


def _accepted(rows: Iterable[Any], encode: Callable[[Any], Example]) -> list[Example]:
    """The encoded rows, without those that `encode` rejects: the stage names them."""
    examples = []
    for row in rows:
        try:
            examples.append(encode(row))
        except BadRow:
            continue
    return examples


def _votes(data: str) -> bool:
    path = Path(data)
    return (path.suffix == ".db" and path.is_file()) or (path / FILE).is_file()


def _pair_text(pairs: Iterable[dict[str, Any]]) -> int:
    total = 0
    for pair in pairs:
        total += len(str(pair.get("prompt", ""))) + len(str(pair.get("chosen", "")))
        total += len(str(pair.get("rejected", "")))
    return total


def _written(chats: Iterable[Sequence[Any]]) -> int:
    """Characters of the messages."""
    total = 0
    for messages in chats:
        for message in messages:
            total += len(str(message.get("content") or ""))
    return total


def chat_rows(facts: DataFacts, width: int) -> ChatRows:
    """The examples of `chat_facts` as the rows that sources take; where no chat can be looked at,
    chats that fill rows of `width` tokens, of which half are learned."""
    if facts.examples:
        return ChatRows.of(facts.examples)
    ids = np.ones(width, np.int32)
    return ChatRows.of([ChatRow(ids, np.arange(width) >= width // 2)] * MOST_ROWS)


@lru_cache(maxsize=4)
def sample_texts(data: str, corpus: CorpusConfig) -> tuple[str, ...]:
    """Texts that a tokenizer which is not there yet can be made of, to count with."""
    built = corpus_of(data.split(",")[0], corpus)
    if built is None:
        rows = sample_rows(data.split(",")[0], DataSpec(data).reading)
        return tuple(converted(rows.rows, to_text))
    small = build(
        replace(
            built,
            document_bytes=min(built.document_bytes, _SAMPLE_BYTES),
            chat_count=min(built.chat_count, _SAMPLE_ROWS),
        )
    )
    texts = list(small.documents("train"))
    for chat in small.chats("train"):
        texts += [message["content"] for message in chat["messages"]]
    return tuple(texts)
