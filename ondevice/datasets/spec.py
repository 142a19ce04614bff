"""What a stage asks for: a person's files or data of the Hub by name, the built-in corpus, or
several of them; and a person's rows, of which the bad ones are set aside and told of."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from ondevice.common.errors import UserError
from ondevice.common.files import digest, digest_path, write_file
from ondevice.common.json_files import json_lines, read_json
from ondevice.common.sanitize import sanitize
from ondevice.config.auto import AUTO
from ondevice.config.corpus import CorpusConfig
from ondevice.config.recipe import load_recipe
from ondevice.data.class_labels import NO_LABEL
from ondevice.data.context import DataContext
from ondevice.data.extraction.survey import survey
from ondevice.data.folders import DOCUMENTS, SPLITS, holds_split, kind_of, listing
from ondevice.data.formats import Unlabelled, to_chat, to_text
from ondevice.data.hub_datasets import PREFIX
from ondevice.data.messages import BadRow
from ondevice.data.mixture import is_by_name, ordered, sources
from ondevice.data.rows import AS_IS, Reading, Rows, add_lines, read
from ondevice.data.token_cache import link_from
from ondevice.data.tokenizer import Tokenizer

T = TypeVar("T")
LOOKED_AT = 100  # first rows, of which one that is a chat makes the rest chats too
REJECTED = "rejected.jsonl"
UNUSED = "unused.jsonl"
"""What of the rows was not used: {"data", "told"} a source."""
COMMITS = "commits.json"
"""Of each data set of the Hub that a stage has read: its commit, empty where that is not known."""


@dataclass(frozen=True)
class DataSpec:
    """What a stage asks for: one source or several, what is held out (empty: the files of a folder
    that are called so, else the last rows of each), how many rows of each source at most (0: all),
    the seed of what a mixture repeats, and which split of a folder that has splits; how rows are
    read, and the chat templates that read their messages."""

    data: str
    validation: str = ""
    limit: int = 0
    seed: int = 0
    split: str = "train"
    reading: Reading = AS_IS
    template: str = field(default="", repr=False)  # it names no data
    also: str = field(default="", repr=False)  # the split that the stage reads beside this one

    @classmethod
    def of(cls, cfg: Any, data: str = "") -> DataSpec:
        """What the settings of a stage say (`data`: where they leave it open)."""
        return cls(
            cfg.data or data,
            getattr(cfg, "validation", ""),
            0 if getattr(cfg, "limit", 0) == AUTO else getattr(cfg, "limit", 0),
            cfg.seed,
            reading=Reading.of(cfg),
        )

    @property
    def weights(self) -> list[float | None]:
        return [source.weight for source in sources(self.data)]

    def key(self, corpus: CorpusConfig) -> str:
        """Names everything that decides what is read."""
        return f"{self} {data_digest(self.data, self.validation, corpus)}"

    def alone(self) -> list[DataSpec]:
        """Each source by itself, which no seed changes: runs of other seeds have the same tokens."""
        return [
            DataSpec(source.data, limit=self.limit, reading=self.reading, template=self.template)
            for source in sources(self.data)
        ]

    def held(self) -> list[DataSpec]:
        """The sources of `validation`, all of them."""
        if self.validation:
            named = sources(self.validation)
        else:
            named = ()
        return [
            DataSpec(source.data, split="validation", reading=self.reading, template=self.template)
            for source in named
        ]

    def for_template(self, tokenizer: Tokenizer) -> DataSpec:
        """The same, whose messages the chat templates of this tokenizer read."""
        return replace(
            self,
            template="".join((tokenizer.chat_template or "", *tokenizer.more_templates.values())),
        )

    def rows(self) -> Rows:
        """Those of one source."""
        rows = read(
            self.data, limit=self.limit, split=self.split, also=self.also, reading=self.reading
        )
        rows.template = self.template
        return rows

    def named_held(self) -> DataSpec | None:
        """What a source's own folder holds out by name; None where it does not."""
        if is_by_name(self.data) or not holds_split(ordered(self.data)[1], "validation"):
            return None
        return replace(self, limit=0, split="validation", also="train")

    def in_two(
        self, own: Callable[[DataSpec], T], split: Callable[[T, str], tuple[T, T]]
    ) -> tuple[T, T]:
        """What is learned from and what is held out of a person's source: `own` reads it, and of
        what it gives `split` holds a part out, where its folder does not."""
        named = self.named_held()
        if named is not None:
            return (own(replace(self, also=named.split)), own(named))
        return split(own(self), self.data)


def corpus_of(data: str, default: CorpusConfig) -> CorpusConfig | None:
    """What `builtin` (the run's corpus) or `builtin:RECIPE` means; None: `data` is a path, or
    several sources.
    """
    if data == "builtin":
        return default
    if data.startswith("builtin:") and len(sources(data)) == 1:
        return load_recipe(data.partition(":")[2]).corpus
    return None


def data_digest(data: str, validation: str, default: CorpusConfig) -> str:
    """A hash of what will be read (of the name, where it is a data set of the Hub or a task of
    reasoning-gym): part of a stage's fingerprint. Raises UserError for a file that is not there."""

    def one(name: str) -> Any:
        corpus = corpus_of(name, default)
        if corpus is not None:
            return _as_declared(corpus)
        if is_by_name(name):
            return name
        prefix, source = ordered(name)
        found = texts_digest(_existing(source)) or digest_path(Path(source))
        return [prefix, found] if prefix else found

    if corpus_of(data, default) is not None and not validation:
        return digest(one(data))
    return digest(
        [
            one(source.data) if len(parts) == 1 else [one(source.data), source.weight]
            for named in (data, validation)
            if named
            for parts in (sources(named),)
            for source in parts
        ]
    )


def texts_digest(path: Path) -> str:
    """A hash of the texts of documents, whatever files they were taken out of; empty where the files
    say as much: rows, or plain text of which all is read."""
    found = []
    if path.is_dir():
        inside = list(dict.fromkeys(tuple(listing(path, split).files) for split in SPLITS))
    else:
        inside = [(path,)]
    for files in inside:
        if kind_of(files[0]) not in DOCUMENTS:
            return ""
        found.append(survey(files))
    if all(one.as_before for one in found):
        return ""
    return digest([one.digest for one in found])


def _as_declared(settings: Any) -> dict[str, Any]:
    """`to_mapping`, with what is as it is by default in the form in which that is declared: 22 and
    22.0 are one weight, and a recipe that was written out and read again one recipe."""
    plain: dict[str, Any] = {}
    for field_ in dataclasses.fields(settings):
        value = getattr(settings, field_.name)
        if dataclasses.is_dataclass(value):
            plain[field_.name] = _as_declared(value)
        else:
            if value == field_.default:
                plain[field_.name] = field_.default
            else:
                plain[field_.name] = value
    return plain


def builtin_in(data: str, default: CorpusConfig) -> CorpusConfig | None:
    """The built-in corpus, where it is among the sources: before those of recipes `builtin` itself."""
    named = sorted((source.data for source in sources(data)), key=lambda name: name != "builtin")
    return next(
        (corpus for name in named if (corpus := corpus_of(name, default)) is not None), None
    )


def _existing(path: str) -> Path:
    if not Path(path).exists():
        raise UserError(
            "there is no such file or folder", where=path, hint="give a path, or builtin"
        )
    return Path(path)


def plain_texts(path: str, split: str = "train", reading: Reading = AS_IS) -> list[str]:
    """A person's documents, where no run keeps account of bad rows. Raises UserError as `texts`
    does.
    """
    return plain_rows(path, to_text, split=split, reading=reading)


def plain_rows(
    path: str,
    convert: Callable[[Any], T],
    limit: int = 0,
    split: str = "test",
    reading: Reading = AS_IS,
) -> list[T]:
    """A person's rows as `converted_rows` makes them, of one source or several (the first `limit`
    of each; 0: all), where no run keeps account of bad rows; of a folder that has splits what is
    there to test on. Raises UserError as `chats` does."""
    converted: list[T] = []
    for source in sources(path):
        rows = open_rows(source.data, limit, split, reading)
        converted += [value for _, value in convert_rows(rows, convert)]
        check_rejected(rows)
    return converted


def plain_chats(path: str, reading: Reading = AS_IS) -> list[list[dict[str, Any]]]:
    """A person's chats, where no run keeps account of bad rows; empty where the first rows are
    none. Raises UserError as `chats` does."""
    rows = open_rows(sources(path)[0].data, LOOKED_AT, "test", reading)
    rows.strict = False
    if next(convert_rows(rows, to_chat), None) is None:
        return []
    return [chat["messages"] for chat in plain_rows(path, to_chat, reading=reading)]


def reuse_cached(place: Path, wanted: DataSpec, ctx: DataContext) -> Path:
    """`place`, filled with what the same stage of another run beside this one has made of the same
    files by the same tokenizer: its name says so. What the Hub or a gym gives under a name may be
    another thing tomorrow: not that."""
    if place.exists() or is_by_name(wanted.data):
        return place
    names = tuple(source.data for source in sources(wanted.data))
    other = _elsewhere(place, ctx)
    if other is None:
        return place
    link_from(other, place)
    if place.exists():
        stage = other.parent.parent
        ctx.tell(f"{wanted.data} was read by {stage.parent.name} already")
        try:
            _tell_of_rows(stage, names, ctx)
        except (OSError, ValueError, LookupError, TypeError) as error:
            ctx.warn(f"what {stage} says of rows that were not used cannot be read: {error}")
    return place


def _tell_of_rows(stage: Path, names: tuple[str, ...], ctx: DataContext) -> None:
    """Tells what another stage could not use of these sources, as it has told."""
    if (stage / REJECTED).is_file():
        own = []
        for row in json_lines(stage / REJECTED):
            if str(row["where"]).startswith(names):
                own.append(json.dumps(row, ensure_ascii=True))
        if new := add_lines(ctx.folder / REJECTED, own):
            ctx.warn(f"{new} of its rows could not be used; {ctx.folder / REJECTED} lists them")
    if (stage / UNUSED).is_file():
        for entry in json_lines(stage / UNUSED):
            if entry["data"] in names:
                tell_unused(entry["data"], entry["told"], ctx)


def _elsewhere(place: Path, ctx: DataContext) -> Path | None:
    """`place` in the same stage of another run; None where there is none, or the runs cannot be
    looked into.
    """
    with suppress(OSError):
        for run in sorted(ctx.folder.parent.parent.iterdir()):
            other = run / ctx.folder.name / "data" / place.name
            with suppress(OSError):  # a neighbour that is no run may be closed to us
                if other.exists():
                    return other
    return None


def converted_rows(wanted: DataSpec, convert: Callable[[Any], T], ctx: DataContext) -> list[T]:
    """A person's rows, each made into something else; bad ones are set aside. Raises UserError as
    `chats` does.
    """
    return [value for _, value in placed_rows(wanted, convert, ctx)]


def placed_rows(
    wanted: DataSpec, convert: Callable[[Any], T], ctx: DataContext
) -> Iterator[tuple[str, T]]:
    """(place, row) of `converted_rows`, one at a time."""
    rows = wanted.rows()
    yield from ctx.progress(convert_rows(rows, convert), "rows read")
    report_rejected(rows, ctx)


def open_rows(path: str, limit: int = 0, split: str = "train", reading: Reading = AS_IS) -> Rows:
    return read(path, limit=limit, split=split, reading=reading)


def convert_rows(rows: Rows, convert: Callable[[Any], T]) -> Iterator[tuple[str, T]]:
    """(place, converted row); a row that cannot be converted is set aside."""
    for row, place in rows:
        try:
            value = convert(row)
        except Unlabelled:
            rows.leave_out()
        except BadRow as error:
            rows.reject(place, str(error), row)
        else:
            yield place, value


def tell_unused(data: str, remark: str, ctx: DataContext) -> None:
    """Says once what of the rows of `data` is not used; a resume does not say it again."""
    if remark and add_lines(ctx.folder / UNUSED, [json.dumps({"data": data, "told": remark})]):
        ctx.warn(f"{data}: {remark}")


def check_rejected(rows: Rows) -> None:
    """Says which rows and what of the others was not used, where no run keeps account of it. Raises
    UserError where too many rows are bad."""
    rows.check()
    for remark in rows.remarks():
        print(sanitize(f"{rows.spec}: {remark}", newlines=False), file=sys.stderr, flush=True)


def _note_commit(rows: Rows, ctx: DataContext) -> None:
    """Records which commit of a data set of the Hub was read: of a cache of its tokens too, which
    stays where the stage begins anew."""
    file = ctx.folder / COMMITS
    before = read_json(file)
    if before.get(rows.spec) != rows.commit:
        ctx.folder.mkdir(parents=True, exist_ok=True)
        write_file(file, json.dumps({**before, rows.spec: rows.commit}, indent=2) + "\n")
    if rows.commit:
        ctx.tell(f"{rows.source} was read at commit {rows.commit}")
    else:
        ctx.tell(f"at which commit {rows.source} was read is not known: it came out of the cache")


def report_rejected(rows: Rows, ctx: DataContext) -> None:
    """Tells of what was not used, and of the rows that were set aside, which it keeps. Raises
    UserError where these are too many."""
    rows.check()
    tell_unused(rows.spec, rows.telling(), ctx)
    if rows.source.startswith(PREFIX):
        _note_commit(rows, ctx)
    if rows.unlabelled:
        ctx.warn(
            f"{rows.unlabelled} of {rows.seen} rows of {rows.spec} have the class {NO_LABEL}, which says that "
            "there is none, and are left out (where it is a class, write a word for it)"
        )
    if rows.rejected or rows.left_out:
        file = ctx.folder / REJECTED
        rows.write_rejected(file)
    if rows.left_out:
        ctx.warn(f"{file} lists the {len(rows.left_out):,} files of {rows.spec} that were left out")
    if rows.rejected:
        ctx.warn(f"{len(rows.rejected)} of {rows.seen} rows could not be used; {file} lists them")
