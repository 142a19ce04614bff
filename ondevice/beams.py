"""Beam search: the likeliest texts rather than drawn ones. As transformers' `generate` with `num_beams`, its scores and
its end included, so that texts are the same token by token.

K beams of one prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ondevice.backend import Params
from ondevice.decoding import Completion, Generator


@dataclass(frozen=True)
class Finished:
    """A text that has ended, and its log-probability divided by length^penalty."""

    score: float
    completion: Completion


def beam_search(generator: Generator, params: Params, prompt: Sequence[int], beams: int,
                length_penalty: float = 1.0) -> list[Completion]:
    """Up to `beams` completions of a prompt, best first.

    Each step keeps the `beams` likeliest texts that go on. One that stops is finished where it is among the `beams`
    likeliest of the step; the search ends when no text that goes on scores better, as long as it is, than all finished.
    """
    texts: list[list[int]] = [[]]
    scores = np.zeros(1)
    done: list[Finished] = []
    reader = generator.reader(params, prompt)
    for length in range(1, reader.limit + 1):
        logp = reader.logprobs().astype(np.float32) + scores[:, None].astype(np.float32)
        vocabulary = logp.shape[1]
        # enough candidates that `beams` of them go on, whatever stops
        count = min((len(generator.stop_ids) + 1) * beams, logp.size)
        order = _best(logp.reshape(-1), count)
        going: list[tuple[float, int, int]] = []
        for rank, place in enumerate(order.tolist()):
            beam, token, score = place // vocabulary, place % vocabulary, float(logp.reshape(-1)[place])
            stopped, full = token in generator.stop_ids, length == reader.limit
            if not stopped and not full:
                going.append((score, beam, token))
            elif rank < beams:
                ids = texts[beam] if stopped else [*texts[beam], token]
                done.append(Finished(score / length**length_penalty, Completion(ids, token if stopped else None)))
        done = sorted(done, key=lambda one: -one.score)[:beams]
        going = going[:beams]
        if not going or (len(done) == beams and going[0][0] / length**length_penalty <= done[-1].score):
            break
        texts = [[*texts[beam], token] for _, beam, token in going]
        scores = np.array([score for score, _, _ in going])
        reader.go_on([beam for _, beam, _ in going], [token for _, _, token in going])
    return [one.completion for one in done]


def _best(values: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Places of the `count` largest, largest first."""
    part = np.argpartition(-values, count - 1)[:count]
    return part[np.argsort(-values[part], kind="stable")]
