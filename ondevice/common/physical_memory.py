"""How much memory this machine has, how much of it can be had now or is this process's, and how
many cores.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

from ondevice.common.processes import output_of

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


def available_memory() -> int | None:
    """Bytes that can be had now without swapping: Linux's own estimate, or what a container's limit
    leaves; on macOS free, inactive and speculative pages. None where the system does not tell.
    """
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return _available_on_mac()
    found = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(), re.MULTILINE)
    if found is None:
        return None
    available = int(found[1]) * 1024
    left = _left_in_container()
    return available if left is None else min(available, left)


def _available_on_mac() -> int | None:
    if not shutil.which("vm_stat"):
        return None
    text = output_of("vm_stat")
    pages = re.findall(r"^Pages (?:free|inactive|speculative):\s+(\d+)", text, re.MULTILINE)
    if pages:
        return sum(map(int, pages)) * os.sysconf("SC_PAGE_SIZE")
    return None


def _left_in_container() -> int | None:
    """What a container's limit leaves (control groups of version 2); what files hold in memory goes
    when it is needed. None without a limit."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
        stat = (folder / "memory.stat").read_text()
    except (OSError, ValueError):
        return None
    if not limit.isdigit():
        return None
    files = re.search(r"^inactive_file (\d+)", stat, re.MULTILINE)
    return max(0, int(limit) - used + (int(files[1]) if files else 0))


def process_memory() -> int:
    """Bytes that this process holds now; on a Mac the most that it has held."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def cores() -> int:
    """Those that this process may use: fewer than the machine's in a container or under taskset."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
