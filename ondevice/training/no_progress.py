"""Warnings that training teaches nothing: steps without a gradient, a held-out loss that stays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

IDLE = 3  # so many first steps that teach nothing are not a coincidence


class NoProgress:
    """Looks at the steps and the measurements of a stage of `steps` steps. `warn` takes a text and
    the step that it is about.
    """

    def __init__(self, warn: Callable[[str, int], None], steps: int) -> None:
        self.warn = warn
        self.steps = steps
        self.idle = 0  # steps in a row that taught nothing
        # whether a measurement was held against the one before the first step
        self.compared = False

    def look_at_step(self, step: int, tokens: int, norm: float | None) -> None:
        """Warns at the first steps, and again where it goes on, that nothing is learned. `norm` is
        the gradient's.
        """
        if not tokens:
            why = "no token of their batches is one to learn"
        elif norm == 0:
            why = "the gradient is 0"
        else:
            self.idle = 0
            return
        self.idle += 1
        first = self.idle == min(IDLE, self.steps) and step <= 10
        if first or self.idle % 100 == 0:
            self.warn(f"{self.idle} steps in a row taught nothing: {why}", step)

    def look_at_figures(
        self, step: int, figures: Mapping[str, Any], before: Mapping[str, Any]
    ) -> None:
        """Warns at the first measurement that training has not changed the held-out loss by one
        bit. `before` are the figures before the first step.
        """
        loss = figures.get("loss")
        if not self.compared and loss and loss == before.get("loss"):
            self.warn(
                "the held-out loss is to the last digit what it was before the first step: nothing has been "
                "learned; is a setting such as the learning rate too small?",
                step,
            )
        self.compared = True
