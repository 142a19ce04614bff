"""Which keys a query may look at, and causal attention on a CPU. Read beside
`ondevice_torch/attention.py`."""

from __future__ import annotations

import mlx.core as mx

KEPT_SCORES = 2**26  # of a layer (268 MB), from which on the backward pass computes them again
BLOCK = 64  # queries that are computed at once on a CPU, at least
BLOCKS = 8  # and how often, at most


def on_cpu() -> bool:
    return bool(mx.default_device().type == mx.cpu)


def causal_by_blocks(q: mx.array, k: mx.array, v: mx.array, scale: float) -> mx.array:
    """Causal attention as a CPU does it soonest: it computes all scores and throws away those of
    later keys, so a block of queries is given the keys up to its own end alone. A GPU has a kernel
    that skips them."""
    places = q.shape[2]
    size = max(BLOCK, -(-places // BLOCKS))

    def block(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask="causal")

    heads = q.shape[0] * q.shape[1]
    # what a CPU keeps for the gradient is all scores, of long rows more than all else together
    if heads * places * places >= KEPT_SCORES:
        attend = mx.checkpoint(block)
    else:
        attend = block
    parts = []
    for start in range(0, places, size):
        end = min(start + size, places)
        queries = q[:, :, start:end]
        parts.append(attend(queries, k[:, :, :end], v[:, :, :end]))
    return mx.concatenate(parts, 2)


def prefix_mask(t_q: int, t_k: int, window: int, prefix: mx.array) -> mx.array:
    """Boolean (B, 1, t_q, t_k) of `Ops.attention`'s `prefix`: a window counts tokens, not places."""
    room = t_k - t_q
    places = mx.arange(t_k)
    start = prefix[:, None]
    keys = mx.where(places < room, places, places - room + start)[:, None]
    there = ((places < start) | (places >= room))[:, None]
    queries = (mx.arange(t_q) + start)[:, :, None]
    mask = there & (keys <= queries)
    if window:
        mask = mask & (keys > queries - window)
    return mask[:, None]


def attention_mask(
    queries: mx.array,
    keys: mx.array,
    causal: bool,
    window: int,
    segments: mx.array | None,
    lengths: mx.array | None,
) -> mx.array:
    """Boolean (B or 1, 1, t_q, t_k), True where a query may look; every query sees at least itself.

    `queries` are 0 … t_q - 1, `keys` 0 … t_k - 1. Causal is bottom-right: the last query is at the
    last key, or at `lengths - 1` of its row.
    """
    t_q = queries.shape[0]
    t_k = keys.shape[0]
    if lengths is not None:
        last = lengths[:, None]
    else:
        last = t_k
    # a row that holds nothing looks at its first key: what it gives is thrown away, but is no NaN
    at = mx.maximum(queries + (last - t_q), 0)
    at = at[..., :, None].reshape(-1, t_q, 1)
    if causal:
        mask = keys <= at
    else:
        if lengths is not None:
            end = mx.maximum(lengths[:, None, None], 1)
        else:
            end = t_k
        mask = keys < end
    if window:
        mask = mask & (keys > at - window)
        if not causal:
            mask = mask & (keys < at + window)
    if segments is not None:
        same = segments[:, :, None] == segments[:, None, :]
        mask = mask & same
    return mask[:, None]
