"""What a list of many runs costs the app while nothing happens: seconds of processor time, as a share
of one core, of the app's process alone.

    python scripts/bench/many_runs.py [--runs 207] [--seconds 60] [--size 80x24] [--training 1]
    python scripts/bench/many_runs.py --runs 5 --seconds 1 --settle 1        # does it run?
    python scripts/bench/many_runs.py --make FOLDER                          # the runs alone, to look at

Runs of some stages each, as training leaves them, a few with a note and tags; in `--training` of
them a step is written each second, as by a small model. The app runs on a real pseudo-terminal, and
is left alone for `--settle` seconds (it reads each run once, and the space that each takes).
Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from ondevice.runs.labels import add_tags, set_note
from tui import Terminal, Writer, as_line, line, ours

STAGES = ("init", "pretrain", "sft", "reward", "ppo", "grpo")
BEGAN = time.time()  # of the newest run
STEPS = 200


def write_stage(stage: Path, began: float, number: int, *, done: bool = True) -> None:
    stage.mkdir(parents=True)
    (stage / "lock").touch()
    config = {"steps": STEPS, "learning_rate": 1e-3 / (1 + number % 3), "seed": number}
    with open(stage / "events.jsonl", "wb") as file:
        file.write(
            as_line({"t": began, "event": "start", "step": 0, "steps": STEPS, "config": config})
        )
        for step in range(1, STEPS + 1):
            file.write(line(step))
        loss = 1 + number % 7 / 10
        file.write(as_line({"t": began + 60, "event": "eval", "step": STEPS, "loss": loss}))
        if number % 11 == 3 and not done:
            failed = {"event": "failed", "reason": "ValueError", "message": "kaboom"}
            file.write(as_line({"t": began + 61, **failed}))
    if done:
        marks = {"exact_match": number % 100 / 100, "bits_per_byte": 1.2}
        (stage / "done.json").write_text(json.dumps({"marks": marks, "seconds": 60.0 + number}))


def write_runs(folder: Path, count: int) -> None:
    """Of each three runs one is done, one has come half-way, one has a last stage that ended."""
    for number in range(count):
        run = folder / f"exp-{number:03}-lr{1 + number % 9}e-4"
        stages = STAGES[: 2 + number % 5]
        for at, stage in enumerate(stages):
            done = at + 1 < len(stages) or number % 3 == 0
            began = BEGAN - 3600 * (count - number) + 100 * at
            write_stage(run / stage, began, number, done=done)
        if number % 10 == 0:
            set_note(run, f"note {number}: a rate that was worth trying once more")
            add_tags(run, ["good" if number % 20 else "kept"])


def measure(
    count: int, seconds: float, settle: float, size: tuple[int, int], training: int
) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "runs"
        folder.mkdir()
        write_runs(folder, count)
        writers = []
        for run in sorted(folder.iterdir())[:training]:
            writers.append(Writer(run / "init", STEPS + 1, 1))
        for writer in writers:
            writer.start()
        app = Terminal(folder, *size, ours(folder))
        first = app.first_screen()
        app.drain(settle)
        cpu, sent, began = app.cpu(), app.bytes, time.perf_counter()
        app.drain(seconds)
        wall = time.perf_counter() - began
        found = {
            "runs": count,
            "training": training,
            "size": f"{size[0]}x{size[1]}",
            "load": os.getloadavg()[0],
            "first_screen_s_and_cpu_s": first,
            "cpu_share": round((app.cpu() - cpu) / wall, 4),
            "to_terminal_kB_s": round((app.bytes - sent) / wall / 1000, 2),
            "memory_MB": round(app.memory(), 1),
        }
        for writer in writers:
            writer.stopped = True
        app.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=207)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--settle", type=float, default=30, help="seconds before it is measured")
    parser.add_argument("--size", default="80x24")
    parser.add_argument("--training", type=int, default=0, help="runs that train meanwhile")
    parser.add_argument("--make", type=Path, help="write the runs into this folder, and no more")
    options = parser.parse_args()
    if options.make is not None:
        write_runs(options.make, options.runs)
        return
    if not Path("/proc/self/stat").exists():
        sys.exit("the app's processor time is read from /proc, which Linux has")
    columns, rows = map(int, options.size.split("x"))
    found = measure(
        options.runs, options.seconds, options.settle, (columns, rows), options.training
    )
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
