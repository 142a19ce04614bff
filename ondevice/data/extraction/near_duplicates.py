"""Whether a text is nearly one that was seen before: MinHash over runs of five words, as Broder (1997)
has it, with datasketch's signatures and index.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.machinery import PathFinder
from typing import Any

import numpy as np
from numpy.typing import NDArray

RUN = 5
"""Words that follow one another, of which the set is compared."""
LEAST_RUNS = 20
"""A text of fewer runs is compared as a whole alone: one word would change most of them."""
LIKENESS = 0.8
"""Share of the runs of two texts that both have, from which one is nearly the other."""
PERMUTATIONS = 128
_AT_ONCE = 1 << 14  # runs whose permutations are in memory
_PRIME = np.uint64(0x100000001B3)
_SEED = 1


def is_installed() -> bool:
    """Whether datasketch is there, without importing it."""
    return PathFinder.find_spec("datasketch") is not None


def runs_of(pieces: Iterable[str]) -> NDArray[np.uint64]:
    """(N,) hashes of the runs of words of a text that comes in pieces, each once, sorted."""
    found = [np.zeros(0, np.uint64)]
    last: list[NDArray[np.uint64]] = []
    for piece in pieces:
        words = np.concatenate([*last, _words(piece)])
        if len(words) >= RUN:
            hashes = np.zeros(len(words) - RUN + 1, np.uint64)
            for n in range(RUN):
                hashes = (hashes ^ words[n : n + len(hashes)]) * _PRIME
            found.append(np.unique(hashes))
        last = [words[max(0, len(words) - RUN + 1) :]]
    return np.unique(np.concatenate(found))


def _words(text: str) -> NDArray[np.uint64]:
    """A hash of each word, whatever its case and the signs beside it."""
    octets = np.frombuffer(text.casefold().encode(), np.uint8).astype(np.uint64)
    if not len(octets):
        return np.zeros(0, np.uint64)
    letter = _LETTER[octets]
    starts = np.flatnonzero(letter & ~np.concatenate([[False], letter[:-1]]))
    ends = np.flatnonzero(letter & ~np.concatenate([letter[1:], [False]])) + 1
    # a sum over a word's bytes, each times a power of its place in the word
    places = _places(len(octets), starts)
    weights = _POWERS[np.minimum(places, len(_POWERS) - 1)]
    sums = np.concatenate([[np.uint64(0)], np.cumsum((octets + np.uint64(1)) * weights)])
    hashes: NDArray[np.uint64] = sums[ends] - sums[starts]
    return hashes


def _places(length: int, starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """(length,) how far each byte is from the start of its word."""
    if not len(starts):
        return np.zeros(length, np.int64)
    firsts = np.zeros(length, np.int64)
    firsts[starts] = starts
    places: NDArray[np.int64] = np.arange(length) - np.maximum.accumulate(firsts)
    return places


_LETTER = np.array(
    [bytes([n]).isalnum() or n >= 128 for n in range(256)]  # beyond ASCII all are parts of letters
)
_POWERS = np.power(_PRIME, np.arange(64, dtype=np.uint64))


class NearDuplicates:
    """Texts that were seen, each by a name."""

    def __init__(self) -> None:
        from datasketch import MinHashLSH  # 0.9 s

        self._index: Any = MinHashLSH(threshold=LIKENESS, num_perm=PERMUTATIONS)
        self._seen: dict[str, NDArray[Any]] = {}

    def like(self, runs: NDArray[np.uint64], name: str) -> str:
        """The name of the text seen before that one of these runs is nearly the same as; empty where
        there is none, and then it is kept under its own."""
        signature = self._signature(runs)
        best, most = "", LIKENESS
        for other in self._index.query(signature):
            share = float(np.mean(self._seen[other] == signature.hashvalues))
            if share >= most:
                best, most = other, share
        if not best:
            self._index.insert(name, signature)
            self._seen[name] = signature.hashvalues
        return best

    def _signature(self, runs: NDArray[np.uint64]) -> Any:
        from datasketch import MinHash

        signature = MinHash(num_perm=PERMUTATIONS, seed=_SEED, hashfunc=int)
        high = runs >> np.uint64(32)  # what it permutes has 32 bits
        for first in range(0, len(high), _AT_ONCE):
            signature.update_batch(high[first : first + _AT_ONCE].tolist())
        return signature
