"""Counts of decoding on MLX, ours and mlx-lm's, read from the graph that is about to be computed.

MLX's fast operations are one kernel on a GPU, and many nodes on a CPU. There a node that nothing is
fused with stands in for each: numbers come out wrong, and nobody reads them.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
from count_decoding import PROMPT
from job import Job
from meter import mlx_device, use_mlx_device

# Nodes that only look at the same memory in another way.
VIEWS = {
    "AsStrided",
    "Broadcast",
    "BroadcastAxes",
    "CustomTransforms",
    "Depends",
    "ExpandDims",
    "Flatten",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "StopGradient",
    "Transpose",
    "Unflatten",
}


def arrays_of(tree: Any) -> list[mx.array]:
    if isinstance(tree, mx.array):
        return [tree]
    if isinstance(tree, dict):
        tree = list(tree.values())
    found = []
    if isinstance(tree, list | tuple):
        for part in tree:
            found += arrays_of(part)
    return found


def use_stand_ins(job: Job) -> None:
    """Puts one node in the place of each fast operation, where the device would expand them."""
    if mlx_device(job) == "gpu":
        return
    fast: Any = mx.fast
    fast.rms_norm = lambda x, weight, *rest: _scan(x, weight)
    fast.layer_norm = lambda x, *rest: _scan(x, *rest[:2])
    fast.rope = lambda x, *rest, **named: _scan(x)
    fast.scaled_dot_product_attention = lambda q, k, v, *rest, **named: _scan(q, k, v)


def _scan(x: mx.array, *others: mx.array | None) -> mx.array:
    """One node of x's shape, after `others`, all in the type that they have together."""
    there = [y for y in others if y is not None]
    for y in there:
        x = x.astype(mx.result_type(x, y))
    if there:
        x = mx.depends([x], [y.astype(x.dtype) for y in there])[0]
    return mx.cummax(x, axis=-1)


def look(found: Counter[str], outputs: list[mx.array]) -> None:
    """Adds the nodes between these outputs and what is computed already."""
    drawn = io.StringIO()
    mx.export_to_dot(drawn, *outputs)
    for label in re.findall(r'label ="(\w+)"', drawn.getvalue()):
        found["nodes"] += 1
        found["casts"] += label.count("AsType")
        found["kernels"] += label not in VIEWS


@contextmanager
def counted_reads(found: Counter[str]) -> Iterator[None]:
    """Adds each time that the host takes numbers out of an array."""
    kept = {name: getattr(mx.array, name) for name in ("item", "tolist")}

    def counting(method: Callable[..., Any]) -> Callable[..., Any]:
        def run(self: mx.array) -> Any:
            found["reads"] += 1
            return method(self)

        return run

    for name, method in kept.items():
        setattr(mx.array, name, counting(method))
    try:
        yield
    finally:
        for name, method in kept.items():
            setattr(mx.array, name, method)


def both_ways(count: Callable[[], Counter[str]]) -> Counter[str]:
    """Nodes and casts as they are written, kernels as MLX's compiler leaves them."""
    mx.disable_compile()
    written = count()
    mx.enable_compile()
    compiled = count()
    return Counter(
        nodes=written["nodes"],
        casts=written["casts"],
        kernels=compiled["kernels"],
        reads=compiled["reads"],
    )


def ours(job: Job, model: Path, tokens: int) -> Counter[str]:
    use_stand_ins(job)
    return both_ways(lambda: _ours(job, model, tokens))


def _ours(job: Job, folder: Path, tokens: int) -> Counter[str]:
    from ours import backend_of

    from ondevice.inference.generator import Generator
    from ondevice.inference.next_token import Sampling
    from ondevice.models.load import load_generative

    found: Counter[str] = Counter()
    backend: Any = backend_of(job)
    make, numpy = backend.inference_fn, backend.numpy

    def inference_fn(fn: Callable[..., Any], *, compile: str = "auto") -> Callable[..., Any]:
        run = make(fn, compile=compile)

        def looked_at(*args: Any) -> Any:
            mx.eval(arrays_of(list(args)))
            out = run(*args)
            look(found, arrays_of(out))
            return out

        return looked_at

    def read(x: mx.array) -> Any:
        found["reads"] += 1
        return numpy(x)

    backend.inference_fn = inference_fn
    model = load_generative(folder, backend)
    generator = Generator(model, backend, Sampling(tokens, temperature=0))
    generator.stop_ids = set()
    backend.numpy = read
    with counted_reads(found):
        generator.run(model.params, [PROMPT], on_token=lambda row, token: None)
    return found


def mlx_lm(job: Job, model: Path, tokens: int) -> Counter[str]:
    use_stand_ins(job)
    return both_ways(lambda: _mlx_lm(job, model, tokens))


def _mlx_lm(job: Job, folder: Path, tokens: int) -> Counter[str]:
    from mlx_lm.generate import generate_step
    from mlx_lm.utils import load

    use_mlx_device(job)
    found: Counter[str] = Counter()
    model: Any = load(str(folder))[0]
    model.set_dtype(getattr(mx, job.dtype))
    mx.eval(model.parameters())
    begin = mx.async_eval

    def looked_at(*outputs: Any) -> None:
        # it hands over the token before this one's is computed: what came before is done first
        look(found, arrays_of(list(outputs)))
        begin(*outputs)  # type: ignore[no-untyped-call]
        mx.synchronize()

    mx.async_eval = looked_at
    with counted_reads(found):
        for _ in generate_step(mx.array(PROMPT), model, max_tokens=tokens):
            pass
    mx.async_eval = begin
    return found
