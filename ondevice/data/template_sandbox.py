"""A chat template as the program that it is: it comes with a model, so it is run in a sandbox with
a limit on time.

The limit is counted where a template can go on for ever: whenever the body of a loop or of a macro
begins, the clock is looked at. That needs neither a signal nor a thread, and so holds wherever a
template is rendered. Between two looks there is one expression at most, over at most 100,000
numbers of `range` (the sandbox's own limit), and what `*`, `**`, `+` and `~` make, or is written,
is limited in size.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextvars import ContextVar
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes as nodes
import jinja2.parser
import jinja2.sandbox

from ondevice.common.errors import UserError

OPEN, CLOSE = "\ufdd0", "\ufdd1"
"""Around what a template marks as the assistant's: noncharacters of Unicode, never valid in
exchanged text.
"""

SECONDS = 5.0
LARGEST = 10_000_000
"""Characters, or items of a list, that a template may make, and four times what it was given;
digits that a power may have are a thousandth of it."""

_until: ContextVar[float] = ContextVar("until")
_most: ContextVar[int] = ContextVar("most")


def run_template(template: str, names: dict[str, Any]) -> str:
    """What the template writes, markers of `{% generation %}` included.

    Raises UserError for one that cannot be read, or is not done within `SECONDS` or `LARGEST`
    characters; and whatever a template raises that refuses what it is given: jinja2's errors, and
    those of operations on the wrong types.
    """
    most = LARGEST + 4 * _characters(names)
    until, room = _until.set(time.monotonic() + SECONDS), _most.set(most)
    try:
        text = _compiled(template).render(names)
    except MemoryError as error:
        raise _endless(f"needs more than {most:,} characters") from error
    finally:
        _until.reset(until)
        _most.reset(room)
    if len(text) > most:
        raise _endless(f"writes more than {most:,} characters for one chat")
    return text


@lru_cache(maxsize=16)
def names_read(template: str) -> frozenset[str]:
    """The names that the template reads, but those that it sets itself or has anywhere. Raises
    UserError for one that cannot be read."""
    try:
        room = jinja2.Environment(extensions=[_Generation, jinja2.ext.loopcontrols])
        return frozenset(
            jinja2.meta.find_undeclared_variables(room.parse(template))
            - {*room.globals, "raise_exception", "strftime_now"}
        )
    except jinja2.TemplateError as error:
        raise UserError(
            f"the chat template cannot be read: {error}", where="chat_template"
        ) from error


def _characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_characters, value.values()))
    if isinstance(value, list):
        return sum(map(_characters, value))
    return 0


def _endless(what: str) -> UserError:
    return UserError(
        f"the model's chat template {what}",
        where="chat_template",
        hint="templates are programs: read it in the model's folder before you trust it",
    )


class _Generation(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` puts markers around what it holds; chat.py takes them
    out again.
    """

    tags = {"generation"}  # jinja2 declares it so

    def parse(self, parser: jinja2.parser.Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Callable[[], str]) -> str:
        return OPEN + caller() + CLOSE


class _Limits(jinja2.ext.Extension):
    """Calls that are written into a template where it is read."""

    def put_into(self, template: nodes.Template) -> None:
        for begun in template.find_all((nodes.For, nodes.Macro)):
            look = nodes.ExprStmt(self.call_method("_look")).set_lineno(begun.lineno)
            begun.body.insert(0, look)  # type: ignore[attr-defined]
        for node in template.find_all((nodes.Concat, nodes.Output)):
            limited = []
            for part in node.nodes:  # type: ignore[attr-defined]
                is_text = isinstance(part, nodes.TemplateData)
                limited.append(
                    part if is_text else self.call_method("_part", [part], lineno=node.lineno)
                )
            node.nodes = limited  # type: ignore[attr-defined]

    def _look(self) -> None:
        if time.monotonic() > _until.get():
            raise _endless(f"is not done after {SECONDS:g} seconds")

    def _part(self, value: Any) -> Any:
        if isinstance(value, str) and len(value) > _most.get():
            raise _endless(f"makes a text of more than {_most.get():,} characters")
        return value


class _Room(jinja2.sandbox.ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("*", "**", "+"))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        made = super()._parse(source, name, filename)
        limits = self.extensions[_Limits.identifier]
        assert isinstance(limits, _Limits)
        limits.put_into(made)
        return made

    def call_binop(
        self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any
    ) -> Any:
        if _size(operator, left, right) > _most.get():
            raise _endless(f"makes something larger than {_most.get():,} by {operator}")
        return super().call_binop(context, operator, left, right)


def _size(operator: str, left: Any, right: Any) -> float:
    """Characters or items of the result; of a power of numbers a thousand times its digits."""
    if operator == "+":
        if hasattr(left, "__len__") and hasattr(right, "__len__"):
            return len(left) + len(right)
        return 0
    if operator == "*":
        times, many = (left, right) if isinstance(left, int) else (right, left)
        if hasattr(many, "__len__") and isinstance(times, int):
            return len(many) * times
        return 0
    if isinstance(left, int) and isinstance(right, int):
        return 1000 * left.bit_length() * max(right, 0) * 0.302
    return 0


@lru_cache(maxsize=16)
def _compiled(template: str) -> jinja2.Template:
    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    room = _Room(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, _Limits, jinja2.ext.loopcontrols],
    )
    room.filters["tojson"] = tojson
    room.globals["raise_exception"] = raise_exception
    room.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return room.from_string(template)
    except jinja2.TemplateError as error:
        raise UserError(
            f"the chat template cannot be read: {error}", where="chat_template"
        ) from error
