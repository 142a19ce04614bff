"""A terminal whose encoding lacks what the app draws with (ISO-8859-1, ASCII): each such character is
written as one of ASCII that is as wide, so that nothing moves.

Python says which encoding it is, by the locale. `LANG=C` counts as UTF-8 there: a terminal that has it
in fact is drawn in full.
"""

from __future__ import annotations

import codecs
import io
from typing import TextIO

from rich.cells import cell_len

HANDLER = "ondevice.plain"
_LIKE = {
    "-": "─━═–—−┄┈╌",
    "|": "│┃║┊┤├▏▎▌▐‖",
    "+": "╭╮╰╯┌┐└┘┬┴┼╋╔╗╚╝",
    ">": "→▸▶›»⇧",
    "<": "←◀‹«",
    "^": "↑▴▲",
    "v": "↓▾▼✓",
    "x": "✗×✕",
    ".": "…·░▁▂",
    "*": "•●○⚑✎",
    "=": "▃▄▅≈≠",
    "#": "█▓▒▆▇▀",
    "'": "‘’",
    '"': "“”„",
}
_ASCII = {ord(char): plain for plain, chars in _LIKE.items() for char in chars}
_BRAILLE = range(0x2800, 0x2900)  # dots of a curve, from the top: rows of two


def as_ascii(text: str) -> str:
    """A text without what ASCII lacks, in as many cells."""
    return "".join(map(_plain, text))


def _plain(char: str) -> str:
    code = ord(char)
    if code < 128:
        return char
    if code in _ASCII:
        return _ASCII[code]
    if code in _BRAILLE:
        dots = code - _BRAILLE.start
        if not dots:
            return " "
        if dots & 0b00011011 and dots & 0b11100100:  # in its upper and its lower half
            return ":"
        return "'" if dots & 0b00011011 else "."
    return "?" * cell_len(char)


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return as_ascii(error.object[error.start : error.end]), error.end


def suit(terminal: TextIO | None) -> None:
    """Has what is written to a terminal suit its encoding; one with UTF-8, or none, stays as it is."""
    if isinstance(terminal, io.TextIOWrapper) and codecs.lookup(terminal.encoding).name != "utf-8":
        codecs.register_error(HANDLER, _replace)
        terminal.reconfigure(errors=HANDLER)
