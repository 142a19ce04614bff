"""The process in which the library datasets reads a data set of the Hub for hub_datasets.py: its
files are somebody else's, and what unpacks them is C++ of several libraries.

A line on stdin is a set's name, as JSON. The answer is a series of parts (row_process.py):

    h  JSON {"commit", "features"}: what is read, nothing where the library does not say it, and what it
       says of the columns
    r  a row, as JSON: dates and decimals as texts, {"not read": "Image"} for what JSON has no word for
    x  how many bytes a row has, which are more than are read
    e  JSON: the set cannot be found, or not be read to the end; the last part
    .  nothing: the last part
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from ondevice.common import bounded
from ondevice.common.disk import DiskFull, as_full
from ondevice.common.distribution import install_hint
from ondevice.common.errors import UserError
from ondevice.common.json_files import parse_json
from ondevice.data.hub_datasets import FORM, TRY_AGAIN, HubSpec
from ondevice.data.row_process import lines, part

_MEMORY = 4 << 30
"""Bytes of addresses that reading may take: the library alone takes one and a half GB of them. macOS
keeps to no such limit."""


def main() -> None:
    # Ctrl-C is for the stage, which finishes its step and may need a row for that.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name, most in (("RLIMIT_AS", _MEMORY), ("RLIMIT_CORE", 0)):
        with suppress(ValueError, OSError):  # a lower one holds already
            resource.setrlimit(getattr(resource, name), (most, most))
    out = sys.stdout.buffer
    sys.stdout = sys.stderr  # what a library prints is no part
    for line in lines():
        for kind, content in parts_of(parse_json(line)):
            out.write(part(kind, content))
            out.flush()


def parts_of(spec: str) -> Iterator[tuple[bytes, bytes]]:
    """The parts of the answer."""
    try:
        commit, features, rows = opened(spec)
        yield b"h", _json({"commit": commit, "features": features})
        for row in rows:
            content = _json(row)
            if len(content) > bounded.LARGEST:
                yield b"x", str(len(content)).encode()
            else:
                yield b"r", content
    except UserError as error:
        yield b"e", _json(_said(error))
    else:
        yield b".", b""


def _said(error: UserError) -> dict[str, Any]:
    said: dict[str, Any] = {"message": error.message, "where": error.where, "hint": error.hint}
    if isinstance(error, DiskFull):
        said |= {"path": str(error.path), "needed": error.needed, "share": error.share}
    return said


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, default=_plain, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _plain(value: Any) -> Any:
    if isinstance(value, (date, time, timedelta, Decimal)):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    return {"not read": type(value).__name__}


_COMMIT = re.compile(r"[0-9a-f]{40}")


def opened(spec: str) -> tuple[str, dict[str, Any], Iterator[dict[str, Any]]]:
    """(commit, features, rows of the split), in this process. Raises UserError, one line, for a set
    that cannot be found or, within the rows, not be read to the end."""
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
    if rows.features:
        features = rows.features.to_dict()
    else:
        features = {}
    return commit, features, _rows(spec, rows.skip(first) if first else rows, first, end)


def _rows(spec: str, stream: Any, first: int, end: int | None) -> Iterator[dict[str, Any]]:
    number, found = first, iter(stream)
    while end is None or number < end:
        try:
            row = next(found, None)
        # a file that is damaged, an answer of the server: of a dozen libraries beneath
        except Exception as error:
            if full := as_full(error, _cache()):
                raise full from error
            raise UserError(
                f"cannot be read after row {number}: {_first_line(error)}",
                where=spec,
                hint=TRY_AGAIN,
            ) from error
        if row is None:
            return
        number += 1
        yield dict(row)


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


if __name__ == "__main__":
    main()
