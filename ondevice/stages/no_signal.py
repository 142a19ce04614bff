"""Says when rollouts teach nothing, and why: at a run's first steps, not after its last."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ondevice.rewards.answers import FORMS, final_answer, same_answer

Floats = NDArray[np.floating[Any]]
AGAIN = 10
"""Steps in a row after which it is said again."""
ALIKE = 3
"""Steps in a row whose rewards do not differ, before that is said: one may be chance."""


class NoSignal:
    """Looks at each rollout. `steps` counts those that taught nothing."""

    def __init__(self, warn: Callable[[str, int], None]) -> None:
        self.warn, self.steps = warn, 0
        self._in_a_row: Counter[str] = Counter()
        self._form_said = False

    def look(
        self,
        step: int,
        by_name: Mapping[str, Floats],
        totals: Floats,
        advantages: Floats,
        learned: Floats,
    ) -> None:
        """`by_name`: (N,) each reward's values, NaN where it gave none; `totals`, `advantages`, and
        `learned` (0 where a completion is left out): (N,) each."""
        for name, values in by_name.items():
            self._count(
                step,
                f"the reward {name} said nothing of any of {len(values)} completions",
                not np.isfinite(values).any(),
            )
        nothing, masked = not np.isfinite(totals).any(), not learned.any()
        alike = not (nothing or masked or (advantages * learned).any())
        self.steps += nothing or masked or alike
        self._count(step, "no completion has a reward: nothing is learned", nothing)
        self._count(
            step,
            "all completions were cut at max_new_tokens and mask_truncated leaves them out: nothing is "
            "learned; raise max_new_tokens",
            masked and not nothing,
        )
        self._count(
            step,
            f"in no group of {ALIKE} steps do rewards differ: they teach nothing; take problems that are "
            "neither too easy nor too hard, more completions of each, or a higher temperature",
            alike,
            ALIKE,
        )

    def look_at_answers(
        self, step: int, form: str, texts: Sequence[str], right: Sequence[str | None]
    ) -> None:
        """Says once where no text has its answer in `form` and some are right in another form; `right`:
        (N,) the answer of each text, None where it has none."""
        judged = [
            (text, known) for text, known in zip(texts, right, strict=True) if known is not None
        ]
        if self._form_said or not judged or any(final_answer(text, form) for text, _ in judged):
            return
        counts = {}
        for other in FORMS:
            given = ((final_answer(text, other), known) for text, known in judged)
            counts[other] = sum(one is not None and same_answer(one, known) for one, known in given)
        best = max(counts, key=counts.__getitem__)
        if counts[best]:
            self._form_said = True
            self.warn(
                f"none of {len(judged)} completions has its answer in the form {form}; in the form {best} "
                f"{counts[best]} are right: --answer {best} rewards them",
                step,
            )

    def look_at_scores(self, step: int, scores: Floats) -> None:
        """`scores` (N,): a reward model's, of all completions of a rollout."""
        alike = len(scores) > 1 and float(scores.max()) == float(scores.min())
        self.steps += alike
        self._count(
            step,
            f"the reward model gives all completions of {ALIKE} steps the same score: it teaches nothing",
            alike,
            ALIKE,
        )

    def _count(self, step: int, text: str, happened: bool, first: int = 1) -> None:
        self._in_a_row[text] = times = self._in_a_row[text] + 1 if happened else 0
        if happened and (times == first or times % AGAIN == 0):
            self.warn(text, step)
