"""What a stage achieved, in words: its held-out figures before the first step and at the weights
that it gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ondevice.common.numbers import is_number

_SHOWN: Mapping[str, str] = {
    "accuracy": "{:.1%}",
    "score": "{:.3f}",
    "reward": "{:.3f}",
    "margin": "{:.3f}",
    "loss": "{:.4f}",
    "kl": "{:.3f}",
}
"""Figures that are shown, in this order."""


def achieved(outcome: Mapping[str, Any]) -> str:
    """One line from what done.json holds as `outcome`: "accuracy 12.5% → 40.6%, reward 0.210 →
    0.480 at step 60, on 64 problems"; empty where nothing was measured."""
    before = outcome.get("before") or {}
    after = outcome.get("after") or {}
    figures = []
    for name, form in _SHOWN.items():
        if is_number(after.get(name)):
            change = _pair(before.get(name), after[name], form)
            figures.append(f"{name} {change}")
    if not figures:
        return ""
    bits = outcome.get("bits_per_byte")
    if is_number(bits):
        figures.append(f"{bits:.3f} bits per byte")
    return f"{', '.join(figures)} at step {outcome.get('measured')}{_size(outcome)}"


def _size(outcome: Mapping[str, Any]) -> str:
    """How much held-out data the figures are of; empty where that is not known."""
    count = outcome.get("held")
    if not count:
        return ""
    unit = str(outcome.get("unit") or "tokens")
    if count == 1:
        unit = unit.removesuffix("s")
    return f", on {count:,} {unit}"


def worse(outcome: Mapping[str, Any], higher: bool) -> bool:
    """Whether the figure that decides is worse than before the first step."""
    name = outcome.get("figure")
    before = (outcome.get("before") or {}).get(name)
    after = (outcome.get("after") or {}).get(name)
    if not (is_number(before) and is_number(after)):
        return False
    if higher:
        return after < before
    return after > before


def _pair(before: Any, after: float, form: str) -> str:
    if is_number(before):
        return f"{form.format(before)} → {form.format(after)}"
    return form.format(after)
