"""Plain text out of files: its encoding, which is found out, and its pieces, so that a document of
any size is read in bounded memory.
"""

from __future__ import annotations

import codecs
import gzip
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ondevice.common.errors import UserError
from ondevice.data.latin_encodings import latin_encoding

PACKED = ".gz"
UTF_8 = "utf-8-sig"
DAMAGED_UTF_8 = "utf-8"
"""Read with U+FFFD in place of what is not UTF-8."""
_LITTLE_DAMAGE = 5  # times as many letters as there are bytes of no letter
_MOST_CONTROL = 0.02  # of the characters of a text whose encoding was guessed
_WIDE = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
"""Encodings in which a letter of ASCII has bytes that are zero."""
_STRICT = (UTF_8, "utf-16", "utf-32", *_WIDE)
_CHUNK = 1 << 20
_SAMPLE = 1 << 16  # bytes around the first one that is not UTF-8, by which an encoding is guessed
_FEW = 24
"""Bytes beyond ASCII below which their frequencies tell no encoding."""
_SOME = 8
"""And below which letters tell no language."""
_USUAL = "cp1252"
_CONTROL = re.compile(r"[\x01-\x08\x0e-\x1f\x7f]")
_MOST_UNKNOWN = 0.02
"""Share of a text that may be characters that Unicode does not know, or keeps for private use."""
_DIVIDES = " \n\u3000。，"
_LEAST_DIVIDED = 1 / 500
"""Share of a text that divides words or sentences: bytes of another encoding, taken two at a time, look
like Chinese in which nothing does."""
_ASCII = bytes(range(32, 127)) + b"\t\n\r"
_MOST_ASCII = 0.75
"""Share of signs of ASCII among bytes that are not zero, from which few zeros lie in a text of one byte
a letter."""
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before that of UTF-16, with which it begins
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class Part(str):
    """A piece of a document; `more`: the document goes on in the next piece."""

    more = False

    @classmethod
    def of(cls, text: str, more: bool) -> Part:
        part = cls(text)
        part.more = more
        return part


class NoText(Exception):
    """A file that holds no text; the words say why."""


def open_binary(file: Path) -> Any:
    """A binary file, unpacked where it is packed. Raises UserError where it cannot be opened."""
    try:
        if file.name.lower().endswith(PACKED):
            return gzip.open(file)
        return file.open("rb")
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(file)) from error


def refuse_utf16(head: bytes, file: Path) -> None:
    """Raises UserError for rows in UTF-16, as the first two bytes of a file say: rows begin with a sign
    or a letter of ASCII, of which one byte is zero there."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in head[:2]:
        raise UserError("this is UTF-16", where=str(file), hint="save it as UTF-8")


def encoding_of(file: Path) -> str:
    """The encoding of a text file, which is read through once: what its first bytes say; UTF-16 or
    UTF-32 where they look like it; UTF-8 where that fits; else what the bytes that are not UTF-8 are
    most likely to be. Raises NoText for a file that is empty or no text."""
    with open_binary(file) as source:
        sample = source.read(_SAMPLE)
    encoding = marked(sample) or wide(sample) or UTF_8
    try:
        _look_through(file, encoding)
    except UnicodeDecodeError as error:
        if encoding != UTF_8:
            raise NoText(f"is not {encoding.upper()}, as its first bytes say") from error
        encoding = guessed(_around_first_error(file))
        _look_through(file, encoding)
    except UnicodeError as error:
        raise NoText(f"is not {encoding.upper()}: {error}") from error
    return encoding


def marked(head: bytes) -> str:
    """The encoding that a byte order mark names; empty without one."""
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    return ""


def wide(sample: bytes) -> str:
    """UTF-16 or UTF-32 without a mark, in which the first bytes of a file are text; empty where they
    are not. No text of another encoding has a byte that is zero."""
    zeros = sample.count(0)
    others = len(sample.translate(None, _ASCII)) - zeros
    few = zeros < len(sample) / 4
    if not zeros or few and others < (1 - _MOST_ASCII) * (len(sample) - zeros):
        return ""
    best, most = "", 0
    for encoding in _WIDE:
        decoder = codecs.getincrementaldecoder(encoding)()
        try:
            text = decoder.decode(sample)  # the last letter may be cut
        except UnicodeError:
            continue
        divided = sum(map(text.count, _DIVIDES))
        if divided > max(most, _LEAST_DIVIDED * len(text)) and _is_text(text):
            best, most = encoding, divided
    return best


def _is_text(text: str) -> bool:
    unknown = sum(unicodedata.category(letter) in ("Cn", "Co") for letter in text)
    control = len(_CONTROL.findall(text))
    return "\0" not in text and unknown + control <= _MOST_UNKNOWN * len(text)


def guessed(sample: bytes) -> str:
    """What bytes that are not UTF-8 are most likely to be: UTF-8 with some damage; that in which
    they are letters of one language; Windows-1252, of which Latin-1's letters are a part, where few are
    beyond ASCII or nothing better is known."""
    beyond = sum(byte > 127 for byte in sample)
    read = sample.decode("utf-8", "replace")
    if sum(letter > "\x7f" for letter in read) > _LITTLE_DAMAGE * read.count("\ufffd"):
        return DAMAGED_UTF_8
    if beyond >= _SOME and (latin := latin_encoding(sample)):
        return latin
    if beyond >= _FEW:
        try:
            from charset_normalizer import from_bytes
        except ImportError:  # the usual one is then as good a guess as any
            return _USUAL
        best = from_bytes(sample).best()
        if best is not None and best.encoding not in ("ascii", "utf_8", "latin_1"):
            return str(best.encoding)
    return _USUAL


def is_binary(text: str) -> bool:
    """Whether it holds so many control characters that it is no text."""
    return len(_CONTROL.findall(text)) + text.count("\0") > _MOST_CONTROL * len(text)


def pieces(file: Path, encoding: str = UTF_8) -> Iterator[str]:
    """The text in pieces, none of them empty, cut before a line that begins with a letter or sign
    where there is one: no run of white space is cut then, and the tokens are those of the whole."""
    held = ""
    for text in decoded(file, encoding):
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


def parts(file: Path, encoding: str = UTF_8) -> Iterator[Part]:
    """The same as parts of one document, each with whether there is more."""
    piece = ""
    for following in pieces(file, encoding):
        if piece:
            yield Part.of(piece, True)
        piece = following
    yield Part.of(piece, False)


def decoded(file: Path, encoding: str = UTF_8) -> Iterator[str]:
    """The text of a file, a chunk at a time, with one kind of line break. A byte that an encoding of
    one byte a letter has nothing for becomes U+FFFD; of Unicode's own it raises UnicodeError."""
    errors = "strict" if encoding in _STRICT else "replace"
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    with open_binary(file) as source:
        after_return = False
        while True:
            chunk = source.read(_CHUNK)
            text = decoder.decode(chunk, final=not chunk)
            if after_return:
                text = "\r" + text
            after_return = text.endswith("\r") and bool(chunk)
            if after_return:
                text = text[:-1]
            yield text.replace("\r\n", "\n").replace("\r", "\n")
            if not chunk:
                return


def _look_through(file: Path, encoding: str) -> None:
    """Raises NoText for what is empty or holds NUL bytes, UnicodeDecodeError for another encoding."""
    size = control = 0
    for text in decoded(file, encoding):
        size += len(text.strip())
        if "\0" in text:
            raise NoText("holds NUL bytes: not a text file")
        if encoding not in _STRICT:
            control += len(_CONTROL.findall(text))
    if control > _MOST_CONTROL * size:
        raise NoText("holds control characters: not a text file")
    if not size:
        raise NoText("empty")


def _around_first_error(file: Path) -> bytes:
    """The bytes of a file from a little before the first one that is not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with open_binary(file) as source:
        while True:
            chunk = source.read(_CHUNK)
            try:
                decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                start = max(0, error.start - 1024)
                rest: bytes = error.object[start:] + _more(source)
                return rest[:_SAMPLE]
            if not chunk:
                return b""


def _more(source: IO[bytes]) -> bytes:
    return source.read(_SAMPLE)
