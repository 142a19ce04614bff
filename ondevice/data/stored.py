"""Tokens on the disk: made once, then read as memory maps, so that more than the memory holds can be learned from."""

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

from ondevice.data.chat import ChatRow
from ondevice.data.tokenizer import Tokenizer


def place_of(folder: Path, kind: str, tokenizer: Tokenizer, key: str) -> Path:
    """Where the tokens of `key` (a digest of what is read) lie: another tokenizer or template has another place."""
    return folder / f"{kind}-{hashlib.sha256(f'{tokenizer.sha256()} {key}'.encode()).hexdigest()[:20]}"


def made_once(path: Path, make: Callable[[Path], None]) -> Path:
    """`path`, which `make` has written if it was not there: a file or a folder, whole or not at all."""
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        make(part)
        for file in part.iterdir() if part.is_dir() else (part,):
            with file.open("rb") as written:
                os.fsync(written.fileno())
        try:
            part.rename(path)
        except OSError:  # a folder is not written over: another process was as quick
            if not path.exists():
                raise
    finally:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)
    return path


def link_from(other: Path, path: Path) -> None:
    """`path` as what `other` is, a file or a folder that nobody writes to again: the same bytes on the disk, which stay
    when one of the two is deleted. Nothing where the file system has no links."""
    def make(part: Path) -> None:
        if other.is_dir():
            shutil.copytree(other, part, copy_function=os.link)
        else:
            os.link(other, part)

    with suppress(OSError, shutil.Error):
        made_once(path, make)


class JsonLines(Sequence[Any]):
    """Rows of a file of JSON lines by number, parsed when they are asked for."""

    def __init__(self, file: Path, starts: NDArray[np.int64]) -> None:
        self._file, self._starts = file, starts

    @classmethod
    def stored(cls, path: Path, rows: Callable[[], Iterable[Any]]) -> JsonLines:
        """Those of the folder `path`; `rows` are asked for, one at a time, where it is not there yet."""
        def make(part: Path) -> None:
            part.mkdir()
            starts = array("q")
            with (part / "lines.jsonl").open("wb") as out:
                for row in rows():
                    starts.append(out.tell())
                    out.write(json.dumps(row, default=str).encode() + b"\n")
            with (part / "starts").open("wb") as file:
                starts.tofile(file)

        made_once(path, make)
        return cls(path / "lines.jsonl", mapped(path / "starts", np.int64))

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return JsonLines(self._file, self._starts[at])
        with self._file.open("rb") as lines:
            lines.seek(int(self._starts[at]))
            return json.loads(lines.readline())


class ChatRows(Sequence[ChatRow]):
    """Rows of chats as three flat arrays: ids (N,) int32 and mask (N,) bool of all tokens, starts (rows + 1,) int64."""

    def __init__(self, ids: NDArray[np.int32], mask: NDArray[np.bool_], starts: NDArray[np.int64]) -> None:
        self.ids, self.mask, self.starts = ids, mask, starts

    @classmethod
    def of(cls, rows: Iterable[ChatRow]) -> ChatRows:
        """In memory."""
        if isinstance(rows, ChatRows):
            return rows
        found = list(rows)
        sizes = np.array([0, *(len(row.ids) for row in found)], np.int64)
        return cls(np.concatenate([np.zeros(0, np.int32), *(row.ids for row in found)]).astype(np.int32),
                   np.concatenate([np.zeros(0, np.bool_), *(row.mask for row in found)]), np.cumsum(sizes))

    @classmethod
    def stored(cls, path: Path, rows: Callable[[], Iterable[ChatRow]]) -> ChatRows:
        """Memory maps of the folder `path`; `rows` are asked for, one at a time, where it is not there yet."""
        made_once(path, lambda part: write_rows(part, rows()))
        return mapped_rows(path)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @overload
    def __getitem__(self, at: int) -> ChatRow: ...
    @overload
    def __getitem__(self, at: slice) -> ChatRows: ...
    def __getitem__(self, at: int | slice) -> ChatRow | ChatRows:
        if isinstance(at, slice):
            first, end, stride = at.indices(len(self))
            assert stride == 1
            return ChatRows(self.ids, self.mask, self.starts[first:max(first, end) + 1])
        place = range(len(self))[at]
        part = slice(int(self.starts[place]), int(self.starts[place + 1]))
        return ChatRow(self.ids[part], self.mask[part])

    def __iter__(self) -> Iterator[ChatRow]:
        return (self[n] for n in range(len(self)))

    @property
    def tokens(self) -> int:
        return int(self.starts[-1] - self.starts[0])


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
    kinds = {"ids": np.int32, "mask": np.bool_, "starts": np.int64}
    return ChatRows(*(mapped(folder / name, kind) for name, kind in kinds.items()))


def mapped(file: Path, dtype: Any) -> NDArray[Any]:
    """A memory map of a file of numbers; nothing can be mapped of an empty one."""
    return np.memmap(file, dtype=dtype, mode="r") if file.stat().st_size else np.zeros(0, dtype)
