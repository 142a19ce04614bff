"""Pre-training and GRPO for hours with a fault each minute; at the end the curve, the weights and the
answers are those of a run that met none.

    scripts/soak                      # two hours
    scripts/soak --minutes 20 --every 20

The faults, in an order drawn by the seed, each as often as there is time: killed (SIGKILL), stopped
(Ctrl-C), the disk is full, the newest checkpoint is damaged, the clock of the day jumps, a second
process wants the same run, there is no memory for a tensor. Each says how often it was met; one that
was not met fails the soak, and so do memory or open files that grow, and a file or a process that is
left behind. On Linux, with a C compiler; torch on the CPU.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from ondevice.common.json_files import parse_json
from ondevice.runs import checkpoint
from ondevice.runs.events import read
from ondevice.runs.folder import RunFolder, StageFolder

HERE = Path(__file__).resolve().parent
SOURCES = (HERE / "soak_faults.c", HERE.parent / "tests" / "full_disk.c")
WORDS = ["Anna", "Ben", "Carla", "Rome", "Oslo", "likes", "sees", "red", "green", "pears"]
MODEL = {
    "vocab_size": 300,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
# One row at once: without memory for it a stage ends in a line, and a resume gives the same bits. (To
# halve what is computed at once gives other roundings.) A file's own settings for everything that the
# machine would decide, so that both runs have the same.
COMMON = {
    "backend": "torch",
    "device": "cpu",
    "dtype": "float32",
    "micro_batch": 1,
    "schedule": "constant",
    "learning_rate": 1e-3,
    "warmup_steps": 5,
    "keep": 3,
}
STAGES: Mapping[str, Mapping[str, Any]] = {
    "pretrain": {
        "batch_size": 4,
        "sequence_length": 96,
        "eval_every": 200,
        "eval_batches": 2,
        "checkpointing": False,
    },
    "grpo": {
        "prompts": 4,
        "group_size": 4,
        "max_new_tokens": 16,
        "rewards": "length,truncated",
        "decode_batch": 16,
        "eval_every": 0,
        "checkpointing": False,
    },
}
MEASURED = ("t", "seconds", "tokens_per_second", "memory_bytes", "groups")


def main(arguments: list[str] | None = None) -> int:
    options = parsed(arguments)
    if sys.platform != "linux" or shutil.which("cc") is None:
        print("needs Linux and a C compiler: faults are loaded before libc", file=sys.stderr)
        return 2
    work = Path(options.work).absolute()
    work.mkdir(parents=True, exist_ok=True)
    if any(work.iterdir()):
        print(f"{work} is not empty: name another folder (--work)", file=sys.stderr)
        return 2
    soak = Soak(work, options.every, options.seed)
    soak.prepare()
    problems = []
    for stage in options.stages.split(","):
        seconds = options.minutes * 60 / len(options.stages.split(","))
        problems += soak.stage(stage, seconds)
    for fault in FAULTS:
        print(f"{fault.replace('_', ' '):<20} met {soak.met[fault]} of {soak.tried[fault]} times")
        if not soak.met[fault]:
            problems.append(f"{fault.replace('_', ' ')} was not met")
    left = soak.processes()
    if left:
        problems.append(f"processes are left: {left}")
    for problem in problems:
        print(f"FAILED: {problem}")
    if not problems:
        print("the same as without any fault")
    return 1 if problems else 0


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=120.0, help="of work that meets faults")
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two faults")
    parser.add_argument("--stages", default="pretrain,grpo")
    parser.add_argument("--work", default="soak-work", help="an empty folder")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


class Counters:
    """8-byte numbers in a file that processes share."""

    def __init__(self, file: Path) -> None:
        self.file = file
        file.write_bytes(bytes(4096))
        with file.open("r+b") as opened:
            self._mapped = mmap.mmap(opened.fileno(), 4096)

    def __getitem__(self, place: int) -> int:
        return int(struct.unpack_from("q", self._mapped, 8 * place)[0])

    def __setitem__(self, place: int, value: int) -> None:
        self._mapped[8 * place : 8 * place + 8] = struct.pack("q", value)


class Soak:
    """One folder of work: the files to learn from, `whole` without faults, `met` with them."""

    def __init__(self, work: Path, every: float, seed: int) -> None:
        self.work, self.every = work, every
        self.rng = random.Random(seed)
        self.met: Counter[str] = Counter()
        self.tried: Counter[str] = Counter()
        self.faults = Counters(work / "faults")
        self.disk = Counters(work / "disk")
        self.mark = f"soak-{os.getpid()}-{time.time_ns()}"
        self.libraries = [self._compiled(source) for source in SOURCES]
        self.memory: list[
            int
        ] = []  # bytes of a process that met faults, some seconds after its start
        self.handles: list[int] = []

    def _compiled(self, source: Path) -> str:
        made = self.work / f"{source.stem}.so"
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-O1", "-o", str(made), str(source), "-ldl"], check=True
        )
        return str(made)

    def prepare(self) -> None:
        rng = random.Random(1)
        lines = [" ".join(rng.choices(WORDS, k=12)) + "." for _ in range(4000)]
        (self.work / "text.txt").write_text("\n".join(lines))
        prompts = [{"prompt": " ".join(rng.choices(WORDS, k=4)), "answer": "1"} for _ in range(400)]
        (self.work / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
        flags = [f"--{name}={value}" for name, value in MODEL.items()]
        self.done(
            self.start("init", str(self.work / "text.txt"), *flags, f"--out={self.work}/base")
        )

    def words(self, stage: str, out: Path, steps: int, save_every: int) -> list[str]:
        data = {"pretrain": "text.txt", "grpo": "prompts.jsonl"}[stage]
        fields = {**COMMON, **STAGES[stage], "steps": steps, "save_every": save_every, "out": out}
        flags = []
        for name, value in fields.items():
            if value is False:
                flags.append(f"--no-{name}")
            else:
                flags.append(f"--{name}={value}")
        return [stage, str(self.work / "base" / "init" / "model"), str(self.work / data), *flags]

    def start(self, *words: str, faulty: Path | None = None) -> subprocess.Popen[bytes]:
        """`ondevice WORDS`; `faulty`: the run folder whose disk gets full, in a process that meets
        faults."""
        environment = {**os.environ, "SOAK": self.mark, "ONDEVICE_CACHE": str(self.work / "cache")}
        if faulty is not None:
            known = [*self.libraries, os.environ.get("LD_PRELOAD", "")]
            environment |= {
                "LD_PRELOAD": " ".join(filter(None, known)),
                "SOAK_FILE": str(self.faults.file),
                "FULL_FILE": str(self.disk.file),
                "FULL_ROOT": str(faulty),
            }
        log = open(self.work / "log.txt", "ab")  # noqa: SIM115  # the child's
        with log:
            return subprocess.Popen(
                [sys.executable, "-m", "ondevice", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )

    def done(self, process: subprocess.Popen[bytes]) -> None:
        if process.wait() != 0:
            raise SystemExit(f"a stage failed: see {self.work / 'log.txt'}\n{self.said()}")

    def said(self) -> str:
        """The end of what the processes said."""
        return "\n".join((self.work / "log.txt").read_text(errors="replace").splitlines()[-5:])

    # ---- a stage ------------------------------------------------------------------------------------

    def stage(self, stage: str, seconds: float) -> list[str]:
        """What is wrong after the stage was done with faults for so long, and without."""
        steps, save_every = self.paced(stage, seconds)
        print(f"{stage}: {steps:,} steps, a checkpoint every {save_every}", flush=True)
        met = RunFolder(self.work / "met").stage(stage)
        self.meet_faults(stage, met, steps, save_every)
        whole = RunFolder(self.work / "whole").stage(stage)
        process = self.start(*self.words(stage, whole.path.parent, steps, save_every))
        problems = grown(watched(process, whole))
        self.done(process)
        problems += compared(met, whole)
        problems += [f"{file} is left behind" for file in strays(met.path, whole.path)]
        if self.memory and max(self.memory) > 1.25 * min(self.memory) + (64 << 20):
            problems.append(f"memory from start to start: {min(self.memory)} to {max(self.memory)}")
        if self.handles and max(self.handles) > min(self.handles) + 4:
            problems.append(f"open files from start to start: {self.handles}")
        self.memory, self.handles = [], []
        return [f"{stage}: {problem}" for problem in problems]

    def paced(self, stage: str, seconds: float) -> tuple[int, int]:
        """Steps for so many seconds, and between two checkpoints, by a short run."""
        out = RunFolder(self.work / f"pace-{stage}")
        count = {"pretrain": 60, "grpo": 12}[stage]
        self.done(self.start(*self.words(stage, out.path, count, 0)))
        times = [e["t"] for e in read(out.stage(stage).events) if e["event"] == "step"]
        per_second = (len(times) // 2) / max(times[-1] - times[len(times) // 2 - 1], 1e-3)
        # a start takes seconds too, and a fault loses what is behind the newest checkpoint
        return max(20, int(0.6 * seconds * per_second)), max(2, int(self.every / 6 * per_second))

    def meet_faults(self, stage: str, met: StageFolder, steps: int, save_every: int) -> None:
        words = self.words(stage, met.path.parent, steps, save_every)
        faults = self.order()
        process = self.start(*words, faulty=met.path.parent)
        ended, step = 0, -1
        while not met.done.is_file():
            if process.poll() is not None:
                ended, step = ended + 1 if last_step(met) == step else 0, last_step(met)
                if ended == 5:
                    raise SystemExit(f"does not come past step {step}:\n{self.said()}")
                if process.returncode not in (0, 2, 130, -signal.SIGKILL):
                    raise SystemExit(f"ended with {process.returncode}:\n{self.said()}")
                if met.done.is_file():
                    break
                process = self.start(*words, "--resume", faulty=met.path.parent)
            if not until(lambda: progressed(met), process, 120):
                continue
            end = time.monotonic() + self.every
            while process.poll() is None and time.monotonic() < end:
                time.sleep(0.2)
            if process.poll() is not None:
                continue
            if last_step(met) < steps:  # one that is through closes its files
                self.memory.append(resident(process.pid))
                self.handles.append(len(os.listdir(f"/proc/{process.pid}/fd")))
            fault = next(faults)
            self.tried[fault] += 1
            if FAULTS[fault](self, met, process, words):
                self.met[fault] += 1
            print(f"  step {last_step(met):>7,}: {fault.replace('_', ' ')}", flush=True)
        # a kill that comes between the end of the work and that of its process takes nothing
        if process.wait() != -signal.SIGKILL:
            self.done(process)

    def order(self) -> Iterator[str]:
        while True:
            names = list(FAULTS)
            self.rng.shuffle(names)
            yield from names

    def processes(self) -> list[int]:
        """Those that this soak has started and that live."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and int(entry.name) != os.getpid():
                try:
                    environment = (entry / "environ").read_bytes()
                except OSError:
                    continue  # of somebody else, or over
                if f"SOAK={self.mark}".encode() in environment:
                    found.append(int(entry.name))
        return found


# ---- the faults: each returns whether it was met -----------------------------------------------------

Fault = Callable[[Soak, StageFolder, subprocess.Popen[bytes], list[str]], bool]


def killed(
    soak: Soak, met: StageFolder, process: subprocess.Popen[bytes], words: list[str]
) -> bool:
    time.sleep(soak.rng.random())
    process.kill()
    return process.wait() == -signal.SIGKILL


def stopped(
    soak: Soak, met: StageFolder, process: subprocess.Popen[bytes], words: list[str]
) -> bool:
    process.send_signal(signal.SIGINT)
    return process.wait(timeout=120) == 130 and "saved" in soak.said()


def full_disk(
    soak: Soak, met: StageFolder, process: subprocess.Popen[bytes], words: list[str]
) -> bool:
    """Until something had to be written; room comes back a little later."""
    before = paused(met)
    soak.disk[1] = 1
    seen = until(lambda: "paused" in (met.holder() or {}), process, 120)
    time.sleep(1)
    soak.disk[1] = 0
    return seen and until(lambda: paused(met) > before, process, 120)


def damaged_checkpoint(
    soak: Soak, met: StageFolder, process: subprocess.Popen[bytes], words: list[str]
) -> bool:
    """In the newest one a byte of a file is another; the next start says so."""
    if not until(lambda: len(checkpoint.steps(met.checkpoints)) > 1, process, 120):
        return False
    process.kill()
    process.wait()
    newest = checkpoint.steps(met.checkpoints)[-1]
    file = soak.rng.choice(
        [f for f in sorted(newest.rglob("*")) if f.is_file() and f.stat().st_size]
    )
    content = bytearray(file.read_bytes())
    content[soak.rng.randrange(len(content))] ^= 0x55
    file.write_bytes(content)
    log = soak.work / "log.txt"
    size = log.stat().st_size
    again = soak.start(*words, "--resume", faulty=met.path.parent)
    found = until(lambda: newest.name in log.read_text(errors="replace")[size:], again, 60)
    again.kill()
    again.wait()
    return found


def clock_jump(
    soak: Soak, met: StageFolder, process: subprocess.Popen[bytes], words: list[str]
) -> bool:
    """By up to a month, to and fro; it is seen in the events' times."""
    last = time_of_last(met)
    soak.faults[0] = soak.rng.choice((-1, 1)) * soak.rng.randrange(7200, 30 * 86400)
    return until(lambda: abs(time_of_last(met) - last) > 3600, process, 60)


def second_process(
    soak: Soak, met: StageFolder, process: subprocess.Popen[bytes], words: list[str]
) -> bool:
    other = soak.start(*words, "--resume")
    return other.wait(timeout=120) == 2 and f"process {process.pid}" in soak.said()


def out_of_memory(
    soak: Soak, met: StageFolder, process: subprocess.Popen[bytes], words: list[str]
) -> bool:
    """The next large tensor cannot be had."""
    before = soak.faults[2]
    soak.faults[1] = 1
    refused = until(lambda: soak.faults[2] > before, process, 60)
    ended = until(lambda: process.poll() is not None, process, 60)
    soak.faults[1] = 0
    if not ended:
        process.kill()
        process.wait()
        return False
    return refused and process.returncode == 2 and "memory" in soak.said()


FAULTS: dict[str, Fault] = {
    "killed": killed,
    "stopped": stopped,
    "full_disk": full_disk,
    "damaged_checkpoint": damaged_checkpoint,
    "clock_jump": clock_jump,
    "second_process": second_process,
    "out_of_memory": out_of_memory,
}


# ---- looking ------------------------------------------------------------------------------------------


def until(true: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether it came true in so many seconds; not waited for after the process's end."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():
            return True
        if process.poll() is not None:
            return true()
        time.sleep(0.1)
    return False


def tail(met: StageFolder) -> list[dict[str, Any]]:
    """The newest events: whole lines of the file's end."""
    if not met.events.is_file():
        return []
    with met.events.open("rb") as file:
        file.seek(max(0, met.events.stat().st_size - 20_000))
        lines = file.read().split(b"\n")[1:-1]
    found = []
    for line in lines:
        event = parse_json(line)
        assert isinstance(event, dict)
        found.append(event)
    return found


def progressed(met: StageFolder) -> bool:
    """Whether there is a step after the newest start or resume."""
    for event in reversed(tail(met)):
        if event["event"] == "step":
            return True
        if event["event"] in ("start", "resume"):
            return False
    return False


def last_step(met: StageFolder) -> int:
    return max((e["step"] for e in tail(met) if e["event"] == "step"), default=0)


def time_of_last(met: StageFolder) -> float:
    return float(next((e["t"] for e in reversed(tail(met))), 0.0))


def paused(met: StageFolder) -> int:
    return met.events.read_bytes().count(b'"paused"')


def resident(pid: int) -> int:
    """Bytes of memory."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) << 10 if found else 0


def watched(process: subprocess.Popen[bytes], whole: StageFolder) -> list[tuple[int, int]]:
    """(bytes, open files) of the run without faults, each five seconds."""
    found = []
    until(lambda: progressed(whole), process, 120)
    while process.poll() is None:
        try:
            found.append((resident(process.pid), len(os.listdir(f"/proc/{process.pid}/fd"))))
        except OSError:
            break  # it has just ended
        time.sleep(5)
    return found


def grown(seen: list[tuple[int, int]]) -> list[str]:
    """What grew from the second quarter to the last."""
    if len(seen) < 8:
        return []
    quarter = len(seen) // 4
    early = np.median(np.array(seen[quarter : 2 * quarter]), axis=0)
    late = np.median(np.array(seen[-quarter:]), axis=0)
    problems = []
    if late[0] > 1.05 * early[0] + (8 << 20):
        problems.append(f"memory grew from {early[0] / 1e6:.0f} to {late[0] / 1e6:.0f} MB")
    if late[1] > early[1] + 2:
        problems.append(f"open files grew from {early[1]:.0f} to {late[1]:.0f}")
    return problems


def compared(met: StageFolder, whole: StageFolder) -> list[str]:
    """Where the two differ: each step's numbers, the answers, the weights."""
    problems = []
    one, other = (curve(stage) for stage in (met, whole))
    if one != other:
        first = next((a for a, b in zip(one, other, strict=False) if a != b), None)
        problems.append(f"another curve ({len(one)} and {len(other)} steps; first {first})")
    for name in ("model", "value_model"):
        files = [stage.path / name / "model.safetensors" for stage in (met, whole)]
        if any(file.is_file() for file in files):
            a, b = (load_file(file) for file in files)
            if a.keys() != b.keys() or not all(np.array_equal(a[k], b[k]) for k in a):
                problems.append(f"other weights in {name}")
    logs = [stage.path / "groups.jsonl" for stage in (met, whole)]
    if logs[1].is_file() and groups(logs[0]) != groups(logs[1]):
        problems.append("other answers in groups.jsonl")
    return problems


def curve(stage: StageFolder) -> list[dict[str, Any]]:
    found = []
    for event in read(stage.events):
        if event["event"] in ("step", "eval"):
            found.append(
                {k: v for k, v in event.items() if k not in MEASURED and not k.endswith("_seconds")}
            )
    return found


def groups(file: Path) -> list[Any]:
    rows = [parse_json(line) for line in file.read_bytes().splitlines()]
    return [
        {k: v for k, v in row.items() if k not in MEASURED and not k.endswith("_seconds")}
        for row in rows
    ]


def strays(met: Path, whole: Path) -> list[Path]:
    """Files of the run that met faults which the other has not, checkpoints and caches left out."""
    known = {relative(file, whole) for file in whole.rglob("*")}
    found = []
    for file in sorted(met.rglob("*")):
        name = relative(file, met)
        if name not in known and not name.startswith(("checkpoints/step-", "data/")):
            found.append(file)
    return found


def relative(file: Path, folder: Path) -> str:
    return str(file.relative_to(folder))


if __name__ == "__main__":
    sys.exit(main())
