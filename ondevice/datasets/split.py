"""Which rows of a source are held out, and which rows are left to learn from: what is held out is
learned from no source.

Rows are compared by hashes of 64 bits, so that texts of any size need eight bytes each.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ondevice.common.errors import UserError
from ondevice.data.mixture import sources

HELD_PART = 0.1  # of a person's own data, where no validation file is given
HELD_MOST = 500  # rows

Keys = NDArray[np.uint64]


def key_of(value: Any) -> int:
    """A hash of what JSON can write."""
    text = json.dumps(value, sort_keys=True, default=str)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def prompt_keys(messages: Sequence[Any]) -> tuple[int, int]:
    """(a hash of a prompt up to what its user says first, one of all of it): turns of one chat
    share the first.
    """
    first = next(
        (n for n, message in enumerate(messages) if message["role"] == "user"), len(messages)
    )
    return key_of(messages[: first + 1]), key_of(messages)


def last_together(
    groups: Keys,
    where: str,
    what: str,
    alike: str = "begin alike",
    warn: Callable[[str], None] | None = None,
) -> tuple[NDArray[np.bool_], bool]:
    """(which rows are held out, whether what they share is learned nowhere).

    About the last tenth of the rows is held out, and rows of one group stay together. Where all are
    of one group, the last tenth is held out all the same, and `warn` is told. Raises UserError
    where nothing would be left to learn from.
    """
    if len(groups) < 2:
        raise UserError(
            f"holds one {what} only, or one within the limit",
            where=where,
            hint="give more: the last tenth is held out where there is no validation file",
        )
    room = min(max(1, int(len(groups) * HELD_PART)), HELD_MOST)
    _, group_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if len(sizes) == 1:
        if warn is not None:
            warn(learned_too(where, what, alike))
        return np.arange(len(groups)) >= len(groups) - room, False
    heldout = set[int]()
    for group in dict.fromkeys(group_of[::-1].tolist()):
        if sizes[group] <= room and len(heldout) + 1 < len(sizes):
            heldout.add(group)
            room -= int(sizes[group])
        if not room:
            break
    return np.isin(group_of, list(heldout or {int(np.argmin(sizes))})), True


def learned_too(where: str, what: str, alike: str) -> str:
    """What to say where nothing of a source can be held out that is not learned as well."""
    return f"{where}: all {what}s {alike}, so that what is held out is learned too: give --validation FILE"


def left_to_learn(
    train: Sequence[Keys | None],
    heldout: Sequence[Keys | None],
    data: str,
    what: str,
    warn: Callable[[str], None],
) -> list[Any]:
    """Of each source of `data`, which of its rows are not held out as they are: an array of truths,
    or None where its keys are None. Says how many are left out. Raises UserError where nothing is
    left of a source."""
    known = np.concatenate(
        [np.zeros(0, np.uint64), *(keys for keys in heldout if keys is not None)]
    )
    left = [None if keys is None else ~np.isin(keys, known) for keys in train]
    gone = sum(int((~which).sum()) for which in left if which is not None)
    if gone:
        warn(left_out(gone, what))
    for which, source in zip(left, sources(data), strict=True):
        if which is not None and not which.any():
            raise UserError(
                "all of it is held out too", where=source.data, hint="give other rows to learn from"
            )
    return left


def left_out(count: int, what: str) -> str:
    """What to say of rows that are not learned from."""
    if count != 1:
        return f"{count:,} {what}s are left out because they are held out too"
    return f"1 {what} is left out because it is held out too"
