"""Memory that follows from sizes: what loading a model for use takes, and how the peak of an update
grows with parameters and with tokens. Each figure is of a fresh process.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measure import Measurement
from rows import DECODERS, Row

LAYERS = (8, 16, 38)  # 31, 59 and 137 million parameters
TOKENS = (64, 1024, 2048)  # per step; the first where the size varies
SMALL_LAYERS, SMALL_TOKENS = (1, 4), (64, 256)
MEASURES = {"peak": "the process", "device_peak": "the array library"}


def slopes(measurement: Measurement) -> list[dict[str, Any]]:
    """Bytes of the peak per parameter and per token, by least squares, for each backend."""
    layers = SMALL_LAYERS if measurement.small else LAYERS
    tokens = SMALL_TOKENS if measurement.small else TOKENS
    found = []
    for backend in measurement.backends:
        by_size = [_update(measurement, backend, n, tokens[0]) for n in layers]
        by_tokens = [by_size[0]]
        by_tokens += [_update(measurement, backend, layers[0], n) for n in tokens[1:]]
        parameters = [result["parameters"] for result in by_size]
        for measure, of in MEASURES.items():
            if measure in by_size[0]:
                peaks = [result[measure] for result in by_size]
                token_peaks = [result[measure] for result in by_tokens]
                found.append(
                    {
                        "backend": backend,
                        "of": of,
                        "parameters": parameters,
                        "peaks": peaks,
                        "per_parameter": slope(parameters, peaks) * 1e6,
                        "tokens": list(tokens),
                        "token_peaks": token_peaks,
                        "per_token": slope(tokens, token_peaks) * 1e6,
                    }
                )
    return found


def _update(measurement: Measurement, backend: str, layers: int, tokens: int) -> dict[str, float]:
    job = {
        "backend": backend,
        "device": measurement.device,
        "small": measurement.small,
        "layers": layers,
        "tokens": tokens,
    }
    found = measurement.runner.run("update_memory", json.dumps(job))
    print(f"AdamW, {job}: {found['peak']:.0f} MB", file=sys.stderr, flush=True)
    return found


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Of the straight line through the points, by least squares."""
    return float(np.polyfit(np.array(xs, np.float64), np.array(ys, np.float64), 1)[0])


def loading(measurement: Measurement) -> list[dict[str, Any]]:
    """Bytes that the process of a loaded model has above one of an empty model, over the file's."""
    found = []
    for backend in measurement.backends:
        peer = DECODERS[backend]
        sides = [("ours", "ours_decode")]
        missing = measurement.runner.missing(peer)
        if missing:
            print(f"left out: loading by {peer.name}; {missing}", file=sys.stderr)
        else:
            sides.append((peer.name, peer.script))
        for dtype in measurement.dtypes:
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
