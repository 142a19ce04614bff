"""Rating in the plain terminal: a prompt, its answers under numbers, one key; under letters where
lines are read from a file or another program.

Blind: neither who wrote an answer nor how the votes stand is told. Answers stand in the order drawn
when they were queued, A first. A vote is on disk before the next item is shown.
"""

from __future__ import annotations

import getpass
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, fields
from typing import Any

from ondevice.common.clock import ticks
from ondevice.common.errors import Interrupted, UserError
from ondevice.common.sanitize import LIMIT, sanitize
from ondevice.config.ratings import RateConfig
from ondevice.preferences import assignment
from ondevice.preferences.assignment import new_session
from ondevice.preferences.database import Ratings
from ondevice.preferences.history import (
    FILTERS,
    Entry,
    Filter,
    check_name,
    clear_flags,
    disagreements,
    flag,
    gold_hit,
    gold_score,
    history,
    newest_of,
    settler,
)
from ondevice.preferences.own_keys import OwnKeys, own_keys
from ondevice.preferences.project import read_project
from ondevice.preferences.rating_queue import Asking, Wanted, next_turn, queue_repeat
from ondevice.preferences.repair import open_for_rating
from ondevice.preferences.rubric_terminal import ask_scores
from ondevice.preferences.sqlite_store import Damaged, Replaced, clean
from ondevice.preferences.terminal_keys import ESCAPE, Keys
from ondevice.preferences.terminal_text import (
    HELP,
    block,
    guidelines,
    history_lines,
    message_text,
    say,
)
from ondevice.preferences.undo import store_again, undo_newest
from ondevice.preferences.votes import Item, Outcome, Progress, Vote, is_simulated, said

LETTERS = "abcd"
_NUMBERS = "1234"  # the keys of the app
_DIGITS = str.maketrans(_NUMBERS, LETTERS)
_MUCH = str.maketrans("<>", "AB")
# On a terminal: in the app they are other keys, or none (`rate_keys`).
_NO_KEYS = "abcdABCDn"
# A capital that is none of these is what its small letter is. n is N in a line, as it was before: a
# script that gives a note is to go on doing that.
_COMMANDS = "txsunfqry?*"
_CAPITALS = "UNHI"
_ASIDE = {
    "N": "_note",
    "n": "_note",
    "f": "_flag",
    "r": "_reasons",
    "*": "_scores",
    "I": "_guidelines",
}
_HISTORY = 20  # votes that H lists


def rate(cfg: RateConfig) -> dict[str, Any]:
    """Asks until everything is rated or the rater leaves; returns how far they are. Raises
    UserError where nothing was ever queued, Interrupted on Ctrl-C."""
    cfg.check()
    own = own_keys(cfg.keys)
    opened, remarks = open_for_rating(cfg.ratings)
    with opened as ratings, Keys() as keys:
        for line in remarks:
            say(line)
        session = Session(ratings, keys, cfg, own)
        try:
            session.run()
        except KeyboardInterrupt:
            raise Interrupted(
                f"interrupted; {session.voted} votes are saved, and rating goes on there"
            ) from None
        finally:
            with suppress(UserError):  # it is held by another program: the claim ends by itself
                assignment.release(ratings, session.name)
        return session.summary()


class Session:
    """One person at one keyboard."""

    def __init__(
        self, ratings: Ratings, keys: Keys, cfg: RateConfig, own: Mapping[str, str] | None = None
    ) -> None:
        self.ratings, self.keys, self.cfg = ratings, keys, cfg
        # lines of a file or a program mean what they always did
        self._own = OwnKeys(own or {} if keys.interactive else {})
        self.rater = clean(check_name(cfg.rater or login()))
        self.batch = cfg.batch or None
        self.name = new_session()
        self.names = _NUMBERS if keys.interactive else LETTERS.upper()  # of the answers
        self.voted = 0
        self.reasons: list[str] = []  # of the next vote
        self._total = 0  # that this rater is asked
        self._skipped: set[int] = set()  # in this session: each is offered once
        self._undone: list[Vote] = []  # the newest last
        self._voter = self.rater  # in whose name the next vote is stored
        self._known = -1  # a vote that the next answer replaces, as the rater was told
        self._asked = -1  # the vote whose loss was asked about by the last key
        if not ratings.progress(self.rater, self.batch).total:
            problem, hint = "has nothing to rate yet", "ondevice sample queues some"
            known = ratings.batches()
            if known:
                problem = f"has no items in the batch {cfg.batch!r}"
                hint = f"known: {', '.join(known)}"
            raise UserError(problem, where=str(ratings.path), hint=hint)

    def run(self) -> None:
        """Until nothing is left or the rater leaves."""
        project = read_project(self.ratings)
        item = self._next()
        if self.keys.interactive and item is not None:
            say(HELP + self._own.told)
            if project.guidelines:
                say(guidelines(project))
        while item is not None:
            self._show(item)
            item = self._answered(item)

    def summary(self) -> dict[str, Any]:
        progress = self.ratings.progress(self.rater, self.batch)
        return {
            "rater": self.rater,
            "simulated": is_simulated(self.rater),
            "votes_now": self.voted,
            **asdict(progress),
        }

    def _next(self) -> Item | None:
        self.reasons = []
        self._known = -1
        if self.cfg.settle:
            return self._next_disagreement()
        self._voter = self.rater
        wanted = Wanted(self.cfg.source, self.cfg.kind, self.cfg.batch, self.cfg.longest)
        asking = Asking(
            self.rater,
            self.name,
            self.cfg.repeat_share,
            self.cfg.seed,
            wanted,
            skipped=frozenset(self._skipped),
        )
        turn = next_turn(self.ratings, asking)
        self._total = turn.total
        if turn.item is not None:
            return turn.item
        left = ""
        if turn.progress.skipped:
            left = f"; {turn.progress.skipped} that you skipped come again another time"
        say(f"nothing is left to rate: {turn.progress}{left}")
        return None

    def _next_disagreement(self) -> Item | None:
        self._voter = settler(self.rater)
        left = [item for item in disagreements(self.ratings) if item not in self._skipped]
        if not left:
            say("nothing is left to settle")
            return None
        votes = self.ratings.live_votes(simulated=False)
        for vote in votes:
            if vote.item == left[0] and vote.action == "vote":
                say(sanitize(f"{vote.rater}: {said(vote, self.names)}", newlines=False))
        return self.ratings.item(left[0])

    def _answered(self, item: Item) -> Item | None:
        """Does what is asked until the item is done with; returns the one to show then, None where
        the rater leaves or nothing is left."""
        began = ticks()
        while True:
            answer = self._ask(len(item.responses))
            dwell = round((ticks() - began) * 1000)
            if answer is None or answer == "q":
                return None
            if answer == "?":
                say(HELP + self._own.told)
                continue
            try:
                then = self._do(item, answer, dwell)
            except (Damaged, Replaced):
                raise
            # held by another program, a full disk: what is not stored is asked again
            except UserError as problem:
                say(f"not saved: {problem}")
                continue
            if then is None:  # what was said is stored: a failure from here on is no other answer's
                return self._next()
            if then is not item:
                return then

    def _do(self, item: Item, answer: str, dwell: int) -> Item | None:
        """Stores what the answer says; returns the item to show then, `item` itself where it is not
        done with, None for the next one."""
        asked, self._asked = self._asked, -1
        if answer == "u":
            return self._undo(item, -1)
        if answer == "y":
            newest = newest_of(self.ratings, self.rater)
            if newest is None or newest.id != asked:
                say("y means nothing here: nothing was asked")
                return item
            return self._undo(item, asked)
        if answer == "U":
            return self._redo(item)
        if answer == "H":
            return self._history(item)
        if answer in _ASIDE:
            getattr(self, _ASIDE[answer])(item)
            return item
        # in another window: it stays
        if answer == "s" and self.ratings.voted(item.id, self._voter) is not None:
            return None
        if self._voted_elsewhere(item, asked):
            return item
        if answer == "s":
            if self._voter == self.rater:
                self.ratings.skip(item.id, self.rater, self.name, dwell_ms=dwell)
            self._skipped.add(item.id)
        else:
            self._vote(item, answer, dwell)
        return None

    def _undo(self, item: Item, confirmed: int) -> Item:
        """Takes the newest vote back and returns its item. For one of an earlier session it asks,
        by another key: a key that is held down ends at what this session did. `confirmed`: the vote
        of which that was answered."""
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
        self._known = found.still.id if found.still is not None else -1
        return found.item

    def _redo(self, item: Item) -> Item | None:
        found = store_again(self.ratings, self.name, self._undone)
        if found.vote is None:
            say("nothing to store again")
            return item
        say(f"stored again: {said(found.vote, self.names)}")
        return None

    def _history(self, item: Item) -> Item:
        """Lists votes, and goes to one of them."""
        say("which votes? Enter: yours; or " + ", ".join(FILTERS[1:]) + " > ", end="")
        name = (self.keys.line() or "").strip()
        wanted: Filter = next((each for each in FILTERS if each == name), "mine")
        entries = history(self.ratings, self.rater, wanted)
        say(history_lines(entries, self.rater, wanted, _HISTORY) or "none")
        if not entries:
            return item
        say("number of the one to change (Enter: none) > ", end="")
        number = (self.keys.line() or "").strip()
        for entry in entries:
            if str(entry.item) == number:
                return self._jump(entry, settle=wanted == "disagreements")
        return item

    def _jump(self, entry: Entry, *, settle: bool) -> Item:
        """To an item that was rated before: a vote replaces the own one, or settles."""
        self._voter = settler(self.rater) if settle else self.rater
        before = self.ratings.voted(entry.item, self._voter)
        if before is not None:
            self._known = before.id
            say(f"it was: {said(before, self.names)}; an answer replaces that, s leaves it")
        return self.ratings.item(entry.item)

    def _voted_elsewhere(self, item: Item, asked: int) -> bool:
        """Whether this rater has voted on the item since it was shown, in another window, and has
        not been told.
        """
        other = self.ratings.voted(item.id, self._voter)
        if other is None or other.id in (asked, self._known):
            return False
        self._asked = other.id
        say(
            f"you have rated this one in another window meanwhile: {said(other, self.names)}. "
            "The answer again replaces that, s leaves it"
        )
        return True

    def _vote(self, item: Item, answer: str, dwell: int) -> None:
        seen = all(len(response.text) <= LIMIT for response in item.responses)
        outcome: Outcome = "ranked"
        ranking: list[int] = []
        strength: int | None = None
        if answer == "t":
            outcome = "tie"
        elif answer == "x":
            outcome = "all_bad"
        else:
            ranking = [item.shown[LETTERS.index(letter)] for letter in answer.lower()]
            strength = 2 if answer.isupper() else 1
        vote = self.ratings.vote(
            item.id,
            self._voter,
            self.name,
            outcome,
            ranking,
            strength=strength,
            reason=", ".join(self.reasons) or None,
            seen_end=seen,
            dwell_ms=dwell,
        )
        self.voted += 1
        self._tell_after(item, vote)
        if self._voter != self.rater:
            return
        try:
            queue_repeat(self.ratings, self.rater, self.batch, self.cfg.repeat_share, self.cfg.seed)
        # the vote is saved; the repeat is due again after the next one
        except UserError as problem:
            say(f"no repeat was queued: {problem}")

    def _tell_after(self, item: Item, vote: Vote) -> None:
        """Whether a known answer was hit, who wrote the answers, that the goal is reached: what the
        project's raters have agreed to be told."""
        project = read_project(self.ratings)
        if project.feedback and item.kind == "gold":
            hits, of = gold_score(self.ratings, self.rater)
            best = self.names[item.shown.index(item.gold or 0)]
            hit = "as you said" if gold_hit(item, vote) else "you said otherwise"
            say(f"known answer: {best} is better, {hit} ({hits} of {of} right)")
        if project.reveal and item.kind == "normal":
            for letter, slot in zip(self.names, vote.shown, strict=False):
                source = item.responses[slot].source or "nobody known"
                say(sanitize(f"{letter} was by {source}", newlines=False))
        if self.cfg.goal and self.voted == self.cfg.goal:
            say(f"{self.voted} votes: the goal of this session is reached")

    def _note(self, item: Item) -> None:
        say("note: ", end="")
        note = self.keys.line()
        if not note:
            say("no note")
            return
        self.ratings.note(item.id, self.rater, self.name, note)
        say("noted")

    def _flag(self, item: Item) -> None:
        if self.cfg.settle:
            by = clear_flags(self.ratings, item.id, self.rater, self.name)
            if by:
                say(sanitize(f"looked at: no flag of {', '.join(by)} any more", newlines=False))
                return
        flagged = flag(self.ratings, item.id, self.rater, self.name)
        say("flagged" if flagged else "the flag is taken back")

    def _reasons(self, item: Item) -> None:
        """Numbers of the reasons for the next vote."""
        known = read_project(self.ratings).reasons
        say(sanitize("  ".join(f"{n} {reason}" for n, reason in enumerate(known, 1))))
        say("numbers (Enter: none) > ", end="")
        typed = self.keys.line() or ""
        self.reasons = [reason for n, reason in enumerate(known, 1) if str(n) in typed]
        say(sanitize(f"why: {', '.join(self.reasons) or 'no reason'}", newlines=False))

    def _scores(self, item: Item) -> None:
        ask_scores(self.ratings, self.keys, item, self.rater, self.name)

    def _guidelines(self, item: Item) -> None:
        say(guidelines(read_project(self.ratings)))

    # What is shown

    def _show(self, item: Item) -> None:
        progress = self.ratings.progress(self.rater, self.batch)
        width = 0
        if sys.stdout.isatty():
            width = shutil.get_terminal_size().columns
        lines = ["", f"━━ {progress} · this session {self.voted} ━━"]
        for message in item.messages:
            lines += block(f"prompt · {message.get('role', 'user')}", message_text(message), width)
        for name, slot in zip(self.names, item.shown, strict=False):
            lines += block(f"[{name}]", item.responses[slot].text, width)
        # everything up to the keys in one piece; what was typed before it stood there was not meant
        # for it
        say("\n".join(lines))
        self.keys.forget()

    def _ask(self, width: int) -> str | None:
        """A command, or letters: the best first, all in upper case for much better. None: the end
        of the input.
        """
        prompt = self._own.prompt(self.names[:width], much=self.keys.interactive and width == 2)
        while True:
            say(prompt, end="")
            typed = self._keys(width) if self.keys.interactive else self.keys.line()
            if typed is None:
                say("")
                return None
            if self.keys.interactive and set(typed) & set(_NO_KEYS):
                say("letters are no answers here: 1 2 say which is better, N is a note; ? helps")
                continue
            answer = _letters(typed.strip(), width)
            if not self.keys.interactive:
                say("")
            if _means(answer, width):
                if _is_letters(answer, width):
                    return answer
                return answer if answer in _CAPITALS else answer.lower()
            say(f"{sanitize(answer, newlines=False, limit=40)!r} means nothing here; ? helps")

    def _keys(self, width: int) -> str | None:
        """Single keys: a command at once; numbers until the order is clear or Enter is pressed."""
        typed = ""
        while True:
            key = self.keys.key()
            if key is None:
                return None
            if key == ESCAPE:
                continue
            if elsewhere := self._own.only_in_app(key):
                say(f"{key} is {elsewhere} in the app, and nothing here")
                continue
            key = self._own.meant(key)
            if key in "\x7f\b" and typed:
                typed = typed[:-1]
                say("\b \b", end="")
            elif key in "\r\n" and typed:
                break
            elif key.strip() and key.isprintable():
                shown = sanitize(key, newlines=False)
                say(shown, end="")
                typed += key
                ranked = _is_letters(_letters(typed, width), width)
                if key in _NO_KEYS or not ranked or len(typed) >= width - 1:
                    break
        say("")
        return typed


def render(summary: Mapping[str, Any]) -> str:
    """A line for people."""
    rater = summary["rater"]
    if summary["simulated"]:
        rater += " (simulated)"
    plural = "" if summary["votes_now"] == 1 else "s"
    progress = Progress(**{field.name: summary[field.name] for field in fields(Progress)})
    return f"{rater}: {summary['votes_now']} vote{plural} now, {progress}"


def _means(answer: str, width: int) -> bool:
    return _is_letters(answer, width) or (
        len(answer) == 1 and (answer in _CAPITALS or answer.lower() in _COMMANDS)
    )


def _letters(typed: str, width: int) -> str:
    """Numbers as the letters that they stand for, < and > of two answers as capitals."""
    return typed.translate(_DIGITS | _MUCH if width == 2 else _DIGITS)


def _is_letters(text: str, width: int) -> bool:
    """Letters of answers, none twice, in one case."""
    if not text or not (text.islower() or text.isupper()):
        return False
    return len(set(text)) == len(text) and set(text.lower()) <= set(LETTERS[:width])


def login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError) as error:
        raise UserError(
            "the login name is not known", where="rater", hint="give --rater NAME"
        ) from error
