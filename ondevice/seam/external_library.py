"""What a backend gives of an architecture that only its own library knows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from ondevice.seam.head import Head
from ondevice.seam.ops import Array, Params


class Reading(Protocol):
    """Texts that are read piece by piece, with the library's own cache behind it."""

    def __call__(self, ids: Array) -> Array:
        """(B, D) states at the last of the tokens `ids` (B, T) that follow what was read before."""
        ...


class Library(Protocol):
    """The library's model, without weights: they come as an argument. `shapes`: tensors by the
    library's names, the table of tokens first; `linears`: modules → (outputs, inputs) beside which
    adapters may stand."""

    shapes: Mapping[str, tuple[int, ...]]
    linears: Mapping[str, tuple[int, int]]
    head: Head

    def states(self, params: Params, ids: Array) -> Array:
        """(B, T, D) states for the head, of texts that begin at each row's first token."""
        ...

    def reading(self, params: Params) -> Reading: ...

    def save(self, folder: Path, params: Params, dtype: str) -> None:
        """Fills a folder with weights that the library loads."""
        ...
