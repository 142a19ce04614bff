"""How quick the terminal UI stays: a million lines of events to read, and a thousand more every
second.

    python scripts/bench/tui.py [--lines 1000000] [--rate 1000] [--seconds 30] [--size 120x36]
    python scripts/bench/tui.py --lines 2000 --seconds 1 --repeats 1 --rounds 1     # does it run?

The app runs in a process of its own on a real pseudo-terminal; a writer appends to the stage's
events; keys are pressed at random moments and the time to the first bytes of the answer is taken.
CPU and memory are the app's process's alone. An app that shows one word and does nothing is
measured in the same way beside it, under the same load: what the machine and Textual cost on their
own. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import pty
import random
import select
import signal
import struct
import sys
import tempfile
import termios
import threading
import time
from pathlib import Path
from statistics import median

KEPT = 1 << 22  # bytes of what an app has drawn lately
VIEWS = (b"full", b"log", b"fit")  # what each press of y shows in turn
PAGE, TICK = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")


def line(step: int) -> bytes:
    """A step event of ordinary length; its loss has noise and now and then a spike."""
    loss = 6 * 2.718 ** (-step / 50_000) + 1 + random.random() * 0.2 + 5 * (step % 9973 == 0)
    return as_line(
        {
            "t": 1.7e9 + step / 1000,
            "event": "step",
            "step": step,
            "loss": loss,
            "grad_norm": 0.5,
            "lr": 1e-3,
            "tokens": step * 2048,
            "tokens_per_second": 4000.5,
            "seconds": 0.5,
            "memory_bytes": 464044032,
        }
    )


def as_line(event: dict[str, object]) -> bytes:
    return json.dumps(event).encode() + b"\n"


def write_run(folder: Path, lines: int) -> Path:
    stage = folder / "big" / "pretrain"
    stage.mkdir(parents=True)
    with open(stage / "events.jsonl", "wb") as file:
        file.write(
            as_line({"t": 1.7e9, "event": "start", "step": 0, "steps": lines * 2, "config": {}})
        )
        for step in range(1, lines + 1):
            file.write(line(step))
    return stage


class Writer(threading.Thread):
    """Appends `rate` lines a second, in pieces, and holds the stage's lock as a trainer does."""

    def __init__(self, stage: Path, first: int, rate: int) -> None:
        super().__init__(daemon=True)
        self.next, self.rate, self.stopped = first, rate, False
        self.file = os.open(stage / "events.jsonl", os.O_WRONLY | os.O_APPEND)
        self.lock = os.open(stage / "lock", os.O_RDWR | os.O_CREAT)
        fcntl.flock(self.lock, fcntl.LOCK_EX)

    def run(self) -> None:
        began, written = time.perf_counter(), 0
        while not self.stopped:
            due = int((time.perf_counter() - began) * self.rate) - written
            if due:
                os.write(self.file, b"".join(line(self.next + i) for i in range(due)))
                self.next, written = self.next + due, written + due
            time.sleep(0.02)


EMPTY = """
from textual.app import App
from textual.widgets import Static

class Empty(App):
    BINDINGS = [("y", "flip", "flip")]
    WORDS = ["full", "log", "fit"]

    def compose(self):
        yield Static("the road")

    def action_flip(self):
        self.WORDS.append(self.WORDS.pop(0))
        self.query_one(Static).update(self.WORDS[-1])

Empty().run()
"""


def ours(folder: Path) -> str:
    return (
        "from ondevice_tui.app import OndeviceApp; "
        f"OndeviceApp({str(folder)!r}, look_at_machine=False).run()"
    )


class Terminal:
    """An app on a pseudo-terminal, from its start; `first_screen` (seconds, seconds of CPU) once it
    shows something.
    """

    def __init__(self, folder: Path, columns: int, rows: int, code: str) -> None:
        self.began, self.bytes, self.recent = time.perf_counter(), 0, b""
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            os.chdir(folder.parent)
            os.execve(
                sys.executable,
                [sys.executable, "-c", code],
                {
                    **os.environ,
                    "TERM": "xterm-256color",
                    "COLORTERM": "truecolor",
                    "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
                },
            )
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def first_screen(self) -> tuple[float, float]:
        while b"the road" not in self.read(5):
            pass
        return round(time.perf_counter() - self.began, 2), round(self.cpu(), 2)

    def read(self, seconds: float) -> bytes:
        """What comes within this time, returned at the first bytes."""
        ready, _, _ = select.select([self.master], [], [], seconds)
        data = os.read(self.master, 1 << 16) if ready else b""
        self.bytes += len(data)
        self.recent = (self.recent + data)[-KEPT:]
        return data

    def drain(self, seconds: float) -> None:
        end = time.perf_counter() + seconds
        while (left := end - time.perf_counter()) > 0:
            self.read(left)

    def press(self, key: bytes, shows: bytes) -> float:
        """Milliseconds until `shows` is drawn after this key."""
        began = time.perf_counter()
        os.write(self.master, key)
        seen = b""
        while shows not in seen and time.perf_counter() - began < 10:
            seen += self.read(0.5)
        return (time.perf_counter() - began) * 1000

    def cpu(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    def memory(self) -> float:
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * PAGE / 2**20

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def keys(app: Terminal, empty: Terminal, rounds: int) -> tuple[list[float], list[float]]:
    """Milliseconds of keys at random moments, of the app and of the empty one in turn."""
    found: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for shows in VIEWS:
            app.drain(random.random() * 0.4)
            found[0].append(app.press(b"y", shows))
            found[1].append(empty.press(b"y", shows))
    return found


def measure(
    folder: Path,
    lines: int,
    rate: int,
    seconds: float,
    size: tuple[int, int],
    repeats: int,
    rounds: int,
) -> dict[str, object]:
    stage = write_run(folder, lines)
    writer = Writer(stage, lines + 1, rate)
    starts: list[list[tuple[float, float]]] = [[], []]
    for _ in range(repeats):
        for times, code in zip(starts, (ours(folder), EMPTY), strict=True):
            app = Terminal(folder, *size, code)
            times.append(app.first_screen())
            app.close()
    app, empty = Terminal(folder, *size, ours(folder)), Terminal(folder, *size, EMPTY)
    app.first_screen()
    empty.first_screen()
    app.drain(1.5)
    app.recent = b""
    os.write(app.master, b"2")
    reading = time.perf_counter()
    app.drain(1.0)
    while_reading = []
    for shows in VIEWS:
        app.drain(0.3)
        while_reading.append(app.press(b"y", shows))
    wanted = f"step {lines:,}/".encode()  # what the screen says when all of it is read
    while wanted not in app.recent:
        if time.perf_counter() - reading > 300:
            sys.exit(f"the screen has not said {wanted.decode()!r} within five minutes")
        app.read(1.0)
    read_s = time.perf_counter() - reading
    writer.start()
    app.drain(2.0)
    cpu, wall, sent = app.cpu(), time.perf_counter(), app.bytes
    app.drain(seconds)
    share = (app.cpu() - cpu) / (time.perf_counter() - wall)
    sent_kb = (app.bytes - sent) / (time.perf_counter() - wall) / 1000
    pressed, pressed_empty = keys(app, empty, rounds)
    found = {
        "lines": lines,
        "rate": rate,
        "size": f"{size[0]}x{size[1]}",
        "load": os.getloadavg()[0],
        "first_screen_s_and_cpu_s": starts[0],
        "empty_first_screen_s_and_cpu_s": starts[1],
        "read_all_s": round(read_s, 1),
        "key_ms_while_reading": [round(k) for k in while_reading],
        "key_ms_median": round(median(pressed)),
        "key_ms_worst": round(max(pressed)),
        "empty_key_ms_median": round(median(pressed_empty)),
        "empty_key_ms_worst": round(max(pressed_empty)),
        "cpu_share": round(share, 3),
        "to_terminal_kB_s": round(sent_kb, 1),
        "memory_MB": round(app.memory(), 1),
        "empty_memory_MB": round(empty.memory(), 1),
    }
    writer.stopped = True
    app.close()
    empty.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--rate", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--size", default="120x36")
    parser.add_argument("--repeats", type=int, default=3, help="starts of either app")
    parser.add_argument("--rounds", type=int, default=8, help="three keys each, of either app")
    options = parser.parse_args()
    if not Path("/proc/self/stat").exists():
        parser.error("the app's CPU and memory are read from /proc, which Linux has")
    columns, rows = map(int, options.size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        print(
            json.dumps(
                measure(
                    Path(folder) / "runs",
                    options.lines,
                    options.rate,
                    options.seconds,
                    (columns, rows),
                    options.repeats,
                    options.rounds,
                ),
                indent=2,
            )
        )


if __name__ == "__main__":
    main()
