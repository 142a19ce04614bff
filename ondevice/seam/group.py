"""The processes that train one model together, and all that they say to each other.

One process is the trivial group (`ALONE`), which asks nobody and costs nothing. What several do is
written once, here, over the few operations of an `Engine`: torch.distributed's or
mlx.core.distributed's. Every meeting begins with a word from each process about itself: where one
has failed, run out of memory or been stopped, the others learn it there, whatever they came for, and
none of them waits for what never comes.

Gradients are summed, never averaged: what a loss is divided by is the whole step's
(`batch["denominator"]`). Only numbers and JSON go over the wire, no code and no pickles.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, NoReturn, Protocol, TypeVar

import numpy as np

from ondevice.common.errors import Interrupted, UserError
from ondevice.common.json_files import parse_json
from ondevice.seam.ops import Array, HostArray, Params

T = TypeVar("T")
CHUNK = 64 << 20  # bytes of tensors or files that go over the wire together
RESUME = "--resume goes on from the newest checkpoint, with any number of processes"

_FINE, _FAILED, _STOPPED, _NO_MEMORY, _AGAIN = range(5)
_AGREE, _NUMBERS, _WORDS, _SUM, _SEND, _END = range(6)
_NAMES = ("agree", "numbers", "words", "sum", "send", "end")


class PeerFailed(UserError):
    """Another process of the run has failed, and has said why."""


class PeerLost(UserError):
    """Another process of the run is gone, without a word. `tells`: whether this process is the one
    of those that are left by which a person hears of it."""

    tells: Callable[[], bool] = staticmethod(lambda: True)


class NotJoined(UserError):
    """This process has not met the others, so that none of them can tell of it."""


class PeerOutOfMemory(MemoryError):
    """Another process of the run has no memory left for what all of them are at."""


class StageAgain(Exception):
    """The first process begins its stage once more: the others wait for its next word."""


class Engine(Protocol):
    """Several processes, by one array library. Each operation is asked for by all of them, in one
    order; each raises ConnectionError where a process is gone."""

    name: str
    rank: int
    size: int

    def gather(self, x: HostArray) -> HostArray:
        """(size, *x.shape) what each process gave, of one shape and type."""
        ...

    def send_host(self, x: HostArray, source: int) -> HostArray:
        """What process `source` gave, of one shape and type."""
        ...

    def sum(self, arrays: Sequence[Array], owner: int | None = None) -> list[Array]:
        """Each array's sum over the processes, float32, the same bits in each of them; with an
        `owner` in that one alone, and the others get anything."""
        ...

    def send(self, arrays: Sequence[Array], source: int) -> list[Array]:
        """What process `source` gave, arrays of one type, on the device."""
        ...

    def tells(self) -> bool:
        """Whether this process, of those that have lost one, is the one that says so."""
        ...

    def close(self) -> None: ...


class Group:
    """`engine` None: one process. `hosts`: the machine of each process."""

    def __init__(self, engine: Engine | None = None) -> None:
        self._engine = engine
        self.rank = 0 if engine is None else engine.rank
        self.size = 1 if engine is None else engine.size
        self.name = "" if engine is None else engine.name
        self.hosts = [socket.gethostname()]
        self.sent = 0  # bytes of arrays that this process has given to others, or had summed
        self._said: list[str] = []
        self.on_said: Callable[[int, str], None] = lambda rank, text: None
        self._over = False  # nobody is met any more
        self.lost = False  # whether that is because a process is gone
        if engine is not None:
            self.hosts = self.gather(socket.gethostname())

    @property
    def leader(self) -> bool:
        """Whether this is the process that shows, writes and holds the lock."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        return self.size > 1

    @property
    def here(self) -> int:
        """How many processes there are on this one's machine."""
        return self.hosts.count(self.hosts[self.rank])

    def described(self) -> str:
        """How many processes there are and where, for people."""
        machines = dict.fromkeys(self.hosts)
        where = " and ".join(f"{self.hosts.count(one)} on {one}" for one in machines)
        return f"{self.size} processes: {where}"

    def title(self, rank: int) -> str:
        """A process, for people."""
        return f"process {rank} of {self.size} ({self.hosts[rank]})"

    # ---- meetings --------------------------------------------------------------------------------

    def agree(self) -> None:
        """Returns once all processes have come here. Raises PeerFailed, Interrupted, PeerOutOfMemory
        or StageAgain where another one has come to that instead."""
        if self._engine is not None:
            self._meet(_AGREE)

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Each flag, where it is set in any of the processes."""
        if self._engine is None:
            return flags
        bits = sum(1 << n for n, flag in enumerate(flags) if flag)
        found = int(np.bitwise_or.reduce(self._meet(_NUMBERS, bits)))
        return tuple(bool(found >> n & 1) for n in range(len(flags)))

    def least(self, number: int) -> int:
        """The smallest of the processes' numbers."""
        if self._engine is None:
            return number
        return int(self._meet(_NUMBERS, number).min())

    def gather(self, value: Any) -> list[Any]:
        """What each process gives, as JSON holds it. What `post` was given goes along."""
        if self._engine is None:
            return [value]
        text = self._words(value)
        sizes = self._meet(_WORDS, len(text))
        return self._exchange(text, sizes)

    def tell(self, value: Any = None) -> Any:
        """The first process's value, in all of them."""
        return self.gather(value if self.leader else None)[0]

    def post(self, text: str) -> None:
        """Something that a person is to hear of this process: the first one hears it at the next
        meeting."""
        self._said.append(text)

    def call(self, name: str) -> None:
        """The first process has the others do what they have by that name (`follow`), and does it
        itself; an empty name ends that."""
        if self._engine is not None:
            self.tell(name)

    def follow(self, **jobs: Callable[[], Any]) -> None:
        """What the first process calls for, until it calls no more."""
        while name := self.tell():
            jobs[name]()

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part: what lies beside each other goes to different ones."""
        return items[self.rank :: self.size]

    def spread(self, items: Iterable[T], of: Callable[[T], Any]) -> list[Any]:
        """What `of` gives for each item, in their order, as JSON holds it: each process asks it of
        every so-many-th one."""
        return self.join([of(item) for item in islice(items, self.rank, None, self.size)])

    def join(self, own: Sequence[Any]) -> list[Any]:
        """What each process has found for its `share`, in the order of the whole, as JSON holds
        it."""
        found = self.gather(list(own))
        return [found[n % self.size][n // self.size] for n in range(sum(map(len, found)))]

    def gather_parts(
        self, own: Sequence[HostArray], parts: Sequence[Sequence[int]]
    ) -> list[HostArray]:
        """All arrays in their places, (n,) float32 each of any n: `parts` has those places of which
        each process gives the arrays, as `deal` makes them."""
        if self._engine is None:
            return list(own)
        lengths = self.gather([len(array) for array in own])
        if len(own):
            flat = np.concatenate(own)
        else:
            flat = np.zeros(0, np.float32)
        flats = self._gather_flat(flat.astype(np.float32, copy=False), [sum(x) for x in lengths])
        out: list[HostArray] = [flat] * sum(map(len, parts))
        for places, sizes, all_of_one in zip(parts, lengths, flats, strict=True):
            if sizes:
                pieces = np.split(all_of_one, np.cumsum(sizes)[:-1])
            else:
                pieces = []
            for place, piece in zip(places, pieces, strict=True):
                out[place] = piece
        return out

    # ---- arrays ----------------------------------------------------------------------------------

    def sum(self, arrays: Params, owner: int | None = None) -> None:
        """Puts each array's sum over the processes in its place: float32, whatever is computed in.
        With an `owner` that one alone has it afterwards."""
        if self._engine is None:
            return
        self._meet(_SUM, len(arrays))
        for names in chunks(arrays):
            self.sent += 4 * sum(_numbers(arrays[n]) for n in names)
            found = self._guard(self._engine.sum, [arrays[n] for n in names], owner)
            arrays.update(zip(names, found, strict=True))

    def sum_figures(self, figures: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
        """Each figure, several numbers, added up over the processes, which may have other names."""
        if self._engine is None:
            return {name: list(values) for name, values in figures.items()}
        out: dict[str, list[float]] = {}
        for one in self.gather({name: [float(v) for v in vs] for name, vs in figures.items()}):
            for name, values in one.items():
                before = out.get(name, [0.0] * len(values))
                out[name] = [a + b for a, b in zip(before, values, strict=True)]
        return out

    def send(self, arrays: Params, source: int = 0) -> None:
        """Puts process `source`'s arrays in the places of those of all, which are of their shapes
        and of one type."""
        if self._engine is None:
            return
        self._meet(_SEND, len(arrays))
        for names in chunks(arrays):
            if self.rank == source:
                self.sent += 4 * sum(_numbers(arrays[n]) for n in names)
            found = self._guard(self._engine.send, [arrays[n] for n in names], source)
            arrays.update(zip(names, found, strict=True))

    def send_bytes(self, data: bytes, size: int) -> bytes:
        """The first process's bytes, `size` of them, in all."""
        if self._engine is None:
            return data
        self._meet(_SEND, size)
        if self.leader:
            own = np.frombuffer(data, np.uint8)
        else:
            own = np.zeros(size, np.uint8)
        sent: HostArray = self._guard(self._engine.send_host, own, 0)
        return sent.tobytes()

    # ---- endings ---------------------------------------------------------------------------------

    def out_of_memory(self, text: str) -> str:
        """Has the others learn, where they meet next, that this one has no memory for it; what all
        of them then say of it."""
        if self._engine is None:
            return text
        try:
            self._meet(_AGREE, state=_NO_MEMORY, words={"said": text})
        except PeerOutOfMemory as error:
            return str(error)
        raise AssertionError("a process without memory is told so itself")

    def begin_again(self) -> None:
        """Has the others leave the stage, which the first process begins once more."""
        if self._engine is not None and not self._over:
            try:
                self._meet(_AGREE, state=_AGAIN, words={})
            except StageAgain:
                return

    def part(self, error: BaseException | None) -> None:
        """The last meeting: why this process ends, None: it is done. Raises what another one tells,
        where this one is done."""
        if self._engine is None or self._over:
            return
        state = _FINE
        words: dict[str, Any] = {}
        if error is not None:
            state = _STOPPED if isinstance(error, Interrupted) else _FAILED
            words = {"error": str(error) or type(error).__name__}
            if not isinstance(error, UserError | Interrupted):
                words["error"] = f"{type(error).__name__}: {words['error']}"
        try:
            self._meet(_END, state=state, words=words)
        except (UserError, Interrupted) as other:
            if error is None:
                raise
            if self.leader and isinstance(other, PeerFailed) and other.message != words["error"]:
                raise other from error
        finally:
            self._over = True

    # ---- below -----------------------------------------------------------------------------------

    def _words(self, value: Any) -> bytes:
        said, self._said = self._said, []
        return json.dumps({"value": value, "said": said}).encode()

    def _meet(
        self, kind: int, number: int = 0, *, state: int = _FINE, words: Any = None
    ) -> HostArray:
        """(size,) each process's number, once all have come for one and the same thing."""
        assert self._engine is not None
        text = self._words(words) if state != _FINE else b""
        own = np.array([state, kind, len(text) if state else number], np.int64)
        found = self._guard(self._engine.gather, own)
        states, kinds = found[:, 0], found[:, 1]
        if not states.any():
            if len({*kinds.tolist()}) > 1:
                self._over = self.lost = True
                came = ", ".join(_NAMES[k] for k in kinds)
                raise AssertionError(f"the processes have come apart: they came for {came}")
            numbers: HostArray = found[:, 2]
            return numbers
        sizes = np.where(states != _FINE, found[:, 2], 0)
        self._raise(states.tolist(), self._exchange(text, sizes))

    def _exchange(self, text: bytes, sizes: HostArray) -> list[Any]:
        """The processes' words, of so many bytes each."""
        parts = self._gather_flat(np.frombuffer(text, np.uint8), sizes.tolist())
        out = []
        for rank, part in enumerate(parts):
            if len(part):
                one = parse_json(part.tobytes())
            else:
                one = {"value": None, "said": []}
            for line in one["said"]:
                self.on_said(rank, line)
            out.append(one["value"])
        return out

    def _gather_flat(self, own: HostArray, sizes: Sequence[int]) -> list[HostArray]:
        """(its size,) of each process."""
        assert self._engine is not None
        most = max(sizes)
        if not most:
            return [own[:0]] * self.size
        padded = np.zeros(most, own.dtype)
        padded[: len(own)] = own
        found = self._guard(self._engine.gather, padded)
        return [found[rank, :size] for rank, size in enumerate(sizes)]

    def _raise(self, states: list[int], words: list[Any]) -> NoReturn:
        """What all processes make of a meeting to which not all came in order."""
        for state in (_FAILED, _STOPPED):
            for rank, found in enumerate(states):
                if found != state:
                    continue
                self._over = True
                error = words[rank]["error"]
                if state == _STOPPED:
                    raise Interrupted(error)
                raise PeerFailed(error, where=self.title(rank) if rank else "")
        if _AGAIN in states:
            raise StageAgain
        rank = states.index(_NO_MEMORY)
        raise PeerOutOfMemory(f"{self.title(rank)}: {words[rank]['said']}")

    def _guard(self, operation: Callable[..., T], *arguments: Any) -> T:
        try:
            return operation(*arguments)
        except ConnectionError as error:
            self._over = self.lost = True
            lost = PeerLost(f"another of the {self.size} processes has ended", hint=RESUME)
            if self._engine is not None:
                lost.tells = self._engine.tells
            raise lost from error


ALONE = Group()


def chunks(arrays: Mapping[str, Array]) -> list[list[str]]:
    """The names in their order, in groups of about `CHUNK` bytes."""
    out: list[list[str]] = []
    held = CHUNK
    for name, x in arrays.items():
        if held >= CHUNK:
            out.append([])
            held = 0
        out[-1].append(name)
        held += 4 * _numbers(x)
    return out


def deal(weights: Sequence[float], processes: int) -> list[list[int]]:
    """The numbers of the things that each process has: the heaviest first, each to whom has least,
    so that long ones are spread; in their order within a process."""
    parts: list[list[int]] = [[] for _ in range(processes)]
    taken = [(0.0, 0, rank) for rank in range(processes)]
    for n in sorted(range(len(weights)), key=lambda n: (-weights[n], n)):
        held, count, rank = min(taken)
        parts[rank].append(n)
        taken[rank] = (held + weights[n], count + 1, rank)
    return [sorted(part) for part in parts]


def _numbers(x: Array) -> int:
    size = 1
    for n in x.shape:
        size *= n
    return size


def at_once(micro_batch: int | None, rows: int, processes: int) -> int:
    """How many of an update's `rows` are computed at once: `micro_batch` at most (None: all), and so
    few that each process has as many micro-batches as any other, or one less where rows are few."""
    share = -(-rows // processes)
    if processes == 1 or not micro_batch:
        return min(micro_batch or rows, share)
    each = -(-share // micro_batch)
    return -(-rows // (processes * each))
