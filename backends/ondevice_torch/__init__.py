"""The PyTorch backend: CUDA, MPS or CPU."""

import ctypes
import os

from ondevice.common import allocator

# Read when torch is loaded: threads that wait for each other sleep instead of spinning. Beside any
# other busy program a spinning pair takes five to ten times as long as a sleeping one, and as many
# times the processor's seconds.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Large tensors on large pages: what the system gives anew is then quickly there.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def _set_allocator() -> None:
    """In a process that was not started with our settings, as a Python prompt: as much of them as
    can be had now. Left alone the C library raises the bound of what is large with what it sees."""
    if not allocator.settings(os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, allocator.LARGE)
        mallopt(_M_TRIM_THRESHOLD, allocator.KEPT)


_set_allocator()
