"""Memory that follows from sizes: what loading a model for use takes, and how the peak of an update
grows with parameters and with tokens. Each figure is of a fresh process.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from measure import Measurement
from processes import Runner
from rows import MLX_LM, TRANSFORMERS, Row

LAYERS = (8, 16, 38)  # 31, 59 and 137 million parameters
TOKENS = (512, 1024, 2048)
FEW_TOKENS = 64


def slopes(runner: Runner, device: str, small: bool) -> list[dict[str, Any]]:
    """Bytes of the peak per parameter and per token, by least squares, for each backend."""
    layers = (1, 2, 4) if small else LAYERS
    tokens = (64, 128, 256) if small else TOKENS
    found = []
    for backend in ("torch", "mlx"):
        job = {"backend": backend, "device": device, "small": small}
        by_size = [run(runner, {**job, "layers": n, "tokens": FEW_TOKENS}) for n in layers]
        by_tokens = [run(runner, {**job, "layers": layers[0], "tokens": n}) for n in tokens]
        for measure in ("peak", "device_peak"):
            if measure in by_size[0]:
                found.append(
                    {
                        "backend": backend,
                        "of": "the process" if measure == "peak" else "the array library",
                        "parameters": [int(r["parameters"]) for r in by_size],
                        "peaks": [r[measure] for r in by_size],
                        "per_parameter": slope(
                            (r["parameters"], r[measure] * 1e6) for r in by_size
                        ),
                        "tokens": list(tokens),
                        "token_peaks": [r[measure] for r in by_tokens],
                        "per_token": slope(
                            (n, r[measure] * 1e6) for n, r in zip(tokens, by_tokens, strict=True)
                        ),
                    }
                )
    return found


def run(runner: Runner, job: dict[str, Any]) -> dict[str, float]:
    found = runner.run("update_memory", json.dumps(job))
    print(f"AdamW, {job}: {found['peak']:.0f} MB", file=sys.stderr, flush=True)
    return found


def slope(points: Iterable[tuple[float, float]]) -> float:
    xs, ys = np.array(list(points), np.float64).T
    return float(np.polyfit(xs, ys, 1)[0])


def loading(measurement: Measurement) -> list[dict[str, Any]]:
    """Bytes that the process of a loaded model has above one of an empty model, over the file's."""
    found = []
    for backend, peer in (("torch", TRANSFORMERS), ("mlx", MLX_LM)):
        sides = [("ours", "ours_decode")]
        missing = measurement.runner.missing(peer)
        if missing:
            print(f"left out: loading by {peer.name}; {missing}", file=sys.stderr)
        else:
            sides.append((peer.name, peer.script))
        for dtype in ("float32", "bfloat16"):
            for name, script in sides:
                found.append({"side": name, **_loaded(measurement, backend, dtype, script)})
    return found


def _loaded(measurement: Measurement, backend: str, dtype: str, script: str) -> dict[str, Any]:
    results = []
    for size in ("empty", "smollm2"):
        row = Row("load", "loading a model", backend, None, "load", size, dtype=dtype)
        job = measurement.job(row)
        results.append(measurement.runner.run(script, job))
    file = sum(f.stat().st_size for f in Path(job.model).glob("*.safetensors")) / 1e6
    empty, loaded = results
    return {
        "backend": backend,
        "dtype": dtype,
        "file": file,
        "kept": (loaded["kept"] - empty["kept"]) / file,
        "peak": (loaded["peak"] - empty["peak"]) / file,
    }
