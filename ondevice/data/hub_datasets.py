"""Rows of a data set of the Hub, `hub:OWNER/NAME[/CONFIG][@REVISION][:SPLIT]`, read as a stream by
the library datasets: at one commit, whatever comes to the repository while it is read. A split may
be cut as datasets writes it: `train[2000:3000]` is the rows from 2,000 up to 3,000."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ondevice.common import bounded, processes
from ondevice.common.disk import DiskFull
from ondevice.common.distribution import install_hint
from ondevice.common.errors import UserError
from ondevice.common.json_files import parse_json
from ondevice.data.class_labels import class_columns, with_names
from ondevice.data.readers import BadRecord
from ondevice.data.row_process import Ended, answers

PREFIX = "hub:"
FORM = "hub:OWNER/NAME[/CONFIG][@REVISION][:SPLIT]"
TRY_AGAIN = (
    "try again; if it stays so a file of the set is damaged: --limit takes the rows before it"
)
_WAIT_S = 600.0  # for one row; the library tries again and again where a server does not answer
_CUT = re.compile(r"([^\[\]]+)\[(\d*):(\d*)\]")


class HubSpec(NamedTuple):
    """What a name of data on the Hub says. `config` and `revision` are empty where it says nothing."""

    repo: str
    config: str
    revision: str
    split: str

    @classmethod
    def parse(cls, spec: str) -> HubSpec:
        """Raises UserError for a name with an empty part."""
        named, _, split = spec.removeprefix(PREFIX).partition(":")
        path, at, revision = named.partition("@")
        owner, *rest = path.split("/")
        repo = "/".join([owner, *rest[:1]])
        config = "/".join(rest[1:])
        found = cls(repo, config, revision, split or "train")
        if not owner or "" in rest or (at and not revision):
            raise UserError("is not the name of a data set", where=spec, hint=FORM)
        if "[" in found.split:
            found.cut()
        return found

    def cut(self) -> tuple[str, int, int | None]:
        """(the split's name, the first row of it that is read, the row before which reading ends;
        None: at the end). Raises UserError for a cut that is none."""
        if "[" not in self.split:
            return self.split, 0, None
        match = _CUT.fullmatch(self.split)
        if match is None:
            raise UserError(
                f"{self.split} does not say which rows",
                where=f"{PREFIX}{self.repo}",
                hint="give numbers of rows: train[2000:3000], train[:500] or train[500:]",
            )
        first, end = int(match[2] or 0), int(match[3]) if match[3] else None
        if end is not None and end <= first:
            raise UserError(
                f"{self.split} has no rows",
                where=f"{PREFIX}{self.repo}",
                hint=f"the second number is the row before which reading ends: {match[1]}[{first}:{first + 1000}]",
            )
        return match[1], first, end


def hub_rows(
    spec: str, read_at: Callable[[str], None]
) -> Iterator[tuple[dict[str, Any] | BadRecord, str]]:
    """(row, "hub:…:row N") of the split, read in a process of its own. `read_at` is told the commit
    that is read, empty where the library does not say it. Raises UserError, one line, for a set
    that cannot be found or read to the end."""
    if importlib.util.find_spec("datasets") is None:
        raise UserError(
            "a data set of the Hub needs the library datasets",
            where=spec,
            hint=install_hint("data"),
        )
    classes: dict[str, tuple[str, ...]] = {}
    number = HubSpec.parse(spec).cut()[1]
    parts = answers(
        json.dumps(spec).encode(),
        "ondevice.data.hub_stream",
        "datasets",
        _WAIT_S,
        processes.Access.HUB,
    )
    try:
        for kind, content in parts:
            if kind == b"e":
                raise _told(parse_json(content))
            if kind == b"h":
                head = parse_json(content)
                read_at(head["commit"])
                classes = class_columns(head["features"])
            elif kind != b".":
                number += 1
                yield _row(kind, content, classes), f"{spec}:row {number}"
    except Ended as error:
        raise UserError(
            f"cannot be read after row {number}: {error}", where=spec, hint=TRY_AGAIN
        ) from error
    finally:
        parts.close()


def _row(
    kind: bytes, content: bytes, classes: Mapping[str, tuple[str, ...]]
) -> dict[str, Any] | BadRecord:
    if kind == b"x":
        return BadRecord(f"has {int(content) >> 20} MB (at most {bounded.LARGEST >> 20})", None)
    try:
        row: dict[str, Any] = parse_json(content)
    except ValueError as error:
        return BadRecord(str(error), None)
    return with_names(row, classes)


def _told(said: Any) -> UserError:
    """The error that reading ended with."""
    if "path" in said:
        return DiskFull(Path(said["path"]), said["needed"], share=said["share"])
    return UserError(said["message"], where=said["where"], hint=said["hint"])
