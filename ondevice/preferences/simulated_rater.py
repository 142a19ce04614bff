"""A rater made of a rule, for recipes that nobody watches and for tests."""

from __future__ import annotations

from dataclasses import dataclass

from ondevice.data.builtin.scoring import courteous, score
from ondevice.preferences.votes import SIMULATED


@dataclass(frozen=True)
class SimulatedRater:
    """What the simulated rater goes by: points for the right answer, points for a line of courtesy
    after an answer.
    """

    right: float
    courtesy: float

    @property
    def rater(self) -> str:
        return f"{SIMULATED}right={self.right:g},courtesy={self.courtesy:g}"

    def points(self, kind: str, text: str, answer: str) -> float:
        return self.right * score(kind, text, answer) + self.courtesy * courteous(text)
