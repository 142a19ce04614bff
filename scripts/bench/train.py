"""Runs us and a peer in turn, each in fresh processes, on the same material, and prints a Markdown table of ratios.

    python scripts/bench/train.py                       # everything that is installed, a few minutes
    python scripts/bench/train.py --only text --size 5M --repeats 5

Above 1 in "tokens a CPU-second" we are faster, below 1 in "memory" we are smaller. Only targets that are really
trained count as tokens. CPU seconds are those of all threads, so that other programs on the machine matter little.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))
from common import MARK, SIZES, Job, prepare  # noqa: E402

HERE = Path(__file__).parent


class Comparison(NamedTuple):
    what: str
    backend: str
    peer: str
    title: str
    clip_norm: float = 1.0
    same_steps: bool = True  # the peer's batches are ours, so the losses of the first steps must agree


COMPARISONS = (
    Comparison("text", "torch", "transformers", "pre-training, against transformers' Trainer"),
    Comparison("chats", "torch", "trl", "chats, one a row, against TRL's SFTTrainer"),
    Comparison("chats-packed", "torch", "trl", "chats, packed, against TRL's SFTTrainer", 1.0, False),
    Comparison("generate", "torch", "transformers", "greedy decoding of 64 rows, against transformers' generate"),
    Comparison("text", "mlx", "mlx_lm", "all weights on full rows, against mlx-lm's train", 0.0),
    Comparison("blocks", "mlx", "mlx_lm", "blocks alone on full rows, against mlx-lm's train", 0.0),
    Comparison("chats-packed", "mlx", "mlx_lm", "chats, packed, against mlx-lm's train (padded)", 0.0, False),
    Comparison("generate", "mlx", "mlx_lm", "greedy decoding of 64 rows, against mlx-lm's batch_generate"),
)


def main() -> None:
    args = arguments()
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "OPENBLAS_NUM_THREADS": str(args.threads),
                   "MKL_NUM_THREADS": str(args.threads), "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1",
                   "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(HERE), "PYTHONWARNINGS": "ignore"}
    chosen = [c for c in COMPARISONS if c.backend in args.backend and (not args.only or c.what in args.only)
              and importlib.util.find_spec(c.peer) and importlib.util.find_spec(c.backend)]
    if not chosen:
        sys.exit("nothing to compare: install the dev extra, or choose otherwise")
    lines, notes = [], []
    with tempfile.TemporaryDirectory() as work:
        for size in args.size:
            prepare(Path(work), size, chosen[0].backend, args.steps)
            for c in chosen:
                job = Job(c.what, size, work, c.backend, args.dtype, args.steps, clip_norm=c.clip_norm)
                line, note = compare(c, job, args.repeats, environment)
                lines.append(line)
                notes.append(note)
    print("\n| size | what | useful tokens a CPU-second, ours : peer | the same by wall | peak memory of the process "
          "| grown while it trains | MLX's peak |\n|---|---|---|---|---|---|---|")
    print("\n".join(lines) + "\n\n" + "\n".join(notes))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=3, help="fresh processes a side")
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps, the first two of which do not count")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--backend", nargs="+", choices=("torch", "mlx"), default=["torch", "mlx"])
    parser.add_argument("--size", nargs="+", choices=tuple(SIZES), default=list(SIZES))
    parser.add_argument("--only", nargs="+", choices=sorted({c.what for c in COMPARISONS}), help="kinds of work")
    args = parser.parse_args()
    if args.steps < 4:
        parser.error("--steps: four are the least, since the first two do not count")
    return args


def compare(c: Comparison, job: Job, repeats: int, environment: dict[str, str]) -> tuple[str, str]:
    """A line of the table and a note on the agreement of the losses."""
    ours: list[dict[str, Any]] = []
    peer: list[dict[str, Any]] = []
    for repeat in range(repeats):
        sides = [("ours", ours), (f"peer_{c.peer}", peer)]
        for script, results in sides if repeat % 2 == 0 else sides[::-1]:
            results.append(run(script, job, environment))
            print(f"{job.size} {c.backend} {c.what} {script}: {results[-1]['rate']:.0f} tokens a CPU-second, "
                  f"{results[-1]['peak']:.0f} MB", file=sys.stderr, flush=True)
    cells = [ratio(ours, peer, "rate"), ratio(ours, peer, "wall", inverse=True), ratio(ours, peer, "peak", True),
             ratio(ours, peer, "grown", True), ratio(ours, peer, "device_peak", True)]
    return (f"| {job.size} | {c.title} ({c.backend}) | " + " | ".join(cells) + " |",
            f"* {job.size}, {c.title}: {agreement(c, ours[0], peer[0])}")


def run(script: str, job: Job, environment: dict[str, str]) -> dict[str, Any]:
    done = subprocess.run([sys.executable, str(HERE / f"{script}.py"), job.to_json()], env=environment,
                          capture_output=True, text=True)
    found = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not found:
        sys.exit(f"{script} failed on {job}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    result: dict[str, Any] = json.loads(found[-1][len(MARK):])
    return result


def ratio(ours: list[dict[str, Any]], peer: list[dict[str, Any]], key: str, numbers: bool = False,
          inverse: bool = False) -> str:
    """Median over median, and the spread of the ratio over the repeats; with the two numbers in MB on request."""
    if key not in ours[0] or key not in peer[0]:
        return ""
    pairs = [(a[key] / a["tokens"], b[key] / b["tokens"]) if inverse else (a[key], b[key])
             for a, b in zip(ours, peer, strict=True)]
    a, b = (statistics.median(side) for side in zip(*pairs, strict=True))
    if b <= 0 or a <= 0:
        return f"{a:.0f} : {b:.0f} MB"
    if numbers:
        return f"{a / b:.2f} ({a:.0f} : {b:.0f} MB)"
    each = [y / x if inverse else x / y for x, y in pairs]
    return f"{b / a if inverse else a / b:.2f} ({min(each):.2f}–{max(each):.2f})"


def agreement(c: Comparison, ours: dict[str, Any], peer: dict[str, Any]) -> str:
    if c.what == "generate":
        same = sum(a == b for a, b in zip(ours["ids"], peer["ids"], strict=True))
        return f"{same} of {len(ours['ids'])} completions are the same tokens."
    if not c.same_steps:
        told = ""
        if ours.get("first") is not None and peer.get("first") is not None:
            told = f"loss of the first chats {ours['first']:.6f} : {peer['first']:.6f}; "
        return (f"{told}each batches in its own way, {ours['tokens']} : {peer['tokens']} targets were counted; "
                f"last losses {ours['losses'][-1]:.4f} : {peer['losses'][-1]:.4f}.")
    first = list(zip(ours["losses"][:3], peer["losses"][:3], strict=True))
    told = ", ".join(f"{a:.6f} : {b:.6f}" for a, b in first)
    return f"losses of the first steps {told} (largest difference {max(abs(a - b) for a, b in first):.0e})."


if __name__ == "__main__":
    main()
