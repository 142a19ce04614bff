"""Untrusted text made safe to show: the one door between what a model (or a file) says and a
screen.

Everything that could act on a terminal or hide from a reader is replaced by something to look at:

    C0 controls and DEL            their pictures: ESC is ␛, NUL is ␀ (a tab is four blanks; a newline stays, or is ␊)
    C1 controls, lone surrogates   \\x9b is shown as the six characters \\u009b
    bidi controls, zero-width and  likewise: \\u202e, \\u200b, \\ufeff
    other format characters,
    line and paragraph separators
    joiners (U+200C, U+200D)       kept between two visible characters outside ASCII, where scripts and emoji need them
    text beyond `limit`            cut, and the cut is said

No escape sequence survives, since none can begin. It does not quote markup: a widget that reads
markup must be given plain text all the same, and HTML goes through `sanitize_html`.
"""

from __future__ import annotations

import bisect
import contextlib
import html
import re
import sys

LIMIT = 20_000  # characters: a widget lays this out in 0.1 s, and a million of them in seconds

_JOINERS = "\u200c\u200d"
# Unicode's Cc, Cf, Cs, Zl and Zp without the prepended marks of Arabic, Syriac and Kaithi (which
# are visible), and the characters outside these categories that show nothing and can carry hidden
# text: the grapheme joiner, two Khmer vowels, the variation selectors' supplement.
_ACTIVE = (
    "\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u17b4\u17b5\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ud800-\udfff\ufeff\ufff0-\ufffb\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff"
)
_VISIBLE = f"[^\x00-\x7f{_ACTIVE}{_JOINERS}]"
_UNSAFE = re.compile(f"[{_ACTIVE}]|(?<!{_VISIBLE})[{_JOINERS}]|[{_JOINERS}](?!{_VISIBLE})")
_MARKED = re.compile(_VISIBLE)


def _picture(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code == 0x09:
        return "    "
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    if code <= 0xFFFF:
        return f"\\u{code:04x}"
    return f"\\U{code:08x}"


def _line_picture(match: re.Match[str]) -> str:
    if match[0] == "\n":
        return "\n"
    return _picture(match)


def _safe(text: str, newlines: bool) -> str:
    return _UNSAFE.sub(_line_picture if newlines else _picture, text)


def sanitize(text: str, *, newlines: bool = True, limit: int | None = LIMIT) -> str:
    """`text` with nothing in it that acts on a terminal or hides from a reader.

    `newlines` False makes a single line of it. The result has at most `limit` characters, the note
    on what was cut included; None for no limit, where the text goes to a file or a pipe. Applying
    it twice changes nothing more.
    """
    if limit is None or len(text) <= limit:
        shown = _safe(text, newlines)
        if limit is None or len(shown) <= limit:
            return shown
    note = f"… {len(text):,} more characters"
    room = max(limit - len(note), 0)
    # The longest beginning that fits: what is replaced may grow tenfold.
    fits = (
        bisect.bisect_right(range(room + 1), room, key=lambda n: len(_safe(text[:n], newlines))) - 1
    )
    return (_safe(text[:fits], newlines) + f"… {len(text) - fits:,} more characters")[:limit]


def to_stderr(text: str) -> None:
    """A text for people, on stderr at once. Where it cannot be written, nobody reads it: the
    terminal is gone, or the disk of a log is full. What must be known has an event, too."""
    with contextlib.suppress(OSError):
        print(sanitize(text), file=sys.stderr, flush=True)


def sanitize_html(text: str, *, newlines: bool = True, limit: int | None = LIMIT) -> str:
    """`inert(text)` as HTML text or an attribute's value: no tag, entity or quote survives.

    `limit` counts characters before they are quoted. Newlines stay newlines: set `white-space:
    pre-wrap`.
    """
    return html.escape(sanitize(text, newlines=newlines, limit=limit), quote=True)


class SanitizedStream:
    """`sanitize` for text that arrives in pieces: the pieces' results, joined, are the whole text's
    result, without limit.

    A joiner at a piece's end is held back until its right neighbour is known.
    """

    def __init__(self, *, newlines: bool = True) -> None:
        self._newlines = newlines
        self._before = (
            "a"  # stands for the last character: "é" where a joiner may follow it, else "a"
        )
        self._held = ""

    def push(self, piece: str) -> str:
        """The text that may be shown now."""
        text = self._held + piece
        if text and text[-1] in _JOINERS:
            self._held = text[-1]
        else:
            self._held = ""
        return self._show(text[: len(text) - len(self._held)], self._held)

    def flush(self) -> str:
        """What was held back; the stream then begins anew."""
        rest = self._show(self._held, "")
        self._before, self._held = "a", ""
        return rest

    def _show(self, text: str, after: str) -> str:
        # A character on either side, so that joiners at the edges see their true neighbours; both
        # are taken off again.
        if not text:
            return ""
        shown = _safe(self._before + text + after, self._newlines)
        if _MARKED.match(text[-1]):
            self._before = "é"
        else:
            self._before = "a"
        return shown[1 : len(shown) - (len("\\u200d") if after else 0)]
