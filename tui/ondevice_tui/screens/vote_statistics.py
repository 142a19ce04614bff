"""What the votes are worth: `ondevice ratings stats` as a card, and how often the reward model
agrees with a rater.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual.content import Content

from ondevice.common.errors import UserError
from ondevice.preferences import vote_statistics
from ondevice.preferences.database import Ratings
from ondevice.preferences.vote_statistics import FEW, POINTS, scale_text, share_text
from ondevice_tui.live_sampling import Pairing
from ondevice_tui.screens.confirm import Details
from ondevice_tui.widgets.safe import cell, content, line, lines

if TYPE_CHECKING:
    from ondevice_tui.screens.rate_sharing import SharingPage

BAR = 24  # cells of an interval
NAME = 18
LOWER = " " * (NAME + 2)  # before the lines under a name


def show_statistics(screen: SharingPage, path: Path, pairing: Pairing) -> None:
    """Counts in a thread (the bootstraps take a second), then opens the card."""
    learned: frozenset[int] = frozenset()
    if pairing.judge is not None:
        learned = pairing.judge.learned
    scores = {item: found for item, found in pairing.scores.items() if found}

    def count() -> None:
        """With a connection of its own."""
        try:
            with Ratings.open(path) as ratings:
                found = vote_statistics.statistics(ratings)
                items = {item.id: item for item in ratings.items()}
                judged = vote_statistics.judged(items, ratings.live_votes(), scores, learned)
            told = told_of(found, judged)
        except UserError as problem:
            told = content(str(problem))
        screen.app.call_from_thread(
            screen.app.push_screen, Details("what the votes are worth", told)
        )

    screen.run_worker(count, thread=True, group="statistics")


def _votes(count: int) -> str:
    if count == 1:
        return "1 vote"
    return f"{count} votes"


def told_of(found: Mapping[str, Any], judged: Mapping[str, Any]) -> Content:
    """All of it, a heading to each part."""
    counts = [f"{_votes(found['votes'])}, {found['simulated_votes']} of them by a program"]
    for word, count in found["outcomes"].items():
        if count:
            counts.append(f"{count} {word.replace('_', ' ')}")
    if found["settled"]:
        counts.append(f"{found['settled']} disagreements settled")
    rows = [line(", ".join(counts)), content("")]
    rows += _raters(found["raters"])
    rows += _agreement(found["agreement"])
    rows += _biases(found)
    rows += _scales(found["rubric"])
    rows += _strengths(found)
    rows += _judge(judged)
    return lines(rows[:-1])


def _raters(raters: Mapping[str, Any]) -> list[Content]:
    rows = [_head("each rater", "agreement with oneself on repeats; gold answers hit")]
    for name, rater in raters.items():
        given = f" {_votes(rater['votes'])}  {_pace(rater)}"
        rows.append(line(" ", (cell(name, NAME), "bold"), given))
        again = "no repeat yet"
        if rater["repeats"]["n"]:
            again = kappa(rater["repeats"])
        rows.append(line(LOWER, "itself ", again))
        if rater["gold"]["of"]:
            rows.append(line(LOWER, "gold   ", share(rater["gold"])))
    return [*rows, content("")]


def _pace(rater: Mapping[str, Any]) -> str:
    """The rater's median time per vote, and how many votes were hasty."""
    told = ""
    if rater["median_dwell_ms"] is not None:
        told = f"{rater['median_dwell_ms'] / 1000:.1f} s each"
    if rater["hasty"]:
        told += f", {rater['hasty']} under 1 s"
    return told


def _agreement(found: Mapping[str, Any]) -> list[Content]:
    rows = [_head("agreement of raters", "1 always, 0 as by chance")]
    pairs = found["pairs_of_raters"]
    for two in pairs:
        rows.append(line(" ", cell(" and ".join(two["raters"]), NAME), " Cohen ", kappa(two)))
    if found["fleiss"] and len(pairs) > 1:
        rows.append(line(" ", cell("all of them", NAME), " Fleiss ", kappa(found["fleiss"])))
    if len(pairs) > 1:
        rows.append(
            line(" ", cell("all of them", NAME), " Krippendorff ", kappa(found["krippendorff"]))
        )
    if len(rows) == 1:
        rows.append(
            content(" No pair was rated by two people yet: i gives another name.", "$muted")
        )
    return [*rows, content("")]


def _biases(found: Mapping[str, Any]) -> list[Content]:
    return [
        _head("biases", "share of the decided pairs, with its 95 % interval"),
        line(" position  the first shown won  ", share(found["first_shown"])),
        line(" length    the longer won       ", share(found["longer"])),
        content(""),
    ]


def _scales(rubric: Mapping[str, Any]) -> list[Content]:
    """Scores on the project's scales; nothing where there are none."""
    if not rubric:
        return []
    rows = [_head("scores", "their mean, how far raters agree, and by who wrote the answer")]
    for scale, found in rubric.items():
        rows.append(line(" ", (cell(scale, NAME), "bold"), " ", scale_text(found)))
        for name, of in found["sources"].items():
            rows.append(line(LOWER, f"{of['mean']:.2f}  {name} ({of['scores']})"))
    return [*rows, content("")]


def _strengths(found: Mapping[str, Any]) -> list[Content]:
    strengths = found["strengths"]
    rows = [_head("checkpoints", "Bradley–Terry, in Elo's points, and how often each won")]
    if strengths is None:
        return [*rows, content(" No two named checkpoints were compared.", "$muted"), content("")]
    ends = [POINTS * min(strengths["low"]), POINTS * max(strengths["high"])]
    for k, source in enumerate(strengths["sources"]):
        at = POINTS * strengths["strength"][k]
        low = POINTS * strengths["low"][k]
        high = POINTS * strengths["high"][k]
        rows.append(
            line(
                " ",
                (cell(source, NAME), "bold"),
                f" {at:+5.0f} ",
                (interval(at, low, high, ends), "$primary"),
                f" [{low:+.0f}, {high:+.0f}]",
            )
        )
        rows.append(line(LOWER, "won ", share(found["win_rate"][source])))
        if k < len(strengths["beats"]):
            rows.append(_beats_next(*strengths["beats"][k]))
    return [*rows, content("")]


def _beats_next(p: float, low: float, high: float) -> Content:
    """How likely a source is preferred to the next one, and whether that is resolved."""
    told = f"beats the next with {p:.2f} [{low:.2f}, {high:.2f}]"
    if low < 0.5 < high:
        return line(LOWER, told, ("  not resolved: more votes", "$warning"))
    return line(LOWER, told)


def _judge(judged: Mapping[str, Any]) -> list[Content]:
    rows = [_head("the reward model", "how often it orders a pair as the rater did")]
    for name, found in judged.items():
        new = share(found["new"])
        learned = share(found["learned"])
        rows.append(line(" ", (cell(name, NAME), "bold"), " pairs it has not learned from ", new))
        rows.append(line(LOWER, "pairs it has learned from     ", learned))
    if not judged:
        rows.append(content(" None yet, or it has not read the rated pairs so far.", "$muted"))
    return [*rows, content("")]


def share(found: Mapping[str, Any]) -> str:
    """`0.53 [0.48, 0.58] (228 of 431)`."""
    if not found["of"]:
        return "–"
    return share_text(found)


def kappa(found: Mapping[str, Any]) -> str:
    """`κ 0.61, 80% alike (n 12, few)`: below FEW it says little."""
    told = "κ –"
    if found["kappa"] is not None:
        told = f"κ {found['kappa']:.2f}"
    if found["raw"] is not None:
        told += f", {found['raw']:.0%} alike"
    if found["n"] < FEW:
        return f"{told} (n {found['n']}, few)"
    return f"{told} (n {found['n']})"


def interval(at: float, low: float, high: float, ends: list[float]) -> str:
    """`  ├──●───┤  ` between the two ends, in BAR cells."""

    def place(value: float) -> int:
        apart = ends[1] - ends[0]
        if not apart:
            return 0
        found = round((value - ends[0]) / apart * (BAR - 1))
        return min(max(found, 0), BAR - 1)

    cells = [" "] * BAR
    cells[place(low) : place(high) + 1] = "─" * (place(high) + 1 - place(low))
    cells[place(low)] = "├"
    cells[place(high)] = "┤"
    cells[place(at)] = "●"
    return "".join(cells)


def _head(title: str, told: str) -> Content:
    return line((title, "bold $primary"), "   ", (told, "$muted"))
