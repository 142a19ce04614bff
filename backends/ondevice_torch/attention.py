"""Which keys a query may look at, and what is given to torch's kernel so that it takes the fast one.
Read beside `ondevice_mlx/attention.py`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def as_far_as_rows_go(
    k: Tensor, v: Tensor, lengths: Tensor, window: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Keys and values (B, H, T, C) without the places that no row has come to, and the rows'
    lengths; None where all of what is left is every row's."""
    longest = int(lengths.max())
    k, v = k[:, :, :longest], v[:, :, :longest]
    if not window and int(lengths.min()) == longest:
        return k, v, None
    return k, v, lengths


def after_prefix(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor) -> Tensor:
    """The heads of a group ask as more queries of one head: with a mask and heads in groups torch
    would take the kernel that stores all scores."""
    b, h, t, c = q.shape
    each = h // k.shape[1]
    asked = q.reshape(b, k.shape[1], each * t, c)
    mask = mask.repeat(1, 1, each, 1)
    return F.scaled_dot_product_attention(asked, k, v, mask, scale=scale).reshape(b, h, t, c)


def prefix_mask(t_q: int, t_k: int, window: int, prefix: Tensor) -> Tensor:
    """Boolean (B, 1, t_q, t_k) of `Ops.attention`'s `prefix`: a window counts tokens, not places."""
    room = t_k - t_q
    places = torch.arange(t_k, device=prefix.device)
    start = prefix[:, None]
    keys = torch.where(places < room, places, places - room + start)[:, None]
    there = ((places < start) | (places >= room))[:, None]
    queries = (torch.arange(t_q, device=prefix.device) + start)[:, :, None]
    mask = there & (keys <= queries)
    if window:
        mask = mask & (keys > queries - window)
    return mask[:, None]


def attention_mask(
    t_q: int,
    t_k: int,
    device: torch.device,
    causal: bool,
    window: int,
    segments: Tensor | None,
    lengths: Tensor | None,
) -> Tensor:
    """Boolean (B or 1, 1, t_q, t_k), True where a query may look; every query sees at least itself.

    Causal is bottom-right: the last query is at the last key, or at `lengths - 1` of its row.
    """
    keys = torch.arange(t_k, device=device)
    queries = torch.arange(t_q, device=device)
    last: Tensor | int = t_k
    if lengths is not None:
        last = lengths[:, None]
    # a row that holds nothing looks at its first key: what it gives is thrown away, but is no NaN
    at = (queries + (last - t_q)).clamp(min=0)
    at = at[..., :, None].reshape(-1, t_q, 1)
    if causal:
        mask = keys <= at
    else:
        end: Tensor | int = t_k
        if lengths is not None:
            end = lengths[:, None, None].clamp(min=1)
        mask = keys < end
    if window:
        mask = mask & (keys > at - window)
        if not causal:
            mask = mask & (keys < at + window)
    if segments is not None:
        same = segments[:, :, None] == segments[:, None, :]
        mask = mask & same
    return mask[:, None]
