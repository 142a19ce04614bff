"""Constant tables that a forward looks things up in: made by the host before a compiler traces the
forward, and passed to it as arguments.

Why: a compiler that traces numpy makes them in its own arithmetic, and one that meets an array in
what it traces keeps a copy of it with every trace. They are as long as the texts in use ask for,
not as the context is: a context of 131,072 positions is 67 MB of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ondevice.seam.ops import Array, HostArray, Ops, sub

TABLE = "table."
"""What their names in a batch begin with."""
LEAST = 256
"""A table's least number of places."""


class HasTables(Protocol):
    """A network, as far as its tables go."""

    def tables(self, length: int) -> Mapping[str, HostArray]:
        """The tables for texts of up to `length` places; the same arrays each time."""
        ...


def length_of(width: int) -> int:
    """For how many places a text of `width` has tables: few lengths, so that few are made."""
    return max(LEAST, 1 << (width - 1).bit_length())


def placed(network: HasTables, ops: Ops, width: int) -> dict[str, Array]:
    """The network's tables for texts of up to `width` places, on the device. No compiler may be
    tracing."""
    made = network.tables(length_of(width))
    return {name: ops.constant(table) for name, table in made.items()}


def with_tables(network: HasTables, ops: Ops, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch as the device gets it: beside each of the texts in it (`ids`, `sft.ids` of chats
    and `pair.ids` of pairs beside them) the network's tables."""
    out = dict(batch)
    for name in batch:
        prefix, found, rest = name.rpartition("ids")
        if not found or rest or prefix not in ("", *_PREFIXES):
            continue
        width = _width(sub(batch, prefix))
        for table, array in placed(network, ops, width).items():
            out[f"{prefix}{TABLE}{table}"] = array
    return out


_PREFIXES = ("sft.", "pair.")


def tables_of(network: HasTables, ops: Ops, batch: Mapping[str, Array]) -> Mapping[str, Array]:
    """What `with_tables` has put into a batch. Where nobody has they are made here, which only a run
    without a compiler may."""
    found = sub(batch, TABLE)
    if found:
        return found
    return placed(network, ops, _width(batch))


def _width(batch: Mapping[str, Any]) -> int:
    """Places of the longest text of a batch, or more where its positions go further."""
    width: int = max(1, batch["ids"].shape[-1])
    if "places" in batch:  # rows stand one after another
        width = batch["places"].shape[-1]
    for prompts in ("prompt_ids", "prompt_places"):
        if prompts in batch:  # an answer's positions go on from those of its prompt
            width += batch[prompts].shape[-1]
    if "source_ids" in batch:
        width = max(width, batch["source_ids"].shape[-1])
    positions = batch.get("positions")
    if isinstance(positions, np.ndarray) and positions.size:
        width = max(width, int(positions.max()) + 1)
    return width


@lru_cache(maxsize=16)
def places(length: int) -> NDArray[np.int32]:
    """0 … length - 1."""
    return np.arange(length, dtype=np.int32)
