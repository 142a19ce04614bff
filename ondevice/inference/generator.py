"""Batched decoding: one compiled step, a KV cache that grows in blocks, rows that leave when they are
done.

The host looks every few tokens; between looks the device is never asked. A draw is the inverse of
the cumulative distribution at a uniform that depends on (seed, stage, step, row, token) alone: a
row's text does not depend on its neighbours, nor on the backend.

Chosen: uniforms from the host in place of a library's generator, because PPO and GRPO must sample
the same rollout after a resume, with another batch size, and on the other backend. Blocks, because
every new shape of the cache is a new trace for a compiler. Rows that are done leave at a look, so
that the longest answer is not paid for by all.
Left out: paged attention and continuous batching as in vLLM, whose gain is in serving many requests
that come at any time; speculative decoding, which needs a second model in the same memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ondevice.common.errors import UserError
from ondevice.common.rng import uniforms
from ondevice.config.drawing import check_temperature
from ondevice.data.completion_batches import context_length
from ondevice.data.truncation import truncated
from ondevice.models.encoder import Encoder
from ondevice.models.kv_cache import Cache
from ondevice.models.library import LibraryNetwork
from ondevice.models.model import Model
from ondevice.seam.ops import Array, Ops, Params
from ondevice.seam.protocols import Backend

BLOCK = 32  # the cache grows by this many tokens
LOOK = 8  # tokens between two looks of the host


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy; top_k 0 and top_p 1 keep the whole distribution. A
    repetition_penalty (Keskar 2019) divides the logits of tokens that stand in the prompt or the
    answer where they are above 0, and multiplies the others; 1 changes nothing. Raises UserError
    for a temperature that cannot be drawn at."""

    max_new_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        check_temperature(self.temperature)


@dataclass(frozen=True)
class Completion:
    """`ids` without the stop token `stop`, which is None where the limit came first (also where the
    model's folder forces a stop token there)."""

    ids: list[int]
    stop: int | None = None

    @property
    def stopped(self) -> bool:
        return self.stop is not None


@dataclass
class _Row:
    """A row still being decoded."""

    at: int  # its place among the prompts
    limit: int
    ids: list[int]
    uniforms: NDArray[np.float32]


def generator_of(
    model: Model, backend: Backend, sampling: Sampling, *, compile: str = "auto"
) -> Generator:
    """What decodes with the model, whichever architecture it is of."""
    kind = LibraryGenerator if isinstance(model.network, LibraryNetwork) else Generator
    return kind(model, backend, sampling, compile=compile)


class Generator:
    """Decodes with one model's shapes; parameters are given at each call, so that a training run
    can sample.

    `prompts` are token ids. One that is longer than the context is cut where it is read beside what
    is written, as the stages cut it (`data/truncation.py`); `is_cut` says so before. Raises
    UserError for an empty prompt, one longer than the context of any other model, or an id outside
    the vocabulary.
    """

    def __init__(
        self, model: Model, backend: Backend, sampling: Sampling, *, compile: str = "auto"
    ) -> None:
        assert not isinstance(model.network, Encoder)
        self.cfg, self.network, self.backend, self.sampling = (
            model.cfg,
            model.network,
            backend,
            sampling,
        )
        self._tokenizer = model.tokenizer
        self.stop_ids = set(model.tokenizer.stop_ids)
        # some models have rows beyond the last token, to fill a block
        self.known = model.tokenizer.vocab_size
        self._words = np.arange(self.known, dtype=np.int32)[None]
        self._forced_first, self._forced_last = self._forced(model)
        self._prefill = backend.inference_fn(self._prefill_fn, compile=compile)
        self._first = backend.inference_fn(self._first_fn, compile=compile)
        self._step = backend.inference_fn(self._step_fn, compile=compile)
        # of a search, whose number of rows changes: a compiled step would be traced too often
        self._advance = backend.inference_fn(self._advance_fn, compile="never")
        self._logprobs = backend.inference_fn(self._logprobs_fn, compile="never")

    def run(
        self,
        params: Params,
        prompts: Sequence[Sequence[int]],
        *,
        stage: str = "generate",
        step: int = 0,
        first: int = 0,
        samples: int = 1,
        batch_size: int = 64,
        on_token: Callable[[int, int], None] | None = None,
    ) -> list[Completion]:
        """`samples` completions a prompt, one prompt's after another's; a prompt is read once for
        all of them. `on_token(row, id)` is told of each token as it comes. Rows count from `first`
        on: what a row draws follows from its number, whether it is asked alone or among others."""
        prompts = [self._checked(prompt) for prompt in prompts]
        out: list[Completion | None] = [None] * (len(prompts) * samples)
        # like lengths together: less padding
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        for asked in self._groups(order, prompts, max(1, batch_size // samples)):
            rows = []
            for i in asked:
                taken = self.network.prompt_width(len(prompts[i]))
                limit = min(self.sampling.max_new_tokens, self.cfg.max_position_embeddings - taken)
                rows += [
                    _Row(at, limit, [], self._uniforms(stage, step, first + at, limit))
                    for at in range(i * samples, (i + 1) * samples)
                ]
            self._batch(params, rows, [prompts[i] for i in asked], out, on_token)
        return [c for c in out if c is not None]

    def reader(self, params: Params, prompt: Sequence[int]) -> Reader:
        """What stands behind a search among several continuations of one prompt."""
        return Reader(self, params, self._checked(prompt))

    def _groups(
        self, order: list[int], prompts: Sequence[Sequence[int]], together: int
    ) -> Iterator[list[int]]:
        """The prompts that are read at once, by their numbers, at most `together`."""
        for start in range(0, len(order), together):
            yield order[start : start + together]

    def is_cut(self, prompt: Sequence[int]) -> bool:
        """Whether only a part of the prompt is read."""
        return (
            self.network.decoder_start_token_id is not None
            and len(prompt) > self.cfg.max_position_embeddings
        )

    def _checked(self, prompt: Sequence[int]) -> Sequence[int]:
        if not prompt:
            raise UserError("is empty", where="prompt", hint="write something")
        if self.is_cut(prompt):
            prompt = truncated(prompt, self.cfg.max_position_embeddings, self._tokenizer).tolist()
        if (
            context_length(len(prompt), 1, self.network.decoder_start_token_id)
            > self.cfg.max_position_embeddings
        ):
            raise UserError(
                f"has {len(prompt)} tokens, the model's context holds {self.cfg.max_position_embeddings}",
                where="prompt",
                hint="shorten it",
            )
        if min(prompt) < 0 or max(prompt) >= self.cfg.vocab_size:
            raise UserError(
                f"token id {min(prompt) if min(prompt) < 0 else max(prompt)} is outside the vocabulary of "
                f"{self.cfg.vocab_size}",
                where="prompt",
            )
        return prompt

    def _uniforms(self, stage: str, step: int, row: int, limit: int) -> NDArray[np.float32]:
        if not self.sampling.temperature:
            return np.zeros(limit, np.float32)
        return uniforms(self.sampling.seed, stage, step, row, limit)

    def _forced(self, model: Model) -> tuple[int | None, int | None]:
        """What the folder forces as the first token after the one that opens what is written, and
        as the last one where the limit comes first, as transformers does (BART's `<s>` and `</s>`).
        Raises UserError for what is no token."""
        found: list[int | None] = []
        for name in ("forced_bos_token_id", "forced_eos_token_id"):
            value = model.generation.get(name)
            if value is not None and not (isinstance(value, int) and 0 <= value < self.known):
                raise UserError(
                    f"{name} is {value!r}, the vocabulary has {self.known} tokens",
                    where=str(model.folder / "generation_config.json"),
                    hint="leave it out",
                )
            found.append(value)
        return found[0] if self.network.decoder_start_token_id is not None else None, found[1]

    def _batch(
        self,
        params: Params,
        rows: list[_Row],
        prompts: list[Sequence[int]],
        out: list[Completion | None],
        on_token: Callable[[int, int], None] | None,
    ) -> None:
        samples = len(rows) // len(prompts)
        cache, last, longest = self._read(params, prompts, samples)
        seen = [self.backend.array(x) for x in self._seen(prompts, samples)]
        token, done = self._first(params, last, seen, _column(rows, 0)), 0
        if self._forced_first is not None:
            token = self.backend.array(np.full(len(rows), self._forced_first, np.int32))
        look = 1 if on_token else LOOK
        fresh = [token]
        while rows:
            for _ in range(look - len(fresh)):
                done += 1
                token, keys, values, at, seen = self._step(
                    params,
                    token,
                    cache.keys,
                    cache.values,
                    cache.lengths,
                    cache.fixed,
                    seen,
                    _column(rows, done),
                )
                cache = Cache(keys, values, at, cache.fixed)
                fresh.append(token)
            written = np.stack([self.backend.numpy(t) for t in fresh], 1)
            fresh = []
            alive = [
                i for i, row in enumerate(rows) if not self._take(row, written[i], out, on_token)
            ]
            if len(alive) * 2 <= len(rows):  # halving: a compiled step then sees few batch sizes
                keep = (alive + [alive[0]] * len(rows))[: max(len(rows) // 2, 1)] if alive else []
                if not alive:
                    return
                rows = [
                    rows[i] if n < len(alive) else _Row(-1, 0, [], np.zeros(0, np.float32))
                    for n, i in enumerate(keep)
                ]
                index = np.array(keep, np.int32)
                cache, token = self._select(cache, token, index)
                seen = [x[self.backend.array(index)] for x in seen]
            cache = self._grow(cache, longest + done + look + 1)

    def _seen(self, prompts: Sequence[Sequence[int]], samples: int) -> list[NDArray[np.float32]]:
        """(rows, V) 1 where a row has a token already, nothing where nobody asks. Of what is read
        apart from what is written, as an encoder-decoder's source, none counts but the token that
        opens the answer: as in transformers."""
        if self.sampling.repetition_penalty == 1:
            return []
        table = np.zeros((len(prompts), self.known), np.float32)
        for row, prompt in zip(table, prompts, strict=True):
            start = self.network.decoder_start_token_id
            row[[i for i in (prompt if start is None else [start]) if i < self.known]] = 1
        return [np.repeat(table, samples, 0)]

    def _read(
        self, params: Params, prompts: list[Sequence[int]], samples: int
    ) -> tuple[Cache, Array, int]:
        """(cache, last hidden states, longest prompt) of rows for `samples` completions of each
        prompt.
        """
        lengths = np.array([len(p) for p in prompts], np.int32)
        width = _round_up(int(lengths.max()), 16)
        ids = np.zeros((len(prompts), width), np.int32)
        for i, prompt in enumerate(prompts):
            ids[i, : len(prompt)] = prompt
        positions = np.minimum(
            np.arange(width, dtype=np.int32), self.cfg.max_position_embeddings - 1
        )
        taken = self.network.prompt_width(width)
        room = _round_up(taken + LOOK, BLOCK)
        ends = (np.arange(len(prompts)) * width + lengths - 1).astype(np.int32)
        last, *cached = self._prefill(
            params,
            ids,
            np.tile(positions, (len(prompts), 1)),
            ends,
            lengths,
            np.zeros(room - taken, np.float32),
        )
        cache = Cache(*cached)
        if samples > 1:
            cache, last = self._select(
                cache, last, np.repeat(np.arange(len(prompts), dtype=np.int32), samples)
            )
        return cache, last, self.network.prompt_width(int(lengths.max()))

    def _take(
        self,
        row: _Row,
        seen: NDArray[Any],
        out: list[Completion | None],
        on_token: Callable[[int, int], None] | None,
    ) -> bool:
        """Adds what a row has written since the last look; True when it is done."""
        if row.at < 0 or out[row.at] is not None:
            return True
        for token in seen.tolist():
            stopped = token in self.stop_ids
            if not stopped and self._forced_last is not None and len(row.ids) + 1 == row.limit:
                if (
                    self._forced_last in self.stop_ids
                ):  # the limit has ended the text, not the model
                    out[row.at] = Completion(row.ids)
                    return True
                token = self._forced_last
            if not stopped and len(row.ids) < row.limit:
                row.ids.append(token)
                if on_token:
                    on_token(row.at, token)
            if stopped or len(row.ids) >= row.limit:
                out[row.at] = Completion(row.ids, token if stopped else None)
                return True
        return False

    def _select(self, cache: Cache, token: Array, keep: NDArray[np.int32]) -> tuple[Cache, Array]:
        """The rows `keep` of a cache and of what stands beside it, as often as they are named."""
        index = self.backend.array(keep)
        keys, values, fixed = (
            [x[index] for x in xs] for xs in (cache.keys, cache.values, cache.fixed)
        )
        return Cache(keys, values, cache.lengths[index], fixed), token[index]

    def _grow(self, cache: Cache, needed: int) -> Cache:
        b, h, room, c = cache.keys[0].shape
        if needed <= room:
            return cache
        ops = self.backend.ops
        more = ops.zeros((b, h, _round_up(needed - room, BLOCK), c), self.backend.dtype)
        keys, values = ([ops.concat([x, more], 2) for x in xs] for xs in (cache.keys, cache.values))
        return Cache(keys, values, cache.lengths, cache.fixed)

    # what runs on the device

    def _prefill_fn(
        self, params: Params, ids: Array, positions: Array, ends: Array, lengths: Array, room: Array
    ) -> tuple[Array, list[Array], list[Array], Array, list[Array]]:
        ops = self.backend.ops
        assert not isinstance(self.network, LibraryNetwork)
        last, cache = self.network.prefill(ops, params, ids, positions, ends, lengths)
        b, h, _, c = cache.keys[0].shape
        empty = ops.zeros((b, h, room.shape[0], c), self.backend.dtype)
        keys, values = (
            [ops.concat([x, empty], 2) for x in xs] for xs in (cache.keys, cache.values)
        )
        return last, keys, values, cache.lengths, cache.fixed

    def _first_fn(self, params: Params, last: Array, seen: list[Array], u: Array) -> Array:
        return self._draw(self.backend.ops, params, last, u, seen)

    def _step_fn(
        self,
        params: Params,
        token: Array,
        keys: list[Array],
        values: list[Array],
        lengths: Array,
        fixed: list[Array],
        seen: list[Array],
        u: Array,
    ) -> tuple[Array, list[Array], list[Array], Array, list[Array]]:
        ops = self.backend.ops
        assert not isinstance(self.network, LibraryNetwork)
        hidden, cache = self.network.decode(
            ops, params, token.reshape(-1, 1), Cache(keys, values, lengths, fixed)
        )
        if seen:
            away = token.reshape(-1, 1) - ops.constant(self._words)
            seen = [ops.where(ops.maximum(away, -away) < 1, 1.0, x) for x in seen]
        return (
            self._draw(ops, params, hidden, u, seen),
            cache.keys,
            cache.values,
            cache.lengths,
            seen,
        )

    def _advance_fn(
        self,
        params: Params,
        token: Array,
        keys: list[Array],
        values: list[Array],
        lengths: Array,
        fixed: list[Array],
    ) -> tuple[Array, list[Array], list[Array], Array]:
        ops = self.backend.ops
        assert not isinstance(self.network, LibraryNetwork)
        hidden, cache = self.network.decode(
            ops, params, token.reshape(-1, 1), Cache(keys, values, lengths, fixed)
        )
        return hidden.reshape(hidden.shape[0], -1), cache.keys, cache.values, cache.lengths

    def _logprobs_fn(self, params: Params, last: Array) -> Array:
        ops = self.backend.ops
        z = self.network.head.logits(ops, params, last)[:, : self.known]
        return z - ops.logsumexp(z, -1).reshape(-1, 1)

    def _draw(
        self, ops: Ops, params: Params, hidden: Array, u: Array, seen: Sequence[Array] = ()
    ) -> Array:
        """(B,) next tokens from hidden (B, D) or (B, 1, D), uniforms (B,), and what each row has
        already (`_seen`).
        """
        s = self.sampling
        z = self.network.head.logits(ops, params, hidden.reshape(hidden.shape[0], -1))[
            :, : self.known
        ]
        for table in seen:
            z = ops.where(
                table > 0, ops.where(z < 0, z * s.repetition_penalty, z / s.repetition_penalty), z
            )
        if not s.temperature:
            return ops.cast(ops.argmax(z, -1), "int32")
        p = ops.softmax(z / s.temperature, -1)
        v = p.shape[-1]
        if 0 < s.top_k < v:
            least = ops.sort(p, -1)[:, v - s.top_k : v - s.top_k + 1]
            p = ops.where(p < least, 0.0, p)
        if s.top_p < 1:
            p = p / ops.sum(p, -1, True)
            rising = ops.sort(p, -1)
            least = -ops.max(
                ops.where(ops.cumsum(rising, -1) > 1 - s.top_p, -rising, -2.0), -1, True
            )
            # the likeliest stays, also where rounding leaves no sum above 1 - top_p
            least = ops.minimum(least, rising[:, v - 1 : v])
            p = ops.where(p < least, 0.0, p)
        heap = ops.cumsum(p, -1)
        below = ops.cast(heap <= u.reshape(-1, 1) * heap[:, v - 1 : v], "int32")
        return ops.cast(ops.minimum(ops.sum(below, -1), v - 1), "int32")


class Reader:
    """Log-probabilities of what comes next after each of some texts that begin alike. `limit`: how
    many tokens may be written."""

    def __init__(self, generator: Generator, params: Params, prompt: Sequence[int]) -> None:
        self._g, self._params = generator, params
        taken = generator.network.prompt_width(len(prompt))
        self.limit = min(
            generator.sampling.max_new_tokens, generator.cfg.max_position_embeddings - taken
        )
        self._cache, self._last, self._longest = generator._read(params, [prompt], 1)

    def logprobs(self) -> NDArray[np.float32]:
        """(texts, V)."""
        found: NDArray[np.float32] = self._g.backend.numpy(
            self._g._logprobs(self._params, self._last)
        )
        return found

    def go_on(self, texts: Sequence[int], tokens: Sequence[int]) -> None:
        """The texts to keep, by their numbers, each with its next token."""
        cache, _ = self._g._select(self._cache, self._last, np.array(texts, np.int32))
        self._longest += 1
        cache = self._g._grow(cache, self._longest + 1)
        token = np.array(tokens, np.int32)
        self._last, keys, values, lengths = self._g._advance(
            self._params, token, cache.keys, cache.values, cache.lengths, cache.fixed
        )
        self._cache = Cache(keys, values, lengths, cache.fixed)


class LibraryGenerator(Generator):
    """Decodes by a library's own cache, which may hold states of any kind: what is read at once has
    one length, and no row leaves before the others. A search reads its texts anew at each token."""

    def _groups(
        self, order: list[int], prompts: Sequence[Sequence[int]], together: int
    ) -> Iterator[list[int]]:
        for _, alike in groupby(order, key=lambda i: len(prompts[i])):
            yield from super()._groups(list(alike), prompts, together)

    def _batch(
        self,
        params: Params,
        rows: list[_Row],
        prompts: list[Sequence[int]],
        out: list[Completion | None],
        on_token: Callable[[int, int], None] | None,
    ) -> None:
        assert isinstance(self.network, LibraryNetwork)
        read = self.network.lib.reading(params)
        ids = np.repeat(np.array(prompts, np.int32), len(rows) // len(prompts), 0)
        seen = self._seen(prompts, len(rows) // len(prompts))
        for done in range(max(row.limit for row in rows)):
            token = self._first(params, read(self.backend.array(ids)), seen, _column(rows, done))
            written = self.backend.numpy(token).reshape(-1, 1)
            if all([self._take(row, written[i], out, on_token) for i, row in enumerate(rows)]):
                return
            ids = written.astype(np.int32)
            for table in seen:
                table[np.arange(len(rows)), ids[:, 0]] = 1

    def reader(self, params: Params, prompt: Sequence[int]) -> Reader:
        return _Rereader(self, params, self._checked(prompt))


class _Rereader(Reader):
    def __init__(self, generator: LibraryGenerator, params: Params, prompt: Sequence[int]) -> None:
        self._g, self._params, self._texts = generator, params, [list(prompt)]
        self.limit = min(
            generator.sampling.max_new_tokens, generator.cfg.max_position_embeddings - len(prompt)
        )
        self._read()

    def _read(self) -> None:
        network = self._g.network
        assert isinstance(network, LibraryNetwork)
        self._last = network.lib.reading(self._params)(
            self._g.backend.array(np.array(self._texts, np.int32))
        )

    def go_on(self, texts: Sequence[int], tokens: Sequence[int]) -> None:
        self._texts = [
            [*self._texts[text], token] for text, token in zip(texts, tokens, strict=True)
        ]
        self._read()


def _column(rows: list[_Row], token: int) -> NDArray[np.float32]:
    return np.array(
        [r.uniforms[token] if token < len(r.uniforms) else 0.0 for r in rows], np.float32
    )


def _round_up(n: int, block: int) -> int:
    return -(-n // block) * block
