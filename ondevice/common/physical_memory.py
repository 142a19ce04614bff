"""How much memory this machine has."""

from __future__ import annotations

import os

# of a container, by control groups of version 2 and 1
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def physical_memory() -> int | None:
    """Bytes of this machine's memory, or of a container's limit where that is lower; None where it
    is not known.
    """
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
    for file in _LIMITS:
        try:
            with open(file, encoding="ascii") as opened:
                limit = opened.read().strip()
        except OSError:
            continue  # no control groups of this version
        if limit.isdigit():
            total = min(total, int(limit))
    return total
