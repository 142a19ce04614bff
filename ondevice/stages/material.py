"""What a stage learns from and is measured on: `builtin`, or a person's files, as token streams and chat rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ondevice.config.corpus import CorpusConfig
from ondevice.context import Context, digest, digest_path
from ondevice.data.chat import ChatRow, encode_chats
from ondevice.data.sources import hold_out, tokenize_corpus
from ondevice.data.stored import ChatRows, place_of
from ondevice.data.tokenizer import Tokenizer
from ondevice.errors import UserError
from ondevice.progress import counted
from ondevice.randomness import permutation

if TYPE_CHECKING:
    from ondevice.data.readers import Rows

T = TypeVar("T")
Tokens = NDArray[np.integer[Any]]

HELD_PART = 0.1  # of a person's own data, where no validation file is given
HELD_MOST = 500  # chats
BY_NAME = ("hub:", "gym:")  # data that is no file


def corpus_of(data: str, default: CorpusConfig) -> CorpusConfig | None:
    """What `builtin` (the run's corpus) or `builtin:RECIPE` means; None: `data` is a path."""
    if data == "builtin":
        return default
    if data.startswith("builtin:"):
        from ondevice.config.recipe import load_recipe

        return load_recipe(data.partition(":")[2]).corpus
    return None


def data_digest(data: str, validation: str, default: CorpusConfig) -> str:
    """A hash of what will be read (of the name, where it is a data set of the Hub or a task of reasoning-gym): part of
    a stage's fingerprint. Raises UserError for a file that is not there."""
    from ondevice.config.load import to_mapping

    corpus = corpus_of(data, default)
    if corpus is not None:
        return digest(to_mapping(corpus))
    return digest([p if p.startswith(BY_NAME) else digest_path(_existing(p)) for p in (data, validation) if p])


def _existing(path: str) -> Path:
    if not Path(path).exists():
        raise UserError("there is no such file or folder", where=path, hint="give a path, or builtin")
    return Path(path)


def texts(data: str, ctx: Context) -> Iterator[str]:
    """Training documents. Raises UserError for missing, empty or unreadable data."""
    corpus = corpus_of(data, ctx.corpus)
    if corpus is not None:
        from ondevice.data.builtin import build

        yield from build(corpus).documents("train")
        return
    rows = _open(data)
    yield from counted(_texts(rows), f"{ctx.name}: documents read")
    settle(rows, ctx)


def plain_texts(path: str) -> list[str]:
    """A person's documents, where no run keeps account of bad rows. Raises UserError as `texts` does."""
    from ondevice.data.formats import to_text

    return plain_rows(path, to_text)


def plain_rows(path: str, convert: Callable[[Any], T]) -> list[T]:
    """A person's rows as `converted` makes them, where no run keeps account of bad rows."""
    rows = _open(path)
    found = [made for _, made in _convert(rows, convert)]
    rows.check()
    return found


def plain_chats(path: str) -> list[list[dict[str, Any]]]:
    """A person's chats, where no run keeps account of bad rows; empty where the first row is none. Raises UserError as
    `chats` does."""
    from ondevice.data.formats import BadRow, to_chat

    rows = _open(path)
    try:
        to_chat(next(iter(rows))[0])
    except (BadRow, StopIteration):
        return []
    return [chat["messages"] for chat in plain_rows(path, to_chat)]


def token_streams(data: str, validation: str, tokenizer: Tokenizer, ctx: Context) -> tuple[Tokens, Tokens]:
    """Training and held-out tokens, memory-mapped. Without a validation file the last tenth is held out."""
    cache = ctx.folder.path / "data"
    corpus = corpus_of(data, ctx.corpus)
    train = tokenize_corpus(texts(data, ctx), tokenizer, cache, key=f"{data} {data_digest(data, '', ctx.corpus)}")
    if corpus is not None:
        from ondevice.data.builtin import build

        return train, tokenize_corpus(build(corpus).documents("validation"), tokenizer, cache)
    if validation:
        key = f"{validation} {data_digest(validation, '', ctx.corpus)}"
        return train, tokenize_corpus(texts(validation, ctx), tokenizer, cache, key=key)
    return hold_out(train, HELD_PART, tokenizer.eos_id)


@dataclass(frozen=True)
class Chats:
    """Conversations as rows of ids and masks."""

    train: ChatRows
    held: ChatRows


def chats(data: str, validation: str, tokenizer: Tokenizer, ctx: Context) -> Chats:
    """Raises UserError for missing, empty or unreadable data, or where more than 1 % of the rows are bad."""
    corpus = corpus_of(data, ctx.corpus)
    if corpus is not None:
        from ondevice.data.builtin import build

        made = build(corpus)
        train, held = (encode_chats([c["messages"] for c in found], tokenizer)
                       for found in (made.chats("train"), made.chats("validation")))
        return Chats(ChatRows.of(train), ChatRows.of(held))
    rows = _chat_rows(data, tokenizer, ctx)
    if validation:
        return Chats(rows, _chat_rows(validation, tokenizer, ctx))
    if len(rows) < 2:
        raise UserError("holds one chat only", where=data, hint="give more, or --validation FILE")
    held_rows = min(max(1, int(len(rows) * HELD_PART)), HELD_MOST)
    return Chats(rows[:-held_rows], rows[-held_rows:])


@dataclass(frozen=True)
class Labelled:
    """(text, class) rows."""

    train: list[tuple[str, str]]
    held: list[tuple[str, str]]


def labelled(data: str, validation: str, text: str, label: str, ctx: Context) -> Labelled:
    """Rows of the columns `text` and `label`; of the built-in corpus, each request and the kind of task that it is.
    Raises UserError for missing, empty or unreadable data, or for held-out classes that stand nowhere else."""
    corpus = corpus_of(data, ctx.corpus)
    if corpus is not None:
        from ondevice.data.builtin import build

        made = build(corpus)
        train, held = ([(chat["messages"][0]["content"], chat["kind"]) for chat in found]
                       for found in (made.chats("train"), made.chats("validation")))
    else:
        def to_pair(row: Any) -> tuple[str, str]:
            from ondevice.data.formats import BadRow

            if not isinstance(row.get(text), str) or not row[text].strip():
                raise BadRow(f"the column {text!r} holds no text")
            if not isinstance(row.get(label), str | int):
                raise BadRow(f"the column {label!r} holds no class")
            return row[text], str(row[label])

        train = converted(data, to_pair, ctx)
        if validation:
            held = converted(validation, to_pair, ctx)
        elif len(train) < 2:
            raise UserError("holds one row only", where=data, hint="give more, or --validation FILE")
        else:
            count = min(max(1, int(len(train) * HELD_PART)), HELD_MOST)
            train, held = train[:-count], train[-count:]
    if unknown := {name for _, name in held} - {name for _, name in train}:
        raise UserError(f"the held-out class {min(unknown)!r} is in no row to learn from", where=validation or data,
                        hint="mix the rows, or give --validation FILE")
    return Labelled(train, held)


def replayed(data: str, share: float, width: int, beside: ChatRows, seed: int, tokenizer: Tokenizer,
             ctx: Context) -> ChatRows:
    """`beside`, and after its rows pieces of `width`+1 tokens of the text `data`, each token of them to be learned: so
    many that they are `share` of all tokens. Raises UserError as `texts` does."""
    key = f"{data} {data_digest(data, '', ctx.corpus)}"
    stream = tokenize_corpus(texts(data, ctx), tokenizer, ctx.folder.path / "data", key=key)
    pieces = max(1, (len(stream) - 1) // width)
    wanted = round(share / (1 - share) * beside.tokens / width)
    drawn = chain.from_iterable(permutation(seed, "replay", epoch, pieces) for epoch in range(-(-wanted // pieces)))
    ids = (np.asarray(stream[start * width:start * width + width + 1], np.int32) for start in islice(drawn, wanted))
    rows = (ChatRow(piece, np.ones(len(piece), np.bool_)) for piece in ids)
    # which chats, how much of which text, in which order: the stage's fingerprint says all of it
    place = place_of(ctx.folder.path / "data", "replayed", tokenizer, digest(ctx.fingerprint))
    return ChatRows.stored(place, lambda: chain(beside, rows))


def _chat_rows(path: str, tokenizer: Tokenizer, ctx: Context) -> ChatRows:
    """On the disk, row by row: a file may be larger than the memory."""
    from ondevice.data.formats import to_chat

    def encoded() -> Iterator[ChatRow]:
        rows = _open(path)
        place = ""

        def conversations() -> Iterator[list[dict[str, Any]]]:
            nonlocal place
            for here, chat in _convert(rows, to_chat):
                place = here
                yield chat["messages"]

        # a chat is rendered, and so rejected, before the next one is asked for
        yield from encode_chats(counted(conversations(), f"{ctx.name}: chats read"), tokenizer,
                                reject=lambda _, reason: rows.reject(place, reason))
        settle(rows, ctx)

    key = f"{path} {data_digest(path, '', ctx.corpus)}"
    return ChatRows.stored(place_of(ctx.folder.path / "data", "chats", tokenizer, key), encoded)


def converted(path: str, convert: Callable[[Any], T], ctx: Context) -> list[T]:
    """A person's rows, each made into something else; bad ones are set aside. Raises UserError as `chats` does."""
    rows = _open(path)
    found = [made for _, made in _convert(rows, convert)]
    settle(rows, ctx)
    return found


def _open(path: str) -> Rows:
    from ondevice.data.readers import read

    return read(path)


def _texts(rows: Rows) -> Iterator[str]:
    from ondevice.data.formats import to_text

    for _, text in _convert(rows, to_text):
        yield text


def _convert(rows: Rows, convert: Callable[[Any], T]) -> Iterator[tuple[str, T]]:
    """(place, converted row); a row that cannot be converted is set aside."""
    from ondevice.data.formats import BadRow

    for row, place in rows:
        try:
            made = convert(row)
        except BadRow as error:
            rows.reject(place, str(error), row)
        else:
            yield place, made


def settle(rows: Rows, ctx: Context) -> None:
    """Tells of the rows that were set aside and keeps them. Raises UserError where they are too many."""
    rows.check()
    if rows.rejected:
        file = ctx.folder.path / "rejected.jsonl"
        rows.write_rejected(file)
        ctx.warn(f"{len(rows.rejected)} of {rows.seen} rows could not be used; {file} lists them")
