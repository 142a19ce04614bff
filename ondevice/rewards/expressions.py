"""What a test asserts, worked out outside of where the code runs: calls of the code under test go
to a function that asks the isolator, all else is computed here on plain values.

A small part of Python: literals, operators, comparisons, subscripts, and functions that give plain
values from plain values. Whatever is not of it is refused by name before a run. No computation is
large: every value on the way is counted through its nesting, and so is the work of a whole test.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from typing import Any

from ondevice.rewards.isolated import LARGEST, encode, few_hashes

WORK = 5_000_000
"""Items that are looked at to work out one test."""
_DIGITS = 1_000  # of a number that is rounded
_DIVIDED = 100  # products of digits (of 30 bits) in the time of an item

Call = Callable[[str, list[Any], dict[str, Any]], Any]
"""Asks the code under test: its function's name, arguments, keywords."""


class Unsupported(Exception):
    """An expression that is not of the part of Python above; the text names it."""


class TooMuch(Exception):
    """A computation whose result would be too large."""


class Work:
    """What may still be done: `left` items, of one test or of several together."""

    def __init__(self, left: int = WORK) -> None:
        self.left = left

    def spend(self, items: int) -> None:
        """Raises TooMuch where nothing is left."""
        self.left -= items
        if self.left < 0:
            raise TooMuch("working a test out would take too long")

    def measured(self, value: Any) -> Any:
        """The value, where it has at most LARGEST items and letters: parts that it holds several
        times are counted as often, for whoever writes or compares it meets them as often. Raises
        TooMuch."""
        size, waiting = -1, [value]
        while waiting:
            one = waiting.pop()
            size += 1
            inner: Any = ()
            if isinstance(one, (str, bytes)):
                size += len(one)
            elif isinstance(one, int):
                size += one.bit_length() // 64
            elif isinstance(one, dict):
                _few(one.keys())
                if len(one) <= LARGEST:
                    inner = (*one, *one.values())
                else:
                    inner = one
            elif isinstance(one, (set, frozenset)):
                _few(one)
                inner = one
            elif isinstance(one, _LISTED):
                inner = one
            _at_most(size + len(waiting) + len(inner))
            waiting.extend(inner)
        self.spend(size + 1)
        return value


_LISTED: Any = (list, tuple, type({}.keys()), type({}.values()), type({}.items()))


def _few(items: Iterable[Any]) -> None:
    if not few_hashes(items):
        raise TooMuch("a set or dict of a test would have too many items")


def _hashing(make: Callable[..., Any]) -> Callable[..., Any]:
    """What makes a set or dict of items, where these are few enough to be hashed."""

    def made(*arguments: Any, **keywords: Any) -> Any:
        read = [list(one) if isinstance(one, Iterator) else one for one in arguments]
        for items in read:
            if isinstance(items, _LISTED):
                _few(items)
        return make(*read, **keywords)

    return made


def _sum(items: Iterable[Any], /, start: Any = 0) -> Any:
    """Of numbers: lists that are added up are copied once for each."""
    items = list(items)
    if not all(isinstance(one, (int, float, complex)) for one in (start, *items)):
        raise TypeError("not numbers")
    return sum(items, start)


def _round(number: Any, ndigits: int | None = None) -> Any:
    if ndigits is not None and abs(ndigits) > _DIGITS:
        raise TooMuch(f"a number is rounded to {ndigits} digits")
    return round(number, ndigits)


def _type(value: Any) -> type:
    return type(value)


def _bounded_range(*bounds: int) -> list[int]:
    found = range(*bounds)
    _at_most(len(found))
    return list(found)


def as_lists(value: Any) -> Any:
    """The value with lists in place of tuples, as JSON has it."""
    if isinstance(value, (list, tuple)):
        return [as_lists(item) for item in value]
    if isinstance(value, dict):
        return {key: as_lists(item) for key, item in value.items()}
    return value


PURE: Mapping[str, Callable[..., Any]] = {
    **{f.__name__: f for f in (abs, all, any, bool, float, int)},
    **{f.__name__: f for f in (isinstance, len, list, max, min, sorted, tuple)},
    **{f.__name__: f for f in (chr, divmod, ord, reversed, str)},
    "type": _type,
    **{f.__name__: _hashing(f) for f in (dict, frozenset, set)},
    "sum": _sum,
    "round": _round,
    "range": _bounded_range,
    "as_lists": as_lists,
    "math.isclose": math.isclose,
    "math.sqrt": math.sqrt,
    "math.floor": math.floor,
    "math.ceil": math.ceil,
    "math.fabs": math.fabs,
    "math.isnan": math.isnan,
}
"""Functions that are computed here."""
_NAMES: Mapping[str, Any] = {
    **{kind.__name__: kind for kind in (bool, bytes, complex, dict, float, frozenset, int, list)},
    **{kind.__name__: kind for kind in (set, str, tuple)},
    "NoneType": type(None),
    "math.pi": math.pi,
    "math.e": math.e,
    "math.inf": math.inf,
    "math.nan": math.nan,
}
_METHODS: Mapping[type, frozenset[str]] = {
    str: frozenset(("split", "strip", "lower", "upper", "count", "startswith", "endswith")),
    dict: frozenset(("keys", "values", "items", "get")),
    list: frozenset(("count", "index")),
    tuple: frozenset(("count", "index")),
    set: frozenset(("issubset", "union")),
}
_METHOD_NAMES = frozenset[str]().union(*_METHODS.values())
_UNARY: Mapping[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.Not: operator.not_,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Invert: operator.invert,
}
_COMPARED: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda item, items: item in items,
    ast.NotIn: lambda item, items: item not in items,
}


def _at_most(size: float) -> None:
    if size > LARGEST:
        raise TooMuch("a value of the test would be too large")


def _bits(value: Any) -> int:
    if isinstance(value, int):
        return value.bit_length()
    return 0


def _times(one: Any, other: Any) -> Any:
    for items, count in ((one, other), (other, one)):
        if isinstance(items, (str, bytes, list, tuple)) and isinstance(count, int):
            _at_most(len(items) * count)
    _at_most(_bits(one) + _bits(other))
    return one * other


def _power(one: Any, other: Any) -> Any:
    if isinstance(one, int) and isinstance(other, int):
        _at_most(_bits(one) * other)
    return one**other


def _remainder(one: Any, other: Any) -> Any:
    if isinstance(one, (str, bytes)):
        raise TooMuch("a text is filled in, whose length has no bound")
    return one % other


_BINARY: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: _times,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: _remainder,
    ast.Pow: _power,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
}


def called(node: ast.AST) -> set[str]:
    """Names of functions that an expression calls."""
    found = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.Call) and isinstance(inner.func, ast.Name):
            found.add(inner.func.id)
    return found


def check(node: ast.expr, under_test: Set[str]) -> None:
    """Raises Unsupported where `value` could not work it out."""
    kind = type(node)
    inner: list[ast.expr] = []
    if isinstance(node, (ast.Constant, ast.Slice)):
        if isinstance(node, ast.Slice):
            inner = [part for part in (node.lower, node.upper, node.step) if part]
    elif isinstance(node, (ast.Tuple, ast.List, ast.Set)):
        inner = node.elts
    elif isinstance(node, ast.Dict):
        if None in node.keys:
            raise Unsupported("**")
        inner = [*(key for key in node.keys if key), *node.values]
    elif isinstance(node, ast.UnaryOp):
        inner = [node.operand]
    elif isinstance(node, ast.BinOp):
        if type(node.op) not in _BINARY:
            raise Unsupported(f"the operator {type(node.op).__name__}")
        inner = [node.left, node.right]
    elif isinstance(node, ast.BoolOp):
        inner = node.values
    elif isinstance(node, ast.Compare):
        inner = [node.left, *node.comparators]
    elif isinstance(node, ast.IfExp):
        inner = [node.test, node.body, node.orelse]
    elif isinstance(node, ast.Subscript):
        inner = [node.value, node.slice]
    elif isinstance(node, (ast.Name, ast.Attribute)):
        if _dotted(node) not in _NAMES:
            raise Unsupported(f"the name {ast.unparse(node)[:60]}")
    elif isinstance(node, ast.Call):
        inner = _check_call(node, under_test)
    else:
        raise Unsupported(f"{kind.__name__} ({ast.unparse(node)[:60]})")
    for part in inner:
        check(part, under_test)


def _check_call(node: ast.Call, under_test: Set[str]) -> list[ast.expr]:
    """What stands within a call that can be worked out."""
    if any(keyword.arg is None for keyword in node.keywords):
        raise Unsupported("**")
    inner = [*node.args, *(keyword.value for keyword in node.keywords)]
    name = _dotted(node.func)
    if name in under_test or name in PURE:
        return inner
    if isinstance(node.func, ast.Attribute) and node.func.attr in _METHOD_NAMES:
        return [node.func.value, *inner]
    raise Unsupported(f"the call {ast.unparse(node.func)[:60]}()")


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return f"{node.value.id}.{node.attr}"
    return ""


FAILS = (
    TooMuch,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What `value` raises."""


def check_constants(node: ast.expr, under_test: Set[str], work: Work) -> None:
    """Works out what of an expression that `check` has passed is the test's own: what the code has
    no part in, and what it is given. Raises what `value` does."""
    asking: set[int] = set()
    _find_asking(node, under_test, asking)
    _check_own(node, under_test, work, asking)


def _find_asking(node: ast.AST, under_test: Set[str], asking: set[int]) -> bool:
    """Whether this asks the code; the ids of all within that do go into `asking`."""
    found = isinstance(node, ast.Call) and _dotted(node.func) in under_test
    for part in ast.iter_child_nodes(node):
        found |= _find_asking(part, under_test, asking)
    if found:
        asking.add(id(node))
    return found


def _check_own(node: ast.expr, under_test: Set[str], work: Work, asking: Set[int]) -> Any:
    if id(node) not in asking:
        return value(node, under_test, _no_call, work)
    inner: list[ast.AST] = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.Call):
        inner = [*node.args, *(keyword.value for keyword in node.keywords)]
        if isinstance(node.func, ast.Attribute) and _dotted(node.func) not in PURE:
            inner.append(node.func.value)  # what has the method
    parts = []
    for part in inner:
        if isinstance(part, ast.expr):
            parts.append(_check_own(part, under_test, work, asking))
    if isinstance(node, ast.Call) and _dotted(node.func) in under_test:
        room = [LARGEST]
        encode(parts, room)
        work.spend(LARGEST - room[0])
    return None  # what the code will give


def _no_call(name: str, arguments: list[Any], keywords: dict[str, Any]) -> Any:
    raise AssertionError(name)


def value(node: ast.expr, under_test: Set[str], call: Call, work: Work | None = None) -> Any:
    """The value of an expression that `check` has passed. Raises whatever Python would, and
    TooMuch."""
    work = work or Work()

    def of(inner: ast.expr) -> Any:
        return value(inner, under_test, call, work)

    return work.measured(_worked_out(node, under_test, call, of, work))


def _worked_out(
    node: ast.expr,
    under_test: Set[str],
    call: Call,
    of: Callable[[ast.expr], Any],
    work: Work,
) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Tuple):
        return tuple(map(of, node.elts))
    if isinstance(node, ast.List):
        return list(map(of, node.elts))
    if isinstance(node, ast.Set):
        items = list(map(of, node.elts))
        _few(items)
        return set(items)
    if isinstance(node, ast.Dict):
        keys = [of(key) for key in node.keys if key]
        _few(keys)
        return dict(zip(keys, map(of, node.values), strict=True))
    if isinstance(node, ast.UnaryOp):
        return _UNARY[type(node.op)](of(node.operand))
    if isinstance(node, ast.BinOp):
        left, right = of(node.left), of(node.right)
        work.spend((_bits(left) // 30 + 1) * (_bits(right) // 30 + 1) // _DIVIDED)
        return _BINARY[type(node.op)](left, right)
    if isinstance(node, ast.BoolOp):
        return _either(node, of)
    if isinstance(node, ast.Compare):
        return _compared(node, of)
    if isinstance(node, ast.IfExp):
        return of(node.body if of(node.test) else node.orelse)
    if isinstance(node, ast.Slice):
        return slice(*(part and of(part) for part in (node.lower, node.upper, node.step)))
    if isinstance(node, ast.Subscript):
        return of(node.value)[of(node.slice)]
    if isinstance(node, ast.Call):
        return _call(node, under_test, call, of, work)
    return _NAMES[_dotted(node)]


def _either(node: ast.BoolOp, of: Callable[[ast.expr], Any]) -> Any:
    found = None
    for part in node.values:
        found = of(part)
        if bool(found) is isinstance(node.op, ast.Or):
            break
    return found


def _compared(node: ast.Compare, of: Callable[[ast.expr], Any]) -> Any:
    left, found = of(node.left), True
    for compare, comparator in zip(node.ops, node.comparators, strict=True):
        right = of(comparator)
        found = _COMPARED[type(compare)](left, right)
        if not found:
            break
        left = right
    return found


def _call(
    node: ast.Call,
    under_test: Set[str],
    call: Call,
    of: Callable[[ast.expr], Any],
    work: Work,
) -> Any:
    arguments = [of(argument) for argument in node.args]
    keywords = {str(keyword.arg): of(keyword.value) for keyword in node.keywords}
    name = _dotted(node.func)
    if name in under_test:
        return call(name, arguments, keywords)
    if name in PURE:
        if name == "divmod":
            digits = [_bits(one) // 30 + 1 for one in arguments]
            work.spend(math.prod(digits) // _DIVIDED)
        return PURE[name](*arguments, **keywords)
    assert isinstance(node.func, ast.Attribute)
    owner = of(node.func.value)
    if node.func.attr not in _METHODS.get(type(owner), ()):
        raise TypeError(f"{type(owner).__name__} has no {node.func.attr}")
    method = getattr(owner, node.func.attr)
    if node.func.attr == "union":
        method = _hashing(method)
    return method(*arguments, **keywords)
