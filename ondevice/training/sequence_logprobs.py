"""Log-probabilities of whole completions, and the scores of their tokens, under any parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ondevice.data.completion_batches import (
    Ids,
    Row,
    general_width,
    group_by_length,
    text_batch,
)
from ondevice.data.few_shapes import FewShapes
from ondevice.data.packing import Batch
from ondevice.data.shared_prompts import NO_SHARING, answer_batch, cut_rows
from ondevice.models.model import Model
from ondevice.models.score_head import scalar_head
from ondevice.models.tables import with_tables
from ondevice.seam.group import deal
from ondevice.seam.ops import Array, Params
from ondevice.seam.protocols import Backend
from ondevice.training.logprobs import token_logprobs

Floats = NDArray[np.floating[Any]]


class Scorer:
    """Figures of whole completions or texts under parameters given at each call: float32, no
    gradient. Where several processes ask, each computes those of some rows, and all get all.
    """

    def __init__(
        self, model: Model, backend: Backend, *, temperature: float = 1.0, batch_size: int = 64
    ) -> None:
        self.backend, self.batch_size = backend, batch_size
        self._few: FewShapes | None = None
        self.width_of: Callable[[int], int] = general_width  # of rows of prompts
        network = self.network = model.network

        def logprobs(params: Params, batch: dict[str, Array]) -> Array:
            ops = backend.ops
            hidden = network.hidden(ops, params, batch, at=batch["index"])
            return token_logprobs(ops, params, network.head, hidden, batch["targets"], temperature)[
                0
            ]

        def states(params: Params, batch: dict[str, Array]) -> Array:
            hidden = network.hidden(backend.ops, params, batch, at=batch["index"])
            return backend.ops.cast(hidden, "float32")

        def at(place: str) -> Any:
            return lambda params, batch: scalar_head(
                backend.ops,
                params,
                network,
                network.hidden(backend.ops, params, batch, at=batch[place]),
            )

        self._logprobs = backend.inference_fn(logprobs)
        self._states = backend.inference_fn(states)
        self._values, self._scores = (
            backend.inference_fn(at("index")),
            backend.inference_fn(at("read")),
        )

    def expect(self, parts: Callable[[], Iterable[Sequence[Row]]]) -> None:
        """Chooses the shapes of batches by these parts of rows, each of which is scored by itself: so
        few are traced. Rows of other lengths are scored as well."""

        def groups(size: int) -> Iterator[Sequence[Row]]:
            for rows in parts():
                for group in self._cut(rows, size):
                    yield [rows[i] for i in group]

        self._few = FewShapes(groups)

    def _placed(self, batch: Batch) -> dict[str, Any]:
        return with_tables(self.network, self.backend.ops, batch)

    def logprobs(self, params: Params, rows: Sequence[Row]) -> list[Floats]:
        """log p of every token of each completion, (its length,) each."""
        return self._of_tokens(self._logprobs, params, rows)

    def values(self, params: Params, rows: Sequence[Row]) -> list[Floats]:
        """A value model's figure for the state before every token of each completion, (its length,)
        each.
        """
        return self._of_tokens(self._values, params, rows)

    def features(self, params: Params, rows: Sequence[Row]) -> Floats:
        """(N, 2 H) what the network makes of each completion: the mean of the states that predict
        its tokens, and the last of them. This process computes those of all rows by itself."""
        found = []
        for states in self._of_own_tokens(self._states, params, rows):
            found.append(np.concatenate([states.mean(0, dtype=np.float64), states[-1]]))
        return np.array(found, np.float64)

    def scores(self, params: Params, texts: Sequence[Ids]) -> Floats:
        """(N,) a reward model's figure for each whole text."""
        group = self.backend.group
        if not group.several:
            return self._own_scores(params, texts)
        parts = deal([len(text) for text in texts], group.size)
        own = self._own_scores(params, [texts[i] for i in parts[group.rank]])
        return np.concatenate(group.gather_parts(own.reshape(-1, 1), parts))  # type: ignore[arg-type]

    def _own_scores(self, params: Params, texts: Sequence[Ids]) -> Floats:
        out = np.zeros(len(texts), np.float32)
        for group in group_by_length([len(text) for text in texts], self.batch_size):
            batch = text_batch([texts[i] for i in group], self.batch_size, self.network.pooling)
            out[group] = self.backend.numpy(self._scores(params, self._placed(batch)))[: len(group)]
        return out

    def _of_tokens(self, fn: Any, params: Params, rows: Sequence[Row]) -> list[Floats]:
        group = self.backend.group
        if not group.several:
            return self._of_own_tokens(fn, params, rows)
        parts = self._dealt(rows)
        own = self._of_own_tokens(fn, params, [rows[i] for i in parts[group.rank]])
        return group.gather_parts(own, parts)

    def _dealt(self, rows: Sequence[Row]) -> list[list[int]]:
        """The rows of each process: those that go on from one prompt, side by side, stay together."""
        blocks: list[list[int]] = []
        before: Ids | None = None
        for n, row in enumerate(rows):
            if before is None or not np.array_equal(before, row.prompt):
                blocks.append([])
            blocks[-1].append(n)
            before = row.prompt
        weights = [sum(rows[n].length for n in block) for block in blocks]
        parts = deal(weights, self.backend.group.size)
        return [[n for block in part for n in blocks[block]] for part in parts]

    @property
    def _prompt_rows(self) -> int:
        return 1 if self.network.shares_prompts else NO_SHARING

    def _cut(self, rows: Sequence[Row], size: int) -> list[NDArray[np.int64]]:
        return cut_rows(rows, size, self.network.decoder_start_token_id, self._prompt_rows)

    def _of_own_tokens(self, fn: Any, params: Params, rows: Sequence[Row]) -> list[Floats]:
        out: list[Floats] = [np.zeros(0, np.float32)] * len(rows)
        if not rows:
            return out
        start = self.network.decoder_start_token_id
        for group in self._cut(rows, self.batch_size):
            some = [rows[i] for i in group]
            batch: Batch = answer_batch(
                some,
                self.batch_size,
                start=start,
                prompt_rows=self._prompt_rows,
                few=self._few,
                width_of=self.width_of,
            )
            del batch["member"]
            flat = self.backend.numpy(fn(params, self._placed(batch)))
            ends = np.cumsum([len(rows[i].completion) for i in group])
            for i, part in zip(group, np.split(flat, ends)[:-1], strict=True):
                out[i] = part
        return out
