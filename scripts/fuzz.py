#!/usr/bin/env python3
"""Tries readers of others' files on cases that are spoilt samples (tests/fuzz_readers.py).

    scripts/fuzz.py --cases 100000                     every reader
    scripts/fuzz.py --cases 100000 "rows .json" YAML   some of them
    scripts/fuzz.py --keep out --cases 1000            what made one fail is kept there

Prints a line for each reader: cases, how many were refused, each kind of fault with its number. A
case follows from the reader, the seed and its number alone. Exit code 1 where there was a fault.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
for folder in ("tests", "backends", "tui", "."):
    sys.path.insert(0, str(ROOT / folder))

from fuzz_cases import Fault, spoil, try_case  # noqa: E402
from fuzz_readers import READERS_OF  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("readers", nargs="*", help="by name; none: all")
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=0, help="of each reader at most; 0: any")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder for the cases that failed")
    asked = parser.parse_args()
    for name in asked.readers:
        if name not in READERS_OF:
            parser.error(f"there is no reader {name!r}; known: {', '.join(READERS_OF)}")
    faults = 0
    for name in asked.readers or READERS_OF:
        faults += fuzz(name, asked.cases, asked.seconds, asked.seed, asked.keep)
    return int(faults > 0)


def fuzz(name: str, cases: int, seconds: float, seed: int, keep: Path | None) -> int:
    """Tries one reader; how many cases were faults."""
    reader = READERS_OF[name]
    found: Counter[str] = Counter()
    refused = tried = 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "case"
        folder.mkdir()
        reader.folder(folder)
        samples = reader.samples(folder)
        for tried in range(1, cases + 1):
            data = spoil(random.Random(f"{seed} {name} {tried}"), samples)
            try:
                with contextlib.redirect_stderr(io.StringIO()):
                    refused += try_case(reader, folder, data)
            except Fault as fault:
                kind = re.sub(r"[0-9]+|/[^ ]*|'[^']*'", "…", str(fault))[:160]
                found[kind] += 1
                if keep is not None and found[kind] == 1:
                    keep.mkdir(parents=True, exist_ok=True)
                    plain = re.sub("[^a-z.]+", "-", name.lower())
                    (keep / f"{plain}-{tried}").write_bytes(data)
            if seconds and time.monotonic() - began > seconds:
                break
    took = time.monotonic() - began
    print(
        f"{name}: {tried:,} cases, {refused:,} refused, {sum(found.values())} faults, {took:.0f} s"
    )
    for kind, times in found.most_common():
        print(f"    {times} × {kind}")
    sys.stdout.flush()
    return sum(found.values())


if __name__ == "__main__":
    sys.exit(main())
