"""Measures this machine for `calibration.py`: `python -m ondevice.planning.measure BACKEND DEVICE
DTYPE` prints what it found as JSON.

Products of square matrices, numbers that are only moved, the tokenizer; then whole steps of two small
models, learning, reading and writing, from which follows what each term of `seconds.py` takes.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ondevice.common import allocator
from ondevice.common.physical_memory import process_memory
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
from ondevice.planning.calibration import Rates, Speeds, Terms
from ondevice.planning.dimensions import dimensions
from ondevice.planning.seconds import learn_terms, read_terms, update_seconds, write_terms
from ondevice.planning.trained import Trained
from ondevice.planning.work import Decode, pass_of
from ondevice.seam.ops import Params
from ondevice.seam.protocols import Backend
from ondevice.seam.select import load_backend
from ondevice.seam.use_type import TYPES, keep
from ondevice.training.losses import causal_lm_loss
from ondevice.training.optimizer_settings import optim_settings

WIDTHS = (64, 128, 256, 512, 1024)
ROWS = 512  # of a product
_MOVED = 1 << 22  # numbers
USED = (4, 2048)  # matrices of a text's next token, and their width: more than caches hold
_RUNS = 5
_MOST_RUNS, _WHILE_S = 10, 0.25
"""Short work is run more often: a moment of another program's is a large part of it."""
SHAPES: tuple[dict[str, int], ...] = (
    {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "heads": 4},
    {"hidden_size": 320, "intermediate_size": 864, "num_hidden_layers": 4, "heads": 5},
)
VOCABULARY = 1024
_TOKENS = 280  # that are read
BATCHES = ((2, 64), (4, 128), (8, 256))  # rows and their tokens
PROMPT, WRITERS = 32, ((1, 34), (16, 34), (64, 18))  # rows and the tokens that each writes


def main() -> None:
    allocator.restart()  # as a command that trains does
    backend = load_backend(*sys.argv[1:4])
    process = process_memory()
    found = {
        "device": backend.device,
        "dtype": backend.dtype,
        "device_memory": backend.memory().total,
        "process": process,
        "speeds": asdict(measure(backend)),
    }
    print(json.dumps(found), flush=True)
    keep(backend, {name: _used(name) for name in TYPES})


def measure(backend: Backend) -> Speeds:
    """The machine's speeds under this backend."""
    nothing = Rates(1.0, 0.0, 0.0)
    plain = Speeds(
        tuple((float(width), _product(backend, width)) for width in WIDTHS),
        _moved(backend),
        _tokenizer(),
        nothing,
        nothing,
        nothing,
    )
    found: dict[str, list[tuple[Terms, float]]] = {"learning": [], "reading": [], "writing": []}
    for shape in SHAPES:
        _steps(shape, backend, plain, found)
    return replace(
        plain,
        learning=fitted(found["learning"], least=1.0),
        reading=fitted(found["reading"], least=1.0),
        writing=fitted(found["writing"]),
    )


def fitted(measured: Sequence[tuple[Terms, float]], least: float = 0.0) -> Rates:
    """The rates by which the terms come nearest to the seconds: least squares of the parts by which
    each is off, none of the rates below 0, and that of products not below `least`.

    Products of the size of a batch were measured by themselves: inside a step they are not quicker
    (1). Without that bound the few small steps can also be told by slow starts of quick products,
    and a large model's time, which is products, comes out a third too short."""
    rows = np.array([[one.products, one.moved, one.blocks] for one, _ in measured])
    seconds = np.array([taken for _, taken in measured])
    relative = rows / seconds[:, None]
    left = 1.0 - least * relative[:, 0]  # of each second, beside the products at their least
    best, nearest = np.zeros(3), float(np.square(left).sum())
    for chosen in ([0], [1], [2], [0, 1], [0, 2], [1, 2], [0, 1, 2]):
        found = np.linalg.lstsq(relative[:, chosen], left, rcond=None)[0]
        off = float(np.square(relative[:, chosen] @ found - left).sum())
        if found.min() >= 0 and off < nearest:
            best, nearest = np.zeros(3), off
            best[chosen] = found
    best[0] += least
    return Rates(*best.tolist())


def _best(work: Callable[[], Any], runs: int = _RUNS) -> float:
    """Seconds of the quickest of some runs, after one that is not counted: other programs make a
    run slower, never quicker."""
    work()
    taken: list[float] = []
    while len(taken) < runs or (len(taken) < _MOST_RUNS and sum(taken) < _WHILE_S):
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
    """Floating-point operations a second of (ROWS, width) · (width, width), one after the other."""
    random = random_of(0, "calibration", str(width))
    x = backend.ops.cast(_array(backend, random, (ROWS, width)), backend.dtype)
    # so that the numbers stay of one size, however often they are multiplied
    weight = _array(backend, random, (width, width)) * width**-0.5
    weight = backend.ops.cast(weight, backend.dtype)
    together = max(2, (1 << 27) // (2 * ROWS * width * width))

    def work() -> None:
        y = x
        for _ in range(together):
            y = y @ weight
        backend.numpy(y[:1, :1])

    return 2.0 * ROWS * width * width * together / _best(work)


def _array(backend: Backend, random: Any, shape: tuple[int, ...]) -> Any:
    return backend.array(random.standard_normal(shape).astype(np.float32))


def _moved(backend: Backend) -> float:
    """Bytes a second that are read and written where numbers are added."""
    x = backend.array(np.ones(_MOVED, np.float32))
    y = backend.array(np.full(_MOVED, 2.0, np.float32))

    def work() -> None:
        backend.numpy((x + y + x + y)[:1])

    return 3 * 3.0 * 4 * _MOVED / _best(work)


def _used(dtype: str) -> float:
    """Seconds that one row takes through some large matrices in this compute type, as the next
    token of a text does."""
    backend = load_backend(sys.argv[1], sys.argv[2], dtype)
    count, width = USED
    host = np.full((width, width), 1 / width, np.float32)
    weights = [{"w.weight": backend.ops.cast(backend.array(host), dtype)} for _ in range(count)]
    first = backend.ops.cast(backend.array(np.ones((1, 1, width), np.float32)), dtype)

    def work() -> None:
        x = first
        for weight in weights:
            x = backend.ops.linear(weight, "w", x)
        backend.numpy(x)

    return _best(work)


def _tokenizer() -> float:
    """Bytes of text that are encoded a second."""
    corpus = build(replace(CorpusConfig(), document_bytes=100_000))
    texts = list(corpus.documents("train"))
    tokenizer = train_tokenizer(texts, VOCABULARY)
    size = sum(len(text.encode()) for text in texts)
    return size / _best(lambda: tokenizer.encode_batch(texts), 3)


# ---- whole steps ----------------------------------------------------------------------------------


def _steps(
    shape: dict[str, int],
    backend: Backend,
    plain: Speeds,
    found: dict[str, list[tuple[Terms, float]]],
) -> None:
    """Adds the terms of steps of one small model, and what they take, to `found`."""
    model = _model(shape, backend)
    dims = dimensions(model.cfg)
    numbers = sum(math.prod(size) for size in shapes(model.cfg).values())
    cfg = PretrainConfig()
    updating = update_seconds(cfg, Trained(numbers, 0, 0, False, 0.0), dims, plain)
    size = 2 if backend.dtype == "bfloat16" else 4
    loss = partial(causal_lm_loss, model=model.network)
    trainer = backend.trainer(loss, model.params, {}, optim_settings(cfg, model.params))
    read = backend.inference_fn(lambda params, arrays: loss(backend.ops, params, arrays)[0])
    for rows, length in BATCHES:
        batch = text_batch(rows, length)
        placed = model.with_tables(backend, batch)
        one = pass_of(batch)
        learned = _best(partial(trainer.step, [placed], 1e-4), 2) - updating
        found["learning"].append((learn_terms(one, dims, plain, size=size), max(learned, 1e-6)))
        taken = _best(partial(_read, backend, read, trainer.params(), placed), 2)
        found["reading"].append((read_terms(one, dims, plain, size=size), taken))
    for rows, written in WRITERS:
        # what reading the prompts takes is not in the difference
        few, many = (_writing(model, trainer.params(), backend, rows, n) for n in (2, written))
        decode = Decode(rows, written, rows, rows, PROMPT, PROMPT + written)
        # more than half of it is the writing, whatever other programs did while one was measured
        each = max(many - few, many / 2) / (written - 2)
        found["writing"].append((write_terms(decode, dims, plain, size=size), each))


def _read(backend: Backend, read: Callable[..., Any], params: Params, batch: Any) -> None:
    backend.numpy(read(params, batch))


def _writing(model: Model, params: Params, backend: Backend, rows: int, written: int) -> float:
    """Seconds in which so many rows are written side by side."""
    prompts = [_ids(PROMPT, f"prompt {n}").tolist() for n in range(rows)]
    writer = Generator(model, backend, Sampling(written, 1.0))
    writer.stop_ids = set()
    return _best(lambda: writer.run(params, prompts, batch_size=rows), 2)


def _model(shape: dict[str, int], backend: Backend) -> Model:
    sizes = {name: value for name, value in shape.items() if name != "heads"}
    raw: dict[str, Any] = {
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 512,
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
    return random_of(0, "calibration", name).integers(3, _TOKENS, count).astype(np.int32)


def text_batch(rows: int, length: int, vocabulary: int = _TOKENS) -> Batch:
    """Rows of running text of random tokens of a vocabulary of that size."""
    ids = _ids(rows * (length + 1), "text") % vocabulary
    ids = ids.reshape(rows, length + 1)
    batch: Batch = {
        "ids": ids[:, :-1].copy(),
        "positions": np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        "targets": ids[:, 1:].reshape(-1).copy(),
        "weights": np.ones(rows * length, np.float32),
    }
    return set_denominator([batch])[0]


if __name__ == "__main__":
    main()
