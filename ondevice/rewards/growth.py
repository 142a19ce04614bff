"""How large the numbers in a parsed formula get when they are multiplied out. sympy does that in
one call into C, which no alarm interrupts: `9^{9^{9^9}}` would take hours and all memory.
Everything else it does in Python, where an alarm ends it."""

from __future__ import annotations

import math
from typing import Any

LARGEST = 100_000
"""Bits of a number that is still multiplied out (30,000 digits, some milliseconds)."""


def grows(expression: Any) -> bool:
    """Whether a number in the expression (a sympy object, or a container of some) needs more than
    LARGEST bits.
    """
    return _bits(expression) > LARGEST


def _bits(node: Any) -> float:
    """An upper bound of the bits of the numerator and the denominator of the largest number in
    `node`, multiplied out; a letter has none, and neither has 1, whose powers do not grow."""
    import sympy  # 250 ms

    if isinstance(node, sympy.Rational):
        largest = max(abs(node.p), node.q)
        if largest > 1:
            return float(largest.bit_length())
        return 0.0
    if isinstance(node, sympy.MatrixBase):
        inner = node.flat()
    else:
        inner = getattr(node, "args", ())
    unsorted = getattr(node, "_unsorted_args", ())  # of math-verify's sets
    parts = [_bits(part) for part in (*inner, *unsorted)]
    if isinstance(node, sympy.Pow):
        if node.base.has(sympy.Add, sympy.Float, sympy.NumberSymbol, sympy.Function):
            least = 1.0
        else:
            least = 0.0
        base = max(parts[0], least)
        power = 0.0
        if base:
            power = base * _size(node.exp)
        return max(*parts, power)
    if isinstance(node, (sympy.factorial, sympy.factorial2, sympy.subfactorial, sympy.gamma)):
        return max(*parts, _of_factorial(_size(node.args[0])))
    if isinstance(node, (sympy.binomial, sympy.RisingFactorial, sympy.FallingFactorial)):
        return max(*parts, _of_factorial(_size(node.args[0]) + _size(node.args[1])))
    if isinstance(node, (sympy.exp, sympy.sinh, sympy.cosh, sympy.tanh)):
        return max(*parts, 2 * _size(node.args[0]))
    return sum(parts)


def _of_factorial(size: float) -> float:
    """Bits of size!."""
    if size < 1e300:
        return math.lgamma(size + 1) / math.log(2)
    return math.inf


def _size(node: Any) -> float:
    """An upper bound of |node|, infinite where it is beyond a float; a letter counts as 1."""
    import sympy  # 250 ms

    if isinstance(node, (sympy.Number, sympy.NumberSymbol)):
        try:
            return abs(float(node))
        except OverflowError:
            return math.inf
    parts = [_size(part) for part in node.args]
    if not parts:
        return 1.0
    if isinstance(node, sympy.Mul):
        if all(parts):
            return math.prod(parts)
        return 0.0
    if isinstance(node, sympy.Pow):
        base, power = parts
        if node.exp.is_negative:  # below a fraction's bar
            if node.exp == -1 and base:
                return 1 / base
            return math.inf
        return _power(base, power)
    if isinstance(node, sympy.exp):
        return _power(math.e, parts[0])
    if isinstance(
        node, (sympy.factorial, sympy.factorial2, sympy.subfactorial, sympy.gamma, sympy.binomial)
    ):
        return _two_to(_of_factorial(sum(parts)))  # of a binomial, no less
    return sum(parts) + 1.0


def _power(base: float, power: float) -> float:
    if not power:
        return 1.0
    return _two_to(math.log2(max(base, 1.0)) * power)


def _two_to(bits: float) -> float:
    """2 to this power, infinite from 1,000 bits on."""
    if bits < 1000:
        return float(2.0**bits)
    return math.inf
