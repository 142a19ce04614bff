"""Files that somebody else may have written, read within limits: nothing but plain files (a pipe
would be waited for), and no more bytes than were allowed for.

A test walks the source for a file that is read anywhere else.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

LARGEST = 64 << 20
"""Bytes of a file that is read at once, and of one line of a file of lines."""


class TooLarge(ValueError):
    """More bytes than are read at once."""


def read_bytes(file: Path, most: int = LARGEST) -> bytes:
    """Raises OSError where it cannot be read or is not a plain file, TooLarge past `most` bytes."""
    with open_plain(file) as opened:
        data = opened.read(most + 1)
    if len(data) > most:
        raise TooLarge(f"has more than {most:,} bytes")
    return data


def read_text(file: Path, most: int = LARGEST, *, errors: str = "strict") -> str:
    """UTF-8, with one kind of line break. Raises as `read_bytes` does, and UnicodeDecodeError, a
    ValueError."""
    text = read_bytes(file, most).decode("utf-8", errors)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def open_plain(file: Path) -> IO[bytes]:
    """Raises OSError where it cannot be opened or is not a plain file."""
    if file.exists() and not file.is_file():
        raise OSError(errno.EINVAL, "is not a file", str(file))
    return open(file, "rb")


def lines(opened: Any, most: int = LARGEST) -> Iterator[bytes | None]:
    """The lines of an open binary file, each with its line break; None for one of more than `most`
    bytes, which is passed over without being kept."""
    while line := opened.readline(most + 1):
        if len(line) <= most:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = opened.readline(1 << 20)
        yield None
