"""Which split something belongs to, decided by what it is and not by when it was drawn.

A question, a list of words, a context or a sum is hashed with the seed: the same one lands in the
same split in every kind of text and in every process, so no two splits can share one. (`hash()`
differs between processes; CRC-32 of the text does not, and Python has it in C.)
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Literal

Split = Literal["train", "validation", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "validation", "heldout")

QUESTIONS: Mapping[str, float] = {"train": 0.84, "validation": 0.06, "heldout": 0.10}
CONTENTS: Mapping[str, float] = {"train": 0.80, "validation": 0.08, "heldout": 0.12}


def place(seed: int, what: str, key: str, parts: Mapping[str, float]) -> str:
    """The part that `key` falls in. `parts` maps a name to its probability; they add up to 1."""
    # One round of CRC is linear in its input; the multiplication spreads keys that differ in one
    # letter.
    spread = (zlib.crc32(f"{seed}|{what}|{key}".encode()) * 2654435761) & 0xFFFFFFFF
    point = (spread ^ (spread >> 16)) / 4294967296
    name = ""
    for name, share in parts.items():
        point -= share
        if point < 0:
            return name
    return name
