"""Runs us and a peer in turn, each in fresh processes, on the same material, and prints a Markdown
table of ratios.

    python scripts/bench/train.py                       # everything that is installed, a few minutes
    python scripts/bench/train.py --only text --size 5M --repeats 5
    python scripts/bench/train.py --size tiny --steps 4 --repeats 1     # does all of it run? seconds

Above 1 in "tokens a CPU-second" we are faster, below 1 in "memory" we are smaller. Only targets
that are really trained count as tokens. CPU seconds are those of all threads, so that other
programs on the machine matter little.
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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))
from common import MARK, PUBLISHED, SIZES, Job, prepare  # noqa: E402

HERE = Path(__file__).parent
PARTS = ("generation", "rewards", "log-probabilities", "update")


class Comparison(NamedTuple):
    what: str
    backend: str
    peer: str
    title: str
    clip_norm: float = 1.0
    # the peer's batches are ours, so the losses of the first steps must agree
    same_steps: bool = True
    module: str = ""  # what the peer needs to be installed; empty: a package of the peer's name
    ours: str = "ours"  # our script
    folder: Path | None = None  # where the peer's package lies, if it is not installed


COMPARISONS = (
    Comparison("text", "torch", "transformers", "pre-training, against transformers' Trainer"),
    Comparison("chats", "torch", "trl", "chats, one a row, against TRL's SFTTrainer"),
    Comparison(
        "chats-packed", "torch", "trl", "chats, packed, against TRL's SFTTrainer", 1.0, False
    ),
    Comparison(
        "generate",
        "torch",
        "transformers",
        "greedy decoding of 64 rows, against transformers' generate",
    ),
    Comparison("text", "mlx", "mlx_lm", "all weights on full rows, against mlx-lm's train", 0.0),
    Comparison("blocks", "mlx", "mlx_lm", "blocks alone on full rows, against mlx-lm's train", 0.0),
    Comparison(
        "chats-packed",
        "mlx",
        "mlx_lm",
        "chats, packed, against mlx-lm's train (padded)",
        0.0,
        False,
    ),
    Comparison(
        "generate", "mlx", "mlx_lm", "greedy decoding of 64 rows, against mlx-lm's batch_generate"
    ),
)


def main() -> None:
    args = parsed(parser(__doc__, COMPARISONS))
    bench(args, COMPARISONS, prepare, 1e-3)


def bench(
    args: argparse.Namespace,
    comparisons: Sequence[Comparison],
    make: Callable[[Path, str, str, int], None],
    learning_rate: float,
) -> None:
    """Runs what was asked for and prints the tables; `make` prepares a size's material."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(args.threads),
        "OPENBLAS_NUM_THREADS": str(args.threads),
        "MKL_NUM_THREADS": str(args.threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "ignore",
    }
    chosen = [
        c
        for c in comparisons
        if c.backend in args.backend
        and (not args.only or c.what in args.only)
        and importlib.util.find_spec(c.module or c.peer)
        and importlib.util.find_spec(c.backend)
    ]
    if not chosen:
        sys.exit("nothing to compare: install the dev extra, or choose otherwise")
    lines, notes, parts = [], [], []
    with tempfile.TemporaryDirectory() as work:
        for size in args.size:
            make(Path(work), size, chosen[0].backend, args.steps)
            for c in chosen:
                job = Job(
                    c.what,
                    size,
                    work,
                    c.backend,
                    args.dtype,
                    args.steps,
                    learning_rate,
                    c.clip_norm,
                )
                ours, peer = compare(c, job, args.repeats, environment)
                lines.append(line(c, size, ours, peer))
                notes.append(f"* {size}, {c.title}: {agreement(c, ours[0], peer[0])}")
                parts += shares(c, size, ours, peer)
    print(
        "\n| size | what | useful tokens a CPU-second, ours : peer | the same by wall | peak memory of the process "
        "| grown while it trains | MLX's peak |\n|---|---|---|---|---|---|---|"
    )
    print("\n".join(lines) + "\n\n" + "\n".join(notes))
    if parts:
        print(
            f"\n| size | what | side | {' | '.join(PARTS)} | the rest | CPU seconds a step | wall |"
        )
        print("|---" * 10 + "|")
        print("\n".join(parts))


def parser(text: str | None, comparisons: Sequence[Comparison]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(text or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=3, help="fresh processes a side")
    parser.add_argument(
        "--steps", type=int, default=8, help="optimizer steps, the first two of which do not count"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--backend", nargs="+", choices=("torch", "mlx"), default=["torch", "mlx"])
    parser.add_argument(
        "--size",
        nargs="+",
        choices=tuple(SIZES),
        default=list(PUBLISHED),
        help="tiny only shows that all of it runs",
    )
    parser.add_argument(
        "--only", nargs="+", choices=sorted({c.what for c in comparisons}), help="kinds of work"
    )
    return parser


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    args = parser.parse_args()
    if args.steps < 4:
        parser.error("--steps: four are the least, since the first two do not count")
    return args


def compare(
    c: Comparison, job: Job, repeats: int, environment: dict[str, str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The results of both sides, `repeats` each."""
    ours: list[dict[str, Any]] = []
    peer: list[dict[str, Any]] = []
    for repeat in range(repeats):
        sides = [(c.ours, ours, None), (f"peer_{c.peer}", peer, c.folder)]
        for script, results, folder in sides if repeat % 2 == 0 else sides[::-1]:
            results.append(run(script, job, environment, folder))
            print(
                f"{job.size} {c.backend} {c.what} {script}: {results[-1]['rate']:.0f} tokens a CPU-second, "
                f"{results[-1]['peak']:.0f} MB",
                file=sys.stderr,
                flush=True,
            )
    return ours, peer


def line(c: Comparison, size: str, ours: list[dict[str, Any]], peer: list[dict[str, Any]]) -> str:
    cells = [
        ratio(ours, peer, "rate"),
        ratio(ours, peer, "wall", inverse=True),
        ratio(ours, peer, "peak", True),
        ratio(ours, peer, "grown", True),
        ratio(ours, peer, "device_peak", True),
    ]
    return f"| {size} | {c.title} ({c.backend}) | " + " | ".join(cells) + " |"


def shares(c: Comparison, size: str, *sides: list[dict[str, Any]]) -> list[str]:
    """Where a step's CPU seconds go, a line a side, medians; nothing where no part was timed by
    itself.
    """
    lines = []
    for name, results in zip(("ours", c.peer), sides, strict=True):
        known = results[0].get("parts")
        if not known:
            continue
        parts = {part: statistics.median(r["parts"][part] for r in results) for part in known}
        whole, wall = (
            statistics.median(r[key] for r in results) for key in ("cpu_step", "wall_step")
        )
        cells = [f"{parts[p]:.3f}" if p in parts else "" for p in PARTS]
        cells += [f"{value:.3f}" for value in (whole - sum(parts.values()), whole, wall)]
        lines.append(f"| {size} | {c.what} ({c.backend}) | {name} | " + " | ".join(cells) + " |")
    return lines


def run(
    script: str, job: Job, environment: dict[str, str], folder: Path | None = None
) -> dict[str, Any]:
    paths = [str(folder)] * bool(folder) + [
        str(HERE),
        *filter(None, [os.environ.get("PYTHONPATH")]),
    ]
    environment = {**environment, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, str(HERE / f"{script}.py"), job.to_json()],
        env=environment,
        capture_output=True,
        text=True,
    )
    found = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not found:
        sys.exit(f"{script} failed on {job}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    result: dict[str, Any] = json.loads(found[-1][len(MARK) :])
    return result


def ratio(
    ours: list[dict[str, Any]],
    peer: list[dict[str, Any]],
    key: str,
    numbers: bool = False,
    inverse: bool = False,
) -> str:
    """Median over median, and the spread of the ratio over the repeats; with the two numbers in MB
    on request.
    """
    if key not in ours[0] or key not in peer[0]:
        return ""
    pairs = [
        (a[key] / a["tokens"], b[key] / b["tokens"]) if inverse else (a[key], b[key])
        for a, b in zip(ours, peer, strict=True)
    ]
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
    if not c.same_steps and c.what.startswith(("ppo", "grpo")):
        return f"each its own text, {ours['tokens']} : {peer['tokens']} tokens of completions were counted."
    if not c.same_steps:
        told = ""
        if ours.get("first") is not None and peer.get("first") is not None:
            told = f"loss of the first chats {ours['first']:.6f} : {peer['first']:.6f}; "
        return (
            f"{told}each batches in its own way, {ours['tokens']} : {peer['tokens']} targets were counted; "
            f"last losses {ours['losses'][-1]:.4f} : {peer['losses'][-1]:.4f}."
        )
    first = list(zip(ours["losses"][:3], peer["losses"][:3], strict=True))
    told = ", ".join(f"{a:.6f} : {b:.6f}" for a, b in first)
    return f"losses of the first steps {told} (largest difference {max(abs(a - b) for a, b in first):.0e})."


if __name__ == "__main__":
    main()
