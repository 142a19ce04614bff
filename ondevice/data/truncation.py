"""Cutting a text that is too long, as transformers' `truncation=True` does: the special tokens that
open and close it stay, and what is between them is cut at the tokenizer's `truncation_side`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ondevice.common.errors import UserError
from ondevice.data.tokenizer import Tokenizer

SIDES = ("right", "left")


def truncation_side(tokenizer: Tokenizer) -> str:
    """`right` (the end of a text is cut) or `left`. Raises UserError where tokenizer_config.json
    says something else."""
    side: str = tokenizer.config.get("truncation_side") or "right"
    if side not in SIDES:
        raise UserError(
            f"{side!r} is not a side",
            where="tokenizer_config.json: truncation_side",
            hint=f"known: {', '.join(SIDES)}",
        )
    return side


def truncated(
    ids: Sequence[int] | NDArray[np.int32], most: int, tokenizer: Tokenizer
) -> NDArray[np.int32]:
    """At most `most` of a text's ids (T,), without changing those that fit."""
    whole: NDArray[np.int32] = np.asarray(ids, np.int32)
    if len(whole) <= most:
        return whole
    content = np.flatnonzero(~tokenizer.is_special[whole])
    first = last = len(whole)
    if len(content):
        first, last = int(content[0]), int(content[-1]) + 1
    opening, closing = whole[:first], whole[last:]
    room = most - len(opening) - len(closing)
    if room <= 0:  # nothing of the text fits: what is left of the special tokens
        return np.concatenate([opening[: max(most - len(closing), 0)], closing])[-most:]
    text = whole[first:last]
    if truncation_side(tokenizer) == "left":
        text = text[-room:]
    else:
        text = text[:room]
    return np.concatenate([opening, text, closing])


def cut_where(tokenizer: Tokenizer) -> str:
    """For people: at which side of a text is cut."""
    if truncation_side(tokenizer) == "left":
        return "at the beginning"
    return "at the end"
