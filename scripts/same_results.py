"""Compares two runs of one recipe, stage by stage: weights, losses and figures, to the bit.

    python scripts/same_results.py runs/before runs/after

A change that is not about numbers keeps them. Run the recipe before and after it on one machine
(`ondevice run minute --out …`), for each backend, and compare. Exits with 1 where something differs.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from ondevice.runs.events import read
from ondevice.runs.folder import RunFolder, StageFolder

# What a clock or a version says.
PASSING = {"seconds", "cpu_seconds", "fingerprint", "versions", "spent", "memory", "peak_memory"}


def weights_differ(one: Path, other: Path) -> str:
    """How the weights of two model folders differ; empty where they are the same."""
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (one, other))
    if sorted(ours) != sorted(theirs):
        return "other tensors"
    far = 0.0
    for name, tensor in ours.items():
        if tensor.tobytes() != theirs[name].tobytes():
            apart = np.abs(tensor.astype(np.float64) - theirs[name].astype(np.float64))
            far = max(far, float(apart.max()))
    return f"weights differ by up to {far:.3g}" if far else ""


def losses(stage: StageFolder) -> list[tuple[int, float]]:
    """The loss of every step that was told."""
    told = []
    for event in read(stage.events):
        if event.get("event") == "step" and isinstance(event.get("loss"), float):
            told.append((event["step"], event["loss"]))
    return told


def without_passing(value: Any) -> Any:
    """A record without what changes from run to run."""
    if isinstance(value, dict):
        return {key: without_passing(v) for key, v in value.items() if key not in PASSING}
    return value


def differences(one: StageFolder, other: StageFolder) -> list[str]:
    found = []
    if one.has_model and other.has_model:
        found.append(weights_differ(one.model, other.model))
    if losses(one) != losses(other):
        found.append("losses differ")
    figures = [
        json.dumps(without_passing((stage.done_record() or {}).get("marks")), sort_keys=True)
        for stage in (one, other)
    ]
    if figures[0] != figures[1]:
        found.append("figures differ")
    return list(filter(None, found))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    given = parser.parse_args(argv)
    before = {stage.name: stage for stage in RunFolder(given.before).stages()}
    after = {stage.name: stage for stage in RunFolder(given.after).stages()}
    same = bool(before) and list(before) == list(after)
    if not same:
        print(f"other stages: {', '.join(before) or 'none'}; {', '.join(after) or 'none'}")
    for name in before:
        if name in after:
            found = differences(before[name], after[name])
            same = same and not found
            steps = len(losses(after[name]))
            print(f"{name:<10}{'; '.join(found) or f'the same to the bit ({steps} losses)'}")
    return int(not same)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
