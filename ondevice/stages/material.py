"""What a stage learns from and is measured on: `builtin`, or a person's files, as token streams and chat rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ondevice.config.corpus import CorpusConfig
from ondevice.config.load import to_mapping
from ondevice.context import Context, digest, digest_path
from ondevice.data.chat import ChatRow, encode_chats
from ondevice.data.mixture import BY_NAME, mixed, mixture, one_after_another, sources
from ondevice.data.sources import hold_out, mixed_stream, tokenize_corpus, tokens_at
from ondevice.data.stored import ChatRows, link_from, place_of
from ondevice.data.tokenizer import Tokenizer
from ondevice.errors import UserError
from ondevice.progress import counted
from ondevice.randomness import permutation

if TYPE_CHECKING:
    from ondevice.data.readers import Rows

T = TypeVar("T")
Tokens = NDArray[np.integer[Any]]

HELD_PART = 0.1  # of a person's own data, where no validation file is given
HELD_MOST = 500  # rows
REJECTED = "rejected.jsonl"


@dataclass(frozen=True)
class Wanted:
    """What a stage asks for: one source or several, what is held out (empty: the last rows of each), how many rows of
    each source at most (0: all), and the seed of what a mixture repeats."""

    data: str
    validation: str = ""
    limit: int = 0
    seed: int = 0

    @classmethod
    def of(cls, cfg: Any) -> Wanted:
        """What the settings of a stage say."""
        return cls(cfg.data, cfg.validation, cfg.limit, cfg.seed)

    @property
    def weights(self) -> list[float | None]:
        return [source.weight for source in sources(self.data)]

    def key(self, corpus: CorpusConfig) -> str:
        """Names everything that decides what is read."""
        return f"{self} {data_digest(self.data, self.validation, corpus)}"

    def alone(self) -> list[Wanted]:
        """Each source by itself."""
        return [Wanted(source.data, "", self.limit, self.seed) for source in sources(self.data)]

    def held(self) -> list[Wanted]:
        """The sources of `validation`, all of them."""
        return [Wanted(source.data) for source in sources(self.validation)] if self.validation else []


def last_held(rows: Any, where: str, what: str) -> tuple[Any, Any]:
    """A person's own rows in two: the last tenth of them is held out. Raises UserError where none would be left."""
    if len(rows) < 2:
        raise UserError(f"holds one {what} only, or one within the limit", where=where,
                        hint="give more: the last tenth is held out where there is no validation file")
    held = min(max(1, int(len(rows) * HELD_PART)), HELD_MOST)
    return rows[:-held], rows[-held:]


def corpus_of(data: str, default: CorpusConfig) -> CorpusConfig | None:
    """What `builtin` (the run's corpus) or `builtin:RECIPE` means; None: `data` is a path, or several sources."""
    if data == "builtin":
        return default
    if data.startswith("builtin:") and len(sources(data)) == 1:
        from ondevice.config.recipe import load_recipe

        return load_recipe(data.partition(":")[2]).corpus
    return None


def data_digest(data: str, validation: str, default: CorpusConfig) -> str:
    """A hash of what will be read (of the name, where it is a data set of the Hub or a task of reasoning-gym): part of
    a stage's fingerprint. Raises UserError for a file that is not there."""
    def one(name: str) -> Any:
        corpus = corpus_of(name, default)
        if corpus is not None:
            return to_mapping(corpus)
        return name if name.startswith(BY_NAME) else digest_path(_existing(name))

    if corpus_of(data, default) is not None and not validation:
        return digest(one(data))
    return digest([one(source.data) if len(found) == 1 else [one(source.data), source.weight]
                   for named in (data, validation) if named for found in (sources(named),) for source in found])


def builtin_in(data: str, default: CorpusConfig) -> CorpusConfig | None:
    """The built-in corpus, where it is among the sources: before those of recipes `builtin` itself."""
    named = sorted((source.data for source in sources(data)), key=lambda name: name != "builtin")
    return next((corpus for name in named if (corpus := corpus_of(name, default)) is not None), None)


def _existing(path: str) -> Path:
    if not Path(path).exists():
        raise UserError("there is no such file or folder", where=path, hint="give a path, or builtin")
    return Path(path)


def texts(wanted: Wanted, ctx: Context) -> Iterator[str]:
    """Training documents of all sources, one source after the other. Raises UserError for missing, empty or unreadable
    data."""
    for one in wanted.alone():
        corpus = corpus_of(one.data, ctx.corpus)
        if corpus is not None:
            from ondevice.data.builtin import build

            yield from islice(build(corpus).documents("train"), one.limit or None)
            continue
        rows = _open(one.data, one.limit)
        yield from counted(_texts(rows), f"{ctx.name}: documents read")
        settle(rows, ctx)


def plain_texts(path: str) -> list[str]:
    """A person's documents, where no run keeps account of bad rows. Raises UserError as `texts` does."""
    from ondevice.data.formats import to_text

    return plain_rows(path, to_text)


def plain_rows(path: str, convert: Callable[[Any], T]) -> list[T]:
    """A person's rows as `converted` makes them, of one source or several, where no run keeps account of bad rows."""
    found: list[T] = []
    for source in sources(path):
        rows = _open(source.data)
        found += [made for _, made in _convert(rows, convert)]
        rows.check()
    return found


def plain_chats(path: str) -> list[list[dict[str, Any]]]:
    """A person's chats, where no run keeps account of bad rows; empty where the first row is none. Raises UserError as
    `chats` does."""
    from ondevice.data.formats import BadRow, to_chat

    rows = _open(sources(path)[0].data)
    try:
        to_chat(next(iter(rows))[0])
    except (BadRow, StopIteration):
        return []
    return [chat["messages"] for chat in plain_rows(path, to_chat)]


def halves(wanted: Wanted, ctx: Context, builtin: Callable[[CorpusConfig, int], tuple[T, T]],
           own: Callable[[Wanted], T], split: Callable[[T, str], tuple[T, T]]) -> tuple[list[T], list[T]]:
    """What is learned from and what is held out, a list with one entry a source: `builtin` gives both of the built-in
    corpus (its first rows), `own` reads all of a person's source, of which `split` holds the last part out where there
    is no validation file."""
    train, held = [], []
    for one in wanted.alone():
        corpus = corpus_of(one.data, ctx.corpus)
        if corpus is not None:
            rows, last = builtin(corpus, one.limit)
            held.append(last)
        elif wanted.validation:
            rows = own(one)
        else:
            rows, last = split(own(one), one.data)
            held.append(last)
        train.append(rows)
    if wanted.validation:
        held = [own(one) if corpus is None else builtin(corpus, 0)[1]
                for one in wanted.held() for corpus in (corpus_of(one.data, ctx.corpus),)]
    return train, held


def token_streams(wanted: Wanted, tokenizer: Tokenizer, ctx: Context) -> tuple[Tokens, Tokens]:
    """Training and held-out tokens, memory-mapped. Without a validation file the last tenth of each source is held
    out."""
    cache = ctx.folder.path / "data"

    def builtin(corpus: CorpusConfig, limit: int) -> tuple[Tokens, Tokens]:
        from ondevice.data.builtin import build

        made = build(corpus)
        train = tokenize_corpus(islice(made.documents("train"), limit or None), tokenizer, cache,
                                key=digest([to_mapping(corpus), limit]))
        return train, tokenize_corpus(made.documents("validation"), tokenizer, cache)

    train, held = halves(
        wanted, ctx, builtin, lambda one: _stream(one, tokenizer, ctx),
        lambda tokens, _: hold_out(tokens, HELD_PART, tokenizer.eos_id))
    eos = tokenizer.eos_id
    return mixed_stream(train, wanted.weights, eos), mixed_stream(held, [None] * len(held), eos)


def _stream(wanted: Wanted, tokenizer: Tokenizer, ctx: Context) -> Tokens:
    cache, key = ctx.folder.path / "data", wanted.key(ctx.corpus)
    reused(tokens_at(cache, tokenizer, key), wanted, ctx)
    return tokenize_corpus(texts(wanted, ctx), tokenizer, cache, key=key)


@dataclass(frozen=True)
class Chats:
    """Conversations as rows of ids and masks."""

    train: ChatRows
    held: ChatRows


def chats(wanted: Wanted, tokenizer: Tokenizer, ctx: Context) -> Chats:
    """Raises UserError for missing, empty or unreadable data, or where more than 1 % of the rows are bad."""
    train, held = halves(wanted, ctx, partial(_builtin_chats, tokenizer=tokenizer),
                         lambda one: _chat_rows(one, tokenizer, ctx), partial(last_held, what="chat"))

    def together(parts: Sequence[ChatRows], weights: Sequence[float | None]) -> ChatRows:
        if len(parts) == 1:
            return parts[0]
        return ChatRows.joined(parts, mixed(list(map(len, parts)), weights, wanted.seed))

    return Chats(together(train, wanted.weights), together(held, [None] * len(held)))


def _builtin_chats(corpus: CorpusConfig, limit: int, tokenizer: Tokenizer) -> tuple[ChatRows, ChatRows]:
    from ondevice.data.builtin import build

    made = build(corpus)
    train, held = (ChatRows.of(encode_chats([c["messages"] for c in found], tokenizer))
                   for found in (islice(made.chats("train"), limit or None), made.chats("validation")))
    return train, held


@dataclass(frozen=True)
class Labelled:
    """(text, class) rows."""

    train: list[tuple[str, str]]
    held: list[tuple[str, str]]


def labelled(wanted: Wanted, text: str, label: str, ctx: Context) -> Labelled:
    """Rows of the columns `text` and `label`; of the built-in corpus, each request and the kind of task that it is.
    Raises UserError for missing, empty or unreadable data, or for held-out classes that stand nowhere else."""
    def to_pair(row: Any) -> tuple[str, str]:
        from ondevice.data.formats import BadRow

        if not isinstance(row.get(text), str) or not row[text].strip():
            raise BadRow(f"the column {text!r} holds no text")
        if not isinstance(row.get(label), str | int):
            raise BadRow(f"the column {label!r} holds no class")
        return row[text], str(row[label])

    train, held = halves(wanted, ctx, _builtin_labels, lambda one: converted(one, to_pair, ctx),
                         partial(last_held, what="row"))
    found = Labelled(list(mixture(train, wanted.weights, wanted.seed)), list(one_after_another(held)))
    if unknown := {name for _, name in found.held} - {name for _, name in found.train}:
        raise UserError(f"the held-out class {min(unknown)!r} is in no row to learn from",
                        where=wanted.validation or wanted.data, hint="mix the rows, or give --validation FILE")
    return found


def _builtin_labels(corpus: CorpusConfig, limit: int) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    from ondevice.data.builtin import build

    made = build(corpus)
    train, held = ([(chat["messages"][0]["content"], chat["kind"]) for chat in found]
                   for found in (islice(made.chats("train"), limit or None), made.chats("validation")))
    return train, held


def replayed(data: str, share: float, width: int, beside: ChatRows, seed: int, tokenizer: Tokenizer,
             ctx: Context) -> ChatRows:
    """`beside`, and after its rows pieces of `width`+1 tokens of the text `data`, each token of them to be learned: so
    many that they are `share` of all tokens. Raises UserError as `texts` does."""
    wanted = Wanted(data)
    stream = mixed_stream([_stream(one, tokenizer, ctx) for one in wanted.alone()], wanted.weights, tokenizer.eos_id)
    pieces = max(1, (len(stream) - 1) // width)
    count = round(share / (1 - share) * beside.tokens / width)
    drawn = chain.from_iterable(permutation(seed, "replay", epoch, pieces) for epoch in range(-(-count // pieces)))
    starts = np.fromiter(islice(drawn, count), np.int64, count) * width
    learned = np.broadcast_to(np.True_, len(stream))  # one byte for all
    text = ChatRows(stream, learned, starts, np.minimum(starts + width + 1, len(stream)))
    return ChatRows.joined([beside, text], np.arange(len(beside) + count))


def _chat_rows(wanted: Wanted, tokenizer: Tokenizer, ctx: Context) -> ChatRows:
    """On the disk, row by row: a file may be larger than the memory."""
    from ondevice.data.formats import to_chat

    def encoded() -> Iterator[ChatRow]:
        rows = _open(wanted.data, wanted.limit)
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

    place = place_of(ctx.folder.path / "data", "chats", tokenizer, wanted.key(ctx.corpus))
    return ChatRows.stored(reused(place, wanted, ctx), encoded)


def reused(place: Path, wanted: Wanted, ctx: Context) -> Path:
    """`place`, filled with what the same stage of another run beside this one has made of the same files by the same
    tokenizer: its name says so. What the Hub or a gym gives under a name may be another thing tomorrow: not that."""
    if place.exists() or wanted.data.startswith(BY_NAME):
        return place
    from ondevice.data.readers import add_lines

    names = tuple(str(Path(source.data).expanduser()) for source in sources(wanted.data))
    for run in sorted(ctx.folder.path.parent.parent.iterdir()):
        stage = run / ctx.folder.path.name
        if not (stage / "data" / place.name).exists():
            continue
        link_from(stage / "data" / place.name, place)
        ctx.say(f"{ctx.name}: {wanted.data} was read by {run.name} already")
        if (stage / REJECTED).is_file():
            lines = (stage / REJECTED).read_text(encoding="utf-8").splitlines()
            own = [line for line in lines if str(json.loads(line)["where"]).startswith(names)]
            if new := add_lines(ctx.folder.path / REJECTED, own):
                ctx.warn(f"{new} of its rows could not be used; {ctx.folder.path / REJECTED} lists them")
        break
    return place


def converted(wanted: Wanted, convert: Callable[[Any], T], ctx: Context) -> list[T]:
    """A person's rows, each made into something else; bad ones are set aside. Raises UserError as `chats` does."""
    return [made for _, made in taken(wanted, convert, ctx)]


def taken(wanted: Wanted, convert: Callable[[Any], T], ctx: Context) -> Iterator[tuple[str, T]]:
    """(place, row) of `converted`, one at a time."""
    rows = _open(wanted.data, wanted.limit)
    yield from counted(_convert(rows, convert), f"{ctx.name}: rows read")
    settle(rows, ctx)


def _open(path: str, limit: int = 0) -> Rows:
    from ondevice.data.readers import read

    return read(path, limit=limit)


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
        file = ctx.folder.path / REJECTED
        rows.write_rejected(file)
        ctx.warn(f"{len(rows.rejected)} of {rows.seen} rows could not be used; {file} lists them")
