"""Rows decoded side by side: how much the device is asked for, and how often it is waited for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import models
from ondevice.inference.generator import Generator
from ondevice.inference.next_token import Sampling
from ondevice.inference.slots import LOOK
from ondevice.seam.protocols import Backend
from test_decoding import RAGGED, make


class Watched(Generator):
    """Notes what is asked of the device: `steps`, the rows of each step; `asked`, in order, "step"
    and "read"."""

    def watch(self) -> Watched:
        self.steps: list[int] = []
        self.asked: list[str] = []
        step = self._step
        later = self.backend.read_later

        def stepped(params: Any, tables: Any, token: Any, *rest: Any) -> Any:
            self.steps.append(token.shape[0])
            self.asked.append("step")
            return step(params, tables, token, *rest)

        def read_later(x: Any) -> Callable[[], np.ndarray]:
            wait = later(x)

            def read() -> np.ndarray:
                self.asked.append("read")
                return wait()

            return read

        self._step = stepped
        self.backend.read_later = read_later  # type: ignore[method-assign]
        return self


class Limited(Watched):
    """A prompt of n tokens is gone on with by `limits[n]`."""

    limits: list[int]

    def limit(self, length: int) -> int:
        return self.limits[length]


def geometric(count: int, most: int) -> list[int]:
    """Lengths whose mean is about a quarter of the longest that may be."""
    drawn = np.random.default_rng(0).geometric(4 / most, count)
    return [int(n) for n in np.minimum(drawn, most)]


@pytest.mark.slow
def test_slots_of_done_rows_are_filled_again(backend: Backend) -> None:
    """Tokens that the device computes for nobody are few, and texts are those that rows write
    alone."""
    model = make(backend, models.config("llama-gqa-tied", max_position_embeddings=512))
    generator = Limited(model, backend, Sampling(temperature=1.0, seed=2)).watch()
    generator.limits = [0, *geometric(96, 96)]
    rng = np.random.default_rng(1)
    prompts = [rng.integers(3, 97, n).tolist() for n in range(1, 97)]
    written = generator.run(model.params, prompts, batch_size=16)
    tokens = sum(len(c.ids) for c in written)
    assert [len(c.ids) for c in written] == generator.limits[1:]
    assert sum(generator.steps) < 1.45 * tokens
    if generator.traced:  # each number of rows is a trace; elsewhere they leave at each look
        assert len(set(generator.steps)) <= 5
    for at in (0, 40, 95):
        alone = generator.run(model.params, prompts[at : at + 1], first=at)
        assert alone == written[at : at + 1]


@pytest.mark.slow
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("family", ["mistral-window", "gpt2", "t5", "bart"])
def test_a_slot_filled_again_changes_no_text(backend: Backend, family: str, samples: int) -> None:
    """Of any family, with a repetition penalty, with longer prompts after shorter ones."""
    cfg = models.seq2seq_config(family) if family in models.SEQ2SEQ else models.config(family)
    model = make(backend, cfg, stops=(7, 50, 11, 23))
    sampling = Sampling(24, temperature=1.3, seed=1, repetition_penalty=1.2)
    generator = Watched(model, backend, sampling).watch()
    prompts = [*RAGGED, *RAGGED[::-1]]
    few = generator.run(model.params, prompts, samples=samples, batch_size=2 * samples)
    assert max(generator.steps) <= 2 * samples
    together = generator.run(model.params, prompts, samples=samples, batch_size=64)
    assert few == together
    assert len({len(c.ids) for c in few}) > 3


def test_the_host_reads_once_for_eight_tokens(backend: Backend) -> None:
    model = make(backend, models.config("llama"))
    generator = Watched(model, backend, Sampling(64, temperature=0.0)).watch()
    usual = backend.numpy
    reads: list[int] = []

    def numpy(x: Any) -> np.ndarray:
        reads.append(1)
        return usual(x)

    backend.numpy = numpy  # type: ignore[method-assign]
    generator.run(model.params, RAGGED)
    assert generator.asked.count("read") == 64 // LOOK
    assert len(reads) <= 64 // LOOK


def test_a_told_token_is_read_while_the_next_is_computed(backend: Backend) -> None:
    model = make(backend, models.config("llama"))
    generator = Watched(model, backend, Sampling(5, temperature=0.0)).watch()
    told: list[int] = []

    def on_token(_: int, token: int) -> None:
        generator.asked.append("told")
        told.append(token)

    [found] = generator.run(model.params, [RAGGED[0]], on_token=on_token)
    assert told == found.ids
    one = ["step", "read", "told"]
    assert generator.asked == one * 5


@pytest.mark.slow
def test_the_cache_has_few_sizes(backend: Backend) -> None:
    model = make(backend, models.config("llama", max_position_embeddings=1024))
    generator = Generator(model, backend, Sampling(600, temperature=0.0))
    step = generator._step
    rooms: set[int] = set()

    def stepped(params: Any, tables: Any, token: Any, keys: Any, *rest: Any) -> Any:
        rooms.add(keys[0].shape[2])
        return step(params, tables, token, keys, *rest)

    generator._step = stepped
    generator.run(model.params, RAGGED[:2])
    assert rooms == {*range(64, 513, 64), 768}
