"""Stage 3, second step: votes on the pairs that wait in ratings.db.

Unattended, a simulated rater applies the rule that stands in the recipe; its votes carry a name
that says so, here and wherever they are counted. Where a person is to rate, the stage ends once
enough usable pairs are there.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from ondevice.common.errors import Interrupted, UserError
from ondevice.config.preference import RaterConfig
from ondevice.data.builtin.scoring import courteous
from ondevice.preferences.database import Ratings
from ondevice.preferences.pairs import pairs_of
from ondevice.preferences.simulated_rater import SimulatedRater
from ondevice.preferences.sqlite_store import FILE
from ondevice.preferences.votes import Item, is_simulated
from ondevice.runs.context import Context, StageResult

TOGETHER = 200  # votes between two commits


def run(cfg: RaterConfig, ctx: Context) -> StageResult:
    with Ratings.open(cfg.ratings or ctx.folder.path.parent / FILE) as ratings:
        if cfg.rater == "person":
            wait_for_people(ratings, cfg, ctx)
        else:
            simulate(ratings, SimulatedRater(cfg.right, cfg.courtesy), ctx)
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


def simulate(ratings: Ratings, rule: SimulatedRater, ctx: Context) -> None:
    """A vote on everything that this rule has not yet rated. Raises UserError for items without a
    known answer.
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


def judge(ratings: Ratings, item: Item, rule: SimulatedRater, ctx: Context) -> str:
    """Stores the rule's vote; the best response first, all others behind it."""
    kind, answer = item.meta.get("kind"), item.meta.get("answer")
    if not (isinstance(kind, str) and isinstance(answer, str)):
        raise UserError(
            f"item {item.id} has no known answer, so the rule cannot rate it",
            where=str(ratings.path),
            hint="the simulated rater is for built-in prompts; --set rate.rater=person for your own",
        )
    points = [rule.points(kind, response.text, answer) for response in item.responses]
    best = max(points)
    leaders = [slot for slot, p in enumerate(points) if p == best]
    if len(leaders) > 1:
        outcome: Any = "tie" if best > 0 else "all_bad"
        ratings.vote(item.id, rule.rater, ctx.name, outcome)
        return str(outcome)
    others = [slot for slot in range(len(points)) if slot not in leaders]
    polite = {courteous(item.responses[slot].text) for slot in others} != {
        courteous(item.responses[leaders[0]].text)
    }
    ratings.vote(
        item.id, rule.rater, ctx.name, "ranked", leaders, reason="courtesy" if polite else "right"
    )
    return "ranked"


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
