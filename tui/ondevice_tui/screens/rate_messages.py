"""What the rating screen says besides the question and its answers: its top line, and why there is
nothing to rate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from textual.content import Content

from ondevice.common.progress import duration
from ondevice.preferences.history import Marks, gold_hit
from ondevice.preferences.votes import Item, Progress, Vote, brief, said
from ondevice_tui.widgets.safe import content, line

BAR, SHORT_BAR = 10, 8  # cells of the way to WANTED
NARROW, ROOMY = 80, 90  # cells of the top line
WANTED = 100  # usable pairs: fewer make a reward model that mostly guesses
USUAL_PACE_S = 8.0  # per pair, before this rater has voted


def top_parts(
    progress: Progress,
    total: int,
    paces: Sequence[float],
    rater: str,
    *,
    votes_now: int,
    goal: int,
    wanted: str,
    width: int,
) -> list[str | tuple[str, str]]:
    """The parts of the top line: how far the rater is of `total`, the votes of this session, and
    the time left by the median of their `paces` (seconds per pair), as far as `width` cells reach."""
    narrow = width < NARROW
    usable = f" · {progress.usable} usable"
    bar = ""
    if progress.usable < WANTED and narrow:
        usable = f" · {progress.usable}/{WANTED} usable"
    elif progress.usable < WANTED:
        usable += f" of {WANTED} "
        cells = BAR if width > ROOMY else SHORT_BAR
        full = progress.usable * cells // WANTED
        bar = "▓" * full + "░" * (cells - full)
    short = narrow or (goal and width <= ROOMY)
    now = f" · {'' if short else 'this '}session {votes_now}"
    if goal:
        now += f" of {goal}"
    parts: list[str | tuple[str, str]] = [
        ("rate ", "bold"),
        f"{progress.rated} of {total}",
        usable,
        (bar, "$primary"),
        now,
        (f" · {rater}", "$primary"),
    ]
    if wanted:
        parts.append((f" · only {wanted}", "$warning"))
    if width > ROOMY:
        parts.append((_time_left(total - progress.rated, paces), "$muted"))
    return parts


def _time_left(left: int, paces: Sequence[float]) -> str:
    if not left:
        return ""
    pace = USUAL_PACE_S
    if paces:
        pace = sorted(paces)[len(paces) // 2]
    return f" · {duration(left * pace)} left"


def last_line(newest: Vote | None, marks: Marks) -> Content:
    """The vote before, what takes it back, and what the history has to look at."""
    parts: list[str | Content | tuple[str, str]] = [" "]
    if newest is not None:
        why = f" ({newest.reason})" if newest.reason else ""
        parts += [("last: ", "$muted"), (f"{brief(newest)}{why}", "bold"), "   "]
        parts += [("u", "bold $primary"), (" takes it back   ", "$muted")]
    there = []
    for count, word in ((marks.flagged, "flagged"), (marks.noted, "noted")):
        if count:
            there.append(f"{count} {word}")
    if marks.open:
        there.append(f"{marks.open} to settle")
    if newest is not None or there:
        told = f" ({', '.join(there)})" if there else ""
        parts += [("H", "bold $primary"), (f" history{told}", "$muted")]
    return line(*parts)


def feedback(item: Item, vote: Vote, right: int, of: int) -> str:
    """What a rater is told after a pair whose better answer is known."""
    assert item.gold is not None
    place = item.shown.index(item.gold) + 1
    told = f"known answer: {place} is better, as you said"
    if not gold_hit(item, vote):
        told = f"known answer: {place} is better, you said {said(vote)}"
    return f"{told} ({right} of {of} right)"


def revealed(item: Item, vote: Vote, wins: Counter[str]) -> str:
    """Who wrote the answers of a pair that has been voted on, and who has won how often in this
    session; counts this vote."""
    names = []
    for place, slot in enumerate(vote.shown, 1):
        names.append(f"{place} was by {item.responses[slot].source or 'nobody known'}")
    if vote.outcome == "ranked":
        wins[item.responses[vote.ranking[0]].source or "nobody known"] += 1
    led = ", ".join(f"{name} {count}" for name, count in wins.most_common(4))
    return f"{', '.join(names)}   won: {led or 'nobody yet'}"


def no_pairs() -> list[Content]:
    """A run without pairs: which keys bring some."""
    return [
        content(
            " No pairs to rate in this run yet. m samples some from a model of this run, or "
            "takes them from a file;",
            "$muted",
        ),
        content(" M samples many at once, as the stage sample.", "$muted"),
    ]


def all_rated(
    progress: Progress, skipped: int, marks: Marks, overlap: int, wanted: str
) -> list[Content]:
    """A run whose pairs are all rated or skipped: what they are good for, and what comes next."""
    need = f"{progress.usable} usable pair{'' if progress.usable == 1 else 's'}"
    if progress.usable < WANTED:
        need += f"; a reward model wants about {WANTED}"
    else:
        need += ": enough for a reward model"
    everything = "Everything here is rated. "
    if wanted:
        everything = f"Nothing more of {wanted}. "
    elif overlap:
        everything = "Everything that you are asked is rated. "
    told = [line((" ✓ ", "bold $success"), everything, need)]
    if skipped:
        told.append(content(f" {skipped} skipped: they come again when you come back.", "$muted"))
    if marks.pairs >= 0 and marks.pairs != progress.usable:
        told.append(content(f" By all raters together: {marks.pairs} pairs to learn from."))
    if marks.open:
        told.append(
            line(" ", ("H", "bold $primary"), f" settles what people disagree on: {marks.open}")
        )
    if progress.usable or marks.pairs > 0:
        told.append(_keys(("P", "dpo on these votes"), ("W", "reward model")))
    others = [("m", "more pairs"), ("S", "statistics"), ("H", "history")]
    if wanted:
        others = [("/", "asks for all again"), *others]
    return [*told, _keys(*others)]


def _keys(*keys: tuple[str, str]) -> Content:
    """A line of keys, each with what it does."""
    parts: list[str | Content | tuple[str, str]] = []
    for key, word in keys:
        parts += [" ", (key, "bold $primary"), f" {word}  "]
    return line(*parts)
