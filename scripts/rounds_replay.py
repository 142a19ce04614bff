"""Recorded votes of people in place of a person, for scripts/rounds.py: which of the recorded pairs
is rated next is chosen, the vote is the one that was given."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import ondevice as od
from ondevice.common.files import digest
from ondevice.common.intervals import wilson
from ondevice.common.json_files import json_lines
from ondevice.common.rng import permutation
from ondevice.data.completion_batches import prompt_and_completion
from ondevice.data.preference_batches import completion_row
from ondevice.models.load import load_for_use
from ondevice.models.model import Model
from ondevice.preferences.pairs import held_out
from ondevice.rating_rounds.choice import chosen
from ondevice.rating_rounds.taste import Taste
from ondevice.seam.select import load_backend
from ondevice.training.sequence_logprobs import Scorer

STEPS = (60, 120, 240)
HELD = 150
LONGEST = 320  # tokens of a pair's longer side


def replay(file: Path, base: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Agreement of a reward model with people after so many votes, by either way of choosing."""
    backend = load_backend(options.backend, "auto", "auto")
    model = load_for_use(str(base / "sft" / "model"), backend)
    pairs = []
    votes = 0
    for row in json_lines(file):
        votes += len(row["votes"])
        word, count = Counter(row["votes"]).most_common(1)[0]
        if word == "tie" or 2 * count <= len(row["votes"]):
            continue
        best, worst = (row["a"], row["b"]) if word == "a" else (row["b"], row["a"])
        pair = {"prompt": row["prompt"], "chosen": best, "rejected": worst}
        asked = [{"role": "user", "content": row["prompt"]}]
        rows = []
        for side in ("chosen", "rejected"):
            if not (isinstance(pair[side], str) and pair[side].strip()):
                break
            rows.append(completion_row(asked, pair[side], model.tokenizer))
        texts = [prompt_and_completion(one).tolist() for one in rows]
        differ = len(texts) == 2 and texts[0] != texts[1]
        if differ and max(map(len, texts)) <= LONGEST:
            pairs.append((pair, rows))
    order = permutation(0, "replay", 0, len(pairs)).tolist()
    # one prompt has several pairs of the same answers: its pairs are all held out, or none is
    held: list[Any] = []
    free: list[Any] = []
    for n in order:
        prompt = pairs[n][0]["prompt"]
        (held if held_out(digest(prompt), HELD / len(pairs)) else free).append(pairs[n])
    found = []
    for way in options.choose:
        found += _way(way, free, held, base, options, model)
    for one in found:
        one |= {"votes": votes, "usable": len(pairs), "held": len(held), "remark": _REMARK}
    return found


_REMARK = (
    "The base is a model of half a million parameters that has read one small made-up world: it does "
    "not understand these texts, and what it can learn of people's taste is length and form. The replay "
    "shows that the loop takes votes of people as they are, ties and disagreement left out, not that so "
    "small a model learns from them."
)


def _way(
    way: str,
    free: Sequence[Any],
    held: Sequence[Any],
    base: Path,
    options: argparse.Namespace,
    model: Model,
) -> list[dict[str, Any]]:
    """One way of choosing: after each of `STEPS` votes a reward model on all so far. `model`: the
    base."""
    backend = load_backend(options.backend, "auto", "auto")
    reader = Scorer(model, backend)
    found = []
    taken: list[int] = list(range(STEPS[0]))
    for step, count in enumerate(STEPS):
        if count > len(free):
            break
        out = options.work / f"replay-{way}-{count}"
        file = options.work / f"replay-{way}-{count}.jsonl"
        file.write_text("".join(json.dumps(free[n][0]) + "\n" for n in taken[:count]))
        if not (out / "reward" / "done.json").is_file():
            od.reward(
                str(base / "sft" / "model"),
                str(file),
                out=str(out),
                backend=options.backend,
                epochs=4.0,
                batch_size=8,
                learning_rate=5e-4,
                sequence_length=LONGEST,
                eval_every=0,
            )
        judge = load_for_use(str(out / "reward" / "model"), backend)
        scorer = Scorer(judge, backend)

        def scores(pairs: Sequence[Any], judge: Any = judge, scorer: Scorer = scorer) -> Any:
            texts = [prompt_and_completion(row) for _, two in pairs for row in two]
            return np.asarray(scorer.scores(judge.params, texts), np.float64).reshape(-1, 2)

        of_held = scores(held)
        right = int((of_held[:, 0] > of_held[:, 1]).sum())
        share = wilson(right, len(held))
        found.append(
            {
                "choose": way,
                "given": count,
                "share": share.share,
                "low": share.low,
                "high": share.high,
            }
        )
        if step + 1 == len(STEPS):
            break
        left = [n for n in range(len(free)) if n not in set(taken)]
        more = STEPS[step + 1] - count
        if way == "random":
            taken += left[:more]
            continue
        said, apart = (
            reader.features(model.params, [row for n in some for row in free[n][1]])
            for some in (taken, left)
        )
        taste = Taste(said[::2], said[1::2], np.ones(len(taken)), np.concatenate([said, apart]))
        texts = [free[n][0]["prompt"] for n in left]
        lately = [free[n][0]["prompt"] for n in taken[-20:]]
        forecast = taste.forecast(apart[::2], apart[1::2])
        taken += [left[n] for n, _ in chosen(texts, forecast, more, lately)]
    return found
