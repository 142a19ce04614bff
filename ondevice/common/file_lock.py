"""Locks on open files (`flock`). The kernel frees one when its last descriptor is closed, and so
when its holder dies in any way.
"""

from __future__ import annotations

import fcntl
import time

from ondevice.common.clock import ticks

LOOK_S = 0.02  # between two tries to get a lock


def try_lock(descriptor: int, *, shared: bool = False) -> bool:
    """Whether the file is locked by us now; False: somebody else holds a lock that excludes it.
    Raises OSError where the file system has no locks.
    """
    kind = fcntl.LOCK_EX
    if shared:
        kind = fcntl.LOCK_SH
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock(descriptor: int, *, shared: bool = False, patience_s: float) -> bool:
    """`try_lock`, again and again for as long as `patience_s`."""
    end = ticks() + patience_s
    while not try_lock(descriptor, shared=shared):
        if ticks() > end:
            return False
        time.sleep(LOOK_S)
    return True
