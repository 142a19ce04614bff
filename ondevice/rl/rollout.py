"""What the stages that learn from their own text share: sampling it, and scoring it without a
gradient.

A rollout follows from the parameters, the seed and the step alone, so that a resume repeats it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ondevice.data.completion_batches import Row
from ondevice.inference.external_generator import generator_of
from ondevice.inference.next_token import Sampling
from ondevice.inference.together import write_together
from ondevice.models.model import Model
from ondevice.seam.ops import Params
from ondevice.seam.protocols import Backend
from ondevice.training.sequence_logprobs import Floats


@dataclass(frozen=True)
class Sampled:
    """One completion: `ids` with the stop token where it has `stopped`, `text` without it."""

    prompt: Sequence[int]
    ids: list[int]
    stopped: bool
    text: str

    @property
    def row(self) -> Row:
        return Row(self.prompt, self.ids)


class Sampler:
    """Draws completions from a model's shapes under parameters given at each call."""

    def __init__(
        self,
        model: Model,
        backend: Backend,
        *,
        temperature: float,
        max_new_tokens: int,
        seed: int,
        top_k: int = 0,
        top_p: float = 1.0,
        batch_size: int = 256,
    ) -> None:
        self.tokenizer = model.tokenizer
        self.batch_size = batch_size
        self.generator = generator_of(
            model, backend, Sampling(max_new_tokens, temperature, top_k, top_p, seed)
        )

    def draw(
        self,
        params: Params,
        prompts: Sequence[Sequence[int]],
        samples: int,
        *,
        stage: str,
        step: int = 0,
        first: int = 0,
    ) -> list[Sampled]:
        """`samples` completions of each prompt, one prompt's after another's. One that is empty has
        stopped at once. Where several processes ask, each writes those of some of the prompts, and
        all get all.
        """
        completions = write_together(
            self.generator,
            params,
            prompts,
            stage=stage,
            step=step,
            first=first,
            samples=samples,
            batch_size=self.batch_size,
        )
        out = []
        for i, done in enumerate(completions):
            ids = done.ids
            if done.stop is not None:
                ids = [*ids, done.stop]
            text = self.tokenizer.decode(done.ids)
            out.append(Sampled(prompts[i // samples], ids, done.stopped, text))
        return out


def rows_of(sampled: Sequence[Sampled]) -> list[Row]:
    """The completions as rows of prompt and completion."""
    return [one.row for one in sampled]


def count_tokens(sampled: Sequence[Sampled]) -> int:
    """The tokens of all completions."""
    return sum(len(one.ids) for one in sampled)


def mean_kl(policy: Sequence[Floats], reference: Sequence[Floats]) -> float:
    """Nats per completion between two models, from the log-probabilities that each gives the tokens
    of the first one's completions.
    """
    sums = []
    for own, other in zip(policy, reference, strict=True):
        sums.append(float((own - other).sum()))
    return float(np.mean(sums))
