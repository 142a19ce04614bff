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
    data = pairs(cfg, model, ctx.data)
    _tell(data, ctx)
    return data


def _tell(data: PairData, ctx: Context) -> None:
    """Writes the event and says how many pairs there are."""
    count = len(data.train)
    counts = {"pairs": count, "held_pairs": len(data.held), "simulated": data.simulated}
    what = "pairs"
    said = ""
    if data.judged:
        counts["good"] = data.good
        what = "completions"
        said = f", {data.good:,} of them good and {count - data.good:,} bad"
    ctx.events.emit("data", **counts)
    line = f"{count:,} {what} to learn from{said}, {len(data.held):,} held out"
    if data.simulated:
        line += f"; {data.simulated:,} were rated by a rule, not by a person"
    ctx.tell(line)
    if data.judged and data.good in (0, count):
        ctx.warn("all of them have the same label: nothing says what is better than what")
