"""Numbers in what others wrote: JSON has whole numbers of any length, which no float holds."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, TypeGuard


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it can be counted with: neither true nor false, finite, and not beyond every float."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def number_or_none(value: Any) -> float | None:
    """The number, and None for whatever else somebody has written in its place."""
    return float(value) if is_number(value) else None
