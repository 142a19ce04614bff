"""What a rater says in `ondevice rate` beside the votes, and what they are told after one."""

from __future__ import annotations

from collections.abc import Sequence

from ondevice.common.errors import UserError
from ondevice.common.sanitize import sanitize
from ondevice.preferences.database import Ratings
from ondevice.preferences.history import clear_flags, flag, gold_hit, gold_score
from ondevice.preferences.own_keys import OwnKeys, keys_text, own_keys
from ondevice.preferences.project import Project, read_project
from ondevice.preferences.terminal_keys import Keys
from ondevice.preferences.terminal_text import say
from ondevice.preferences.votes import Item, Vote


def ask_note(ratings: Ratings, keys: Keys, item: Item, rater: str, session: str) -> None:
    """A line of text on the pair."""
    say("note: ", end="")
    note = keys.line()
    if not note:
        say("no note")
        return
    ratings.note(item.id, rater, session, note)
    say("noted")


def turn_flag(ratings: Ratings, item: Item, rater: str, session: str, *, settles: bool) -> None:
    """Sets the rater's flag or takes it back; where a disagreement is settled, everybody's flag on it
    is dealt with."""
    if settles:
        by = clear_flags(ratings, item.id, rater, session)
        if by:
            say(sanitize(f"looked at: no flag of {', '.join(by)} any more", newlines=False))
            return
    flagged = flag(ratings, item.id, rater, session)
    say("flagged" if flagged else "the flag is taken back")


def ask_reasons(keys: Keys, project: Project) -> list[str]:
    """The reasons of the next vote, by their numbers."""
    known = project.reasons
    say(sanitize("  ".join(f"{n} {reason}" for n, reason in enumerate(known, 1))))
    say("numbers (Enter: none) > ", end="")
    typed = keys.line() or ""
    chosen = [reason for n, reason in enumerate(known, 1) if str(n) in typed]
    say(sanitize(f"why: {', '.join(chosen) or 'no reason'}", newlines=False))
    return chosen


def ask_own_keys(keys: Keys, now: OwnKeys) -> OwnKeys:
    """The rater's own keys from now on; they are remembered."""
    if not keys.interactive:
        say("keys of your own are for a terminal")
        return now
    told = keys_text(now.own) or "none"
    say(f"keys of your own: {told}. Others, like left=a, right=l (Enter: as they are) > ", end="")
    typed = (keys.line() or "").strip()
    if not typed:
        return now
    try:
        found = own_keys(typed)
    except UserError as problem:
        say(f"not taken: {problem}")
        return now
    say(f"your keys: {keys_text(found) or 'none'}")
    return OwnKeys(found)


def tell_after(ratings: Ratings, rater: str, item: Item, vote: Vote, names: Sequence[str]) -> None:
    """Whether a known answer was hit, who wrote the answers: what the project's raters have agreed
    to be told after a vote. `names`: of the answers as they are shown."""
    project = read_project(ratings)
    if project.feedback and item.kind == "gold":
        hits, of = gold_score(ratings, rater)
        best = names[item.shown.index(item.gold or 0)]
        hit = "as you said" if gold_hit(item, vote) else "you said otherwise"
        say(f"known answer: {best} is better, {hit} ({hits} of {of} right)")
    if project.reveal and item.kind == "normal":
        for letter, slot in zip(names, vote.shown, strict=False):
            source = item.responses[slot].source or "nobody known"
            say(sanitize(f"{letter} was by {source}", newlines=False))
