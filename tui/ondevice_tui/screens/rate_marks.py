"""Notes and flags on the pair that is shown: what a rater says beside the vote."""

from __future__ import annotations

from ondevice.common.errors import UserError
from ondevice.preferences import history
from ondevice.preferences.assignment import new_session
from ondevice.preferences.database import Ratings
from ondevice.preferences.votes import Item
from ondevice_tui.screens.rating_page import RatingPage
from ondevice_tui.screens.text_card import Note


class MarkingPage(RatingPage):
    """A screen on a run's ratings on which the item that is shown gets notes and flags. `rater` is
    who rates, `session` this opening of the app."""

    def __init__(self) -> None:
        super().__init__()
        self.rater = ""
        self.session = new_session()

    def action_note(self) -> None:
        item = self._here()
        rater = self.rater
        if item is not None:
            self._do(
                lambda ratings: newest_note(ratings, item, rater),
                lambda before: self._ask_note(item, before),
                opens=True,
            )

    def _ask_note(
        self, item: Item, before: str, text: str = "", title: str = "a note on this pair"
    ) -> None:
        """`before`: the note there is; `text`: what was typed and could not be stored."""
        rater = self.rater

        def keep(typed: str | None) -> None:
            note = (typed or "").strip()
            if note and note != before:
                self._do(
                    lambda ratings: ratings.note(item.id, rater, self.session, note),
                    lambda _: self._marked("noted"),
                    lambda problem: self._ask_note_again(item, before, note, problem),
                )

        self.app.push_screen(Note(title, text or before), keep)

    def _ask_note_again(self, item: Item, before: str, note: str, problem: UserError) -> None:
        self._not_saved(problem)
        self._ask_note(item, before, note, f"not saved ({problem.message}): Enter tries again")

    def action_flag(self) -> None:
        item = self._here()
        rater = self.rater
        if item is not None:
            self._do(
                lambda ratings: history.flag(ratings, item.id, rater, self.session),
                lambda flagged: self._marked("flagged" if flagged else "the flag is taken back"),
            )

    def _marked(self, told: str) -> None:
        self._show_told(told, "$success")
        self.count_marks()

    def count_marks(self) -> None:
        """Counts flags, notes and disagreements anew; a subclass shows them."""


def newest_note(ratings: Ratings, item: Item, rater: str) -> str:
    """The rater's newest note on this item; empty where there is none."""
    found = ""
    for row in ratings.votes(raters=[rater]):
        if row.action == "note" and row.item == item.id and row.note:
            found = row.note
    return found
