"""Scores of single answers, 1 to 5, on the scales that a project has (`Project.rubric`): helpful, correct, …

They stand beside the votes and are kept as these are: only ever added. A later score of the same
rater on the same answer and scale replaces an earlier one; 0 takes it back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ondevice.common.clock import clock
from ondevice.common.errors import UserError
from ondevice.preferences.agreement import interval_alpha
from ondevice.preferences.database import Ratings, app_name
from ondevice.preferences.sqlite_store import clean
from ondevice.preferences.votes import Item, is_simulated

LEAST, MOST = 1, 5
TAKEN_BACK = 0
Scores = Mapping[tuple[int, str], int]
"""(slot, scale) → score."""


@dataclass(frozen=True)
class Score:
    """A row of the table `score`."""

    id: int
    item: int
    slot: int
    rater: str
    session: str
    scale: str
    score: int
    at: float
    app: str


def give(ratings: Ratings, item: int, rater: str, session: str, scores: Scores) -> int:
    """Stores the scores that differ from this rater's earlier ones, all or none; returns how many.
    Raises UserError for one that is not 1 to 5 (or 0, which takes it back), and for an answer that
    the item has not."""
    stored = 0
    with ratings.transaction():
        width = len(ratings.item(item).responses)
        before = scores_of(ratings, item, rater)
        for (slot, scale), score in scores.items():
            if not TAKEN_BACK <= score <= MOST or not 0 <= slot < width:
                raise UserError(
                    f"{score} for answer {slot + 1} of {width}",
                    where=scale,
                    hint=f"{LEAST} to {MOST} for an answer that is there",
                )
            if before.get((slot, scale), TAKEN_BACK) != score:
                row = {
                    "item": item,
                    "slot": slot,
                    "rater": rater,
                    "session": session,
                    "scale": scale,
                    "score": score,
                    "at": clock(),
                    "app": app_name(),
                }
                ratings.insert_score(row)
                stored += 1
    return stored


def scores_of(ratings: Ratings, item: int, rater: str) -> dict[tuple[int, str], int]:
    """What this rater's scores on an item are now."""
    rows = ratings.rows(
        "SELECT slot, scale, score FROM score WHERE item = ? AND rater = ? ORDER BY id",
        (item, clean(rater)),
    )
    newest = {(row["slot"], row["scale"]): row["score"] for row in rows}
    return {where: score for where, score in newest.items() if score != TAKEN_BACK}


def every_score(
    ratings: Ratings,
    batch: str | None = None,
    *,
    raters: Iterable[str] = (),
    simulated: bool = True,
) -> list[Score]:
    """Every row ever written, the oldest first."""
    rows = ratings.rows(
        "SELECT s.* FROM score s JOIN item ON item.id = s.item WHERE ? IS NULL OR batch = ? "
        "ORDER BY s.id",
        (batch, batch),
    )
    wanted = {clean(rater) for rater in raters}
    found = []
    for row in rows:
        if wanted and row["rater"] not in wanted:
            continue
        if simulated or not is_simulated(row["rater"]):
            found.append(Score(**dict(row)))
    return found


def live_scores(scores: Iterable[Score]) -> list[Score]:
    """Those that count, of every row in its order."""
    newest: dict[tuple[int, int, str, str], Score] = {}
    for score in scores:
        newest[score.item, score.slot, score.rater, score.scale] = score
    return [score for score in newest.values() if score.score != TAKEN_BACK]


def by_scale(items: Mapping[int, Item], scores: Sequence[Score]) -> dict[str, dict[str, Any]]:
    """Of each scale: how many scores, their mean, that of each source, and how far raters agree on
    the same answers (Krippendorff's alpha for differences)."""
    of_scale: dict[str, list[Score]] = {}
    for score in scores:
        of_scale.setdefault(score.scale, []).append(score)
    found = {}
    for scale, given in sorted(of_scale.items()):
        sources: dict[str, list[int]] = {}
        answers: dict[tuple[int, int], list[int]] = {}
        for score in given:
            source = items[score.item].responses[score.slot].source
            sources.setdefault(source, []).append(score.score)
            answers.setdefault((score.item, score.slot), []).append(score.score)
        agreement = interval_alpha(answers.values())
        found[scale] = {
            "scores": len(given),
            "mean": _mean([score.score for score in given]),
            "sources": {
                name: {"scores": len(of), "mean": _mean(of)}
                for name, of in sorted(sources.items(), key=lambda each: -_mean(each[1]))
            },
            "agreement": {"n": agreement.n, "raw": agreement.raw, "alpha": agreement.kappa},
        }
    return found


def scored_rows(
    items: Sequence[Item], scores: Sequence[Score], *, with_raters: bool = False
) -> Iterator[dict[str, Any]]:
    """A row for each answer that was scored: {"prompt", "completion", "scores": the mean of the
    raters by scale, "score": the mean of those}. `with_raters`: the item, its batch, the source and
    who gave what, too. Repeats and pairs whose better answer is known measure raters, and give none."""
    given: dict[tuple[int, int], dict[str, dict[str, int]]] = {}
    for score in scores:
        scales = given.setdefault((score.item, score.slot), {})
        scales.setdefault(score.scale, {})[score.rater] = score.score
    for item in items:
        if item.kind != "normal":
            continue
        for slot, response in enumerate(item.responses):
            by = given.get((item.id, slot))
            if not by:
                continue
            means = {scale: _mean(list(by[scale].values())) for scale in sorted(by)}
            row: dict[str, Any] = {
                "prompt": item.messages,
                "completion": [{"role": "assistant", "content": response.text}],
                "scores": means,
                "score": _mean(list(means.values())),
            }
            if with_raters:
                row |= {"item": item.id, "batch": item.batch, "source": response.source}
                row["raters"] = {scale: by[scale] for scale in sorted(by)}
            yield row


def in_words(scores: Scores, shown: Sequence[int], scales: Sequence[str]) -> str:
    """`helpful 4 2 · correct 5 –`, answers from left to right; empty where there are none."""
    told = []
    for scale in [*scales, *sorted({scale for _, scale in scores} - {*scales})]:
        marks = [str(scores.get((slot, scale)) or "–") for slot in shown]
        if set(marks) != {"–"}:
            told.append(f"{scale} {' '.join(marks)}")
    return " · ".join(told)


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 3)
