"""The foot of a screen: every action's key, on as many rows as they take."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from rich.cells import cell_len
from textual import events
from textual.content import Content
from textual.screen import Screen
from textual.widget import Widget

from ondevice_tui.widgets.safe import content, line, lines

MOST_ROWS = 3
SHORT_ROWS = 1  # of a terminal of less than 24 lines, where a screen says no other number; the
# palette and ? know the rest
SHORT = 24
TINY = 16  # where each row is dear
ALWAYS = ("explain", "leave", "command_palette")  # they tell of every other key


class Key(NamedTuple):
    """A key as it stands in the foot."""

    key: str
    display: str
    description: str
    action: str
    enabled: bool
    tooltip: str

    @property
    def cells(self) -> int:
        """With the space behind it."""
        return cell_len(f"{self.display} {self.description} ")


class Keys(Widget, can_focus=False):
    """The keys that apply, wrapped: one row would hide most actions of a screen at 80 columns. A
    click presses the key.

    One widget that draws all of them: Textual's own footer is a widget for each key, made and
    styled anew whenever the keys may have changed, which took a seventh of the app's time.
    """

    ALLOW_SELECT = False
    DEFAULT_CSS = """
    Keys {
        dock: bottom;
        height: 1;
        color: $footer-foreground;
        background: $footer-background;
        text-wrap: nowrap;
    }
    """

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[Key]] = []
        self._under_mouse: Key | None = None
        self._ready = False  # the screen has told its keys once

    def on_mount(self) -> None:
        self.screen.bindings_updated_signal.subscribe(self, self._told)
        self.watch(self.app, "app_focus", self._back, init=False)

    def _told(self, screen: Screen[object]) -> None:
        """The screen's keys may have changed. Without the terminal's focus no widget has its own,
        and those of before are kept."""
        self._ready = True
        looks = screen.app.app_focus or not self.rows
        if looks and self.is_attached and screen is self.screen:
            self.call_after_refresh(self._look)

    def _back(self, focus: bool) -> None:
        """The terminal has the focus again: the keys may have changed meanwhile, and nobody says so
        where no widget takes the focus back."""
        if focus and self._ready:
            self.call_after_refresh(self._look)

    def on_resize(self) -> None:
        if self._ready:
            self.call_after_refresh(self._look)

    def _look(self) -> None:
        """Draws the keys anew if they are others than before."""
        if not self.is_attached:  # the screen was left meanwhile
            return
        width, height = self.app.size
        most = MOST_ROWS
        if height < SHORT:
            most = getattr(self.screen, "SHORT_ROWS", SHORT_ROWS)
        if height < TINY:
            most = min(most, 2)
        rows = in_rows(self._keys(), width, most)
        if rows != self.rows:
            self.rows = rows
            # Said, not `auto`: Textual 8 keeps a height that it has worked out while a layout was
            # due already, and would show the first row alone.
            self.styles.height = max(1, len(rows))
            # Where the mouse rests now, once the mouse moves: never on a key that went elsewhere.
            self._hover(None)
            self.refresh()

    def _keys(self) -> list[Key]:
        """Those that are to be shown, each action once, the palette's at the end."""
        hides = getattr(self.screen, "hides", lambda action: False)  # what does not apply now
        active = self.screen.active_bindings
        bound = [one for one in active.values() if one.binding.show]
        if self.app.COMMAND_PALETTE_BINDING in active:
            bound.append(active[self.app.COMMAND_PALETTE_BINDING])
        keys: dict[str, Key] = {}
        for _, binding, enabled, tooltip in bound:
            if binding.action not in keys and not hides(binding.action):
                keys[binding.action] = Key(
                    binding.key,
                    self.app.get_key_display(binding),
                    binding.description,
                    binding.action,
                    enabled,
                    tooltip,
                )
        shown = list(keys.values())
        if getattr(self.screen, "TYPES", False):
            # where text is typed, the field's own keys come first: as the screen has them instead
            order = [key.action for _, key in self.screen._bindings]
            shown.sort(
                key=lambda key: order.index(key.action) if key.action in order else len(order)
            )
        return shown

    def render(self) -> Content:
        """All rows, each key in its colours."""
        return lines(line(*(self._drawn(key) for key in row)) for row in self.rows)

    def _drawn(self, key: Key) -> Content:
        words = line(
            (key.display, "bold $footer-key-foreground"),
            (f" {key.description}" if key.description else "", "$footer-description-foreground"),
        )
        if key == self._under_mouse:
            words = words.stylize("on $block-hover-background")
        if not key.enabled:
            words = words.stylize("dim")
        return line(words, " ")

    def _at(self, event: events.MouseEvent) -> Key | None:
        """The key under the mouse."""
        for key, x, y in self.placed():
            if y == event.y and x <= event.x < x + key.cells - 1:
                return key
        return None

    def placed(self) -> Iterator[tuple[Key, int, int]]:
        """Each key with the column and the row at which it begins, in cells of this widget."""
        for y, row in enumerate(self.rows):
            x = 0
            for key in row:
                yield key, x, y
                x += key.cells

    def on_mouse_down(self, event: events.MouseDown) -> None:
        key = self._at(event) if event.button == 1 else None  # the others paste, or open menus
        if key and key.enabled:
            self.app.simulate_key(key.key)
        elif key:
            self.app.bell()

    def on_mouse_move(self, event: events.MouseMove) -> None:
        self._hover(self._at(event))

    def on_leave(self) -> None:
        self._hover(None)

    def _hover(self, key: Key | None) -> None:
        if key != self._under_mouse:
            self._under_mouse = key
            self.with_tooltip(content(key.tooltip) if key and key.tooltip else None)
            self.refresh()


def in_rows(keys: list[Key], width: int, most: int) -> list[list[Key]]:
    """The keys in at most so many rows. Where they do not fit, the last row ends with those that
    lead to all the others (ALWAYS), and the ones before these are left out."""
    rows = _wrapped(keys, width)
    if len(rows) <= most:
        return rows
    always = [key for key in keys if key.action.removeprefix("app.") in ALWAYS]
    room = width - sum(key.cells for key in always)
    others = [key for key in keys if key not in always]
    rows = _wrapped(others, width)[:most]
    while rows[-1] and sum(key.cells for key in rows[-1]) > room:
        rows[-1].pop()
    rows[-1] += always
    return rows


def _wrapped(keys: list[Key], width: int) -> list[list[Key]]:
    rows: list[list[Key]] = [[]]
    used = 0
    for key in keys:
        if used + key.cells > width and rows[-1]:
            rows.append([])
            used = 0
        rows[-1].append(key)
        used += key.cells
    return rows
