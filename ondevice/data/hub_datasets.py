"""Rows of a data set of the Hub, `hub:OWNER/NAME[/CONFIG][@REVISION][:SPLIT]`, read as a stream by
the library datasets: at one commit, whatever comes to the repository while it is read. A split may
be cut as datasets writes it: `train[2000:3000]` is the rows from 2,000 up to 3,000."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ondevice.common.disk import as_full
from ondevice.common.distribution import install_hint
from ondevice.common.errors import UserError
from ondevice.data.class_labels import class_columns, with_names

PREFIX = "hub:"
FORM = "hub:OWNER/NAME[/CONFIG][@REVISION][:SPLIT]"
_COMMIT = re.compile(r"[0-9a-f]{40}")
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
        found = cls("/".join([owner, *rest[:1]]), "/".join(rest[1:]), revision, split or "train")
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


def hub_rows(spec: str, read_at: Callable[[str], None]) -> Iterator[tuple[dict[str, Any], str]]:
    """(row, "hub:…:row N") of the split. `read_at` is told the commit that is read, empty where the
    library does not say it. Raises UserError, one line, for a set that cannot be found or read to
    the end."""
    try:
        import datasets  # 0.7 s
    except ImportError as error:
        raise UserError(
            "a data set of the Hub needs the library datasets",
            where=spec,
            hint=install_hint("data"),
        ) from error
    wanted = HubSpec.parse(spec)
    split, first, end = wanted.cut()
    try:
        builder = datasets.load_dataset_builder(
            wanted.repo, wanted.config or None, revision=wanted.revision or None
        )
        rows = builder.as_streaming_dataset(split=split)
    except Exception as error:  # the library raises its own, requests' and the Hub's errors
        if full := as_full(error, _cache()):
            raise full from error
        raise _not_loaded(spec, error) from error
    commit = str(builder.hash or "")
    if not _COMMIT.fullmatch(commit):
        commit = ""
    read_at(commit)
    features = {}
    if rows.features:
        features = rows.features.to_dict()
    classes = class_columns(features)
    number = first
    stream = iter(rows.skip(first) if first else rows)
    while end is None or number < end:
        try:
            row = next(stream, None)
        # a file that is damaged, an answer of the server: of a dozen libraries beneath
        except Exception as error:
            if full := as_full(error, _cache()):
                raise full from error
            raise UserError(
                f"cannot be read after row {number}: {_first_line(error)}",
                where=spec,
                hint="try again; if it stays so a file of the set is damaged: --limit takes the rows "
                "before it",
            ) from error
        if row is None:
            return
        number += 1
        yield with_names(dict(row), classes), f"{spec}:row {number}"


def _cache() -> Path:
    """Where the library keeps what it has fetched, for what does not name its file."""
    return Path(os.environ.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface"))


def _not_loaded(spec: str, error: Exception) -> UserError:
    """With the configs or splits to choose from, where the library lists them."""
    text = str(error)
    listed = re.search(r"available configs?:? *\[(.*?)\]", text, re.DOTALL | re.IGNORECASE)
    if listed and "missing" in text:
        names = [name.strip().strip("'\"") for name in listed[1].split(",")]
        wanted = HubSpec.parse(spec)
        named = f"hub:{wanted.repo}/{names[0]}"
        if wanted.revision:
            named += f"@{wanted.revision}"
        return UserError(
            f"has several configs, name one: {', '.join(names)}",
            where=spec,
            hint=f"{named}:{wanted.split}",
        )
    hint = FORM
    for name, advice in _UNREACHED.items():
        if name in text:
            hint = advice
            break
    return UserError(f"cannot be loaded: {_first_line(error)}", where=spec, hint=hint)


# Names that the library puts into what it says where the Hub was not reached.
_UNREACHED = {
    "OfflineModeIsEnabled": "HF_HUB_OFFLINE or HF_DATASETS_OFFLINE is set: unset it",
    "ConnectionError": "is there a network?",
    "ConnectError": "is there a network?",
    "Timeout": "is there a network?",
}


def _first_line(error: BaseException) -> str:
    """What an error says, or the one that it came from, where it says nothing itself."""
    said = " ".join(str(error).split("\n\n")[0].split())
    if said:
        return said[:300]
    return type(error).__name__
