"""What the votes are worth: `ondevice ratings stats` as a card, and how often the reward model
agrees with a rater.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual.content import Content

from ondevice.common.errors import UserError
from ondevice.preferences.database import Ratings
from ondevice_tui.live_sampling import Pairing
from ondevice_tui.screens.confirm import Details
from ondevice_tui.widgets.safe import cell, content, line, lines

if TYPE_CHECKING:
    from ondevice_tui.screens.rate import RateScreen

POINTS = 173.7178  # Elo's points for a log-odds of 1: 400 / ln 10
BAR = 24  # cells of an interval
NAME = 18
FEW = 20


def show_statistics(screen: RateScreen, path: Path, pairing: Pairing) -> None:
    """Counts in a thread (the bootstraps take a second), then opens the card."""
    learned = pairing.judge.learned if pairing.judge is not None else frozenset()
    scores = {item: found for item, found in pairing.scores.items() if found}

    def count() -> None:
        """With a connection of its own."""
        from ondevice.preferences.vote_statistics import judged, statistics

        try:
            with Ratings.open(path) as ratings:
                found = statistics(ratings)
                items = {item.id: item for item in ratings.items()}
                told = told_of(found, judged(items, ratings.live_votes(), scores, learned))
        except UserError as problem:
            told = content(str(problem))
        screen.app.call_from_thread(
            screen.app.push_screen, Details("what the votes are worth", told)
        )

    screen.run_worker(count, thread=True, group="statistics")


def _votes(count: int) -> str:
    return f"{count} vote{'' if count == 1 else 's'}"


def told_of(found: Mapping[str, Any], judged: Mapping[str, Any]) -> Content:
    """All of it, a heading to each part."""
    counts = [f"{_votes(found['votes'])}, {found['simulated_votes']} of them by a program"]
    counts += [
        f"{count} {word.replace('_', ' ')}" for word, count in found["outcomes"].items() if count
    ]
    rows = [line(", ".join(counts)), content("")]
    rows += _raters(found["raters"]) + _agreement(found["agreement"]) + _biases(found)
    rows += _strengths(found) + _judge(judged)
    return lines(rows[:-1])


def _raters(raters: Mapping[str, Any]) -> list[Content]:
    rows = [_head("each rater", "agreement with oneself on repeats; gold answers hit")]
    for name, rater in raters.items():
        pace = rater["median_dwell_ms"]
        took = f"{pace / 1000:.1f} s each" if pace is not None else ""
        hasty = f", {rater['hasty']} under 1 s" if rater["hasty"] else ""
        again = kappa(rater["repeats"]) if rater["repeats"]["n"] else "no repeat yet"
        rows.append(
            line(" ", (cell(name, NAME), "bold"), f" {_votes(rater['votes'])}  {took}{hasty}")
        )
        rows.append(line(" " * (NAME + 2), "itself ", again))
        if rater["gold"]["of"]:
            rows.append(line(" " * (NAME + 2), "gold   ", share(rater["gold"])))
    return [*rows, content("")]


def _agreement(found: Mapping[str, Any]) -> list[Content]:
    rows = [_head("agreement of raters", "1 always, 0 as by chance")]
    for two in found["pairs_of_raters"]:
        rows.append(line(" ", cell(" and ".join(two["raters"]), NAME), " Cohen ", kappa(two)))
    if found["fleiss"] and len(found["pairs_of_raters"]) > 1:
        rows.append(line(" ", cell("all of them", NAME), " Fleiss ", kappa(found["fleiss"])))
    if len(found["pairs_of_raters"]) > 1:
        rows.append(
            line(" ", cell("all of them", NAME), " Krippendorff ", kappa(found["krippendorff"]))
        )
    if len(rows) == 1:
        rows.append(
            content(" No pair was rated by two people yet: a gives another name.", "$muted")
        )
    return [*rows, content("")]


def _biases(found: Mapping[str, Any]) -> list[Content]:
    return [
        _head("biases", "share of the decided pairs, with its 95 % interval"),
        line(" position  the first shown won  ", share(found["first_shown"])),
        line(" length    the longer won       ", share(found["longer"])),
        content(""),
    ]


def _strengths(found: Mapping[str, Any]) -> list[Content]:
    strengths = found["strengths"]
    rows = [_head("checkpoints", "Bradley–Terry, in Elo's points, and how often each won")]
    if strengths is None:
        return [*rows, content(" No two named checkpoints were compared.", "$muted"), content("")]
    ends = [POINTS * edge for edge in (min(strengths["low"]), max(strengths["high"]))]
    for k, source in enumerate(strengths["sources"]):
        at, low, high = (POINTS * strengths[key][k] for key in ("strength", "low", "high"))
        drawn = interval(at, low, high, ends)
        rows.append(
            line(
                " ",
                (cell(source, NAME), "bold"),
                f" {at:+5.0f} ",
                (drawn, "$primary"),
                f" [{low:+.0f}, {high:+.0f}]",
            )
        )
        rows.append(line(" " * (NAME + 2), "won ", share(found["win_rate"][source])))
        if k < len(strengths["beats"]):
            p, low, high = strengths["beats"][k]
            unsure = ("  not resolved: more votes", "$warning") if low < 0.5 < high else ""
            rows.append(
                line(
                    " " * (NAME + 2), f"beats the next with {p:.2f} [{low:.2f}, {high:.2f}]", unsure
                )
            )
    return [*rows, content("")]


def _judge(judged: Mapping[str, Any]) -> list[Content]:
    rows = [_head("the reward model", "how often it orders a pair as the rater did")]
    for name, found in judged.items():
        rows.append(
            line(
                " ",
                (cell(name, NAME), "bold"),
                " pairs it has not learned from ",
                share(found["new"]),
            )
        )
        rows.append(
            line(" " * (NAME + 2), "pairs it has learned from     ", share(found["learned"]))
        )
    if not judged:
        rows.append(content(" None yet, or it has not read the rated pairs so far.", "$muted"))
    return [*rows, content("")]


def share(found: Mapping[str, Any]) -> str:
    """`0.53 [0.48, 0.58] (228 of 431)`."""
    if not found["of"]:
        return "–"
    return f"{found['share']:.2f} [{found['low']:.2f}, {found['high']:.2f}] ({found['count']:g} of {found['of']})"


def kappa(found: Mapping[str, Any]) -> str:
    """`κ 0.61, 80% alike (n 12, few)`: below FEW it says little."""
    value = "–" if found["kappa"] is None else f"{found['kappa']:.2f}"
    raw = "" if found["raw"] is None else f", {found['raw']:.0%} alike"
    return f"κ {value}{raw} (n {found['n']}{', few' if found['n'] < FEW else ''})"


def interval(at: float, low: float, high: float, ends: list[float]) -> str:
    """`  ├──●───┤  ` between the two ends, in BAR cells."""

    def place(value: float) -> int:
        apart = ends[1] - ends[0]
        return min(max(round((value - ends[0]) / apart * (BAR - 1)) if apart else 0, 0), BAR - 1)

    cells = [" "] * BAR
    cells[place(low) : place(high) + 1] = "─" * (place(high) + 1 - place(low))
    cells[place(low)], cells[place(high)], cells[place(at)] = "├", "┤", "●"
    return "".join(cells)


def _head(title: str, told: str) -> Content:
    return line((title, "bold $primary"), "   ", (told, "$muted"))
