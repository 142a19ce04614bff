"""Reading on the rating screen: scrolling, how answers stand and are drawn, the whole conversation."""

from __future__ import annotations

from ondevice_tui.screens.rate_cards import Conversation
from ondevice_tui.screens.rate_undo import UndoPage
from ondevice_tui.widgets.answers import Answers, conversation

LINES = 2  # that a key scrolls


class ReadingPage(UndoPage):
    """A rating screen whose boxes are read by keys."""

    def on_mount(self) -> None:
        def is_bool(value: object) -> bool:
            return isinstance(value, bool)

        self.answers.beside = self.ui.remembered.get("answers_beside", is_bool)
        self.answers.verbatim = bool(self.ui.remembered.get("answers_verbatim", is_bool))

    @property
    def answers(self) -> Answers:
        return self.query_one(Answers)

    def on_resize(self) -> None:
        if self.item is not None:
            self.show(again=True)  # tables, and titles that say where each answer stands now

    def action_scroll(self, by: int) -> None:
        for pane in self.answers.panes:
            pane.scroll_relative(y=by * LINES, animate=False)

    def action_scroll_one(self, by: int) -> None:
        self.answers.one.scroll_relative(y=by * LINES, animate=False)

    def action_page(self, by: int) -> None:
        for box in self.answers.boxes:
            box.scroll_relative(y=by * max(box.size.height - 1, 1), animate=False)

    def action_read_all(self) -> None:
        for box in self.answers.boxes:
            box.scroll_end(animate=False)

    def action_turn_on(self) -> None:
        self.answers.turn_on()

    def action_diff(self) -> None:
        self.answers.diff = not self.answers.diff
        self.show(again=True)

    def action_verbatim(self) -> None:
        self.answers.verbatim = not self.answers.verbatim
        self.ui.keep("answers_verbatim", self.answers.verbatim)
        self.show(again=True)

    def action_side(self) -> None:
        item = self._here()
        if item is not None:
            self.answers.beside = not self.answers.stand_beside(len(item.responses))
            self.ui.keep("answers_beside", self.answers.beside)
            self.show(again=True)

    def action_context(self) -> None:
        """Every message, whole. What was read there of the question was read."""
        item = self._here()
        if item is not None:
            width = min(self.app.size.width, 110) - 8
            text = conversation(item, width, self.answers.verbatim)
            self.app.push_screen(Conversation(text), self._take_read)

    def _take_read(self, whole: bool | None) -> None:
        if whole:
            self.answers.question.share = 1.0
            self.answers.question.look()
