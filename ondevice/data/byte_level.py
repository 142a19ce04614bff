"""How vocabularies spell the bytes of a token: byte-level ones in 256 printable characters (GPT-2's
table), SentencePiece's with ▁ for a space, WordPiece's with ## before what goes on with a word.
"""

from __future__ import annotations

import re

SINGLE_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
"""A token of SentencePiece's vocabularies that is one byte."""


def _byte_alphabet() -> dict[str, int]:
    """The printable characters that byte-level vocabularies use for the 256 bytes (GPT-2's table)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(byte): byte for byte in plain}
    place = 256  # the other bytes take the characters from here on, in order
    for byte in range(256):
        if byte not in plain:
            table[chr(place)] = byte
            place += 1
    return table


BYTES = _byte_alphabet()
"""Character → byte."""


def spelt(word: str) -> bytes:
    """Bytes of a byte-level token; an added token is spelt as it is."""
    if all(letter in BYTES for letter in word):
        return bytes(BYTES[letter] for letter in word)
    return word.encode()


def byte_length(word: str, byte_level: bool) -> int:
    """How many bytes of text a token of the vocabulary stands for."""
    if byte_level:
        return len(spelt(word))
    if SINGLE_BYTE.fullmatch(word):
        return 1
    return len(word.replace("\u2581", " ").removeprefix("##").encode())
