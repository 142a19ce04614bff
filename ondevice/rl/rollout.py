"""What the stages that learn from their own text share: sampling it, and scoring it without a gradient.

A rollout follows from the parameters, the seed and the step alone, so that a resume repeats it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ondevice.data.completion_batches import Ids, Row, completion_batch, like_lengths, text_batch
from ondevice.data.packing import Batch
from ondevice.inference.generator import Sampling, generator_of
from ondevice.models.load import Model
from ondevice.models.score_head import scalar_head
from ondevice.seam.select import Array, Backend, Params
from ondevice.training.logprobs import token_logprobs

Floats = NDArray[np.floating[Any]]


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

    def __init__(self, model: Model, backend: Backend, *, temperature: float, max_new_tokens: int, seed: int,
                 top_k: int = 0, top_p: float = 1.0, batch_size: int = 256) -> None:
        self.tokenizer, self.batch_size = model.tokenizer, batch_size
        self.generator = generator_of(model, backend, Sampling(max_new_tokens, temperature, top_k, top_p, seed))

    def draw(self, params: Params, prompts: Sequence[Sequence[int]], samples: int, *, stage: str, step: int = 0,
             first: int = 0) -> list[Sampled]:
        """`samples` completions of each prompt, one prompt's after another's. One that is empty has stopped at once."""
        found = self.generator.run(params, prompts, stage=stage, step=step, first=first, samples=samples,
                                   batch_size=self.batch_size)
        out = []
        for i, done in enumerate(found):
            ids = done.ids if done.stop is None else [*done.ids, done.stop]
            out.append(Sampled(prompts[i // samples], ids, done.stopped, self.tokenizer.decode(done.ids)))
        return out


class Scorer:
    """Figures of whole completions or texts under parameters given at each call: float32, no gradient."""

    def __init__(self, model: Model, backend: Backend, *, temperature: float = 1.0, batch_size: int = 64) -> None:
        self.backend, self.batch_size = backend, batch_size
        network = self.network = model.network

        def logprobs(params: Params, batch: dict[str, Array]) -> Array:
            ops = backend.ops
            hidden = network.hidden(ops, params, batch, at=batch["index"])
            return token_logprobs(ops, params, network.head, hidden, batch["targets"], temperature)[0]

        def at(place: str) -> Any:
            return lambda params, batch: scalar_head(
                backend.ops, params, network, network.hidden(backend.ops, params, batch, at=batch[place]))

        self._logprobs = backend.evaluate(logprobs)
        self._values, self._scores = backend.evaluate(at("index")), backend.evaluate(at("read"))

    def logprobs(self, params: Params, rows: Sequence[Row]) -> list[Floats]:
        """log p of every token of each completion, (its length,) each."""
        return self._of_tokens(self._logprobs, params, rows)

    def values(self, params: Params, rows: Sequence[Row]) -> list[Floats]:
        """A value model's figure for the state before every token of each completion, (its length,) each."""
        return self._of_tokens(self._values, params, rows)

    def scores(self, params: Params, texts: Sequence[Ids]) -> Floats:
        """(N,) a reward model's figure for each whole text."""
        out = np.zeros(len(texts), np.float32)
        for group in like_lengths([len(text) for text in texts], self.batch_size):
            batch = text_batch([texts[i] for i in group], self.batch_size, self.network.reads)
            out[group] = self.backend.numpy(self._scores(params, batch))[:len(group)]
        return out

    def _of_tokens(self, fn: Any, params: Params, rows: Sequence[Row]) -> list[Floats]:
        out: list[Floats] = [np.zeros(0, np.float32)] * len(rows)
        for group in like_lengths([row.length for row in rows], self.batch_size):
            batch: Batch = completion_batch([rows[i] for i in group], self.batch_size, start=self.network.start)
            del batch["member"]
            flat = self.backend.numpy(fn(params, batch))
            ends = np.cumsum([len(rows[i].completion) for i in group])
            for i, part in zip(group, np.split(flat, ends)[:-1], strict=True):
                out[i] = part
        return out
