"""A simulated rater that goes by rewards: the response with the higher weighted sum is the better one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ondevice.common.errors import UserError
from ondevice.preferences.votes import SIMULATED, Item
from ondevice.rewards.answers import find_answer
from ondevice.rewards.scorer import Rewards

_NEED_TOKENS = ("length", "overlong")


class Judged(NamedTuple):
    """`points` of each response by its slot; `reasons`: the reward that speaks most for one of them
    beside the others.
    """

    points: list[float]
    reasons: Callable[[int], str]


class RewardRater:
    """Rates by rewards with their weights (see `Rewards`); a context manager. Raises UserError for
    one that needs the tokens of a completion: ratings keep its text.
    """

    def __init__(self, names: Sequence[str], weights: Sequence[float], form: str) -> None:
        for name in _NEED_TOKENS:
            if name in names:
                raise UserError(
                    f"{name} needs the tokens of a response, and ratings keep its text",
                    where="rewards",
                    hint="word_count counts words",
                )
        self.rewards = Rewards(names, weights, form)
        self.warnings: list[str] = []
        listed = ",".join(f"{name}={weight:g}" for name, weight in self.rewards.weights.items())
        self.rater = f"{SIMULATED}{listed}"

    def __enter__(self) -> RewardRater:
        return self

    def __exit__(self, *raised: object) -> None:
        self.rewards.close()

    def told(self) -> str:
        """Every reward with its weight, in one line."""
        return self.rewards.told()

    def judge(self, item: Item, where: str) -> Judged:
        """What each response of the item earns. Raises UserError where no reward can say anything
        of one of them, `where` being the ratings' place.
        """
        count = len(item.responses)
        known = dict(item.meta)
        known["answer"] = _stated(known.get("answer"))
        columns = {name: [known.get(name)] * count for name in self.rewards.needed()}
        columns["truncated"] = [
            response.meta.get("stopped") is False for response in item.responses
        ]
        question = str(item.messages[-1]["content"])
        texts = [response.text for response in item.responses]
        scores = self.rewards.score([question] * count, texts, columns)
        self.warnings += scores.warnings
        if np.isnan(scores.total).any():
            raise UserError(
                f"item {item.id}: none of the rewards {self.told()} can judge its responses",
                where=where,
                hint=f"it has {', '.join(sorted(item.meta)) or 'no columns'}",
            )
        earned = {
            name: np.nan_to_num(values) * self.rewards.weights[name]
            for name, values in scores.by_name.items()
        }

        def reason(best: int) -> str:
            def lead(name: str) -> float:
                return float(earned[name][best] - np.delete(earned[name], best).mean())

            return max(earned, key=lead)

        return Judged(scores.total.tolist(), reason)


def _stated(answer: Any) -> Any:
    """The right answer of a row: of one that ends in `#### 42`, as GSM8K's do, the 42."""
    if isinstance(answer, str) and (marked := find_answer(answer, "hash")):
        return marked.text
    return answer
