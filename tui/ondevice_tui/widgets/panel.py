"""A part of a screen with keys of its own."""

from __future__ import annotations

from textual.containers import Vertical


class Panel(Vertical):
    """While it has the focus its keys stand in the screen's footer, help and palette, as the
    screen's own do.
    """
