"""What a step of training with LoRA on a 4-bit base costs on MLX whatever the device: nodes and
kernels of the graph of losses and gradients, ours and mlx-lm's.

Counted on models of two depths: the difference is per layer. The optimizer is left out: both sides
have the library's.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np
from count_decoding import LAYERS
from count_mlx import arrays_of, look
from job import GROUP_SIZE, Job, Size
from material import init_config, sentences
from meter import mlx_device, print_result, use_mlx_device

from ondevice.data.tokenizer_training import train_tokenizer
from ondevice.models.convert import quantize
from ondevice.models.initial_config import model_config
from ondevice.models.save import write_model
from ondevice.seam.select import load_backend
from ondevice.stages.init import initial_weights

ROWS, TOKENS, RANK = 2, 64, 8
NAMES = ("nodes", "casts", "kernels")
SHAPE = Size(512, 64, 128, 2, 4, 2, dtype="float32", bits=4)


def main() -> None:
    job = Job.from_argv()
    use_mlx_device(job)
    use_stand_ins(job)
    count = {"ours": ours, "mlx-lm": mlx_lm}[job.what]
    found: dict[int, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for layers in LAYERS:
            model = Path(folder) / str(layers)
            write_random(model, replace(SHAPE, num_hidden_layers=layers))
            found[layers] = both_ways(partial(count, job, model))
    print_result(**per_layer(found))


def write_random(folder: Path, shape: Size) -> None:
    text = sentences("text", 20, 60)
    tokenizer = train_tokenizer([next(text) for _ in range(500)], shape.vocab_size)
    cfg = init_config(shape)
    decoder = model_config(cfg, tokenizer)
    backend = load_backend("mlx", "cpu")
    params = {n: backend.array(w) for n, w in initial_weights(cfg, decoder).items()}
    folder.mkdir()
    write_model(folder, backend, decoder, params, tokenizer, dtype=shape.dtype)
    quantize(folder, quantised(folder), shape.bits, GROUP_SIZE)


def quantised(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}-4bit")


def per_layer(found: dict[int, Counter[str]]) -> dict[str, Any]:
    """For each name, what is counted in each layer and outside of all layers."""
    few, many = LAYERS
    out: dict[str, Any] = {}
    for name in NAMES:
        each = (found[many][name] - found[few][name]) / (many - few)
        out[name] = [round(each, 2), round(found[few][name] - few * each, 2)]
    return out


def both_ways(count: Callable[[], Counter[str]]) -> Counter[str]:
    """Nodes and casts as they are written, kernels as MLX's compiler leaves them."""
    mx.disable_compile()
    written = count()
    mx.enable_compile()
    compiled = count()
    return Counter(nodes=written["nodes"], casts=written["casts"], kernels=compiled["kernels"])


def use_stand_ins(job: Job) -> None:
    """Puts one node in the place of each fast operation, and one for each of its gradients, where
    the device would expand them: on a GPU each is one kernel."""
    if mlx_device(job) == "gpu":
        return
    fast: Any = mx.fast
    fast.rms_norm = lambda x, weight, eps: _one(x, weight)
    fast.rope = lambda x, *rest, **named: _one(x)

    def attention(q: mx.array, k: mx.array, v: mx.array, **named: Any) -> mx.array:
        mask = named.get("mask")
        others = [mask] if isinstance(mask, mx.array) else []
        return _one(q, k, v, beside=others)

    fast.scaled_dot_product_attention = attention


def _one(*inputs: mx.array, beside: list[mx.array] | None = None) -> mx.array:
    """One node of the first input's shape, whose gradients are one more node together."""

    @mx.custom_function
    def forward(*inputs: mx.array) -> mx.array:
        return _scan(inputs[0], [*inputs[1:], *(beside or [])])

    @forward.vjp
    def backward(primals: Any, cotangents: Any, _: Any) -> tuple[mx.array, ...]:
        primals = primals if isinstance(primals, tuple | list) else (primals,)
        cotangent = cotangents[0] if isinstance(cotangents, tuple | list) else cotangents
        first = _scan(cotangent, list(primals))
        found = [first.reshape(-1)[: x.size].reshape(x.shape) for x in primals]
        return tuple(found)

    made: Any = forward(*inputs)
    return cast(mx.array, made)


def _scan(x: mx.array, others: list[mx.array]) -> mx.array:
    """One node of x's shape, after `others`."""
    if others:
        x = mx.depends([x], others)[0]
    return mx.cummax(x, axis=-1)


def ours(job: Job, folder: Path) -> Counter[str]:
    from ours import backend_of

    from ondevice.models.load import load_model
    from ondevice.models.lora import init_lora
    from ondevice.models.shapes import matrices
    from ondevice.models.tables import with_tables
    from ondevice.models.tensor_names import is_block_matrix
    from ondevice.seam.protocols import OptimSettings
    from ondevice.training.losses import causal_lm_loss

    backend: Any = backend_of(job)
    model = load_model(quantised(folder), backend, dtype=backend.dtype, merge=False)
    known = matrices(model.cfg)
    shapes = {n: s for n, s in known.items() if is_block_matrix(f"{n}.weight", s)}
    adapter = init_lora(shapes, RANK, 2.0, 0, "count", backend)
    trained = {n: p for n, p in adapter.items() if ".lora_scale." not in n}
    frozen = {**model.params, **{n: p for n, p in adapter.items() if n not in trained}}
    loss = partial(causal_lm_loss, model=model.network)
    trainer = backend.trainer(loss, trained, frozen, OptimSettings(), compile="always")
    ids = np.arange(ROWS * TOKENS, dtype=np.int32).reshape(ROWS, TOKENS)
    batch = {
        "ids": ids,
        "positions": np.tile(np.arange(TOKENS, dtype=np.int32), (ROWS, 1)),
        "targets": ids.reshape(-1) + 1,
        "weights": np.ones(ids.size, np.float32),
        "denominator": np.float32(ids.size),
    }
    arrays = backend._place(with_tables(model.network, backend.ops, batch))
    mx.eval(arrays_of([arrays, trained, frozen]))
    return counted(trainer._gradient(trainer.trainable, trainer.frozen, arrays))


def mlx_lm(job: Job, folder: Path) -> Counter[str]:
    import mlx.nn

    mlx_nn: Any = mlx.nn
    from mlx_lm.tuner.trainer import default_loss
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import load

    model: Any = load(str(folder))[0]
    model.set_dtype(getattr(mx, job.dtype))
    mlx_nn.quantize(model, GROUP_SIZE, SHAPE.bits)
    model.freeze()
    linear_to_lora_layers(model, len(model.layers), {"rank": RANK, "scale": 2.0, "dropout": 0.0})
    model.train()
    mx.eval(model.parameters())
    gradient = mlx_nn.value_and_grad(model, default_loss)
    state = [model.state]
    batch = mx.array(np.arange(ROWS * (TOKENS + 1), dtype=np.int32).reshape(ROWS, TOKENS + 1) % 512)
    lengths = mx.array([[0, TOKENS + 1]] * ROWS)
    mx.eval(batch, lengths)
    step = mx.compile(lambda batch, lengths: gradient(model, batch, lengths), inputs=state)
    return counted(step(batch, lengths))


def counted(outputs: Any) -> Counter[str]:
    found: Counter[str] = Counter()
    look(found, arrays_of(outputs))
    return found


if __name__ == "__main__":
    main()
