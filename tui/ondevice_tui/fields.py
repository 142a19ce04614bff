"""A settings dataclass as a form sees it: its fields, their help, and the text in a control as a
value and back.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import textwrap
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ondevice.common.errors import UserError
from ondevice.config.auto import AUTO
from ondevice.config.lists import list_text, parts_of
from ondevice.config.load import parse_yaml

TRUTH = {"true": True, "false": False}


@dataclass(frozen=True)
class FieldSpec:
    """`choices` for a fixed set of words; `flag` for true or false; `many` for a list written with
    commas or as JSON.
    """

    name: str
    kind: Any
    help: str
    choices: tuple[str, ...] = ()
    flag: bool = False
    many: bool = False

    def value(self, text: str | bool) -> Any:
        """What a control holds, as `from_mapping` takes it. Raises UserError for keys and values
        that are no YAML, and a list that is no JSON.
        """
        if isinstance(text, bool):
            return text
        if text in TRUTH and bool in typing.get_args(self.kind):
            return TRUTH[text]
        if self.many:
            return parts_of(text)
        if typing.get_origin(self.kind) in (dict, Mapping) or dataclasses.is_dataclass(self.kind):
            return parse_yaml(f"{{{text.strip().strip('{}')}}}", self.name)
        if not text and type(None) in typing.get_args(self.kind):
            return None
        return text

    def text(self, value: Any) -> str:
        """A value as its control shows it."""
        if value is None:
            return ""
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, (list, tuple)):
            return list_text(value, ", ")
        if isinstance(value, Mapping):
            return ", ".join(f"{key}: {inner}" for key, inner in value.items())
        if isinstance(value, float) and float(f"{value:g}") == value:
            return f"{value:g}"
        return str(value)


def fields_of(cls: type) -> list[FieldSpec]:
    """The fields of a settings class, its own first and those of its bases after them, without those
    of its bases that it has no use for.
    """
    hints, helps = typing.get_type_hints(cls), field_help(cls)
    names = {f.name for f in dataclasses.fields(cls) if f.init}
    names -= set(getattr(cls, "without_effect", {}))
    order = [
        name
        for base in cls.__mro__
        for name in vars(base).get("__annotations__", {})
        if name in names
    ]
    return [_spec(name, hints[name], helps.get(name, "")) for name in dict.fromkeys(order)]


def _spec(name: str, kind: Any, told: str) -> FieldSpec:
    if bool in typing.get_args(kind):
        return FieldSpec(name, kind, told, choices=(AUTO, *TRUTH))
    if typing.get_origin(kind) is typing.Literal:
        return FieldSpec(name, kind, told, choices=tuple(map(str, typing.get_args(kind))))
    return FieldSpec(name, kind, told, flag=kind is bool, many=typing.get_origin(kind) is tuple)


@functools.cache
def field_help(cls: type) -> dict[str, str]:
    """The string under each field, its bases' included: the one that `--help` prints."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        if not isinstance(tree, ast.ClassDef):
            continue
        for node, after in zip(tree.body, tree.body[1:], strict=False):
            if (
                isinstance(node, ast.AnnAssign)
                and isinstance(node.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
                and isinstance(after.value.value, str)
            ):
                found[node.target.id] = " ".join(after.value.value.split())
    return found


def settings(specs: list[FieldSpec], texts: Mapping[str, str | bool]) -> dict[str, Any]:
    """Field → value, of all controls."""
    by_name = {spec.name: spec for spec in specs}
    values = {}
    for name, text in texts.items():
        try:
            values[name] = by_name[name].value(text)
        except UserError as problem:
            hint = problem.hint or "write it as key: value, key: value"
            raise UserError(problem.message, where=name, hint=hint) from None
    return values
