"""Decoding with a library's own model, and the choice between that and our own (`generator_of`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np

from ondevice.inference.generator import Generator, Reader
from ondevice.inference.next_token import Sampling
from ondevice.inference.slots import Asked, Row
from ondevice.models.external_library import LibraryNetwork
from ondevice.models.model import Model
from ondevice.seam.ops import Params
from ondevice.seam.protocols import Backend


class LibraryGenerator(Generator):
    """Decodes by a library's own cache, which may hold states of any kind: what is read at once has
    one length, and no row leaves before the others. A search reads its texts anew at each token."""

    def _write(
        self,
        params: Params,
        asked: list[Asked],
        together: int,
        tell: Callable[[Row, int], None],
        at_once: bool,
    ) -> None:
        for _, alike in groupby(asked, key=lambda one: len(one.prompt)):
            group = list(alike)
            for start in range(0, len(group), together):
                self._write_alike(params, group[start : start + together], tell)

    def _write_alike(
        self, params: Params, asked: Sequence[Asked], tell: Callable[[Row, int], None]
    ) -> None:
        """Rows whose prompts have one length."""
        assert isinstance(self.network, LibraryNetwork)
        prompts = [one.prompt for one in asked]
        rows = [row for one in asked for row in one.rows]
        samples = len(asked[0].rows)
        read = self.network.lib.reading(params)
        ids = np.repeat(np.array(prompts, np.int32), samples, 0)
        seen = self._seen(prompts, samples)
        while not all(row.done for row in rows):
            last = read(self.backend.array(ids))
            u = np.array([row.next_uniform() for row in rows], np.float32)
            ids = self.backend.numpy(self._first(params, last, seen, u)).astype(np.int32)
            for row, token in zip(rows, ids.tolist(), strict=True):
                tell(row, token)
            for table in seen:
                table[np.arange(len(rows)), ids] = 1
            ids = ids.reshape(-1, 1)

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
