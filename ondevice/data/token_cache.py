"""Tokens on the disk: made once, then read as memory maps, so that more than the memory holds can
be learned from.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from ondevice.common import atomic
from ondevice.common.disk import DiskFull, naming
from ondevice.common.files import sha256, sha256_once, write_file
from ondevice.common.json_files import load_json, parse_json
from ondevice.common.sanitize import to_stderr
from ondevice.data.chat_encoding import ChatRow
from ondevice.data.mixture import Joined
from ondevice.data.tokenizer import Tokenizer

SUMS = ".sums.json"
"""Name → [length, sha256] of the files of a cache."""

# What is learned of a chat, or known of a prompt, has changed since rows were first kept: they are
# made anew.
_LEARNED = {
    "chats": " calls, thoughts and flags",
    "pairs": " calls and thoughts",
    "prompts": " and where they begin",
}


def place_of(folder: Path, kind: str, tokenizer: Tokenizer, key: str) -> Path:
    """Where the tokens of `key` (a digest of what is read) lie: another tokenizer or template has
    another place, and so have chats of which an earlier version has taken other tokens for the
    assistant's."""
    made = f"{tokenizer.sha256()} {key}{_LEARNED.get(kind, '')}"
    return folder / f"{kind}-{hashlib.sha256(made.encode()).hexdigest()[:20]}"


def made_once(path: Path, make: Callable[[Path], None]) -> Path:
    """`path`, which `make` has written if it was not there: a file or a folder, whole or not at
    all. What can be made again is `cached` instead.

    Raises UserError on a full disk.
    """
    if not path.exists():
        _make(path, make, summed=False)
    return path


def cached(
    path: Path, make: Callable[[Path], None], say: Callable[[str], None] = to_stderr
) -> Path:
    """`path`, which `make` has written if it was not there, or was not what was written: a file or
    a folder, whole or not at all, with the length and the hash of each of its files beside it.

    `say` is told of what was damaged and is made anew. Raises DiskFull also where a run waits for
    room: what is made of may be gone through once, so the stage is tried again, not this.
    """
    reason = None
    if os.path.lexists(path):
        reason = find_damage(path)
        if reason is None:
            return path
        say(f"{path} is made anew: {reason}")
    _make(path, make, summed=True, damaged=reason is not None)
    return path


def _make(path: Path, make: Callable[[Path], None], *, summed: bool, damaged: bool = False) -> None:
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.aside(path) as part:
        make(part)
        if summed:
            _write_sums(part, path)
        files = [part]
        if part.is_dir():
            files = list(part.iterdir())
        for file in files:
            atomic.sync(file)
        if damaged:
            atomic.replace(part, path)
            return
        try:
            part.rename(path)
        except OSError:  # a folder is not written over: another process was as quick
            if not path.exists():
                raise


def _sums_of(path: Path) -> Path:
    """Where the lengths and hashes of a cache are: in a folder, beside a file."""
    if path.is_dir():
        return path / SUMS
    return path.with_name(f".{path.name}{SUMS}")


def _write_sums(part: Path, path: Path) -> None:
    sums = {}
    for file in sorted(part.iterdir()) if part.is_dir() else [part]:
        if file.name != SUMS:
            if part.is_dir():
                name = file.name
            else:
                name = path.name
            sums[name] = [file.stat().st_size, sha256(file)]
    text = json.dumps(sums, indent=1) + "\n"
    if part.is_dir():
        (part / SUMS).unlink(missing_ok=True)  # a link to another cache's
        (part / SUMS).write_text(text, encoding="utf-8")
    else:  # before the file is there: it is not believed without
        write_file(_sums_of(path), text)


def find_damage(path: Path) -> str | None:
    """Why a cache cannot be believed; None: each of its files has the length and the hash with
    which it was written. Read once in a process while the files are as they were."""
    try:
        sums = load_json(_sums_of(path))
        for name, (size, listed) in sums.items():
            file = path / name if path.is_dir() else path
            if file.stat().st_size != size:
                return f"{name} has another length than it was written with"
            if sha256_once(file) != listed:
                return f"{name} has another hash than it was written with"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return f"its sums cannot be read ({error})"
    return None


def link_from(other: Path, path: Path) -> None:
    """`path` as what `other` is, a file or a folder that nobody writes to again: the same bytes on
    the disk, which stay when one of the two is deleted. Nothing where the file system has no links,
    or `other` is damaged.
    """

    def make(part: Path) -> None:
        if other.is_dir():
            shutil.copytree(other, part, copy_function=os.link)
        else:
            os.link(other, part)

    if find_damage(other) is None:
        with suppress(OSError, shutil.Error, DiskFull):  # it is then made, which says what is full
            cached(path, make)


class JsonLines(Sequence[Any]):
    """Rows of a file of JSON lines by number, parsed when they are asked for. `keys` (N, 2) uint64:
    what was said of each row as it was written."""

    def __init__(
        self, octets: NDArray[np.uint8], starts: NDArray[np.int64], keys: NDArray[np.uint64]
    ) -> None:
        self._octets, self._starts, self.keys = octets, starts, keys

    @classmethod
    def stored(
        cls,
        path: Path,
        rows: Callable[[], Iterable[Any]],
        keys_of: Callable[[Any], tuple[int, int]],
    ) -> JsonLines:
        """Those of the folder `path`; `rows` are asked for, one at a time, where it is not there
        yet, and `keys_of` gives the keys of each."""

        def make(part: Path) -> None:
            part.mkdir()
            starts, keys = array("q", [0]), array("Q")
            with (part / "lines.jsonl").open("wb") as out:
                for row in rows():
                    out.write(json.dumps(row, default=str).encode() + b"\n")
                    starts.append(out.tell())
                    keys.extend(keys_of(row))
            for name, values in (("starts", starts), ("keys", keys)):
                with (part / name).open("wb") as file:
                    values.tofile(file)

        cached(path, make)
        return cls(
            mapped(path / "lines.jsonl", np.uint8),
            mapped(path / "starts", np.int64),
            mapped(path / "keys", np.uint64).reshape(-1, 2),
        )

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return [self[n] for n in range(*at.indices(len(self)))]
        at = range(len(self))[at]
        return parse_json(bytes(self._octets[int(self._starts[at]) : int(self._starts[at + 1])]))


class ChatRows(Sequence[ChatRow]):
    """Rows of chats in flat arrays: ids and mask (N,) of all tokens, starts and ends (rows,) of
    each row among them. `keys` (rows, 2) uint64, where they are known: alike in rows of one chat;
    alike where the whole chat is."""

    def __init__(
        self,
        ids: Any,
        mask: Any,
        starts: NDArray[np.int64],
        ends: NDArray[np.int64],
        keys: NDArray[np.uint64] | None = None,
    ) -> None:
        self.ids, self.mask, self.starts, self.ends, self.keys = ids, mask, starts, ends, keys

    @classmethod
    def of(cls, rows: Iterable[ChatRow]) -> ChatRows:
        """In memory."""
        if isinstance(rows, ChatRows):
            return rows
        ids: list[NDArray[np.int32]] = [np.zeros(0, np.int32)]
        masks: list[NDArray[np.bool_]] = [np.zeros(0, np.bool_)]
        for row in rows:
            ids.append(row.ids)
            masks.append(row.mask)
        ends = np.cumsum(np.array(list(map(len, ids)), np.int64))
        all_ids = np.concatenate(ids).astype(np.int32)
        return cls(all_ids, np.concatenate(masks), ends[:-1], ends[1:])

    @classmethod
    def stored(
        cls,
        path: Path,
        rows: Callable[[], Iterable[ChatRow]],
        keys: Callable[[], NDArray[np.uint64]] | None = None,
    ) -> ChatRows:
        """Memory maps of the folder `path`; `rows` are asked for, one at a time, where it is not
        there yet, and then their `keys`."""

        def make(part: Path) -> None:
            write_rows(part, rows())
            if keys is not None:
                (part / "keys").write_bytes(keys().astype(np.uint64).tobytes())

        cached(path, make)
        return mapped_rows(path)

    @classmethod
    def joined(cls, parts: Sequence[ChatRows], order: NDArray[np.int64]) -> ChatRows:
        """The rows `order`, numbered through all parts; their tokens stay where they are."""
        ids = Joined([part.ids for part in parts], np.int32)
        mask = Joined([part.mask for part in parts], np.bool_)
        starts, ends = [], []
        for part, first in zip(parts, ids.firsts[:-1], strict=True):
            starts.append(part.starts + first)
            ends.append(part.ends + first)
        return cls(ids, mask, np.concatenate(starts)[order], np.concatenate(ends)[order])

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, at: int) -> ChatRow: ...
    @overload
    def __getitem__(self, at: slice) -> ChatRows: ...
    def __getitem__(self, at: int | slice) -> ChatRow | ChatRows:
        if isinstance(at, slice):
            return self.only(at)
        part = slice(int(self.starts[at]), int(self.ends[at]))
        return ChatRow(self.ids[part], self.mask[part])

    def only(self, which: Any) -> ChatRows:
        """Those of which `which` is true, or the numbers."""
        keys = None
        if self.keys is not None:
            keys = self.keys[which]
        return ChatRows(self.ids, self.mask, self.starts[which], self.ends[which], keys)

    def __iter__(self) -> Iterator[ChatRow]:
        return (self[n] for n in range(len(self)))

    @property
    def tokens(self) -> int:
        return int((self.ends - self.starts).sum())


def write_rows(folder: Path, rows: Iterable[ChatRow]) -> None:
    """Makes the folder with three files, ids, mask and starts."""
    folder.mkdir()
    starts = array("q", [0])
    with (folder / "ids").open("wb") as ids, (folder / "mask").open("wb") as mask:
        for row in rows:
            ids.write(np.asarray(row.ids, np.int32).tobytes())
            mask.write(np.asarray(row.mask, np.bool_).tobytes())
            starts.append(starts[-1] + len(row.ids))
    with (folder / "starts").open("wb") as file:
        starts.tofile(file)


def mapped_rows(folder: Path) -> ChatRows:
    """Memory maps of what `write_rows` has written."""
    places = mapped(folder / "starts", np.int64)
    keys = None
    if (folder / "keys").is_file():
        keys = mapped(folder / "keys", np.uint64).reshape(-1, 2)
    return ChatRows(
        mapped(folder / "ids", np.int32),
        mapped(folder / "mask", np.bool_),
        places[:-1],
        places[1:],
        keys,
    )


def mapped(file: Path, dtype: Any) -> NDArray[Any]:
    """A memory map of a file of numbers; nothing can be mapped of an empty one."""
    if file.stat().st_size:
        return np.memmap(file, dtype=dtype, mode="r")
    return np.zeros(0, dtype)
