"""Rating in the plain terminal: a prompt, its answers under letters, one key.

Blind: neither who wrote an answer nor how the votes stand is told. Answers stand in the order drawn
when they were queued, A first. A vote is on disk before the next item is shown.
"""

from __future__ import annotations

import getpass
import os
import shutil
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from ondevice.common.clock import clock, ticks
from ondevice.common.errors import Interrupted, UserError
from ondevice.common.sanitize import LIMIT, sanitize
from ondevice.config.ratings import RateConfig
from ondevice.preferences.database import Ratings
from ondevice.preferences.rating_queue import queue_repeat, rating_order
from ondevice.preferences.repair import open_for_rating
from ondevice.preferences.sqlite_store import Damaged, Replaced, clean
from ondevice.preferences.terminal_keys import ESCAPE, Keys
from ondevice.preferences.votes import Item, Outcome, Progress, is_simulated, said

LETTERS = "abcd"
_DIGITS = str.maketrans("1234", LETTERS)  # the keys of the app
_HELP = """\
  a b …      that answer is the best (A, B with shift: it is much better); 1 2 … do the same, as in the app
  bac        with more than two answers: an order, the best first; Enter ends it early
  t          a tie: equally good       x  all are bad
  s          skip, it comes again last u  undo, as often as you like
  n          note, then a line         f  flag, for someone to look at
  q          quit, all votes are saved ?  this help"""
_COMMANDS = "txsunfq?y"


def rate(cfg: RateConfig) -> dict[str, Any]:
    """Asks until everything is rated or the rater leaves; returns how far they are. Raises
    UserError where nothing was ever queued, Interrupted on Ctrl-C."""
    cfg.check()
    opened, remarks = open_for_rating(cfg.ratings)
    with opened as ratings, Keys() as keys:
        for line in remarks:
            _say(line)
        session = Session(ratings, keys, cfg)
        try:
            session.run()
        except KeyboardInterrupt:
            raise Interrupted(
                f"interrupted; {session.voted} votes are saved, and rating goes on there"
            ) from None
        return session.summary()


class Session:
    """One person at one keyboard."""

    def __init__(self, ratings: Ratings, keys: Keys, cfg: RateConfig) -> None:
        self.ratings, self.keys, self.cfg = ratings, keys, cfg
        self.rater = clean(cfg.rater.strip() or login())
        self.batch = cfg.batch or None
        self.name = f"{int(clock() * 1000):x}-{os.getpid()}"
        self.voted = 0
        self._skipped: set[int] = set()  # in this session: each is offered once
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
        item = self._next()
        if self.keys.interactive and item is not None:
            _say(_HELP)
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
        waiting = rating_order(
            self.ratings, self.rater, self.batch, self.cfg.repeat_share, self.cfg.seed
        )
        if waiting and waiting[0] not in self._skipped:
            return self.ratings.item(waiting[0])
        progress = self.ratings.progress(self.rater, self.batch)
        left = ""
        if progress.skipped:
            left = f"; {progress.skipped} that you skipped come again another time"
        _say(f"nothing is left to rate: {progress}{left}")
        return None

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
                _say(_HELP)
                continue
            try:
                then = self._do(item, answer, dwell)
            except (Damaged, Replaced):
                raise
            # held by another program, a full disk: what is not stored is asked again
            except UserError as problem:
                _say(f"not saved: {problem}")
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
            return self._undo(item, asked=False)
        if answer == "y":
            newest = self.ratings.newest(self.rater)
            if newest is None or newest.id != asked:
                _say("y means nothing here: nothing was asked")
                return item
            return self._undo(item, asked=True)
        if answer == "n":
            self._note(item)
            return item
        if answer == "f":
            self.ratings.flag(item.id, self.rater, self.name)
            _say("flagged")
            return item
        # in another window: it stays
        if answer == "s" and self.ratings.voted(item.id, self.rater) is not None:
            return None
        if self._voted_elsewhere(item, asked):
            return item
        if answer == "s":
            self.ratings.skip(item.id, self.rater, self.name, dwell_ms=dwell)
            self._skipped.add(item.id)
        else:
            self._vote(item, answer, dwell)
        return None

    def _undo(self, item: Item, asked: bool) -> Item:
        """Takes the newest vote back and returns its item. For one of an earlier session it asks,
        by another key: a key that is held down ends at what this session did."""
        newest = self.ratings.newest(self.rater)
        if newest is None:
            _say("nothing to undo")
            return item
        was = said(newest, LETTERS.upper())
        if newest.session != self.name and not asked:
            self._asked = newest.id
            _say(f"the vote before is of an earlier session (it was: {was}); y takes it back")
            return item
        back = self.ratings.undo(self.rater, self.name)
        if back is None:
            return item
        _say(f"undone: here it is again (it was: {was})")
        self._skipped.discard(back.id)
        return back

    def _voted_elsewhere(self, item: Item, asked: int) -> bool:
        """Whether this rater has voted on the item since it was shown, in another window, and has
        not been told.
        """
        other = self.ratings.voted(item.id, self.rater)
        if other is None or other.id == asked:
            return False
        self._asked = other.id
        _say(
            f"you have rated this one in another window meanwhile: {said(other, LETTERS.upper())}. "
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
        self.ratings.vote(
            item.id,
            self.rater,
            self.name,
            outcome,
            ranking,
            strength=strength,
            seen_end=seen,
            dwell_ms=dwell,
        )
        self.voted += 1
        try:
            queue_repeat(self.ratings, self.rater, self.batch, self.cfg.repeat_share, self.cfg.seed)
        # the vote is saved; the repeat is due again after the next one
        except UserError as problem:
            _say(f"no repeat was queued: {problem}")

    def _note(self, item: Item) -> None:
        _say("note: ", end="")
        note = self.keys.line()
        if not note:
            _say("no note")
            return
        self.ratings.note(item.id, self.rater, self.name, note)
        _say("noted")

    # What is shown

    def _show(self, item: Item) -> None:
        progress = self.ratings.progress(self.rater, self.batch)
        width = 0
        if sys.stdout.isatty():
            width = shutil.get_terminal_size().columns
        lines = ["", f"━━ {progress} ━━"]
        for message in item.messages:
            lines += _block(f"prompt · {message.get('role', 'user')}", _content(message), width)
        for letter, slot in zip(LETTERS, item.shown, strict=False):
            lines += _block(f"[{letter.upper()}]", item.responses[slot].text, width)
        # everything up to the keys in one piece; what was typed before it stood there was not meant
        # for it
        _say("\n".join(lines))
        self.keys.forget()

    def _ask(self, width: int) -> str | None:
        """A command, or letters: the best first, all in upper case for much better. None: the end
        of the input.
        """
        letters = "/".join(LETTERS[:width])
        prompt = f"{letters} best · t tie · x all bad · s skip · u undo · n note · f flag · q quit · ? help > "
        while True:
            _say(prompt, end="")
            typed = self._keys(width) if self.keys.interactive else self.keys.line()
            if typed is None:
                _say("")
                return None
            answer = typed.strip().translate(_DIGITS)
            if not self.keys.interactive:
                _say("")
            if _means(answer, width):
                if _is_letters(answer, width):
                    return answer
                return answer.lower()
            _say(f"{sanitize(answer, newlines=False, limit=40)!r} means nothing here; ? helps")

    def _keys(self, width: int) -> str | None:
        """Single keys: a command at once; letters until the order is clear or Enter is pressed."""
        typed = ""
        while True:
            key = self.keys.key()
            if key is None:
                return None
            if key == ESCAPE:
                continue
            if key in "\x7f\b" and typed:
                typed = typed[:-1]
                _say("\b \b", end="")
            elif key in "\r\n" and typed:
                break
            elif key.strip() and key.isprintable():
                shown = sanitize(key, newlines=False)
                _say(shown, end="")
                typed += key.translate(_DIGITS)
                if not _is_letters(typed, width) or len(typed) >= width - 1:
                    break
        _say("")
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
    return _is_letters(answer, width) or (len(answer) == 1 and answer.lower() in _COMMANDS)


def _is_letters(text: str, width: int) -> bool:
    """Letters of answers, none twice, in one case."""
    if not text or not (text.islower() or text.isupper()):
        return False
    return len(set(text)) == len(text) and set(text.lower()) <= set(LETTERS[:width])


def _block(title: str, text: str, width: int) -> list[str]:
    """Untrusted text under its title, a bar before every line: nothing in it can look like another
    answer's title.
    """
    shown = sanitize(text) or "(nothing)"
    block = ["", sanitize(title, newlines=False, limit=40)]
    for line in shown.split("\n"):
        parts = [line]
        if width > 20:
            parts = textwrap.wrap(
                line, width - 2, replace_whitespace=False, drop_whitespace=False
            ) or [""]
        block += [f"│ {part}" for part in parts]
    return block


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    return str(content)


def _say(text: str, end: str = "\n") -> None:
    sys.stdout.write(text + end)
    sys.stdout.flush()


def login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError) as error:
        raise UserError(
            "the login name is not known", where="rater", hint="give --rater NAME"
        ) from error
