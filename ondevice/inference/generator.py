"""Batched decoding: one compiled step and a KV cache that grows in blocks (`slots.py` has the rows).

A draw is the inverse of the cumulative distribution at a uniform that depends on (seed, stage,
step, row, token) alone: a row's text does not depend on its neighbours, nor on the backend.

Chosen: uniforms from the host in place of a library's generator, because PPO and GRPO must sample
the same rollout after a resume, with another batch size, and on the other backend. Blocks, because
every new shape of the cache is a new trace for a compiler.
Left out: paged attention as in vLLM, whose gain is in serving many requests that come at any time;
speculative decoding, which needs a second model in the same memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ondevice.common.errors import UserError
from ondevice.common.rng import uniforms
from ondevice.data.completion_batches import context_length, general_width
from ondevice.data.truncation import truncated
from ondevice.inference.next_token import Sampling, draw
from ondevice.inference.slots import LOOK, Asked, Completion, Row, Slots, places
from ondevice.models.encoder import Encoder
from ondevice.models.external_library import LibraryNetwork
from ondevice.models.kv_cache import Cache
from ondevice.models.model import Model
from ondevice.models.tables import placed
from ondevice.seam.ops import Array, Ops, Params
from ondevice.seam.protocols import Backend


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
        self.cfg = model.cfg
        self.network = model.network
        self.backend = backend
        self.sampling = sampling
        self._tokenizer = model.tokenizer
        self.stop_ids = set(model.tokenizer.stop_ids)
        # some models have rows beyond the last token, to fill a block
        self.known = model.tokenizer.vocab_size
        # Who asks again and again knows the prompts: how wide they are read, and for how many places
        # there is room from the start, so that a compiler sees few shapes.
        self.width_of: Callable[[int], int] = general_width
        self.room = 0
        self._words = np.arange(self.known, dtype=np.int32)[None]
        self._forced_first, self._forced_last = self._forced(model)
        self.traced = backend.compiles(compile)
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
        numbers: Sequence[int] | None = None,
    ) -> list[Completion]:
        """`samples` completions a prompt, one prompt's after another's; a prompt is read once for
        all of them. `on_token(row, id)` is told of each token as it comes. Rows count from `first`
        on: what a row draws follows from its number, whether it is asked alone or among others.
        `numbers`: those of the prompts, where they are some of more."""
        prompts = [self._checked(prompt) for prompt in prompts]
        out: list[Completion | None] = [None] * (len(prompts) * samples)
        lengths = [len(prompt) for prompt in prompts]
        # like lengths together: less padding
        order = sorted(range(len(prompts)), key=lengths.__getitem__)
        asked = []
        for i in order:
            limit = self.limit(lengths[i])
            rows = []
            number = i if numbers is None else numbers[i]
            for n in range(samples):
                u = self._uniforms(stage, step, first + number * samples + n, limit)
                rows.append(Row(i * samples + n, limit, u))
            asked.append(Asked(prompts[i], rows))

        def tell(row: Row, token: int) -> None:
            self._take(row, token, out, on_token)

        self._write(params, asked, max(1, batch_size // samples), tell, on_token is not None)
        return [c for c in out if c is not None]

    def _write(
        self,
        params: Params,
        asked: list[Asked],
        together: int,
        tell: Callable[[Row, int], None],
        at_once: bool,
    ) -> None:
        """Decodes all rows, `together` prompts of them side by side, and tells of each token;
        `at_once`: as soon as it is there."""
        if asked:
            Slots(self, params, asked, together, tell).run(1 if at_once else LOOK, int(at_once))
            # its keys and values are of no use to what comes next
            self.backend.clear_cache()

    def limit(self, length: int) -> int:
        """How many tokens may be written after a prompt of so many."""
        taken = self.network.prompt_width(length)
        return min(self.sampling.max_new_tokens, self.cfg.max_position_embeddings - taken)

    def reader(self, params: Params, prompt: Sequence[int]) -> Reader:
        """What stands behind a search among several continuations of one prompt."""
        return Reader(self, params, self._checked(prompt))

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
        room = self.cfg.max_position_embeddings
        if context_length(len(prompt), 1, self.network.decoder_start_token_id) > room:
            raise UserError(
                f"has {len(prompt)} tokens, the model's context holds {room}",
                where="prompt",
                hint="shorten it",
            )
        lowest = min(prompt)
        highest = max(prompt)
        if lowest < 0 or highest >= self.cfg.vocab_size:
            outside = lowest if lowest < 0 else highest
            raise UserError(
                f"token id {outside} is outside the vocabulary of {self.cfg.vocab_size}",
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
        first = self._forced_token(model, "forced_bos_token_id")
        last = self._forced_token(model, "forced_eos_token_id")
        if self.network.decoder_start_token_id is None:
            return None, last
        return first, last

    def _forced_token(self, model: Model, name: str) -> int | None:
        value = model.generation.get(name)
        if value is None:
            return None
        if not isinstance(value, int) or not 0 <= value < self.known:
            raise UserError(
                f"{name} is {value!r}, the vocabulary has {self.known} tokens",
                where=str(model.folder / "generation_config.json"),
                hint="leave it out",
            )
        return value

    def _opened(
        self, params: Params, last: Array, seen: list[Array], u: NDArray[np.float32]
    ) -> Array:
        """(rows,) the first token of each row, from the states `last` that its prompt ends with."""
        if self._forced_first is not None:
            return self.backend.array(np.full(len(u), self._forced_first, np.int32))
        token: Array = self._first(params, last, seen, u)
        return token

    def _next(
        self, params: Params, token: Array, cache: Cache, seen: list[Array], u: NDArray[np.float32]
    ) -> tuple[Array, Cache, list[Array]]:
        """(next token of each row, the cache with it, what each row has then)."""
        token, keys, values, lengths, seen = self._step(
            params,
            self._tables(cache),
            token,
            cache.keys,
            cache.values,
            cache.lengths,
            cache.fixed,
            seen,
            u,
        )
        return token, Cache(keys, values, lengths, cache.fixed), seen

    def _tables(self, cache: Cache) -> dict[str, Array]:
        """The network's tables for as many places as the cache has, and the ids of all tokens."""
        ops = self.backend.ops
        tables = placed(self.network, ops, cache.keys[0].shape[2])
        return {**tables, "words": ops.constant(self._words)}

    def _seen(self, prompts: Sequence[Sequence[int]], samples: int) -> list[NDArray[np.float32]]:
        """(rows, V) 1 where a row has a token already, nothing where nobody asks. Of what is read
        apart from what is written, as an encoder-decoder's source, none counts except the token that
        opens the answer: as in transformers."""
        if self.sampling.repetition_penalty == 1:
            return []
        table = np.zeros((len(prompts), self.known), np.float32)
        start = self.network.decoder_start_token_id
        for row, prompt in zip(table, prompts, strict=True):
            had = prompt if start is None else [start]
            row[[i for i in had if i < self.known]] = 1
        return [np.repeat(table, samples, 0)]

    def _read(
        self, params: Params, prompts: Sequence[Sequence[int]], samples: int, room: int = 0
    ) -> tuple[Cache, Array]:
        """(cache with at least `room` places, last hidden states) of rows for `samples` completions
        of each prompt."""
        lengths = np.array([len(p) for p in prompts], np.int32)
        width = self.width_of(int(lengths.max()))
        ids = np.zeros((len(prompts), width), np.int32)
        for i, prompt in enumerate(prompts):
            ids[i, : len(prompt)] = prompt
        positions = np.minimum(
            np.arange(width, dtype=np.int32), self.cfg.max_position_embeddings - 1
        )
        taken = self.network.prompt_width(width)
        room = max(room, self.room, self._room(int(lengths.max()) + 1))
        ends = (np.arange(len(prompts)) * width + lengths - 1).astype(np.int32)
        last, *cached = self._prefill(
            params,
            placed(self.network, self.backend.ops, width),
            ids,
            np.tile(positions, (len(prompts), 1)),
            ends,
            lengths,
            np.zeros(max(0, room - taken), np.float32),
        )
        cache = Cache(*cached)
        if samples > 1:
            cache, last = self._select(
                cache, last, np.repeat(np.arange(len(prompts), dtype=np.int32), samples)
            )
        return cache, last

    def _room(self, length: int) -> int:
        """Places of a cache that has room for a prompt of `length` tokens and for a look."""
        taken = self.network.prompt_width(self.width_of(length))
        return places(max(taken, self.network.prompt_width(length) + LOOK + 1))

    def _take(
        self,
        row: Row,
        token: int,
        out: list[Completion | None],
        on_token: Callable[[int, int], None] | None,
    ) -> None:
        """Adds what a row has written."""
        if row.done:
            return
        stopped = token in self.stop_ids
        if not stopped and self._forced_last is not None and len(row.ids) + 1 == row.limit:
            # the limit has ended the text, not the model
            if self._forced_last in self.stop_ids:
                out[row.at] = Completion(row.ids)
                row.done = True
                return
            token = self._forced_last
        if not stopped and len(row.ids) < row.limit:
            row.ids.append(token)
            if on_token:
                on_token(row.at, token)
        if stopped or len(row.ids) >= row.limit:
            out[row.at] = Completion(row.ids, token if stopped else None)
            row.done = True

    def _select(self, cache: Cache, token: Array, keep: NDArray[np.int32]) -> tuple[Cache, Array]:
        """The rows `keep` of a cache and of what stands beside it, as often as they are named."""
        index = self.backend.array(keep)
        keys = [x[index] for x in cache.keys]
        values = [x[index] for x in cache.values]
        fixed = [x[index] for x in cache.fixed]
        return Cache(keys, values, cache.lengths[index], fixed), token[index]

    def _grow(self, cache: Cache, needed: int) -> Cache:
        b, h, room, c = cache.keys[0].shape
        if needed <= room:
            return cache
        ops = self.backend.ops
        more = ops.zeros((b, h, places(needed) - room, c), self.backend.dtype)
        keys = [ops.concat([x, more], 2) for x in cache.keys]
        values = [ops.concat([x, more], 2) for x in cache.values]
        return Cache(keys, values, cache.lengths, cache.fixed)

    # what runs on the device

    def _prefill_fn(
        self,
        params: Params,
        tables: Mapping[str, Array],
        ids: Array,
        positions: Array,
        ends: Array,
        lengths: Array,
        room: Array,
    ) -> tuple[Array, list[Array], list[Array], Array, list[Array]]:
        ops = self.backend.ops
        assert not isinstance(self.network, LibraryNetwork)
        last, cache = self.network.prefill(ops, params, tables, ids, positions, ends, lengths)
        b, h, _, c = cache.keys[0].shape
        empty = ops.zeros((b, h, room.shape[0], c), self.backend.dtype)
        keys = [ops.concat([x, empty], 2) for x in cache.keys]
        values = [ops.concat([x, empty], 2) for x in cache.values]
        return last, keys, values, cache.lengths, cache.fixed

    def _first_fn(self, params: Params, last: Array, seen: list[Array], u: Array) -> Array:
        return self._draw(self.backend.ops, params, last, u, seen)

    def _step_fn(
        self,
        params: Params,
        tables: Mapping[str, Array],
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
            ops, params, tables, token.reshape(-1, 1), Cache(keys, values, lengths, fixed)
        )
        if seen:
            away = token.reshape(-1, 1) - tables["words"]
            seen = [ops.where(ops.maximum(away, -away) < 1, 1.0, x) for x in seen]
        drawn = self._draw(ops, params, hidden, u, seen)
        return drawn, cache.keys, cache.values, cache.lengths, seen

    def _advance_fn(
        self,
        params: Params,
        tables: Mapping[str, Array],
        token: Array,
        keys: list[Array],
        values: list[Array],
        lengths: Array,
        fixed: list[Array],
    ) -> tuple[Array, list[Array], list[Array], Array]:
        ops = self.backend.ops
        assert not isinstance(self.network, LibraryNetwork)
        hidden, cache = self.network.decode(
            ops, params, tables, token.reshape(-1, 1), Cache(keys, values, lengths, fixed)
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
        flat = hidden.reshape(hidden.shape[0], -1)
        logits = self.network.head.logits(ops, params, flat)[:, : self.known]
        return draw(ops, logits, self.sampling, u, seen)


class Reader:
    """Log-probabilities of what comes next after each of some texts that begin alike. `limit`: how
    many tokens may be written."""

    def __init__(self, generator: Generator, params: Params, prompt: Sequence[int]) -> None:
        self._g = generator
        self._params = params
        self.limit = generator.limit(len(prompt))
        self._cache, self._last = generator._read(params, [prompt], 1)
        self._longest = generator.network.prompt_width(len(prompt))

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
            self._params,
            self._g._tables(cache),
            token,
            cache.keys,
            cache.values,
            cache.lengths,
            cache.fixed,
        )
        self._cache = Cache(keys, values, lengths, cache.fixed)
