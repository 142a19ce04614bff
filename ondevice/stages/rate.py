"""Stage 3, second step: votes on the pairs that wait in ratings.db.

Unattended, a simulated rater applies the rule that stands in the recipe; its votes carry a name
that says so, here and wherever they are counted. Where a person is to rate, the stage ends once
enough usable pairs are there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from ondevice.common.errors import Interrupted, UserError
from ondevice.config.preference import RaterConfig
from ondevice.data.builtin.scoring import courteous
from ondevice.preferences.database import Ratings
from ondevice.preferences.pairs import pairs_of
from ondevice.preferences.simulated_rater import SimulatedRater
from ondevice.preferences.sqlite_store import FILE
from ondevice.preferences.votes import Item, is_simulated
from ondevice.rewards.rater import RewardRater
from ondevice.runs.context import Context, StageResult

TOGETHER = 200  # votes between two commits


def run(cfg: RaterConfig, ctx: Context) -> StageResult:
    with Ratings.open(cfg.ratings or ctx.folder.path.parent / FILE) as ratings:
        if cfg.rater == "person":
            wait_for_people(ratings, cfg, ctx)
        else:
            rate_by_rule(ratings, cfg, ctx)
        rated = pairs_of(ratings)
    people = sorted({rater for pair in rated for rater in pair.raters})
    ctx.events.emit(
        "data",
        votes=rated.votes,
        simulated_votes=rated.simulated_votes,
        pairs=len(rated),
        left_out=rated.left_out,
        raters=people,
    )
    ctx.tell(
        f"{rated.votes:,} votes, {rated.simulated_votes:,} of them simulated; "
        f"{len(rated):,} usable pairs"
    )
    if not rated.rows:
        raise UserError(
            "no vote prefers one response to another",
            where=str(ratings.path),
            hint="sample more varied responses, or rate more pairs",
        )
    marks = {"votes": rated.votes, "simulated_votes": rated.simulated_votes, "pairs": len(rated)}
    return StageResult(None, marks)


def rate_by_rule(ratings: Ratings, cfg: RaterConfig, ctx: Context) -> None:
    """Votes by the rule of the settings on everything that it has not yet rated."""
    if not cfg.rewards:
        simulate(ratings, SimulatedRater(cfg.right, cfg.courtesy), ctx)
        return
    with RewardRater(cfg.rewards, cfg.reward_weights, cfg.answer) as rule:
        ctx.tell(f"rated by the rewards {rule.told()}")
        simulate(ratings, rule, ctx)
        for warning in rule.warnings:
            ctx.warn(warning)


def simulate(ratings: Ratings, rule: SimulatedRater | RewardRater, ctx: Context) -> None:
    """A vote on everything that this rule has not yet rated. Raises UserError for items that it
    cannot judge.
    """
    waiting, counts = ratings.queue(rule.rater), Counter[str]()
    with ctx.progress(len(waiting), 0) as bar:
        for start in range(0, len(waiting), TOGETHER):
            with ratings.transaction():
                for item in map(ratings.item, waiting[start : start + TOGETHER]):
                    counts[judge(ratings, item, rule, ctx)] += 1
            done = min(start + TOGETHER, len(waiting))
            ctx.events.emit("step", done, **counts)
            bar.update(done, dict(counts))
            if ctx.shared.stop.requested and done < len(waiting):
                raise Interrupted(f"stopped after {done} votes, saved")


def judge(ratings: Ratings, item: Item, rule: SimulatedRater | RewardRater, ctx: Context) -> str:
    """Stores the rule's vote; the best response first, all others behind it."""
    if isinstance(rule, RewardRater):
        judged = rule.judge(item, str(ratings.path))
        points, reasons = judged.points, judged.reasons
    else:
        points, reasons = _by_answer(ratings, item, rule)
    best = max(points)
    leaders = [slot for slot, p in enumerate(points) if p == best]
    if len(leaders) > 1:
        # that the best earn nothing says nothing where a reward only takes off
        is_bad = isinstance(rule, SimulatedRater) and best <= 0
        outcome: Any = "all_bad" if is_bad else "tie"
        ratings.vote(item.id, rule.rater, ctx.name, outcome)
        return str(outcome)
    ratings.vote(item.id, rule.rater, ctx.name, "ranked", leaders, reason=reasons(leaders[0]))
    return "ranked"


def _by_answer(
    ratings: Ratings, item: Item, rule: SimulatedRater
) -> tuple[list[float], Callable[[int], str]]:
    """(points of each response, what decides for the best one)."""
    kind, answer = item.meta.get("kind"), item.meta.get("answer")
    if not (isinstance(kind, str) and isinstance(answer, str)):
        raise UserError(
            f"item {item.id} has no known answer, so the rule cannot rate it",
            where=str(ratings.path),
            hint="--set rate.rewards='[finished, repetition]' goes by rewards, "
            "--set rate.rater=person by you",
        )
    polite = [courteous(response.text) for response in item.responses]

    def reason(best: int) -> str:
        others = {is_polite for slot, is_polite in enumerate(polite) if slot != best}
        return "courtesy" if others != {polite[best]} else "right"

    return [rule.points(kind, one.text, answer) for one in item.responses], reason


def wait_for_people(ratings: Ratings, cfg: RaterConfig, ctx: Context) -> None:
    """Raises Interrupted, saying what to do, until enough usable pairs are rated."""
    rated = [
        pair
        for pair in pairs_of(ratings, simulated=False)
        if not any(map(is_simulated, pair.raters))
    ]
    if len(rated) < cfg.needed:
        raise Interrupted(
            f"{len(rated)} of {cfg.needed} usable pairs are rated. "
            f"Rate more: ondevice rate {ctx.folder.path.parent}"
        )
