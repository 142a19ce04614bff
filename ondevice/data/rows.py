"""Rows of a file, of a folder, or of a data set of the Hub, with an account of those that cannot be
used.

A row that cannot be read is named (`file:line: reason`), counted and set aside; more than a share
of them (1 %, where nobody says otherwise) stops the run.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ondevice.common import bounded
from ondevice.common.disk import naming
from ondevice.common.errors import UserError
from ondevice.data.class_labels import NO_LABEL
from ondevice.data.extraction.survey import survey
from ondevice.data.folders import DOCUMENTS, documents, kind_of, known, listing
from ondevice.data.hub_datasets import FORM, PREFIX, HubSpec, hub_rows
from ondevice.data.mixture import ordered
from ondevice.data.orders import LEAST_WORDS, MOST_WORDS, order_of
from ondevice.data.plain_text import Part
from ondevice.data.readers import READERS, BadRecord, Row, without_nulls
from ondevice.data.row_keys import Record, telling

RecordAndPlace = tuple[Record, str]

LIMIT = 0.01
_ASKED_FOR = {
    "prompt",
    "question",
    "query",
    "instruction",
    "messages",
    "conversations",
    "conversation",
    "text",
}
_ANSWERED = {"completion", "answer", "response", "output"}
_RIVALS = (_ASKED_FOR, _ANSWERED)
"""Names of which a row's form takes one."""


class Reading(NamedTuple):
    """How rows are read: `columns`, "name=column" each, give a column the name that a form knows;
    `bad` is the share of rows that may be."""

    columns: tuple[str, ...] = ()
    bad: float = LIMIT

    @classmethod
    def of(cls, cfg: Any) -> Reading:
        """What the settings of a stage say."""
        return cls(tuple(cfg.columns), cfg.bad_share)

    def renamed(self, row: Row) -> Row | BadRecord:
        """The row under the names that its forms know. What else would make it another form keeps
        its name in brackets."""
        if not self.columns:
            return row
        column_of = dict(column.split("=", 1) for column in self.columns)
        for column in column_of.values():
            if row.get(column) is None:
                there = ", ".join(map(str, row))[:200]
                return BadRecord(f"has no column {column!r} (it has {there})", row)
        rivals: set[str] = set()
        for group in _RIVALS:
            if group & set(column_of):
                rivals |= group
        made: Row = {}
        for key, value in row.items():
            if key in column_of.values():
                continue
            if key in rivals:
                key = f"[{key}]"
            made[key] = value
        for name, column in column_of.items():
            made[name] = row[column]
        return made

    def of_file(self, name: str) -> str:
        """What the file calls a column that `renamed` keeps in brackets; any other name is its own."""
        inner = name.removeprefix("[").removesuffix("]")
        is_rival = any(inner in group for group in _RIVALS)
        if self.columns and is_rival and name == f"[{inner}]":
            return inner
        return name


AS_IS = Reading()


class Rejected(NamedTuple):
    """A row that was set aside."""

    where: str
    reason: str
    row: Any


class Rows:
    """Iterates (row, "file:line"), as often as wanted. Bad rows are in `rejected`, files of a
    folder that are neither rows nor text in `ignored`, documents of a folder that cannot be read or
    repeat others in `left_out`, and names that nobody asked a row for in `unused`.

    The end of an iteration raises UserError where there was no row, or where more than `reading`
    allows were bad; whoever rejects rows later calls `check` again. Not `strict`, it only counts:
    for looking at data that nothing is trained on yet. With a `limit` the first so many rows are
    all there is; a document in several parts is one. `notes` are what there is to say of the files.
    Of `orders:SOURCE` the rows are those that the texts of SOURCE make.
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
        self.spec = spec
        prefix, self.source = ordered(spec)
        self.makes_orders = bool(prefix)
        self.files = files
        self.ignored = ignored
        self.strict = strict
        self.limit = limit
        self.reading = reading
        self.bad = reading.bad
        self._of_files = notes or []
        self.rejected: list[Rejected] = []
        self.left_out: list[Rejected] = []
        self.commit = ""  # of a data set of the Hub, once it is read
        self.seen = 0
        self.unlabelled = 0
        self.template = ""  # the chat template that the rows are for, where there is one
        self.enough: Callable[[], bool] = lambda: False  # whether no further row is wanted
        # whoever converts the rows may have to say more of them
        self.notes: list[str] = [*self._of_files]
        self._unused: dict[str, tuple[int, str]] = {}
        self._open: tuple[Record, str] | None = None

    def __iter__(self) -> Iterator[RecordAndPlace]:
        self._start()
        complete = no_order = 0
        for item, where in self._found():
            self.seen += 1
            if not isinstance(item, BadRecord):
                item = self.reading.renamed(item)
            goes_on = False
            if isinstance(item, BadRecord):
                self.reject(where, item.reason, item.row)
            else:
                record = Record(item)
                record.template = self.template
                self._open = (record, where)
                text = item.get("text")
                goes_on = isinstance(text, Part) and text.more
                if self.makes_orders:
                    made = self._order(record, where)
                    if made is None:
                        no_order += not record.bad
                        continue
                    yield made, where
                else:
                    yield self._open
                    self._close()
            if not goes_on:
                complete += 1
            if 0 < self.limit <= complete or self.enough():
                break
        if not self.seen:
            raise UserError("no rows in it", where=self.spec, hint="give data that holds some")
        if no_order:
            self._tell_no_order(no_order, complete)
        self.check()

    def _order(self, row: Record, where: str) -> Record | None:
        """The order that the text of a row makes; None where it makes none, or the row is bad."""
        text = row.get("text")
        if not isinstance(text, str):
            row.bad = True
            self.reject(where, "has no text to make an order of (--columns text=NAME)", row)
            return None
        self._close()
        order = order_of(text)
        if order is None:
            return None
        made = Record(order.row())
        made.template = self.template
        return made

    def _tell_no_order(self, left_out: int, made: int) -> None:
        """Notes how many texts make no order. Raises UserError where none makes one."""
        why = f"an order needs {LEAST_WORDS} to {MOST_WORDS} words and a sentence at the end"
        if not made and not self.rejected:
            raise UserError(
                f"none of {left_out:,} texts makes an order: {why}",
                where=self.spec,
                hint="give shorter texts that are whole, a row each",
            )
        texts = "1 text makes" if left_out == 1 else f"{left_out:,} texts make"
        self.notes.append(f"{texts} no order ({why})")

    def _start(self) -> None:
        """Forgets what an earlier iteration has counted."""
        self.seen = 0
        self.unlabelled = 0
        self.rejected = []
        self.left_out = []
        self.notes = [*self._of_files]
        self._unused = {}
        self._open = None

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
        found: list[str] = []
        if self.rejected:
            first = self.rejected[0]
            found.append(
                f"{len(self.rejected)} of {self.seen} rows could not be used"
                f" (first: {first.where}: {first.reason})"
            )
        told = self.telling()
        if told:
            found.append(told)
        return found

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
            self._unused[name] = (count + 1, first)

    def _read_at(self, commit: str) -> None:
        self.commit = commit

    def leave_out(self) -> None:
        """Counts a row without a class: it is not bad, and not used."""
        self.unlabelled += 1

    def reject(self, where: str, reason: str, row: Any = None) -> None:
        """Sets a row aside. Raises UserError as soon as there is no doubt that too many are bad."""
        self.rejected.append(Rejected(where, reason, row))
        count = len(self.rejected)
        if self.strict and count > 100 and count > max(0.5, self.bad) * self.seen:
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
        """Adds the bad rows, and documents that were left out, as JSON lines {"where", "reason",
        "row"}, those that are not there yet."""
        lines: list[str] = []
        for rejected in (*self.rejected, *self.left_out):
            lines.append(json.dumps(rejected._asdict(), ensure_ascii=True, default=str))
        add_lines(path, lines)

    def _stop(self) -> None:
        first = self.rejected[0]
        if len(self.rejected) == self.seen > 1:
            # another form than is wanted, and no bad rows of this one
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

    def _found(self) -> Iterator[tuple[Row | BadRecord, str]]:
        if self.source.startswith(PREFIX):
            for row, where in hub_rows(self.source, self._read_at):
                yield row if isinstance(row, BadRecord) else without_nulls(row), where
        if self.files and kind_of(self.files[0]) in DOCUMENTS:
            yield from self._documents()
            return
        for file in self.files:
            try:
                yield from READERS[kind_of(file)](file)
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise UserError(f"cannot be unpacked: {error}", where=str(file)) from error

    def _documents(self) -> Iterator[tuple[Row | BadRecord, str]]:
        """The documents that are read, in parts where they are long. Raises UserError where none is."""
        found = survey(self.files)
        self.left_out = [Rejected(str(one.file), one.reason, None) for one in found.left_out]
        self.notes += found.notes(self._folder)
        if not found.kept:
            first = found.left_out[0]
            why = first.reason
            if len(self.files) > 1:
                why = f"{why}; none of the {len(self.files):,} files can be read"
            raise UserError(why, where=str(first.file), hint=f"documents are {documents()}")
        for one in found.kept:
            for part in one.parts():
                yield {"text": part}, str(one.file)

    @property
    def _folder(self) -> Path | None:
        path = Path(os.path.expanduser(self.source))
        return path if path.is_dir() else None


def add_lines(path: Path, lines: list[str]) -> int:
    """Adds those that the file does not hold yet; how many these are."""
    there: set[str] = set()
    if Path(path).is_file():
        with bounded.open_plain(Path(path)) as opened:
            for line in bounded.lines(opened):
                there.add((line or b"").decode("utf-8", "replace").rstrip("\n"))
    new = [line for line in lines if line not in there]
    if new:
        with naming(Path(path)):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
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
    the first `limit` (0: all). `orders:` before one of them: what is ordered of its texts.

    A file of text, or a document of another kind, is one document. In a folder that holds files of
    rows, documents beside them (a README) are left out; of one that holds splits by name, `split` is
    read (see folders.py); of the split `also`, which the same stage reads too, it is not said that
    it is left out. Raises UserError for what does not exist or is of no known kind.
    """
    name = str(spec)
    source = ordered(name)[1]
    if source.startswith("gym:"):
        raise UserError(
            "a gym has problems to reason about, which grpo and eval take",
            where=name,
            hint="give a file",
        )
    if source.startswith(PREFIX):
        HubSpec.parse(source)
        return Rows(name, [], [], strict, limit, reading)
    path = Path(os.path.expanduser(source))
    if path.is_dir():
        found = listing(path, split, also)
        return Rows(name, found.files, found.ignored, strict, limit, reading, found.notes)
    if not path.is_file():
        hint = f"a data set of the Hub: {FORM}"
        if source != name:
            hint = f"orders are made of the texts of a file, a folder, or {FORM}"
        raise UserError("no such file or folder", where=name, hint=hint)
    if kind_of(path) not in READERS:
        raise UserError(
            f"cannot read {kind_of(path) or 'a file without an ending'}",
            where=name,
            hint=f"known: {known()}",
        )
    return Rows(name, [path], [], strict, limit, reading)
