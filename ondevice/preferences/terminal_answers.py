"""What is typed at a pair in `ondevice rate`, and what it means: single keys on a terminal, which do
what they do in the app (`own_keys.DEEDS` has both), lines from a file or another program.
"""

from __future__ import annotations

from ondevice.common.sanitize import sanitize
from ondevice.preferences.own_keys import DEEDS, FIXED, OwnKeys, typed_as
from ondevice.preferences.terminal_keys import ARROWS, ESCAPE, Keys
from ondevice.preferences.terminal_text import say

LETTERS = "abcd"
NUMBERS = "1234"  # the keys of the app
NO_KEYS = "abcdABCDn"  # on a terminal: in the app they are other keys, or none
BACK = "\x7f\b"  # backspace: undo, as in the app; in a ranking its newest place
_DIGITS = str.maketrans(NUMBERS, LETTERS)
_MUCH = str.maketrans("<>", "AB")
_VOTES = {*NUMBERS, "<", ">"}
_ASKED = "qy?"  # beside the deeds
_QUIT = typed_as("ctrl+q")  # as q, in the app too
COMMANDS: dict[str, str] = {
    typed_as(deed.key): name
    for name, deed in DEEDS.items()
    if deed.in_terminal and deed.key not in _VOTES
}
"""What is no vote for one answer: the character that is typed, and the deed."""


class Answers:
    """Asks for one answer after the other; `names` are those of the answers of a pair."""

    def __init__(self, keys: Keys, own: OwnKeys) -> None:
        self._input, self.own = keys, own
        self.names = NUMBERS if keys.interactive else LETTERS.upper()

    def ask(self, width: int) -> str | None:
        """A command, or letters: the best first, all in upper case for much better. None: the end
        of the input. `width`: how many answers there are, 0 where no pair is shown.
        """
        interactive = self._input.interactive
        prompt = self.own.prompt(self.names[:width], much=interactive and width == 2)
        while True:
            say(prompt, end="")
            typed = self._keys(width) if interactive else self._input.line()
            if typed is None:
                say("")
                return None
            if interactive and width and set(typed) & set(NO_KEYS):
                say("letters are no answers here: 1 2 say which is better, N is a note; ? helps")
                continue
            answer = letters(typed if interactive else typed.strip(), width)
            if not interactive:
                say("")
            command = answer if is_letters(answer, width) else meant(answer, exact=interactive)
            if command is not None:
                return command
            say(f"{sanitize(answer, newlines=False, limit=40)!r} means nothing here; ? helps")

    def _keys(self, width: int) -> str | None:
        """Single keys: a command at once; numbers until the order is clear or Enter is pressed."""
        typed = ""
        while True:
            key = self._input.key()
            if key is None:
                return None
            if key == ESCAPE:
                continue
            key = ARROWS.get(key, key)
            if told := self._not_here(key):
                say(told)
                continue
            key = "q" if key == _QUIT else self.own.meant(key)
            if key in BACK and not typed:
                key = "u"
            if key in BACK or (typed and key == "u"):
                typed = typed[:-1]
                say("\b \b", end="")
            elif key in COMMANDS or key in _ASKED:  # at once, whatever order was begun
                say(key if key.isprintable() else "")
                return key
            elif key in NUMBERS and (told := _no_place(key, typed, width)):
                say(told)
            elif key in "\r\n":
                if typed:
                    break
                say("Enter ends a ranking, and none is begun")
            elif key.strip() and key.isprintable():
                say(sanitize(key, newlines=False), end="")
                typed += key
                ranked = is_letters(letters(typed, width), width)
                if key in NO_KEYS or not ranked or len(typed) >= width - 1:
                    break
        say("")
        return typed

    def _not_here(self, key: str) -> str:
        """Why a key that does something in the app does nothing here; empty for others."""
        elsewhere = self.own.only_in_app(key)
        if not elsewhere and key in FIXED and key not in _ASKED:
            elsewhere = FIXED[key]
        if not elsewhere:
            return ""
        return f"{'space' if key == ' ' else key} is {elsewhere} in the app, and nothing here"


def _no_place(number: str, typed: str, width: int) -> str:
    """Why a number names no answer more; empty where it does."""
    if NUMBERS.index(number) >= width:
        return f"there are {width} answers" if width else ""
    return f" {number} has its place; u takes one back" if number in typed else ""


def meant(answer: str, *, exact: bool) -> str | None:
    """The command that this is, None where it is none. Unless `exact`, a capital that is no command
    is what its small letter is: on a terminal it may be another key of the app's."""
    for command in (answer,) if exact else (answer, answer.lower()):
        if command in COMMANDS or (len(command) == 1 and command in _ASKED):
            return command
    if not exact and answer.lower() == "n":  # as scripts gave a note before N did
        return "N"
    return None


def letters(typed: str, width: int) -> str:
    """Numbers as the letters that they stand for, < and > of two answers as capitals."""
    return typed.translate(_DIGITS | _MUCH if width == 2 else _DIGITS)


def is_letters(text: str, width: int) -> bool:
    """Letters of answers, none twice, in one case."""
    if not text or not (text.islower() or text.isupper()):
        return False
    return len(set(text)) == len(text) and set(text.lower()) <= set(LETTERS[:width])
