"""What a stage asks for: a person's files or data of the Hub by name, the built-in corpus, or several of them; and a
person's rows, of which the bad ones are set aside and told of."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ondevice import checkpoint
from ondevice.config.corpus import CorpusConfig
from ondevice.config.load import to_mapping
from ondevice.context import Context, digest, digest_path
from ondevice.data.classes import NO_LABEL
from ondevice.data.hub_rows import PREFIX
from ondevice.data.mixture import BY_NAME, sources
from ondevice.data.stored import link_from
from ondevice.data.tokenizer_files import read_json
from ondevice.errors import UserError
from ondevice.progress import counted

if TYPE_CHECKING:
    from ondevice.data.readers import Rows

T = TypeVar("T")
HELD_PART = 0.1  # of a person's own data, where no validation file is given
HELD_MOST = 500  # rows
REJECTED = "rejected.jsonl"
COMMITS = "commits.json"
"""Of each data set of the Hub that a stage has read: its commit, empty where that is not known."""


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
        """Each source by itself, which no seed changes: runs of other seeds have the same tokens."""
        return [Wanted(source.data, limit=self.limit) for source in sources(self.data)]

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


def plain_texts(path: str) -> list[str]:
    """A person's documents, where no run keeps account of bad rows. Raises UserError as `texts` does."""
    from ondevice.data.formats import to_text

    return plain_rows(path, to_text)


def plain_rows(path: str, convert: Callable[[Any], T]) -> list[T]:
    """A person's rows as `converted` makes them, of one source or several, where no run keeps account of bad rows."""
    found: list[T] = []
    for source in sources(path):
        rows = opened(source.data)
        found += [made for _, made in convert_rows(rows, convert)]
        rows.check()
    return found


def plain_chats(path: str) -> list[list[dict[str, Any]]]:
    """A person's chats, where no run keeps account of bad rows; empty where the first row is none. Raises UserError as
    `chats` does."""
    from ondevice.data.formats import BadRow, to_chat

    rows = opened(sources(path)[0].data)
    try:
        to_chat(next(iter(rows))[0])
    except (BadRow, StopIteration):
        return []
    return [chat["messages"] for chat in plain_rows(path, to_chat)]


def reused(place: Path, wanted: Wanted, ctx: Context) -> Path:
    """`place`, filled with what the same stage of another run beside this one has made of the same files by the same
    tokenizer: its name says so. What the Hub or a gym gives under a name may be another thing tomorrow: not that."""
    if place.exists() or wanted.data.startswith(BY_NAME):
        return place
    from ondevice.data.readers import add_lines

    names = tuple(source.data for source in sources(wanted.data))
    other = _elsewhere(place, ctx)
    if other is None:
        return place
    link_from(other, place)
    if place.exists():
        stage = other.parent.parent
        ctx.say(f"{ctx.name}: {wanted.data} was read by {stage.parent.name} already")
        if (stage / REJECTED).is_file():
            lines = (stage / REJECTED).read_text(encoding="utf-8").splitlines()
            own = [line for line in lines if str(json.loads(line)["where"]).startswith(names)]
            if new := add_lines(ctx.folder.path / REJECTED, own):
                ctx.warn(f"{new} of its rows could not be used; {ctx.folder.path / REJECTED} lists them")
    return place


def _elsewhere(place: Path, ctx: Context) -> Path | None:
    """`place` in the same stage of another run; None where there is none, or the runs cannot be looked into."""
    with suppress(OSError):
        for run in sorted(ctx.folder.path.parent.parent.iterdir()):
            other = run / ctx.folder.path.name / "data" / place.name
            with suppress(OSError):  # a neighbour that is no run may be closed to us
                if other.exists():
                    return other
    return None


def converted(wanted: Wanted, convert: Callable[[Any], T], ctx: Context) -> list[T]:
    """A person's rows, each made into something else; bad ones are set aside. Raises UserError as `chats` does."""
    return [made for _, made in taken(wanted, convert, ctx)]


def taken(wanted: Wanted, convert: Callable[[Any], T], ctx: Context) -> Iterator[tuple[str, T]]:
    """(place, row) of `converted`, one at a time."""
    rows = opened(wanted.data, wanted.limit)
    yield from counted(convert_rows(rows, convert), f"{ctx.name}: rows read")
    settle(rows, ctx)


def opened(path: str, limit: int = 0) -> Rows:
    from ondevice.data.readers import read

    return read(path, limit=limit)


def convert_rows(rows: Rows, convert: Callable[[Any], T]) -> Iterator[tuple[str, T]]:
    """(place, converted row); a row that cannot be converted is set aside."""
    from ondevice.data.formats import BadRow, Unlabelled

    for row, place in rows:
        try:
            made = convert(row)
        except Unlabelled:
            rows.leave_out()
        except BadRow as error:
            rows.reject(place, str(error), row)
        else:
            yield place, made


def _note_commit(rows: Rows, ctx: Context) -> None:
    """Records which commit of a data set of the Hub was read: of a cache of its tokens too, which stays where the
    stage begins anew."""
    file = ctx.folder.path / COMMITS
    before = read_json(file)
    if before.get(rows.spec) != rows.commit:
        checkpoint.write_file(file, json.dumps({**before, rows.spec: rows.commit}, indent=2) + "\n")
    ctx.say(f"{ctx.name}: {rows.spec} was read at commit {rows.commit}" if rows.commit else
            f"{ctx.name}: at which commit {rows.spec} was read is not known: it came out of the cache")


def settle(rows: Rows, ctx: Context) -> None:
    """Tells of the rows that were set aside and keeps them. Raises UserError where they are too many."""
    rows.check()
    if rows.spec.startswith(PREFIX):
        _note_commit(rows, ctx)
    if rows.unlabelled:
        ctx.warn(f"{rows.unlabelled} of {rows.seen} rows of {rows.spec} have the class {NO_LABEL}, which says that "
                 "there is none, and are left out (where it is a class, write a word for it)")
    if rows.rejected:
        file = ctx.folder.path / REJECTED
        rows.write_rejected(file)
        ctx.warn(f"{len(rows.rejected)} of {rows.seen} rows could not be used; {file} lists them")
