"""Seconds that work takes: terms that follow from shapes, times this machine's calibrated rates.

Three terms for each batch: the matrix products, at the speed of products of their size; the bytes that
go into and come out of them, for what is done number by number in between; the blocks, for what
starting operations takes. The calibration finds what each of them takes on small models, for learning,
reading and writing by itself (`measure.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

from ondevice.config.stages import TrainingConfig
from ondevice.planning.calibration import Speeds, Terms
from ondevice.planning.dimensions import Dimensions
from ondevice.planning.trained import Trained
from ondevice.planning.work import Decode, Pass, Work
from ondevice.seam.costs import Costs
from ondevice.training.logprobs import KEEP_ELEMENTS

_FLOAT = 4
_MOVED = 12  # floats that an update of AdamW reads and writes for each number
_MUON = 5  # iterations of Newton–Schulz (`training/muon.py`)
_DRAWN = 8  # times that the logits of a token are read or written until it is drawn
_BESIDE = 2  # blocks that what stands before and behind the blocks counts as


def step_seconds(
    work: Work,
    cfg: TrainingConfig | None,
    trained: Trained,
    dims: Dimensions,
    *,
    costs: Costs,
    speeds: Speeds,
    size: int = _FLOAT,
) -> float:
    """Of one step with all its updates (or of one measurement). `size`: bytes of a number that is
    computed with."""
    checkpointing = cfg is not None and cfg.checkpointing
    low = costs.low if trained.low else None
    total = 0.0
    for one in work.learned:
        terms = learn_terms(one, dims, speeds, low=low, checkpointing=checkpointing, size=size)
        total += one.times * speeds.learning.of(terms)
    for one in (*work.read, *work.judged):
        total += one.times * speeds.reading.of(read_terms(one, dims, speeds, size=size))
    for decode in work.decodes:
        total += decode_seconds(decode, dims, speeds, size=size)
    if cfg is not None and work.updates:
        total += work.updates * update_seconds(cfg, trained, dims, speeds)
    return total


def learn_terms(
    one: Pass,
    dims: Dimensions,
    speeds: Speeds,
    *,
    low: float | None = None,
    checkpointing: bool = False,
    size: int = _FLOAT,
) -> Terms:
    """Forward and backward of a batch. Beside an adapter (`low`: see `Costs`) there is no gradient
    of the weights."""
    products = 3.0 if low is None else 2.0
    again = 1.0 if checkpointing else 0.0
    inside = _products(one, dims, speeds) * (products + again)
    inside += _attention(one, dims, speeds) * (3.0 + again)
    chunked = one.targets * dims.vocabulary > KEEP_ELEMENTS
    head = _head(one, dims, speeds) * (products + (1.0 if chunked else 0.0))
    moved = 3.0 * _moved(one, dims, size) * (1.0 + (low or 0.0)) * (1.0 + again / 3)
    # the entropy is a second way through the logits, without a backward pass
    logits = (4.0 if one.entropy else 3.0) * _logits(one, dims)
    return Terms(
        one.models * inside + head,
        one.models * moved + logits,
        one.models * (len(dims.blocks) * (1.0 + again / 3) + _BESIDE),
    )


def read_terms(one: Pass, dims: Dimensions, speeds: Speeds, *, size: int = _FLOAT) -> Terms:
    """Forward of a batch."""
    return Terms(
        _products(one, dims, speeds) + _attention(one, dims, speeds) + _head(one, dims, speeds),
        _moved(one, dims, size) + _logits(one, dims),
        float(len(dims.blocks) + _BESIDE),
    )


def decode_seconds(
    decode: Decode, dims: Dimensions, speeds: Speeds, *, size: int = _FLOAT
) -> float:
    """Reading the prompts, then a step for each token of the rows that are written side by side."""
    prompts = Pass(decode.prompts * decode.prompt, decode.prompt, decode.prompts, decode.prompts)
    steps = decode.rows / decode.at_once * decode.written
    written = steps * speeds.writing.of(write_terms(decode, dims, speeds, size=size))
    return speeds.reading.of(read_terms(prompts, dims, speeds, size=size)) + written


def write_terms(decode: Decode, dims: Dimensions, speeds: Speeds, *, size: int = _FLOAT) -> Terms:
    """One token of every row that is written side by side. With few rows the weights are read once
    for little to compute."""
    numbers = dims.matrix_numbers + dims.vocabulary * dims.hidden
    flops = 2.0 * decode.at_once * numbers
    context = decode.prompt + decode.written / 2
    cache = 2.0 * size * decode.at_once * context * len(dims.blocks) * dims.heads * dims.head_width
    inside = sum(block.inside for block in dims.blocks)
    moved = size * decode.at_once * inside + cache
    moved += _DRAWN * _FLOAT * decode.at_once * dims.vocabulary
    reading = size * numbers / speeds.bytes_per_second
    return Terms(
        max(reading, flops / speeds.product(dims.hidden)),
        moved,
        float(len(dims.blocks) + _BESIDE),
    )


def update_seconds(
    cfg: TrainingConfig, trained: Trained, dims: Dimensions, speeds: Speeds
) -> float:
    """Clipping and the optimizer."""
    moved = _MOVED * _FLOAT * trained.numbers / speeds.bytes_per_second
    if cfg.optimizer != "muon":
        return moved
    flops = 0.0
    for block in dims.blocks:
        for out, into, _ in block.matrices:
            short, long = min(out, into), max(out, into)
            flops += _MUON * (4.0 * short * short * long + 2.0 * short**3)
    return moved + flops / speeds.product(dims.hidden)


def flops_of(passes: Sequence[Pass], dims: Dimensions, *, low: bool = False) -> float:
    """Floating-point operations of a step's learning, attention among them."""
    products = 2.0 if low else 3.0
    found = 0.0
    for one in passes:
        inside = 2.0 * one.places * dims.matrix_numbers
        attended = 4.0 * one.places * one.attended * len(dims.blocks) * dims.heads * dims.head_width
        if dims.labels:
            head = 0.0
        else:
            head = 2.0 * one.targets * dims.vocabulary * dims.hidden
        found += one.times * (products * (one.models * inside + head) + 3.0 * attended)
    return found


def _products(one: Pass, dims: Dimensions, speeds: Speeds) -> float:
    """The blocks' matrices, once."""
    seconds = 0.0
    for block in dims.blocks:
        places = one.sources if block.source else one.places
        for out, into, share in block.matrices:
            width = (out * into) ** 0.5
            seconds += 2.0 * places * out * into * share / speeds.product(width)
    return seconds


def _attention(one: Pass, dims: Dimensions, speeds: Speeds) -> float:
    """Scores and what they weigh, once. Where a row has no mask of its own half of them are left
    out."""
    seconds = 0.0
    share = 1.0 if one.masked else 0.5
    for block in dims.blocks:
        places, attended = one.places, one.attended * share
        if block.source:
            places, attended = one.sources, one.source_width
        flops = 4.0 * places * attended * dims.heads * dims.head_width
        seconds += flops / speeds.product(dims.head_width)
    return seconds


def _head(one: Pass, dims: Dimensions, speeds: Speeds) -> float:
    if dims.labels:
        return 0.0
    width = (dims.hidden * dims.vocabulary) ** 0.5
    return 2.0 * one.targets * dims.hidden * dims.vocabulary / speeds.product(width)


def _moved(one: Pass, dims: Dimensions, size: int) -> float:
    """Bytes that go into and come out of the matrices, and of attention's scores."""
    moved = 0.0
    for block in dims.blocks:
        places, attended = one.places, one.attended
        if block.source:
            places, attended = one.sources, one.source_width
        moved += size * places * block.inside + _FLOAT * places * dims.heads * attended
    return moved


def _logits(one: Pass, dims: Dimensions) -> float:
    if dims.labels:
        return 0.0
    return _FLOAT * one.targets * dims.vocabulary
