"""What the rating screen says besides the question and its answers: its top line, and why there is
nothing to rate."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content

from ondevice.common.progress import duration
from ondevice.preferences.votes import Progress
from ondevice_tui.widgets.safe import content, line

WANTED = 100  # usable pairs: fewer make a reward model that mostly guesses
USUAL_PACE_S = 8.0  # per pair, before this rater has voted


def top_parts(
    progress: Progress, paces: Sequence[float], rater: str
) -> list[str | tuple[str, str]]:
    """The parts of the top line: how far the rater is, and the time left by the median of their
    `paces` (seconds per pair)."""
    wanted = ""
    if progress.usable < WANTED:
        wanted = f"/{WANTED}"
    ties = f"{progress.ties} ties"
    if progress.ties == 1:
        ties = "1 tie"
    return [
        ("rate  ", "bold"),
        f"pair {min(progress.rated + 1, progress.total)}/{progress.total}",
        f" · {progress.usable}{wanted} usable",
        f" · {ties}",
        f" · {progress.all_bad} bad",
        (_time_left(progress, paces), "$muted"),
        (f"  {rater}", "$muted"),
    ]


def _time_left(progress: Progress, paces: Sequence[float]) -> str:
    left = progress.total - progress.rated
    if not left:
        return ""
    pace = USUAL_PACE_S
    if paces:
        pace = sorted(paces)[len(paces) // 2]
    return f" · {duration(left * pace)} left"


def no_pairs() -> list[Content]:
    """A run without pairs: which keys bring some."""
    return [
        content(
            " No pairs to rate in this run yet. g samples some from a model of this run, or "
            "takes them from a file;",
            "$muted",
        ),
        content(" G samples many at once, as the stage sample.", "$muted"),
    ]


def all_rated(progress: Progress, skipped: int) -> list[Content]:
    """A run whose pairs are all rated or skipped: what they are good for, and what comes next."""
    need = f"{progress.usable} usable pairs"
    if progress.usable < WANTED:
        need += f"; a reward model wants about {WANTED}"
    else:
        need += ": enough for a reward model"
    told = [line((" ✓ ", "bold $success"), "Everything here is rated. ", need)]
    if skipped:
        told.append(content(f" {skipped} skipped: they come again when you come back.", "$muted"))
    told.append(content(" S statistics   g more pairs   esc home", "$muted"))
    return told
