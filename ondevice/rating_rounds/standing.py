"""How the versions stand: what the person says of them in blind pairs against the start, and what
that cost.

A version's pairs against the start were written once it was there, on prompts that were not asked
before, and it has learned from none of them: they count for it, and the versions after it learn
from them. A share's interval is Wilson's, ties ½, prompts counted once (`intervals.clustered`); the
curve is Bradley–Terry's over all such pairs with bootstraps over prompts.

A version is refused where the upper end of its share's interval lies below one half, or where a
skill that the exam measures has fallen by more than the interval of the difference (Newcombe 1998,
method 10). Bits per byte are shown and refuse nothing: they have no interval here.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ondevice.common import bounded
from ondevice.common.intervals import Share, clustered, wilson
from ondevice.common.json_files import read_json
from ondevice.common.numbers import is_number
from ondevice.preferences.database import Ratings
from ondevice.preferences.pairs import pairs_of
from ondevice.preferences.strengths import Comparison, comparisons, preferred_to
from ondevice.rating_rounds.places import RoundsFolder, Version, name_of

DUEL = "measure"
"""What an item's `why` says where a version meets the start in it."""
FEW = 10
"""Pairs below which nothing is known of a version."""
_SKILLS = ("exact_match", "reasoning")


@dataclass(frozen=True)
class Standing:
    """One version. `learned`: pairs that it learned from; `blind`: how often it was preferred to
    the start; `curve` the same by Bradley–Terry (share, low, high); `skills` name → share, and
    bits_per_byte; `refused` says why it is not used, empty where it is."""

    number: int
    state: str
    learned: int
    blind: Share
    curve: tuple[float, float, float] | None
    skills: Mapping[str, float] = field(default_factory=dict)
    refused: str = ""


@dataclass(frozen=True)
class Rounds:
    """All versions, the one in use (0: the start), and the usable votes so far and since the newest
    version was begun."""

    versions: list[Standing]
    current: int
    usable: int
    since: int
    sentence: str
    start: Mapping[str, float] = field(default_factory=dict)

    def mapping(self) -> dict[str, Any]:
        """As plain values, ready for JSON."""
        return asdict(self)


def standing(folder: RoundsFolder, ratings: Ratings, *, simulated: bool = False) -> Rounds:
    """What is known now. `simulated`: votes of programs count too."""
    compared = duels(ratings, simulated=simulated)
    curves = {one.source: one for one in preferred_to(compared, name_of(0))}
    start = skills_of(start_marks(folder))
    found = []
    current = 0
    learned = 0
    for version in folder.versions():
        learned = _lines(version.votes)
        marks = _marks(version)
        blind = share_of(compared, version.name)
        if marks is not None:
            refused = refusal(blind, start_marks(folder), marks)
        else:
            refused = ""
        state = _state(version, refused)
        if state == "ready":
            current = version.number
        curve = curves.get(version.name)
        found.append(
            Standing(
                version.number,
                state,
                learned,
                blind,
                None if curve is None else (curve.share, curve.low, curve.high),
                skills_of(marks or {}),
                refused or version.why_failed(),
            )
        )
    usable = len(pairs_of(ratings, simulated=simulated))
    since = max(usable - learned, 0)  # fewer where votes were taken back
    return Rounds(found, current, usable, since, sentence(found, current), start)


def _lines(file: Path) -> int:
    """How many rows it has, good or not: a version was begun with so many."""
    with bounded.open_plain(file) as rows:
        return sum(1 for _ in bounded.lines(rows))


def start_marks(folder: RoundsFolder) -> Mapping[str, Any]:
    """What the exam says of the start; empty where it was not taken."""
    return read_json(folder.start)


def _marks(version: Version) -> Mapping[str, Any] | None:
    """What the exam says of a version; None where it is not there yet."""
    last = version.last
    if last is None:
        return None
    marks = (last.done_record() or {}).get("marks")
    return marks if isinstance(marks, Mapping) else {}


def _state(version: Version, refused: str) -> str:
    if version.last is not None:
        return "refused" if refused else "ready"
    if version.why_failed():
        return "failed"
    return "training" if version.working else "waiting"


def duels(ratings: Ratings, *, simulated: bool = False) -> list[Comparison]:
    """What was said of pairs of a version and the start."""
    items = {item.id: item for item in ratings.items() if item.meta.get("why") == DUEL}
    votes = [vote for vote in ratings.live_votes(simulated=simulated) if vote.item in items]
    return comparisons(items, votes)


def share_of(compared: Iterable[Comparison], source: str) -> Share:
    """How often a source was preferred to the other one, ties as ½."""
    scores: list[tuple[Hashable, float]] = []
    for one in compared:
        if source in (one.left, one.right):
            scores.append((one.prompt_sha, one.score if one.left == source else 1 - one.score))
    return clustered(scores)


def refusal(blind: Share, start: Mapping[str, Any], marks: Mapping[str, Any]) -> str:
    """Why a version is not used; empty where it is."""
    if blind.of >= FEW and blind.high is not None and blind.high < 0.5:
        return f"you prefer the start: {100 * blind.high:.0f} % at most in {blind.of} pairs"
    before, now = counts_of(start), counts_of(marks)
    for name in _SKILLS:
        if name in before and name in now:
            change, high = difference(before[name], now[name])
            if high < 0:
                return f"{name.replace('_', ' ')} fell by {-100 * change:.0f} points"
    return ""


def difference(before: tuple[int, int], now: tuple[int, int]) -> tuple[float, float]:
    """(by how much a share of (right, asked) changed, the upper end of its 95 % interval)."""
    one, other = wilson(*before), wilson(*now)
    if one.share is None or other.share is None:
        return 0.0, 0.0
    assert one.low is not None and other.high is not None
    change = other.share - one.share
    return change, change + math.hypot(other.high - other.share, one.share - one.low)


def counts_of(marks: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Skill → (right, asked), of those that were measured."""
    found: dict[str, tuple[int, int]] = {}
    kinds = marks.get("by_kind")
    if isinstance(kinds, Mapping) and kinds:
        found["exact_match"] = (
            sum(int(right) for right, _ in kinds.values()),
            sum(int(asked) for _, asked in kinds.values()),
        )
    solved = marks.get("reasoning")
    if isinstance(solved, Mapping) and solved.get("asked"):
        asked = int(solved["asked"])
        found["reasoning"] = (round(float(solved["accuracy"]) * asked), asked)
    return found


def skills_of(marks: Mapping[str, Any]) -> dict[str, float]:
    """The shares of right answers, and bits per byte, of what was measured."""
    found = {name: right / asked for name, (right, asked) in counts_of(marks).items() if asked}
    bits = marks.get("bits_per_byte")
    if is_number(bits):
        found["bits_per_byte"] = float(bits)
    return found


def sentence(versions: Iterable[Standing], current: int) -> str:
    """What a person is told of the version in use, or of the newest one that they refused."""
    known = [one for one in versions if one.state in ("ready", "refused")]
    if not known:
        return "there is no version yet"
    chosen = next((one for one in known if one.number == current), known[-1])
    words = told(chosen)
    if chosen.state == "refused":
        return f"{words}; it is not used ({chosen.refused})"
    return words


def told(one: Standing) -> str:
    """One version against the start, in words."""
    blind = one.blind
    if blind.of < FEW or blind.share is None or blind.low is None or blind.high is None:
        plural = "" if blind.of == 1 else "s"
        return f"version {one.number} against the start: not yet known ({blind.of} pair{plural})"
    return (
        f"you prefer version {one.number} to the start in {100 * blind.share:.0f} % of "
        f"{blind.of} pairs ({100 * blind.low:.0f} to {100 * blind.high:.0f})"
    )


def render(found: Mapping[str, Any]) -> str:
    """A table for people in 80 columns, of `Rounds.mapping`, why versions are not used, and the
    sentence."""
    lines = [
        "version    learned  preferred to start      exact reasoning bits/byte  state",
        _row("start", "", "", found["start"], ""),
    ]
    for one in found["versions"]:
        blind = one["blind"]
        share = "not yet known"
        if blind["of"] >= FEW:
            share = (
                f"{100 * blind['share']:.0f} % of {blind['of']} "
                f"({100 * blind['low']:.0f} to {100 * blind['high']:.0f})"
            )
        elif blind["of"]:
            share = f"not yet known ({blind['of']})"
        if one["number"] == found["current"]:
            state = "in use"
        else:
            state = one["state"]
        lines.append(_row(name_of(one["number"]), str(one["learned"]), share, one["skills"], state))
    lines.append("")
    for one in found["versions"]:
        if one["refused"]:
            lines.append(f"{name_of(one['number'])} {one['state']}: {one['refused']}")
    lines.append(found["sentence"])
    lines.append(f"{found['usable']} usable votes, {found['since']} since the newest version began")
    return "\n".join(lines)


def _row(name: str, learned: str, share: str, skills: Mapping[str, float], state: str) -> str:
    figures = []
    for skill in _SKILLS:
        figures.append(f"{100 * skills[skill]:.1f}%" if skill in skills else "–")
    bits = f"{skills['bits_per_byte']:.3f}" if "bits_per_byte" in skills else "–"
    row = f"{name:<11}{learned:>7}  {share:<22} {figures[0]:>6} {figures[1]:>9} {bits:>9}  {state}"
    return row.rstrip()
