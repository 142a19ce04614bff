"""How well a reward model agrees with held-out votes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ondevice.common.intervals import wilson
from ondevice.data.completion_batches import prompt_and_completion
from ondevice.data.preference_batches import TokenPair, by_parts
from ondevice.seam.ops import Params
from ondevice.training.sequence_logprobs import Scorer


def quality(params: Params, pairs: Sequence[TokenPair], scorer: Scorer) -> dict[str, Any]:
    """Accuracy on held-out pairs with Wilson's 95 % interval, by what tells the pairs apart where
    that is known; mean margin; calibration: mean |share right − what σ(margin) says| over ten bins
    (expected calibration error)."""
    rows = []
    for pair in pairs:
        rows.append(prompt_and_completion(pair.chosen))
        rows.append(prompt_and_completion(pair.rejected))
    scores = scorer.scores(params, rows)
    apart = (scores[0::2] - scores[1::2]).astype(np.float64)
    right = apart > 0
    share = wilson(int(right.sum()), len(right))
    parts = {}
    for name, places in by_parts(pairs).items():
        parts[name] = [int(right[places].sum()), len(places)]
    return {
        "accuracy": share.share,
        "interval": [share.low, share.high],
        "pairs": len(pairs),
        "by_part": parts,
        "margin": float(apart.mean()),
        "calibration_error": calibration_error(apart),
    }


def calibration_error(apart: NDArray[np.float64]) -> float:
    """A margin m claims that its sign is right with probability σ(|m|); pairs are put into ten bins
    by that claim.
    """
    claimed = 1 / (1 + np.exp(-np.abs(apart)))
    bins = np.minimum(((claimed - 0.5) * 20).astype(int), 9)
    off = []
    for number in set(bins.tolist()):
        inside = bins == number
        right = float((apart[inside] > 0).mean())
        said = float(claimed[inside].mean())
        off.append(abs(right - said) * int(inside.sum()))
    return sum(off) / max(len(apart), 1)


def figures(marks: Mapping[str, Any]) -> str:
    """One line for people."""
    low, high = marks["interval"]
    parts = "".join(f", {name} {n}/{of}" for name, (n, of) in sorted(marks["by_part"].items()))
    return f"{marks['accuracy']:.1%} of {marks['pairs']} held-out pairs ranked rightly [{low:.1%}, {high:.1%}]{parts}"
