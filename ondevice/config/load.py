"""Mappings (YAML, --set) into frozen dataclasses and back. Standard library only; yaml is imported
where it is read.

What a person wrote is checked here, once: unknown keys name the nearest known one, a value of the
wrong type names its field and what it should be. After that a config is right by its type and by
its own `check()`.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ondevice.common import bounded, yaml_files
from ondevice.common.errors import UserError, nearest
from ondevice.config.effects import without_idle

T = TypeVar("T")


def from_mapping(
    cls: type[T], mapping: Mapping[str, Any], where: str = "", *, filled: Iterable[str] = ()
) -> T:
    """A dataclass from a mapping of its fields; fields not named keep their defaults.

    `where` goes before a field's name in errors ("tiny.yaml: stages.sft"). `filled`: fields that a
    recipe has filled in; those that have no effect beside the others are left at their defaults.
    What a class or its bases `reads` (field → function) may be given in another form than it is kept in. Raises
    UserError: unknown key, missing key, wrong type, `check()` not passed.
    """
    if not isinstance(mapping, Mapping):
        raise UserError(f"expected keys and values, got {mapping!r}", where=where)
    hints = _types(typing.cast(type, cls))
    fields = {
        field.name: field for field in dataclasses.fields(typing.cast(Any, cls)) if field.init
    }
    gone: Mapping[str, str] = getattr(cls, "gone", {})
    for key in mapping:
        if key in gone:
            raise UserError("is gone", where=join(where, str(key)), hint=gone[key])
        if key not in fields:
            raise UserError(f"unknown key {key!r}", where=where, hint=nearest(str(key), fields))
    for name, field in fields.items():
        required = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if required and name not in mapping:
            raise UserError("is missing", where=join(where, name))
    reads: dict[str, Callable[[Any], Any]] = {}
    for base in reversed(cls.__mro__):
        reads.update(vars(base).get("reads", {}))
    try:
        given = {
            key: reads[key](value) if key in reads else value for key, value in mapping.items()
        }
    except UserError as error:
        raise UserError(error.message, where=join(where, error.where), hint=error.hint) from None
    values = {key: convert(value, hints[key], join(where, key)) for key, value in given.items()}
    config = cls(**(without_idle(cls, values, filled) if filled else values))
    check = getattr(config, "check", None)
    if check is not None:
        try:
            check()
        except UserError as error:
            raise UserError(
                error.message, where=join(where, error.where), hint=error.hint
            ) from None
    return config


@functools.cache
def _types(cls: type) -> Mapping[str, Any]:
    """The type of each field: resolved once, since a form asks at every key."""
    return typing.get_type_hints(cls)


def to_mapping(config: Any) -> dict[str, Any]:
    """The opposite of `from_mapping`: plain dicts, lists, strings, numbers, in the order of the
    fields.
    """
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def convert(value: Any, kind: Any, where: str) -> Any:
    """`value` as the type `kind`: str, int, float, bool, None, Path, Literal, tuple[X, ...],
    dict[str, X], unions of these, dataclasses. Text like 3e-4 is a number where one is wanted (YAML
    reads it as text). Raises UserError."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        settings_type: type = typing.cast(type, kind)
        if isinstance(value, settings_type):
            return value
        return from_mapping(settings_type, value, where)
    if origin is typing.Literal:
        if value not in arguments:
            hint = nearest(str(value), map(str, arguments))
            if hint.startswith("did"):  # the nearest one and all the others
                hint += f" known: {', '.join(map(str, arguments))}"
            raise UserError(f"{value!r} is none of its values", where=where, hint=hint)
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, arguments, where)
    if origin is tuple:
        if isinstance(value, (str, Mapping)) or not isinstance(value, Iterable):
            raise _wrong(value, "a list", where)
        return tuple(convert(item, arguments[0], f"{where}[{i}]") for i, item in enumerate(value))
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise _wrong(value, "keys and values", where)
        return {
            str(key): convert(item, arguments[1], join(where, str(key)))
            for key, item in value.items()
        }
    return _convert_scalar(value, kind, where)


def join(where: str, name: str) -> str:
    """tiny.yaml + sft → tiny.yaml: sft; tiny.yaml: sft + steps → tiny.yaml: sft.steps."""
    if not where or not name:
        return where or name
    file = where.endswith((".yaml", ".yml", ".json"))
    if file:
        return f"{where}: {name}"
    return f"{where}.{name}"


def apply_set(mapping: dict[str, Any], assignment: str) -> None:
    """`a.b=c` changes mapping["a"]["b"] in place; the value is read as YAML, folders on the way are
    made.
    """
    path, equals, text = assignment.partition("=")
    keys = [key.strip().replace("-", "_") for key in path.split(".")]
    if not equals or not all(keys):
        raise UserError(
            f"{assignment!r} is not KEY=VALUE",
            where="--set",
            hint="for example sft.learning_rate=1e-3",
        )
    try:
        if text.strip():
            value = yaml_files.parse(text)
        else:
            value = ""
    except yaml_files.BadYaml:
        value = text  # not YAML, so it is the text itself
    inner = mapping
    for depth, key in enumerate(keys[:-1]):
        child = inner.setdefault(key, {})
        if not isinstance(child, dict):
            raise UserError(
                f"{'.'.join(keys[: depth + 1])} has no keys inside", where=f"--set {assignment}"
            )
        inner = child
    inner[keys[-1]] = value


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises UserError: missing, unreadable, not YAML, no mapping, a
    key twice.
    """
    try:
        text = bounded.read_text(Path(path)).removeprefix("\ufeff")
    except FileNotFoundError:
        raise UserError(
            "no such file", where=str(path), hint="give the path of a .yaml file"
        ) from None
    except UnicodeDecodeError:
        raise UserError("is not UTF-8 text", where=str(path)) from None
    except bounded.TooLarge as error:
        raise UserError(f"{error}: not a recipe", where=str(path)) from None
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", where=str(path)) from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """As `read_yaml`, from text; `where` names it in errors."""
    try:
        value = yaml_files.parse(text)
    except yaml_files.BadYaml as error:
        raise UserError(
            f"is not valid YAML: {error}", where=f"{where}:{error.line}" if error.line else where
        ) from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError("expected keys and values", where=where)
    return value


def dump_yaml(mapping: Mapping[str, Any]) -> str:
    """YAML text that `parse_yaml` reads back to the same mapping, keys in their order."""
    import yaml  # 20 ms

    text: str = yaml.safe_dump(_plain(mapping), sort_keys=False, allow_unicode=True, width=120)
    return text


def _convert_union(value: Any, kinds: tuple[Any, ...], where: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    wanted = [kind for kind in kinds if kind is not type(None)]
    for kind in wanted:
        if isinstance(kind, type) and type(value) is kind:
            return value
    for kind in wanted[:-1]:
        try:
            return convert(value, kind, where)
        except UserError:
            continue  # the next kind may take it; the last one's error is the person's
    try:
        return convert(value, wanted[-1], where)
    except UserError as error:
        words = [str(word) for kind in wanted for word in _words_of(kind)]
        if not words:
            raise
        raise UserError(
            error.message.replace("expected ", f"expected {', '.join(words)} or ", 1),
            where=error.where,
            hint=error.hint,
        ) from None


def _words_of(kind: Any) -> tuple[Any, ...]:
    """The values of a Literal; empty for every other kind."""
    if typing.get_origin(kind) is typing.Literal:
        return typing.get_args(kind)
    return ()


def _convert_scalar(value: Any, kind: Any, where: str) -> Any:
    if kind is bool:
        if isinstance(value, bool):
            return value
        raise _wrong(value, "true or false", where)
    if kind is int:
        number = _number(value)
        if (
            number is None
            or number != number
            or number in (float("inf"), float("-inf"))
            or number != int(number)
        ):
            raise _wrong(value, "a whole number", where)
        return int(number)
    if kind is float:
        number = _number(value)
        if number is None or not -sys.float_info.max <= number <= sys.float_info.max:
            raise _wrong(value, "a number", where)
        return float(number)
    if kind is str:
        if isinstance(value, str):
            return value
        raise _wrong(value, "text (put it in quotes)", where)
    if kind is Path and isinstance(value, (str, Path)):
        return Path(value)
    raise TypeError(f"{where}: a field of type {kind} cannot be read from a mapping")


def _number(value: Any) -> int | float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return value
    if isinstance(value, str):
        for read in (int, float):
            try:
                return read(value)
            except ValueError:
                continue
    return None


def _wrong(value: Any, wanted: str, where: str) -> UserError:
    shown = repr(value)
    if len(shown) > 60:
        shown = shown[:57] + "…"
    return UserError(f"expected {wanted}, got {shown}", where=where)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_mapping(value)
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, Path):
        return str(value)
    return value
