"""Several sources as one: `chats.jsonl:2,sums.jsonl:1` takes two rows of the first for each of the second.

Without weights every row is taken once. With them a part of the rows is repeated, as little as the weights allow: no
row is left out, and the source that is the largest for its weight is taken once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from ondevice.errors import UserError
from ondevice.randomness import permutation

T = TypeVar("T")

BY_NAME = ("hub:", "gym:")  # data that is no file
_WEIGHTED = re.compile(r"(.+?):(\d+\.?\d*|\.\d+)(?:,|$)")


class Source(NamedTuple):
    """One file, folder, or name of data. `weight` None: each of its rows once."""

    data: str
    weight: float | None = None


def sources(data: str) -> tuple[Source, ...]:
    """What `data` names: one source, or several with or without weights. Raises UserError for a weight that is none."""
    if not data or Path(data).expanduser().exists():
        return (Source(data),)
    found = list(_WEIGHTED.finditer(data))
    if found and "".join(match.group() for match in found) == data and not data.endswith(","):
        for match in found:
            if not float(match[2]):
                raise UserError("a weight of 0 takes nothing", where=match[0].rstrip(","), hint="leave it out")
        return tuple(Source(match[1].strip(), float(match[2])) for match in found)
    names = [name.strip() for name in data.split(",")]
    if len(names) > 1 and all(map(_is_there, names)):
        return tuple(map(Source, names))
    return (Source(data),)


def _is_there(name: str) -> bool:
    return name.partition(":")[0] == "builtin" or name.startswith(BY_NAME) or bool(
        name and Path(name).expanduser().exists())


def mixed(sizes: Sequence[int], weights: Sequence[float | None], seed: int) -> NDArray[np.int64]:
    """Numbers of the rows of one epoch, counted through sources of `sizes` rows one after the other.

    Source i is Σ sizes_i at least and has its share of the whole; what is left over after whole repetitions is drawn by
    the seed. Any beginning of the epoch holds the sources in about the same shares. One source is itself, in order.
    """
    if len(sizes) == 1:
        return np.arange(sizes[0])
    counts = counts_of(sizes, weights)
    numbers, keys, first = [], [], 0
    for n, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        if not size:
            continue
        whole, rest = divmod(count, size)
        drawn = np.sort(permutation(seed, "mixture", n, size)[:rest])
        numbers.append(first + np.concatenate([np.tile(np.arange(size), whole), drawn]).astype(np.int64))
        keys.append((np.arange(count) + 0.5) / count)
        first += size
    if not numbers:
        return np.zeros(0, np.int64)
    return np.concatenate(numbers)[np.argsort(np.concatenate(keys), kind="stable")]


def counts_of(sizes: Sequence[int], weights: Sequence[float | None]) -> list[int]:
    """Rows (or tokens) of each source in an epoch."""
    given = [weight for weight in weights if weight is not None]
    if not given:
        return list(sizes)
    epoch = max(size * sum(given) / weight for size, weight in zip(sizes, given, strict=True))
    return [max(size, round(epoch * weight / sum(given))) for size, weight in zip(sizes, given, strict=True)]


class Lazy(Sequence[T]):
    """Items made of their numbers when they are asked for; `order` (N,) says which ones, in which order."""

    def __init__(self, get: Callable[[int], T], order: NDArray[Any]) -> None:
        self._get, self._order = get, order

    @classmethod
    def over(cls, parts: Sequence[Sequence[T]], order: NDArray[Any]) -> Lazy[T]:
        """Items of several sequences, numbered through one after the other."""
        firsts = np.cumsum([0, *map(len, parts)])

        def get(number: int) -> T:
            part = int(np.searchsorted(firsts, number, side="right")) - 1
            return parts[part][number - int(firsts[part])]
        return cls(get, order)

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> Lazy[T]: ...
    def __getitem__(self, at: int | slice) -> T | Lazy[T]:
        return Lazy(self._get, self._order[at]) if isinstance(at, slice) else self._get(int(self._order[at]))


def mixture(parts: Sequence[Sequence[T]], weights: Sequence[float | None], seed: int) -> Sequence[T]:
    """The rows of one epoch of several sources; one source is itself."""
    return parts[0] if len(parts) == 1 else Lazy.over(parts, mixed([len(part) for part in parts], weights, seed))


def one_after_another(parts: Sequence[Sequence[T]]) -> Sequence[T]:
    """Every row of several sources once, for measuring on."""
    return mixture(parts, [None] * len(parts), 0)
