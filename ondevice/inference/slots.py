"""Rows that are decoded side by side: one that is done gives its slot to the next that waits.

The host looks every few tokens; between looks the device is never waited for. Rows that are done
are seen at a look. While others wait, a slot is filled again by reading the next prompt into it;
when none waits any more, rows leave as they end, so that the longest answer is not paid for by all.

Chosen: slots are filled some at a time, and for a compiler rows leave by halves, because every new
number of rows is a new trace. Where nothing is traced they leave at each look.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ondevice.models.kv_cache import Cache
from ondevice.seam.ops import Array, Params

if TYPE_CHECKING:
    from ondevice.inference.generator import Generator

LOOK = 8  # tokens between two looks of the host
SMALL = 512
"""Places of a cache that is small: for each step all of them are read, also those that hold nothing
yet, and each size is a trace for a compiler."""
BLOCKS = (64, 256)
"""By how many places a small cache grows, and a larger one."""
AGAIN = 8  # a slot waits until there are an eighth of all to be filled
LEAST = 8  # rows leave, where nothing is traced, when they are an eighth of all


@dataclass(frozen=True)
class Completion:
    """`ids` without the stop token `stop`, which is None where the limit came first (also where the
    model's folder forces a stop token there)."""

    ids: list[int]
    stop: int | None = None

    @property
    def stopped(self) -> bool:
        return self.stop is not None


@dataclass(eq=False)
class Row:
    """A row still being decoded. `drawn`: how many of its tokens the device has been asked for."""

    at: int  # its place among the completions
    limit: int
    uniforms: NDArray[np.float32]
    ids: list[int] = field(default_factory=list)
    drawn: int = 0
    done: bool = False

    def next_uniform(self) -> float:
        """What its next token is drawn by, 0 where it has no more."""
        self.drawn += 1
        if self.drawn <= len(self.uniforms):
            return float(self.uniforms[self.drawn - 1])
        return 0.0


class Asked(NamedTuple):
    """A prompt, and the rows that go on from it."""

    prompt: Sequence[int]
    rows: list[Row]


class Column(NamedTuple):
    """One token of each slot, and the row that it is of, None where it is of none."""

    rows: list[Row | None]
    tokens: Array


class Slots:
    """Decodes the rows of all prompts, those of `together` prompts side by side, and tells of every
    token. Prompts come shortest first."""

    def __init__(
        self,
        generator: Generator,
        params: Params,
        asked: Sequence[Asked],
        together: int,
        tell: Callable[[Row, int], None],
    ) -> None:
        self._g = generator
        self._ops = generator.backend.ops
        self._params = params
        self._tell = tell
        self._samples = len(asked[0].rows)
        self._waiting = deque(asked)
        self._fresh: list[Column] = []
        # prompts that are read into free slots at once
        self._again = max(1, min(together, len(asked)) // AGAIN)
        first = self._next_prompts(together)
        self._rows = [row for one in first for row in one.rows]
        # tokens that each slot holds, done rows' too: they go on until the slot is filled again
        self._held = self._lengths(first)
        self._cache, self._token, self._seen = self._read(first, 0)
        self._fresh.append(Column(list(self._rows), self._token))

    def run(self, look: int, behind: int) -> None:
        """Until all rows are done. The host looks every `look` tokens, and reads what the device
        gave `behind` looks ago: meanwhile the device goes on."""
        read: deque[tuple[list[Column], Callable[[], NDArray[Any]]]] = deque()
        while True:
            self._grow(look)
            while len(self._fresh) < look:
                self._step()
            read.append((self._fresh, self._g.backend.read_later(self._stacked())))
            self._fresh = []
            if len(read) > behind:
                columns, tokens = read.popleft()
                self._take(columns, tokens())
            if self._all_done():
                return
            self._fill_again()
            if not self._fresh:  # no slot was just filled
                self._leave()

    # ---- what the rows have written --------------------------------------------------------------

    def _stacked(self) -> Array:
        return self._ops.stack([column.tokens for column in self._fresh])

    def _take(self, columns: Sequence[Column], tokens: NDArray[Any]) -> None:
        for column, found in zip(columns, tokens.tolist(), strict=True):
            for row, token in zip(column.rows, found, strict=True):
                if row is not None:
                    self._tell(row, token)

    def _all_done(self) -> bool:
        return not self._waiting and all(row.done for row in self._rows)

    # ---- what the device does --------------------------------------------------------------------

    def _step(self) -> None:
        u = np.array([row.next_uniform() for row in self._rows], np.float32)
        self._token, self._cache, self._seen = self._g._next(
            self._params, self._token, self._cache, self._seen, u
        )
        self._held = self._held + 1
        self._g.backend.start(self._token)
        self._fresh.append(Column(list(self._rows), self._token))

    def _grow(self, steps: int) -> None:
        """Makes room for so many tokens of every row that goes on."""
        going = [held for row, held in zip(self._rows, self._held, strict=True) if not row.done]
        self._cache = self._g._grow(self._cache, int(max(going)) + steps + 1)

    def _lengths(self, asked: Sequence[Asked]) -> NDArray[np.int64]:
        taken = [self._g.network.prompt_width(len(one.prompt)) for one in asked]
        return np.repeat(np.array(taken, np.int64), self._samples)

    def _next_prompts(self, count: int) -> list[Asked]:
        return [self._waiting.popleft() for _ in range(min(count, len(self._waiting)))]

    def _read(self, asked: Sequence[Asked], room: int) -> tuple[Cache, Array, list[Array]]:
        """(cache, first tokens, what each row has) of all rows of some prompts."""
        prompts = [one.prompt for one in asked]
        cache, last = self._g._read(self._params, prompts, self._samples, room)
        seen = [self._g.backend.array(x) for x in self._g._seen(prompts, self._samples)]
        u = [row.next_uniform() for one in asked for row in one.rows]
        token = self._g._opened(self._params, last, seen, np.array(u, np.float32))
        return cache, token, seen

    def _fill_again(self) -> None:
        """Reads prompts that wait into slots whose rows are done."""
        while self._waiting:
            count = min(self._again, len(self._waiting))
            free = [slot for slot, row in enumerate(self._rows) if row.done]
            if len(free) < count * self._samples:
                return
            self._fill(self._next_prompts(count), free[: count * self._samples])

    def _fill(self, asked: Sequence[Asked], slots: list[int]) -> None:
        longest = max(len(one.prompt) for one in asked)
        self._cache = self._g._grow(self._cache, self._g._room(longest))
        cache, token, seen = self._read(asked, self._cache.keys[0].shape[2])
        rows = [row for one in asked for row in one.rows]
        ops = self._ops
        place = self._g.backend.array(np.array(slots, np.int32))

        def put(into: Sequence[Array], new: Sequence[Array]) -> list[Array]:
            return [ops.put(x, place, y) for x, y in zip(into, new, strict=True)]

        held = self._cache
        # what an encoder has read may be longer than what the slots have room for
        fixed, new_fixed = self._alike(held.fixed, cache.fixed)
        self._cache = Cache(
            put(held.keys, cache.keys),
            put(held.values, cache.values),
            ops.put(held.lengths, place, cache.lengths),
            put(fixed, new_fixed),
        )
        self._seen = put(self._seen, seen)
        self._token = ops.put(self._token, place, token)
        fresh: list[Row | None] = [None] * len(self._rows)
        for slot, row, length in zip(slots, rows, self._lengths(asked), strict=True):
            self._rows[slot] = row
            self._held[slot] = length
            fresh[slot] = row
        self._fresh.append(Column(fresh, self._token))

    def _alike(
        self, held: Sequence[Array], new: Sequence[Array]
    ) -> tuple[list[Array], list[Array]]:
        """Both with as many places: the shorter ones are filled up at their end."""
        a = []
        b = []
        for x, y in zip(held, new, strict=True):
            if x.ndim == 4:
                width = max(x.shape[2], y.shape[2])
            else:
                width = 0
            a.append(self._wide(x, width))
            b.append(self._wide(y, width))
        return a, b

    def _wide(self, x: Array, width: int) -> Array:
        if x.ndim != 4 or x.shape[2] == width:
            return x
        b, h, held, c = x.shape
        more = self._ops.zeros((b, h, width - held, c), self._g.backend.dtype)
        return self._ops.concat([x, more], 2)

    def _leave(self) -> None:
        """Leaves done rows out: half of the rows where no others are left, or, where nothing is
        traced, all of them that are done."""
        alive = [slot for slot, row in enumerate(self._rows) if not row.done]
        if self._waiting:
            return
        count = len(self._rows)
        if self._g.traced:
            left = count // 2
            few = len(alive) * 2 > count
        else:
            left = len(alive)
            few = (count - len(alive)) * LEAST < count
        if few or count < 2:
            return
        # a done row stands in the rest of the slots
        done = [slot for slot, row in enumerate(self._rows) if row.done]
        kept = np.array([*alive, *done][:left], np.int32)
        self._cache, self._token = self._g._select(self._cache, self._token, kept)
        index = self._g.backend.array(kept)
        self._seen = [x[index] for x in self._seen]
        self._rows = [self._rows[slot] for slot in kept]
        self._held = self._held[kept]


def places(needed: int) -> int:
    """Of a cache that has room for `needed` tokens."""
    return round_up(needed, BLOCKS[0] if needed <= SMALL else BLOCKS[1])


def round_up(n: int, block: int) -> int:
    return -(-n // block) * block
