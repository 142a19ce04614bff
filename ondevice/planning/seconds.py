"""Seconds that work takes: operations over this machine's calibrated speeds.

A matrix product by its floating-point operations and the speed of products of its size; what is done
number by number between them by the bytes that are moved; each operation that is started one by one
by what starting it takes. What an algorithm does beside these is in factors that the calibration
found on two small models, for learning, reading and writing each.
"""

from __future__ import annotations

from collections.abc import Sequence

from ondevice.config.stages import TrainingConfig
from ondevice.planning.calibration import Speeds
from ondevice.planning.dimensions import Dimensions
from ondevice.planning.trained import Trained
from ondevice.planning.work import Decode, Pass, Work
from ondevice.seam.costs import Costs
from ondevice.training.logprobs import KEEP_ELEMENTS

_FLOAT = 4
_MOVED = 12  # floats that an update of AdamW reads and writes for each number
_MUON = 5  # iterations of Newton–Schulz (`training/muon.py`)
_DRAWN = 8  # times that the logits of a token are read or written until it is drawn


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
    """Of one step with all its updates (or of one measurement)."""
    checkpointing = cfg is not None and cfg.checkpointing
    total = 0.0
    for one in work.learned:
        total += one.times * learn_seconds(
            one, dims, costs, speeds, low=trained.low, checkpointing=checkpointing, size=size
        )
    for one in (*work.read, *work.judged):
        total += one.times * read_seconds(one, dims, costs, speeds, size=size)
    for decode in work.decodes:
        total += decode_seconds(decode, dims, costs, speeds, size=size)
    if cfg is not None and work.updates:
        total += work.updates * update_seconds(cfg, trained, dims, costs, speeds)
    return total


def learn_seconds(
    one: Pass,
    dims: Dimensions,
    costs: Costs,
    speeds: Speeds,
    *,
    low: bool = False,
    checkpointing: bool = False,
    size: int = _FLOAT,
) -> float:
    """Forward and backward of a batch. Beside an adapter there is no gradient of the weights."""
    products = 2.0 if low else 3.0
    again = 1.0 if checkpointing else 0.0
    seconds = _products(one, dims, speeds) * (products + again)
    seconds += _attention(one, dims, speeds) * (3.0 + again)
    chunked = one.targets * dims.vocabulary > KEEP_ELEMENTS
    seconds += _head(one, dims, speeds) * (products + (1.0 if chunked else 0.0))
    seconds += _moved(one, dims, size) * costs.passes / speeds.bytes_per_second
    calls = len(dims.blocks) * costs.calls + costs.step_calls
    return speeds.learning * (seconds + calls * speeds.call)


def read_seconds(
    one: Pass, dims: Dimensions, costs: Costs, speeds: Speeds, *, size: int = _FLOAT
) -> float:
    """Forward of a batch."""
    seconds = _products(one, dims, speeds) + _attention(one, dims, speeds)
    seconds += _head(one, dims, speeds)
    seconds += _moved(one, dims, size) * costs.passes / 3 / speeds.bytes_per_second
    calls = len(dims.blocks) * costs.read_calls + costs.step_calls / 3
    return speeds.reading * (seconds + calls * speeds.call)


def decode_seconds(
    decode: Decode, dims: Dimensions, costs: Costs, speeds: Speeds, *, size: int = _FLOAT
) -> float:
    """Reading the prompts, then a step for each token of the rows that are written side by side."""
    rounds = decode.rows / decode.at_once
    prompts = Pass(decode.prompts * decode.prompt, decode.prompt, decode.prompts, decode.prompts)
    weights = size * (dims.matrix_numbers + dims.vocabulary * dims.hidden)
    flops = 2.0 * decode.at_once * (dims.matrix_numbers + dims.vocabulary * dims.hidden)
    step = max(weights / speeds.bytes_per_second, flops / speeds.product(dims.hidden))
    context = decode.prompt + decode.written / 2
    attended = 4.0 * decode.at_once * context * len(dims.blocks) * dims.heads * dims.head_width
    step += attended / speeds.product(dims.head_width)
    drawn = _DRAWN * _FLOAT * decode.at_once * dims.vocabulary
    step += drawn / speeds.bytes_per_second
    step += (len(dims.blocks) * costs.read_calls + costs.step_calls) * speeds.call
    written = speeds.writing * rounds * decode.written * step
    return read_seconds(prompts, dims, costs, speeds, size=size) + written


def update_seconds(
    cfg: TrainingConfig, trained: Trained, dims: Dimensions, costs: Costs, speeds: Speeds
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
        head = 0.0 if dims.labels else 2.0 * one.targets * dims.vocabulary * dims.hidden
        found += one.times * (products * (inside + head) + 3.0 * attended)
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
    """Bytes that go into and come out of the matrices, and of the logits."""
    moved = 0.0
    for block in dims.blocks:
        places = one.sources if block.source else one.places
        moved += size * places * block.inside
    if not dims.labels:
        moved += _FLOAT * one.targets * dims.vocabulary
    return moved
