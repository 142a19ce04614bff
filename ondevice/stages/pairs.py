"""The pairs that a stage learns from, what it says of them, and the settings that follow from them."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ondevice.config.preference import PairsConfig
from ondevice.data.mixture import is_generated
from ondevice.datasets.preference_pairs import PairData, pairs
from ondevice.models.model import Model
from ondevice.runs.context import Context
from ondevice.stages.settled import settle
from ondevice.training.defaults import DataFacts

Config = TypeVar("Config", bound=PairsConfig)


def load_pairs(cfg: Config, model: Model, ctx: Context) -> tuple[Config, PairData]:
    """The settings without any auto, and the pairs that they name; an event and a line say how many.
    Raises UserError as `pairs` does.
    """
    settled = cfg

    def longest(lengths: NDArray[np.int64], unit: str) -> int:
        nonlocal settled
        facts = DataFacts(lengths, unit, builtin=is_generated(cfg.data))
        settled = settle(cfg, model, lambda: facts, ctx)
        return settled.sequence_length

    data = pairs(cfg, model, ctx.data, longest)
    _tell(data, ctx)
    return settled, data


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
