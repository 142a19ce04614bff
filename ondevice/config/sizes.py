"""Sizes of memory as people write them."""

from __future__ import annotations

import re

from ondevice.common.errors import UserError

_UNITS = " kmgt"
_SIZE = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*(?:([kmgt]?)(i?)b)?\s*", re.IGNORECASE)


def parse_memory(text: str) -> int | None:
    """Bytes that a person means by 8GB, 512 MB or 8GiB; None for nothing. Raises UserError for
    anything else."""
    if not text:
        return None
    found = _SIZE.fullmatch(text)
    if found is None or not float(found[1]):
        raise UserError(f"{text!r} is not a size of memory", where="memory", hint="such as 8GB")
    thousand = 1024 if found[3] else 1000
    return int(float(found[1]) * thousand ** _UNITS.index((found[2] or " ").lower()))
