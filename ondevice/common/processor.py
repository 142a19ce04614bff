"""What this machine's processor is called."""

from __future__ import annotations

import platform
import re
from pathlib import Path

from ondevice.common import processes


def processor_name() -> str:
    """The processor's own name, as "Apple M2"; the kind of machine where it does not tell."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        found = re.search(
            r"^model name\s*:\s*(.+)$", info.read_text(errors="replace"), re.MULTILINE
        )
        if found:
            return found[1].strip()
    elif platform.system() == "Darwin":
        name = processes.output_of("sysctl", "-n", "machdep.cpu.brand_string").strip()
        return name or platform.machine()
    return platform.processor() or platform.machine()
