"""Whether a text is nearly one that was seen before: MinHash over runs of five words, as Broder (1997)
has it, with datasketch's signatures and index.
"""

from __future__ import annotations

import hashlib
import re
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
_MOST_WORDS = 1 << 18  # whose hashes are kept
_WORD = re.compile(r"[^\W_]+")
_PRIME = np.uint64(0x100000001B3)
_SEED = 1


def is_installed() -> bool:
    """Whether datasketch is there, without importing it."""
    return PathFinder.find_spec("datasketch") is not None


def runs_of(pieces: Iterable[str]) -> NDArray[np.uint64]:
    """(N,) hashes of the runs of words of a text that comes in pieces, each once, sorted."""
    found = [np.zeros(0, np.uint64)]
    table = _WordHashes()
    last = np.zeros(0, np.uint64)
    for piece in pieces:
        read = map(table.__getitem__, _WORD.findall(piece.casefold()))
        words = np.concatenate([last, np.fromiter(read, np.uint64)])
        if len(words) >= RUN:
            hashes = np.zeros(len(words) - RUN + 1, np.uint64)
            for n in range(RUN):
                hashes = (hashes ^ words[n : n + len(hashes)]) * _PRIME
            found.append(_distinct(hashes))
        last = words[max(0, len(words) - RUN + 1) :]
        table.forget()
    return _distinct(np.concatenate(found))


def _distinct(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Each once, sorted: numpy's unique takes ten times as long for numbers of which few repeat."""
    ordered: NDArray[np.uint64] = np.sort(hashes)
    new = np.ones(len(ordered), np.bool_)
    new[1:] = ordered[1:] != ordered[:-1]
    distinct: NDArray[np.uint64] = ordered[new]
    return distinct


class _WordHashes(dict[str, int]):
    """Word → 64 bits, each taken once: texts have few words, each many times."""

    def __missing__(self, word: str) -> int:
        sums = hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest()
        self[word] = int.from_bytes(sums, "little")
        return self[word]

    def forget(self) -> None:
        """Words of a text that has too many to keep: numbers, names of no end."""
        if len(self) > _MOST_WORDS:
            self.clear()


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
