"""A list of one-line rows that can be shown anew without losing the place."""

from __future__ import annotations

from collections.abc import Sequence

from rich.segment import Segment
from textual.content import Content
from textual.events import Click
from textual.strip import Strip
from textual.widgets import OptionList
from textual.widgets.option_list import Option

MARK = "›"


class Rows(OptionList):
    """`show` [(id, line)]: rows that are the same stay, the highlight stays where it was. The
    highlighted row begins with ›, so that no colour is needed to find it. A click highlights a row, a
    double click opens it."""

    async def _on_click(self, event: Click) -> None:
        """In place of Textual's, which opens at once."""
        event.prevent_default()
        at = event.style.meta.get("option")
        if at is None:
            return
        self.highlighted = at
        if event.chain >= 2:
            self.action_select()

    def render_line(self, y: int) -> Strip:
        drawn = super().render_line(y)
        at = self.scroll_offset.y + y
        if at >= len(self._lines) or self._lines[at] != (self.highlighted, 0):
            return drawn
        first = next(iter(drawn), None)
        if first is None or not first.text.startswith(" "):
            return drawn
        return Strip([Segment(MARK, first.style), *drawn.crop(1)], drawn.cell_length)

    def on_resize(self) -> None:
        """What was highlighted before there was a size is seen too."""
        self.call_after_refresh(self.scroll_to_highlight)

    def show(self, rows: Sequence[tuple[str, Content]], *, stay: bool = False) -> None:
        """`stay`: where the highlighted row is gone, the one that has come to its place is
        highlighted, and not the first."""
        ids = [key for key, _ in rows]
        if ids == [option.id for option in self.options]:
            for i, (_, text) in enumerate(rows):
                if not text.is_same(self.options[i].prompt):  # type: ignore[arg-type]
                    self.replace_option_prompt_at_index(i, text)
            return
        at = self.highlighted
        before = self.options[at].id if at is not None else None
        self.clear_options()
        self.add_options([Option(text, id=key) for key, text in rows])
        if before in ids:
            self.highlighted = ids.index(before)
        elif ids:
            self.highlighted = min(at or 0, len(ids) - 1) if stay else 0
