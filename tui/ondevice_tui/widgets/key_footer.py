"""The foot of a screen: every action's key, on as many rows as they take."""

from __future__ import annotations

from rich.cells import cell_len
from textual.app import ComposeResult
from textual.containers import HorizontalGroup
from textual.widgets import Footer
from textual.widgets._footer import FooterKey

MOST_ROWS = 3
SHORT_ROWS = 1  # of a terminal of less than 24 lines, where a screen says no other number; the
# palette and ? know the rest
SHORT = 24
ALWAYS = ("explain", "leave", "command_palette")  # they tell of every other key


class Keys(Footer):
    """Textual's footer, wrapped: one row would hide most actions of a screen at 80 columns. A click
    presses the key.
    """

    DEFAULT_CSS = """
    Keys { layout: vertical; height: auto; }
    """

    def __init__(self) -> None:
        super().__init__(compact=True)
        self._made_for = (0, 0)

    def compose(self) -> ComposeResult:
        width, height = self._made_for = self.app.size
        keys: list[FooterKey] = []
        hides = getattr(self.screen, "hides", lambda action: False)  # what does not apply now
        for key in super().compose():
            assert isinstance(key, FooterKey)  # no binding of ours is grouped
            if hides(key.action):
                continue
            key.remove_class("-command-palette")  # which would stand at the right end of its row
            keys.append(key)
        if getattr(self.screen, "TYPES", False):
            # where text is typed, the field's own keys come first: as the screen has them instead
            order = [key.action for _, key in self.screen._bindings]
            keys.sort(
                key=lambda key: order.index(key.action) if key.action in order else len(order)
            )
        most = MOST_ROWS
        if height < SHORT:
            most = getattr(self.screen, "SHORT_ROWS", SHORT_ROWS)
        for row in in_rows(keys, width, most):
            yield HorizontalGroup(*row)

    def on_resize(self) -> None:
        if self._made_for != self.app.size and self._bindings_ready:
            self.call_after_refresh(self.recompose)


def in_rows(keys: list[FooterKey], width: int, most: int) -> list[list[FooterKey]]:
    """The keys in at most so many rows. Where they do not fit, the last row ends with those that
    lead to all the others (ALWAYS), and the ones before these are left out."""
    rows = _wrapped(keys, width)
    if len(rows) <= most:
        return rows
    always = [key for key in keys if key.action.removeprefix("app.") in ALWAYS]
    room = width - sum(_cells(key) for key in always)
    others = [key for key in keys if key not in always]
    rows = _wrapped(others, width)[:most]
    while rows[-1] and sum(_cells(key) for key in rows[-1]) > room:
        rows[-1].pop()
    rows[-1] += always
    return rows


def _wrapped(keys: list[FooterKey], width: int) -> list[list[FooterKey]]:
    rows: list[list[FooterKey]] = [[]]
    used = 0
    for key in keys:
        if used + _cells(key) > width and rows[-1]:
            rows.append([])
            used = 0
        rows[-1].append(key)
        used += _cells(key)
    return rows


def _cells(key: FooterKey) -> int:
    return cell_len(f"{key.key_display} {key.description} ")
