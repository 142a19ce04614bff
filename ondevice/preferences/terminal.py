"""Rating in the plain terminal: a prompt, its answers under numbers, one key; under letters where
lines are read from a file or another program.

Blind: neither who wrote an answer nor how the votes stand is told. Answers stand in the order drawn
when they were queued, A first. A vote is on disk before the next item is shown.
"""

from __future__ import annotations

import getpass
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, fields
from typing import Any

from ondevice.common.clock import ticks
from ondevice.common.errors import Interrupted, UserError
from ondevice.common.sanitize import LIMIT, sanitize
from ondevice.config.ratings import RateConfig
from ondevice.preferences import assignment
from ondevice.preferences.database import Ratings
from ondevice.preferences.history import (
    check_name,
    disagreements,
    settler,
)
from ondevice.preferences.own_keys import own_keys
from ondevice.preferences.project import read_project
from ondevice.preferences.rating_queue import Asking, next_turn, queue_repeat
from ondevice.preferences.repair import open_for_rating
from ondevice.preferences.rubric_terminal import ask_scores
from ondevice.preferences.sqlite_store import Damaged, Replaced, clean
from ondevice.preferences.terminal_answers import COMMANDS, LETTERS
from ondevice.preferences.terminal_aside import (
    ask_note,
    ask_own_keys,
    ask_reasons,
    tell_after,
    turn_flag,
)
from ondevice.preferences.terminal_earlier import LookingBack
from ondevice.preferences.terminal_keys import Keys
from ondevice.preferences.terminal_text import (
    HELP,
    guidelines,
    pair_lines,
    say,
)
from ondevice.preferences.votes import (
    Item,
    Outcome,
    Progress,
    is_simulated,
    said,
)

# What is done beside the votes, by the names of the deeds.
_ASIDE = ("note", "flag", "reasons", "scores", "guidelines", "own_keys")


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
            session.run(stays=True)
        except KeyboardInterrupt:
            raise Interrupted(
                f"interrupted; {session.voted} votes are saved, and rating goes on there"
            ) from None
        finally:
            with suppress(UserError):  # it is held by another program: the claim ends by itself
                assignment.release(ratings, session.name)
        return session.summary()


class Session(LookingBack):
    """One person at one keyboard."""

    def __init__(
        self, ratings: Ratings, keys: Keys, cfg: RateConfig, own: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(ratings, keys, cfg, clean(check_name(cfg.rater or login())), own)
        self.batch = cfg.batch or None
        self.reasons: list[str] = []  # of the next vote
        self._total = 0  # that this rater is asked
        self._away = False  # the rater has left, or the input has ended
        if not ratings.progress(self.rater, self.batch).total:
            problem, hint = "has nothing to rate yet", "ondevice sample queues some"
            known = ratings.batches()
            if known:
                problem = f"has no items in the batch {cfg.batch!r}"
                hint = f"known: {', '.join(known)}"
            raise UserError(problem, where=str(ratings.path), hint=hint)

    def run(self, *, stays: bool = False) -> None:
        """Until nothing is left or the rater leaves. `stays`: where nothing is left, it is asked
        whether something is to be taken back or changed."""
        project = read_project(self.ratings)
        item = self._next()
        if self.keys.interactive and item is not None:
            say(self._help)
            if project.guidelines:
                say(guidelines(project))
        while True:
            while item is not None:
                self._show(item)
                item = self._answered(item)
            if self._away or not stays:
                return
            self._tell_what_learns()
            # lines that were written for the pairs alone are not asked for more
            if not self.keys.interactive and not self._left_out:
                return
            item = self._earlier()
            if item is None:
                return

    def _tell_what_learns(self) -> None:
        if self.ratings.progress(self.rater, self.batch).usable:
            path = sanitize(str(self.ratings.path), newlines=False)
            say(f"what learns from these votes: ondevice dpo MODEL {path} (or reward, for ppo)")

    @property
    def _help(self) -> str:
        return HELP + self._answers.own.told

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
        asking = Asking(
            self.rater,
            self.name,
            self.cfg.repeat_share,
            self.cfg.seed,
            self._wanted,
            skipped=frozenset(self._skipped),
        )
        turn = next_turn(self.ratings, asking)
        self._total, self._waiting = turn.total, turn.waiting
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
        self._tell_said(left[0])
        self._waiting = left
        return self.ratings.item(left[0])

    def _answered(self, item: Item) -> Item | None:
        """Does what is asked until the item is done with; returns the one to show then, None where
        the rater leaves or nothing is left."""
        began = ticks()
        while True:
            answer = self._answers.ask(len(item.responses))
            dwell = round((ticks() - began) * 1000)
            if answer is None or answer == "q":
                self._away = True
                return None
            if answer == "?":
                say(self._help)
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

    def _earlier(self) -> Item | None:
        """Nothing is left: what was said may still be taken back, or changed. Returns the item to
        show then, None where the rater leaves."""
        while (answer := self._answers.ask(0)) not in (None, "q"):
            assert answer is not None
            if answer == "?":
                say(self._help)
            elif answer not in "uUHy":
                say("there is no pair for that here")
            else:
                try:
                    then = self._looked_back(None, answer)
                except (Damaged, Replaced):
                    raise
                except UserError as problem:
                    say(f"not saved: {problem}")
                    continue
                then = then or self._next()
                if then is not None:
                    return then
        return None

    def _do(self, item: Item, answer: str, dwell: int) -> Item | None:
        """Stores what the answer says; returns the item to show then, `item` itself where it is not
        done with, None for the next one."""
        if answer in "uUHy":
            return self._looked_back(item, answer)
        asked, self._asked, self._offered = self._asked, -1, ()
        name = COMMANDS.get(answer)
        if name is not None and name in _ASIDE:
            self._aside(item, name)
            return item
        if name == "leave_out":
            self._ask_to_leave_waiting()
            return item
        # in another window: it stays
        if name == "skip" and self.ratings.voted(item.id, self._voter) is not None:
            return None
        if self._voted_elsewhere(item, asked):
            return item
        if name == "skip":
            if self._voter == self.rater:
                self.ratings.skip(item.id, self.rater, self.name, dwell_ms=dwell)
            self._skipped.add(item.id)
        else:
            self._vote(item, answer, dwell)
        return None

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
        tell_after(self.ratings, self.rater, item, vote, self.names)
        if self.cfg.goal and self.voted == self.cfg.goal:
            say(f"{self.voted} votes: the goal of this session is reached")
        if self._voter != self.rater:
            return
        try:
            queue_repeat(self.ratings, self.rater, self.batch, self.cfg.repeat_share, self.cfg.seed)
        # the vote is saved; the repeat is due again after the next one
        except UserError as problem:
            say(f"no repeat was queued: {problem}")

    def _aside(self, item: Item, name: str) -> None:
        """What is said beside the vote."""
        if name == "note":
            ask_note(self.ratings, self.keys, item, self.rater, self.name)
        elif name == "flag":
            turn_flag(self.ratings, item, self.rater, self.name, settles=self.cfg.settle)
        elif name == "reasons":
            self.reasons = ask_reasons(self.keys, read_project(self.ratings))
        elif name == "scores":
            ask_scores(self.ratings, self.keys, item, self.rater, self.name)
        elif name == "guidelines":
            say(guidelines(read_project(self.ratings)))
        else:
            self._answers.own = ask_own_keys(self.keys, self._answers.own)

    def _show(self, item: Item) -> None:
        far: Progress | str = self.ratings.progress(self.rater, self.batch)
        if self.cfg.settle:
            far = f"{len(self._waiting)} to settle"
        lines = ["", f"━━ {far} · this session {self.voted} ━━"]
        # everything up to the keys in one piece; what was typed before it stood there was not meant
        # for it
        say("\n".join([*lines, *pair_lines(item, self.names)]))
        self.keys.forget()


def render(summary: Mapping[str, Any]) -> str:
    """A line for people."""
    rater = summary["rater"]
    if summary["simulated"]:
        rater += " (simulated)"
    plural = "" if summary["votes_now"] == 1 else "s"
    progress = Progress(**{field.name: summary[field.name] for field in fields(Progress)})
    return f"{rater}: {summary['votes_now']} vote{plural} now, {progress}"


def login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError) as error:
        raise UserError(
            "the login name is not known", where="rater", hint="give --rater NAME"
        ) from error
