"""A verb's command line, taken apart, and the config that it gives.

Flags, YAML keys and fields are one and the same names, so that a command line becomes a mapping that
`config.load` reads as it reads a recipe, with the same one-line errors.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ondevice.common.errors import UserError, nearest
from ondevice.config.auto import AUTO
from ondevice.config.lists import parts_of
from ondevice.config.verbs import Verb, usage


@dataclass
class Line:
    """A verb's command line, taken apart."""

    values: dict[str, Any] = field(default_factory=dict)
    sets: list[str] = field(default_factory=list)
    recipe: str = ""
    json: bool = False
    help: bool = False


def take_apart(verb: Verb, cls: type | None, argv: Sequence[str]) -> Line:
    """Flags (--a-b 1, --a_b=1, --on, --no-on) and words without a flag into values by field name,
    still text.

    Raises UserError: an unknown flag (naming the nearest), a flag without its value, a word too
    many.
    """
    if cls:
        kinds: dict[str, Any] = typing.get_type_hints(cls)
    else:
        kinds = {}
    line = Line()
    words = list(verb.positional)
    if "model" in words and _continues(argv):
        words.remove("model")  # it is that of the finished stage
    rest = list(argv)
    while rest:
        token = rest.pop(0)
        if token == "--":
            for word in rest:
                _place(verb, kinds, line, words, word)
            break
        if token in ("-h", "--help"):
            line.help = True
        elif token.startswith("-") and len(token) > 1 and not _is_number(token):
            _refuse_gone(cls, token)
            _take_flag(verb, kinds, line, token, rest)
        else:
            _place(verb, kinds, line, words, token)
    return line


CONTINUE = "continue"
"""How a command line says `continue_from`: a word that Python keeps to itself."""


def _continues(argv: Sequence[str]) -> bool:
    """Whether a command line goes on from a finished stage."""
    for token in argv:
        if token == "--":
            break
        name = token.partition("=")[0].replace("-", "_")
        if name in (f"__{CONTINUE}", "__continue_from"):
            return True
    return False


def _refuse_gone(cls: type | None, token: str) -> None:
    """Raises UserError for the flag of an earlier version, naming what took its place."""
    gone: Mapping[str, str] = getattr(cls, "gone", {})
    name = token.partition("=")[0]
    key = name.lstrip("-").replace("-", "_")
    if key in gone:
        raise UserError("is gone", where=name, hint=gone[key])


def make_config(
    verb: Verb, cls: type, line: Line, continued: Mapping[str, Any] | None = None
) -> Any:
    """The verb's config: defaults (or a recipe's, with --recipe, or those of the finished stage that
    it goes on from, `continued`), flags over them, --set over these.
    """
    from ondevice.config.load import apply_set, from_mapping, to_mapping

    values: dict[str, Any] = dict(continued or {})
    given = dict(line.values)
    if verb.name != "run":  # there the changes are the recipe's
        for assignment in line.sets:
            apply_set(given, assignment)
    if line.recipe:
        from ondevice.config.recipe import stage_defaults

        values = to_mapping(stage_defaults(verb.name, line.recipe))
    filled = set(values) - set(given)
    values.update(given)
    _check_complete(verb, cls, values)
    try:
        return from_mapping(cls, values, filled=filled)
    except UserError as error:
        where = _flag(error.where) if error.where else ""
        raise UserError(error.message, where=where, hint=error.hint) from None


def _check_complete(verb: Verb, cls: type, values: Mapping[str, Any]) -> None:
    """Raises UserError for a field without a default that has no value."""
    for f in dataclasses.fields(cls):
        if f.name in values:
            continue
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            if f.name in verb.positional:
                name = f.name.upper()
            else:
                name = _flag(f.name)
            raise UserError(f"{name} is missing", where=verb.name, hint=usage(verb))


def _take_flag(
    verb: Verb, kinds: Mapping[str, Any], line: Line, token: str, rest: list[str]
) -> None:
    """A flag with its value, which `rest` begins with where it does not stand in the flag. Raises
    UserError for one that this verb does not have."""
    name, equals, text = token.partition("=")
    key = name.lstrip("-").replace("-", "_")
    given = text if equals else None
    switched_off = key.startswith("no_") and _is_switch(kinds.get(key[3:]))
    if not name.startswith("--"):
        key = ""  # no short flags, and no field has an empty name
    if key == "json" and verb.json:
        line.json = True
    elif key == "set" and verb.sets:
        line.sets.append(_value(name, given, rest))
    elif key == "recipe" and verb.recipe:
        line.recipe = _value(name, given, rest)
    elif key == CONTINUE and "continue_from" in kinds:
        line.values["continue_from"] = _value(name, given, rest)
    elif switched_off and given is None:
        line.values[key[3:]] = False
    elif _is_switch(kinds.get(key)):
        line.values[key] = _truth(name, given, rest, kinds[key] is not bool)
    elif key in kinds:
        value = _value(name, given, rest)
        if typing.get_origin(kinds[key]) is tuple:
            line.values[key] = [*line.values.get(key, []), *_parts(name, value)]
        else:
            line.values[key] = value
    else:
        raise UserError(
            f"unknown flag {name!r}", where=verb.name, hint=_near_flag(verb, kinds, key)
        )


def _is_switch(kind: Any) -> bool:
    """Whether a flag of this type is on or off, or either or auto."""
    return kind is bool or bool in typing.get_args(kind)


def _truth(name: str, given: str | None, rest: list[str], automatic: bool) -> bool | str:
    """Of a flag that is on or off: on, unless a word says true or false, or auto where it may be
    left to the rules. Raises UserError for any other value that is joined to it."""
    if automatic:
        words: tuple[str, ...] = ("true", "false", AUTO)
    else:
        words = ("true", "false")
    if given is None and rest and rest[0].lower() in words:
        given = rest.pop(0)
    if given is None:
        return True
    word = given.lower()
    if word not in words:
        raise UserError(
            f"expected {', '.join(words[:-1])} or {words[-1]}, got {given!r}", where=name
        )
    if word == AUTO:
        return AUTO
    return word == "true"


def _near_flag(verb: Verb, kinds: Mapping[str, Any], key: str) -> str:
    """The flag that was meant: by its initials (lr), its beginning or a part of it, else the
    nearest in spelling.
    """
    known = list(kinds)
    for name, there in (("json", verb.json), ("set", verb.sets), ("recipe", verb.recipe)):
        if there:
            known.append(name)
    for name in known:
        words = name.split("_")
        initials = "".join(word[0] for word in words)
        if key and (key == initials or name.startswith(key) or key in words):
            return f"did you mean {_flag(name)!r}?"
    for name, kind in kinds.items():
        if _is_switch(kind):
            known.append(f"no_{name}")
    hint = nearest(_flag(key), map(_flag, known))
    if hint.startswith("did"):
        return hint
    return f"ondevice {verb.name} --help lists them"


def _parts(name: str, value: str) -> list[Any]:
    try:
        return parts_of(value)
    except UserError as error:
        raise UserError(error.message, where=name, hint=error.hint) from None


def _value(name: str, given: str | None, rest: list[str]) -> str:
    if given is not None:
        return given
    if not rest or (rest[0].startswith("--") and len(rest[0]) > 2):
        raise UserError("needs a value", where=name)
    return rest.pop(0)


def _place(verb: Verb, kinds: Mapping[str, Any], line: Line, words: list[str], word: str) -> None:
    if words and typing.get_origin(kinds.get(words[0])) is tuple:  # the last one: all that is left
        line.values[words[0]] = [*line.values.get(words[0], []), word]
        return
    while words and words[0] in line.values:
        words.pop(0)  # given by its flag already
    if not words:
        raise UserError(f"{word!r} is one word too many", where=verb.name, hint=usage(verb))
    if typing.get_origin(kinds.get(words[0])) is tuple:
        line.values[words[0]] = [word]
    else:
        line.values[words.pop(0)] = word


def _flag(name: str) -> str:
    """The flag of a field."""
    return "--" + name.replace("_", "-")


def _is_number(token: str) -> bool:
    try:
        float(token)
    except ValueError:
        return False
    return True
