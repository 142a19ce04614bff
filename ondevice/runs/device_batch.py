"""How many rows the device works on at once: what suits a machine, and what is in force in a stage.

The result of a stage does not depend on it beyond rounding; memory and speed do. A step's rows are
computed in micro-batches that take no more than a part of the memory: more rows at once are hardly
faster once the device is busy, and on a laptop the memory is other programs' too.

What a micro-batch takes is estimated from the shapes of the model: all that goes into and comes out
of the matrices of the blocks, for each token, times what a backend's backward pass was measured to
keep of it (`Backend.activation_factor`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ondevice.models.model import Model
from ondevice.models.network import supports_packing
from ondevice.models.shapes import shapes
from ondevice.models.tensor_names import is_block_matrix
from ondevice.seam.protocols import Memory

MOST_DECODED = 256  # rows that are written at once, where memory allows them
_UNKNOWN_MEMORY = 8 << 30  # what a machine is taken to have where it does not say
_OF_GPU = 4  # a micro-batch takes one part in so many of a GPU's memory,
_OF_CPU = 32  # and of a CPU's: a matrix product of some hundred rows keeps its cores busy
_LEAST_BUDGET = 256 << 20
_TRAINED_BYTES = 16  # of a parameter: weight, gradient and AdamW's two moments in float32
_FROZEN_BYTES = 4
_KEYS_AND_VALUES = re.compile(r"(k_proj|v_proj|\.k|\.v|key|value|key_value)\.weight$")


class Device(Protocol):
    """What of a backend says how many rows suit it: a planned run has no more of one."""

    @property
    def device(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def activation_factor(self) -> float: ...
    def memory(self) -> Memory: ...


@dataclass
class DeviceBatch:
    """Rows in force; None: not chosen yet. `micro_batch` rows' gradient is computed at once,
    `decode_batch` rows are written at once.
    """

    micro_batch: int | None = None
    decode_batch: int | None = None


def memory_budget(backend: Device) -> int:
    """Bytes that one micro-batch may take beside weights, gradients and the optimizer's state."""
    total = backend.memory().total or _UNKNOWN_MEMORY
    part = _OF_CPU if backend.device == "cpu" else _OF_GPU
    return max(_LEAST_BUDGET, total // part)


def choose_micro_batch(
    model: Model, backend: Device, rows: int, tokens: int, *, checkpointing: bool
) -> int:
    """How many of an update's `rows`, which are `tokens` tokens in all, padding included, to compute
    at once: micro-batches of about the same size, that fit the memory.
    """
    per_row = activation_bytes(model, backend, checkpointing=checkpointing) * tokens / rows
    fitting = max(1, int(memory_budget(backend) / per_row))
    parts = math.ceil(rows / fitting)
    return math.ceil(rows / parts)


def fitting_micro_batch(
    model: Model,
    device: Device,
    rows: int,
    cut: Callable[[int | None], Iterable[Mapping[str, Any]]],
    *,
    checkpointing: bool,
) -> int:
    """How many of an update's `rows` to compute at once; `cut` gives its batches of so many rows,
    None: of all. Where rows share prompts, fewer of them may hold more tokens for each.
    """

    def chosen(rows: int, tokens: int) -> int:
        return choose_micro_batch(model, device, rows, max(tokens, 1), checkpointing=checkpointing)

    batches = list(cut(None))
    found = chosen(rows, sum(map(count_tokens, batches)))
    shared = any("prompt_of" in batch or "source_of" in batch for batch in batches)
    while shared and 1 < found < rows:
        fewer = chosen(found, max(map(count_tokens, cut(found))))
        if fewer == found:
            break
        found = fewer
    return found


def count_tokens(batch: Mapping[str, Any]) -> int:
    """Places of all rows that the batch holds, those of chats and of sources beside them too."""
    return sum(
        int(values.size)
        for name, values in batch.items()
        if name.split(".")[-1] in ("ids", "source_ids", "prompt_ids")
    )


def needs_checkpointing(model: Model, backend: Device, tokens: int, *, whole: bool) -> bool:
    """Whether the backward pass of one row of `tokens` tokens would take more of the memory than is
    free beside the training itself. `whole`: all weights are trained, not an adapter.
    """
    if not supports_packing(model.cfg):
        return False  # a library's layers, which cannot
    total = backend.memory().total or _UNKNOWN_MEMORY
    size = _TRAINED_BYTES if whole else _FROZEN_BYTES
    free = total - size * parameter_count(model)
    return activation_bytes(model, backend, checkpointing=False) * tokens > max(free, 0) / 2


def parameter_count(model: Model) -> int:
    """Parameters of the model's own shape, whatever stands beside them."""
    return sum(math.prod(shape) for shape in shapes(model.cfg).values())


def activation_bytes(model: Model, backend: Device, *, checkpointing: bool) -> float:
    """Bytes that the backward pass needs for each token, as an estimate."""
    inside = 0
    blocks = set()
    for name, shape in shapes(model.cfg).items():
        if is_block_matrix(name, shape):
            inside += sum(shape)
            blocks.add(block_of(name))
    size = 2 if backend.dtype == "bfloat16" else 4
    kept = backend.activation_factor * size * max(inside, 1)
    if checkpointing and blocks:
        # one block at a time, and what goes into each of them
        kept = kept / len(blocks) + size * max(shapes_of_stream(model), 1) * len(blocks)
    return kept


def shapes_of_stream(model: Model) -> int:
    """Width of the stream that runs past the blocks: that of the table of tokens."""
    return int(next(iter(shapes(model.cfg).values()))[-1])


def choose_decode_batch(model: Model, backend: Device, context: int) -> int:
    """How many rows of `context` tokens to write at once: as many as have room for their keys and
    values.
    """
    per_row = cache_bytes(model, backend.dtype) * context
    return max(1, min(MOST_DECODED, memory_budget(backend) // per_row))


def cache_bytes(model: Model, dtype: str) -> int:
    """Bytes of the keys and values of one token."""
    width = 0
    for name, shape in shapes(model.cfg).items():
        if is_block_matrix(name, shape) and _KEYS_AND_VALUES.search(name):
            width += shape[0]
    if not width:  # of an architecture that names them otherwise
        blocks = {block_of(name) for name in shapes(model.cfg)}
        width = 2 * shapes_of_stream(model) * len(blocks)
    return width * (2 if dtype == "bfloat16" else 4)


def block_of(name: str) -> str:
    """The part of a tensor's name that says which block it is of."""
    block = re.match(r".*?\.\d+\.", name)
    return block[0] if block else ""
