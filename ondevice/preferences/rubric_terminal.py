"""Scores of answers in the plain terminal: a line of digits for each scale of the project."""

from __future__ import annotations

from ondevice.common.sanitize import sanitize
from ondevice.preferences.database import Ratings
from ondevice.preferences.project import read_project
from ondevice.preferences.rubric import LEAST, MOST, give, in_words, scores_of
from ondevice.preferences.terminal_keys import Keys
from ondevice.preferences.terminal_text import say
from ondevice.preferences.votes import Item


def ask_scores(ratings: Ratings, keys: Keys, item: Item, rater: str, session: str) -> None:
    """Asks for the answers from left to right, and stores all of it or, where a line is wrong,
    nothing."""
    scales = read_project(ratings).rubric
    if not scales:
        say("this project has no scales: ondevice ratings project RUN --rubric helpful,correct")
        return
    told = in_words(scores_of(ratings, item.id, rater), item.shown, scales)
    if told:
        say(sanitize(f"so far: {told}", newlines=False))
    say(f"a digit for each answer, {LEAST} to {MOST}, 0 for none; Enter leaves a scale as it is")
    given: dict[tuple[int, str], int] = {}
    for scale in scales:
        say(sanitize(f"{scale} > ", newlines=False), end="")
        typed = "".join((keys.line() or "").split())
        if len(typed) > len(item.shown) or set(typed) - set("012345"):
            shown = sanitize(typed, newlines=False, limit=40)
            say(f"{shown!r} is not {len(item.shown)} digits from 0 to {MOST}: nothing is stored")
            return
        given |= {(slot, scale): int(mark) for slot, mark in zip(item.shown, typed, strict=False)}
    if not give(ratings, item.id, rater, session, given):
        say("no new score")
        return
    told = in_words(scores_of(ratings, item.id, rater), item.shown, scales)
    say(sanitize(f"scored: {told or 'nothing any more'}", newlines=False))
