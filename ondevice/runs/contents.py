"""What a run's folder holds besides its stages: the stages of its recipe, and people's votes."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ondevice.common.errors import UserError
from ondevice.common.json_files import read_json
from ondevice.runs import order
from ondevice.runs.folder import RunFolder

LOOK_PATIENCE_S = 0.2  # how long a look at the votes waits for another program that holds them


class Votes(NamedTuple):
    """What a run's ratings hold. `given`: pairs that people have rated; `pending`: those that no
    person has; repeats count in neither. `trouble`: why they cannot be read."""

    given: int
    pending: int
    trouble: str


def votes_of_people(run: Path) -> Votes:
    """Raises nothing: what cannot be read is looked at again once the database has changed."""
    # here: it loads SQLite, and most runs have no votes
    from ondevice.preferences.database import Ratings

    try:
        with Ratings.open(run, patience_s=LOOK_PATIENCE_S) as ratings:
            # "" votes on nothing
            pairs = set()
            for waiting in ratings.waiting(""):
                if waiting.kind != "repeat":
                    pairs.add(waiting.item)
            voted = set()  # a pair that several people rated is one
            for vote in ratings.live_votes(simulated=False):
                if vote.outcome is not None and vote.item in pairs:
                    voted.add(vote.item)
            return Votes(len(voted), len(pairs.difference(voted)), "")
    except UserError as problem:
        return Votes(0, 0, problem.message)


def planned_seconds(run: RunFolder) -> dict[str, float]:
    """{stage: seconds that its run's plan gives it}; none where there is no plan, or a damaged one,
    which is an estimate alone."""
    try:
        seconds = read_json(run.plan).get("seconds")
    except UserError:
        return {}
    if not isinstance(seconds, dict):
        return {}
    return {
        name: float(value)
        for name, value in seconds.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9
    }


def recipe_stages(run: RunFolder) -> list[str]:
    """The stages that the run's recipe names; none where it has no recipe or a damaged one."""
    return order.recipe_stages(run.recipe)
