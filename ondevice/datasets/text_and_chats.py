"""What a stage learns from and is measured on, as token streams and rows: of the built-in corpus,
or of a person's files."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from math import ceil
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ondevice.common.errors import UserError
from ondevice.common.files import digest
from ondevice.common.rng import permutation
from ondevice.config.corpus import CorpusConfig
from ondevice.config.load import to_mapping
from ondevice.data.batches import hold_out, mixed_stream, tokenize_corpus, tokens_at
from ondevice.data.builtin.corpus import build
from ondevice.data.chat_encoding import ChatRow, encode_chats
from ondevice.data.class_labels import LabelledText
from ondevice.data.context import DataContext
from ondevice.data.documents import Documents
from ondevice.data.formats import to_chat, to_label, to_text
from ondevice.data.mixture import epoch_order, mixture, one_after_another
from ondevice.data.rows import Rows
from ondevice.data.special_token_text import Spelt, separated
from ondevice.data.token_cache import ChatRows, place_of
from ondevice.data.tokenizer import Tokenizer
from ondevice.datasets.spec import (
    DataSpec,
    convert_rows,
    converted_rows,
    corpus_of,
    report_rejected,
    reuse_cached,
)
from ondevice.datasets.split import (
    HELD_PART,
    Keys,
    key_of,
    last_together,
    learned_too,
    left_to_learn,
)

T = TypeVar("T")
Tokens = NDArray[np.integer[Any]]


class Needed:
    """How many tokens a stage reads of a source (0: all of it), counted as they are made."""

    def __init__(self, most: int = 0) -> None:
        self.most = most
        self.made = 0

    def add(self, tokens: int) -> None:
        self.made += tokens

    def reached(self) -> bool:
        """Whether no further document is needed."""
        return 0 < self.most <= self.made


def texts(wanted: DataSpec, ctx: DataContext, needed: Needed | None = None) -> Iterator[str]:
    """Training documents of all sources, one source after the other; no more of a person's source
    than are `needed`. Raises UserError for missing, empty or unreadable data."""
    needed = needed or Needed()
    ones = [wanted]
    if wanted.split == "train":
        ones = wanted.alone()
    for one in ones:
        corpus = corpus_of(one.data, ctx.corpus)
        if corpus is not None:
            yield from islice(build(corpus).documents("train"), one.limit or None)
            continue
        rows = one.rows()
        rows.enough = needed.reached
        yield from ctx.progress(_texts(rows), "documents read")
        report_rejected(rows, ctx)
        if needed.reached():
            ctx.tell(
                f"{rows.seen:,} documents of {one.data} were read, {needed.made:,} tokens: "
                "as many as the steps need"
            )


def train_and_heldout(
    wanted: DataSpec,
    ctx: DataContext,
    builtin: Callable[[CorpusConfig, int], tuple[T, T]],
    own: Callable[[DataSpec], T],
    split: Callable[[T, str], tuple[T, T]],
) -> tuple[list[T], list[T]]:
    """What is learned from and what is held out, a list with one entry a source: `builtin` gives
    both of the built-in corpus (its first rows), `own` reads all of a person's source, of which
    `split` holds the last part out where there is no validation file."""
    train: list[T] = []
    heldout: list[T] = []
    for one in wanted.alone():
        corpus = corpus_of(one.data, ctx.corpus)
        if corpus is not None:
            rows, last = builtin(corpus, one.limit)
            heldout.append(last)
        elif wanted.validation:
            rows = own(one)
        else:
            rows, last = one.in_two(own, split)
            heldout.append(last)
        train.append(rows)
    if not wanted.validation:
        return train, heldout
    apart: list[T] = []
    for one in wanted.held():
        corpus = corpus_of(one.data, ctx.corpus)
        if corpus is None:
            apart.append(own(one))
        else:
            apart.append(builtin(corpus, 0)[1])
    return train, apart


def token_streams(
    wanted: DataSpec, tokenizer: Tokenizer, ctx: DataContext, separator: str = "", most: int = 0
) -> tuple[Tokens, Tokens]:
    """Training and held-out tokens, memory-mapped. Without a validation file the last tenth of each
    source is held out. `separator`: text that ends a document of a person's own. `most`: about how
    many tokens are read of each such source to learn from; 0: all."""
    cache = ctx.cache
    eos = tokenizer.eos_id
    progress = partial(ctx.progress, what="documents compared")

    def documents(tokens: Tokens) -> Documents:
        return Documents.of(tokens, eos, progress)

    def builtin(corpus: CorpusConfig, limit: int) -> tuple[Documents, Documents]:
        from ondevice.data.builtin.corpus import build

        built = build(corpus)
        first = islice(built.documents("train"), limit or None)
        key = digest([to_mapping(corpus), limit])
        train = tokenize_corpus(first, tokenizer, cache, key=key)
        heldout = tokenize_corpus(built.documents("validation"), tokenizer, cache)
        return documents(train), documents(heldout)

    if not wanted.validation:
        most = ceil(most / (1 - HELD_PART))

    def own(one: DataSpec) -> Documents:
        needed = most if one.split == "train" else 0
        return documents(_stream(one, tokenizer, ctx, separator, needed))

    last = partial(_last_documents, eos=eos, ctx=ctx)
    train, heldout = train_and_heldout(wanted, ctx, builtin, own, last)
    left, apart = _without_held_documents(train, heldout, wanted, ctx)
    return mixed_stream(left, wanted.weights, eos), mixed_stream(apart, [None] * len(apart), eos)


def _last_documents(
    whole: Documents, where: str, eos: int, ctx: DataContext
) -> tuple[Documents, Documents]:
    """The last tenth of the tokens is held out, except documents that stand before it too: these
    are learned from. Raises UserError where there is too little text."""
    first, _ = hold_out(whole.tokens, HELD_PART, eos)
    train, heldout = whole.parted(len(first))
    again = np.isin(heldout.keys, train.keys)
    if again.all():
        ctx.warn(learned_too(where, "document", "of the last tenth stand before it too"))
        return train, replace(heldout, keys=heldout.keys[:0])
    if again.any():
        return train.followed_by(heldout.only(again)), heldout.only(~again)
    return train, heldout


def _without_held_documents(
    train: list[Documents], heldout: list[Documents], wanted: DataSpec, ctx: DataContext
) -> tuple[list[Any], list[Any]]:
    """(tokens to learn from, tokens held out) of each source. Raises UserError where nothing is
    left of one.
    """
    left = left_to_learn(
        [part.keys for part in train],
        [part.keys for part in heldout],
        wanted.data,
        "document",
        ctx.warn,
    )
    streams = [part.only(which).stream for part, which in zip(train, left, strict=True)]
    return streams, [part.stream for part in heldout]


def _stream(
    wanted: DataSpec,
    tokenizer: Tokenizer,
    ctx: DataContext,
    separator: str | None = None,
    most: int = 0,
) -> Tokens:
    """`separator`: as in `token_streams`; None where the stage has no such setting. `most`: tokens
    after which no further document is read; 0: all are.
    """
    cache = ctx.cache
    needed = Needed(most)
    key = wanted.key(ctx.corpus)
    if separator:
        key = digest([key, separator])
    if most:
        key = digest([key, most])
    reuse_cached(tokens_at(cache, tokenizer, key), wanted, ctx)
    spelt = Spelt(tokenizer)

    def whole() -> Iterator[str]:
        ended = 0
        for text in texts(wanted, ctx, needed):
            if separator:
                ended += text.count(separator)
            yield text
        if separator and not ended:
            ctx.warn(f"no text of {wanted.data} holds the separator {separator!r}")

    documents = spelt.texts(separated(whole(), separator or ""))
    stream = tokenize_corpus(documents, tokenizer, cache, key=key, made=needed.add)
    for line in spelt.told(separator=separator == ""):
        ctx.warn(line)
    return stream


@dataclass(frozen=True)
class Chats:
    """Conversations as rows of ids and masks."""

    train: ChatRows
    held: ChatRows


def chats(
    wanted: DataSpec, tokenizer: Tokenizer, ctx: DataContext, *, whole: bool = False
) -> Chats:
    """What is held out is learned nowhere: not the same chat as a whole, and, where the last chats
    of a source are held out, no other turn of them. `whole`: every token is to be learned, so that
    a chat with a turn of weight 0 is a bad row. Raises UserError for missing, empty or unreadable
    data, or where more than 1 % of the rows are bad."""
    wanted = wanted.for_template(tokenizer)
    builtin = partial(_builtin_chats, tokenizer=tokenizer)
    own = partial(_chat_rows, tokenizer=tokenizer, ctx=ctx, whole=whole)
    last = partial(_last_chats, ctx=ctx)
    train, heldout = train_and_heldout(wanted, ctx, builtin, own, last)
    train = _without(train, heldout, wanted.data, ctx)

    def together(parts: Sequence[ChatRows], weights: Sequence[float | None]) -> ChatRows:
        if len(parts) == 1:
            return parts[0]
        return ChatRows.joined(parts, epoch_order(list(map(len, parts)), weights, wanted.seed))

    return Chats(together(train, wanted.weights), together(heldout, [None] * len(heldout)))


def _last_chats(rows: ChatRows, where: str, ctx: DataContext) -> tuple[ChatRows, ChatRows]:
    """About the last tenth of the rows is held out, rows that begin with the same question and
    answer together: they are turns of one chat, or the same one again. Raises UserError as
    `last_together`."""
    assert rows.keys is not None
    chosen, apart = last_together(rows.keys[:, 0], where, "chat", warn=ctx.warn)
    if not apart:
        rows = ChatRows(rows.ids, rows.mask, rows.starts, rows.ends)
    return rows.only(~chosen), rows.only(chosen)


def _without(
    train: list[ChatRows], heldout: list[ChatRows], data: str, ctx: DataContext
) -> list[ChatRows]:
    """Rows to learn from that are not held out as they are. Raises UserError where nothing is left
    of a source.
    """

    left = left_to_learn(_whole_keys(train), _whole_keys(heldout), data, "chat", ctx.warn)
    kept = []
    for rows, which in zip(train, left, strict=True):
        if which is not None:
            rows = rows.only(which)
        kept.append(rows)
    return kept


def _whole_keys(parts: Sequence[ChatRows]) -> list[Keys | None]:
    """Of each source's rows a hash of the chat as a whole; None where a source has no hashes."""
    keys: list[Keys | None] = []
    for rows in parts:
        if rows.keys is None:
            keys.append(None)
        else:
            keys.append(rows.keys[:, 1])
    return keys


def _keys_of(messages: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """(a hash of a chat up to the first answer to its user, one of the whole)."""
    opening = len(messages)
    question_seen = False
    for n, message in enumerate(messages):
        if question_seen and message["role"] == "assistant":
            opening = n + 1
            break
        question_seen = question_seen or message["role"] == "user"
    return key_of(messages[:opening]), key_of(messages)


def _builtin_chats(
    corpus: CorpusConfig, limit: int, tokenizer: Tokenizer
) -> tuple[ChatRows, ChatRows]:
    built = build(corpus)

    def rows(examples: Iterable[Mapping[str, Any]]) -> ChatRows:
        said = [chat["messages"] for chat in examples]
        numbers = array("q")
        encoded = ChatRows.of(encode_chats(said, tokenizer, numbers=numbers))
        keys = np.array(list(map(_keys_of, said)), np.uint64).reshape(-1, 2)
        encoded.keys = keys[np.array(numbers, np.int64)]
        return encoded

    return rows(islice(built.chats("train"), limit or None)), rows(built.chats("validation"))


@dataclass(frozen=True)
class Labelled:
    """Texts with their classes."""

    train: list[LabelledText]
    held: list[LabelledText]


def labelled_texts(
    wanted: DataSpec, text: str, label: str, ctx: DataContext, pair: str = ""
) -> Labelled:
    """Rows of the columns `text` and `label`, of two texts where `pair` names the second one; of
    the built-in corpus, each request and the kind of task that it is. Raises UserError for missing,
    empty or unreadable data, or for held-out classes that stand nowhere else."""
    specs = (*wanted.alone(), *wanted.held())
    if pair and any(corpus_of(one.data, ctx.corpus) for one in specs):
        raise UserError(
            "the built-in corpus has no second text",
            where="pair",
            hint="leave it out, or name other data",
        )
    convert = partial(to_label, text=text, label=label, pair=pair)

    def own(one: DataSpec) -> list[LabelledText]:
        return converted_rows(one, convert, ctx)

    last = partial(_last_labelled, ctx=ctx)
    train, heldout = train_and_heldout(wanted, ctx, _builtin_labels, own, last)
    keys = list(map(_text_keys, train))
    held_keys = list(map(_text_keys, heldout))
    left = left_to_learn(keys, held_keys, wanted.data, "text", ctx.warn)
    kept = [_only(rows, which) for rows, which in zip(train, left, strict=True)]
    mixed = mixture(kept, wanted.weights, wanted.seed)
    labelled = Labelled(list(mixed), list(one_after_another(heldout)))
    unknown = {row.label for row in labelled.held} - {row.label for row in labelled.train}
    if unknown:
        raise UserError(
            f"the held-out class {min(unknown)!r} is in no row to learn from",
            where=wanted.validation or wanted.data,
            hint="mix the rows, or give --validation FILE",
        )
    return labelled


def _only(rows: Sequence[LabelledText], which: NDArray[np.bool_]) -> list[LabelledText]:
    return [row for row, kept in zip(rows, which, strict=True) if kept]


def _last_labelled(
    rows: list[LabelledText], where: str, ctx: DataContext
) -> tuple[list[LabelledText], list[LabelledText]]:
    """About the last tenth of the rows is held out, the same text again with it. Raises UserError
    as `last_together`."""
    chosen, _ = last_together(_text_keys(rows), where, "text", "are alike", ctx.warn)
    return _only(rows, ~chosen), _only(rows, chosen)


def _text_keys(rows: Sequence[LabelledText]) -> Keys:
    """(N,) a hash of each text with the one beside it, whatever its class."""
    return np.fromiter((key_of([row.text, row.pair]) for row in rows), np.uint64, len(rows))


def _builtin_labels(
    corpus: CorpusConfig, limit: int
) -> tuple[list[LabelledText], list[LabelledText]]:
    built = build(corpus)
    train = _requests(islice(built.chats("train"), limit or None))
    return train, _requests(built.chats("validation"))


def _requests(chats: Iterable[Mapping[str, Any]]) -> list[LabelledText]:
    """What each chat asks for, and the kind of task that it is."""
    return [LabelledText(chat["messages"][0]["content"], chat["kind"]) for chat in chats]


def with_replay(
    data: str,
    share: float,
    width: int,
    beside: ChatRows,
    seed: int,
    tokenizer: Tokenizer,
    ctx: DataContext,
) -> ChatRows:
    """`beside`, and after its rows pieces of `width`+1 tokens of the text `data`, each token of
    them to be learned: so many that they are `share` of all tokens. Raises UserError as `texts`
    does."""
    wanted = DataSpec(data)
    streams = [_stream(one, tokenizer, ctx) for one in wanted.alone()]
    stream = mixed_stream(streams, wanted.weights, tokenizer.eos_id)
    pieces = max(1, (len(stream) - 1) // width)
    count = round(share / (1 - share) * beside.tokens / width)
    epochs = -(-count // pieces)
    drawn = chain.from_iterable(permutation(seed, "replay", n, pieces) for n in range(epochs))
    starts = np.fromiter(islice(drawn, count), np.int64, count) * width
    learned = np.broadcast_to(np.True_, len(stream))  # one byte for all
    text = ChatRows(stream, learned, starts, np.minimum(starts + width + 1, len(stream)))
    return ChatRows.joined([beside, text], np.arange(len(beside) + count))


def _chat_rows(wanted: DataSpec, tokenizer: Tokenizer, ctx: DataContext, whole: bool) -> ChatRows:
    """On the disk, row by row: a file may be larger than the memory."""
    numbers = array("q")  # of each row its chat
    keys = array("Q")  # of each chat two

    def encoded() -> Iterator[ChatRow]:
        rows = wanted.rows()
        spelt = Spelt(tokenizer)
        place = ""

        def conversations() -> Iterator[list[dict[str, Any]]]:
            nonlocal place
            for here, chat in convert_rows(rows, to_chat):
                place = here
                if whole and _has_unlearned_turn(chat["messages"]):
                    rows.reject(
                        here,
                        "a turn is not to be learned (it has weight 0, or says so), and loss_on all "
                        "learns every token",
                    )
                    continue
                spelt.look(chat["messages"])
                keys.extend(_keys_of(chat["messages"]))
                yield chat["messages"]

        def reject(_: int, reason: str) -> None:
            # a chat is rendered, and so rejected, before the next one is asked for
            rows.reject(place, reason)

        read = ctx.progress(conversations(), "chats read")
        yield from encode_chats(read, tokenizer, reject=reject, numbers=numbers)
        report_rejected(rows, ctx)
        for line in spelt.told():
            ctx.warn(line)

    def keys_of_rows() -> NDArray[np.uint64]:
        return np.array(keys, np.uint64).reshape(-1, 2)[np.array(numbers, np.int64)]

    key = f"{wanted.key(ctx.corpus)} by chat"
    if whole:
        key = digest([key, "whole"])
    place = place_of(ctx.cache, "chats", tokenizer, key)
    return ChatRows.stored(reuse_cached(place, wanted, ctx), encoded, keys_of_rows)


def _has_unlearned_turn(messages: Iterable[Mapping[str, Any]]) -> bool:
    return any(message.get("weight") == 0 for message in messages)


def _texts(rows: Rows) -> Iterator[str]:
    for _, text in convert_rows(rows, to_text):
        yield text
