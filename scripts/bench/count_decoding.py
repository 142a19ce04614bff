"""What a decoded token costs whatever the device: nodes of the graph, casts, kernels, and reads by
the host. One row, greedy, tokens handed over as they come.

Counted on models of two depths and for two lengths: the differences are per layer and per token.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from job import Job, Size
from material import init_config, sentences
from meter import print_result

from ondevice.data.tokenizer_training import train_tokenizer
from ondevice.models.initial_config import model_config
from ondevice.models.save import write_model
from ondevice.seam.select import load_backend
from ondevice.stages.init import initial_weights

LAYERS = (2, 6)
TOKENS = (16, 48)
NAMES = ("nodes", "casts", "kernels", "reads")
PROMPT = [5, 6, 7]


def main() -> None:
    job = Job.from_argv()
    count = counter(job)
    found: dict[tuple[int, int], Counter[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for layers in LAYERS:
            model = Path(folder) / str(layers)
            write_random(model, layers, job.dtype)
            for tokens in TOKENS:
                found[layers, tokens] = count(job, model, tokens)
    print_result(**per_token(found))


def counter(job: Job) -> Callable[[Job, Path, int], Counter[str]]:
    """Counts of decoding so many tokens with the folder's model."""
    if job.backend == "mlx":
        import count_mlx

        return count_mlx.ours if job.what == "ours" else count_mlx.mlx_lm
    import count_torch

    return count_torch.ours if job.what == "ours" else count_torch.transformers


def write_random(folder: Path, layers: int, dtype: str) -> None:
    shape = Size(512, 64, 128, layers, 4, 2, dtype=dtype)
    text = sentences("text", 20, 60)
    tokenizer = train_tokenizer([next(text) for _ in range(500)], shape.vocab_size)
    cfg = init_config(shape)
    decoder = model_config(cfg, tokenizer)
    # the backend that writes says nothing of the one that is counted
    backend = load_backend("auto", "cpu")
    params = {n: backend.array(w) for n, w in initial_weights(cfg, decoder).items()}
    folder.mkdir()
    write_model(folder, backend, decoder, params, tokenizer, dtype=dtype)


def per_token(found: dict[tuple[int, int], Counter[str]]) -> dict[str, Any]:
    """For each name, what a token costs in each layer and outside of all layers."""
    (few, many), (short, long) = LAYERS, TOKENS
    out: dict[str, Any] = {}
    for name in NAMES:
        each = {}
        for layers in LAYERS:
            more = found[layers, long][name] - found[layers, short][name]
            each[layers] = more / (long - short)
        per_layer = (each[many] - each[few]) / (many - few)
        rounded = np.round([per_layer, each[few] - few * per_layer], 2)
        out[name] = rounded.tolist()
    return out


if __name__ == "__main__":
    main()
