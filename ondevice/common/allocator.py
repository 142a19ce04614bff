"""How the C library of Linux gives memory to a process that trains on the CPU.

Read at a program's start alone (`GLIBC_TUNABLES`), so that a command that trains starts itself once
more with these settings: `restart`.

Why, measured with glibc 2.36 on blocks of 256 and of 576 columns: torch asks for aligned memory, for
which the library takes a little more and keeps the rest in its cache for small things (`tcache`),
where it never joins the hole again that the tensor leaves: no later tensor of this size fits there,
and a training comes to hold up to twice what it needs. To give each large tensor memory of its own
instead, as glibc does at first, costs up to a third of the time, since the system clears it anew
each time; above 8 MB it does so by large pages, and quickly.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

LARGE = 8 << 20
"""Bytes from which a tensor has memory of its own, which goes back as it is freed."""
KEPT = 256 << 20
"""Bytes that are free at the heap's end before some go back to the system."""
CHOSEN = ("GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
"""Variables by which a person, or an earlier start, has chosen: nothing is changed then."""


def settings(given: Mapping[str, str]) -> dict[str, str]:
    """The environment variables that a process of ours is to be started with beside `given`: none
    where the C library is another one, or where a person has chosen.
    """
    if sys.platform != "linux" or any(name in given for name in CHOSEN) or not _is_glibc():
        return {}
    values = {"tcache_count": 0, "mmap_threshold": LARGE, "trim_threshold": KEPT}
    return {"GLIBC_TUNABLES": ":".join(f"glibc.malloc.{n}={v}" for n, v in values.items())}


def restart() -> None:
    """Starts this Python program once more with those settings, in this very process: its number,
    terminal and files stay. Returns where there is nothing to set, and in a program that was started
    with other words than it has now: it would begin as another.

    To be called before anything else is done or imported.
    """
    wanted = settings(os.environ)
    words = sys.argv[1:]
    begun_so = sys.orig_argv[len(sys.orig_argv) - len(words) :] == words
    if wanted and sys.executable and begun_so:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | wanted)


def give_back() -> None:
    """Gives what is free in the C library's heap back to the system, where it is glibc: others do so
    by themselves. Takes some milliseconds.
    """
    if sys.platform == "linux" and _is_glibc():
        import ctypes  # 6 ms, which commands that train nothing do without

        ctypes.CDLL(None).malloc_trim(0)


def _is_glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (OSError, ValueError):  # a name that other C libraries do not know
        return False
