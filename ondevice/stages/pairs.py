"""The pairs that a stage learns from, and what it says of them."""

from __future__ import annotations

from ondevice.config.preference import PairsConfig
from ondevice.datasets.preference_pairs import PairData, pairs
from ondevice.models.model import Model
from ondevice.runs.context import Context


def load_pairs(cfg: PairsConfig, model: Model, ctx: Context) -> PairData:
    """The pairs that the settings name; an event and a line say how many. Raises UserError as
    `pairs` does.
    """
    found = pairs(cfg, model, ctx.data)
    _tell(found, ctx)
    return found


def _tell(made: PairData, ctx: Context) -> None:
    """Writes the event and says how many pairs there are."""
    count = len(made.train)
    counts = {"pairs": count, "held_pairs": len(made.held), "simulated": made.simulated}
    what = "pairs"
    said = ""
    if made.judged:
        counts["good"] = made.good
        what = "completions"
        said = f", {made.good:,} of them good and {count - made.good:,} bad"
    ctx.events.emit("data", **counts)
    line = f"{count:,} {what} to learn from{said}, {len(made.held):,} held out"
    if made.simulated:
        line += f"; {made.simulated:,} were rated by a rule, not by a person"
    ctx.tell(line)
    if made.judged and made.good in (0, count):
        ctx.warn("all of them have the same label: nothing says what is better than what")
