"""Causal attention of whole rows within a sliding window, without a mask of T × T.

Queries are taken in blocks of as many as the window has places. Such a block sees itself and the
block before it, so that the scores are T × 2W in place of T × T, and one mask of W × 2W serves all
blocks. Mistral's and Gemma's windows are computed so where a text is longer than two of them.

Shapes: B rows, H heads, T places, C width of a head, W places of the window, M blocks of a row.
"""

from __future__ import annotations

from ondevice.seam.ops import Array, Ops

LEAST_BLOCKS = 3
"""With two blocks there is nothing to gain: they see nearly all keys."""


def windowed_attention(
    ops: Ops, q: Array, k: Array, v: Array, *, scale: float, window: int
) -> Array:
    """(B, H, T, C) from queries, keys and values (B, H or H_kv, T, C); `window` 0: none."""
    places = q.shape[2]
    if window:
        blocks = -(-places // window)
    else:
        blocks = 0
    if blocks < LEAST_BLOCKS:
        return ops.attention(q, k, v, scale=scale, window=window)
    b, h, _, c = q.shape
    first = ops.attention(q[:, :, :window], k[:, :, :window], v[:, :, :window], scale=scale)
    asked = _blocks(ops, q, window, blocks)[:, 1:].reshape(-1, h, window, c)
    keys, values = (_with_previous(ops, _blocks(ops, x, window, blocks)) for x in (k, v))
    others = ops.attention(asked, keys, values, scale=scale, window=window)
    others = others.reshape(b, blocks - 1, h, window, c).swapaxes(1, 2)
    others = others.reshape(b, h, (blocks - 1) * window, c)
    return ops.concat([first, others[:, :, : places - window]], 2)


def _blocks(ops: Ops, x: Array, window: int, blocks: int) -> Array:
    """(B, M, H, W, C) of x (B, H, T, C), filled up at its end, which no query before it sees."""
    b, h, places, c = x.shape
    missing = blocks * window - places
    if missing:
        x = ops.concat([x, x[:, :, :missing] * 0], 2)
    return x.reshape(b, h, blocks, window, c).swapaxes(1, 2)


def _with_previous(ops: Ops, x: Array) -> Array:
    """(B · (M - 1), H, 2W, C): each block but the first of x (B, M, H, W, C) after the one before
    it."""
    _, _, h, window, c = x.shape
    pairs = ops.concat([x[:, :-1], x[:, 1:]], 3)
    return pairs.reshape(-1, h, 2 * window, c)
