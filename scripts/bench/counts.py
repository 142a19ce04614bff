"""What does not depend on the device, counted in fresh processes."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

from job import Job
from measure import Measurement
from rows import DECODERS, MLX_LM, Row

# what a stage of ours does in these steps: its name, the job, the script that says what it is
TRACED = (
    ("pretrain", "text", "pretrain"),
    ("sft, a chat a row", "chats", "sft"),
    ("dpo", "dpo", "dpo"),
    ("grpo", "grpo", "grpo"),
    ("64 prompts, geometric lengths", "geometric", "generate"),
)


def decoding(measurement: Measurement) -> list[dict[str, Any]]:
    found = []
    for backend in measurement.backends:
        peer = DECODERS[backend]
        sides = ["ours"]
        missing = measurement.runner.missing(peer)
        if missing:
            print(f"left out: counts of {peer.name}; {missing}", file=sys.stderr)
        else:
            sides.append(peer.name)
        for dtype in measurement.dtypes:
            for side in sides:
                job = Job(side, "5M", "", backend, measurement.device, dtype)
                counted = measurement.runner.run("count_decoding", job)
                print(f"decoding, {backend} {dtype}, {side}: {counted}", file=sys.stderr)
                found.append({"backend": backend, "dtype": dtype, "side": side, **counted})
    return found


def training(measurement: Measurement) -> list[dict[str, Any]]:
    """Of a step with LoRA on a 4-bit base, on MLX alone: torch has nothing that it is beside."""
    found: list[dict[str, Any]] = []
    if "mlx" not in measurement.backends:
        return found
    sides = ["ours"]
    missing = measurement.runner.missing(MLX_LM)
    if missing:
        print(f"left out: counts of {MLX_LM.name}; {missing}", file=sys.stderr)
    else:
        sides.append(MLX_LM.name)
    for dtype in measurement.dtypes:
        for side in sides:
            job = Job(side, "quantised", "", "mlx", measurement.device, dtype)
            counted = measurement.runner.run("count_training", job)
            print(f"training, {dtype}, {side}: {counted}", file=sys.stderr)
            found.append({"backend": "mlx", "dtype": dtype, "side": side, **counted})
    return found


def traces(measurement: Measurement) -> list[dict[str, Any]]:
    """Of models of a few thousand weights: how often is traced follows from shapes, and these from
    chats and pairs of ordinary lengths."""
    found = []
    for backend in measurement.backends:
        for title, what, group in TRACED[:2] if measurement.small else TRACED:
            row = Row(group, title, backend, None, what, "traced", steps=12)
            job = replace(measurement.job(row), compile="always")
            counted = measurement.runner.run("count_traces", job)
            print(f"traces, {backend}, {title}: {counted}", file=sys.stderr)
            found.append({"backend": backend, "stage": title, **counted})
    return found
