"""The rows of a list in a JSON file, one at a time and each as its bytes, so that a file of any size
takes no more memory than its largest row.

Chosen: the signs between rows are found here and each row is parsed alone, by what parses a line of
JSONL. A library that streams JSON (ijson) keeps a text of any length as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ondevice.common.bounded import LARGEST
from ondevice.common.errors import UserError

KEYS = (b"data", b"rows", b"train")
"""Under which an object may hold its list of rows: the first of these that it has."""
_CHUNK = 1 << 16
_SHORT = 100  # bytes of a name that is looked at
_OPEN, _CLOSE, _QUOTE, _BACKSLASH = b"[{", b"]}", ord('"'), ord("\\")
_BETWEEN = re.compile(rb'["\[\]{},:]')  # signs that matter between rows
_WITHIN = re.compile(rb'["\[\]{}]')  # and within one
_IN_TEXT = re.compile(rb'["\\]')
_TEXT = re.compile(rb'"((?:[^"\\]++|\\.)*+)"', re.DOTALL)


class _Scanner:
    """Goes from sign to sign of a JSON file, and keeps what lies between two cuts, where that is not
    too long."""

    def __init__(self, source: Any) -> None:
        self.source = source
        self.begun = 0  # the byte of the file that is kept first
        self.at = 0  # where to go on, in what is kept
        self.text = b""  # the text that was passed last, where it is a short one
        self.is_long = False
        self._kept = bytearray()
        self._in_text = False
        self._begun_text = -1  # in what is kept: where the text that is not whole yet begins

    def first(self) -> int | None:
        """The first byte that is no white space, which is passed; None at the end."""
        while True:
            byte = self.source.read(1)
            self.begun += 1
            if not byte:
                return None
            if not byte.isspace():
                return int(byte[0])

    def sign(self, wanted: re.Pattern[bytes]) -> int | None:
        """The next sign outside of texts, or the quote of a text, which is passed; None at the end."""
        while True:
            found = (_IN_TEXT if self._in_text else wanted).search(self._kept, self.at)
            if found is None:
                if not self._read():
                    return None
                continue
            sign, self.at = self._kept[found.start()], found.end()
            if self._in_text:
                self._end_text(sign)
            elif sign == _QUOTE:
                self._pass_text(found.start())
                return sign
            else:
                return sign

    def _end_text(self, sign: int) -> None:
        if sign == _QUOTE:
            self._in_text = False
            if self._begun_text >= 0 and self.at - self._begun_text < _SHORT:
                self.text = bytes(self._kept[self._begun_text + 1 : self.at - 1])
            return
        if self.at == len(self._kept):
            self._kept += self.source.read(1)
        self.at += 1  # what a backslash stands before

    def _pass_text(self, start: int) -> None:
        whole = _TEXT.match(self._kept, start)
        self._in_text = whole is None
        self._begun_text = start
        self.text = b""
        if whole is not None:
            self.at = whole.end()
            if whole.end() - start < _SHORT:
                self.text = bytes(whole[1])

    def _read(self) -> bool:
        self.at = len(self._kept)
        if self.at > LARGEST:
            self.is_long = True
            self.begun += self.at
            self.at = 0
            self._begun_text = -1
            self._kept.clear()
        piece = self.source.read(_CHUNK)
        self._kept += piece
        return bool(piece)

    def cut(self) -> bytes | None:
        """What lies between the cut before and the sign that was passed last; None where it is too
        long."""
        if self.is_long:
            between = None
        else:
            between = bytes(self._kept[: self.at - 1]).strip()
        del self._kept[: self.at]
        self.begun += self.at
        self.at, self.is_long, self._begun_text = 0, False, -1
        return between

    def rest_is_blank(self) -> bool:
        """Whether nothing but white space follows."""
        rest = bytes(self._kept[self.at :])
        while not rest.strip():
            rest = self.source.read(_CHUNK)
            if not rest:
                return True
        return False


def rows_in(file: Path, opened: Callable[[Path], Any]) -> Iterator[bytes | None]:
    """The rows of the list that the file is, or that the object in it holds; the object itself
    where it holds none. None: one of more than LARGEST bytes.

    `opened` opens the file for its bytes. Raises UserError for what is not JSON as far as brackets
    and texts say it: what is in a row is for whoever parses it.
    """
    with opened(file) as source:
        scanner = _Scanner(source)
        first = scanner.first()
        if first == 0xEF:  # a byte order mark
            source.read(2)
            scanner.begun += 2
            first = scanner.first()
        if first == ord("["):
            yield from _list(scanner, file)
            if not scanner.rest_is_blank():
                raise _no_json(file, "something follows its list")
            return
        if first is not None and first >= 0x80:
            raise UserError(f"not UTF-8 at byte {scanner.begun}", where=str(file))
        if first != ord("{"):
            raise _no_json(file, "it holds no list of rows")
        start = scanner.begun - 1
        lists = _lists(scanner, file)
    place = next((lists[key] for key in KEYS if key in lists), None)
    with opened(file) as source:
        source.seek(start if place is None else place)
        if place is not None:
            yield from _list(_Scanner(source), file)
            return
        only = source.read(LARGEST + 1)
        yield only if len(only) <= LARGEST else None


def _list(scanner: _Scanner, file: Path) -> Iterator[bytes | None]:
    """The values of the list whose bracket was passed."""
    depth = number = 0
    while True:
        sign = scanner.sign(_WITHIN if depth else _BETWEEN)
        if sign is None:
            raise _no_json(file, "its list does not end: cut off?")
        if sign in _OPEN:
            depth += 1
        elif depth and sign in _CLOSE:
            depth -= 1
        elif not depth and sign in b",]}":
            value = scanner.cut()
            if value != b"" or number or sign == ord(","):
                yield value
            number += 1
            if sign != ord(","):
                return


def _lists(scanner: _Scanner, file: Path) -> dict[bytes, int]:
    """Key → the first byte within its list, of the object whose bracket was passed."""
    found: dict[bytes, int] = {}
    depth, key, is_value = 0, b"", False
    while True:
        sign = scanner.sign(_WITHIN if depth else _BETWEEN)
        if sign is None:
            raise _no_json(file, "it does not end: cut off?")
        if not depth:
            if sign == ord(":"):
                key, is_value = scanner.text, True
            elif sign == ord(","):
                is_value = False
            elif sign == ord("[") and is_value:
                found[key] = scanner.begun + scanner.at
            elif sign in _CLOSE:
                break
            if sign != _QUOTE:  # a name may not be whole yet
                scanner.cut()
        if sign in _OPEN:
            depth += 1
        elif depth and sign in _CLOSE:
            depth -= 1
    if not scanner.rest_is_blank():
        raise _no_json(file, "something follows its object")
    return found


def _no_json(file: Path, why: str) -> UserError:
    return UserError(
        f"not JSON: {why}", where=str(file), hint="one row a line is JSONL: call the file .jsonl"
    )
