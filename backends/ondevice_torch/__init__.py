"""The PyTorch backend: CUDA, MPS or CPU."""

import ctypes
import os
import sys

# Read when torch is loaded: threads that wait for each other sleep instead of spinning. Beside any
# other busy program a spinning pair takes five to ten times as long as a sleeping one, and as many
# times the processor's seconds.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Large tensors on large pages: what the system gives anew is then quickly there.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGE = 1 << 20  # bytes
_KEPT = 256 << 20  # bytes that are free at the heap's end before some go back to the system


def _large_tensors_apart() -> None:
    """Has the C library give back the memory of each large tensor as it is freed. Left alone it soon
    keeps them in its heap, whose holes fit no other tensor: a training took twice the memory that
    it held."""
    chosen = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
    if sys.platform != "linux" or any(name in os.environ for name in chosen):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)


_large_tensors_apart()
