"""The rewards of a rollout: found for each completion, joined over processes, told as figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ondevice.config.preference import GRPOConfig
from ondevice.data.tokenizer import Tokenizer
from ondevice.datasets.prompts import Prompt, thought_opening
from ondevice.rewards.code_judge import Verdict
from ondevice.rewards.scorer import Rewards, Scores
from ondevice.rl.advantages import without_spread
from ondevice.rl.micro_batches import Floats
from ondevice.rl.rollout import Sampled
from ondevice.seam.group import Group

RIGHT = ("correct", "code")  # rewards that say what is right: the first that counts


def judged(
    rewards: Rewards,
    asked: Sequence[Prompt],
    sampled: Sequence[Sampled],
    each: int,
    cfg: GRPOConfig,
    tokenizer: Tokenizer,
) -> Scores:
    """The rewards of `each` completions of every prompt."""
    of: list[Prompt] = []
    names: set[str] = set()
    for prompt in asked:
        of += [prompt] * each
        names.update(prompt.known)
    columns: dict[str, Any] = {}
    for name in names:
        columns[name] = [prompt.known.get(name) for prompt in of]
    columns["completion_ids"] = [one.ids for one in sampled]
    columns["truncated"] = [not one.stopped for one in sampled]
    columns["max_new_tokens"] = cfg.max_new_tokens
    return rewards.score(
        [prompt.text for prompt in of],
        [one.text for one in sampled],
        columns,
        [thought_opening(prompt.ids, tokenizer) for prompt in of],
    )


def gathered(own: Scores, each: int, group: Group) -> Scores:
    """The rewards of all completions, `each` of a prompt, of which every process has judged its
    share of the prompts: numbers alone are sent."""
    if not group.several:
        return own
    told = group.gather(
        {
            "total": own.total.tolist(),
            "by_name": {name: values.tolist() for name, values in own.by_name.items()},
            "parsed": own.parsed,
            "tests": [None if one is None else asdict(one) for one in own.tests],
        }
    )

    def joined(lists: Sequence[Sequence[Any]]) -> list[Any]:
        """In the order of the prompts, which were shared one by one."""
        out: list[Any] = []
        for n in range(sum(map(len, lists)) // each):
            first = n // group.size * each
            out += lists[n % group.size][first : first + each]
        return out

    def numbers(lists: Sequence[Sequence[float]]) -> NDArray[np.float64]:
        return np.array(joined(lists), np.float64)

    tests = joined([one["tests"] for one in told])
    return Scores(
        numbers([one["total"] for one in told]),
        {name: numbers([one["by_name"][name] for one in told]) for name in own.by_name},
        joined([one["parsed"] for one in told]),
        own.warnings,
        [None if one is None else Verdict(**one) for one in tests],
    )


def reward_metrics(scores: Scores, totals: Floats) -> dict[str, Any]:
    """What a step's event says of the rewards: all of them, each by itself, and how many groups
    teach nothing.
    """
    spreads = []
    for group in totals:
        if np.isfinite(group).sum() > 1:
            spreads.append(np.nanstd(group, ddof=1))
    metrics = {
        "reward": mean_known(scores.total),
        "reward_std": mean_known(np.array(spreads)),
        "zero_spread": float(without_spread(totals).mean()),
        **accuracy(scores),
    }
    for name, values in scores.by_name.items():
        metrics[f"reward/{name}"] = mean_known(values)
    return metrics


def accuracy(scores: Scores) -> dict[str, float]:
    """{"accuracy"}: the share of right answers among those that were judged; empty where nothing
    says what is right: a total of 1 does not mean a right answer."""
    name = next((name for name in RIGHT if name in scores.by_name), None)
    if name is None:
        return {}
    judged = scores.by_name[name][np.isfinite(scores.by_name[name])]
    if not len(judged):
        return {"accuracy": float("nan")}
    return {"accuracy": float(np.mean(judged == 1.0))}


def mean_known(values: Floats) -> float:
    """The mean of what is known; nan where nothing is."""
    if np.isfinite(values).any():
        return float(np.nanmean(values))
    return float("nan")
