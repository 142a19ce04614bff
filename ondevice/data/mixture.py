"""Several sources as one: `chats.jsonl:2,sums.jsonl:1` takes two rows of the first for each of the
second.

Without weights every row is taken once. With them a part of the rows is repeated, as little as the
weights allow: no row is left out, and the source that is the largest for its weight is taken once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from ondevice.common.errors import UserError
from ondevice.common.rng import permutation
from ondevice.data.orders import PREFIX as ORDERS

T = TypeVar("T")

BY_NAME = ("hub:", "gym:")  # data that is not a file
MOST_REPEATED, MOST_ROWS = 10_000, 1 << 28
"""A mixture beyond these is a mistake: times that a row comes in an epoch, and rows of an epoch
(unless the sources themselves have a quarter of it)."""
WEIGHT = re.compile(r"(.+?)\s*:\s*([0-9]+\.?[0-9]*(?:e[0-9]+)?|\.[0-9]+)\s*(?:,\s*|$)", re.ASCII)
"""A source with its weight, and the comma behind it."""


class DataSource(NamedTuple):
    """One file, folder, or name of data. `weight` None: each of its rows once."""

    data: str
    weight: float | None = None


def sources(data: str) -> tuple[DataSource, ...]:
    """What `data` names: one source, or several with or without weights. Raises UserError for a
    mixture in which a weight is none, some have none, or a file is not there."""
    if not data or is_file(data):
        return (_source(data),)
    plain = data.strip().rstrip(", ")
    weighted = _weighted(plain)
    if weighted:
        return weighted
    names = [name.strip() for name in plain.split(",")]
    there = [is_there(name) or bool(WEIGHT.fullmatch(name)) for name in names]
    by_name = is_by_name(data)
    if len(names) == 1 or not any(there) or (by_name and not all(there)):
        return (_source(data),)
    if all(map(is_there, names)):
        return tuple(map(_source, names))
    for name in names:
        if is_there(name) or WEIGHT.fullmatch(name):
            continue
        if is_there(name.rpartition(":")[0]):
            raise UserError(
                f"{name.rpartition(':')[2]!r} is not a weight",
                where=name,
                hint="give a number above 0",
            )
        raise UserError(
            "there is no such file or folder",
            where=name,
            hint="several sources: a.jsonl:2,b.jsonl:1",
        )
    raise UserError(
        "some of its sources have a weight and some have none",
        where=data,
        hint="give all one, or none",
    )


def is_generated(data: str) -> bool:
    """Whether all of it is made by the program: the built-in corpus, or a gym's problems. Raises
    UserError as `sources`.
    """
    names = [source.data.partition(":")[0] for source in sources(data)]
    return all(name in ("builtin", "gym") for name in names)


def _weighted(plain: str) -> tuple[DataSource, ...]:
    """The sources, where each has a weight; nothing otherwise. Raises UserError for a number that
    cannot be one."""
    matches = list(WEIGHT.finditer(plain))
    if "".join(match.group() for match in matches) != plain:
        return ()
    if any("," in match[1] and not is_there(match[1]) for match in matches):
        return ()
    found = []
    for match in matches:
        name, number = match.groups()
        weight = float(number)
        if not 0 < weight < float("inf"):
            raise UserError(
                f"{number} is not a weight",
                where=match[0].rstrip(", "),
                hint="give a number above 0, or leave the source out",
            )
        found.append(_source(name, weight))
    return tuple(found)


def _source(data: str, weight: float | None = None) -> DataSource:
    prefix, rest = ordered(data)
    if rest.startswith("~"):
        data = prefix + str(Path(os.path.expanduser(rest)))
    return DataSource(data, weight)


def ordered(data: str) -> tuple[str, str]:
    """("orders:", the source of whose texts stories are ordered), or ("", `data`)."""
    if data.startswith(ORDERS):
        return ORDERS, data.removeprefix(ORDERS)
    return "", data


def is_by_name(data: str) -> bool:
    """Whether it is data that is not a file, or is made of such."""
    return ordered(data)[1].startswith(BY_NAME)


def is_there(name: str) -> bool:
    """Whether it is data that has a name of its own, or a file or folder that is here."""
    if name.partition(":")[0] == "builtin" or name.startswith(BY_NAME) or is_file(name):
        return True
    prefix, source = ordered(name)
    return bool(prefix) and is_there(source)


def is_file(name: str) -> bool:
    """Whether a file or folder of this name is here."""
    try:
        return bool(name) and Path(os.path.expanduser(name)).exists()
    except OSError:  # a long list of names is too long for one
        return False


def epoch_order(
    sizes: Sequence[int], weights: Sequence[float | None], seed: int
) -> NDArray[np.int64]:
    """Numbers of the rows of one epoch, counted through sources of `sizes` rows one after the
    other.

    Every row is there, and each source has its share of the whole; what is left over after whole
    repetitions is drawn by the seed. Any beginning of the epoch holds the sources in about the same
    shares. One source is itself, in order.
    """
    if len(sizes) == 1:
        return np.arange(sizes[0])
    counts = epoch_counts(sizes, weights)
    numbers, keys, first = [], [], 0
    for n, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        if not size:
            continue
        whole, rest = divmod(count, size)
        drawn = np.sort(permutation(seed, "mixture", n, size)[:rest])
        numbers.append(
            first + np.concatenate([np.tile(np.arange(size), whole), drawn]).astype(np.int64)
        )
        keys.append((np.arange(count) + 0.5) / count)
        first += size
    if not numbers:
        return np.zeros(0, np.int64)
    return np.concatenate(numbers)[np.argsort(np.concatenate(keys), kind="stable")]


def epoch_counts(sizes: Sequence[int], weights: Sequence[float | None]) -> list[int]:
    """Rows (or tokens) of each source in an epoch. Raises UserError where that is out of all
    proportion.
    """
    given = [weight for weight in weights if weight is not None]
    if not given:
        return list(sizes)
    shares = [weight / sum(given) for weight in given]
    epoch = max(
        size / share if share else float("inf") for size, share in zip(sizes, shares, strict=True)
    )
    repeated = max(epoch * share / max(size, 1) for size, share in zip(sizes, shares, strict=True))
    if not (repeated <= MOST_REPEATED and epoch <= max(MOST_ROWS, 4 * sum(sizes))):
        raise UserError(
            f"an epoch would read one source {repeated:,.0f} times",
            where="data",
            hint="give weights that are nearer to the sources' sizes",
        )
    return [max(size, round(epoch * share)) for size, share in zip(sizes, shares, strict=True)]


class Joined:
    """Arrays (N_i,) one after the other as one, of which nothing is copied: indexed by numbers of
    any shape, or by a slice."""

    def __init__(self, parts: Sequence[Any], dtype: Any) -> None:
        self.parts, self.dtype = parts, np.dtype(dtype)
        self.firsts = np.cumsum([0, *map(len, parts)])

    def __len__(self) -> int:
        return int(self.firsts[-1])

    def beginning(self, count: int) -> Joined:
        """The first `count` numbers, of which nothing is copied either."""
        whole = int(np.searchsorted(self.firsts, count, side="right")) - 1
        rest = count - int(self.firsts[whole])
        parts = list(self.parts[:whole])
        if rest:
            parts.append(self.parts[whole][:rest])
        return Joined(parts, self.dtype)

    def __getitem__(self, at: Any) -> NDArray[Any]:
        if isinstance(at, slice):
            start, end, step = at.indices(len(self))
            assert step == 1
            part = int(np.searchsorted(self.firsts, start, side="right")) - 1
            if part < len(self.parts) and end <= self.firsts[part + 1]:
                return np.asarray(
                    self.parts[part][start - self.firsts[part] : end - self.firsts[part]],
                    self.dtype,
                )
            at = np.arange(start, end)
        at = np.asarray(at)
        where = np.searchsorted(self.firsts, at, side="right") - 1
        out = np.empty(at.shape, self.dtype)
        for part in np.unique(where):
            here = where == part
            out[here] = self.parts[part][at[here] - self.firsts[part]]
        return out


class Lazy(Sequence[T]):
    """Items made of their numbers when they are asked for; `order` (N,) says which ones, in which
    order.
    """

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
        if isinstance(at, slice):
            return Lazy(self._get, self._order[at])
        return self._get(int(self._order[at]))


def mixture(
    parts: Sequence[Sequence[T]], weights: Sequence[float | None], seed: int
) -> Sequence[T]:
    """The rows of one epoch of several sources; one source is itself."""
    if len(parts) == 1:
        return parts[0]
    return Lazy.over(parts, epoch_order([len(part) for part in parts], weights, seed))


def one_after_another(parts: Sequence[Sequence[T]]) -> Sequence[T]:
    """Every row of several sources once, for measuring on."""
    return mixture(parts, [None] * len(parts), 0)
