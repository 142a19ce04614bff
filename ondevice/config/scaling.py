"""How a recipe may be scaled to a time: its key `scale`. Standard library only.

    scale:
      time: 10m                 where no --time is given; empty: the stages as they stand
      model: fitted             init's size and vocabulary follow from the time; fixed: as init says
      parameters: 1_100_000     of the model for which the stages' learning rates are
      stages:                   what of the time each stage gets, of that which is left for steps
        pretrain: {share: 50, least: 60}
        sft: {share: 20, least: 40, epochs: 4}
        sample: {share: 6, least: 100, most: 4000}

What is scaled of a stage that trains are its `steps`, of `sample` its `prompts`; of what belongs to
the number of steps (warm-up, measurements, saves) what the recipe says in numbers is scaled with
them. A stage that is not named keeps its settings, and its time is taken off before the rest is
shared out. `ondevice.planning.dial` does it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from ondevice.common.errors import UserError
from ondevice.config.times import parse_time


@dataclass(frozen=True, kw_only=True)
class StageScale:
    """One stage's part of the time."""

    share: float
    """Its part of the time for steps; only the ratios of the shares matter."""
    least: int = 1
    """Steps (of sample: prompts) without which it is not worth beginning: a shorter time is
    refused."""
    most: int = 0
    """Steps (prompts) beyond which more do no good: what is over goes to the other stages; 0: no
    limit."""
    epochs: float = 0.0
    """Times through the data beyond which more do no good; 0: no limit."""
    decay: float = 0.0
    """Weight decay where the data are gone through `epochs` times, with fewer passes less: it takes
    the place of the stage's `weight_decay`. 0: that one holds."""
    own_epochs: float = 0.0
    """`epochs` for a person's own files, which nothing makes more of; 0: the same."""
    own_decay: float = 0.0
    """`decay` for these; 0: the same."""

    def check(self) -> None:
        """Raises UserError naming the first field that is out of range."""
        if not 0 < self.share < float("inf"):
            raise UserError(f"{self.share} is not a share", where="share", hint="give more than 0")
        if self.least < 1:
            raise UserError(f"{self.least} is too small", where="least", hint="give 1 or more")
        if self.most and self.most < self.least:
            raise UserError(
                f"{self.most} is less than least", where="most", hint="give 0 for no limit"
            )
        for name in ("epochs", "decay", "own_epochs", "own_decay"):
            if getattr(self, name) < 0:
                raise UserError(
                    f"{getattr(self, name)} is too small", where=name, hint="give 0 or more"
                )

        for decay, epochs in (("decay", "epochs"), ("own_decay", "own_epochs")):
            if getattr(self, decay) and not getattr(self, epochs):
                raise UserError("has no effect", where=decay, hint=f"give {epochs} too")

    def on_own_files(self) -> StageScale:
        """With what holds for a person's own files."""
        return replace(
            self, epochs=self.own_epochs or self.epochs, decay=self.own_decay or self.decay
        )


@dataclass(frozen=True, kw_only=True)
class ScaleConfig:
    """How a recipe may be scaled to a time."""

    time: str = ""
    """The time where none is given; empty: the stages as they stand."""
    model: Literal["fixed", "fitted"] = "fixed"
    """fitted: the sizes and the vocabulary of stages.init follow from the time and the data."""
    parameters: int = 0
    """Of the model for which the learning rates in the recipe are: those of another size fall with
    the cube root of its size. 0: they hold for every size."""
    stages: Mapping[str, StageScale] = field(default_factory=dict)
    """Each stage's part."""

    def check(self) -> None:
        """Raises UserError naming the first field that is out of range."""
        parse_time(self.time)
        if self.parameters < 0:
            raise UserError(f"{self.parameters} is too small", where="parameters")
        if not self.stages:
            raise UserError(
                "names no stage", where="stages", hint="such as pretrain: {share: 50, least: 60}"
            )
