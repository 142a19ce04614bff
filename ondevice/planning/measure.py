"""Measures this machine for `calibration.py`: `python -m ondevice.planning.measure BACKEND DEVICE
DTYPE` prints what it found as JSON.

Products of square matrices, numbers that are only moved, what starting an operation takes, the
tokenizer; then whole steps of two small models, learning, reading and writing, of which the ratio to
what these speeds predict is kept.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ondevice.common.rng import generator as random_of
from ondevice.config.corpus import CorpusConfig
from ondevice.config.stages import PretrainConfig
from ondevice.data.builtin.corpus import build
from ondevice.data.packing import Batch, set_denominator
from ondevice.data.tokenizer import Tokenizer
from ondevice.data.tokenizer_training import train_tokenizer
from ondevice.inference.generator import Generator
from ondevice.inference.next_token import Sampling
from ondevice.models.model import Model
from ondevice.models.registry import parse_config
from ondevice.models.shapes import shapes
from ondevice.planning.calibration import Speeds
from ondevice.planning.dimensions import dimensions
from ondevice.planning.seconds import decode_seconds, learn_seconds, read_seconds, update_seconds
from ondevice.planning.trained import Trained
from ondevice.planning.work import Decode, pass_of
from ondevice.seam.costs import Costs
from ondevice.seam.ops import Params
from ondevice.seam.protocols import Backend
from ondevice.seam.select import costs_of, load_backend
from ondevice.training.losses import causal_lm_loss
from ondevice.training.optimizer_settings import optim_settings

WIDTHS = (64, 128, 256, 512, 1024)
ROWS = 512  # of a product
_MOVED = 1 << 22  # numbers
_CALLS = 64  # operations one after the other
_RUNS = 5
SHAPES: tuple[dict[str, int], ...] = (
    {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "heads": 4},
    {"hidden_size": 320, "intermediate_size": 864, "num_hidden_layers": 4, "heads": 5},
)
VOCABULARY = 1024
LENGTH, BATCH = 128, 4
PROMPT, WRITTEN, WRITERS = 32, 16, (1, 16)


def main() -> None:
    backend = load_backend(*sys.argv[1:4])
    process = _process_bytes()
    found = {
        "device": backend.device,
        "dtype": backend.dtype,
        "device_memory": backend.memory().total,
        "process": process,
        "speeds": asdict(measure(backend, costs_of(backend.name))),
    }
    print(json.dumps(found), flush=True)


def measure(backend: Backend, costs: Costs) -> Speeds:
    """The machine's speeds under this backend."""
    plain = Speeds(
        tuple((float(width), _product(backend, width)) for width in WIDTHS),
        _moved(backend),
        _call(backend),
        _tokenizer(),
    )
    ratios: dict[str, list[float]] = {"learning": [], "reading": [], "writing": []}
    for shape in SHAPES:
        for name, ratio in _ratios(shape, backend, costs, plain).items():
            ratios[name].append(ratio)
    return replace(
        plain,
        learning=_mean(ratios["learning"]),
        reading=_mean(ratios["reading"]),
        writing=_mean(ratios["writing"]),
    )


def _mean(ratios: Sequence[float]) -> float:
    """The geometric mean."""
    return math.exp(statistics.fmean(map(math.log, ratios)))


def _best(work: Callable[[], Any], runs: int = _RUNS) -> float:
    """Seconds of the quickest of some runs, after one that is not counted: other programs make a
    run slower, never quicker."""
    work()
    taken = []
    for _ in range(runs):
        began = _clock()
        work()
        taken.append(_clock() - began)
    return max(min(taken), 1e-9)


def _clock() -> float:
    """Where one thread computes, the processor's own seconds: those in which another program had it
    are not among them."""
    if os.environ.get("OMP_NUM_THREADS") == "1":
        return time.process_time()
    return time.perf_counter()


def _product(backend: Backend, width: int) -> float:
    """Floating-point operations a second of (ROWS, width) · (width, width)."""
    random = random_of(0, "calibration", str(width))
    x = backend.ops.cast(_array(backend, random, (ROWS, width)), backend.dtype)
    weight = backend.ops.cast(_array(backend, random, (width, width)), backend.dtype)
    together = max(1, (1 << 27) // (2 * ROWS * width * width))

    def work() -> None:
        y = x
        for _ in range(together):
            y = (x @ weight) * 1e-3 if together == 1 else x @ weight
            backend.start(y)
        backend.numpy(y[:1, :1])

    return 2.0 * ROWS * width * width * together / _best(work)


def _array(backend: Backend, random: Any, shape: tuple[int, ...]) -> Any:
    return backend.array(random.standard_normal(shape).astype(np.float32))


def _moved(backend: Backend) -> float:
    """Bytes a second that are read and written where numbers are added."""
    x = backend.array(np.ones(_MOVED, np.float32))

    def work() -> None:
        y = x + x
        backend.numpy(y[:1])

    return 3.0 * 4 * _MOVED / _best(work)


def _call(backend: Backend) -> float:
    """Seconds that one small operation after another takes each."""
    x = backend.array(np.ones((8, 8), np.float32))

    def work() -> None:
        y = x
        for _ in range(_CALLS):
            y = y + x
        backend.numpy(y)

    return _best(work) / _CALLS


def _tokenizer() -> float:
    """Bytes of text that are encoded a second."""
    corpus = build(replace(CorpusConfig(), document_bytes=100_000))
    texts = list(corpus.documents("train"))
    tokenizer = train_tokenizer(texts, VOCABULARY)
    size = sum(len(text.encode()) for text in texts)
    return size / _best(lambda: tokenizer.encode_batch(texts), 3)


# ---- whole steps ----------------------------------------------------------------------------------


def _ratios(
    shape: dict[str, int], backend: Backend, costs: Costs, plain: Speeds
) -> dict[str, float]:
    """Learning, reading and writing of one small model, over what `plain` speeds predict."""
    model = _model(shape, backend)
    dims = dimensions(model.cfg)
    numbers = sum(math.prod(size) for size in shapes(model.cfg).values())
    batch = _batch(model)
    one = pass_of(batch)
    cfg = PretrainConfig()
    trained = Trained(numbers, 0, 0, False, 0.0)
    size = 2 if backend.dtype == "bfloat16" else 4
    loss = partial(causal_lm_loss, model=model.network)
    trainer = backend.trainer(loss, model.params, {}, optim_settings(cfg, model.params))

    def learn() -> None:
        trainer.step([model.with_tables(backend, batch)], 1e-4)

    def read_loss(params: Params, arrays: Any) -> Any:
        return loss(backend.ops, params, arrays)[0]

    read_fn = backend.inference_fn(read_loss)

    def read() -> None:
        backend.numpy(read_fn(trainer.params(), model.with_tables(backend, batch)))

    updating = update_seconds(cfg, trained, dims, costs, plain)
    learned = learn_seconds(one, dims, costs, plain, size=size)
    ratios = {
        "learning": max(_best(learn, 3) - updating, 1e-6) / learned,
        "reading": _best(read, 3) / read_seconds(one, dims, costs, plain, size=size),
    }
    written = [
        _writing(model, trainer.params(), backend, rows)
        / decode_seconds(_decode(rows), dims, costs, plain, size=size)
        for rows in WRITERS
    ]
    return {**ratios, "writing": _mean(written)}


def _decode(rows: int) -> Decode:
    return Decode(rows, WRITTEN, rows, rows, PROMPT, PROMPT + WRITTEN)


def _writing(model: Model, params: Params, backend: Backend, rows: int) -> float:
    """Seconds in which so many rows are written side by side."""
    prompts = [_ids(PROMPT, f"prompt {n}").tolist() for n in range(rows)]
    writer = Generator(model, backend, Sampling(WRITTEN, 1.0))
    writer.stop_ids = set()
    return _best(lambda: writer.run(params, prompts, batch_size=rows), 2)


def _model(shape: dict[str, int], backend: Backend) -> Model:
    sizes = {name: value for name, value in shape.items() if name != "heads"}
    raw: dict[str, Any] = {
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 2 * LENGTH,
        "tie_word_embeddings": True,
        "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["heads"],
        **sizes,
    }
    cfg = parse_config(raw)
    params: Params = {}
    for name, size in shapes(cfg).items():
        random = random_of(0, "calibration", name)
        drawn = random.standard_normal(size) * (size[-1] ** -0.5 if len(size) > 1 else 0.0)
        params[name] = backend.array((drawn + (len(size) == 1)).astype(np.float32))
    return Model(cfg, params, _small_tokenizer(), Path("calibration"))


def _small_tokenizer() -> Tokenizer:
    return train_tokenizer(["one two three four five six seven eight nine ten"] * 3, 300)


def _ids(count: int, name: str) -> np.ndarray:
    return random_of(0, "calibration", name).integers(3, 280, count).astype(np.int32)


def _batch(model: Model) -> Batch:
    ids = _ids(BATCH * (LENGTH + 1), "text").reshape(BATCH, LENGTH + 1)
    batch: Batch = {
        "ids": ids[:, :-1].copy(),
        "positions": np.tile(np.arange(LENGTH, dtype=np.int32), (BATCH, 1)),
        "targets": ids[:, 1:].reshape(-1).copy(),
        "weights": np.ones(BATCH * LENGTH, np.float32),
    }
    return set_denominator([batch])[0]


def _process_bytes() -> int:
    """What this process holds now, before it reads a model."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


if __name__ == "__main__":
    main()
