"""Where this machine's power comes from, and keeping it from falling asleep while a stage works.

    macOS   caffeinate -i -s -w PID     ends with this process, however that ends
    Linux   systemd-inhibit … cat       ends when our end of its pipe closes: likewise

Elsewhere, and where neither program is, the machine sleeps when it likes. `-s` holds on the mains
alone: a laptop on its battery that is shut still sleeps.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ondevice.common import processes

BOOTED = Path("/run/systemd/system")  # is there where systemd runs, and so may suspend (sd_booted)
HELD = "held"  # what the child says once sleep is held off
END_S = 5.0  # within which the helper ends once it is told to
_told = threading.Event()  # that it is refused: once a process is enough


def power_state() -> str:
    """mains or battery, with low-power where the system saves energy; unknown elsewhere."""
    if sys.platform == "darwin":
        return _power_of_mac()
    supplies = Path("/sys/class/power_supply")
    found = "unknown"
    for supply in sorted(supplies.glob("*")) if supplies.is_dir() else ():
        try:
            if (supply / "online").read_text().strip() == "1":
                return "mains"
            found = "battery"
        except OSError:
            continue  # a battery says something else
    return found


def _power_of_mac() -> str:
    try:
        drawn = processes.output_of("pmset", "-g", "batt")
        saved = processes.output_of("pmset", "-g")
    except OSError:
        return "unknown"
    state = "battery" if "Battery Power" in drawn else "mains"
    if re.search(r"^\s*lowpowermode\s+1", saved, re.MULTILINE):
        state += " low-power"
    return state


def power_warning(state: str) -> str:
    """What a person is to know of it before hours of work; empty where there is nothing."""
    if state.startswith("battery"):
        return "on battery: a run drains it soon, and a laptop that is shut sleeps; plug it in"
    if "low-power" in state:
        return "the system saves energy (low-power mode): it is slower than it could be"
    return ""


@contextmanager
def kept_awake(say: Callable[[str], None]) -> Iterator[None]:
    """Inside, this machine does not fall asleep by itself, where it has a program for that; `say` is
    told where that program refuses. Nothing of it is left when this process ends in any way."""
    words = _words()
    if not words:
        yield
        return
    try:
        process = processes.start(
            words,
            processes.Access.OWN,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for us: it ends once the stage has been saved
        )
    except OSError as error:
        _tell(say, f"{words[0]} cannot be started ({error.strerror})")
        yield
        return
    ending = threading.Event()
    watch = threading.Thread(target=_watch, args=(process, ending, say), daemon=True)
    watch.start()
    try:
        yield
    finally:
        ending.set()
        _end(process)
        watch.join(END_S)


def _words() -> list[str]:
    """The program that holds off sleep, with its arguments; none where there is none."""
    if sys.platform == "darwin":
        if shutil.which("caffeinate"):
            return ["caffeinate", "-i", "-s", "-w", str(os.getpid())]
        return []
    if BOOTED.is_dir() and shutil.which("systemd-inhibit"):
        why = [f"--who=ondevice ({os.getpid()})", "--why=a model is being trained"]
        what = ["--what=idle:sleep", "--mode=block"]
        return ["systemd-inhibit", *what, *why, "sh", "-c", f"echo {HELD}; exec cat"]
    return []


def _watch(
    process: subprocess.Popen[bytes], ending: threading.Event, say: Callable[[str], None]
) -> None:
    """Tells where the program ends before it is told to: it may not hold off sleep here."""
    assert process.stdout is not None
    last = ""
    with suppress(ValueError, OSError):  # closed while it was read
        for line in process.stdout:
            text = line.decode("utf-8", "replace").strip()
            last = text if text not in ("", HELD) else last
    process.wait()
    if not ending.is_set():
        _tell(say, last or "its program has ended")


def _tell(say: Callable[[str], None], why: str) -> None:
    """Says it once: a run has many stages."""
    if not _told.is_set():
        _told.set()
        say(f"sleep is not held off: {why}")


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    with suppress(OSError):
        process.stdin.close()
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
