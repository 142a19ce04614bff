"""Keys of a person's own for what the rating screen does, beside the keys that it has.

They are kept where the app remembers what a person chose, and hold on its Rate screen and on the
terminal of `ondevice rate`: whoever votes with a hand on `a` and `l` votes so in both. The keys that
are there go on working, so that a key of one's own may be none of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ondevice.common.errors import UserError, nearest
from ondevice.common.remembered import Remembered

NAME = "keys"  # among what is remembered
NONE = "none"  # in place of keys: no own ones from now on


class Deed(NamedTuple):
    """`key`: the character, or ctrl and a letter, that does it on every screen; `told`: what it
    does."""

    key: str
    told: str
    in_terminal: bool = True


DEEDS: dict[str, Deed] = {
    "left": Deed("1", "the first (left) is better"),
    "right": Deed("2", "the second (right) is better"),
    "third": Deed("3", "the third is better"),
    "fourth": Deed("4", "the fourth is better"),
    "much_left": Deed("<", "the first is much better"),
    "much_right": Deed(">", "the second is much better"),
    "tie": Deed("t", "a tie"),
    "all_bad": Deed("x", "all are bad"),
    "skip": Deed("s", "skip"),
    "undo": Deed("u", "undo"),
    "redo": Deed("U", "redo"),
    "reasons": Deed("r", "reasons"),
    "scores": Deed("*", "scores"),
    "flag": Deed("f", "flag"),
    "note": Deed("N", "note"),
    "history": Deed("H", "history"),
    "guidelines": Deed("I", "guidelines"),
    "leave_out": Deed("ctrl+a", "all that is asked now is left out"),
    "own_keys": Deed("ctrl+k", "keys of your own"),
    "page": Deed(" ", "a page down", False),
    "down": Deed("j", "scroll down", False),
    "up": Deed("k", "scroll up", False),
    "box_down": Deed("J", "one box down", False),
    "box_up": Deed("K", "one box up", False),
    "context": Deed("c", "the whole conversation", False),
    "diff": Deed("d", "the words that differ", False),
    "layout": Deed("w", "layout", False),
    "source": Deed("V", "Markdown as it is written", False),
    "own_answer": Deed("E", "an answer by your own hand", False),
    "only": Deed("/", "what is asked only", False),
    "rater": Deed("i", "who rates", False),
    "figures": Deed("S", "figures", False),
    "why": Deed("Y", "why this pair", False),
    "more": Deed("m", "further pairs", False),
    "many": Deed("M", "many pairs at once", False),
    "rounds": Deed("v", "rate while the model learns", False),
    "dpo": Deed("P", "the form of dpo", False),
    "reward": Deed("W", "the form of reward", False),
}
# What other keys do there, of the screen, the app and the terminal, that nobody can give away.
FIXED: dict[str, str] = {
    "5": "the screen Ladder",
    "6": "the screen Chat",
    "7": "the screen Push",
    "q": "quit",
    "?": "help",
    "y": "yes, where something is asked",
    "T": "light or dark",
    "Q": "questions that a model wrote",
}


def typed_as(key: str) -> str:
    """The character that a terminal sends for a key of a deed."""
    if key.startswith("ctrl+"):
        return chr(ord(key[-1].upper()) - ord("@"))
    return key


def parse_keys(text: str) -> dict[str, str]:
    """`left=a, right=l` as {deed: key}; `none` and nothing as {}. Raises UserError where it is not
    written so, or gives a key that cannot be given."""
    found: dict[str, str] = {}
    for part in text.split(",") if text.strip() != NONE else ():
        if not part.strip():
            continue
        name, equals, key = part.strip().partition("=")
        if not equals:
            raise UserError(
                f"{part.strip()!r} gives no key", where=NAME, hint="write it like left=a, right=l"
            )
        if name.strip() in found:
            raise UserError(f"{name.strip()} stands there twice", where=NAME)
        found[name.strip()] = key.strip()
    check_keys(found)
    return found


def keys_text(own: Mapping[str, str]) -> str:
    """As `parse_keys` reads it."""
    return ", ".join(f"{name}={key}" for name, key in own.items())


def check_keys(own: Mapping[str, str]) -> None:
    """Raises UserError for what is not a deed, not a key, or a key that does something else."""
    deed_of = {deed.key: (name, deed.told) for name, deed in DEEDS.items()}
    given: dict[str, str] = {}
    for name, key in own.items():
        if name not in DEEDS:
            raise UserError(
                f"{name!r} is nothing that a key does here",
                where=NAME,
                hint=nearest(name, DEEDS),
            )
        if len(key) != 1 or not key.isprintable() or key.isspace() or key == ",":
            raise UserError(
                f"{name}={key!r} is not a key", where=NAME, hint="one letter, digit or sign"
            )
        if key in deed_of:
            raise UserError(
                f"{key} for {name} is taken: it is {deed_of[key][0]} ({deed_of[key][1]})",
                where=NAME,
            )
        if key in FIXED:
            raise UserError(f"{key} for {name} is taken: {FIXED[key]}", where=NAME)
        if key in given:
            raise UserError(f"{key} is given to {given[key]} and to {name}", where=NAME)
        given[key] = name


class OwnKeys:
    """A person's own keys ({deed: key}) on the terminal."""

    def __init__(self, own: Mapping[str, str]) -> None:
        self.own = own
        self._deeds = {deed.key: deed for deed in DEEDS.values()}
        self._deeds |= {key: DEEDS[name] for name, key in own.items()}

    def meant(self, key: str) -> str:
        """The key that does what this one is to do."""
        if key in self._deeds:
            return typed_as(self._deeds[key].key)
        return key

    def only_in_app(self, key: str) -> str:
        """What a key does that the terminal does not do; else empty."""
        deed = self._deeds.get(key)
        if deed is not None and not deed.in_terminal:
            return deed.told
        return ""

    @property
    def told(self) -> str:
        """A line for the help; empty where there are none."""
        if not self.own:
            return ""
        return "\n  your own   " + "   ".join(
            f"{key} {DEEDS[name].told}" for name, key in self.own.items()
        )

    def prompt(self, names: Sequence[str], *, much: bool) -> str:
        """The keys that are asked for; `names`: of the answers, none where no pair is shown; `much`:
        whether < and > are keys."""

        def key(name: str, usual: str = "") -> str:
            return self.own.get(name, usual or DEEDS[name].key)

        if not names:
            parts = [f"{key(name)} {name}" for name in ("undo", "redo", "history")]
            return " · ".join([*parts, "q quit > "])
        places = ("left", "right", "third", "fourth")
        best = "/".join(
            key(place, name.lower()) for place, name in zip(places, names, strict=False)
        )
        parts = [f"{best} best"]
        if much:
            parts.append(f"{key('much_left')} {key('much_right')} much")
        parts += [f"{key('tie')} tie", f"{key('all_bad')} all bad"]
        parts += [f"{key(name)} {name}" for name in ("skip", "undo")]
        return " · ".join([*parts, "q quit", "? help > "])


def own_keys(text: str) -> dict[str, str]:
    """The own keys of whoever sits at the terminal: those that `text` gives, which are remembered
    from now on; where it is empty those that are remembered. Raises UserError as `parse_keys` does,
    and for remembered ones that cannot be used or kept."""
    remembered = Remembered()
    if text.strip():
        own = parse_keys(text)
        trouble = remembered.keep(NAME, own)
    else:
        own, trouble = remembered_keys(remembered)
    if trouble:
        raise UserError(trouble, where=NAME, hint="--keys none: no own ones")
    return own


def remembered_keys(remembered: Remembered) -> tuple[dict[str, str], str]:
    """({deed: key}, why those that are remembered are not used, empty where they are)."""
    found = remembered.get(NAME, lambda value: value != {})
    if found is None:
        return {}, ""
    if not _is_text(found):
        return {}, f'{remembered.file}: keys are not used: write them like {{"left": "a"}}'
    try:
        check_keys(found)
    except UserError as problem:
        return {}, f"{remembered.file}: keys are not used: {problem.message}"
    return found, ""


def _is_text(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(each, str) for each in value.values())
