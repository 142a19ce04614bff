"""A stream of tokens as the documents that it is made of, to compare and to choose them; no token
is copied.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ondevice.data.mixture import Joined

_CHUNK = 1 << 22
"""Tokens that are searched for ends of documents at once."""


@dataclass(frozen=True)
class Documents:
    """Documents of the stream `tokens` (N,): their `starts`, `ends` and a hash of the tokens of
    each (D,).
    """

    tokens: NDArray[Any]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    keys: NDArray[np.uint64]

    @classmethod
    def of(
        cls, tokens: NDArray[Any], eos: int, watch: Callable[[Iterable[int]], Iterable[int]] = iter
    ) -> Documents:
        """The documents of a stream in which each ends with `eos`; what follows the last end is one
        more. `watch` sees their numbers pass."""
        tokens = np.asarray(tokens)
        ends = _ends(tokens, eos)
        starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])
        keys = (_key(tokens[starts[n] : ends[n]]) for n in watch(range(len(ends))))
        return cls(tokens, starts, ends, np.fromiter(keys, np.uint64, len(ends)))

    def __len__(self) -> int:
        return len(self.starts)

    def only(self, which: NDArray[Any]) -> Documents:
        """Those of which `which` is true."""
        return Documents(self.tokens, self.starts[which], self.ends[which], self.keys[which])

    def parted(self, place: int) -> tuple[Documents, Documents]:
        """What stands before a place of the stream, and what stands behind it. A document that is
        cut there is one on either side."""
        first, last = self.only(self.starts < place), self.only(self.ends > place)
        if len(first) and len(last) and first.ends[-1] > place:
            first.ends[-1] = last.starts[0] = place
            for part, n in ((first, -1), (last, 0)):
                part.keys[n] = _key(self.tokens[part.starts[n] : part.ends[n]])
        return first, last

    def followed_by(self, other: Documents) -> Documents:
        """These, and behind them others of the same stream."""
        starts, ends, keys = (
            np.concatenate([getattr(self, name), getattr(other, name)])
            for name in ("starts", "ends", "keys")
        )
        return Documents(self.tokens, starts, ends, keys)

    @property
    def stream(self) -> Any:
        """The tokens of the documents (T,), one document after the other."""
        if not len(self):
            return self.tokens[:0]
        begins = np.concatenate([[True], self.starts[1:] != self.ends[:-1]])
        closes = np.concatenate([begins[1:], [True]])
        pieces = []
        for start, end in zip(self.starts[begins], self.ends[closes], strict=True):
            pieces.append(self.tokens[start:end])
        if len(pieces) == 1:
            return pieces[0]
        return Joined(pieces, self.tokens.dtype)


def document_lengths(tokens: Any, eos: int) -> NDArray[np.int64]:
    """(D,) tokens of each document of a stream, or of several joined as one, in which each ends with
    `eos`.
    """
    if not isinstance(tokens, Joined):
        return np.diff(_ends(np.asarray(tokens), eos), prepend=0)
    lengths = [document_lengths(part, eos) for part in tokens.parts]
    return np.concatenate([np.zeros(0, np.int64), *lengths])


def _key(tokens: NDArray[Any]) -> int:
    return int.from_bytes(hashlib.blake2b(tokens.data, digest_size=8).digest(), "little")


def _ends(tokens: NDArray[Any], eos: int) -> NDArray[np.int64]:
    """Where documents end (D,). An end token right behind another one opens a text, as some
    tokenizers have it.
    """
    found = [np.zeros(0, np.int64)]
    for start in range(0, len(tokens), _CHUNK):
        chunk = tokens[start : start + _CHUNK]
        found.append(np.flatnonzero(chunk == eos) + start)
    places = np.concatenate(found)
    places = places[(places > 0) & (tokens[places - 1] != eos)] + 1
    if not len(places) or places[-1] < len(tokens):
        places = np.append(places, len(tokens))
    return places
