"""A chat template as the program that it is: it comes with a model, so it is run in a sandbox with
a limit on memory and on time.

What it may do is allowed by name (`template_operations.py`): operators, methods, filters, tests and
functions. Each of them that makes something spends of a budget (`template_budget.py`) what it will
make, before it makes it; a template may make so much in all. The clock is looked at whenever the
body of a loop or of a macro begins, and before whatever is large. That needs neither a signal, a
thread nor a process, and so holds wherever a template is rendered.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from types import BuiltinMethodType, FunctionType, MethodType
from typing import Any

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.meta
import jinja2.nodes as nodes
import jinja2.parser
import jinja2.sandbox
from jinja2.utils import Cycler, Joiner, Namespace
from jinja2.visitor import NodeTransformer

from ondevice.common.errors import UserError
from ondevice.data import template_operations as operations
from ondevice.data.template_budget import budget, endless, rendering

OPEN, CLOSE = "\ufdd0", "\ufdd1"
"""Around what a template marks as the assistant's: noncharacters of Unicode, never valid in
exchanged text.
"""

LONGEST = 1 << 18
"""Characters of a template: those that people have are a tenth of it."""
# what reading a program can raise: of one that is nested too deep, Python's compiler raises the
# last three
_UNREADABLE = (jinja2.TemplateError, ValueError, RecursionError, SyntaxError, MemoryError)
_WIDTH = re.compile(r"%[^a-zA-Z%]*[0-9]")
# filters that are put into a template
_LOOK, _PART, _MADE, _COMPARED, _SOUGHT = "_look", "_part", "_made", "_compared", "_sought"


def run_template(template: str, names: dict[str, Any]) -> str:
    """What the template writes, markers of `{% generation %}` included.

    Raises UserError for one that cannot be read, or makes more or takes longer than its budget has;
    and whatever a template raises that refuses what it is given: jinja2's errors, and those of
    operations on the wrong types.
    """
    compiled = _compiled(template)
    with rendering(names) as limits:
        try:
            text = compiled.render(names)
        except MemoryError as error:
            raise endless(f"needs more than {limits.largest:,} characters") from error
    if len(text) > limits.largest:
        raise endless(f"writes more than {limits.largest:,} characters for one chat")
    return text


@lru_cache(maxsize=16)
def names_read(template: str) -> frozenset[str]:
    """The names that the template reads, but those that it sets itself or has anywhere. Raises
    UserError for one that cannot be read."""
    try:
        room = jinja2.Environment(extensions=[_Generation, jinja2.ext.loopcontrols])
        return frozenset(
            jinja2.meta.find_undeclared_variables(room.parse(_bounded(template)))
            - {*room.globals, "raise_exception", "strftime_now"}
        )
    except _UNREADABLE as error:
        raise _unreadable(error) from error


def _bounded(template: str) -> str:
    if len(template) > LONGEST:
        raise ValueError(f"it has {len(template):,} characters, more than {LONGEST:,}")
    return template


def _unreadable(error: BaseException) -> UserError:
    said = str(error) or type(error).__name__
    return UserError(f"the chat template cannot be read: {said}", where="chat_template")


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
    """Charges that are written into a template where it is read, as filters: these are called
    without a detour."""

    def put_into(self, template: nodes.Template) -> None:
        for begun in template.find_all((nodes.For, nodes.Macro, nodes.CallBlock)):
            written = 0
            for text in begun.find_all(nodes.TemplateData):
                written += len(text.data)
            look = nodes.ExprStmt(_filtered(nodes.Const(written), _LOOK, begun.lineno))
            begun.body.insert(0, look.set_lineno(begun.lineno))  # type: ignore[attr-defined]
        _Charges().visit(template)


class _Charges(NodeTransformer):
    """Puts `_part` around what is written or joined by `~`, `_made` around lists that are made, `_sought`
    around what something is sought in, `_compared` around one side of a comparison.
    """

    def visit_Const(self, node: nodes.Const) -> nodes.Node:
        # jinja2 would write it into Python as the name `inf`
        if isinstance(node.value, float) and not math.isfinite(node.value):
            raise jinja2.TemplateSyntaxError("a number beyond every float", node.lineno)
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [self._part(part) for part in node.nodes]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [self._part(part) for part in node.nodes]
        return node

    def _part(self, part: Any) -> Any:
        if isinstance(part, (nodes.TemplateData, nodes.Const)):
            return part
        return _filtered(part, _PART, part.lineno)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            return _filtered(node, _MADE, node.lineno)
        return node

    def visit_List(self, node: nodes.List | nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        if all(isinstance(item, nodes.Const) for item in node.items):
            return node
        return _filtered(node, _MADE, node.lineno)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        if node.ctx != "load":
            return node
        return self.visit_List(node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, _MADE, node.lineno)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        for operand in node.ops:
            if operand.op in ("in", "notin") and not isinstance(operand.expr, nodes.List):
                operand.expr = _filtered(operand.expr, _SOUGHT, node.lineno)
        others = [operand.expr for operand in node.ops]
        if not any(isinstance(expr, (nodes.Const, nodes.List)) for expr in (node.expr, *others)):
            node.expr = _filtered(node.expr, _COMPARED, node.lineno)
        return node


def _filtered(node: nodes.Expr, name: str, line: int) -> nodes.Filter:
    made = nodes.Filter(node, name, [], [], None, None)
    made.set_lineno(line)
    return made


def _look(written: int) -> None:
    now = budget()
    now.spend(written)
    now.look()


def _part(value: Any) -> Any:
    if isinstance(value, str):
        budget().spend(len(value))
    elif value is not None and not isinstance(value, jinja2.Undefined):
        budget().spend_on(value)
    return value


def _made(value: Any) -> Any:
    """A list, or a slice, that has just been made of what was there."""
    now = budget()
    if isinstance(value, str):
        now.spend(len(value))
    elif isinstance(value, (list, tuple, dict)):
        now.spend(now.weigh(value)[0])
    return value


def _compared(value: Any) -> Any:
    """One side of a comparison, neither of which is written in the template."""
    if isinstance(value, (str, list, tuple, dict)):
        budget().spend_on(value)
    return value


def _sought(value: Any) -> Any:
    """What something is sought in."""
    if isinstance(value, (str, list, tuple)):
        budget().spend(len(value))
    return value


class _Room(jinja2.sandbox.ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("*", "**", "+", "%"))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        made = super()._parse(source, name, filename)
        limits = self.extensions[_Limits.identifier]
        assert isinstance(limits, _Limits)
        limits.put_into(made)
        return made

    def call_binop(
        self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any
    ) -> Any:
        operations.charge_operator(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(
        __self,  # noqa: B902  # as jinja2 names it: a template may name an argument `self`
        __context: jinja2.runtime.Context,
        __obj: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        if isinstance(__obj, BuiltinMethodType):
            # the names around a call, which jinja2 hands on to its own functions
            kwargs.pop("_loop_vars", None)
            kwargs.pop("_block_vars", None)
            args = operations.charge_method(__obj.__self__, __obj.__name__, args, kwargs)
            return __obj(*args, **kwargs)
        formatted = getattr(__obj, "__wrapped__", None)
        if isinstance(formatted, (BuiltinMethodType, MethodType)):  # jinja2's own way to `format`
            args = operations.charge_method(formatted.__self__, "format", args, kwargs)
        elif isinstance(__obj, MethodType) and isinstance(__obj.__self__, str):  # of Markup
            args = operations.charge_method(__obj.__self__, __obj.__name__, args, kwargs)
        elif __obj is dict or __obj is Namespace:
            budget().spend_on([*args, *kwargs.values()])
        elif isinstance(__obj, FunctionType | type) and not __self.has_function(__obj):
            raise jinja2.exceptions.SecurityError(f"{__obj!r} is not for chat templates")
        return super().call(__context, __obj, *args, **kwargs)

    def has_function(self, function: Any) -> bool:
        """Whether it is one of those that templates may call by name."""
        return any(function is known for known in self.globals.values())


@lru_cache(maxsize=16)
def _compiled(template: str) -> jinja2.Template:
    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def strftime_now(form: str) -> str:
        if len(form) > 100 or _WIDTH.search(form):  # the system's own fills up to any width
            raise jinja2.TemplateError("a date of this form is not written")
        return datetime.now().strftime(form)

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
        optimized=False,  # it works out constants while a template is read
        extensions=[_Generation, _Limits, jinja2.ext.loopcontrols],
    )
    room.filters = operations.filters()
    room.filters["tojson"] = operations.charged(tojson, operations.FILTERS["tojson"])
    room.filters |= {_LOOK: _look, _PART: _part, _MADE: _made}
    room.filters |= {_COMPARED: _compared, _SOUGHT: _sought}
    room.tests = operations.tests()
    room.globals = {
        "range": jinja2.sandbox.safe_range,
        "dict": dict,
        "namespace": Namespace,
        "cycler": Cycler,
        "joiner": Joiner,
        "raise_exception": raise_exception,
        "strftime_now": strftime_now,
    }
    try:
        return room.from_string(_bounded(template))
    except _UNREADABLE as error:
        raise _unreadable(error) from error
