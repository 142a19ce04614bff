"""What a chat template may do, by name: operators, methods, filters and tests, and what each of
them is charged for before it is done.

Left out is what no template for chats needs and what cannot be bounded by looking at its operands
(`lipsum`, `pprint`, `urlize`, `striptags`, `expandtabs`, `encode`, `to_bytes` and their like).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.filters import FILTERS as JINJA_FILTERS
from jinja2.tests import TESTS as JINJA_TESTS
from markupsafe import Markup

from ondevice.data.template_budget import ITEM, Budget, budget, endless

Charge = Callable[..., None]
"""Takes the budget and an operation's operands; raises UserError where they are too large."""

_ESCAPED = 6  # times as long as a text may become where it is escaped
_JSON = 12  # of a character beyond the first plane: \ud83d\ude00
_NESTED = re.compile(r"\{[^{}]*\{")
_STARRED = re.compile(r"%[^a-zA-Z%]*\*")
_PRECISION = 1000
_AT_ONCE = 32  # characters that are compared in the time in which one is made


def _factor(text: Any) -> int:
    """Markup escapes what is joined to it."""
    return _ESCAPED if isinstance(text, Markup) else 1


def _free(budget: Budget, *operands: Any, **named: Any) -> None:
    """Nothing grows with the operands, or item by item where each is charged for."""


def _as_text(budget: Budget, text: Any, *rest: Any, **named: Any) -> None:
    """What comes of it is about as long as the text."""
    budget.spend_on(text)


def _escape(budget: Budget, text: Any, *rest: Any) -> None:
    budget.spend_on(text, _ESCAPED)


def _walk(budget: Budget, items: Any, *rest: Any, **named: Any) -> None:
    """All items are gone through, and put into one list. What is not there yet, as of a generator,
    is charged for when it comes (`_listed`)."""
    if hasattr(items, "__len__"):
        budget.spend_on(items)
        budget.spend(ITEM * len(items))


def _split(budget: Budget, text: str, sep: Any = None, *rest: Any, **named: Any) -> None:
    budget.spend(ITEM * len(text))
    _searched(budget, text, sep)


def _searched(budget: Budget, text: Any, sought: Any = None, *rest: Any, **named: Any) -> None:
    """Stripping, and searches from the end, may look at all that is sought at each character."""
    budget.spend_on(text)
    if isinstance(sought, str) and len(sought) > 1:
        budget.spend(len(str(text)) * len(sought) / _AT_ONCE)


def _truncated(
    budget: Budget,
    text: Any,
    length: Any = 0,
    killwords: Any = False,
    end: Any = "",
    leeway: Any = 0,
) -> None:
    budget.spend_on(text)
    budget.spend_on(end)


def _compared(budget: Budget, left: Any, right: Any = None, *rest: Any) -> None:
    budget.spend_on(left)
    if isinstance(right, (str, list, tuple)):
        budget.spend(len(right))


def _padded(budget: Budget, text: Any, width: Any = 80, *rest: Any, **named: Any) -> None:
    budget.spend_on(text)
    budget.spend(_number(width))


def _indented(
    budget: Budget, text: Any, width: Any = 4, first: bool = False, blank: bool = False
) -> None:
    budget.spend_on(text)
    lines = str(text).count("\n") + 1
    if isinstance(width, str):
        each: float = len(width)
    else:
        each = _number(width)
    budget.spend(len(str(text)) + lines * each * _factor(text))


def _replaced(budget: Budget, text: Any, old: Any = "", new: Any = "", *rest: Any) -> None:
    budget.spend_on(text)
    budget.spend_on(old)
    budget.spend_on(new)
    text, old, new = str(text), str(old), str(new)
    budget.spend(len(text) + (text.count(old) if old else len(text) + 1) * len(new) * _ESCAPED)


def _joined(budget: Budget, items: Any, d: Any = "", attribute: Any = None) -> None:
    separators = budget.weigh(d)[0] * max(len(items), 1)
    budget.spend((budget.weigh(items)[0] + separators) * _factor(d))


def _join_method(budget: Budget, separator: str, items: Any) -> None:
    _joined(budget, items, separator)


def _batched(budget: Budget, items: Any, linecount: Any, fill_with: Any = None) -> None:
    _walk(budget, items)
    budget.spend(_number(linecount) * (ITEM + budget.weigh(fill_with)[0]))


def _sliced(budget: Budget, items: Any, slices: Any, fill_with: Any = None) -> None:
    _batched(budget, items, slices, fill_with)


def _rounded(budget: Budget, value: Any, precision: Any = 0, *rest: Any, **named: Any) -> None:
    if abs(_number(precision)) > _PRECISION:
        raise endless(f"rounds to {precision} digits")


def _summed(
    budget: Budget, items: Any, attribute: Any = None, start: Any = 0, **named: Any
) -> None:
    """Of numbers only: lists would be copied for each item."""
    if not isinstance(start, (int, float)):
        raise endless("sums up what are not numbers")
    if hasattr(items, "__len__"):
        budget.spend(ITEM * len(items))


def _json(
    budget: Budget,
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    *rest: Any,
    **named: Any,
) -> None:
    weight, depth = budget.weigh(value)
    if isinstance(indent, str):
        each: float = len(indent)
    else:
        each = _number(indent or 0)
    separators = budget.weigh(named.get("separators", rest[:1]))[0]
    budget.spend(weight * (_JSON + separators + each * depth))


def _percent(budget: Budget, form: Any, *values: Any, **named: Any) -> None:
    """`%` of a text: each value as often as there are places, and every width that is written."""
    form = str(form)
    if _STARRED.search(form):
        raise endless("formats with a width that is not written out")
    _spend_form(budget, form, form.count("%"), (values, named))


def _braces(budget: Budget, form: Any, *values: Any, **named: Any) -> None:
    """`format` of a text, likewise."""
    form = str(form)
    if _NESTED.search(form.replace("{{", "")):
        raise endless("formats with a width that is not written out")
    _spend_form(budget, form, form.count("{"), (values, named))


def _spend_form(budget: Budget, form: str, places: int, values: Any) -> None:
    width = 0.0
    for digits in re.findall(r"\d+", form):
        width += float(digits)
    value = budget.weigh(values)[0] + 20  # a number's own width
    budget.spend((len(form) + width + places * value) * _ESCAPED)


def _number(value: Any) -> float:
    """A width, a count; one that is not a number is refused by whoever takes it."""
    if isinstance(value, int):
        return float(min(max(value, -(1 << 60)), 1 << 60))
    return 0.0


FILTERS: dict[str, Charge] = {
    **dict.fromkeys(
        ("abs", "count", "d", "default", "first", "float", "int", "items", "last", "length"), _free
    ),
    **dict.fromkeys(("map", "reject", "rejectattr", "select", "selectattr"), _free),
    **dict.fromkeys(
        ("capitalize", "lower", "safe", "string", "title", "upper", "wordcount"), _as_text
    ),
    "trim": _searched,
    "truncate": _truncated,
    **dict.fromkeys(("e", "escape"), _escape),
    **dict.fromkeys(
        ("dictsort", "groupby", "list", "max", "min", "reverse", "sort", "unique"), _walk
    ),
    "batch": _batched,
    "slice": _sliced,
    "center": _padded,
    "format": _percent,
    "indent": _indented,
    "join": _joined,
    "replace": _replaced,
    "round": _rounded,
    "sum": _summed,
    "tojson": _json,
}
_LISTED = ("batch", "dictsort", "groupby", "join", "list", "max", "min", "slice", "sort", "unique")
"""Filters that take all items at once: a generator is made a list of for them first."""

_COMPARING = ("==", "eq", "equalto", "!=", "ne", ">", "gt", "greaterthan", ">=", "ge", "<", "lt")
TESTS: dict[str, Charge] = {
    **dict.fromkeys(
        ("boolean", "defined", "divisibleby", "even", "false", "float", "integer", "iterable"),
        _free,
    ),
    **dict.fromkeys(
        ("mapping", "none", "number", "odd", "sameas", "sequence", "string", "true", "undefined"),
        _free,
    ),
    **dict.fromkeys((*_COMPARING, "lessthan", "<=", "le", "in"), _compared),
    **dict.fromkeys(("lower", "upper"), _as_text),
    **dict.fromkeys(("callable", "escaped", "filter", "test"), _free),
}

METHODS: dict[type, Mapping[str, Charge]] = {
    str: {
        **dict.fromkeys(
            ("capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha"),
            _as_text,
        ),
        **dict.fromkeys(
            ("isascii", "isdecimal", "isdigit", "islower", "isnumeric", "isspace", "istitle"),
            _as_text,
        ),
        **dict.fromkeys(
            ("isupper", "lower", "partition", "removeprefix", "removesuffix", "startswith"),
            _as_text,
        ),
        **dict.fromkeys(("swapcase", "title", "upper"), _as_text),
        **dict.fromkeys(("lstrip", "rfind", "rindex", "rpartition", "rstrip", "strip"), _searched),
        **dict.fromkeys(("rsplit", "split", "splitlines"), _split),
        **dict.fromkeys(("center", "ljust", "rjust", "zfill"), _padded),
        **dict.fromkeys(("format", "format_map"), _braces),
        "join": _join_method,
        "replace": _replaced,
    },
    dict: {"copy": _walk, **dict.fromkeys(("get", "items", "keys", "values"), _free)},
    list: {"copy": _walk, "count": _walk, "index": _walk},
    tuple: {"count": _walk, "index": _walk},
    int: {"bit_length": _free},
    float: {"is_integer": _free},
}
_ITEMS_OF = ("join",)  # methods that go through what they are given


def charge_method(
    owner: Any, name: str, args: tuple[Any, ...], named: dict[str, Any]
) -> tuple[Any, ...]:
    """The operands of a method of a builtin type, charged for; a generator among them as a list.
    Raises SecurityError for one that templates may not call."""
    if isinstance(owner, str):
        kind = str
    else:
        kind = type(owner)
    charge = METHODS.get(kind, {}).get(name)
    if charge is None:
        raise SecurityError(f"{kind.__name__}.{name} is not for chat templates")
    if charge is _free:
        return args
    if name in _ITEMS_OF and args:
        args = (_listed(args[0]), *args[1:])
    _charge(charge, owner, *args, **named)
    return args


def charge_operator(sign: str, left: Any, right: Any) -> None:
    """Spends what a binary operator makes."""
    now = budget()
    if sign == "%":
        if isinstance(left, str):
            _percent(now, left, right)
    elif sign == "+":
        if isinstance(left, str) and isinstance(right, str):
            now.spend(len(left) + len(right) * _factor(left))
        elif hasattr(left, "__len__") and hasattr(right, "__len__"):
            now.spend_on(left)
            now.spend_on(right)
    elif isinstance(left, int) and isinstance(right, int):
        digits = left.bit_length() + right.bit_length()
        if sign == "**":
            digits = left.bit_length() * max(right, 0)
        if digits > 1000:
            now.spend(1000 * digits * 0.302)
    elif sign == "*":
        if isinstance(left, int):
            times, many = (left, right)
        else:
            times, many = (right, left)
        if hasattr(many, "__len__") and isinstance(times, int):
            now.spend_on(many, max(times, 0))


def filters() -> dict[str, Any]:
    """jinja2's, those that are allowed."""
    there: Mapping[str, Any] = JINJA_FILTERS
    return {
        name: charged(there[name], charge, listed=name in _LISTED)
        for name, charge in FILTERS.items()
    }


def tests() -> dict[str, Any]:
    """jinja2's, those that are allowed."""
    there: Mapping[str, Any] = JINJA_TESTS
    return {name: charged(there[name], charge) for name, charge in TESTS.items()}


def charged(
    operation: Callable[..., Any], charge: Charge, *, listed: bool = False
) -> Callable[..., Any]:
    """The operation, which spends what it makes before it makes it. `listed`: its first operand may
    be a generator, and is made a list of."""
    if charge is _free:
        return operation
    before = int(hasattr(operation, "jinja_pass_arg"))  # a context is handed to some ahead

    @wraps(operation)
    def run(*args: Any, **named: Any) -> Any:
        head, operands = args[:before], args[before:]
        if listed and operands:
            operands = (_listed(operands[0]), *operands[1:])
        _charge(charge, *operands, **named)
        return operation(*head, *operands, **named)

    return run


def _charge(charge: Charge, *operands: Any, **named: Any) -> None:
    now = budget()
    try:
        charge(now, *operands, **named)
    except TypeError:
        # operands that are none of this operation's: it will say so itself, unless they are large
        now.spend_on([*operands, *named.values()])


def _listed(items: Any) -> Any:
    """All that a generator gives, as a list."""
    if hasattr(items, "__len__") or not hasattr(items, "__iter__"):
        return items
    now = budget()
    found = []
    for item in items:
        found.append(item)
        now.spend(ITEM)
        if len(found) % 1000 == 0:
            now.look()
    return found
