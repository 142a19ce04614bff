"""Files to rows: JSONL, JSON, CSV, Parquet, plain text, each also packed by gzip, a folder of
these, or a data set of the Hub.

A row that cannot be read is named (`file:line: reason`), counted and set aside; more than a share
of them (1 %, where nobody says otherwise) stops the run.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import os
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ondevice.common.distribution import install_hint
from ondevice.common.errors import UserError
from ondevice.data.class_labels import NO_LABEL, class_columns, with_names
from ondevice.data.folders import PACKED, TEXTS, kind_of, known, listing
from ondevice.data.hub_datasets import FORM, PREFIX, HubSpec, hub_rows
from ondevice.data.row_keys import Record, telling

Row = dict[str, Any]
RecordAndPlace = tuple[Record, str]

LIMIT = 0.01
_CHUNK = 1 << 20


class Reading(NamedTuple):
    """How rows are read: `columns`, "name=column" each, give a column the name that a form knows;
    `bad` is the share of rows that may be."""

    columns: tuple[str, ...] = ()
    bad: float = LIMIT

    @classmethod
    def of(cls, cfg: Any) -> Reading:
        """What the settings of a stage say."""
        return cls(tuple(cfg.columns), cfg.bad_share)

    def renamed(self, row: Row) -> Row | _Bad:
        """The row under the names that its forms know. What else would make it another form keeps
        its name in brackets."""
        if not self.columns:
            return row
        named = dict(column.split("=", 1) for column in self.columns)
        if missing := [column for column in named.values() if row.get(column) is None]:
            return _Bad(
                f"has no column {missing[0]!r} (it has {', '.join(map(str, row))[:200]})", row
            )
        rivals = {name for group in _RIVALS if group & set(named) for name in group}
        rest = {
            f"[{key}]" if key in rivals else key: value
            for key, value in row.items()
            if key not in named.values()
        }
        return {**rest, **{name: row[column] for name, column in named.items()}}

    def of_file(self, name: str) -> str:
        """What the file calls a column that `renamed` keeps in brackets; any other name is its own."""
        inner = name.removeprefix("[").removesuffix("]")
        hidden = self.columns and name == f"[{inner}]" and any(inner in group for group in _RIVALS)
        if hidden:
            return inner
        return name


AS_IS = Reading()
_RIVALS = (
    {
        "prompt",
        "question",
        "query",
        "instruction",
        "messages",
        "conversations",
        "conversation",
        "text",
    },
    {"completion", "answer", "response", "output"},
)
"""Names of which a row's form takes one."""


class Part(str):
    """A piece of a document; `more`: the document goes on in the next piece."""

    more = False

    @classmethod
    def of(cls, text: str, more: bool) -> Part:
        part = cls(text)
        part.more = more
        return part


class Rejected(NamedTuple):
    """A row that was set aside."""

    where: str
    reason: str
    row: Any


class _Utf16(UserError):
    """A file in another encoding than UTF-8, as its first bytes say."""


class _Bad(NamedTuple):
    reason: str
    row: Any


class Rows:
    """Iterates (row, "file:line"), as often as wanted. Bad rows are in `rejected`, files of a
    folder that are neither rows nor text in `ignored`, and names that nobody asked a row for in
    `unused`.

    The end of an iteration raises UserError where there was no row, or where more than `reading`
    allows were bad; whoever rejects rows later calls `check` again. Not `strict`, it only counts:
    for looking at data that nothing is trained on yet. With a `limit` the first so many rows are
    all there is; a document in several parts is one. `notes` are what there is to say of the files.
    """

    def __init__(
        self,
        spec: str,
        files: list[Path],
        ignored: list[Path],
        strict: bool = True,
        limit: int = 0,
        reading: Reading = AS_IS,
        notes: list[str] | None = None,
    ) -> None:
        self.spec, self.files, self.ignored, self.strict, self.limit = (
            spec,
            files,
            ignored,
            strict,
            limit,
        )
        self.reading, self.bad, self._of_files = reading, reading.bad, notes or []
        self.rejected: list[Rejected] = []
        self.commit = ""  # of a data set of the Hub, once it is read
        self.seen = self.unlabelled = 0
        self.template = ""  # the chat template that the rows are for, where there is one
        # whoever converts the rows may have to say more of them
        self.notes: list[str] = [*self._of_files]
        self._unused: dict[str, tuple[int, str]] = {}
        self._open: tuple[Record, str] | None = None

    def __iter__(self) -> Iterator[RecordAndPlace]:
        self.seen, self.unlabelled, self.rejected, self.notes, whole = (
            0,
            0,
            [],
            [*self._of_files],
            0,
        )
        self._unused, self._open = {}, None
        for item, where in self._found():
            self.seen += 1
            if not isinstance(item, _Bad):
                item = self.reading.renamed(item)
            if isinstance(item, _Bad):
                self.reject(where, item.reason, item.row)
                goes_on = False
            else:
                record = Record(item)
                record.template = self.template
                self._open = record, where
                yield self._open
                self._close()
                goes_on = isinstance(text := item.get("text"), Part) and text.more
            whole += not goes_on
            if 0 < self.limit <= whole:
                break
        if not self.seen:
            raise UserError("no rows in it", where=self.spec, hint="give data that holds some")
        self.check()

    @property
    def unused(self) -> dict[str, tuple[int, str]]:
        """Name → (how many rows have it, where the first one is), of what no one asked the rows
        for; of the rows that were not rejected."""
        self._close()
        return dict(self._unused)

    def telling(self) -> str:
        """One line for people on what was not used, and of what is to be noted; empty where there
        is nothing to say.
        """
        return "; ".join(filter(None, (telling(self.unused), *self.notes)))

    def remarks(self) -> list[str]:
        """What to say of the rows to a person, once they were read: those that could not be used,
        with the first one and its reason, and what of the others was not used."""
        bad = f"{len(self.rejected)} of {self.seen} rows could not be used" if self.rejected else ""
        if bad:
            bad += f" (first: {self.rejected[0].where}: {self.rejected[0].reason})"
        return [told for told in (bad, self.telling()) if told]

    def _close(self) -> None:
        """Whoever asks for the next row is through with this one."""
        if self._open is None:
            return
        row, where = self._open
        self._open = None
        if self.rejected and self.rejected[-1].where == where:
            row.bad = True
        for name in map(self.reading.of_file, row.unused()):
            count, first = self._unused.get(name, (0, where))
            self._unused[name] = count + 1, first

    def _read_at(self, commit: str) -> None:
        self.commit = commit

    def leave_out(self) -> None:
        """Counts a row without a class: it is not bad, and not used."""
        self.unlabelled += 1

    def reject(self, where: str, reason: str, row: Any = None) -> None:
        """Sets a row aside. Raises UserError as soon as there is no doubt that too many are bad."""
        self.rejected.append(Rejected(where, reason, row))
        if (
            self.strict
            and len(self.rejected) > 100
            and len(self.rejected) > max(0.5, self.bad) * self.seen
        ):
            self._stop()

    def check(self) -> None:
        """Raises UserError, naming the first, where too many rows were bad, and where none has a
        class.
        """
        if self.strict and self.unlabelled and self.unlabelled + len(self.rejected) == self.seen:
            raise UserError(
                f"no row has a class: all say {NO_LABEL}",
                where=self.spec,
                hint="the test split of many sets has none; take another one",
            )
        if self.strict and len(self.rejected) > self.bad * self.seen:
            self._stop()

    def write_rejected(self, path: Path) -> None:
        """Adds the bad rows as JSON lines {"where", "reason", "row"}, those that are not there yet."""
        add_lines(
            path,
            [json.dumps(bad._asdict(), ensure_ascii=True, default=str) for bad in self.rejected],
        )

    def _stop(self) -> None:
        first = self.rejected[0]
        if (
            len(self.rejected) == self.seen > 1
        ):  # another form than is wanted, and no bad rows of this one
            raise UserError(
                f"{first.reason}; none of the {self.seen} rows that were read can be used",
                where=first.where,
                hint=f"`ondevice data show {self.spec}` says how its rows are read",
            )
        raise UserError(
            f"{first.reason}; {len(self.rejected)} of {self.seen} rows are bad",
            where=first.where,
            hint=f"mend them or take them out: at most {100 * self.bad:g} % may be; --bad-share allows "
            "more",
        )

    def _found(self) -> Iterator[tuple[Row | _Bad, str]]:
        if self.spec.startswith(PREFIX):
            yield from (
                (without_nulls(row), where) for row, where in hub_rows(self.spec, self._read_at)
            )
        for file in self.files:
            try:
                yield from _READERS[kind_of(file)](file)
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise UserError(f"cannot be unpacked: {error}", where=str(file)) from error


def add_lines(path: Path, lines: list[str]) -> int:
    """Adds those that the file does not hold yet; how many these are."""
    if Path(path).is_file():
        there = set(Path(path).read_text(encoding="utf-8").splitlines())
    else:
        there = set()
    new = [line for line in lines if line not in there]
    if new:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write("\n".join(new) + "\n")
    return len(new)


def read(
    spec: str | Path,
    *,
    strict: bool = True,
    limit: int = 0,
    split: str = "train",
    also: str = "",
    reading: Reading = AS_IS,
) -> Rows:
    """Rows of a file, of the files of a folder, or of `hub:OWNER/NAME[/CONFIG][@REVISION][:SPLIT]`;
    the first `limit` (0: all).

    A text file is one document. In a folder that holds files of rows, text files beside them (a
    README) are left out; of one that holds splits by name, `split` is read (see folders.py); of the
    split `also`, which the same stage reads too, it is not said that it is left out. Raises
    UserError for what does not exist or is of no known kind.
    """
    name = str(spec)
    if name.startswith("gym:"):
        raise UserError(
            "a gym has problems to reason about, which grpo and eval take",
            where=name,
            hint="give a file",
        )
    if name.startswith(PREFIX):
        HubSpec.parse(name)
        return Rows(name, [], [], strict, limit, reading)
    path = Path(os.path.expanduser(spec))
    if path.is_dir():
        found = listing(path, split, also)
        return Rows(name, found.files, found.ignored, strict, limit, reading, found.notes)
    if not path.is_file():
        raise UserError("no such file or folder", where=name, hint=f"a data set of the Hub: {FORM}")
    if kind_of(path) not in _READERS:
        raise UserError(
            f"cannot read {kind_of(path) or 'a file without an ending'}",
            where=name,
            hint=f"known: {known()}",
        )
    return Rows(name, [path], [], strict, limit, reading)


def _jsonl(file: Path) -> Iterator[tuple[Row | _Bad, str]]:
    with _open(file) as lines:
        for number, raw in enumerate(lines, 1):
            if number == 1:
                _refuse_utf16(raw, file)
                raw = raw.removeprefix(codecs.BOM_UTF8)
            if raw.strip():
                yield _json_row(raw), f"{file}:{number}"


def _json_row(raw: bytes) -> Row | _Bad:
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        return _Bad(
            f"not UTF-8 at byte {error.start + 1} of the line", raw[:1000].decode(errors="replace")
        )
    try:
        row = json.loads(text)
    except ValueError as error:  # a number of too many digits is a ValueError too
        reason = f"not JSON: {error}"
        if "\0" in text:
            reason = f"not JSON: a NUL byte at character {text.index(chr(0)) + 1}"
        elif not text.endswith("\n"):
            reason = f"not JSON, and the file ends here without a line break: cut off? ({error})"
        return _Bad(reason, text[:1000])
    except RecursionError:
        return _Bad("not JSON that can be read: nested too deep", text[:1000])
    return _object(row)


def _object(row: Any) -> Row | _Bad:
    if isinstance(row, dict):
        return row
    return _Bad(f"a row must be an object with names, not {type(row).__name__}", str(row)[:1000])


def _json(file: Path) -> Iterator[tuple[Row | _Bad, str]]:
    """A list of rows, or an object that holds one under `data`, `rows` or `train`."""
    with _open(file) as source:
        data = source.read()
    _refuse_utf16(data, file)
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 at byte {error.start + 1}", where=str(file)) from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"not JSON: {error}",
            where=str(file),
            hint="one row a line is JSONL: call the file .jsonl",
        ) from error
    if isinstance(value, dict):
        lists = [
            value[key] for key in ("data", "rows", "train") if isinstance(value.get(key), list)
        ]
        value = lists[0] if lists else [value]
    if not isinstance(value, list):
        raise UserError("holds no list of rows", where=str(file))
    for number, row in enumerate(value, 1):
        yield _object(row), f"{file}:row {number}"


class _Lines:
    """Lines of a file, and those of the row that is being read."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines, self.row = lines, list[str]()

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            self.row.append(line)
            yield line

    def opened(self) -> int | None:
        """The line of this row, from 0, in which the quote opens that reaches into its last line;
        None without any.
        """
        at = None
        for number, line in enumerate(self.row[:-1]):
            for _ in range(line.count('"')):
                at = number if at is None else None
        return at


def _refuse_other_separators(reader: csv.DictReader[str], file: Path) -> None:
    try:
        names = reader.fieldnames or ()
    except csv.Error:  # said where the rows are read
        return
    if len(names) == 1 and (found := [sign for sign in ";\t|" if sign in names[0]]):
        raise UserError(
            f"its first line names one column, {names[0]!r:.80}",
            where=f"{file}:1",
            hint=f"columns stand between commas: write it with these in place of {found[0]!r}",
        )


def _csv(file: Path) -> Iterator[tuple[Row | _Bad, str]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with _open(file) as raw:
        _refuse_utf16(raw.read(2), file)
    with io.TextIOWrapper(
        _open(file), encoding="utf-8-sig", errors="surrogateescape", newline=""
    ) as text:
        lines = _Lines(text)
        reader = csv.DictReader(lines, strict=True)
        _refuse_other_separators(reader, file)
        while True:
            lines.row.clear()
            before = reader.reader.line_num  # DictReader's own stands still at an error
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if (opened := lines.opened()) is not None:  # what it has swallowed are rows too
                    raise UserError(
                        "a quote opens here that is not closed before the next one, or never",
                        where=f"{file}:{before + opened + 1}",
                        hint="close it; within quotes a quote is written twice",
                    ) from error
                yield (
                    _Bad(f"not CSV: {error}", "".join(lines.row)[:1000]),
                    f"{file}:{reader.reader.line_num}",
                )
                continue
            where = f"{file}:{reader.line_num}"
            if None in row:
                yield _Bad("more fields than the first line names", str(row)[:1000]), where
            elif None in row.values():
                yield _Bad("fewer fields than the first line names", str(row)[:1000]), where
            elif any(
                "\udc80" <= letter <= "\udcff"
                for value in row.values()
                if not value.isascii()
                for letter in value
            ):
                yield _Bad("not UTF-8", ascii(row)[:1000]), where
            else:
                yield row, where


def _text(file: Path) -> Iterator[tuple[Row | _Bad, str]]:
    """One document. The file is read through once before: one that turns out to be no text after
    half of it must not have been half used."""
    where, bad, size = str(file), None, 0
    try:
        for text in _decoded(file):
            size += len(text.strip())
            if "\0" in text:
                bad = _Bad("holds NUL bytes: not a text file", None)
                break
    except UnicodeDecodeError as error:
        bad = _Bad(f"not UTF-8: {error.reason} (byte 0x{error.object[error.start]:02x})", None)
    except _Utf16 as error:
        bad = _Bad(f"not UTF-8: {error.message} ({error.hint})", None)
    if bad is not None or not size:
        yield (bad or _Bad("empty", None)), where
        return
    piece = ""
    for following in _pieces(file):
        if piece:
            yield {"text": Part.of(piece, True)}, where
        piece = following
    yield {"text": Part.of(piece, False)}, where


def _pieces(file: Path) -> Iterator[str]:
    """The text in pieces, none of them empty, cut before a line that begins with a letter or sign
    where there is one: no run of white space is cut then, and the tokens are those of the whole."""
    held = ""
    for text in _decoded(file):
        held += text
        if len(held) <= _CHUNK:
            continue
        end = held.rfind("\n") + 1
        while end > 0 and (end == len(held) or held[end].isspace()):
            end = held.rfind("\n", 0, end - 1) + 1
        if not end and len(held) > 16 * _CHUNK:
            end = len(held)  # a line of 16 MB: memory counts more than the one word that may be cut
        if end:
            yield held[:end]
            held = held[end:]
    if held:
        yield held


def _decoded(file: Path) -> Iterator[str]:
    """The text of a file, a chunk at a time, with one kind of line break."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    with _open(file) as source:
        head = source.read(_CHUNK)
        _refuse_utf16(head, file)
        after_return = False
        chunk = head
        while True:
            text = decoder.decode(chunk, final=not chunk)
            if after_return:
                text = "\r" + text
            after_return = text.endswith("\r") and bool(chunk)
            yield (text[:-1] if after_return else text).replace("\r\n", "\n").replace("\r", "\n")
            if not chunk:
                return
            chunk = source.read(_CHUNK)


def _parquet(file: Path) -> Iterator[tuple[Row | _Bad, str]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise UserError(
            "Parquet files need pyarrow", where=str(file), hint=install_hint("data")
        ) from error
    number = 0
    try:
        with parquet.ParquetFile(file) as source:
            classes = class_columns(_features(source.schema_arrow.metadata))
            for batch in source.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield with_names(without_nulls(row), classes), f"{file}:row {number}"
    except (OSError, ValueError) as error:  # pyarrow's own errors derive from these
        raise UserError(
            f"cannot be read as Parquet: {error}", where=str(file), hint="is the download whole?"
        ) from error


def _features(metadata: Any) -> dict[str, Any]:
    """What the library datasets has written into a Parquet file of what its columns are; {} where
    it has not.
    """
    try:
        found = json.loads((metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (
        ValueError,
        LookupError,
        TypeError,
    ):  # another program's key of that name: the rows are read all the same
        return {}
    if isinstance(found, dict):
        return found
    return {}


def without_nulls(value: Any) -> Any:
    """A row of a table: where its objects have a key and it has none, tables hold a null, which
    says nothing.
    """
    if isinstance(value, dict):
        return {key: without_nulls(entry) for key, entry in value.items() if entry is not None}
    if isinstance(value, list):
        return [without_nulls(entry) for entry in value]
    return value


def _open(file: Path) -> Any:
    try:
        if file.name.lower().endswith(PACKED):
            return gzip.open(file)
        return file.open("rb")
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(file)) from error


def _refuse_utf16(head: bytes, file: Path) -> None:
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise _Utf16("this is UTF-16", where=str(file), hint="save it as UTF-8")


_READERS = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
    **{suffix: _text for suffix in TEXTS},
}
