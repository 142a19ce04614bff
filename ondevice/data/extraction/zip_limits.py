"""Zip archives of others (Word files, EPUB books) are opened here, within limits."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ondevice.data.extraction.account import Unreadable

MOST_UNPACKED = 512 << 20
MOST_ENTRY = 64 << 20  # bytes of an entry that is parsed
MOST_ENTRIES = 20_000


class Archive:
    """The entries of an open archive, by their `names`."""

    def __init__(self, opened: zipfile.ZipFile) -> None:
        self._opened = opened
        self.names = frozenset(opened.namelist())

    def entry(self, name: str) -> bytes:
        """The bytes of one entry. Raises Unreadable where there is none, or it is too large."""
        if name not in self.names:
            raise Unreadable(f"is damaged: it holds no {name}")
        with self._opened.open(name) as source:
            data = source.read(MOST_ENTRY + 1)
        if len(data) > MOST_ENTRY:
            raise Unreadable(f"holds a file of more than {MOST_ENTRY >> 20} MB")
        return data


@contextmanager
def archive(file: Path) -> Iterator[Archive]:
    """An archive whose entries say that they stay within limits: zipfile gives no more of one than
    it says. Raises Unreadable for what is no archive, is encrypted, or would be too large."""
    try:
        with zipfile.ZipFile(file) as opened:
            entries = opened.infolist()
            size = sum(entry.file_size for entry in entries)
            if len(entries) > MOST_ENTRIES or size > MOST_UNPACKED:
                raise Unreadable(
                    f"unpacks to {size >> 20:,} MB in {len(entries):,} files (at most "
                    f"{MOST_UNPACKED >> 20} MB in {MOST_ENTRIES:,})"
                )
            if any(entry.flag_bits & 1 for entry in entries):
                raise Unreadable("is encrypted")
            yield Archive(opened)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError) as error:
        raise Unreadable(f"is damaged: {error}") from error
