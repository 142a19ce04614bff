"""`?`: what the screen is for, and its keys, read from its bindings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import Screen

from ondevice_tui.screens.page import Card, is_ours, of_textual
from ondevice_tui.widgets.safe import SafeText, content, line, lines, titled


class HelpScreen(Card[None]):
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,f1,q", "dismiss(None)", "close", key_display="esc")
    ]

    def __init__(self, of: Screen[Any]) -> None:
        super().__init__()
        self._of = of

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="card") as card:
            titled(card, "help", "esc closes")
            yield SafeText(
                lines(
                    [
                        *self._here(),
                        content(getattr(self._of, "ABOUT", "") or "", limit=4000),
                        content(""),
                        *self._keys(),
                    ]
                )
            )

    def _here(self) -> list[Content]:
        """What a screen tells of the very place where the cursor is."""
        here: list[Content] = getattr(self._of, "help_here", list)()
        return [row for told in here for row in (told, content(""))]

    def _keys(self) -> list[Content]:
        """A line for each action of the screen and of the app, with all its keys."""
        found: dict[str, tuple[str, list[str]]] = {}
        own: dict[str | None, str] = getattr(self._of, "own_keys", {})
        for active in self._of.active_bindings.values():
            binding = active.binding
            if not binding.description or not is_ours(active.node, self._of):
                continue
            if of_textual(binding):
                continue
            told = binding.tooltip or binding.description
            keys = found.setdefault(binding.action, (told, []))[1]
            # of each key, not of a pair of them; a person's own first
            shown = [own[binding.id]] if binding.id in own else []
            shown.append(self.app.get_key_display(replace(binding, key_display=None, id=None)))
            keys += [key for key in shown if key not in keys]
        return [
            line((f"{' '.join(keys):>10}  ", "bold $primary"), told)
            for told, keys in found.values()
        ]
