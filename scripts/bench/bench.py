"""Speed and memory of us and of other trainers, in turn: what scripts/bench/all runs.

Groups of rows: {groups}.
GROUP:WORDS takes those rows of a group that have these words in their title (pretrain:eager).
More that is not about speed: load (memory of a loaded model), and counts, which are decoding (graph
nodes, casts, reads per token), training (the same of a step with LoRA), traces (of a compiler) and
slopes (how the peak of an update grows).
None named: all of them.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import counts  # noqa: E402
import document  # noqa: E402
import memory  # noqa: E402
from measure import Measurement  # noqa: E402
from processes import Runner  # noqa: E402
from rows import GROUPS, ROWS  # noqa: E402

DOCUMENT = Path(__file__).parents[2] / "docs" / "results" / "speed.md"
BACKENDS = ("torch", "mlx")
COUNTS = ("decoding", "training", "traces", "slopes")
OTHERS = ("load", "counts", *COUNTS)
LIBRARIES = ("torch", "transformers", "trl", "mlx", "mlx-lm")
PEERS = {"trl112": "trl==1.12.0", "mlx_lm_lora": "mlx-lm-lora"}


def main() -> None:
    args = parsed()
    folders = {name: getattr(args, name) for name in PEERS if getattr(args, name)}
    chosen = set(args.rows or (*GROUPS, *OTHERS))
    figures = document.read(args.out) if args.out else {"rows": {}}
    machine = described(args)
    with tempfile.TemporaryDirectory() as work:
        runner = Runner(args.threads, folders)
        measurement = Measurement(
            runner, Path(work), args.device, args.backends, args.small, args.repeats, args.model
        )
        compare(args, measurement, chosen, figures, machine)
        for name, found in sections(measurement, chosen):
            figures[name] = {"machine": machine, "figures": found}
            save(args, figures)
    print(document.text(figures))


def compare(
    args: argparse.Namespace,
    measurement: Measurement,
    chosen: set[str],
    figures: document.Figures,
    machine: str,
) -> None:
    for row in ROWS:
        if row.backend not in args.backends or not any(map(row.is_named, chosen)):
            continue
        missing = measurement.runner.missing(row.peer) if row.peer else ""
        if missing:
            name = row.peer.name if row.peer else ""
            print(f"left out: {row.key}, beside {name}; {missing}", file=sys.stderr)
            continue
        found = measurement.row(row)
        figures["rows"][row.key] = {**found, "machine": machine, "quiet": not args.busy}
        save(args, figures)


def sections(measurement: Measurement, chosen: set[str]) -> Any:
    """(name, figures) of what is no row of a comparison."""
    if "load" in chosen:
        yield "loading", memory.loading(measurement)
    if "counts" in chosen:
        chosen = chosen | set(COUNTS)
    if "decoding" in chosen:
        yield "decoding", counts.decoding(measurement)
    if "training" in chosen:
        found = counts.training(measurement)
        if found:
            yield "training", found
    if "traces" in chosen:
        yield "traces", counts.traces(measurement)
    if "slopes" in chosen:
        yield "slopes", memory.slopes(measurement)


def save(args: argparse.Namespace, figures: document.Figures) -> None:
    if args.out:
        document.write(args.out, figures)


def described(args: argparse.Namespace) -> str:
    """The machine and the versions, as one line."""
    versions = []
    for name in LIBRARIES:
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    device = args.device if args.device == "cpu" else f"{args.device} ({gpu()})"
    threads = "one thread" if args.threads == 1 else f"{args.threads} threads"
    model = "SmolLM2-135M" if args.model else "random weights of SmolLM2-135M's shape"
    where = f"{platform.system()} {platform.machine()}, {processor()}, {os.cpu_count()} cores"
    return f"{where}; device {device}, {threads}; {', '.join(versions)}; {model}."


def processor() -> str:
    """The processor's name, where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"


def gpu() -> str:
    """The accelerator's name; "no GPU" where there is none."""
    try:
        import torch

        if torch.cuda.is_available():
            return str(torch.cuda.get_device_name())
    except ImportError:
        pass
    try:
        import mlx.core as mx

        if mx.is_available(mx.gpu):
            return str(mx.device_info().get("device_name", "GPU"))
    except ImportError:
        pass
    return "no GPU"


def parsed() -> argparse.Namespace:
    text = (__doc__ or "").format(groups=", ".join(GROUPS))
    parser = argparse.ArgumentParser(
        prog="scripts/bench/all",
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("rows", nargs="*", metavar="ROWS")
    parser.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto")
    parser.add_argument("--backend", choices=BACKENDS, help="one of the two alone")
    parser.add_argument("--repeats", type=int, default=3, help="of each side")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="does it run? figures say nothing")
    parser.add_argument("--busy", action="store_true", help="others use the machine: no speeds")
    parser.add_argument("--model", type=Path, help="SmolLM2-135M's folder; else random weights")
    parser.add_argument("--out", type=Path, help=f"the document; {DOCUMENT.name} unless --small")
    for name, package in PEERS.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=Path,
            metavar="DIR",
            help=f"made by: pip install --no-deps --target DIR {package}",
        )
    args = parser.parse_args()
    args.backends = (args.backend,) if args.backend else BACKENDS
    for name in args.rows:
        if name not in OTHERS and not any(row.is_named(name) for row in ROWS):
            parser.error(f"no rows are called {name!r}; known: {', '.join((*GROUPS, *OTHERS))}")
    if args.out is None and not args.small:
        args.out = DOCUMENT
    return args


if __name__ == "__main__":
    main()
