"""Decoding with a library's own model, and the choice between that and our own (`generator_of`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import numpy as np

from ondevice.inference.generator import Completion, Generator, Reader, Row, column
from ondevice.inference.next_token import Sampling
from ondevice.models.external_library import LibraryNetwork
from ondevice.models.model import Model
from ondevice.seam.ops import Params
from ondevice.seam.protocols import Backend


class LibraryGenerator(Generator):
    """Decodes by a library's own cache, which may hold states of any kind: what is read at once has
    one length, and no row leaves before the others. A search reads its texts anew at each token."""

    def _groups(
        self, order: list[int], prompts: Sequence[Sequence[int]], together: int
    ) -> Iterator[list[int]]:
        lengths = [len(prompt) for prompt in prompts]
        for _, alike in groupby(order, key=lengths.__getitem__):
            yield from super()._groups(list(alike), prompts, together)

    def _batch(
        self,
        params: Params,
        rows: list[Row],
        prompts: list[Sequence[int]],
        out: list[Completion | None],
        on_token: Callable[[int, int], None] | None,
    ) -> None:
        assert isinstance(self.network, LibraryNetwork)
        samples = len(rows) // len(prompts)
        read = self.network.lib.reading(params)
        ids = np.repeat(np.array(prompts, np.int32), samples, 0)
        seen = self._seen(prompts, samples)
        for done in range(max(row.limit for row in rows)):
            last = read(self.backend.array(ids))
            token = self._first(params, last, seen, column(rows, done))
            written = self.backend.numpy(token).reshape(-1, 1)
            if not self._unfinished(rows, written, out, on_token):
                return
            ids = written.astype(np.int32)
            for table in seen:
                table[np.arange(len(rows)), ids[:, 0]] = 1

    def reader(self, params: Params, prompt: Sequence[int]) -> Reader:
        return _Rereader(self, params, self._checked(prompt))


class _Rereader(Reader):
    """Reads every text anew at each token."""

    def __init__(self, generator: LibraryGenerator, params: Params, prompt: Sequence[int]) -> None:
        self._g = generator
        self._params = params
        self._texts = [list(prompt)]
        self.limit = generator.limit(len(prompt))
        self._read()

    def _read(self) -> None:
        network = self._g.network
        assert isinstance(network, LibraryNetwork)
        self._last = network.lib.reading(self._params)(
            self._g.backend.array(np.array(self._texts, np.int32))
        )

    def go_on(self, texts: Sequence[int], tokens: Sequence[int]) -> None:
        longer = []
        for text, token in zip(texts, tokens, strict=True):
            longer.append([*self._texts[text], token])
        self._texts = longer
        self._read()


def generator_of(
    model: Model, backend: Backend, sampling: Sampling, *, compile: str = "auto"
) -> Generator:
    """What decodes with the model, whichever architecture it is of."""
    if isinstance(model.network, LibraryNetwork):
        return LibraryGenerator(model, backend, sampling, compile=compile)
    return Generator(model, backend, sampling, compile=compile)
