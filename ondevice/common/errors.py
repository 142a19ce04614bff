"""Errors for people: one line that says what is wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LONGEST = 2000  # characters of what is wrong: a library quotes whole lines of a file


class UserError(Exception):
    """The user's input is at fault: shown as one line on stderr, exit code 2, no traceback.

    `message` says what is wrong, `where` names the file, field or flag, `hint` what to do next.
    """

    def __init__(self, message: str, *, where: str = "", hint: str = "") -> None:
        if len(message) > _LONGEST:
            message = message[:_LONGEST] + " …"
        self.message, self.where, self.hint = message, where, hint
        super().__init__(message)

    def __str__(self) -> str:
        line = f"{self.where}: {self.message}" if self.where else self.message
        if self.hint:
            return f"{line} ({self.hint})"
        return line


class Interrupted(Exception):
    """A person asked for a stop and the work is saved: exit code 130. The text says how to go on."""


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint naming the known word nearest to `word`, or the known words where none is near."""
    choices = sorted(known)
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(choices)}"
