"""What was said before, in `ondevice rate`: undo, redo, votes so far, and many pairs left out at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ondevice.common.sanitize import sanitize
from ondevice.config.ratings import RateConfig
from ondevice.preferences.assignment import new_session
from ondevice.preferences.database import Ratings
from ondevice.preferences.history import (
    FILTERS,
    Entry,
    Filter,
    history,
    newest_of,
    settler,
    votes_on,
)
from ondevice.preferences.own_keys import OwnKeys
from ondevice.preferences.rating_queue import Wanted
from ondevice.preferences.terminal_answers import COMMANDS, Answers
from ondevice.preferences.terminal_keys import Keys
from ondevice.preferences.terminal_text import history_lines, say
from ondevice.preferences.undo import (
    leave_out,
    pairs_in_words,
    put_back_newest,
    question_to_leave_out,
    store_again,
    undo_newest,
)
from ondevice.preferences.votes import Item, Vote, is_settled, said

_HISTORY = 20  # votes that H lists


class LookingBack:
    """A session that takes back, stores again, shows and changes what was said, and leaves pairs out
    many at once. `own`: keys of the rater's own, by deed."""

    def __init__(
        self,
        ratings: Ratings,
        keys: Keys,
        cfg: RateConfig,
        rater: str,
        own: Mapping[str, str] | None,
    ) -> None:
        self.ratings, self.keys, self.cfg = ratings, keys, cfg
        # lines of a file or a program mean what they always did
        self._answers = Answers(keys, OwnKeys(own or {} if keys.interactive else {}))
        self.rater = rater
        self.name = new_session()
        self.names = self._answers.names
        self.voted = 0
        self._skipped: set[int] = set()  # in this session: each is offered once
        self._undone: list[Vote] = []  # the newest last
        self._left_out: list[list[Vote]] = []  # many at once, each a whole
        self._voter = self.rater  # in whose name the next vote is stored
        self._known = -1  # a vote that the next answer replaces, as the rater was told
        self._asked = -1  # the vote whose loss was asked about by the last key
        self._offered: tuple[int, ...] = ()  # what the last key asked to leave out
        self._waiting: list[int] = []

    @property
    def _wanted(self) -> Wanted:
        return Wanted(self.cfg.source, self.cfg.kind, self.cfg.batch, self.cfg.longest)

    def _looked_back(self, item: Item | None, answer: str) -> Item | None:
        """Undo, redo, history, and `y` to what the key before has asked. `item`: what is shown, which
        comes back where it is not done with."""
        asked, self._asked = self._asked, -1
        offered, self._offered = self._offered, ()
        if answer == "u":
            return self._undo(item, -1)
        if answer == "U":
            return self._redo(item)
        if answer == "H":
            return self._history(item)
        if offered:
            self._leave_out(offered)
            return None
        newest = newest_of(self.ratings, self.rater)
        if newest is None or newest.id != asked:
            say("y means nothing here: nothing was asked")
            return item
        return self._undo(item, asked)

    def _undo(self, item: Item | None, confirmed: int) -> Item | None:
        """Takes the newest vote back and returns its item. For one of an earlier session it asks,
        by another key: a key that is held down ends at what this session did. `confirmed`: the vote
        of which that was answered."""
        if self._left_out:
            back = put_back_newest(self.ratings, self._left_out[-1], self.rater, self.name)
            if back is not None:
                self._left_out.pop()
                self._skipped.difference_update(back)
                say(f"taken back: {pairs_in_words(len(back))} as before")
                return None
        found = undo_newest(self.ratings, self.rater, self.name, confirmed)
        if found is None:
            say("nothing to undo")
            return item
        was = said(found.was, self.names)
        if found.ask:
            self._asked = found.was.id
            say(f"the vote before is of an earlier session (it was: {was}); y takes it back")
            return item
        say(f"undone: here it is again (it was: {was})")
        self._undone.append(found.was)
        self._skipped.discard(found.item.id)
        self._voter = found.was.rater
        if is_settled(self._voter):
            self._tell_said(found.item.id)
        self._known = found.still.id if found.still is not None else -1
        return found.item

    def _redo(self, item: Item | None) -> Item | None:
        found = store_again(self.ratings, self.name, self._undone)
        if found.vote is None:
            say("nothing to store again")
            return item
        say(f"stored again: {said(found.vote, self.names)}")
        return None

    def _history(self, item: Item | None) -> Item | None:
        """Lists votes, and goes to one of them."""
        say("which votes? Enter: yours; or " + ", ".join(FILTERS[1:]) + " > ", end="")
        name = (self.keys.line() or "").strip()
        wanted: Filter = next((each for each in FILTERS if each == name), "mine")
        entries = history(self.ratings, self.rater, wanted)
        say(history_lines(entries, self.rater, wanted, _HISTORY, self.names) or "none")
        if not entries:
            return item
        say("number of the one to change (ctrl+a: leave all out; Enter: none) > ", end="")
        number = (self.keys.line() or "").strip()
        if COMMANDS.get(number) == "leave_out":
            own = sum(each.vote is not None and each.vote.rater == self.rater for each in entries)
            items = [entry.item for entry in entries]
            self._ask_to_leave_out(items, f"of the list '{wanted}'", own)
            return item
        for entry in entries:
            if str(entry.item) == number:
                return self._jump(entry, settle=wanted == "disagreements")
        return item

    def _jump(self, entry: Entry, *, settle: bool) -> Item:
        """To an item that was rated before: a vote replaces the own one, or settles."""
        self._voter = settler(self.rater) if settle else self.rater
        if settle:
            self._tell_said(entry.item)
        before = self.ratings.voted(entry.item, self._voter)
        if before is not None:
            self._known = before.id
            say(f"it was: {said(before, self.names)}; an answer replaces that, s leaves it")
        return self.ratings.item(entry.item)

    def _tell_said(self, item: int) -> None:
        """What each rater says of a pair that is to be settled."""
        for vote in votes_on(self.ratings, item):
            say(sanitize(f"{vote.rater}: {said(vote, self.names)}", newlines=False))

    # many at once

    def _ask_to_leave_waiting(self) -> None:
        if self.cfg.settle:
            say("what people disagree on is not asked in turn: s leaves one, q all of them")
            return
        wanted = str(self._wanted)
        self._ask_to_leave_out(self._waiting, f"that wait ({wanted})" if wanted else "that wait", 0)

    def _ask_to_leave_out(self, items: Sequence[int], which: str, own: int) -> None:
        """Asks by another key, as the app does. `own`: how many of them this rater has rated."""
        if not items:
            say("no pair is there to leave out")
            return
        self._offered = tuple(items)
        told = question_to_leave_out(len(items), which, own)
        say(f"{sanitize(told, newlines=False)} y leaves them out")

    def _leave_out(self, items: Sequence[int]) -> None:
        self._left_out.append(leave_out(self.ratings, items, self.rater, self.name))
        self._skipped.update(items)
        say(f"left out: {pairs_in_words(len(items))}; u takes that back")
