"""What a stage achieved, in words: its held-out figures before the first step and at the weights
that it gives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any, TypeGuard

_SHOWN: Mapping[str, str] = {
    "accuracy": "{:.1%}",
    "score": "{:.3f}",
    "reward": "{:.3f}",
    "margin": "{:.3f}",
    "loss": "{:.4f}",
    "kl": "{:.3f}",
}
"""Figures that are told, in this order."""


def achieved(outcome: Mapping[str, Any]) -> str:
    """One line from what done.json holds as `outcome`: "accuracy 12.5% → 40.6%, reward 0.210 →
    0.480 at step 60, on 64 problems"; empty where nothing was measured."""
    before, after = (outcome.get(name) or {} for name in ("before", "after"))
    told = [
        f"{name} {_pair(before.get(name), after[name], form)}"
        for name, form in _SHOWN.items()
        if _number(after.get(name))
    ]
    if not told:
        return ""
    bits = outcome.get("bits_per_byte")
    if _number(bits):
        told.append(f"{bits:.3f} bits per byte")
    held, unit = outcome.get("held"), str(outcome.get("unit") or "tokens")
    size = f", on {held:,} {unit if held != 1 else unit.removesuffix('s')}" if held else ""
    return f"{', '.join(told)} at step {outcome.get('measured')}{size}"


def worse(outcome: Mapping[str, Any], higher: bool) -> bool:
    """Whether the figure that decides is worse than before the first step."""
    name = outcome.get("figure")
    before, after = (outcome.get(part) or {} for part in ("before", "after"))
    one, other = before.get(name), after.get(name)
    return bool(_number(one) and _number(other) and (other < one if higher else other > one))


def _pair(before: Any, after: float, form: str) -> str:
    if _number(before):
        return f"{form.format(before)} → {form.format(after)}"
    return form.format(after)


def _number(value: Any) -> TypeGuard[float]:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
