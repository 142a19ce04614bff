"""Within what a temperature can be computed with."""

from __future__ import annotations

from ondevice.common.errors import UserError

COLDEST, HOTTEST = 1e-6, 1e6
"""Beyond them logits overflow float32, or no longer tell tokens apart."""


def check_temperature(value: float, *, greedy: bool = True) -> None:
    """Raises UserError for a temperature that cannot be drawn at. `greedy`: 0 is one, and takes the
    likeliest.
    """
    if value == 0 and greedy:
        return
    if not COLDEST <= value <= HOTTEST:
        zero = ", or 0 for the likeliest token" if greedy else ""
        raise UserError(
            f"{value} is out of range",
            where="temperature",
            hint=f"give {COLDEST:g} to {HOTTEST:g}{zero}",
        )
