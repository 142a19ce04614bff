"""Keys and values of the tokens that were read, for decoding."""

from __future__ import annotations

from dataclasses import dataclass, field

from ondevice.seam.ops import Array, Ops


@dataclass(frozen=True)
class Cache:
    """Keys and values so far: two arrays (B, H_kv, room, C) a layer, and how many tokens each row
    holds (B,). `fixed`: further arrays with a row for a row that do not grow (what an
    encoder-decoder has read)."""

    keys: list[Array]
    values: list[Array]
    lengths: Array
    fixed: list[Array] = field(default_factory=list)

    def end(self, ops: Ops) -> Array:
        """(B,) the place of each row's next token: the last one where a row that is done, and that
        nobody reads, has gone on beyond the cache."""
        return ops.minimum(self.lengths, self.keys[0].shape[2] - 1)
